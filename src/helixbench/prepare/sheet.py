"""The picture sheet of what was prepared, to be looked at before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from helixbench.pictures.outline import outlined
from helixbench.pictures.raw import resize_mask
from helixbench.pictures.raw_mask import cell_edges
from helixbench.provenance import write_atomic

TILE, GAP, LABEL, HEAD = 128, 4, 104, 18
CELL = (255, 200, 0)


@dataclass(frozen=True)
class Shown:
    """One picture of a row: caption, picture, and for defects the mask, its cells and the two
    references.
    """

    caption: str
    image: np.ndarray
    mask: np.ndarray | None = None
    k: int = 1
    cells: tuple[int, ...] = ()
    references: tuple[np.ndarray, ...] = ()


def tile(image: np.ndarray, mask: np.ndarray | None = None) -> Image.Image:
    """A tile of a picture (H, W, 3) uint8 with the outline of its mask (H, W) bool, if there is
    one; a defect of a single pixel is still ringed.
    """
    small = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS)
    if mask is None:
        return small
    return Image.fromarray(outlined(np.asarray(small), resize_mask(mask, TILE)))


def _marked(shown: Shown) -> Image.Image:
    marked = tile(shown.image, shown.mask)
    draw, edges = ImageDraw.Draw(marked), cell_edges(TILE, shown.k)
    for cell in shown.cells:
        i, j = divmod(cell, shown.k)
        draw.rectangle((edges[j], edges[i], edges[j + 1] - 1, edges[i + 1] - 1), outline=CELL)
    return marked


Line = tuple[str, Sequence[tuple[str, Image.Image]]]
"""Label, and captions with tiles."""


def draw_sheet(path: Path, title: str, rows: Sequence[tuple[str, Sequence[Shown]]]) -> None:
    """Write the sheet: a row of pictures a group; groups of defects have rows of raw pictures,
    marks and references.
    """
    lines: list[Line] = []
    for name, shown in rows:
        lines.append((name, [(s.caption, tile(s.image)) for s in shown]))
        if any(s.mask is not None for s in shown):
            lines.append(("mask (red)\nraw mask (yellow)", [("", _marked(s)) for s in shown]))
            for r, label in enumerate(("reference: cells", "reference: tight")):
                lines.append((label, [("", tile(s.references[r])) for s in shown]))
    draw_lines(path, title, lines)


def draw_lines(path: Path, title: str, lines: Sequence[Line]) -> None:
    """Write a sheet of labelled lines of tiles."""
    columns = max(len(tiles) for _, tiles in lines)
    heights = [
        TILE + GAP + (HEAD if any(caption for caption, _ in tiles) else 0) for _, tiles in lines
    ]
    sheet = Image.new("RGB", (LABEL + columns * (TILE + GAP), HEAD + GAP + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), *_lettered(title))
    top = HEAD + GAP
    for (label, tiles), height in zip(lines, heights, strict=True):
        head = height - TILE - GAP
        draw.text(
            (GAP, top + head + 2),
            *_lettered(
                label.replace("_", "_\n") if len(label) > 16 and "\n" not in label else label
            ),
        )
        for column, (caption, tile) in enumerate(tiles):
            left = LABEL + column * (TILE + GAP)
            draw.text((left, top + 3), *_lettered(caption))
            sheet.paste(tile, (left, top + head))
        top += height
    write_atomic(path, lambda temporary: sheet.save(temporary))


def _lettered(text: str) -> tuple[str, str, ImageFont.FreeTypeFont]:
    """Text, colour and font, which has the letters of the text."""
    if text.isascii():
        return text, "black", ImageFont.load_default(11)
    from helixbench.pictures.lettering import font_for, legible  # matplotlib: not for plain names

    text = legible(text)
    return text, "black", ImageFont.truetype(font_for(text), 11)
