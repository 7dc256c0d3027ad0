"""Picture grid in the manner of the paper's Figure 5: real defects above, generated pairs of every
method below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.pictures.files import FORMATS
from helixbench.pictures.lettering import figure_text
from helixbench.pictures.prepared import read_samples
from helixbench.provenance import write_atomic
from helixbench.records import GOOD, Pair, Sample, inside, read_csv

TILE = 112
"""Side of a picture [pixel]; six columns of it fill a column of a two-column paper at 200 dpi."""

_GAP, _GROUP_GAP, _LABEL, _TITLE, _BLOCK_GAP, _MARGIN = 4, 14, 30, 40, 36, 16
_FONT = 18
_DPI = 100
_PAPER = 1.4
"""Height over width that the sheet of all blocks comes nearest to."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Group:
    """Two rows of a block, images above their masks; `total` is what they were chosen from."""

    label: str
    images: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    total: int


@dataclass(frozen=True)
class DefectType:
    """A defect type: the real pictures first, then one group per method."""

    title: str
    groups: tuple[Group, ...]


def run(dataset: str, config: Slice, *, results: Path, out: Path, arms: bool = False) -> None:
    """Write the grid of a data set as PNG to `out` and as PDF, one page per category, next to it.

    arms: the rows of Table VIII instead of the methods (Figure 9).

    results: run folder holding prepare/ and generate/. Pictures are spread evenly over the pairs
    that passed the gate, by index. Raises UserError for missing or damaged manifests and pictures.
    """
    columns = config["report"].grid_columns
    named = {key: method.label for key, method in config["train.methods"].items()}
    if arms:
        rows = {
            arm.rows[8]: key if arm.change else arm.of
            for key, arm in config["train.ablations"].items()
            if 8 in arm.rows
        }
        named = {rows[label]: label for label in sorted(rows)}
    pages = [
        _blocks(results, dataset, category, named, columns)
        for category in config["prepare.datasets"][dataset].categories
    ]
    blocks = [block for page in pages for block in page]
    if not blocks:
        raise UserError(
            f"{results}/prepare/{dataset}: no defective picture trains a generator; nothing to show"
        )
    out = Path(out)
    write_atomic(
        out,
        lambda path: compose(blocks, columns, _across(blocks, columns)).savefig(
            path, dpi=_DPI, metadata={"Software": None}
        ),
    )
    write_atomic(
        out.with_suffix(".pdf"),
        lambda path: _write_pdf(path, [page for page in pages if page], columns),
    )


def evenly(items: Sequence[_Item], n: int) -> list[_Item]:
    """At most n items, first and last included, evenly spaced."""
    if len(items) <= n:
        return list(items)
    if n == 1:
        return [items[0]]
    return [items[i * (len(items) - 1) // (n - 1)] for i in range(n)]


def _blocks(
    results: Path, dataset: str, category: str, named: dict[str, str], columns: int
) -> list[DefectType]:
    prepared = Path(results) / "prepare" / dataset / category
    samples = [s for s in read_samples(prepared) if s.defect_trains and s.defect != GOOD]
    made = {}
    for key in named:
        folder = Path(results) / "generate" / key / dataset / category
        made[key] = (
            folder,
            sorted(read_csv(folder / "manifest.csv", Pair), key=lambda pair: pair.index),
        )
    blocks = []
    for defect in sorted({sample.defect for sample in samples}):
        real = sorted((s for s in samples if s.defect == defect), key=lambda s: s.id)
        groups = [_group("real", prepared, real, columns)]
        for key, label in named.items():
            folder, pairs = made[key]
            groups.append(
                _group(
                    label,
                    folder,
                    [p for p in pairs if p.defect == defect and p.gate == "ok"],
                    columns,
                )
            )
        blocks.append(DefectType(f"{category} / {defect}", tuple(groups)))
    return blocks


def _group(
    label: str, folder: Path, rows: Sequence[Sample] | Sequence[Pair], columns: int
) -> Group:
    chosen = evenly(rows, columns)
    images = tuple(_picture(inside(folder, row.image), "RGB") for row in chosen)
    masks = tuple(_picture(inside(folder, row.mask), "L") for row in chosen)
    return Group(label, images, masks, len(rows))


def _picture(path: Path, mode: str) -> np.ndarray:
    """A tile: (TILE, TILE, 3) uint8; masks stay black and white where they are enlarged."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            enlarged = max(picture.size) <= TILE
            how = (
                Image.Resampling.BOX
                if not enlarged
                else Image.Resampling.NEAREST
                if mode == "L"
                else Image.Resampling.BICUBIC
            )
            return np.asarray(picture.convert(mode).resize((TILE, TILE), how).convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a picture ({error}); make the file again"
        ) from None


# ------------------------------------------------------------------------------------------------
# layout


def _block_size(block: DefectType, columns: int) -> tuple[int, int]:
    """Width and height of a block [pixel]."""
    height = _TITLE + len(block.groups) * (2 * TILE + _GAP) + (len(block.groups) - 1) * _GROUP_GAP
    return _LABEL + columns * TILE + (columns - 1) * _GAP, height


def _across(blocks: list[DefectType], columns: int) -> int:
    """Blocks side by side so that the sheet is about as tall as a page."""
    width, height = _block_size(blocks[0], columns)
    return max(1, min(len(blocks), round(math.sqrt(len(blocks) * height / width / _PAPER))))


def compose(blocks: list[DefectType], columns: int, across: int) -> Figure:
    """All blocks on one sheet, `across` side by side; one figure pixel is one picture pixel at 100
    dpi.
    """
    width, height = _block_size(blocks[0], columns)
    down = math.ceil(len(blocks) / across)
    total = (
        2 * _MARGIN + across * width + (across - 1) * _BLOCK_GAP,
        2 * _MARGIN + down * height + (down - 1) * _BLOCK_GAP,
    )
    figure = Figure(figsize=(total[0] / _DPI, total[1] / _DPI), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, block in enumerate(blocks):
        _draw(
            axes,
            block,
            columns,
            _MARGIN + i % across * (width + _BLOCK_GAP),
            _MARGIN + i // across * (height + _BLOCK_GAP),
        )
    axes.set(
        xlim=(0, total[0]), ylim=(total[1], 0), aspect="auto"
    )  # after imshow, which would narrow them
    return figure


def _draw(axes, block: DefectType, columns: int, left: float, top: float) -> None:
    points = 72 / _DPI
    axes.text(
        left + _LABEL,
        top + _TITLE / 2,
        figure_text(block.title),
        fontsize=(_FONT + 4) * points,
        fontweight="bold",
        va="center",
    )
    left, top = left + _LABEL, top + _TITLE
    for group in block.groups:
        middle = top + TILE + _GAP / 2
        axes.text(
            left - 8,
            middle,
            figure_text(group.label),
            fontsize=_FONT * points,
            rotation=90,
            ha="right",
            va="center",
        )
        if not group.images:
            axes.text(
                left + 8,
                middle,
                "no pair passed the gate",
                fontsize=_FONT * points,
                style="italic",
                va="center",
            )
        else:
            strip = np.full(
                (2 * TILE + _GAP, len(group.images) * (TILE + _GAP) - _GAP, 3), 255, np.uint8
            )  # one artist, not twelve
            for column, (image, mask) in enumerate(zip(group.images, group.masks, strict=True)):
                x = column * (TILE + _GAP)
                strip[:TILE, x : x + TILE], strip[TILE + _GAP :, x : x + TILE] = image, mask
            axes.imshow(
                strip,
                extent=(left, left + strip.shape[1], top + strip.shape[0], top),
                interpolation="none",
            )
        top += 2 * TILE + _GAP + _GROUP_GAP


def _write_pdf(path: Path, pages: list[list[DefectType]], columns: int) -> None:
    from matplotlib.backends.backend_pdf import PdfPages

    with PdfPages(path, metadata={"CreationDate": None}) as document:
        for blocks in pages:
            document.savefig(compose(blocks, columns, _across(blocks, columns)))
