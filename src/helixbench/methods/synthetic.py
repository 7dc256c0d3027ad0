"""What methods share that draw defects without learning: one picture at a time, and draws from its
own generator.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from scipy import ndimage

from helixbench.methods.method import Conditions, Method
from helixbench.pictures.foreground import foreground
from helixbench.schema import MethodConfig, Sampling

TRIES = 50
MIN_CHANGE = 0.03
"""Mean change of a piece of a mask, in [0, 1], below which nobody would see a defect there."""


class Draws:
    """Random numbers of one pair, all from its CPU generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator).numpy()

    def integer(self, count: int) -> int:
        """A number of 0 ... count - 1."""
        return int(torch.randint(count, (), generator=self.generator))

    def chance(self, share: float) -> bool:
        """True in this share of the draws."""
        return self.uniform(0, 1) < share

    def order(self, count: int) -> list[int]:
        """0 ... count - 1, shuffled."""
        return torch.randperm(count, generator=self.generator).tolist()


class SyntheticMethod(Method):
    """A method that draws a defect on the plan's normal picture; a subclass says how in `draw`."""

    def __init__(self, config: MethodConfig, sampling: Sampling | None = None):
        self.config = config

    @abstractmethod
    def draw(self, conditions: Conditions, i: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Pair i: picture (H, W, 3) float in [0, 1] and mask (H, W) bool."""

    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample."""
        pairs = [
            self.draw(conditions, i, Draws(generator)) for i, generator in enumerate(generators)
        ]
        images = (
            torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).float()
        )
        return images, torch.from_numpy(np.stack([mask for _, mask in pairs]))[:, None].float()


def array(pictures: torch.Tensor, i: int) -> np.ndarray:
    """Picture i of (n, 3, H, W) as (H, W, 3)."""
    return pictures[i].permute(1, 2, 0).numpy()


def another_normal(conditions: Conditions, i: int, rng: Draws) -> np.ndarray:
    """A random normal of the category (H, W, 3) in [0, 1]; the background itself where the
    conditions hold no others.
    """
    if conditions.normals is None:
        return array(conditions.background, i)
    return conditions.normals[rng.integer(len(conditions.normals))].astype(np.float32) / 255


def object_of(picture: np.ndarray) -> np.ndarray:
    """Foreground (H, W) bool of a picture (H, W, 3) in [0, 1]."""
    return foreground((picture * 255).astype(np.uint8))


def seen(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The connected pieces of a mask (H, W) bool whose pixels changed by MIN_CHANGE on average."""
    labels, count = ndimage.label(mask)
    change = np.bincount(
        labels.ravel(), np.abs(after - before).mean(-1).ravel(), minlength=count + 1
    )
    kept = change >= MIN_CHANGE * np.bincount(labels.ravel(), minlength=count + 1)
    kept[0] = False
    return kept[labels]


def warp(
    picture: np.ndarray, matrix: np.ndarray, offset: np.ndarray, mode: str = "nearest"
) -> np.ndarray:
    """Affine resampling of (H, W[, C]): output position p shows input position matrix p +
    offset.
    """
    if picture.ndim == 2:
        return ndimage.affine_transform(picture, matrix, offset, order=1, mode=mode)
    return np.stack(
        [warp(picture[..., c], matrix, offset, mode) for c in range(picture.shape[-1])], axis=-1
    )


def turn(degrees: float, scale: float = 1.0) -> np.ndarray:
    """Matrix of the inverse map of a rotation and an enlargement by `scale`."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale


def turned(
    picture: np.ndarray, degrees: float, scale: float = 1.0, mode: str = "mirror"
) -> np.ndarray:
    """The picture rotated and enlarged about its centre."""
    centre = (np.array(picture.shape[:2]) - 1) / 2
    matrix = turn(degrees, scale)
    return warp(picture, matrix, centre - matrix @ centre, mode)
