"""Surfaces of the drawn world: metal, wood, stone, cloth, leather, tiles, noise and many more.

A surface is (S, S, 3) float32, about in [0, 1]. Coordinates run from -1 to 1 on both axes, y
downwards; lengths are in these units, so that a surface looks the same at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import fft

Draw = np.random.Generator


class Grid:
    """Pixel centres of a square canvas and the light of one picture.

    x, y: (S, S) float32 in [-1, 1]; light: unit vector (x, y) towards the light.
    """

    def __init__(self, side: int, light: float):
        self.side = side
        self.x, self.y = _coordinates(side)
        self.light = (np.float32(np.cos(light)), np.float32(np.sin(light)))
        self.pixel = 2 / side

    def turned(self, angle: float, dx: float = 0, dy: float = 0) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in a frame at (dx, dy) whose x axis points along `angle`."""
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = self.x - np.float32(dx), self.y - np.float32(dy)
        return c * x + s * y, c * y - s * x


@lru_cache(maxsize=8)
def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
    line = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def between(rng: Draw, low: float, high: float) -> float:
    """A number drawn uniformly on a logarithmic scale."""
    return float(low * (high / low) ** rng.random())


def noise(
    rng: Draw, side: int, scale: float, along: float | None = None, angle: float = 0.0
) -> np.ndarray:
    """(S, S) smooth noise, mean about 0 and deviation about 0.6.

    scale: width of a bump; along: its length in direction `angle`, where it differs.
    """
    across = max(scale, 2.2 / side)
    along = max(along if along is not None else scale, 2.2 / side)
    half = 1.0 if angle == 0 else 1.4143
    columns, rows = int(2 * half / along) + 5, int(2 * half / across) + 5
    lattice = rng.standard_normal((rows, columns), dtype=np.float32)
    picture = Image.fromarray(lattice)
    if angle == 0:
        x, y = rng.uniform(1, 2, 2)
        box = (x, y, x + 2 / along, y + 2 / across)
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box))
    step = 2 / side
    c, s = np.cos(angle) * step, np.sin(angle) * step
    start = -1.0
    a, b = c / along, s / along
    d, e = -s / across, c / across
    ox = columns / 2 + (np.cos(angle) + np.sin(angle)) * start / along
    oy = rows / 2 + (np.cos(angle) - np.sin(angle)) * start / across
    picture = picture.transform(
        (side, side), Image.Transform.AFFINE, (a, b, ox, d, e, oy), Image.Resampling.BICUBIC
    )
    return np.asarray(picture)


@lru_cache(maxsize=8)
def _radius(side: int) -> np.ndarray:
    rows, columns = fft.fftfreq(side), fft.rfftfreq(side)
    radius = np.hypot(rows[:, None], columns) * side
    radius[0, 0] = 1
    return radius.astype(np.float32)


def spectrum(rng: Draw, side: int, power: float, low: float = 0, high: float = np.inf):
    """(S, S) Gaussian noise of unit deviation with amplitude 1 / f^power, frequencies in cycles per
    picture between low and high.
    """
    radius = _radius(side)
    gain = radius**-power
    gain = np.where((radius < low) | (radius > high), 0, gain)
    gain[0, 0] = 0
    field = fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)) * gain
    field = fft.irfft2(field, (side, side)).astype(np.float32)
    return field / (field.std() + 1e-6)


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """1 inside (negative distance), 0 outside, with a ramp of the given width."""
    return np.clip(0.5 - distance / np.float32(width), 0, 1)


def relief(g: Grid, height: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Brightness added by a height map under the light; slopes facing the light are brighter."""
    dy, dx = np.gradient(height)
    slope = (dx * g.light[0] + dy * g.light[1]) * np.float32(g.side / 2)
    return np.clip(-strength * slope, -0.5, 0.5)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float32 RGB in [0, 1]."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


def colour(rng: Draw, kind: str | None = None) -> np.ndarray:
    """(3,) a random colour: grey, metal, earth, pale, dark or vivid (any of them by default)."""
    if kind is None:
        kind = ("grey", "metal", "earth", "pale", "dark", "vivid", "vivid")[rng.integers(7)]
    if kind == "grey":
        return hsv(rng.random(), 0.06 * rng.random(), rng.uniform(0.12, 0.92))
    if kind == "metal":
        return hsv(rng.choice([0.58, 0.1]), rng.uniform(0, 0.12), rng.uniform(0.35, 0.85))
    if kind == "earth":
        return hsv(rng.uniform(0.03, 0.13), rng.uniform(0.15, 0.7), rng.uniform(0.25, 0.9))
    if kind == "pale":
        return hsv(rng.random(), 0.15 * rng.random(), rng.uniform(0.78, 1.0))
    if kind == "dark":
        return hsv(rng.random(), 0.5 * rng.random(), rng.uniform(0.03, 0.25))
    return hsv(rng.random(), rng.uniform(0.3, 0.95), rng.uniform(0.3, 0.95))


def partner(rng: Draw, base: np.ndarray, contrast: float) -> np.ndarray:
    """(3,) a colour near another, darker or brighter by a factor."""
    factor = 1 - contrast if rng.random() < 0.65 else 1 + contrast
    return np.clip(base * factor + 0.05 * contrast * rng.standard_normal(3), 0, 1).astype(
        np.float32
    )


def mix(t: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(S, S, 3) from colour a where t is 0 to colour b where t is 1."""
    return a + np.clip(t, 0, 1)[..., None] * (b - a)


def shaded(rgb: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Multiply a picture or colour by 1 + light, (S, S)."""
    return rgb * (1 + light)[..., None]


def _two(rng: Draw, kind: str | None = None, low: float = 0.06, high: float = 0.7):
    base = colour(rng, kind)
    return base, partner(rng, base, between(rng, low, high))


def brushed(rng: Draw, g: Grid) -> np.ndarray:
    """Metal with fine parallel lines."""
    angle = rng.uniform(0, np.pi) if rng.random() < 0.6 else 0.0
    t = noise(rng, g.side, between(rng, 0.015, 0.05), between(rng, 0.4, 2.5), angle)
    t = t + noise(rng, g.side, between(rng, 0.03, 0.2), between(rng, 0.8, 3), angle)
    rgb = shaded(colour(rng, "metal"), between(rng, 0.03, 0.2) * t)
    u, _ = g.turned(angle)
    return shaded(rgb, rng.uniform(0, 0.25) * np.cos(u * rng.uniform(1, 4) + rng.uniform(0, 6)))


def cast(rng: Draw, g: Grid) -> np.ndarray:
    """Rough cast or blasted metal."""
    height = spectrum(rng, g.side, rng.uniform(0.6, 1.6), 0, rng.uniform(20, 60))
    light = relief(g, height, between(rng, 0.002, 0.012)) + rng.uniform(0, 0.06) * height
    return shaded(colour(rng, rng.choice(["metal", "grey", "dark"])), light)


def painted(rng: Draw, g: Grid) -> np.ndarray:
    """Painted or enamelled sheet, smooth or with orange peel."""
    height = noise(rng, g.side, between(rng, 0.03, 0.15))
    light = relief(g, height, between(rng, 0.0005, 0.004)) + 0.04 * noise(rng, g.side, 0.9)
    return shaded(colour(rng), light)


def plain(rng: Draw, g: Grid) -> np.ndarray:
    """A smooth, uniform surface such as plastic or card."""
    light = between(rng, 0.005, 0.05) * noise(rng, g.side, between(rng, 0.2, 1.2))
    light = light + between(rng, 0.003, 0.03) * noise(rng, g.side, 0.02)
    return shaded(colour(rng), light)


def dull(rng: Draw, g: Grid) -> np.ndarray:
    """A grey sintered or ground surface, mottled and low in contrast."""
    t = spectrum(rng, g.side, rng.uniform(0.7, 1.5)) * between(rng, 0.02, 0.09)
    t = t + between(rng, 0.01, 0.06) * noise(rng, g.side, 0.02)
    if rng.random() < 0.5:
        t = t + between(rng, 0.02, 0.08) * noise(
            rng, g.side, 0.03, between(rng, 0.3, 1.5), rng.uniform(0, np.pi)
        )
    return shaded(colour(rng, "grey"), t)


def wood(rng: Draw, g: Grid) -> np.ndarray:
    """Sawn or veneered wood: rings, pores and sometimes a knot."""
    tilt = rng.uniform(0, np.pi) if rng.random() < 0.5 else rng.choice([0, np.pi / 2])
    u, v = g.turned(tilt)
    bend = rng.uniform(0.02, 0.2) * noise(rng, g.side, 0.7)
    r = v + rng.uniform(-1, 1) * 0.3 * u * u + bend
    if rng.random() < 0.3:
        x, y = rng.uniform(-0.8, 0.8, 2)
        r = r + rng.uniform(0.1, 0.4) * np.exp(-((u - x) ** 2 * 4 + (v - y) ** 2 * 12))
    phase = r * rng.uniform(8, 45)
    t = (phase / 6.28) % 1 if rng.random() < 0.4 else 0.5 + 0.5 * np.sin(phase)
    pores = noise(rng, g.side, 0.02, 0.3, tilt)
    a, b = _two(rng, "earth", 0.08, 0.5)
    return shaded(mix(t, a, b), between(rng, 0.02, 0.12) * pores)


def granite(rng: Draw, g: Grid) -> np.ndarray:
    """Stone or terrazzo of grains in a few colours."""
    rgb = np.broadcast_to(colour(rng), (g.side, g.side, 3))
    size = between(rng, 0.03, 0.2)
    for _ in range(rng.integers(2, 5)):
        t = noise(rng, g.side, size * rng.uniform(0.5, 1.5)) - rng.uniform(0.1, 0.9)
        rgb = rgb + np.clip(t * 6, 0, 1)[..., None] * (colour(rng) - rgb) * rng.uniform(0.2, 1)
    return shaded(rgb, 0.03 * noise(rng, g.side, 0.02))


def marble(rng: Draw, g: Grid) -> np.ndarray:
    """Veins through warped stripes."""
    u, _ = g.turned(rng.uniform(0, np.pi))
    warp = spectrum(rng, g.side, rng.uniform(1.3, 2))
    t = np.abs(np.sin(u * rng.uniform(2, 7) + rng.uniform(0.5, 2) * warp))
    a, b = _two(rng, None, 0.15, 0.8)
    return mix(t ** rng.uniform(0.3, 1.5), b, a)


def weave(rng: Draw, g: Grid) -> np.ndarray:
    """Woven threads: plain weave, basket or twill."""
    wobble = rng.uniform(0, 0.04)
    u, v = g.turned(rng.uniform(-0.3, 0.3) + rng.choice([0, np.pi / 4]), *rng.uniform(-1, 1, 2))
    pitch = between(rng, 0.05, 0.25)
    u = (u + wobble * noise(rng, g.side, 0.4)) / pitch
    v = (v + wobble * noise(rng, g.side, 0.4)) / pitch
    i, j = np.floor(u), np.floor(v)
    k, n = [(1, 2), (1, 3), (1, 4), (2, 2)][rng.integers(4)]
    over = (i * k + j) % n < 1 if k == 1 else (i // 2 + j // 2) % 2 < 1
    a, b = u - i - 0.5, v - j - 0.5
    power = rng.uniform(1.5, 4)
    across = 1 - rng.uniform(0.5, 0.95) * np.abs(2 * np.where(over, a, b)) ** power
    across = across * (1 - 0.25 * np.abs(2 * np.where(over, b, a)) ** 2)
    first, second = _two(rng, None, 0.01, 0.5)
    if rng.random() < 0.25:
        second = colour(rng)
    return shaded(
        mix(over.astype(np.float32), first, second) * across[..., None],
        between(rng, 0.02, 0.15) * noise(rng, g.side, 0.02),
    )


def knit(rng: Draw, g: Grid) -> np.ndarray:
    """Rows of V-shaped stitches."""
    u, v = g.turned(rng.uniform(0, np.pi), *rng.uniform(-1, 1, 2))
    pitch = between(rng, 0.08, 0.3)
    p = u / pitch
    a = np.abs((p % 1) - 0.5)
    q = (v / pitch * rng.uniform(0.9, 1.6) + a * rng.uniform(0.8, 1.6)) % 1
    t = (1 - np.abs(2 * q - 1) ** 2) * (1 - (4 * np.abs(a - 0.25)) ** 3)
    base = colour(rng)
    return (
        base * (rng.uniform(0.15, 0.6) + 0.6 * t)[..., None]
        + 0.04 * noise(rng, g.side, 0.02)[..., None]
    )


def carpet(rng: Draw, g: Grid) -> np.ndarray:
    """Short pile or felt, fine and fuzzy."""
    angle = rng.uniform(0, np.pi)
    t = noise(rng, g.side, between(rng, 0.02, 0.04), between(rng, 0.03, 0.15), angle)
    t = t + 0.5 * noise(rng, g.side, 0.06)
    if rng.random() < 0.5:
        u, v = g.turned(rng.uniform(0, 0.2))
        k = rng.uniform(15, 50)
        t = t + rng.uniform(0.2, 1) * np.sin(k * u) * (np.sin(k * v) if rng.random() < 0.5 else 1)
    return shaded(colour(rng), between(rng, 0.06, 0.3) * t)


def cells(rng: Draw, side: int, count: float, jitter: float = 0.95):
    """Voronoi cells of a jittered lattice with `count` cells per side.

    Returns d1, d2 (distance to the nearest and the second point, in cells) and the nearest's
    random number in [0, 1), (S, S) each.
    """
    n = int(count) + 4
    px, py, shade = rng.random((3, n, n), dtype=np.float32)
    px, py = 0.5 + jitter * (px - 0.5), 0.5 + jitter * (py - 0.5)
    line = (np.arange(side, dtype=np.float32) + 0.5) / side * count + 1.5
    home = line.astype(int)
    inner = line - home
    d1 = np.full((side, side), 9, np.float32)
    d2, number = d1.copy(), np.zeros((side, side), np.float32)
    for dy in (-1, 0, 1):
        rows = home + dy
        for dx in (-1, 0, 1):
            at = np.ix_(rows, home + dx)
            d = (px[at] + (dx - inner)) ** 2 + (py[at] + (dy - inner)[:, None]) ** 2
            near = d < d1
            d2 = np.where(near, d1, np.minimum(d2, d))
            number = np.where(near, shade[at], number)
            d1 = np.where(near, d, d1)
    return np.sqrt(d1), np.sqrt(d2), number


def leather(rng: Draw, g: Grid) -> np.ndarray:
    """Grain of small pillows between creases."""
    d1, d2, number = cells(rng, g.side, rng.uniform(8, 26))
    height = np.clip((d2 - d1) * rng.uniform(1.5, 4), 0, 1)
    light = relief(g, height, between(rng, 0.01, 0.04)) + 0.1 * (number - 0.5) * rng.random()
    light = light - rng.uniform(0.05, 0.5) * (1 - height)
    return shaded(colour(rng, rng.choice(["earth", "dark", "vivid", "pale"])), light)


def cellular(rng: Draw, g: Grid) -> np.ndarray:
    """Cells, pebbles, crackle glaze or a mosaic."""
    d1, d2, number = cells(rng, g.side, between(rng, 3, 18), rng.uniform(0.4, 1))
    edge = np.clip((d2 - d1) / rng.uniform(0.05, 0.5), 0, 1)
    a, b = _two(rng, None, 0.05, 0.8)
    rgb = mix(number, a, b)
    if rng.random() < 0.4:
        rgb = shaded(rgb, -0.8 * d1 * rng.random())
    return rgb + (1 - edge)[..., None] * (colour(rng) - rgb) * rng.uniform(0.3, 1)


def tiles(rng: Draw, g: Grid) -> np.ndarray:
    """Bricks, square tiles or hexagon-like pavers with joints."""
    u, v = g.turned(rng.uniform(-0.2, 0.2) if rng.random() < 0.5 else 0, *rng.uniform(-1, 1, 2))
    height = between(rng, 0.15, 0.9)
    width = height * rng.choice([1, 1, 2, 3])
    row = np.floor(v / height)
    p = u / width + rng.choice([0, 0.5, 0.33]) * (row % 2)
    column = np.floor(p)
    a, b = (p - column - 0.5) * width, (v / height - row - 0.5) * height
    d = np.maximum(np.abs(a) - width / 2, np.abs(b) - height / 2)
    joint = soft(-d - rng.uniform(0.015, 0.05), 0.03)
    number = np.sin(row * 12.9898 + column * 78.233) * 43758.5453
    number = number - np.floor(number)
    base, other = _two(rng, None, 0.03, 0.4)
    rgb = shaded(mix(number, base, other), 0.1 * noise(rng, g.side, 0.1) * rng.random())
    bevel = np.exp(d * 18)
    tone = np.where(
        np.abs(a) / width > np.abs(b) / height, np.sign(a) * g.light[0], np.sign(b) * g.light[1]
    )
    rgb = shaded(rgb, rng.uniform(0, 0.5) * bevel * tone)
    return rgb + joint[..., None] * (colour(rng, "grey") - rgb)


def concrete(rng: Draw, g: Grid) -> np.ndarray:
    """Concrete, plaster or paper: cloudy, with a few pores."""
    t = spectrum(rng, g.side, rng.uniform(1, 2)) * between(rng, 0.02, 0.12)
    pores = np.clip(noise(rng, g.side, between(rng, 0.02, 0.06)) - rng.uniform(1.2, 1.8), 0, 1)
    light = t - rng.uniform(0, 1.5) * pores + 0.03 * noise(rng, g.side, 0.02)
    return shaded(colour(rng, rng.choice(["grey", "pale", "earth"])), light)


def clouds(rng: Draw, g: Grid) -> np.ndarray:
    """Noise with any spectrum between two colours."""
    t = spectrum(rng, g.side, rng.uniform(0, 2.2), 0, between(rng, 6, 80))
    a, b = _two(rng)
    return mix(0.5 + 0.3 * t, a, b)


def coral(rng: Draw, g: Grid) -> np.ndarray:
    """Labyrinths and spots as reaction and diffusion leave them."""
    f = between(rng, 3, 16)
    t = spectrum(rng, g.side, 0, f, f * rng.uniform(1.2, 1.8)) + rng.uniform(-0.8, 0.8)
    a, b = _two(rng, None, 0.1, 0.9)
    rgb = mix(0.5 + t * rng.uniform(0.8, 6), a, b)
    return shaded(rgb, relief(g, np.clip(t, -1, 1), rng.uniform(0, 0.02)))


def stripes(rng: Draw, g: Grid) -> np.ndarray:
    """Stripes, ribs or corrugation, straight or wavy."""
    u, v = g.turned(rng.uniform(0, np.pi))
    k = between(rng, 5, 50)
    wave = np.sin(k * (u + rng.choice([0, 0.05, 0.15]) * np.sin(rng.uniform(1, 9) * v)))
    if rng.random() < 0.5:
        return shaded(colour(rng), rng.uniform(0.05, 0.5) * wave + 0.02 * noise(rng, g.side, 0.03))
    a, b = _two(rng, None, 0.1, 0.9)
    return mix(0.5 + wave * rng.uniform(0.5, 6), a, colour(rng) if rng.random() < 0.3 else b)


def perforated(rng: Draw, g: Grid) -> np.ndarray:
    """A lattice of holes, studs or dots, square or staggered."""
    u, v = g.turned(rng.choice([0, np.pi / 4, rng.uniform(0, np.pi)]), *rng.uniform(-1, 1, 2))
    pitch = between(rng, 0.12, 0.5)
    row = np.floor(v / pitch)
    a = (u / pitch + 0.5 * (row % 2) * rng.integers(2)) % 1 - 0.5
    b = v / pitch - row - 0.5
    p = rng.choice([1, 2, 2, 2, 6])
    r = (np.abs(a) ** p + np.abs(b) ** p) ** (1 / p) * pitch
    radius = pitch * rng.uniform(0.15, 0.42)
    inside = soft(r - radius, 2 * g.pixel)
    rgb = SURFACES[rng.choice(["brushed", "painted", "plain", "cast"])](rng, g)
    ring = np.exp(-(((r - radius) / (0.08 * pitch)) ** 2))
    tone = (a * g.light[0] + b * g.light[1]) * pitch / radius
    rgb = shaded(rgb, rng.uniform(0, 0.6) * ring * tone)
    if rng.random() < 0.3:
        return shaded(rgb, 0.5 * tone * inside)
    return rgb + inside[..., None] * (colour(rng, rng.choice(["dark", "grey", "pale"])) - rgb)


def mesh(rng: Draw, g: Grid) -> np.ndarray:
    """Wire mesh or grid over a ground."""
    u, v = g.turned(rng.uniform(-0.1, 0.1) + rng.choice([0, np.pi / 4]), *rng.uniform(-1, 1, 2))
    pitch = between(rng, 0.12, 0.5)
    width = pitch * rng.uniform(0.1, 0.3)
    a, b = ((w / pitch) % 1 - 0.5 for w in (u, v))
    rgb = plain(rng, g)
    tint = colour(rng, "metal")
    for part in (a, b):
        d = np.abs(part) * pitch - width / 2
        wire = soft(d, 2 * g.pixel)[..., None]
        round_ = np.sqrt(np.clip(1 - (part * pitch * 2 / width) ** 2, 0.1, 1))[..., None]
        rgb = rgb * (1 - wire) + wire * tint * (0.3 + 0.8 * round_)
    return rgb


def circuit(rng: Draw, g: Grid) -> np.ndarray:
    """Printed circuit: pads, vias, tracks and chips."""
    board = colour(rng, "vivid" if rng.random() < 0.7 else "dark") * 0.7
    copper = np.clip(board * 1.5 + 0.05, 0, 1) if rng.random() < 0.6 else colour(rng, "earth")
    n = int(rng.integers(8, 20))
    lattice = (rng.random((n + 1, n + 1)) < rng.uniform(0.2, 0.5)).astype(np.float32)
    big = np.asarray(Image.fromarray(lattice).resize((g.side, g.side), Image.Resampling.NEAREST))
    p = ((g.x + 1) / 2 * (n + 1)) % 1 - 0.5
    q = ((g.y + 1) / 2 * (n + 1)) % 1 - 0.5
    axis = rng.random((n + 1, n + 1)) < 0.5
    axis = np.asarray(
        Image.fromarray(axis.astype(np.float32)).resize((g.side, g.side), Image.Resampling.NEAREST)
    )
    t = big * (np.where(axis > 0.5, np.abs(p), np.abs(q)) < 0.2)
    rgb = mix(t, board, copper)
    pad = soft(np.hypot(p, q) - 0.35, 0.1) * (1 - big)
    rgb = rgb + pad[..., None] * (colour(rng, "metal") - rgb) * rng.uniform(0.3, 1)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(-0.9, 0.9, 2)
        w, h = rng.uniform(0.06, 0.4, 2)
        box = np.maximum(np.abs(g.x - x) - w, np.abs(g.y - y) - h)
        legs = (soft(box - 0.06, 0.02) * (np.sin((g.x + g.y) * 60) > 0))[..., None]
        rgb = rgb + legs * (0.75 - rgb)
        chip = soft(box, 0.02)[..., None]
        rgb = rgb * (1 - chip) + chip * colour(rng, "dark")
    return shaded(rgb, 0.03 * noise(rng, g.side, 0.03))


def tread(rng: Draw, g: Grid) -> np.ndarray:
    """Checker plate or rubber tread with raised bars."""
    u, v = g.turned(rng.uniform(0, np.pi), *rng.uniform(-1, 1, 2))
    pitch = between(rng, 0.15, 0.5)
    i, j = np.floor(u / pitch), np.floor(v / pitch)
    a, b = u / pitch - i - 0.5, v / pitch - j - 0.5
    flip = (i + j) % 2 < 1
    p, q = np.where(flip, a + b, a - b) * 0.7, np.where(flip, a - b, a + b) * 0.7
    d = (p / 0.4) ** 2 + (q / rng.uniform(0.1, 0.2)) ** 2
    height = np.exp(-(d**2))
    light = relief(g, height, 0.1 * pitch) + rng.uniform(-0.1, 0.2) * height
    return shaded(colour(rng, rng.choice(["metal", "dark", "grey"])), light)


def sponge(rng: Draw, g: Grid) -> np.ndarray:
    """Foam, bread or porous rock: pits of many sizes."""
    t = spectrum(rng, g.side, rng.uniform(0.4, 1.2), 0, rng.uniform(15, 50))
    pit = np.clip((t - rng.uniform(0.3, 1.3)) * 2, 0, 1)
    light = relief(g, -pit, 0.03) - rng.uniform(0.2, 0.8) * pit + 0.05 * t
    return shaded(colour(rng), light)


def turned(rng: Draw, g: Grid) -> np.ndarray:
    """Turned metal: fine circles around a point and a fan of light."""
    x, y = rng.uniform(-0.7, 0.7, 2) * rng.integers(0, 3)
    r = np.hypot(g.x - x, g.y - y)
    lines = np.interp(r, np.linspace(0, 4, 400), rng.standard_normal(400)).astype(np.float32)
    fan = np.cos(2 * np.arctan2(g.y - y, g.x - x) + rng.uniform(0, 6))
    light = between(rng, 0.02, 0.12) * lines + rng.uniform(0.05, 0.3) * fan * soft(0.05 - r, 0.1)
    return shaded(colour(rng, "metal"), light)


def fibres(rng: Draw, g: Grid) -> np.ndarray:
    """Fleece, chipboard or composite: strokes in several directions."""
    t = 0
    for _ in range(rng.integers(2, 5)):
        angle = rng.uniform(0, np.pi)
        t = np.maximum(
            t, noise(rng, g.side, between(rng, 0.02, 0.06), between(rng, 0.2, 0.7), angle)
        )
    a, b = _two(rng, None, 0.1, 0.7)
    return mix(t * rng.uniform(0.3, 0.9), a, b)


def glass(rng: Draw, g: Grid) -> np.ndarray:
    """Glossy glass or lacquer: a gradient and soft reflections."""
    u, v = g.turned(rng.uniform(0, 6.28))
    a, b = _two(rng, None, 0.1, 0.6)
    rgb = mix(0.5 + 0.5 * u, a, b)
    for _ in range(rng.integers(1, 4)):
        at, width = rng.uniform(-1, 1), between(rng, 0.03, 0.4)
        band = np.exp(-(((u + 0.3 * v - at) / width) ** 2))
        rgb = rgb + (rng.uniform(0.05, 0.4) * band)[..., None]
    return rgb


def printed(rng: Draw, g: Grid) -> np.ndarray:
    """Paper or label with bars, dots or blocks in ink."""
    rgb = np.broadcast_to(colour(rng, rng.choice(["pale", "grey", "vivid"])), (g.side, g.side, 3))
    n, m = rng.integers(3, 14), rng.integers(3, 14)
    blocks = (rng.random((n, m)) < rng.uniform(0.15, 0.6)).astype(np.float32)
    t = np.asarray(Image.fromarray(blocks).resize((g.side, g.side), Image.Resampling.NEAREST))
    if rng.random() < 0.5:
        p = ((g.x + 1) / 2 * m) % 1 - 0.5
        q = ((g.y + 1) / 2 * n) % 1 - 0.5
        t = t * (np.maximum(np.abs(p), np.abs(q)) < rng.uniform(0.25, 0.5))
    rgb = rgb + t[..., None] * (colour(rng) - rgb) * rng.uniform(0.3, 1)
    return shaded(rgb, 0.02 * noise(rng, g.side, 0.03))


SURFACES: dict[str, Callable[[Draw, Grid], np.ndarray]] = {
    "brushed": brushed,
    "cast": cast,
    "painted": painted,
    "plain": plain,
    "dull": dull,
    "wood": wood,
    "granite": granite,
    "marble": marble,
    "weave": weave,
    "knit": knit,
    "carpet": carpet,
    "leather": leather,
    "cellular": cellular,
    "tiles": tiles,
    "concrete": concrete,
    "clouds": clouds,
    "coral": coral,
    "stripes": stripes,
    "perforated": perforated,
    "mesh": mesh,
    "circuit": circuit,
    "tread": tread,
    "sponge": sponge,
    "turned": turned,
    "fibres": fibres,
    "glass": glass,
    "printed": printed,
}

SURFACE_WORDS: dict[str, tuple[str, ...]] = {
    "brushed": ("brushed metal", "steel sheet", "ground metal"),
    "cast": ("cast metal", "cast iron", "blasted metal"),
    "painted": ("painted metal", "enamelled sheet", "painted surface"),
    "plain": ("plastic", "card", "smooth surface"),
    "dull": ("sintered part", "ground surface", "ceramic"),
    "wood": ("wood", "veneer", "wooden board"),
    "granite": ("granite", "terrazzo", "stone"),
    "marble": ("marble", "stone slab"),
    "weave": ("woven fabric", "cloth", "textile"),
    "knit": ("knitted fabric", "knit"),
    "carpet": ("carpet", "felt", "rug"),
    "leather": ("leather", "hide"),
    "cellular": ("mosaic", "pebbles", "crackle glaze"),
    "tiles": ("tiles", "bricks", "tiled wall"),
    "concrete": ("concrete", "plaster", "paper"),
    "clouds": ("mottled surface", "noise"),
    "coral": ("patterned surface", "labyrinth pattern"),
    "stripes": ("striped surface", "ribbed sheet", "corrugated sheet"),
    "perforated": ("perforated sheet", "dotted sheet", "studded rubber"),
    "mesh": ("wire mesh", "grid"),
    "circuit": ("circuit board", "printed circuit"),
    "tread": ("checker plate", "rubber tread"),
    "sponge": ("foam", "sponge", "porous rock"),
    "turned": ("turned metal", "machined face"),
    "fibres": ("fibre mat", "chipboard", "fleece"),
    "glass": ("glass", "lacquer"),
    "printed": ("printed paper", "label"),
}


def surface(rng: Draw, g: Grid, kind: str | None = None) -> tuple[np.ndarray, str]:
    """A random surface (S, S, 3) and its kind."""
    kind = kind or KINDS[rng.integers(len(KINDS))]
    return np.clip(SURFACES[kind](rng, g), 0, 1.2).astype(np.float32, copy=False), kind


KINDS = tuple(SURFACES)
