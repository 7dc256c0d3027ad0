"""Objects of the drawn world: parts, packages and natural things in front of a background.

An object is its signed distance (about; negative inside), (S, S), and its colours, (S, S, 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from helixbench.datasets.world.textures import (
    Draw,
    Grid,
    between,
    cells,
    colour,
    mix,
    noise,
    shaded,
    soft,
    surface,
)

Part = tuple[np.ndarray, np.ndarray]
_MATTER = (
    *("plain", "plain", "painted", "painted", "brushed", "cast", "dull", "glass", "turned"),
    *("concrete", "wood", "leather", "carpet", "clouds", "granite"),
)


@dataclass
class Scene:
    """What lies in front of the camera, before light and noise.

    rgb, background: (S, S, 3) float32 in [0, 1]; alpha: (S, S) the object's coverage in [0, 1], 1
    everywhere for a surface.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    background: np.ndarray
    grid: Grid


def matter(rng: Draw, g: Grid, base: np.ndarray | None = None) -> np.ndarray:
    """A material that parts are made of, (S, S, 3), in a given mean colour if there is one."""
    kind = None if rng.random() < 0.08 else str(rng.choice(_MATTER))
    rgb, _ = surface(rng, g, kind)
    if base is not None:
        rgb = base * (rgb.mean(axis=2) / (rgb.mean() + 0.02))[..., None]
    return rgb


def rim(g: Grid, d: np.ndarray, width: float) -> np.ndarray:
    """Light on a rounded edge of the given width inside an outline; 0 on the flat top."""
    dy, dx = np.gradient(d)
    slope = (dx * g.light[0] + dy * g.light[1]) / g.pixel
    return np.clip(slope, -1, 1) * np.clip(1 + d / np.float32(width), 0, 1)


def box(u: np.ndarray, v: np.ndarray, w: float, h: float, corner: float = 0) -> np.ndarray:
    """Distance to a rectangle of half sides w and h with rounded corners."""
    a, b = np.abs(u) - (w - corner), np.abs(v) - (h - corner)
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - corner


def regular(u: np.ndarray, v: np.ndarray, sides: int, radius: float) -> np.ndarray:
    """Distance to a regular polygon, radius measured to the middle of a side."""
    step = 2 * np.pi / sides
    angle = np.arctan2(v, u)
    return np.hypot(u, v) * np.cos((angle + step / 2) % step - step / 2) - radius


def outline(rng: Draw, u: np.ndarray, v: np.ndarray, radius: float, rough: float, most: int = 8):
    """Distance (about) to a wavy closed outline."""
    angle, wave = np.arctan2(v, u), 0
    for k in range(2, most):
        wave = wave + rough / k * rng.uniform(-1, 1) * np.cos(k * angle + rng.uniform(0, 6.3))
    return np.hypot(u, v) - radius * (1 + wave)


def _frame(rng: Draw, g: Grid, reach: float = 0.1):
    """Coordinates turned and shifted at random, and a size between half and full."""
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.normal(0, 0.1)
    u, v = g.turned(angle, *rng.uniform(-reach, reach, 2))
    return u, v, rng.uniform(0.55, 1.0)


def _profile(rng: Draw, r: np.ndarray, radius: float, colours: int) -> np.ndarray:
    """Rings of a few colours with sharp or soft steps between them, (S, S, 3)."""
    n = int(rng.integers(3, 9))
    at = np.sort(rng.random(n)) * radius
    palette = [colour(rng) for _ in range(colours)]
    rgb = np.broadcast_to(palette[0], (*r.shape, 3))
    for k, x in enumerate(at):
        step = soft(x - r, between(rng, 0.015, 0.2))[..., None]
        rgb = rgb + step * (palette[(k + 1) % colours] * rng.uniform(0.4, 1.3) - rgb)
    for _ in range(rng.integers(0, 4)):
        x, width = rng.random() * radius, between(rng, 0.01, 0.06)
        rgb = rgb + (rng.uniform(-0.4, 0.7) * np.exp(-(((r - x) / width) ** 2)))[..., None]
    return rgb


def disc(rng: Draw, g: Grid) -> Part:
    """A disc, coin, lid or button, plain or with rings."""
    u, v, size = _frame(rng, g)
    r = np.hypot(u, v)
    d = r - size
    rgb = shaded(matter(rng, g), rng.uniform(0, 0.6) * rim(g, d, between(rng, 0.03, 0.3)))
    for _ in range(rng.integers(0, 3)):
        at = size * rng.uniform(0.3, 0.95)
        groove = np.exp(-(((r - at) / between(rng, 0.01, 0.04)) ** 2))
        rgb = shaded(rgb, rng.uniform(-0.6, 0.4) * groove)
    if rng.random() < 0.3:
        k = rng.integers(2, 7)
        a = (np.arctan2(v, u) * k / (2 * np.pi)) % 1 - 0.5
        hole = np.hypot(a * 2 * np.pi / k * r, r - size * rng.uniform(0.3, 0.6))
        d = np.maximum(d, size * rng.uniform(0.07, 0.14) - hole)
    return d, rgb


def radial(rng: Draw, g: Grid) -> Part:
    """A turned, blown or stacked thing seen from above: bottle, can, lens, cap, bearing."""
    u, v, size = _frame(rng, g)
    r = np.hypot(u, v)
    d = r - size
    rgb = _profile(rng, r, size, int(rng.integers(2, 4)))
    angle = np.arctan2(v, u)
    for _ in range(rng.integers(0, 4)):
        at, width = rng.uniform(-np.pi, np.pi), rng.uniform(0.1, 0.8)
        turn = np.abs((angle - at + np.pi) % (2 * np.pi) - np.pi)
        ring = np.exp(-(((r - rng.random() * size) / between(rng, 0.02, 0.15)) ** 2))
        rgb = rgb + (rng.uniform(-0.3, 0.7) * soft(turn - width, width) * ring)[..., None]
    return d, shaded(rgb, rng.uniform(0, 0.4) * rim(g, d, 0.08))


def ring(rng: Draw, g: Grid) -> Part:
    """A washer, gasket or O-ring, sometimes split or with teeth."""
    u, v, size = _frame(rng, g)
    r = np.hypot(u, v)
    inner = size * rng.uniform(0.3, 0.88)
    d = np.maximum(r - size, inner - r)
    kind = rng.random()
    if kind < 0.15:
        d = np.maximum(d, np.where(u > 0, rng.uniform(0.02, 0.08) - np.abs(v), d))
    elif kind < 0.35:
        k = rng.integers(4, 16)
        tooth = np.sin(np.arctan2(v, u) * k) * rng.uniform(0.02, 0.08)
        d = np.maximum(r - size + (tooth if kind < 0.25 else 0), inner + tooth - r)
    width = rng.choice([0.04, (size - inner) / 2])
    return d, shaded(matter(rng, g), rng.uniform(0.2, 0.8) * rim(g, d, width))


def nut(rng: Draw, g: Grid) -> Part:
    """A hexagonal or square nut with a thread."""
    u, v, size = _frame(rng, g)
    sides = int(rng.choice([4, 6, 6, 6, 8]))
    d, r = regular(u, v, sides, size * 0.9), np.hypot(u, v)
    hole = size * rng.uniform(0.35, 0.6)
    rgb = shaded(matter(rng, g), 0.5 * rim(g, np.maximum(d, r - size), 0.1))
    rgb = shaded(rgb, 0.4 * np.exp(-(((r - hole - 0.04) / 0.025) ** 2)))
    thread = soft(r - hole, 0.03)[..., None] * (0.5 + 0.4 * np.sin(r * 90))[..., None]
    if rng.random() < 0.5:
        rgb = rgb * (1 - 0.8 * soft(r - hole, 0.03))[..., None] + 0.1 * thread
        return d, rgb
    return np.maximum(d, hole - r), rgb


def head(rng: Draw, g: Grid) -> Part:
    """A screw's head from above: slot, cross, hexagon or star drive."""
    u, v, size = _frame(rng, g)
    r = np.hypot(u, v)
    d = r - size
    rgb = shaded(matter(rng, g), rng.uniform(0.2, 0.7) * rim(g, d, size * rng.uniform(0.1, 1)))
    width, reach = size * rng.uniform(0.08, 0.16), size * rng.uniform(0.35, 0.9)
    drive = rng.integers(4)
    if drive == 0:
        cut = box(u, v, reach, width)
    elif drive == 1:
        cut = np.minimum(box(u, v, reach, width), box(u, v, width, reach))
    elif drive == 2:
        cut = regular(u, v, 6, reach * 0.7)
    else:
        cut = r - reach * 0.7 * (1 + 0.18 * np.cos(6 * np.arctan2(v, u)))
    rgb = shaded(
        rgb, -rng.uniform(0.5, 0.9) * soft(cut, 0.03) - 0.4 * rim(g, cut, 0.06) * soft(cut, 0.03)
    )
    return d, rgb


def screw(rng: Draw, g: Grid) -> Part:
    """A screw, bolt or nail from the side."""
    u, v, size = _frame(rng, g)
    w = size * rng.uniform(0.08, 0.18)
    pitch = w * rng.uniform(0.5, 1.1)
    start = rng.uniform(-0.5, 0.2) * size
    threads = np.sin((u + 0.3 * v) * 2 * np.pi / pitch) * (u > start)
    taper = np.clip((size - u) / (0.4 * size), 0, 1) ** 0.5 if rng.random() < 0.6 else 1
    shaft = np.maximum(np.abs(v) - w * taper - 0.12 * w * threads, np.abs(u) - size)
    wide, thick = w * rng.uniform(1.5, 2.8), size * rng.uniform(0.1, 0.25)
    top = box(u + size, v, thick, wide, 0.4 * thick)
    if rng.random() < 0.4:
        top = np.maximum(top, np.abs(v) - wide * np.clip(-(u + size * 0.75) / thick, 0.1, 1))
    d = np.minimum(shaft, top)
    half = np.where(top < shaft, wide, w)
    light = np.sqrt(np.clip(1 - (v / half) ** 2, 0.05, 1)) - 0.6
    shine = 0.5 * np.exp(-((v / half + 0.35) ** 2) * 18)
    return d, shaded(matter(rng, g), light + shine + 0.3 * threads * (top > 0))


def gear(rng: Draw, g: Grid) -> Part:
    """A gear, saw blade or star wheel."""
    u, v, size = _frame(rng, g)
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    teeth = np.sin(angle * rng.integers(6, 26)) * rng.uniform(1.5, 5)
    d = r - size * (0.88 + rng.uniform(0.05, 0.12) * np.clip(teeth, -1, 1))
    bore = size * rng.uniform(0.1, 0.35)
    d = np.maximum(d, bore - r)
    rgb = shaded(matter(rng, g), 0.5 * rim(g, d, 0.05))
    hub = r - bore * rng.uniform(1.3, 2)
    rgb = shaded(rgb, rng.uniform(-0.4, 0.4) * soft(hub, 0.03))
    if rng.random() < 0.5:
        k = rng.integers(3, 7)
        a = (angle * k / (2 * np.pi)) % 1 - 0.5
        hole = np.hypot(a * 2 * np.pi / k * r, r - size * 0.55)
        d = np.maximum(d, size * rng.uniform(0.08, 0.16) - hole)
    return d, rgb


def capsule(rng: Draw, g: Grid) -> Part:
    """A lozenge, vial, fuse or battery: a cylinder in one to three colours."""
    u, v, size = _frame(rng, g)
    radius = size * rng.uniform(0.15, 0.5)
    corner = radius * rng.choice([1, 1, 0.3])
    d = box(u, v, size, radius, corner)
    rgb = matter(rng, g)
    for _ in range(rng.integers(0, 3)):
        at = rng.uniform(-1, 1) * size
        rgb = rgb + soft(at - u, 0.02)[..., None] * (colour(rng) - rgb)
    light = np.sqrt(np.clip(1 - (d / radius + 1) ** 2, 0, 1))
    rgb = rgb * (rng.uniform(0.3, 0.7) + 0.5 * light)[..., None]
    gloss = np.exp(-(((v / radius + rng.uniform(-0.6, 0.6)) / rng.uniform(0.08, 0.3)) ** 2))
    rgb = rgb + (rng.uniform(0, 0.5) * gloss * soft(np.abs(u) - 0.85 * size, 0.1))[..., None]
    return d, rgb + _print(rng, u / size, v / radius, rgb)


def _print(rng: Draw, u: np.ndarray, v: np.ndarray, rgb: np.ndarray) -> np.ndarray | float:
    """Change that letter-like marks in the middle make, or none."""
    if rng.random() < 0.6:
        return 0.0
    marks = (rng.random((int(rng.integers(3, 8)), int(rng.integers(4, 16)))) < 0.55).astype(int)
    w, h = rng.uniform(0.2, 0.6), rng.uniform(0.15, 0.5)
    i = ((v / h + 1) / 2 * marks.shape[0]).astype(int).clip(0, marks.shape[0] - 1)
    j = ((u / w + 1) / 2 * marks.shape[1]).astype(int).clip(0, marks.shape[1] - 1)
    inside = (np.abs(u) < w) & (np.abs(v) < h)
    return (marks[i, j] * inside * rng.uniform(0.4, 1))[..., None] * (colour(rng) - rgb)


def pill(rng: Draw, g: Grid) -> Part:
    """A tablet or sweet with a score line, letters or speckles."""
    u, v, size = _frame(rng, g)
    p, flat = rng.choice([2, 2, 3, 4]), rng.uniform(0.4, 1)
    d = ((np.abs(u) ** p + np.abs(v / flat) ** p) ** (1 / p) - size) * flat
    rgb = shaded(
        matter(rng, g, colour(rng, rng.choice(["pale", "vivid", "earth"]))),
        0.5 * rim(g, d, between(rng, 0.1, 0.6)),
    )
    if rng.random() < 0.4:
        rgb = shaded(
            rgb, -0.5 * np.exp(-((u / 0.03) ** 2)) + 0.25 * np.exp(-(((u - 0.05) / 0.03) ** 2))
        )
    if rng.random() < 0.3:
        specks = np.clip(noise(rng, g.side, 0.05) - 1, 0, 0.5) * 2
        rgb = rgb + specks[..., None] * (colour(rng) - rgb)
    return d, rgb + _print(rng, u / size, v / size / flat, rgb)


def plate(rng: Draw, g: Grid) -> Part:
    """A flat part with drilled holes, slots and screws."""
    u, v, size = _frame(rng, g)
    w, h = size, size * rng.uniform(0.4, 1)
    d = box(u, v, w, h, between(rng, 0.02, 0.3) * h)
    if rng.random() < 0.3:
        d = np.maximum(d, -box(u - w * rng.uniform(-1, 1), v - h, w * 0.3, h * 0.4, 0.05))
    rgb = shaded(matter(rng, g), 0.5 * rim(g, d, between(rng, 0.02, 0.1)))
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0.3, 0.8) * w, rng.uniform(0.1, 0.8) * h
        a, b = (
            (np.abs(u) - x if rng.random() < 0.6 else u - x),
            (np.abs(v) - y if rng.random() < 0.6 else v - y),
        )
        hole = np.hypot(a, b) - rng.uniform(0.04, 0.13)
        if rng.random() < 0.6:
            d = np.maximum(d, -hole)
            rgb = shaded(rgb, 0.4 * np.exp(-((hole / 0.03) ** 2)))
        else:
            inside = soft(hole, 0.02)[..., None]
            rgb = rgb + inside * (
                colour(rng, "metal") * (1 + 0.5 * rim(g, hole, 0.08))[..., None] - rgb
            )
    return d, rgb + _print(rng, u / w, v / h, rgb)


def blob(rng: Draw, g: Grid) -> Part:
    """A stone, sweet, drop or piece of putty."""
    u, v, size = _frame(rng, g)
    d = outline(rng, u, v / rng.uniform(0.6, 1), size * 0.85, rng.uniform(0.05, 0.5))
    return d, shaded(matter(rng, g), 0.7 * rim(g, d, size * rng.uniform(0.1, 0.9)))


def kernel(rng: Draw, g: Grid) -> Part:
    """A nut, seed, bean or fruit: a dome with stripes, a paler base and a dull sheen."""
    u, v, size = _frame(rng, g)
    d = outline(rng, u, v / rng.uniform(0.65, 1), size * 0.85, rng.uniform(0.02, 0.2), 5)
    depth = np.clip(-d / size, 0, 1)
    base = colour(rng, rng.choice(["earth", "earth", "vivid"])) * 0.9
    lines = noise(rng, g.side, between(rng, 0.02, 0.06), rng.uniform(0.3, 1))
    rgb = shaded(np.broadcast_to(base, (*d.shape, 3)), rng.uniform(0.03, 0.25) * lines)
    pale = soft(u - size * rng.uniform(-0.9, -0.2) + 0.1 * noise(rng, g.side, 0.3), 0.2)
    rgb = rgb + (rng.uniform(0, 0.7) * pale)[..., None] * (colour(rng, "earth") - rgb)
    light = rim(g, d, size) * rng.uniform(0.3, 0.7) + rng.uniform(0.2, 0.5) * depth
    return d, shaded(rgb, light - 0.15)


def cable(rng: Draw, g: Grid) -> Part:
    """A cut cable: insulated cores inside a jacket."""
    u, v, size = _frame(rng, g)
    r = np.hypot(u, v)
    d = r - size
    rgb = shaded(matter(rng, g), 0.3 * rim(g, d, 0.1))
    rgb = rgb * (1 - rng.uniform(0, 0.6) * soft(r - size * 0.85, 0.03))[..., None]
    n = int(rng.integers(1, 8))
    angle = np.arctan2(v, u)
    sector = np.floor((angle + np.pi) / (2 * np.pi) * n).clip(0, n - 1)
    at = (sector + 0.5) * 2 * np.pi / n - np.pi
    where = size * (0.45 if n > 1 else 0)
    core = min(size * 0.38, 0.85 * where * np.sin(np.pi / n)) if n > 1 else size * 0.5
    q = np.hypot(u - where * np.cos(at), v - where * np.sin(at))
    tints = np.stack([colour(rng) for _ in range(n)])
    if rng.random() < 0.4:
        tints[:] = tints[0]
    inside = soft(q - core, 0.02)[..., None]
    rgb = rgb + inside * (tints[sector.astype(int)] * (1 - 0.4 * q / core)[..., None] - rgb)
    d1, _, number = cells(rng, g.side, rng.uniform(20, 34), 0.4)
    wires = colour(rng, "metal") * (0.5 + 0.5 * number - 0.5 * d1)[..., None]
    rgb = rgb + soft(q - core * rng.uniform(0.5, 0.75), 0.02)[..., None] * (wires - rgb)
    return d, rgb


def cord(rng: Draw, g: Grid) -> Part:
    """Ropes, hoses or wires lying side by side or bent."""
    u, v, _ = _frame(rng, g)
    bow = rng.uniform(0, 0.4) * np.sin(u * rng.uniform(1, 4) + rng.uniform(0, 6))
    n, w = int(rng.integers(1, 5)), rng.uniform(0.06, 0.2)
    lane = np.round((v - bow) / (2.2 * w) + (n - 1) / 2).clip(0, n - 1)
    q = v - bow - (lane - (n - 1) / 2) * 2.2 * w
    d = np.maximum(np.abs(q) - w, np.abs(u) - rng.choice([0.85, 2]))
    tints = np.stack([colour(rng) for _ in range(n)])
    twist = np.sin((u / w + q / w) * rng.uniform(2, 6)) * rng.uniform(0, 0.4)
    light = 1.3 * np.sqrt(np.clip(1 - (q / w) ** 2, 0.02, 1)) - 0.7 + twist
    return d, shaded(tints[lane.astype(int)], light)


def bar(rng: Draw, g: Grid) -> Part:
    """A bar, rod, profile or board that runs through the picture."""
    u, v, _ = _frame(rng, g, 0.25)
    h = rng.uniform(0.15, 0.65)
    d = np.maximum(np.abs(v) - h, np.abs(u) - rng.choice([0.9, 3]))
    rgb = matter(rng, g)
    if rng.random() < 0.5:
        rgb = shaded(rgb, 0.8 * np.sqrt(np.clip(1 - (v / h) ** 2, 0.03, 1)) - 0.5)
    for _ in range(rng.integers(0, 4)):
        at = rng.uniform(-0.8, 0.8) * h
        rgb = shaded(rgb, rng.uniform(-0.5, 0.4) * np.exp(-(((v - at) / 0.03) ** 2)))
    return d, shaded(rgb, 0.4 * rim(g, d, 0.05))


def flask(rng: Draw, g: Grid) -> Part:
    """A bottle, vial, jar or bulb from the side: a body, shoulders, a neck, a cap."""
    u, v, size = _frame(rng, g)
    at = np.array([-1, -0.75, -0.5, -0.25, 0.1, 0.8, 1]) * size * 0.98
    neck, body = rng.uniform(0.1, 0.25), rng.uniform(0.3, 0.6)
    wide = (
        np.array(
            [
                neck,
                neck,
                neck * rng.uniform(0.9, 1.3),
                body * rng.uniform(0.5, 1),
                body,
                body * rng.uniform(0.8, 1),
                body * rng.uniform(0.6, 1),
            ]
        )
        * size
    )
    half = np.interp(u, at, wide)
    d = np.maximum((np.abs(v) - half) * 0.8, np.abs(u) - size)
    a = np.clip(v / half, -1, 1)
    rgb = matter(rng, g) * (0.3 + 0.75 * np.sqrt(np.clip(1 - a * a, 0, 1)))[..., None]
    shine = np.exp(-(((a - rng.uniform(-0.7, 0.7)) / rng.uniform(0.06, 0.2)) ** 2))
    cap = soft(u + size * rng.uniform(0.5, 0.85), 0.02)[..., None]
    tint = colour(rng) * (0.4 + 0.6 * np.sqrt(np.clip(1 - a * a, 0, 1)))[..., None]
    rgb = rgb + cap * (tint - rgb)
    if rng.random() < 0.5:
        label = soft(box(u - size * 0.45, v, size * rng.uniform(0.15, 0.35), 2), 0.02)[..., None]
        rgb = rgb + label * (colour(rng) * (0.5 + 0.5 * np.sqrt(1 - 0.99 * a * a))[..., None] - rgb)
        rgb = rgb + _print(rng, (u - size * 0.45) / size * 2, a, rgb)
    return d, rgb + (rng.uniform(0, 0.6) * shine)[..., None]


def connector(rng: Draw, g: Grid) -> Part:
    """A housing with rows of pins, contacts or sockets."""
    u, v, size = _frame(rng, g)
    w, h = size, size * rng.uniform(0.2, 0.7)
    d = box(u, v, w, h, rng.uniform(0, 0.1))
    rgb = shaded(matter(rng, g), 0.5 * rim(g, d, 0.05))
    inner = box(u, v, w * rng.uniform(0.8, 0.95), h * rng.uniform(0.5, 0.85), 0.02)
    rgb = shaded(rgb, -rng.uniform(0, 0.7) * soft(inner, 0.02))
    n, m = int(rng.integers(3, 12)), int(rng.integers(1, 3))
    p, q = (u / w * 0.5 / 0.85 + 0.5) * n, (v / h * 0.5 / 0.7 + 0.5) * m
    a, b = (p % 1 - 0.5) * 2 * w * 0.85 / n, (q % 1 - 0.5) * 2 * h * 0.7 / m
    pin = box(a, b, w / n * rng.uniform(0.25, 0.5), h / m * rng.uniform(0.2, 0.55), 0)
    inside = soft(pin, 0.02) * (np.abs(p - n / 2) < n / 2) * (np.abs(q - m / 2) < m / 2)
    tint = colour(rng, rng.choice(["metal", "earth", "dark"]))
    return d, rgb + inside[..., None] * (tint * (1 + 0.5 * rim(g, pin, 0.03))[..., None] - rgb)


def comb(rng: Draw, g: Grid) -> Part:
    """A brush, comb or rake: tufts or teeth on a handle."""
    u, v, size = _frame(rng, g)
    n = int(rng.integers(4, 12))
    p = (u / size + 1) / 2 * n
    a = (p % 1 - 0.5) * 2 * size / n
    wide, long = size / n * rng.uniform(0.3, 0.95), size * rng.uniform(0.3, 0.9)
    tooth = box(a, v + long / 2, wide, long / 2, 0.2 * wide)
    tooth = np.maximum(tooth, np.abs(u) - size)
    back = box(u, v - 0.12, size * 1.04, rng.uniform(0.08, 0.25), 0.06)
    tints = np.stack([colour(rng) for _ in range(n)])
    if rng.random() < 0.6:
        tints[:] = tints[rng.integers(0, 2, n)]
    bristle = noise(rng, g.side, 0.3, 0.02) * rng.uniform(0, 0.3)
    rgb = shaded(tints[p.astype(int).clip(0, n - 1)], bristle - 0.5 * (a / wide) ** 2)
    body = soft(back, 0.02)[..., None]
    rgb = rgb + body * (shaded(matter(rng, g), 0.5 * rim(g, back, 0.08)) - rgb)
    return np.minimum(tooth, back), rgb


def angular(rng: Draw, g: Grid) -> Part:
    """A polygon, star or superellipse with a bevel, sometimes hollow."""
    u, v, size = _frame(rng, g)
    kind = rng.integers(3)
    if kind == 0:
        d = regular(u, v * rng.uniform(1, 1.6), int(rng.integers(3, 9)), size * 0.8)
    elif kind == 1:
        p = between(rng, 0.7, 8)
        d = (np.abs(u) ** p + np.abs(v * rng.uniform(1, 2)) ** p) ** (1 / p) - size * 0.9
    else:
        k = rng.integers(3, 9)
        d = np.hypot(u, v) - size * (0.7 + 0.25 * np.cos(k * np.arctan2(v, u)))
    if rng.random() < 0.3:
        d = np.maximum(d, -(d + rng.uniform(0.1, 0.3)))
    rgb = shaded(matter(rng, g), 0.6 * rim(g, d, between(rng, 0.03, 0.4)))
    return d, rgb + _print(rng, u / size, v / size, rgb)


def chip(rng: Draw, g: Grid) -> Part:
    """An integrated circuit, transistor or relay with its legs."""
    u, v, size = _frame(rng, g)
    w, h = size * rng.uniform(0.35, 0.9), size * rng.uniform(0.3, 0.6)
    body = box(u, v, w, h, 0.03)
    n = int(rng.integers(2, 12))
    a = ((u / w + 1) / 2 * n) % 1 - 0.5
    long = size * rng.uniform(0.1, 0.4)
    legs = np.maximum(
        np.abs(a) * 2 * w / n - w / n * rng.uniform(0.25, 0.6),
        np.maximum(np.abs(u) - w, np.abs(v) - h - long),
    )
    if rng.random() < 0.4:
        legs = np.maximum(legs, -v)
    rgb = (
        np.broadcast_to(colour(rng, "metal"), (*u.shape, 3))
        * (1 + 0.5 * rim(g, legs, 0.04))[..., None]
    )
    top = shaded(
        matter(rng, g, colour(rng, "dark") if rng.random() < 0.7 else None),
        0.5 * rim(g, body, 0.06),
    )
    top = top + _print(rng, u / w, v / h, top)
    return np.minimum(body, legs), rgb + soft(body, 0.02)[..., None] * (top - rgb)


def bracket(rng: Draw, g: Grid) -> Part:
    """An angle, channel, T or hook cut from sheet, with holes and a bend line."""
    u, v, size = _frame(rng, g)
    t = size * rng.uniform(0.2, 0.45)
    a = box(u, v - size + t, size, t, 0.05)
    x = rng.choice([-1, 0, 1]) * (size - t)
    d = np.minimum(a, box(u - x, v, t, size, 0.05))
    if rng.random() < 0.4:
        d = np.minimum(d, box(u + x, v, t, size, 0.05))
    hole = np.minimum(np.hypot(np.abs(u) - size + t, v - size + t), np.hypot(u - x, v + size - t))
    d = np.maximum(d, t * rng.uniform(0.2, 0.6) - hole)
    rgb = shaded(matter(rng, g), 0.5 * rim(g, d, 0.05))
    return d, shaded(rgb, rng.uniform(-0.4, 0.4) * soft(v - size + 2 * t, 0.04))


def scatter(rng: Draw, g: Grid) -> Part:
    """Several like pieces, in rows or strewn: sweets, pellets, candles, pasta, beads."""
    n = int(rng.integers(2, 6))
    u, v = g.turned(rng.normal(0, 0.15))
    i, j = np.floor((u + 1) / 2 * n), np.floor((v + 1) / 2 * n)
    shift = rng.uniform(-0.12, 0.12, (2, 12, 12)) * rng.integers(0, 2)
    a_, b_ = (i % 12).astype(int), (j % 12).astype(int)
    p = (u + 1) / 2 * n - i - 0.5 - shift[0][b_, a_]
    q = (v + 1) / 2 * n - j - 0.5 - shift[1][b_, a_]
    turn = rng.uniform(0, np.pi, (12, 12))[b_, a_] * rng.integers(0, 2)
    p, q = np.cos(turn) * p + np.sin(turn) * q, np.cos(turn) * q - np.sin(turn) * p
    flat, power = rng.uniform(0.5, 1), rng.choice([2, 2, 4])
    r = (np.abs(p) ** power + np.abs(q / flat) ** power) ** (1 / power)
    radius = rng.uniform(0.25, 0.37)
    d = np.where((i >= 0) & (j >= 0) & (i < n) & (j < n), (r - radius) * 2 / n, 0.1)
    if rng.random() < 0.25:
        d = np.maximum(d, radius * 0.4 * 2 / n - r * 2 / n)
    tints = np.stack([colour(rng) for _ in range(rng.choice([1, 1, 3]))])
    tint = tints[rng.integers(0, len(tints), (12, 12))[b_, a_]]
    rgb = matter(rng, g)
    rgb = tint * (0.6 + 0.4 * rgb.mean(axis=2) / (rgb.mean() + 0.02))[..., None]
    return d.astype(np.float32), shaded(rgb, 0.6 * rim(g, d, radius * rng.uniform(0.3, 1.8) / n))


def spring(rng: Draw, g: Grid) -> Part:
    """A coil, chain or zip from the side."""
    u, v, size = _frame(rng, g)
    w, pitch = size * rng.uniform(0.25, 0.5), size * rng.uniform(0.12, 0.35)
    slant = rng.uniform(0, 0.3) * v
    a = (((u + slant) / pitch) % 1 - 0.5) * pitch
    wire = np.hypot(a, np.maximum(np.abs(v) - w, 0)) - pitch * rng.uniform(0.2, 0.45)
    d = np.maximum(wire, np.abs(u) - size)
    light = 0.7 * np.sqrt(np.clip(1 - (v / (w * 1.2)) ** 2, 0.02, 1)) - 0.4
    return d, shaded(matter(rng, g), light + 0.4 * rim(g, d, pitch * 0.4))


def shard(rng: Draw, g: Grid) -> Part:
    """Irregular polygons, leaves or slices with an outline."""
    u, v, size = _frame(rng, g)
    n = int(rng.integers(4, 10))
    turn = np.sort(rng.uniform(0, 2 * np.pi, n))
    far = rng.uniform(0.5, 1, n) * size * 1.1
    picture = Image.new("L", (g.side, g.side))
    points = [
        ((np.cos(t) * f + 1) * g.side / 2, (np.sin(t) * f + 1) * g.side / 2)
        for t, f in zip(turn, far, strict=True)
    ]
    ImageDraw.Draw(picture).polygon(points, fill=1)
    inside = np.asarray(picture) > 0
    d = (distance_transform_edt(~inside) - distance_transform_edt(inside)).astype(np.float32)
    d = d * g.pixel
    rgb = shaded(matter(rng, g), 0.6 * rim(g, d, between(rng, 0.04, 0.3)))
    return d, shaded(rgb, rng.uniform(-0.5, 0.3) * np.exp(-(((d + 0.04) / 0.04) ** 2)))


def biscuit(rng: Draw, g: Grid) -> Part:
    """A biscuit, sponge or tablet with a pattern of dimples and a scalloped edge."""
    u, v, size = _frame(rng, g)
    wave = rng.uniform(0, 0.05) * np.cos(rng.integers(8, 30) * np.arctan2(v, u))
    d = (
        (np.hypot(u, v) - size * (0.93 + wave))
        if rng.random() < 0.6
        else box(u, v, size, size * rng.uniform(0.5, 0.9), 0.1)
    )
    p = between(rng, 0.12, 0.35)
    dimple = np.hypot((u / p) % 1 - 0.5, (v / p) % 1 - 0.5) * p - p * rng.uniform(0.12, 0.3)
    base = matter(rng, g, colour(rng, "earth"))
    brown = np.exp(d / rng.uniform(0.05, 0.2)) * rng.uniform(0, 0.6)
    light = 0.4 * rim(g, d, 0.1) - brown - rng.uniform(0, 0.6) * soft(dimple, 0.03)
    return d, shaded(base, light + 0.06 * noise(rng, g.side, 0.05))


def mixture(rng: Draw, g: Grid) -> Part:
    """A part made of two: one on the other."""
    first, second = rng.choice(len(_SINGLE), 2)
    d, rgb = _SINGLE[first](rng, g)
    e, top = _SINGLE[second](rng, g)
    e = e + rng.uniform(0.1, 0.35)
    rgb = rgb * (1 - 0.35 * soft(e - 0.06, 0.15))[..., None]
    rgb = rgb + soft(e, 0.02)[..., None] * (top - rgb)
    return (np.minimum(d, e) if rng.random() < 0.3 else d), rgb


_SINGLE = (disc, radial, ring, nut, plate, blob, angular, gear, bracket, pill)

OBJECTS: dict[str, tuple[Callable[[Draw, Grid], Part], tuple[str, ...]]] = {
    "disc": (disc, ("round plate", "coin", "button", "lid")),
    "radial": (radial, ("jar from above", "lens", "can", "bearing", "cap")),
    "ring": (ring, ("washer", "gasket", "seal ring", "ring")),
    "nut": (nut, ("nut", "hexagon nut")),
    "head": (head, ("screw head", "bolt head")),
    "screw": (screw, ("screw", "bolt", "nail")),
    "gear": (gear, ("gear", "cog wheel")),
    "capsule": (capsule, ("vial", "fuse", "battery", "lozenge")),
    "pill": (pill, ("tablet", "pill", "sweet")),
    "plate": (plate, ("plate with holes", "cover", "bracket plate")),
    "blob": (blob, ("stone", "putty", "drop")),
    "kernel": (kernel, ("seed", "bean", "fruit", "almond")),
    "cable": (cable, ("cable cross-section", "cable end")),
    "cord": (cord, ("cord", "hose", "wires")),
    "bar": (bar, ("bar", "rod", "profile", "board")),
    "flask": (flask, ("flask", "vial", "bulb", "jar")),
    "connector": (connector, ("connector", "plug", "socket")),
    "comb": (comb, ("brush", "comb")),
    "angular": (angular, ("moulded part", "polygon", "frame")),
    "chip": (chip, ("chip", "relay", "transistor")),
    "bracket": (bracket, ("bracket", "angle", "clamp")),
    "scatter": (scatter, ("sweets", "pellets", "beads", "candles")),
    "spring": (spring, ("spring", "coil", "zip")),
    "shard": (shard, ("shard", "slice", "leaf")),
    "biscuit": (biscuit, ("biscuit", "wafer", "cracker")),
    "mixture": (mixture, ("assembly", "component", "fitting")),
}
_KINDS = tuple(OBJECTS)


def placed(rng: Draw, g: Grid, kind: str | None = None) -> tuple[Scene, str, str]:
    """An object on a background with a soft shadow.

    Returns the scene, the object's kind and a word for it.
    """
    kind = kind or _KINDS[rng.integers(len(_KINDS))]
    draw, words = OBJECTS[kind]
    d, rgb = draw(rng, g)
    if rng.random() < 0.55:
        ground = _bright(rng, g)
    elif rng.random() < 0.6:
        ground = matter(rng, g)
    else:
        ground, _ = surface(rng, g)
    if rng.random() < 0.75:
        width, depth = between(rng, 0.05, 0.5), rng.uniform(0.1, 0.7)
        far = between(rng, 0.01, 0.12)
        step = round(far * g.side / 2)
        moved = np.roll(d, (round(-g.light[1] * step), round(-g.light[0] * step)), (0, 1))
        ground = ground * (1 - depth * soft(moved - width / 4, width))[..., None]
    alpha = soft(d, 1.5 * g.pixel)
    if rng.random() < 0.1:
        alpha = alpha * rng.uniform(0.5, 0.9)
    rgb, ground = (np.clip(p, 0, 1.3).astype(np.float32) for p in (rgb, ground))
    return Scene(rgb, alpha.astype(np.float32), ground, g), kind, str(rng.choice(words))


def _bright(rng: Draw, g: Grid) -> np.ndarray:
    """A plain table: white, grey, black or coloured, unevenly lit."""
    kind = rng.choice(["pale", "pale", "grey", "dark", "vivid"])
    fall = rng.uniform(-0.2, 0.2) * g.x + rng.uniform(-0.2, 0.2) * g.y
    return mix(0.5 + fall, colour(rng, kind) * 0.85, np.ones(3, np.float32) * 1.05) * (
        0.9 if kind == "pale" else 0.6
    )
