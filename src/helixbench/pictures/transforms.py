"""Symmetries and shifts of pictures, cleaning of masks, and pictures as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from scipy import ndimage

MIN_COMPONENT = 10
"""Pixels below which a connected piece of a generated mask is noise (reading 10)."""


def symmetries(allowed: Sequence[str]) -> list[str]:
    """All combinations of the allowed generators, e.g. ('hflip', 'rot90') -> ['', 'hflip', 'rot90',
    'hflip+rot90'].
    """
    choices = [("", name) for name in ("hflip", "vflip", "rot90") if name in allowed]
    return (
        ["+".join(filter(None, combination)) for combination in product(*choices)]
        if choices
        else [""]
    )


def transform(array: np.ndarray, symmetry: str) -> np.ndarray:
    """Apply 'hflip+vflip+rot90' (any subset) to (H, W, ...) pictures."""
    for name in filter(None, symmetry.split("+")):
        array = {"hflip": lambda a: a[:, ::-1], "vflip": lambda a: a[::-1], "rot90": np.rot90}[
            name
        ](array)
    return np.ascontiguousarray(array)


def shift(array: np.ndarray, dy: int, dx: int, fill: int = 0) -> np.ndarray:
    """Move (H, W, ...) by whole pixels; what leaves is lost, what enters is `fill`."""
    out = np.full_like(array, fill)
    height, width = array.shape[:2]
    source = array[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
    out[max(0, dy) : max(0, dy) + source.shape[0], max(0, dx) : max(0, dx) + source.shape[1]] = (
        source
    )
    return out


def to_tensor(pictures: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """uint8 (n, H, W, 3) or bool (n, H, W) -> float (n, 3 or 1, H, W) in [0, 1]."""
    array = np.stack(list(pictures))
    if array.ndim == 3:
        return torch.from_numpy(array)[:, None].float()
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Drop connected pieces of fewer than MIN_COMPONENT pixels from a (H, W) bool mask."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return sizes[labels] >= MIN_COMPONENT
