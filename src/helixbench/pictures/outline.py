"""The outline of a mask, drawn the same way in every sheet, figure and gallery."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

RED, GREEN, BLUE = (255, 32, 32), (0, 255, 0), (0, 160, 255)


def outlined(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = RED) -> np.ndarray:
    """A copy of a picture (H, W, 3) uint8 with a ring around a mask (H, W) bool.

    The ring lies outside of the mask, so that it hides no defect, and is 1/128 of the height wide.
    """
    width = max(1, mask.shape[0] // 128)
    out = image.copy()
    out[ndimage.binary_dilation(mask, iterations=width) & ~mask] = colour
    return out
