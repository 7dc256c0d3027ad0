"""The stage `detect`: train the localization U-Net on one method's pairs, test it on held-out real pictures."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from helixbench import pictures
from helixbench.config import Slice, digest
from helixbench.detect import curves, localization
from helixbench.detect.sheet import write_sheet
from helixbench.devices import describe as describe_device
from helixbench.devices import pick_device
from helixbench.errors import UserError
from helixbench.provenance import manifest, write_text
from helixbench.records import ALL, GOOD, Pair, Sample, Score, read_csv, write_csv
from helixbench.schema import Localization
from helixbench.trainer import fit

log = logging.getLogger(__name__)

_SHOWN = 3
"""Test pictures of each defect type on the sheet."""


def _usable(found: Sequence[Pair], limit: int) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """Pairs to train on by defect type, in order of their index, and how many the mask gate left out."""
    used, left_out = {}, {}
    for defect in sorted({pair.defect for pair in found}):
        own = sorted((pair for pair in found if pair.defect == defect), key=lambda pair: pair.index)
        passed = [pair for pair in own if pair.gate == "ok"]
        used[defect], left_out[defect] = passed[:limit], len(own) - len(passed)
    return used, left_out


def _training_set(prepared: Path, folder: Path, samples: Sequence[Sample], used: dict[str, list[Pair]]) -> localization.TrainingSet:
    normals = [s for s in samples if s.role == "normal"]
    if not normals:
        raise UserError(f"{prepared / 'samples.csv'}: no picture has role normal; the detector needs some")
    images = pictures.sample_images(prepared, normals)
    size = images.shape[1:3]
    pairs = {defect: (pictures.pair_images(folder, own), pictures.pair_masks(folder, own)) for defect, own in used.items() if own}
    for defect, (generated, masks) in pairs.items():
        for array in (generated, masks):
            if array.shape[1:3] != size:
                height, width = array.shape[1:3]
                raise UserError(f"{folder}: pairs of {defect} are {width}x{height}, the normals {size[1]}x{size[0]}; generate again")
    return localization.TrainingSet.from_arrays(images, pairs)


def _test_set(prepared: Path, samples: Sequence[Sample]) -> tuple[list[Sample], np.ndarray, np.ndarray]:
    """Test samples (good first, then by defect type), pictures (n, H, W, 3) and masks (n, H, W)."""
    tests = sorted((s for s in samples if s.tests), key=lambda s: (s.defect != GOOD, s.defect, s.id))
    for wanted, text in ((True, "normal"), (False, "defective")):
        if not any((s.defect == GOOD) == wanted for s in tests):
            raise UserError(f"{prepared / 'samples.csv'}: no {text} picture has role test; metrics need both")
    images = pictures.sample_images(prepared, tests)
    masks = pictures.sample_masks(prepared, tests, images.shape[1:3])
    for sample, mask in zip(tests, masks, strict=True):
        if sample.defect != GOOD and not mask.any():
            raise UserError(f"{prepared / (sample.mask or sample.image)}: a defective test picture without a mask; give it one")
    return tests, images, masks


def _measure(config: Localization, tests: Sequence[Sample], maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, dict]:
    """Image scores, and metrics by defect type: each against good, and `all` over all test pictures."""
    defects = np.array([s.defect for s in tests])
    scores = localization.image_scores(maps, config.score_window)
    found = {}
    for defect in (*sorted(set(defects) - {GOOD}), ALL):
        chosen = np.ones(len(tests), bool) if defect == ALL else (defects == GOOD) | (defects == defect)
        labels = defects[chosen] != GOOD
        found[defect] = (int(chosen.sum()), localization.evaluate(maps[chosen], masks[chosen], scores[chosen], labels, config.pro_limit))
    return scores, found


def _shown(tests: Sequence[Sample]) -> list[int]:
    """Indices of the first few test pictures of each defect type and of good."""
    indices: dict[str, list[int]] = {}
    for i, sample in enumerate(tests):
        indices.setdefault(sample.defect, []).append(i)
    return [i for group in indices.values() for i in group[:_SHOWN]]


def run(method: str, dataset: str, category: str, config: Slice, *, seed: int, prepared: Path, pairs: Path, state: Path, out: Path) -> None:
    """Train and test one detector; write out/{scores.csv,curves.csv,predictions.png,stats.jsonl} and, last, out/manifest.json.

    config: key `detect`, and `run.seed` if given. seed: which repetition. state: resume state; a run that was killed
    goes on from there. Pairs that fail the mask gate are left out and counted in the manifest. Without a usable pair
    the detector trains on normals alone (and finds nothing): that is the method's result, not an error.
    Raises UserError for altered or unreadable pictures and for a test set on which the metrics are not defined.
    """
    section = config["detect"].localization
    rule, split_sha256 = pictures.read_split(prepared)
    samples = read_csv(prepared / "samples.csv", Sample)
    used, left_out = _usable(pictures.load_pairs(pairs), section.max_pairs)
    tests, images, masks = _test_set(prepared, samples)
    data = _training_set(prepared, pairs, samples, used)
    if data.normals.shape[2:] != images.shape[1:3]:
        raise UserError(f"{prepared}: test pictures and normals differ in size; prepare again")
    if not data.defects:
        log.warning("detect %s %s/%s: no pair passed the mask gate; training on normals alone", method, dataset, category)
    device = pick_device()
    root = config["run.seed"] if "run.seed" in config else 0
    own_seed = localization.training_seed(root, dataset, category, seed)
    facts = {"method": method, "dataset": dataset, "category": category, "seed": seed, "device": describe_device(device)}
    with manifest(out / "manifest.json", "detect", config, **facts) as record:
        model = localization.build_unet(section, own_seed).to(device).train()
        record["training"] = fit(
            model,
            localization.LocalizationLoss(model, data, section, device),
            section.optim,
            seed=own_seed,
            state_dir=state,
            config_digest=digest([section.model_dump(mode="json"), data.digest()]),
            device=device,
            name="localization",
        )
        maps = localization.anomaly_maps(model, images, device, section.optim.batch)
        scores, found = _measure(section, tests, maps, masks)
        protocol = localization.describe(section, rule, images.shape[1:3]) + pictures.pair_settings(pairs)
        rows = [
            Score(
                dataset=dataset,
                category=category,
                defect=defect,
                method=method,
                metric=metric,
                value=value,
                std=None,
                n=n,
                seed=seed,
                split=rule,
                split_sha256=split_sha256,
                protocol=protocol,
                config_digest=config.digest,
            )
            for defect, (n, metrics) in found.items()
            for metric, value in metrics.items()
        ]
        write_csv(out / "scores.csv", rows, Score)
        defective = np.array([sample.defect != GOOD for sample in tests])
        write_text(out / "curves.csv", curves.as_csv(curves.curves(maps, masks, scores, defective)))
        shown = _shown(tests)
        titles = [f"{tests[i].defect} {tests[i].id}  score {scores[i]:.3f}" for i in shown]
        write_sheet(out / "predictions.png", images[shown], masks[shown], maps[shown], titles)
        write_text(out / "stats.jsonl", (state / "stats.jsonl").read_text(encoding="utf-8"))
        record["pairs"] = {defect: {"used": len(own), "left_out_by_gate": left_out[defect]} for defect, own in used.items()}
        record["pictures"] = {"normals": len(data.normals), "test": len(tests)}
        record["split"] = {"rule": rule, "sha256": split_sha256}
    shutil.rmtree(state)
    everything = found[ALL][1]
    log.info("detect %s %s/%s: %s", method, dataset, category, "  ".join(f"{name} {value:.1f}" for name, value in everything.items()))
