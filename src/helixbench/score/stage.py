"""The stage `score`: the metrics of `score/metrics/` of one method's pairs of one category, as one
CSV of score rows.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.pictures.prepared import (
    load_pairs,
    pair_images,
    pair_masks,
    pair_settings,
    pairs_follow_cells,
    read_samples,
    read_split,
    sample_images,
    sample_masks,
)
from helixbench.protocol import Protocol
from helixbench.provenance import commit, sha256, write_json
from helixbench.records import ALL, Pair, Sample, Score, derive_seed, write_csv
from helixbench.score import metrics
from helixbench.score.case import Case, Number, Pictures
from helixbench.score.instruments import Instruments

log = logging.getLogger(__name__)


def run(
    method: str,
    dataset: str,
    category: str,
    config: Slice,
    *,
    prepared: Path,
    pairs: Path,
    out: Path,
) -> None:
    """Score the pairs of one category and write `out`, a CSV of records.Score: per defect type and
    for `all`; its hash and configuration go into the JSON file of the same name.

    config: keys `score` and `run.seed`. prepared, pairs: folders written by the stages prepare and
    generate. Raises UserError for missing weights, an altered picture, or a defect type without
    real anchors.
    """
    section, seed = config["score"], config["run.seed"]
    rule, split_sha256 = read_split(prepared)
    pair_rows = load_pairs(pairs)
    samples = read_samples(prepared)
    defects = sorted({pair.defect for pair in pair_rows})
    for defect in defects:
        if not any(s.defect == defect and s.defect_trains for s in samples):
            raise UserError(
                f"{prepared / 'samples.csv'}: no picture of {defect} has role generator, so "
                f"IC-LPIPS has no anchor"
            )
    normals = sample_images(prepared, [s for s in samples if s.role == "normal"])
    if not len(normals):
        log.warning(
            "%s: no picture has role normal; image-mask agreement is left out",
            prepared / "samples.csv",
        )
    instruments = Instruments(section, normals)
    measuring = metrics.modules()
    numbers: dict[str, list[Number]] = {}
    for defect in defects:
        made = [pair for pair in pair_rows if pair.defect == defect]
        known = [sample for sample in samples if sample.defect == defect]
        made_pictures, real_pictures = _pictures(pairs, made, prepared, known, normals)
        case = Case(
            pair_rows=made,
            pairs=made_pictures,
            real_rows=known,
            real=real_pictures,
            follows_cells=pairs_follow_cells(pairs),
            split=rule,
            seed=derive_seed(seed, "score", dataset, category),
            config=section,
            instruments=instruments,
        )
        numbers[defect] = [number for module in measuring for number in module.measure(case)]
        texts = "  ".join(f"{x.metric.key} {x.value:.4g}" for x in numbers[defect])
        log.info("score %s %s/%s/%s: %s", method, dataset, category, defect, texts)
    numbers[ALL] = _category(list(numbers.values()))
    shared = {"split": rule}
    if settings := pair_settings(pairs):
        shared["pairs"] = settings
    rows = [
        Score(
            dataset=dataset,
            category=category,
            defect=defect,
            method=method,
            metric=number.metric.key,
            value=number.value,
            std=number.std,
            n=number.n,
            seed=seed,
            split=rule,
            split_sha256=split_sha256,
            protocol=number.protocol.having(**shared).cell(),
            config_digest=config.digest,
        )
        for defect, of_defect in numbers.items()
        for number in of_defect
    ]
    record = out.with_suffix(".json")
    record.unlink(missing_ok=True)  # nothing vouches for the scores while they change
    write_csv(out, rows, Score)
    facts = {"stage": "score", "commit": commit(), "config_digest": config.digest}
    files = {out.name: sha256(out)}
    write_json(record, {**facts, "config": dict(config._values), "files": files})


def _pictures(
    pairs: Path, made: list[Pair], prepared: Path, known: list[Sample], normals: np.ndarray
) -> tuple[Pictures, Pictures]:
    """The pairs and the real pictures of one defect type; UserError where they, or the normals,
    differ in size.
    """
    generated = Pictures(pair_images(pairs, made), pair_masks(pairs, made))
    images = sample_images(prepared, known)
    for what, others in ((prepared, images), (f"normals of {prepared}", normals)):
        if len(others) and generated.images.shape[1:] != others.shape[1:]:
            sizes = [f"{a.shape[2]}x{a.shape[1]}" for a in (generated.images, others)]
            raise UserError(
                f"{pairs}: pictures are {sizes[0]}, those of {what} {sizes[1]}; generate again"
            )
    return generated, Pictures(images, sample_masks(prepared, known, images.shape[1:3]))


def _category(by_defect: list[list[Number]]) -> list[Number]:
    """Numbers of the category; what one defect type has too few pictures for is none of them."""
    by_metric: dict[str, list[Number]] = {}
    for of_defect in by_defect:
        for number in of_defect:
            by_metric.setdefault(number.metric.key, []).append(number)
    return [_merged(same) for same in by_metric.values() if len(same) == len(by_defect)]


def _merged(same: list[Number]) -> Number:
    """One metric's numbers of all defect types -> the category's: mean of the scores, sum of the
    counts.
    """
    first, values = same[0], [number.value for number in same]
    value = sum(values) if first.metric.summed else float(np.mean(values))
    # Shuffles repeat the whole category; the splits of two defect types have nothing to do with
    # each other.
    scores = (
        tuple(np.mean([number.scores for number in same], axis=0).tolist()) if first.scores else ()
    )
    std = float(np.std(scores)) if scores else None
    protocol = _merged_protocol([number.protocol for number in same])
    return Number(first.metric, value, std, sum(number.n for number in same), protocol, scores)


def _merged_protocol(protocols: list[Protocol]) -> Protocol:
    """Facts in which the defect types differ become {"either": values}."""
    facts = {}
    for name in dict.fromkeys(name for protocol in protocols for name in protocol.facts):
        values = [protocol.get(name) for protocol in protocols]
        distinct = {str(value): value for value in values}
        if len(distinct) == 1:
            facts[name] = values[0]
        else:
            facts[name] = {"either": [distinct[text] for text in sorted(distinct)]}
    return Protocol(protocols[0].name, facts)
