"""The stage `detect`: train the localization U-Net on one method's pairs, test it on held-out real
pictures.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from helixbench.config import Slice
from helixbench.detect import data, localization, trial
from helixbench.detect.held_out import HeldOut
from helixbench.engine.devices import pick_device
from helixbench.errors import UserError
from helixbench.pictures.prepared import load_pairs, read_split
from helixbench.records import Sample, read_csv

log = logging.getLogger(__name__)


def run(
    method: str,
    dataset: str,
    category: str,
    config: Slice,
    *,
    seed: int,
    prepared: Path,
    pairs: Path,
    state: Path,
    out: Path,
) -> None:
    """Train and test one detector; write out/{scores.csv,curves.csv,predictions.png,stats.jsonl}
    and, last, out/manifest.json.

    config: key `detect.localization`, and `run.seed` if given. seed: which repetition. state:
    resume state; a run that was killed goes on from there. Pairs that fail the mask gate are left
    out and counted in the manifest. Without a usable pair the detector trains on normals alone (and
    finds nothing): that is the method's result, not an error. Raises UserError for altered or
    unreadable pictures and for a test set on which the metrics are not defined.
    """
    section = config["detect.localization"]
    rule, _ = read_split(prepared)
    samples = read_csv(prepared / "samples.csv", Sample)
    used, left_out = data.usable(load_pairs(pairs), section.max_pairs)
    tests = HeldOut.read(prepared, samples, section.ground_truth)
    normals = data.normals(prepared, samples)
    training = localization.TrainingSet.from_arrays(
        normals, data.pair_arrays(pairs, used, normals.shape[1:3])
    )
    if normals.shape[1:] != tests.images.shape[1:]:
        raise UserError(f"{prepared}: test pictures and normals differ in size; prepare again")
    if not training.defects:
        log.warning(
            "detect %s %s/%s: no pair passed the mask gate; training on normals alone",
            method,
            dataset,
            category,
        )
    device = pick_device()
    root = config["run.seed"] if "run.seed" in config else 0
    own_seed = localization.training_seed(root, dataset, category, seed)
    model = localization.build_unet(section, own_seed).to(device).train()

    def scores(maps: np.ndarray) -> np.ndarray:
        return localization.image_scores(maps, section.score_window)

    def measure(maps: np.ndarray) -> trial.Found:
        return tests.measure(maps, scores(maps), section.pro_limit, section.pro_thresholds)

    def finish(predictions: dict[str, np.ndarray]) -> None:
        maps = predictions[section.checkpoints[0]]
        tests.write(out, maps, scores(maps))

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
        measure=measure,
        chosen_by=localization.CHOSEN_BY,
        protocol=lambda kept: localization.describe(section, rule, normals.shape[1:3], kept),
        facts={
            "pairs": data.counts(used, left_out),
            "pictures": {"normals": len(normals), "test": len(tests.samples)},
        },
        finish=finish,
    )
