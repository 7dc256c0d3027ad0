"""A picture sheet of predictions: what the numbers look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from helixbench.pictures.outline import GREEN, outlined
from helixbench.provenance import write_atomic

_GAP = 4
_TEXT = 14


def heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Anomaly map (H, W) in [0, 1], blended with the grey picture (H, W, 3) uint8; the colour scale
    is absolute.
    """
    colours = matplotlib.colormaps["inferno"](values)[..., :3] * 255
    grey = image.mean(2, keepdims=True)
    return (0.25 * grey + 0.75 * colours).clip(0, 255).astype(np.uint8)


def write_sheet(
    path: Path, images: np.ndarray, masks: np.ndarray, maps: np.ndarray, titles: Sequence[str]
) -> None:
    """One row a picture: the picture, the true mask's outline, the anomaly map; its title above.
    PNG, atomic.
    """
    height, width = images.shape[1:3]
    row = height + _TEXT + _GAP
    sheet = Image.new("RGB", (3 * width + 2 * _GAP, row * len(images)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, mask, values, title) in enumerate(zip(images, masks, maps, titles, strict=True)):
        draw.text((2, i * row), title, fill="black")
        for column, panel in enumerate((image, outlined(image, mask, GREEN), heat(image, values))):
            sheet.paste(Image.fromarray(panel), (column * (width + _GAP), i * row + _TEXT))
    write_atomic(path, lambda temporary: sheet.save(temporary))
