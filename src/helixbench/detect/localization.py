"""Localization U-Net: trained on generated pairs and normals, tested on held-out real pictures.

The protocol is the one AnomalyDiffusion and its successors use (DRAEM's segmentation network
alone): RGB in [0, 1] without normalisation or augmentation, two-class focal loss as DRAEM smooths
it, image score from the averaged anomaly map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helixbench.detect import trial
from helixbench.detect.unet import UNet
from helixbench.metrics import Ranking
from helixbench.records import derive_seed
from helixbench.schema import Localization, Segmentation


def build_unet(config: Localization, seed: int) -> UNet:
    """U-Net (B, 3, H, W) -> logits (B, 2, H, W), its first weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet(config.width)
    return model.to(memory_format=torch.channels_last)


SMOOTH = 1e-5
"""Smoothing of the localization's focal loss, as in DRAEM's code (`loss.py`)."""


def focal_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    gamma: float,
    smooth: float = 0.0,
) -> torch.Tensor:
    """Mean of -(1 - p)^gamma log p of the true class (Lin et al., ICCV 2017), no class weights.

    logits: (B, 2, H, W); target: (B, H, W) int64 in {0, 1}. gamma 0 is cross-entropy.
    smooth: where above 0, p is what DRAEM's code takes: the softmax weighted by the one-hot target,
    whose values lie in [smooth, 1 - smooth], plus smooth. A pixel that is surely wrong then costs
    -log(2 smooth) at most, 10.8 with 1e-5, and hardly has a gradient, so that wrong masks do not
    pull without limit.
    """
    log_p = F.log_softmax(logits.float(), dim=1).gather(1, target[:, None])
    p = log_p.exp()
    if smooth:
        p = (1 - smooth) * p + smooth * (1 - p) + smooth
        log_p = p.log()
    # p is 1 for a pixel that is surely right, and may exceed it by rounding
    missing = (1 - p).clamp(min=torch.finfo(p.dtype).tiny)
    return -(missing**gamma * log_p).mean()


@dataclass(frozen=True)
class TrainingSet:
    """Pictures in memory: normals (n, 3, H, W) uint8; per defect type, images (m, 3, H, W) uint8
    and masks (m, H, W) bool.
    """

    normals: torch.Tensor
    defects: tuple[str, ...]
    images: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor, ...]

    @classmethod
    def from_arrays(
        cls, normals: np.ndarray, pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    ) -> TrainingSet:
        """Normals (n, H, W, 3) uint8; pairs: defect -> (images (m, H, W, 3) uint8, masks (m, H, W)
        bool), empty ones left out.
        """
        planes = lambda array: torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
        kept = {defect: pair for defect, pair in sorted(pairs.items()) if len(pair[0])}
        return cls(
            planes(normals),
            tuple(kept),
            tuple(planes(images) for images, _ in kept.values()),
            tuple(torch.from_numpy(masks) for _, masks in kept.values()),
        )

    def digest(self) -> str:
        """sha256 of all pixels: a resume state belongs to the pictures it was trained on."""
        found = hashlib.sha256(
            repr((self.defects, [tuple(t.shape) for t in (self.normals, *self.images)])).encode()
        )
        for tensor in (self.normals, *self.images, *self.masks):
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def draw(
        self, rng: torch.Generator, batch: int, normal_share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch (B, 3, H, W) float32 in [0, 1] and targets (B, H, W) int64.

        Each item is a normal with probability `normal_share`, otherwise uniform over defect types,
        then over their pairs.
        """
        images, masks = [], []
        for _ in range(batch):
            coin, which, item = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
            if not self.defects or coin < normal_share:
                image = self.normals[int(item * len(self.normals))]
                mask = torch.zeros(image.shape[1:], dtype=torch.bool)
            else:
                kind = int(which * len(self.defects))
                index = int(item * len(self.images[kind]))
                image, mask = self.images[kind][index], self.masks[kind][index]
            images.append(image)
            masks.append(mask)
        return torch.stack(images).float() / 255, torch.stack(masks).long()


class LocalizationLoss:
    """The trainer's loss(step, rng): draws a batch and returns its focal loss."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingSet,
        config: Localization | Segmentation,
        device: torch.device,
        smooth: float = SMOOTH,
    ):
        self.model, self.data, self.config, self.device = model, data, config, device
        self.smooth = smooth

    def __call__(self, step: int, rng: torch.Generator) -> torch.Tensor:
        """Focal loss of the batch that `rng` draws."""
        images, target = self.data.draw(rng, self.config.optim.per_pass, self.config.normal_share)
        images = images.to(self.device, memory_format=torch.channels_last)
        logits, gamma = self.model(images), self.config.focal_gamma
        return focal_loss(logits, target.to(self.device), gamma, self.smooth)


@torch.no_grad()
def anomaly_maps(
    model: nn.Module, images: np.ndarray, device: torch.device, batch: int = 8
) -> np.ndarray:
    """Softmax of the anomaly class for pictures (n, H, W, 3) uint8: (n, H, W) float32 in [0, 1].

    In evaluation mode (running statistics) and full precision, whatever training used.
    """
    training = model.training
    model.eval()
    maps = []
    with torch.autocast(device.type, enabled=False):
        for i in range(0, len(images), batch):
            x = torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2).float() / 255
            logits = model(x.to(device, memory_format=torch.channels_last)).float()
            maps.append(logits.softmax(1)[:, 1].cpu())
    model.train(training)
    return torch.cat(maps).numpy()


def image_scores(maps: np.ndarray, window: int) -> np.ndarray:
    """Maps (n, H, W) -> (n,): largest value of the window x window, stride-1, zero-padded average
    (reading 21).

    Zeros count in the average, as in DRAEM's code. An even window averages over one row and column
    more of padding.
    """
    averaged = F.avg_pool2d(torch.from_numpy(maps)[:, None], window, stride=1, padding=window // 2)
    return averaged.amax((1, 2, 3)).numpy()


def evaluate(
    maps: np.ndarray,
    masks: np.ndarray,
    regions: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    pro_limit: float,
    pro_thresholds: int | None = None,
) -> dict[str, float]:
    """Metrics in percent. Raises ValueError where one is not defined.

    maps, masks, regions: (n, H, W); scores, labels: (n,). regions: the masks that PRO takes,
    usually `masks` itself. pro_limit, pro_thresholds: see `metrics.pro`.
    """
    image, pixel = Ranking(scores, labels), Ranking(maps, masks)
    ranking = pixel if regions is masks else Ranking(maps, regions)
    found = {
        "image_auroc": image.auroc(),
        "image_ap": image.average_precision(),
        "pixel_auroc": pixel.auroc(),
        "pixel_ap": pixel.average_precision(),
        "pro": ranking.pro(regions, pro_limit, pro_thresholds),
        "f1_max": pixel.f1_max(),
    }
    return {name: 100 * value for name, value in found.items()}


def training_seed(root: int, dataset: str, category: str, seed: int) -> int:
    """Seed of weights and batches: the same for every method, so that methods are compared on equal
    draws.
    """
    return derive_seed(root, "localization", dataset, category, seed)


CHOSEN_BY = ("image_auroc", "pixel_auroc", "pixel_ap", "pro")
"""Metrics whose sum over all test pictures chooses `best_on_test`, as in AnomalyDiffusion's
script."""


def describe(
    config: Localization, split: str, size: Sequence[int], checkpoint: str = "last"
) -> str:
    """Protocol text, e.g. `unet(width 64) half split, pairs past the gate, last checkpoint, 1000
    steps x 8, 256 px, lr 0.0001`.
    """
    text = (
        f"unet(width {config.width}) {trial.trained_text(split, checkpoint, config.optim)}, "
        f"{size[0]} px"
    )
    truth = trial.truth_text(config.ground_truth, config.pro_limit, config.pro_thresholds)
    return text + truth + trial.settings_text(config, {"width"})
