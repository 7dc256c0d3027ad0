"""Raw masks: the K x K cells that hold anomaly (paper III-B), and the reference picture they cut
out (reading 8).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from PIL import Image

BLANK = 128
"""Mid-grey of what a reference does not show: 0 in [-1, 1]."""


def cell_edges(side: int, k: int) -> list[int]:
    """The k + 1 pixel edges of the cells of a side: i * side / k, rounded.

    Every pixel lies in exactly one cell, so that cells -> mask -> cells is the identity; and the
    edges are symmetric (up to exact halves), so that a flipped mask has the flipped cells.
    """
    return [(2 * i * side + k) // (2 * k) for i in range(k + 1)]


def raw_mask_cells(mask: np.ndarray, k: int) -> tuple[int, ...]:
    """Row-major numbers of the k x k cells of a (H, W) mask that hold any anomaly pixel."""
    rows, columns = cell_edges(mask.shape[0], k), cell_edges(mask.shape[1], k)
    return tuple(
        i * k + j
        for i in range(k)
        for j in range(k)
        if np.any(mask[rows[i] : rows[i + 1], columns[j] : columns[j + 1]])
    )


def cells_to_mask(k: int, cells: Iterable[int], size: int | tuple[int, int]) -> np.ndarray:
    """(H, W) bool, True inside the given cells; size: side or (H, W)."""
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = cell_edges(height, k), cell_edges(width, k)
    mask = np.zeros((height, width), bool)
    for cell in cells:
        i, j = divmod(cell, k)
        mask[rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = True
    return mask


def reference_crop(
    image: np.ndarray, cells: np.ndarray, mode: Literal["cells", "tight", "background"]
) -> np.ndarray:
    """Reference picture of reading 8, shaped like `image`, (H, W, 3) uint8.

    cells: (H, W) bool, True inside the raw mask. Mode `cells` keeps them in place and blanks the
    rest to mid-grey, `background` keeps the rest, `tight` resizes their bounding box to the whole
    picture. Without any cell, `cells` and `tight` are blank.
    """
    if mode == "background":
        return np.where(cells[..., None], np.uint8(BLANK), image)
    if mode == "cells" or not cells.any():
        return np.where(cells[..., None], image, np.uint8(BLANK))
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    height, width = image.shape[:2]
    return np.asarray(
        Image.fromarray(image).crop(box).resize((width, height), Image.Resampling.LANCZOS)
    )
