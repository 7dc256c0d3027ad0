"""Localization U-Net: trained on generated pairs and normals, tested on held-out real pictures.

The protocol is the one AnomalyDiffusion and its successors use (DRAEM's segmentation network
alone): RGB in [0, 1] without normalisation or augmentation, two-class focal loss as DRAEM smooths
it, image score from the averaged anomaly map.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helixbench.config import Slice
from helixbench.detect import conformal
from helixbench.detect.detector import Job, Metrics, PairDetector
from helixbench.detect.held_out import HeldOut, Reading
from helixbench.detect.unet import UNet
from helixbench.errors import UserError
from helixbench.pictures.prepared import sample_images
from helixbench.protocol import Protocol
from helixbench.records import ALL, GOOD
from helixbench.schema.section import Section

log = logging.getLogger(__name__)

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

        def planes(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()

        kept = {defect: pair for defect, pair in sorted(pairs.items()) if len(pair[0])}
        return cls(
            planes(normals),
            tuple(kept),
            tuple(planes(images) for images, _ in kept.values()),
            tuple(torch.from_numpy(masks) for _, masks in kept.values()),
        )

    def digest(self) -> str:
        """sha256 of all pixels: a resume state belongs to the pictures it was trained on."""
        shapes = [tuple(tensor.shape) for tensor in (self.normals, *self.images)]
        sha256 = hashlib.sha256(repr((self.defects, shapes)).encode())
        for tensor in (self.normals, *self.images, *self.masks):
            sha256.update(tensor.numpy().tobytes())
        return sha256.hexdigest()

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


def map_and_score(network: nn.Module, image: np.ndarray, window: int) -> tuple[np.ndarray, float]:
    """Anomaly map (S, S) float32 in [0, 1] and image score of one picture (S, S, 3) uint8, by
    itself: neither depends on others in a batch. UserError where they are not finite.
    """
    maps = anomaly_maps(network, np.array(image[None]), next(network.parameters()).device, 1)
    score = float(image_scores(maps, window)[0])
    if not np.isfinite(maps).all():
        raise UserError("the detector's maps are not finite; train it again with a lower optim.lr")
    return maps[0], score


class PixelDetector(PairDetector):
    """A detector that learns which pixels are defective, from pairs and normals, by a focal loss of
    two classes.

    Without a usable pair it learns from normals alone (and finds nothing): that is the method's
    result, not an error. Raises UserError for altered or unreadable pictures, and for test pictures
    of another size.
    """

    smooth: ClassVar[float] = 0.0
    """Smoothing of the loss, see `focal_loss`."""

    reading = Reading()
    """How the true masks are read."""

    def __init__(self, job: Job, config: Slice, section: Section, *seeded_by: str):
        super().__init__(job, config, section, *seeded_by)
        self.tests = HeldOut.read(job.prepared, self.samples, self.reading)
        normals = self.read_normals()
        if normals.shape[1:] != self.tests.images.shape[1:]:
            raise UserError(
                f"{job.prepared}: test pictures and normals differ in size; prepare again"
            )
        self.data = TrainingSet.from_arrays(normals, self.read_pairs(normals.shape[1:3]))
        self.size = normals.shape[1]
        self.pictures = {"normals": len(normals), "test": len(self.tests.samples)}

    def train(self) -> dict[str, float]:
        """Train the network by the shared loop."""
        if not self.data.defects:
            log.warning("%s: no pair passed the mask gate; training on normals alone", self.title)
        return super().train()

    def loss(self, step: int, rng: torch.Generator) -> torch.Tensor:
        """Focal loss of the batch that `rng` draws."""
        section = self.section
        images, target = self.data.draw(rng, section.optim.per_pass, section.normal_share)
        logits = self.network(images.to(self.device, memory_format=torch.channels_last))
        return focal_loss(logits, target.to(self.device), section.focal_gamma, self.smooth)

    def data_digest(self) -> str:
        """sha256 of all pixels."""
        return self.data.digest()


class Localization(PixelDetector):
    """The U-Net, scored by anomaly maps (n, H, W) in [0, 1].

    config: keys `detect.localization` and `run.seed`. Writes curves.csv and predictions.png beside
    the scores.
    """

    kind = "localization"
    chosen_by = ("image_auroc", "pixel_auroc", "pixel_ap", "pro")  # as AnomalyDiffusion's script
    smooth = SMOOTH

    def __init__(self, job: Job, config: Slice):
        super().__init__(job, config, config["detect.localization"], "localization")
        self.calibration = [s for s in self.samples if s.role == "calibration"]
        self.calibrated: dict[str, float] = {}
        if self.calibration:
            n, rate = len(self.calibration), config["detect.false_alarms"]
            conformal.check(n, rate, "change detect.false_alarms or prepare.calibration")

    @property
    def reading(self) -> Reading:
        """How the true masks are read."""
        section = self.section
        return Reading(section.ground_truth, section.pro_limit, section.pro_thresholds)

    def build(self) -> nn.Module:
        """U-Net (B, 3, H, W) -> logits (B, 2, H, W)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = UNet(self.section.width)
        return network.to(memory_format=torch.channels_last)

    def predict(self) -> np.ndarray:
        """Anomaly maps of the test pictures, (n, H, W) float32 in [0, 1]."""
        batch = self.section.optim.batch
        return anomaly_maps(self.network, self.tests.images, self.device, batch)

    def measure(self, predictions: np.ndarray) -> Metrics:
        """AUROC and AP of pictures and pixels, PRO and F1."""
        return self.tests.measure(predictions, self._image_scores(predictions))

    def predictions(self) -> dict[str, np.ndarray]:
        """With the scores of the calibration pictures, by the network that is kept."""
        images = sample_images(self.job.prepared, self.calibration)
        for sample, image in zip(self.calibration, images, strict=True):
            _, score = map_and_score(self.network, image, self.section.score_window)
            self.calibrated[sample.id] = score
        return super().predictions()

    @property
    def threshold(self) -> conformal.Threshold:
        """Of the calibration pictures."""
        return conformal.threshold(self.calibrated, self.config["detect.false_alarms"])

    def measure_checkpoint(self, checkpoint_name: str, predictions: np.ndarray) -> Metrics:
        """With recall of defects, and false alarms, at the threshold."""
        metrics = self.measure(predictions)
        if self.calibrated and checkpoint_name == "last":
            above = self._image_scores(predictions) > self.threshold.value
            for defect, (_, values) in metrics.items():
                bad = self.tests.defects != GOOD if defect == ALL else self.tests.defects == defect
                values["recall"] = 100 * float(above[bad].mean())
            metrics[ALL][1]["false_alarms"] = 100 * float(above[self.tests.defects == GOOD].mean())
        return metrics

    def write(self, predictions: np.ndarray) -> None:
        """out/predictions.png and out/curves.csv."""
        self.tests.write(self.job.out, predictions, self._image_scores(predictions))

    def keep(self) -> None:
        """out/network.safetensors and, with calibration pictures, out/threshold.json."""
        if self.calibrated:
            conformal.write(self.job.out, self.threshold, self.calibrated)
        self.keep_network(width=self.section.width, score_window=self.section.score_window)

    def protocol(self, checkpoint_name: str) -> Protocol:
        """With the facts of the network."""
        network = {"network": "unet", "width": self.section.width, "weights": "none"}
        if self.calibration:
            network["false_alarms"] = self.config["detect.false_alarms"]
        return super().protocol(checkpoint_name).having(**network)

    def _image_scores(self, maps: np.ndarray) -> np.ndarray:
        return image_scores(maps, self.section.score_window)
