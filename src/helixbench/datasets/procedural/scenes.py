"""Defect-free objects and surfaces of the procedural data set, painted on a supersampled canvas.

Coordinates run from -1 to 1 on both axes, y downwards; lengths are in these units, so that a scene
looks the same at any size. Light comes from the upper left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

LIGHT = np.array([-0.6, -0.8])
"""Direction towards the light, (x, y)."""


@dataclass(frozen=True)
class Scene:
    """What lies in front of the camera, before light and noise.

    rgb, background: (S, S, 3) in [0, 1]; alpha: (S, S) in [0, 1], the object's coverage (1
    everywhere for a surface); x, y: (S, S) coordinates.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    background: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @property
    def unit(self) -> float:
        """Canvas pixels in one unit of length."""
        return len(self.alpha) / 2


def canvas(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y of the pixel centres, (side, side) each."""
    line = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    return np.meshgrid(line, line)


def smooth(rng: np.random.Generator, side: int, scale: float | tuple[float, float]) -> np.ndarray:
    """(side, side) Gaussian noise of unit variance with the given correlation length (or (y, x)
    lengths), periodic.
    """
    sigma = np.maximum(np.broadcast_to(np.asarray(scale, float), 2) * side / 2, 0.4)
    decay = [
        np.exp(-2 * (np.pi * s * f) ** 2)
        for s, f in zip(sigma, (fft.fftfreq(side), fft.rfftfreq(side)), strict=True)
    ]
    noise = fft.rfft2(rng.standard_normal((side, side))) * decay[0][:, None] * decay[1]
    noise = fft.irfft2(noise, (side, side)).astype(np.float32)
    return noise / noise.std()


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Soft step: 1 where a signed distance is negative (inside), 0 outside, over `width`."""
    t = np.clip(0.5 - distance / width, 0, 1)
    return t * t * (3 - 2 * t)


def _turn(
    x: np.ndarray, y: np.ndarray, angle: float, dx: float = 0, dy: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.cos(angle), np.sin(angle)
    return c * (x - dx) + s * (y - dy), -s * (x - dx) + c * (y - dy)


def _tint(
    rng: np.random.Generator, colour: tuple[float, float, float], spread: float = 0.03
) -> np.ndarray:
    return (np.array(colour) * (1 + spread * rng.uniform(-1, 1, 3))).astype(np.float32)


def _plain(rng: np.random.Generator, side: int, colour: tuple[float, float, float]) -> np.ndarray:
    return _tint(rng, colour, 0.015) * (1 + 0.012 * smooth(rng, side, 0.3))[..., None]


def disc(rng: np.random.Generator, side: int) -> Scene:
    """A turned steel washer with a groove, seen from above on a bright table."""
    x, y = canvas(side)
    u, v = _turn(x, y, rng.uniform(-np.pi, np.pi), *rng.uniform(-0.05, 0.05, 2))
    r = np.hypot(u, v)
    outer, inner = rng.uniform(0.73, 0.78), rng.uniform(0.29, 0.32)
    rings = gaussian_filter1d(rng.standard_normal(1024), 5)
    turned = np.interp(r, np.linspace(0, 1.5, 1024), rings / rings.std())
    glint = (
        np.abs(np.cos(np.arctan2(y, x) - 0.9)) ** 6
    )  # the bow tie that turned metal shows under one lamp
    grey = 0.42 + 0.3 * glint + 0.025 * turned + 0.012 * smooth(rng, side, 0.01)
    facing = (x * LIGHT[0] + y * LIGHT[1]) / np.maximum(r, 1e-3)
    bevel = np.exp(-(((outer - r) / 0.035) ** 2)) - np.exp(-(((r - inner) / 0.03) ** 2))
    groove = np.exp(-(((r - 0.55 * outer - 0.45 * inner) / 0.02) ** 2))
    grey = grey + 0.3 * bevel * facing - 0.2 * groove
    for k in range(3):  # three countersunk marks make the rotation visible
        mark = np.hypot(u - 0.64 * np.cos(2.1 * k), v - 0.64 * np.sin(2.1 * k))
        grey = grey * (1 - 0.55 * edge(mark - 0.042, 0.02))
    alpha = edge(r - outer, 0.012) * edge(inner - r, 0.012)
    rgb = grey[..., None] * _tint(rng, (0.97, 1.0, 1.04), 0.01)
    return Scene(rgb, alpha, _plain(rng, side, (0.9, 0.9, 0.88)), x, y)


def capsule(rng: np.random.Generator, side: int) -> Scene:
    """A two-coloured capsule with a printed mark on a grey-blue tray."""
    x, y = canvas(side)
    u, v = _turn(x, y, rng.uniform(-0.25, 0.25) - 0.35, *rng.uniform(-0.06, 0.06, 2))
    half, radius = 0.46, rng.uniform(0.31, 0.33)
    cap = 1 + 0.06 * edge(u - 0.08, 0.015)  # the cap is pushed over the body
    distance = np.hypot(np.maximum(np.abs(u) - half, 0), v) - radius * cap
    across = np.clip(np.hypot(np.maximum(np.abs(u) - half, 0), v) / (radius * cap), 0, 1)
    left = edge(u - 0.08, 0.012)[..., None]
    rgb = left * _tint(rng, (0.86, 0.33, 0.13)) + (1 - left) * _tint(rng, (0.93, 0.88, 0.74))
    rgb = rgb * (0.42 + 0.62 * np.sqrt(1 - 0.92 * across**2))[..., None]
    seam = np.exp(-(((u - 0.1) / 0.018) ** 2))
    bars = sum(
        edge(np.maximum(np.abs(u - at) - 0.025, np.abs(v) - 0.1), 0.02) for at in (0.24, 0.33, 0.42)
    )
    rgb = rgb * (1 - 0.45 * seam - 0.6 * bars * (1 - left[..., 0]))[..., None]
    lit = x * LIGHT[0] + y * LIGHT[1]
    gloss = np.exp(-(((v + 0.42 * radius) / 0.045) ** 2)) * edge(np.abs(u) - half - 0.02, 0.12)
    rgb = rgb + (0.33 * gloss + 0.05 * lit + 0.008 * smooth(rng, side, 0.02))[..., None]
    return Scene(rgb, edge(distance, 0.012), _plain(rng, side, (0.46, 0.53, 0.58)), x, y)


def plate(rng: np.random.Generator, side: int) -> Scene:
    """Brushed steel with four rivets."""
    x, y = canvas(side)
    tilt, big = rng.uniform(-0.06, 0.06), int(side * 1.2)
    brushed = smooth(rng, big, (0.006, 0.5)) + 0.6 * smooth(rng, big, (0.02, 0.8))
    u, v = _turn(x, y, tilt)
    brushed = map_coordinates(
        brushed, [(w + 1.1) * big / 2.2 for w in (v, u)], order=1, mode="nearest"
    )
    grey = 0.57 + 0.035 * brushed + 0.09 * np.sin(2.2 * y + rng.uniform(-0.5, 0.5))
    dx, dy = rng.uniform(-0.04, 0.04, 2)
    for cx in (-0.74, 0.74):
        for cy in (-0.74, 0.74):
            a, b = u - cx - dx, v - cy - dy
            r = np.hypot(a, b)
            dome = (a * LIGHT[0] + b * LIGHT[1]) / 0.11
            grey = grey * (1 - 0.45 * np.exp(-(((r - 0.12) / 0.02) ** 2)))
            inside = edge(r - 0.11, 0.02)
            grey = grey * (1 - inside) + inside * (0.58 + 0.26 * dome)
    rgb = grey[..., None] * _tint(rng, (0.95, 1.0, 1.06), 0.015)
    return Scene(rgb, np.ones_like(x), np.zeros_like(rgb), x, y)


def weave(rng: np.random.Generator, side: int) -> Scene:
    """Plain weave of blue warp and sand-coloured weft."""
    x, y = canvas(side)
    u, v = _turn(x, y, rng.uniform(-0.12, 0.12), *rng.uniform(-0.2, 0.2, 2))
    wobble = 0.012
    u, v = u + wobble * smooth(rng, side, 0.15), v + wobble * smooth(rng, side, 0.15)
    pitch = 0.19
    p, q = u / pitch + 50, v / pitch + 50
    i, j = np.floor(p).astype(int), np.floor(q).astype(int)
    a, b = p - i - 0.5, q - j - 0.5  # in [-0.5, 0.5] across warp and across weft
    over = (i + j) % 2 == 0
    shade = lambda across, along: (
        np.cos(np.pi * across) ** 0.6 * (0.72 + 0.28 * np.cos(2 * np.pi * along * 0.5) ** 2)
    )
    factors = 1 + 0.07 * rng.standard_normal((2, 128))
    fibre = 0.05 * smooth(rng, side, 0.008)
    warp = (shade(a, b) * (factors[0][i % 128] + fibre))[..., None] * _tint(rng, (0.22, 0.34, 0.56))
    weft = (shade(b, a) * (factors[1][j % 128] + fibre))[..., None] * _tint(rng, (0.84, 0.76, 0.6))
    rgb = 0.06 + 0.92 * np.where(over[..., None], warp, weft)
    return Scene(rgb.astype(np.float32), np.ones_like(x), np.zeros_like(rgb), x, y)


def tile(rng: np.random.Generator, side: int) -> Scene:
    """Polished stone with dark, white and rust-coloured grains."""
    x, y = canvas(side)
    rgb = (
        _tint(rng, (0.7, 0.68, 0.64), 0.015)
        * (1 + 0.03 * smooth(rng, side, 0.15) + 0.03 * smooth(rng, side, 0.012))[..., None]
    )
    for colour, scale, level in (
        ((0.8, 0.79, 0.77), 0.05, 0.9),
        ((0.55, 0.47, 0.41), 0.035, 1.35),
        ((0.36, 0.36, 0.37), 0.028, 1.5),
    ):
        grain = edge(level - smooth(rng, side, scale), 0.25)[..., None]
        rgb = rgb * (1 - grain) + grain * _tint(rng, colour, 0.02)
    return Scene(rgb, np.ones_like(x), np.zeros_like(rgb), x, y)


PAINTERS: dict[str, Callable[[np.random.Generator, int], Scene]] = {
    "disc": disc,
    "capsule": capsule,
    "plate": plate,
    "weave": weave,
    "tile": tile,
}


def expose(scene: Scene, rng: np.random.Generator, factor: int) -> np.ndarray:
    """Photograph of a scene: shadow of the object, uneven light, averaging to 1/factor of the
    canvas, sensor noise.

    Returns (S / factor, S / factor, 3) uint8. The same rng state gives the same light and noise.
    """
    shift = int(round(0.035 * scene.unit))
    alpha = scene.alpha[..., None]
    if scene.alpha.min() < 1:
        shadow = np.roll(
            gaussian_filter(scene.alpha, 0.05 * scene.unit, mode="constant"), (shift, shift), (0, 1)
        )
        rgb = alpha * scene.rgb + (1 - alpha) * scene.background * (1 - 0.3 * shadow[..., None])
    else:
        rgb = scene.rgb
    tilt = rng.uniform(-0.07, 0.07, 2)
    light = rng.uniform(0.95, 1.05) * (
        1 + tilt[0] * scene.x + tilt[1] * scene.y - 0.06 * (scene.x**2 + scene.y**2)
    )
    rgb = rgb * light[..., None]
    side = len(rgb) // factor
    rgb = rgb.reshape(side, factor, side, factor, 3).mean(axis=(1, 3))
    rgb = rgb + 0.008 * rng.standard_normal(rgb.shape)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
