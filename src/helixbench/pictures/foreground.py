"""Where the object is: for methods that paste or draw only on it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold of values in [0, 255]: the one that maximises the variance between the two
    classes.
    """
    counts = np.histogram(values, bins=256, range=(0, 256))[0].astype(float)
    levels = np.arange(256)
    below, total = np.cumsum(counts), counts.sum()
    mean_below, mean = np.cumsum(counts * levels), (counts * levels).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean * below - total * mean_below) ** 2 / (below * (total - below))
    return float(np.nanargmax(np.where(np.isfinite(between), between, 0)))


def foreground(image: np.ndarray, spread: float = 18.0) -> np.ndarray:
    """Mask (H, W) bool of the object in (H, W, 3) uint8, by its distance from the colour of the
    picture's border.

    A border whose grey values spread by more than `spread` is no plain background: the picture is a
    texture or fills the frame, and all of it is foreground.
    """
    width = max(2, image.shape[0] // 32)
    rim = np.ones(image.shape[:2], bool)
    rim[width:-width, width:-width] = False
    border = image[rim].astype(float)
    centre = np.median(border, axis=0)
    if np.percentile(np.abs(border - centre).mean(1), 90) > spread:
        return np.ones(image.shape[:2], bool)
    distance = np.abs(image.astype(float) - centre).mean(2)
    mask = ndimage.binary_opening(distance > otsu(distance), iterations=1)
    labels, count = ndimage.label(
        ndimage.binary_fill_holes(ndimage.binary_closing(mask, iterations=3))
    )
    if not count:
        return np.ones(image.shape[:2], bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # Pieces much smaller than the object are dust on the background.
    return ndimage.binary_fill_holes(np.isin(labels, np.flatnonzero(sizes >= 0.1 * sizes.max())))
