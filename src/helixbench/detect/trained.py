"""Trained detectors, read back from their folders: what they say of a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from helixbench.detect import conformal
from helixbench.detect.classification import network_of
from helixbench.detect.conformal import Threshold
from helixbench.detect.detector import NETWORK
from helixbench.detect.localization import map_and_score
from helixbench.detect.unet import UNet
from helixbench.engine import checkpoint
from helixbench.engine.devices import pick_device
from helixbench.errors import UserError


def _load(folder: Path, kind: str, build: Callable[[dict], nn.Module]) -> tuple[nn.Module, dict]:
    """The network of a detector's folder in evaluation mode, and its facts."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that `detect` wrote")
    file = folder / NETWORK
    if not file.is_file():
        raise UserError(
            f"{folder}: no {NETWORK} in it; give the folder of a {kind} detector, and run detect "
            f"again where an earlier version wrote it"
        )
    tensors, facts = checkpoint.load_tensors(file)
    if facts.get("kind") != kind:
        raise UserError(f"{file}: a {facts.get('kind')} network; give one of {kind}")
    try:
        network = build(facts)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: not of this version ({reason}); run detect again") from None
    return network.to(pick_device()).eval(), facts


def _unet(facts: dict) -> nn.Module:
    return UNet(facts["width"]).to(memory_format=torch.channels_last)


def _classifier(facts: dict) -> nn.Module:
    return network_of(facts["network"], len(facts["defects"]), facts["normalise"])


@dataclass(frozen=True)
class Localizer:
    """The U-Net of a folder that `detect` wrote. Raises UserError for a folder without one.

    Pictures go through it one by one, so that no map depends on those beside it.
    """

    network: nn.Module
    facts: dict[str, Any]
    threshold: Threshold | None = None

    @classmethod
    def read(cls, folder: Path, rate: float | None = None) -> Localizer:
        """The detector of a folder, with the threshold that promises `rate`, or that of its run."""
        return cls(*_load(folder, "localization", _unet), conformal.read(folder, rate))

    @property
    def size(self) -> int:
        """Side of the pictures that it takes [pixel]."""
        return self.facts["size"]

    def map_and_score(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """Anomaly map (S, S) float32 in [0, 1] and image score in [0, 1] of (S, S, 3) uint8."""
        return map_and_score(self.network, image, self.facts["score_window"])


@dataclass(frozen=True)
class Classifier:
    """The classifier of a folder that `classify` wrote. Raises UserError for a folder without."""

    network: nn.Module
    facts: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Classifier:
        """The classifier of a folder."""
        return cls(*_load(folder, "classification", _classifier))

    @classmethod
    def beside(cls, detector: Path) -> Classifier | None:
        """That of the same method and repetition, where the run trained one."""
        name = detector.resolve().name
        folder = detector.resolve().with_name(name.replace("seed", "classification"))
        return cls.read(folder) if name.startswith("seed") and folder.is_dir() else None

    @property
    def size(self) -> int:
        """Side of the pictures that it takes [pixel]."""
        return self.facts["size"]

    @torch.no_grad()
    def defect(self, image: np.ndarray) -> tuple[str, float]:
        """Defect type and its softmax in [0, 1] of a picture (S, S, 3) uint8."""
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        device = next(self.network.parameters()).device
        shares = self.network(planes.to(device, memory_format=torch.channels_last)).softmax(1)[0]
        best = int(shares.argmax())
        return self.facts["defects"][best], float(shares[best])
