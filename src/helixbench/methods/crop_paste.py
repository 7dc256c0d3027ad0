"""Crop&Paste (Lin et al., ICME 2021): real defects cut by their masks, moved, and pasted on normals.

The placing follows PRN's copy-paste step: at least two thirds of the defect must land on the object.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from helixbench.methods.method import Conditions, Method
from helixbench.prepare.foreground import foreground
from helixbench.schema import CropPaste, Sampling

TRIES = 50
MIN_OVERLAP = 2 / 3


class CropPasteMethod(Method):
    """Cuts the plan's donor defect and pastes it on the plan's background."""

    def __init__(self, config: CropPaste, sampling: Sampling | None = None):
        self.config = config

    def sample(self, conditions: Conditions, generators: list[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample."""
        pairs = [
            self._paste(
                conditions.background[i].permute(1, 2, 0).numpy(),
                conditions.donor[i].permute(1, 2, 0).numpy(),
                conditions.donor_mask[i, 0].numpy() > 0.5,
                generators[i],
            )
            for i in range(len(conditions))
        ]
        images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).float()
        masks = torch.from_numpy(np.stack([mask for _, mask in pairs]))[:, None].float()
        return images, masks

    def _paste(self, normal: np.ndarray, donor: np.ndarray, mask: np.ndarray, rng: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Arrays (H, W, 3) in [0, 1] and (H, W) bool -> pasted picture and mask."""
        draw = lambda low, high: low + (high - low) * float(torch.rand((), generator=rng))  # noqa: E731
        height, width = mask.shape
        angle = np.deg2rad(draw(-self.config.max_rotation, self.config.max_rotation))
        scale = np.exp(draw(*np.log(self.config.scale)))
        if not mask.any():
            return normal, mask
        # Inverse map: output position -> input position, about the defect's centre.
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        centre = np.array(ndimage.center_of_mass(mask))
        object_mask = foreground((normal * 255).astype(np.uint8))
        rows, columns = np.nonzero(object_mask)
        target, moved = centre, mask
        for attempt in range(TRIES + 1):
            if attempt < TRIES:
                i = int(torch.randint(len(rows), (), generator=rng))
                target = np.array([rows[i], columns[i]], float)
            else:  # nowhere fits: leave it where the real one was
                target = centre
            offset = centre - matrix @ target
            moved = ndimage.affine_transform(mask.astype(np.float32), matrix, offset, order=1) > 0.5
            wanted = mask.sum() * scale**2
            if moved.any() and (moved & object_mask).sum() >= MIN_OVERLAP * wanted:
                break
        if not moved.any():
            return normal, moved
        cut = np.stack([ndimage.affine_transform(donor[..., c], matrix, offset, order=1, mode="nearest") for c in range(3)], axis=-1)
        alpha = moved.astype(np.float32)
        if self.config.feather:
            # Soft on the outside only, so that every pixel of the mask shows the defect.
            alpha = np.maximum(alpha, ndimage.gaussian_filter(alpha, self.config.feather))
        return (normal * (1 - alpha[..., None]) + cut * alpha[..., None]).clip(0, 1).astype(np.float32), moved
