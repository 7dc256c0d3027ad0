"""The stage `detect`: train the localization U-Net on one method's pairs, test it on held-out real pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helixbench import pictures
from helixbench.config import Slice
from helixbench.detect import curves, data, localization, trial
from helixbench.detect.sheet import write_sheet
from helixbench.devices import pick_device
from helixbench.errors import UserError
from helixbench.provenance import write_text
from helixbench.records import ALL, GOOD, Sample, read_csv
from helixbench.schema import Localization

log = logging.getLogger(__name__)

_SHOWN = 3
"""Test pictures of each defect type on the sheet."""


@dataclass(frozen=True)
class _Tests:
    """Held-out pictures (n, H, W, 3) uint8; masks (n, H, W) bool for pixel metrics, and those whose regions PRO takes."""

    samples: list[Sample]
    images: np.ndarray
    masks: np.ndarray
    regions: np.ndarray

    @classmethod
    def read(cls, prepared: Path, samples: Sequence[Sample], ground_truth: str) -> _Tests:
        tests, images, masks = data.test_set(prepared, samples)
        if ground_truth == "exact":
            return cls(tests, images, masks, masks)
        grey = pictures.bilinear_masks(prepared, tests, images.shape[1:3])
        return cls(tests, images, grey == 255, grey > 0)

    def measure(self, config: Localization, maps: np.ndarray) -> dict[str, tuple[int, dict[str, float]]]:
        """Pictures and metrics by defect type: each against good, and `all` over all test pictures.

        Raises UserError for maps that are not finite, and where no pixel is left of a defect type.
        """
        defects = np.array([s.defect for s in self.samples])
        scores = localization.image_scores(maps, config.score_window)
        found = {}
        for defect in (*sorted(set(defects) - {GOOD}), ALL):
            chosen = np.ones(len(defects), bool) if defect == ALL else (defects == GOOD) | (defects == defect)
            masks = self.masks[chosen]
            regions = masks if self.regions is self.masks else self.regions[chosen]
            try:
                metrics = localization.evaluate(maps[chosen], masks, regions, scores[chosen], defects[chosen] != GOOD, config.pro_limit)
            except ValueError as error:
                hint = "" if config.ground_truth == "exact" else "; set detect.localization.ground_truth: exact"
                raise UserError(f"test pictures of {defect}: the metrics are not defined, {error}{hint}") from None
            found[defect] = (int(chosen.sum()), metrics)
        return found


def _shown(tests: Sequence[Sample]) -> list[int]:
    """Indices of the first few test pictures of each defect type and of good."""
    indices: dict[str, list[int]] = {}
    for i, sample in enumerate(tests):
        indices.setdefault(sample.defect, []).append(i)
    return [i for group in indices.values() for i in group[:_SHOWN]]


def run(method: str, dataset: str, category: str, config: Slice, *, seed: int, prepared: Path, pairs: Path, state: Path, out: Path) -> None:
    """Train and test one detector; write out/{scores.csv,curves.csv,predictions.png,stats.jsonl} and, last, out/manifest.json.

    config: key `detect.localization`, and `run.seed` if given. seed: which repetition. state: resume state; a run that
    was killed goes on from there. Pairs that fail the mask gate are left out and counted in the manifest. Without a
    usable pair the detector trains on normals alone (and finds nothing): that is the method's result, not an error.
    Raises UserError for altered or unreadable pictures and for a test set on which the metrics are not defined.
    """
    section = config["detect.localization"]
    rule, _ = pictures.read_split(prepared)
    samples = read_csv(prepared / "samples.csv", Sample)
    used, left_out = data.usable(pictures.load_pairs(pairs), section.max_pairs)
    tests = _Tests.read(prepared, samples, section.ground_truth)
    normals = data.normals(prepared, samples)
    training = localization.TrainingSet.from_arrays(normals, data.pair_arrays(pairs, used, normals.shape[1:3]))
    if normals.shape[1:] != tests.images.shape[1:]:
        raise UserError(f"{prepared}: test pictures and normals differ in size; prepare again")
    if not training.defects:
        log.warning("detect %s %s/%s: no pair passed the mask gate; training on normals alone", method, dataset, category)
    device = pick_device()
    root = config["run.seed"] if "run.seed" in config else 0
    own_seed = localization.training_seed(root, dataset, category, seed)
    model = localization.build_unet(section, own_seed).to(device).train()

    def sheet(predictions: dict[str, np.ndarray]) -> None:
        maps = predictions[section.checkpoints[0]]
        scores, shown = localization.image_scores(maps, section.score_window), _shown(tests.samples)
        titles = [f"{tests.samples[i].defect} {tests.samples[i].id}  score {scores[i]:.3f}" for i in shown]
        write_sheet(out / "predictions.png", tests.images[shown], tests.masks[shown], maps[shown], titles)
        defective = np.array([sample.defect != GOOD for sample in tests.samples])
        write_text(out / "curves.csv", curves.as_csv(curves.curves(maps, tests.masks, scores, defective)))

    trial.run(
        "localization",
        trial.Job(method, dataset, category, seed, prepared, pairs, state, out),
        config,
        section,
        model=model,
        loss=localization.LocalizationLoss(model, training, section, device),
        seed=own_seed,
        pictures_digest=training.digest(),
        device=device,
        predict=lambda: localization.anomaly_maps(model, tests.images, device, section.optim.batch),
        measure=lambda maps: tests.measure(section, maps),
        chosen_by=localization.CHOSEN_BY,
        protocol=lambda kept: localization.describe(section, rule, normals.shape[1:3], kept),
        facts={"pairs": data.counts(used, left_out), "pictures": {"normals": len(normals), "test": len(tests.samples)}},
        finish=sheet,
    )
