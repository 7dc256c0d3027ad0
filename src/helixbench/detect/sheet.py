"""A picture sheet of predictions: what the numbers look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from helixbench.pictures.lettering import font_for, legible
from helixbench.pictures.outline import GREEN, outlined
from helixbench.provenance import write_atomic

_GAP = 4
_TEXT = 14
_TILE, _COLUMNS = 128, 4


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


@dataclass(frozen=True)
class Found:
    """A picture of the contact sheet: score, name and what else is said of it, overlay (H, W, 3)
    uint8, anomaly map (S, S) in [0, 1].
    """

    score: float
    name: str
    title: str
    overlay: np.ndarray
    values: np.ndarray

    def small(self) -> Found:
        """The same in the size of the sheet."""
        overlay = np.asarray(Image.fromarray(self.overlay).resize((_TILE, _TILE)))
        values = np.asarray(Image.fromarray(self.values).resize((_TILE, _TILE)))
        return replace(self, overlay=overlay, values=values)


def write_contact_sheet(path: Path, found: Sequence[Found]) -> None:
    """Overlay and anomaly map of each `small` picture, its name and title above. PNG, atomic."""
    width, height = 2 * _TILE + 3 * _GAP, _TILE + 2 * _TEXT + _GAP
    rows = -(-len(found) // _COLUMNS)
    sheet = Image.new("RGB", (min(len(found), _COLUMNS) * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, one in enumerate(found):
        left, top = i % _COLUMNS * width, i // _COLUMNS * height
        for line, text in enumerate((legible(one.name), one.title)):
            font = ImageFont.truetype(font_for(text), 11)
            while draw.textlength(text, font) > width - 2 * _GAP:
                text = text[1:]  # the ends of long names tell pictures apart
            draw.text((left + 2, top + line * _TEXT), text, "black", font)
        for column, panel in enumerate((one.overlay, heat(one.overlay, one.values))):
            place = left + column * (_TILE + _GAP), top + 2 * _TEXT
            sheet.paste(Image.fromarray(panel), place)
    write_atomic(path, lambda temporary: sheet.save(temporary))
