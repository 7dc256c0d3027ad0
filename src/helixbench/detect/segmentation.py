"""Which pixels are defective: segmenters trained on generated pairs, judged by IoU and accuracy on
held-out real defects.

STAGE and FAST print mIoU and accuracy, SeaS the IoU of the anomaly alone: each is a metric of its
own here. All come from one confusion matrix over all pixels of the defective test pictures, with
the two classes normal and anomalous.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import nn

from helixbench.config import Slice
from helixbench.detect import data, localization, trial
from helixbench.engine.devices import pick_device
from helixbench.errors import UserError
from helixbench.metrics import confusion_metrics
from helixbench.pictures.prepared import load_pairs, read_split
from helixbench.records import ALL, GOOD, Sample, derive_seed, read_csv
from helixbench.schema import Segmentation

CHOSEN_BY = ("miou",)
_BUILDERS = {"segformer": smp.Segformer, "unet": smp.Unet, "deeplabv3plus": smp.DeepLabV3Plus}


def build_network(architecture: str, encoder: str, seed: int) -> nn.Module:
    """Segmenter (B, 3, H, W) -> logits (B, 2, H, W), seeded, without pretrained weights; H and W
    multiples of 32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[architecture](
            encoder_name=encoder, encoder_weights=None, in_channels=3, classes=2
        )
    return model.to(memory_format=torch.channels_last)


def segment(model: nn.Module, images: np.ndarray, device: torch.device, batch: int) -> np.ndarray:
    """Pictures (n, H, W, 3) uint8 -> masks (n, H, W) uint8 in {0, 1}. Raises UserError for outputs
    that are not finite.
    """
    maps = localization.anomaly_maps(model, images, device, batch)
    if not np.isfinite(maps).all():
        raise UserError(
            "segmentation: the trained network's outputs are not finite; lower optim.lr"
        )
    return (maps > 0.5).astype(np.uint8)


def measure(
    predicted: np.ndarray, masks: np.ndarray, defects: Sequence[str]
) -> dict[str, tuple[int, dict[str, float]]]:
    """Predicted and true masks (n, H, W) bool of pictures of `defects` -> metrics in percent, by
    defect type and of all.
    """
    kinds = np.array(defects)
    found = {}
    for defect in (*sorted(set(defects)), ALL):
        chosen = np.ones(len(kinds), bool) if defect == ALL else kinds == defect
        try:
            metrics = confusion_metrics(predicted[chosen], masks[chosen])
        except ValueError as error:
            raise UserError(
                f"test pictures of {defect}: the metrics are not defined, {error}"
            ) from None
        found[defect] = (int(chosen.sum()), {name: 100 * value for name, value in metrics.items()})
    return found


def describe(config: Segmentation, architecture: str, split: str, size: int, kept: str) -> str:
    """Protocol text, e.g. `segformer(mit_b2, untrained start) half split, pairs past the gate, last
    checkpoint, ...`.
    """
    network = f"{architecture}({config.networks[architecture]}, untrained start)"
    text = (
        f"{network} {trial.trained_text(split, kept, config.optim)}, {size} px, defective pictures"
    )
    return text + trial.settings_text(config, {"networks"})


def run(
    method: str,
    dataset: str,
    category: str,
    config: Slice,
    *,
    architecture: str,
    seed: int,
    prepared: Path,
    pairs: Path,
    state: Path,
    out: Path,
) -> None:
    """Train and test one segmenter; write out/{scores.csv,stats.jsonl} and, last,
    out/manifest.json.

    config: keys `detect.segmentation` and `run.seed`; architecture: a key of its `networks`. As for
    localization, pairs that fail the mask gate are left out, and without any the network learns
    from normals alone.
    """
    section = config["detect.segmentation"]
    if section is None or architecture not in section.networks:
        raise UserError(
            f"detect.segmentation.networks: {architecture} is not there; give its encoder, as "
            f"params.yaml does"
        )
    rule, _ = read_split(prepared)
    samples = read_csv(prepared / "samples.csv", Sample)
    used, left_out = data.usable(load_pairs(pairs), section.max_pairs)
    tests, images, masks = data.test_set(prepared, samples)
    defective = [i for i, sample in enumerate(tests) if sample.defect != GOOD]
    defects, images, masks = (
        [tests[i].defect for i in defective],
        images[defective],
        masks[defective],
    )
    normals = data.normals(prepared, samples)
    training = localization.TrainingSet.from_arrays(
        normals, data.pair_arrays(pairs, used, normals.shape[1:3])
    )
    device = pick_device()
    own_seed = derive_seed(
        config["run.seed"], "segmentation", architecture, dataset, category, seed
    )
    model = build_network(architecture, section.networks[architecture], own_seed).to(device).train()
    trial.run(
        f"segmentation by {architecture}",
        trial.Job(method, dataset, category, seed, prepared, pairs, state, out),
        config,
        section,
        model=model,
        loss=localization.LocalizationLoss(model, training, section, device, smooth=0.0),
        seed=own_seed,
        pictures_digest=training.digest(),
        device=device,
        predict=lambda: segment(model, images, device, section.optim.batch),
        measure=lambda predicted: measure(predicted.astype(bool), masks, defects),
        chosen_by=CHOSEN_BY,
        protocol=lambda kept: describe(section, architecture, rule, normals.shape[1], kept),
        facts={
            "pairs": data.counts(used, left_out),
            "pictures": {"normals": len(normals), "test": len(defective)},
        },
    )
