"""Which defect type is it: a ResNet trained on generated pairs of one category, tested on held-out
real defects.

The protocol of AnomalyDiffusion: cross-entropy over the defect types, RGB in [0, 1] at the working
size without normalisation or augmentation, steps in proportion to the defect types, as its epochs
are.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from helixbench import weights
from helixbench.config import Slice
from helixbench.detect import data, trial
from helixbench.engine import checkpoint
from helixbench.engine.devices import pick_device
from helixbench.errors import UserError
from helixbench.pictures.prepared import load_pairs, read_split, sample_images
from helixbench.records import ALL, GOOD, Sample, derive_seed, read_csv
from helixbench.schema import Classification

log = logging.getLogger(__name__)

CHOSEN_BY = ("accuracy",)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_network(config: Classification, classes: int, seed: int) -> nn.Module:
    """ResNet (B, 3, H, W) in [0, 1] -> logits (B, classes); its last layer is new and seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(torchvision.models, config.network)(weights=None)
        if weights.start(config.network, config.weights) == "imagenet":
            model.load_state_dict(checkpoint.load_published(config.network))
        model.fc = nn.Linear(model.fc.in_features, classes)
    normalise = torchvision.transforms.Normalize(_MEAN, _STD) if config.normalise else nn.Identity()
    return nn.Sequential(normalise, model).to(memory_format=torch.channels_last)


class ClassificationLoss:
    """The trainer's loss(step, rng): cross-entropy of a batch drawn uniformly from all pairs."""

    def __init__(
        self,
        model: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        config: Classification,
        device: torch.device,
    ):
        self.model, self.config, self.device = model, config, device
        self.images, self.labels = images, torch.from_numpy(labels)

    def __call__(self, step: int, rng: torch.Generator) -> torch.Tensor:
        """Cross-entropy of the batch that `rng` draws."""
        chosen = torch.randint(len(self.images), (self.config.optim.per_pass,), generator=rng)
        logits = self.model(_planes(self.images[chosen.numpy()], self.device))
        return F.cross_entropy(logits.float(), self.labels[chosen].to(self.device))


def _planes(images: np.ndarray, device: torch.device) -> torch.Tensor:
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float() / 255
    return planes.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def classify(model: nn.Module, images: np.ndarray, device: torch.device, batch: int) -> np.ndarray:
    """Pictures (n, H, W, 3) uint8 -> class indices (n,) int64, in evaluation mode and full
    precision.
    """
    training = model.training
    model.eval()
    with torch.autocast(device.type, enabled=False):
        found = [
            model(_planes(images[i : i + batch], device)).argmax(1).cpu()
            for i in range(0, len(images), batch)
        ]
    model.train(training)
    return torch.cat(found).numpy()


def accuracy(
    predicted: np.ndarray, labels: np.ndarray, defects: Sequence[str]
) -> dict[str, tuple[int, dict[str, float]]]:
    """Share of right answers in percent, of each defect type and of all pictures; labels index
    `defects`.
    """
    found = {}
    for i, defect in enumerate(defects):
        if (labels == i).any():
            found[defect] = (
                int((labels == i).sum()),
                {"accuracy": 100 * float((predicted == i)[labels == i].mean())},
            )
    return {**found, ALL: (len(labels), {"accuracy": 100 * float((predicted == labels).mean())})}


def describe(config: Classification, split: str, size: int, kept: str) -> str:
    """Protocol text, e.g. `resnet34 (untrained start) half split, pairs past the gate, last
    checkpoint, 9 steps x 8 a defect type`.
    """
    start = (
        "ImageNet start"
        if weights.start(config.network, config.weights) == "imagenet"
        else "untrained start"
    )
    text = (
        f"{config.network} ({start}) {trial.trained_text(split, kept, config.optim)} a defect "
        f"type, {size} px"
    )
    return text + trial.settings_text(config, {"network", "weights"})


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
    """Train and test one classifier; write out/{scores.csv,stats.jsonl} and, last,
    out/manifest.json.

    config: keys `detect.classification` and `run.seed`. The classes are the types of the pairs and
    of the test pictures: a type that no usable pair shows is never answered, and its pictures count
    as wrong. Raises UserError when there is no test picture, or no usable pair at all.
    """
    section = config["detect.classification"]
    if section is None:
        raise UserError("detect.classification is null; give it a section, as params.yaml does")
    rule, _ = read_split(prepared)
    used, left_out = data.usable(load_pairs(pairs), section.max_pairs)
    tests = [s for s in read_csv(prepared / "samples.csv", Sample) if s.tests and s.defect != GOOD]
    if not tests:
        raise UserError(
            f"{prepared / 'samples.csv'}: no defective picture has role test; accuracy needs some"
        )
    test_images = sample_images(prepared, tests)
    arrays = data.pair_arrays(pairs, used, test_images.shape[1:3])
    if not arrays:
        raise UserError(
            f"{pairs}: no pair passed the mask gate, so there is nothing to learn the defect "
            f"types from; generate again"
        )
    defects = sorted({*arrays, *(s.defect for s in tests)})
    images = np.concatenate([generated for generated, _ in arrays.values()])
    labels = np.repeat(
        [defects.index(defect) for defect in arrays],
        [len(generated) for generated, _ in arrays.values()],
    )
    truth = np.array([defects.index(s.defect) for s in tests])
    device = pick_device()
    own_seed = derive_seed(config["run.seed"], "classification", dataset, category, seed)
    model = build_network(section, len(defects), own_seed).to(device).train()
    optim = section.optim.model_copy(update={"steps": section.optim.steps * len(arrays)})
    trial.run(
        "classification",
        trial.Job(method, dataset, category, seed, prepared, pairs, state, out),
        config,
        section.model_copy(update={"optim": optim}),
        model=model,
        loss=ClassificationLoss(model, images, labels, section, device),
        seed=own_seed,
        pictures_digest=hashlib.sha256(
            images.tobytes()
            + labels.tobytes()
            + weights.start(section.network, section.weights).encode()
        ).hexdigest(),
        device=device,
        predict=lambda: classify(model, test_images, device, section.optim.batch),
        measure=lambda predicted: accuracy(predicted, truth, defects),
        chosen_by=CHOSEN_BY,
        protocol=lambda kept: describe(section, rule, images.shape[1], kept),
        facts={"pairs": data.counts(used, left_out), "pictures": {"test": len(tests)}},
    )
