"""Crop&Paste (Lin et al., ICME 2021): real defects cut by their masks, moved, and pasted on
normals.

The placing follows PRN's copy-paste step: at least two thirds of the defect must land on the
object.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from helixbench.methods.method import Conditions
from helixbench.methods.synthetic import TRIES, Draws, SyntheticMethod, array, object_of, turn, warp

MIN_OVERLAP = 2 / 3


class CropPasteMethod(SyntheticMethod):
    """Cuts the plan's donor defect and pastes it on the plan's background."""

    def draw(self, conditions: Conditions, i: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
        """See SyntheticMethod.draw."""
        normal, donor, mask = (
            array(conditions.background, i),
            array(conditions.donor, i),
            conditions.donor_mask[i, 0].numpy() > 0.5,
        )
        angle = rng.uniform(-self.config.max_rotation, self.config.max_rotation)
        scale = float(np.exp(rng.uniform(*np.log(self.config.scale))))
        if not mask.any():
            return normal, mask
        # Inverse map: output position -> input position, about the defect's centre.
        matrix = turn(angle, scale)
        centre = np.array(ndimage.center_of_mass(mask))
        object_mask = object_of(normal)
        rows, columns = np.nonzero(object_mask)
        target, moved = centre, mask
        for attempt in range(TRIES + 1):
            if attempt < TRIES:
                place = rng.integer(len(rows))
                target = np.array([rows[place], columns[place]], float)
            else:  # nowhere fits: leave it where the real one was
                target = centre
            offset = centre - matrix @ target
            moved = warp(mask.astype(np.float32), matrix, offset, mode="constant") > 0.5
            wanted = mask.sum() * scale**2
            if moved.any() and (moved & object_mask).sum() >= MIN_OVERLAP * wanted:
                break
        if not moved.any():
            return normal, moved
        cut = warp(donor, matrix, offset)
        alpha = moved.astype(np.float32)
        if self.config.feather:
            # Soft on the outside only, so that every pixel of the mask shows the defect.
            alpha = np.maximum(alpha, ndimage.gaussian_filter(alpha, self.config.feather))
        return (normal * (1 - alpha[..., None]) + cut * alpha[..., None]).clip(0, 1).astype(
            np.float32
        ), moved
