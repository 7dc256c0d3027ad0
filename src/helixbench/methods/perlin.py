"""Masks of Perlin noise, as DRAEM draws them."""

from __future__ import annotations

import numpy as np

from helixbench.methods.synthetic import Draws, turned


def perlin(size: tuple[int, int], cells: tuple[int, int], rng: Draws) -> np.ndarray:
    """Perlin noise (H, W), about in [-1, 1], of unit gradients on a grid of `cells`; any size, not
    only powers of two.
    """
    angles = (
        2
        * np.pi
        * np.array([[rng.uniform(0, 1) for _ in range(cells[1] + 1)] for _ in range(cells[0] + 1)])
    )
    y = np.arange(size[0])[:, None] * cells[0] / size[0]
    x = np.arange(size[1])[None] * cells[1] / size[1]
    row, column = y.astype(int), x.astype(int)
    y, x = y - row, x - column

    def corner(down: int, right: int) -> np.ndarray:
        angle = angles[row + down, column + right]
        return np.cos(angle) * (x - right) + np.sin(angle) * (y - down)

    def fade(t: np.ndarray) -> np.ndarray:
        return t**3 * (t * (6 * t - 15) + 10)

    top = corner(0, 0) + fade(x) * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + fade(x) * (corner(1, 1) - corner(1, 0))
    return np.sqrt(2) * (top + fade(y) * (bottom - top))


def perlin_mask(
    size: tuple[int, int], max_scale: int, threshold: float, max_rotation: float, rng: Draws
) -> np.ndarray:
    """Mask (H, W) bool: rotated Perlin noise of 2^0 ... 2^max_scale cells a side above the
    threshold.
    """
    cells = (2 ** rng.integer(max_scale + 1), 2 ** rng.integer(max_scale + 1))
    noise = perlin(size, (min(cells[0], size[0]), min(cells[1], size[1])), rng)
    return turned(noise, rng.uniform(-max_rotation, max_rotation), mode="constant") > threshold
