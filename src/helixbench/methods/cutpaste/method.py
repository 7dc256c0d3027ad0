"""CutPaste (Li et al., CVPR 2021): a rectangle of the normal picture, recoloured, pasted elsewhere
in it.

As in the paper's 3-way task, half of the pairs are patches and half are thin rotated scars.
"""

from __future__ import annotations

import numpy as np

from helixbench.methods.method import Conditions
from helixbench.methods.synthetic import (
    TRIES,
    Draws,
    SyntheticMethod,
    array,
    object_of,
    seen,
    turn,
    warp,
)

SIDE = 256
"""Pixels of a side that the paper's scar sizes are meant for."""


class CutPasteMethod(SyntheticMethod):
    """Cuts and pastes within the plan's background; the plan's defect type has no part in it."""

    def draw(self, conditions: Conditions, i: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
        """See SyntheticMethod.draw; a patch beside the object, or one like what it covers, is drawn
        again.
        """
        normal = array(conditions.background, i)
        shape = normal.shape[:2]
        object_mask = object_of(normal)
        scar = rng.chance(self.config.scar_share)
        for _ in range(TRIES):
            height, width, angle = self.scar(shape, rng) if scar else self.patch(shape, rng)
            source, target = (
                np.array([rng.uniform(0, shape[0] - height), rng.uniform(0, shape[1] - width)])
                for _ in range(2)
            )
            matrix = turn(angle)
            middle = np.array([height - 1, width - 1]) / 2
            offset = source + middle - matrix @ (target + middle)
            box = np.zeros(shape, np.float32)
            low = source.round().astype(int)
            box[low[0] : low[0] + round(height), low[1] : low[1] + round(width)] = 1
            mask = warp(box, matrix, offset, mode="constant") > 0.5
            image = np.where(
                mask[..., None], self.jitter(warp(normal, matrix, offset), rng), normal
            )
            if (mask & object_mask).sum() >= self.config.min_overlap * mask.sum() and seen(
                normal, image, mask
            ).any():
                return image, mask
        return normal, np.zeros(shape, bool)

    def patch(self, shape: tuple[int, int], rng: Draws) -> tuple[float, float, float]:
        """Height and width [pixel] of a patch, and no rotation."""
        config = self.config
        area = rng.uniform(*config.area) * shape[0] * shape[1]
        aspect = np.exp(rng.uniform(*np.log(config.aspect)))  # as likely lying as standing
        return min(np.sqrt(area * aspect), shape[0]), min(np.sqrt(area / aspect), shape[1]), 0.0

    def scar(self, shape: tuple[int, int], rng: Draws) -> tuple[float, float, float]:
        """Length and width [pixel] of a scar, and its rotation [degree]."""
        config, scale = self.config, shape[0] / SIDE
        # No thinner than a pixel: a thinner one vanishes when it is resampled.
        width = max(1.0, rng.uniform(*config.scar_width) * scale)
        return (
            max(2.0, rng.uniform(*config.scar_length) * scale),
            width,
            rng.uniform(-config.scar_rotation, config.scar_rotation),
        )

    def jitter(self, picture: np.ndarray, rng: Draws) -> np.ndarray:
        """Brightness, contrast and saturation (H, W, 3) in [0, 1] times factors of 1 +- jitter."""
        brightness, contrast, saturation = (
            rng.uniform(1 - self.config.jitter, 1 + self.config.jitter) for _ in range(3)
        )
        picture = picture * brightness
        mean = picture.mean()
        picture = mean + (picture - mean) * contrast
        grey = picture.mean(-1, keepdims=True)
        return (grey + (picture - grey) * saturation).clip(0, 1).astype(np.float32)
