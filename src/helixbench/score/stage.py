"""The stage `score`: IS, KID, IC-LPIPS and image-mask agreement of one method's pairs of one
category, as one CSV of score rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from helixbench.config import Slice
from helixbench.engine.devices import pick_device
from helixbench.errors import UserError
from helixbench.pictures.prepared import (
    load_pairs,
    pair_images,
    pair_masks,
    pair_settings,
    pairs_follow_cells,
    read_split,
    sample_images,
    sample_masks,
)
from helixbench.pictures.raw_mask import cells_to_mask
from helixbench.records import (
    ALL,
    Pair,
    Sample,
    Score,
    derive_seed,
    parse_cells,
    read_csv,
    write_csv,
)
from helixbench.schema import ScoreSection
from helixbench.score import networks
from helixbench.score.alignment import MaskAgreement
from helixbench.score.ic_lpips import PairwiseLpips, build_lpips, defect_crops, ic_lpips
from helixbench.score.inception_score import InceptionScorer
from helixbench.weights import LPIPS_ORDER, choose

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Number:
    """A metric of one defect type before it becomes a row; `scores` are its repetitions, if it has
    any.
    """

    metric: str
    value: float
    std: float | None
    n: int
    protocol: str
    scores: tuple[float, ...] = ()


PRESETS = {
    "seas": ("vgg", 140, "generator", False),
    "dfmgan": ("alex", 200, "all", False),
    "dfmgan_zero": ("alex", 200, "all", True),
    "anomalydiffusion": ("vgg", 50, "third", False),
}
"""IC-LPIPS of others: network (the configured one where its weights are not here), cap, anchors, 0
for clusters without a pair."""


def first_third(known: Sequence[Sample]) -> np.ndarray:
    """Which of a defect type's real pictures are the first floor(n/3) by file name, (n,) bool.

    AnomalyDiffusion and DualAnoDiff take them as anchors. The split does not change them.
    """
    order = sorted(range(len(known)), key=lambda i: (known[i].source, known[i].id))
    chosen = np.zeros(len(known), bool)
    chosen[order[: len(known) // 3]] = True
    return chosen


@dataclass(frozen=True)
class _Stack:
    """Pictures (n, H, W, 3) uint8 with masks (n, H, W) bool."""

    images: np.ndarray
    masks: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> _Stack:
        return _Stack(self.images[chosen], self.masks[chosen])


class _Scorer:
    """Networks loaded once for all defect types of a category, normal pictures, settings."""

    def __init__(self, config: ScoreSection, seed: int, normals: np.ndarray, split: str):
        self.device = pick_device()
        self.config, self.seed, self.split = config, seed, split
        self.inception = InceptionScorer(config.inception_score.network, self.device, config.batch)
        self.network = choose(config.ic_lpips.network, LPIPS_ORDER)
        self.agreement = (
            MaskAgreement(normals, self.device, **config.mask_agreement.model_dump())
            if len(normals)
            else None
        )
        self.versions = {name: metadata.version(name) for name in ("torch-fidelity", "lpips")}

    @cache  # noqa: B019 a scorer lives as long as its stage
    def pairwise(self, network: str) -> PairwiseLpips:
        return PairwiseLpips(
            build_lpips(network), self.device, self.config.batch, self.config.memory_gib
        )

    def __call__(
        self,
        pairs: _Stack,
        real: _Stack,
        trains: np.ndarray,
        third: np.ndarray,
    ) -> list[_Number]:
        """All numbers of one defect type.

        trains (n,) bool: which real pictures the generator saw, the anchors unless a variant says
        otherwise; third (n,) bool: see `first_third`.
        """
        anchors = real[trains]
        others = {"generator": anchors, "all": real, "third": real[third]}
        numbers = [
            *self.distribution(pairs.images, real.images),
            *self.ic_lpips("ic_lpips", pairs, anchors),
        ]
        for preset in self.config.ic_lpips.variants:
            network, cap, which, zero = PRESETS[preset]
            network = network if choose("auto", (network,)) == network else self.network
            metric, used = f"ic_lpips_{preset}", others[which]
            if not len(used.images):
                log.warning("%s is left out: no real picture for an anchor", metric)
                continue
            how = {"network": network, "cap": cap, "anchors_are": which, "zero": zero}
            numbers += self.ic_lpips(metric, pairs, used, **how)[:1]
        if self.config.ic_lpips.defect and anchors.masks.any((1, 2)).any():
            crops, real_crops = (
                _Stack(defect_crops(x.images, x.masks), x.masks) for x in (pairs, anchors)
            )
            found = self.ic_lpips(
                "ic_lpips_defect",
                crops,
                real_crops,
                of=len(pairs.images),
                note=", cropped around the masks",
            )
            numbers += found[:1]
        return numbers + self.mask_agreement(pairs, anchors)

    def distribution(self, images: np.ndarray, real: np.ndarray) -> list[_Number]:
        """IS, and KID where both sides have two pictures."""
        features, settings = self.inception.features(images), self.config
        value, std, used = self.inception.inception_score(features, settings.inception_score.splits)
        asked = settings.inception_score.splits
        short = "" if used == asked else f" ({asked} asked, too few images)"
        library = (
            f"torch-fidelity {self.versions['torch-fidelity']}, "
            f"{networks.describe(self.inception.network)}"
        )
        size = f"{images.shape[1]} px, {len(images)} images a defect type"
        numbers = [
            _Number(
                "inception_score",
                value,
                std,
                len(images),
                f"IS {library}, {used} splits{short}, {size}",
            )
        ]
        if min(len(images), len(real)) < 2:
            log.warning("KID is left out: it needs two pictures on either side")
            return numbers
        kid = settings.kid
        value, std, _ = self.inception.kid(
            features, self.inception.features(real), kid.subsets, kid.subset_size
        )
        # the number of real pictures and so the size of the subsets differ from type to type: they
        # are no part of the protocol
        protocol = (
            f"KID {library}, to all real pictures of the type, {kid.subsets} subsets of at "
            f"most {kid.subset_size}, {size}"
        )
        return [*numbers, _Number("kid", value, std, len(images), protocol)]

    def ic_lpips(
        self,
        metric: str,
        pairs: _Stack,
        anchors: _Stack,
        *,
        network: str | None = None,
        cap: int | None = None,
        anchors_are: str = "generator",
        zero: bool = False,
        of: int | None = None,
        note: str = "",
    ) -> list[_Number]:
        """The score, then its counts of clusters.

        zero: whether clusters without a pair count 0; of: pictures that were asked for, where some
        show nothing to score.
        """
        config, images = self.config.ic_lpips, pairs.images
        network, cap = network or self.network, cap or config.cap
        found = ic_lpips(
            images,
            anchors.images,
            self.pairwise(network),
            cap=cap,
            shuffles=config.shuffles,
            seed=self.seed,
        )
        which = {
            "generator": f"generator part of split {self.split}",
            "all": "all real pictures",
            "third": "first third of the real pictures",
        }[anchors_are]
        protocol = (
            f"IC-LPIPS lpips {self.versions['lpips']}, {networks.describe(network)}, anchors: "
            f"{which}, "
            f"cap {cap}, {config.shuffles} shuffles, {images.shape[1]} px, {of or len(images)} "
            f"images a defect type"
            f"{', clusters without a pair count 0' if zero else ''}{note}"
        )
        scores = found.with_zeros if zero else found.scores
        mean, std = float(np.mean(scores)), float(np.std(scores))
        return [
            _Number(metric, mean, std, len(images), protocol, scores),
            _Number(
                "ic_lpips_empty_clusters",
                found.empty_clusters,
                None,
                len(images),
                f"clusters without an image; {protocol}",
            ),
            _Number(
                "ic_lpips_single_clusters",
                found.single_clusters,
                None,
                len(images),
                f"clusters of one image; {protocol}",
            ),
        ]

    def mask_agreement(self, pairs: _Stack, real: _Stack) -> list[_Number]:
        """In percent: of the pairs, of the pairs with one another's masks, of the real pictures
        that the generator saw.
        """
        if self.agreement is None:
            return []
        own, config = self.agreement(pairs.images, pairs.masks), self.config.mask_agreement
        protocol = (
            f"AUROC in a picture of the difference to the nearest {config.neighbours} normals "
            f"against the mask, "
            f"{min(config.size, pairs.images.shape[1])} px, shift {config.shift}"
        )
        values = {"mask_agreement": own.own, "mask_agreement_shuffled": own.shuffled}
        notes = {
            "mask_agreement_shuffled": "masks of the next pair; ",
            "mask_agreement_real": "real pictures of the generator part; ",
        }
        if real.masks.any():
            values["mask_agreement_real"] = self.agreement(real.images, real.masks).own
        return [
            _Number(k, 100 * float(v.mean()), None, len(v), notes.get(k, "") + protocol)
            for k, v in values.items()
        ]


def mask_in_cells(masks: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far masks follow their raw masks: of each mask that is not empty, its share in the cells
    and its IoU with them.

    masks, cells: (n, H, W) bool -> two arrays (m,) in [0, 1]. A mask that is clipped or copied from
    its cells has a share of 1, so the IoU tells it from one that was refined: real masks fill a
    part of their cells.
    """
    kept = masks.any((1, 2))
    masks, cells = masks[kept], cells[kept]
    both = (masks & cells).sum((1, 2))
    return both / masks.sum((1, 2)), both / (masks | cells).sum((1, 2))


def _cells_of(records: Sequence[Pair | Sample], shape: tuple[int, ...]) -> np.ndarray:
    """Raw masks of records as (n, H, W) bool."""
    return np.stack(
        [cells_to_mask(*parse_cells(record.raw_mask), shape[-2:]) for record in records]
    )


def _cell_numbers(
    pairs: Sequence[Pair], made: _Stack, known: Sequence[Sample], real: _Stack
) -> list[_Number]:
    """Rows of `mask_in_cells`, in percent, beside those of the real masks that the generator
    saw.
    """
    k = parse_cells(pairs[0].raw_mask)[0]
    rows = {"": mask_in_cells(made.masks, _cells_of(pairs, made.masks.shape))}
    seen = np.array([s.defect_trains for s in known])
    if seen.any():
        cells = _cells_of([s for s in known if s.defect_trains], real.masks.shape)
        rows["_real"] = mask_in_cells(real.masks[seen], cells)
    numbers = []
    for suffix, (share, iou) in rows.items():
        note = "real masks of the generator part; " if suffix else ""
        for metric, values in ((f"mask_in_cells{suffix}", share), (f"mask_cells_iou{suffix}", iou)):
            if len(values) and metric != "mask_in_cells_real":  # which is 100 by definition
                what = "IoU of a mask with" if "iou" in metric else "share of a mask in"
                protocol = f"{note}{what} the {k} x {k} cells of its raw mask, empty masks left out"
                numbers.append(
                    _Number(metric, 100 * float(values.mean()), None, len(values), protocol)
                )
    return numbers


def _gate_counts(pairs: Sequence[Pair]) -> list[_Number]:
    failed, redraws = sum(pair.gate != "ok" for pair in pairs), sum(pair.redraws for pair in pairs)
    return [
        _Number(
            "gate_failed",
            failed,
            None,
            len(pairs),
            "pairs still failing the mask gate after the last redraw (scored all the same)",
        ),
        _Number("redraws", redraws, None, len(pairs), "draws repeated by the mask gate"),
    ]


_SUMS = {"ic_lpips_empty_clusters", "ic_lpips_single_clusters", "gate_failed", "redraws"}


def _category(rows: list[_Number]) -> _Number:
    """One metric's rows of all defect types -> the category: mean of the scores, sum of the
    counts.
    """
    first, values = rows[0], [row.value for row in rows]
    value = sum(values) if first.metric in _SUMS else float(np.mean(values))
    # shuffles repeat the whole category; the splits of two defect types have nothing to do with
    # each other
    scores = tuple(np.mean([row.scores for row in rows], axis=0)) if first.scores else ()
    std = float(np.std(scores)) if scores else None
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    return _Number(first.metric, value, std, sum(row.n for row in rows), " | ".join(protocols))


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
    for `all`.

    config: keys `score` and `run.seed`. prepared, pairs: folders written by the stages prepare and
    generate. Raises UserError for missing weights, an altered picture, or a defect type without
    real anchors.
    """
    section, seed = config["score"], config["run.seed"]
    rule, split_sha256 = read_split(prepared)
    found = load_pairs(pairs)
    samples = read_csv(prepared / "samples.csv", Sample)
    defects = sorted({pair.defect for pair in found})
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
    scorer = _Scorer(section, derive_seed(seed, "score", dataset, category), normals, rule)
    numbers: dict[str, list[_Number]] = {}
    for defect in defects:
        own = [pair for pair in found if pair.defect == defect]
        made = _Stack(pair_images(pairs, own), pair_masks(pairs, own))
        known = [s for s in samples if s.defect == defect]
        images = sample_images(prepared, known)
        for what, others in ((prepared, images), (f"normals of {prepared}", normals)):
            if len(others) and made.images.shape[1:] != others.shape[1:]:
                sizes = [f"{a.shape[2]}x{a.shape[1]}" for a in (made.images, others)]
                raise UserError(
                    f"{pairs}: pictures are {sizes[0]}, those of {what} {sizes[1]}; generate again"
                )
        real = _Stack(images, sample_masks(prepared, known, images.shape[1:3]))
        trains = np.array([s.defect_trains for s in known])
        numbers[defect] = [*scorer(made, real, trains, first_third(known)), *_gate_counts(own)]
        if pairs_follow_cells(pairs):
            numbers[defect] += _cell_numbers(own, made, known, real)
        texts = "  ".join(f"{x.metric} {x.value:.4g}" for x in numbers[defect])
        log.info("score %s %s/%s/%s: %s", method, dataset, category, defect, texts)
    # what one defect type has too few pictures for is no number of the category
    shared = [
        m
        for m in (x.metric for x in numbers[defects[0]])
        if all(any(x.metric == m for x in own) for own in numbers.values())
    ]
    by_metric = [
        [next(x for x in numbers[defect] if x.metric == metric) for defect in defects]
        for metric in shared
    ]
    numbers[ALL] = [_category(rows) for rows in by_metric]
    settings = f"; pairs: {text}" if (text := pair_settings(pairs)) else ""
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
