"""The stage `score`: IS and IC-LPIPS of one method's pairs of one category, as one CSV of score rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from helixbench import pictures
from helixbench.config import Slice
from helixbench.devices import pick_device
from helixbench.errors import UserError
from helixbench.records import ALL, Pair, Sample, Score, derive_seed, read_csv, write_csv
from helixbench.schema import ScoreSection
from helixbench.score import networks
from helixbench.score.ic_lpips import PairwiseLpips, build_lpips, ic_lpips
from helixbench.score.inception_score import InceptionScorer
from helixbench.weights import LPIPS_ORDER, choose

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Number:
    """A metric of one defect type before it becomes a row; `scores` are its repetitions, if it has any."""

    metric: str
    value: float
    std: float | None
    n: int
    protocol: str
    scores: tuple[float, ...] = ()


class _Scorer:
    """Networks loaded once for all defect types of a category."""

    def __init__(self, config: ScoreSection, seed: int):
        device = pick_device()
        self.config, self.seed = config, seed
        self.inception = InceptionScorer(config.inception_score.network, device, config.batch)
        self.network = choose(config.ic_lpips.network, LPIPS_ORDER)
        self.pairwise = PairwiseLpips(build_lpips(self.network), device, config.batch, config.memory_gib)
        self.versions = {name: metadata.version(name) for name in ("torch-fidelity", "lpips")}

    def inception_score(self, images: np.ndarray) -> _Number:
        wanted = self.config.inception_score.splits
        value, std, used = self.inception(images, wanted)
        short = "" if used == wanted else f" ({wanted} asked, too few images)"
        protocol = (
            f"IS torch-fidelity {self.versions['torch-fidelity']}, {networks.describe(self.inception.network)}, "
            f"{used} splits{short}, {images.shape[1]} px, {len(images)} images a defect type"
        )
        return _Number("inception_score", value, std, len(images), protocol)

    def ic_lpips(self, images: np.ndarray, anchors: np.ndarray, split: str) -> list[_Number]:
        config = self.config.ic_lpips
        found = ic_lpips(images, anchors, self.pairwise, cap=config.cap, shuffles=config.shuffles, seed=self.seed)
        protocol = (
            f"IC-LPIPS lpips {self.versions['lpips']}, {networks.describe(self.network)}, anchors: generator part of split {split}, "
            f"cap {config.cap}, {config.shuffles} shuffles, {images.shape[1]} px, {len(images)} images a defect type"
        )
        mean, std = float(np.mean(found.scores)), float(np.std(found.scores))
        return [
            _Number("ic_lpips", mean, std, len(images), protocol, found.scores),
            _Number("ic_lpips_empty_clusters", found.empty_clusters, None, len(images), f"clusters without an image; {protocol}"),
            _Number("ic_lpips_single_clusters", found.single_clusters, None, len(images), f"clusters of one image; {protocol}"),
        ]


def _gate_counts(pairs: Sequence[Pair]) -> list[_Number]:
    failed, redraws = sum(pair.gate != "ok" for pair in pairs), sum(pair.redraws for pair in pairs)
    return [
        _Number("gate_failed", failed, None, len(pairs), "pairs still failing the mask gate after the last redraw (scored all the same)"),
        _Number("redraws", redraws, None, len(pairs), "draws repeated by the mask gate"),
    ]


_SUMS = {"ic_lpips_empty_clusters", "ic_lpips_single_clusters", "gate_failed", "redraws"}


def _category(rows: list[_Number]) -> _Number:
    """One metric's rows of all defect types -> the category: mean of the scores, sum of the counts."""
    first, values = rows[0], [row.value for row in rows]
    value = sum(values) if first.metric in _SUMS else float(np.mean(values))
    # shuffles repeat the whole category; the splits of two defect types have nothing to do with each other
    scores = tuple(np.mean([row.scores for row in rows], axis=0)) if first.scores else ()
    std = float(np.std(scores)) if scores else None
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    return _Number(first.metric, value, std, sum(row.n for row in rows), " | ".join(protocols))


def run(method: str, dataset: str, category: str, config: Slice, *, prepared: Path, pairs: Path, out: Path) -> None:
    """Score the pairs of one category and write `out`, a CSV of records.Score: per defect type and for `all`.

    config: keys `score` and `run.seed`. prepared, pairs: folders written by the stages prepare and generate.
    Raises UserError for missing weights, an altered picture, or a defect type without real anchors.
    """
    section, seed = config["score"], config["run.seed"]
    rule, split_sha256 = pictures.read_split(prepared)
    found = pictures.load_pairs(pairs)
    samples = [s for s in read_csv(prepared / "samples.csv", Sample) if s.defect_trains]
    defects = sorted({pair.defect for pair in found})
    for defect in defects:
        if not any(s.defect == defect for s in samples):
            raise UserError(f"{prepared / 'samples.csv'}: no picture of {defect} has role generator, so IC-LPIPS has no anchor")
    scorer = _Scorer(section, derive_seed(seed, "score", dataset, category))
    numbers: dict[str, list[_Number]] = {}
    for defect in defects:
        own = [pair for pair in found if pair.defect == defect]
        images = pictures.pair_images(pairs, own)
        anchors = pictures.sample_images(prepared, [s for s in samples if s.defect == defect])
        if images.shape[1:] != anchors.shape[1:]:
            sizes = [f"{a.shape[2]}x{a.shape[1]}" for a in (images, anchors)]
            raise UserError(f"{pairs}: pictures are {sizes[0]}, those of {prepared} {sizes[1]}; generate again")
        numbers[defect] = [scorer.inception_score(images), *scorer.ic_lpips(images, anchors, rule), *_gate_counts(own)]
        log.info("score %s %s/%s/%s: IS %.3f, IC-LPIPS %.4f", method, dataset, category, defect, *(x.value for x in numbers[defect][:2]))
    numbers[ALL] = [_category(list(rows)) for rows in zip(*(numbers[defect] for defect in defects), strict=True)]
    settings = pictures.pair_settings(pairs)
    rows = [
        Score(
            dataset=dataset,
            category=category,
            defect=defect,
            method=method,
            metric=x.metric,
            value=x.value,
            std=x.std,
            n=x.n,
            seed=seed,
            split=rule,
            split_sha256=split_sha256,
            protocol=x.protocol + settings,
            config_digest=config.digest,
        )
        for defect, found_numbers in numbers.items()
        for x in found_numbers
    ]
    write_csv(out, rows, Score)
