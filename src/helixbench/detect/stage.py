"""The stage `detect`: train the localization U-Net on one method's pairs, test it on held-out real pictures."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helixbench import checkpoint, pictures
from helixbench.config import Slice, digest
from helixbench.detect import data, localization
from helixbench.detect.sheet import write_sheet
from helixbench.devices import describe as describe_device
from helixbench.devices import pick_device
from helixbench.errors import UserError
from helixbench.provenance import manifest, write_text
from helixbench.records import ALL, GOOD, Sample, Score, read_csv, write_csv
from helixbench.schema import Localization
from helixbench.trainer import fit

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


class _BestOnTest:
    """The anomaly maps of the step whose test metrics have the largest sum; the first of equal ones.

    Kept in the resume state's folder, as whole files of one configuration: what a killed run has seen counts, and the
    steps that the resumed one repeats give the same again.
    """

    def __init__(self, model: nn.Module, tests: _Tests, config: Localization, device: torch.device, folder: Path, config_digest: str):
        self.model, self.tests, self.config, self.device = model, tests, config, device
        self.file, self.digest = folder / "best_on_test.safetensors", config_digest
        self.total, self.maps = -np.inf, None
        if self.file.is_file():
            tensors, facts = checkpoint.load_tensors(self.file)
            if facts.get("config_digest") == config_digest:
                self.total, self.maps = facts["total"], tensors["maps"].numpy()

    def __call__(self, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """The trainer's validate(rng): metrics over all test pictures, in percent."""
        maps = localization.anomaly_maps(self.model, self.tests.images, self.device, self.config.optim.batch)
        metrics = self.tests.measure(self.config, maps)[ALL][1]
        total = sum(metrics[name] for name in localization.CHOSEN_BY)
        if total > self.total:
            self.total, self.maps = total, maps
            checkpoint.save_tensors(self.file, {"maps": torch.from_numpy(maps)}, {"config_digest": self.digest, "total": total})
        return {name: torch.tensor(value) for name, value in metrics.items()}


def _shown(tests: Sequence[Sample]) -> list[int]:
    """Indices of the first few test pictures of each defect type and of good."""
    indices: dict[str, list[int]] = {}
    for i, sample in enumerate(tests):
        indices.setdefault(sample.defect, []).append(i)
    return [i for group in indices.values() for i in group[:_SHOWN]]


def run(method: str, dataset: str, category: str, config: Slice, *, seed: int, prepared: Path, pairs: Path, state: Path, out: Path) -> None:
    """Train and test one detector; write out/{scores.csv,predictions.png,stats.jsonl} and, last, out/manifest.json.

    config: key `detect.localization`, and `run.seed` if given. seed: which repetition. state: resume state; a run that
    was killed goes on from there. Pairs that fail the mask gate are left out and counted in the manifest. Without a
    usable pair the detector trains on normals alone (and finds nothing): that is the method's result, not an error.
    Raises UserError for altered or unreadable pictures and for a test set on which the metrics are not defined.
    """
    section = config["detect.localization"]
    rule, split_sha256 = pictures.read_split(prepared)
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
    facts = {"method": method, "dataset": dataset, "category": category, "seed": seed, "device": describe_device(device)}
    with manifest(out / "manifest.json", "detect", config, **facts) as record:
        model = localization.build_unet(section, own_seed).to(device).train()
        config_digest = digest([section.model_dump(mode="json"), training.digest()])
        best = None
        if "best_on_test" in section.checkpoints:
            best = _BestOnTest(model, tests, section, device, state, digest([config_digest, own_seed]))
        record["training"] = fit(
            model,
            localization.LocalizationLoss(model, training, section, device),
            section.optim,
            seed=own_seed,
            state_dir=state,
            config_digest=config_digest,
            device=device,
            name="localization",
            validate=best,
        )
        maps = {"last": localization.anomaly_maps(model, tests.images, device, section.optim.batch)}
        if best is not None:
            maps["best_on_test"] = best.maps
        rows: list[Score] = []
        for name in section.checkpoints:
            found = tests.measure(section, maps[name])
            rows += data.rows(
                found,
                dataset=dataset,
                category=category,
                method=method,
                seed=seed,
                split=rule,
                split_sha256=split_sha256,
                protocol=localization.describe(section, rule, normals.shape[1:3], name) + pictures.pair_settings(pairs),
                config_digest=config.digest,
            )
            texts = "  ".join(f"{metric} {value:.1f}" for metric, value in found[ALL][1].items())
            log.info("detect %s %s/%s, %s: %s", method, dataset, category, name, texts)
        write_csv(out / "scores.csv", rows, Score)
        shown = _shown(tests.samples)
        first = maps[section.checkpoints[0]]
        scores = localization.image_scores(first, section.score_window)
        titles = [f"{tests.samples[i].defect} {tests.samples[i].id}  score {scores[i]:.3f}" for i in shown]
        write_sheet(out / "predictions.png", tests.images[shown], tests.masks[shown], first[shown], titles)
        write_text(out / "stats.jsonl", (state / "stats.jsonl").read_text(encoding="utf-8"))
        record["pairs"] = data.counts(used, left_out)
        record["pictures"] = {"normals": len(normals), "test": len(tests.samples)}
        record["split"] = {"rule": rule, "sha256": split_sha256}
    shutil.rmtree(state)
