"""Defects of the drawn world: each changes a scene, so that shadow, light and camera stay its own.

A defect has a place on the foreground and a radius; what it changes follows from comparing the two
photographs (`helixbench.datasets.world.world.World`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import map_coordinates

from helixbench.datasets.world.objects import Scene, outline, rim
from helixbench.datasets.world.textures import (
    Draw,
    Grid,
    between,
    cells,
    colour,
    hsv,
    noise,
    relief,
    shaded,
    soft,
)

Line = Sequence[tuple[float, float]]


@dataclass
class Spot:
    """Where a defect goes: a scene, a point on its foreground, a radius, and a source of other
    pictures (S, S, 3) to paste from.
    """

    scene: Scene
    x: float
    y: float
    radius: float
    foreign: Callable[[], np.ndarray]

    @property
    def grid(self) -> Grid:
        """The scene's coordinates and light."""
        return self.scene.grid

    def away(self) -> np.ndarray:
        """(S, S) distance from the point."""
        return np.hypot(self.grid.x - self.x, self.grid.y - self.y)


def paint(scene: Scene, amount: np.ndarray, rgb: np.ndarray, everywhere: bool = False) -> Scene:
    """Cover the foreground, or everything, with colours by an amount in [0, 1], (S, S)."""
    amount = np.clip(amount, 0, 1)[..., None]
    changed = replace(scene, rgb=scene.rgb + amount * (rgb - scene.rgb))
    if everywhere:
        changed.background = scene.background + amount * (rgb - scene.background)
    return changed


def shade(scene: Scene, light: np.ndarray, gloss: float = 0.15) -> Scene:
    """Multiply the foreground by 1 + light and add `gloss` of it."""
    return replace(scene, rgb=shaded(scene.rgb, light) + (gloss * light)[..., None])


def shape(rng: Draw, s: Spot, width: float | None = None) -> np.ndarray:
    """(S, S) amount in [0, 1] of an irregular patch at the spot, ragged, wavy or angular."""
    d = outlined(rng, s)
    return soft(d, width or between(rng, 2 * s.grid.pixel, 0.4 * s.radius + 3 * s.grid.pixel))


def outlined(rng: Draw, s: Spot) -> np.ndarray:
    """(S, S) signed distance (about) to an irregular patch at the spot, negative inside."""
    u, v = s.grid.turned(rng.uniform(0, np.pi), s.x, s.y)
    flat = rng.uniform(0.3, 1)
    u, v = u * np.sqrt(flat), v / np.sqrt(flat)
    kind = rng.random()
    if kind < 0.5:
        d = outline(rng, u, v, s.radius, rng.uniform(0, 0.6), 9)
    elif kind < 0.75:
        d = outline(rng, u, v, s.radius, 0.2) + 0.4 * s.radius * noise(
            rng, s.grid.side, s.radius * rng.uniform(0.15, 0.6)
        )
    else:
        d = np.max(
            [
                np.cos(t) * u + np.sin(t) * v - s.radius * rng.uniform(0.5, 1)
                for t in rng.uniform(0, 2 * np.pi, 3) + np.array([0, 2.1, 4.2])
            ],
            axis=0,
        )
    return d


def drawn(g: Grid, lines: Sequence[tuple[Line, float]]) -> np.ndarray:
    """(S, S) coverage in [0, 1] of lines, each with its width."""
    picture = Image.new("L", (g.side, g.side))
    pen = ImageDraw.Draw(picture)
    for points, width in lines:
        at = [((x + 1) * g.side / 2, (y + 1) * g.side / 2) for x, y in points]
        pen.line(at, fill=255, width=max(1, round(width / g.pixel)), joint="curve")
    return np.asarray(picture, np.float32) / 255


def blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a plane with values about in [0, 1]; sigma in pixels."""
    picture = Image.fromarray((np.clip(plane, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / 255


def curve(rng: Draw, s: Spot, length: float, bend: float, angle: float | None = None) -> Line:
    """Points of a bent, slightly unsteady line through the spot."""
    angle = rng.uniform(0, 2 * np.pi) if angle is None else angle
    t = np.linspace(-0.5, 0.5, 14)
    turn = angle + bend * rng.uniform(-1, 1) * t + 0.3 * bend * np.sin(t * rng.uniform(3, 12))
    step = length / 13
    x, y = np.cumsum(np.cos(turn)) * step, np.cumsum(np.sin(turn)) * step
    return list(zip(x - x.mean() + s.x, y - y.mean() + s.y, strict=True))


def walk(rng: Draw, x: float, y: float, angle: float, length: float, rough: float) -> Line:
    """Points of a jagged random walk."""
    n = max(4, int(length / 0.04))
    turn = angle + np.cumsum(rng.normal(0, rough * 0.4, n)) + rng.normal(0, rough, n)
    px = x + np.cumsum(np.cos(turn)) * length / n
    py = y + np.cumsum(np.sin(turn)) * length / n
    return [(x, y), *zip(px, py, strict=True)]


def groove(s: Spot, depth: np.ndarray, dark: float, lip: float) -> Scene:
    """Cut lines into the foreground: darker (or brighter) ground and a lit flank."""
    light = relief(s.grid, -blurred(depth, 0.7), 0.02 * lip)
    return shade(s.scene, -dark * depth + light, 0.1)


def _tone(rng: Draw) -> float:
    return rng.uniform(0.3, 0.85) if rng.random() < 0.6 else -rng.uniform(0.3, 0.9)


def scratch(rng: Draw, s: Spot) -> Scene:
    """One long thin mark, dark or bright, tapering."""
    line = curve(rng, s, s.radius * rng.uniform(2, 5), rng.uniform(0, 1.2))
    depth = drawn(s.grid, [(line, between(rng, 0.015, 0.06))])
    depth = depth * np.clip(1.1 + 0.5 * noise(rng, s.grid.side, 0.2), 0.2, 1)
    return groove(s, blurred(depth, 0.6), _tone(rng), rng.uniform(0, 1))


def scratches(rng: Draw, s: Spot) -> Scene:
    """Several marks, along one direction or crossing."""
    angle, spread = rng.uniform(0, np.pi), rng.choice([0.1, 0.4, 3])
    lines = []
    for _ in range(rng.integers(2, 8)):
        x, y = s.x + rng.normal(0, 0.5) * s.radius, s.y + rng.normal(0, 0.5) * s.radius
        there = replace(s, x=x, y=y)
        at = angle + spread * rng.uniform(-1, 1)
        lines.append(
            (curve(rng, there, s.radius * rng.uniform(0.8, 3), 0.5, at), between(rng, 0.012, 0.04))
        )
    return groove(s, blurred(drawn(s.grid, lines), 0.5), _tone(rng), rng.uniform(0, 1))


def scuff(rng: Draw, s: Spot) -> Scene:
    """A worn patch of many fine parallel marks."""
    lines = noise(rng, s.grid.side, 0.025, between(rng, 0.2, 0.8), rng.uniform(0, np.pi))
    patch = shape(rng, s, s.radius)
    return shade(s.scene, patch * (rng.uniform(0.2, 0.5) * lines + rng.uniform(-0.3, 0.4)))


def _branches(rng: Draw, s: Spot) -> list[tuple[Line, float]]:
    length, width, rough = (
        s.radius * rng.uniform(1.5, 3.5),
        between(rng, 0.015, 0.06),
        rng.uniform(0.15, 0.6),
    )
    angle = rng.uniform(0, 2 * np.pi)
    x, y = s.x - np.cos(angle) * length / 2, s.y - np.sin(angle) * length / 2
    trunk = walk(rng, x, y, angle, length, rough)
    half = len(trunk) // 2
    lines = [(trunk[: half + 1], width), (trunk[half:], width * 0.6)]
    for _ in range(rng.integers(0, 5)):
        px, py = trunk[rng.integers(len(trunk))]
        side = angle + rng.choice([-1, 1]) * rng.uniform(0.3, 1.3)
        lines.append((walk(rng, px, py, side, length * rng.uniform(0.15, 0.5), rough), width * 0.5))
    return lines


def crack(rng: Draw, s: Spot) -> Scene:
    """A branching jagged line, dark with a bright lip."""
    depth = blurred(drawn(s.grid, _branches(rng, s)), 0.5)
    return groove(s, depth, rng.uniform(0.4, 0.95), rng.uniform(0.2, 1.5))


def crazing(rng: Draw, s: Spot) -> Scene:
    """A net of cracks."""
    d1, d2, _ = cells(rng, s.grid.side, min(40, rng.uniform(2.5, 5) / s.radius))
    net = soft(d2 - d1 - rng.uniform(0.02, 0.1), 0.1) * shape(rng, s)
    return groove(s, net, rng.uniform(0.4, 0.95), rng.uniform(0.2, 1.5))


def gouge(rng: Draw, s: Spot) -> Scene:
    """A wide furrow with raised, bright walls."""
    line = curve(rng, s, s.radius * rng.uniform(1.2, 3), 1)
    depth = blurred(drawn(s.grid, [(line, s.radius * rng.uniform(0.15, 0.4))]), 1.5)
    light = relief(s.grid, -depth, rng.uniform(0.06, 0.15))
    return shade(s.scene, light - rng.uniform(0, 0.6) * depth**2 + 0.1 * depth, 0.3)


def hole(rng: Draw, s: Spot) -> Scene:
    """A hole, through to the background or dark, round or torn."""
    d = s.away() - s.radius if rng.random() < 0.4 else outlined(rng, s)
    edge = 3 * s.grid.pixel
    lip = np.exp(-((d / (2 * edge)) ** 2))
    scene = shade(s.scene, rng.uniform(-0.4, 0.6) * lip + 0.4 * rim(s.grid, d, 0.06) * lip)
    if rng.random() < 0.4:
        return replace(scene, alpha=scene.alpha * (1 - soft(d, edge)))
    wall = np.clip(-rim(s.grid, d, s.radius), -0.3, 1)[..., None] * 0.25
    return paint(scene, soft(d, edge), scene.rgb * rng.uniform(0.05, 0.3) + np.maximum(wall, 0))


def _spots(rng: Draw, s: Spot, n: int, low: float, high: float) -> np.ndarray:
    """(S, S) distance, in radii of each, to the nearest of some round spots around the place."""
    best = np.full((s.grid.side, s.grid.side), 9, np.float32)
    for _ in range(n):
        x, y = s.x + rng.normal(0, 0.6) * s.radius, s.y + rng.normal(0, 0.6) * s.radius
        u, v = s.grid.turned(rng.uniform(0, 3), x, y)
        best = np.minimum(best, np.hypot(u, v * rng.uniform(1, 1.6)) / between(rng, low, high))
    return best


def blowhole(rng: Draw, s: Spot) -> Scene:
    """Small dark pores with a bright rim, one or a cluster."""
    n = 1 if rng.random() < 0.5 else int(rng.integers(2, 9))
    d = _spots(rng, s, n, 0.03, 0.09 if n > 1 else min(0.2, max(0.05, s.radius)))
    light = -rng.uniform(0.5, 0.95) * soft(d - 1, 0.5)
    return shade(s.scene, light + rng.uniform(0, 0.5) * np.exp(-(((d - 1.3) / 0.3) ** 2)))


def pitting(rng: Draw, s: Spot) -> Scene:
    """Many tiny pits or a rough, eroded patch."""
    t = noise(rng, s.grid.side, between(rng, 0.03, 0.08))
    pits = np.clip((t - rng.uniform(0, 0.7)) * 3, 0, 1) * shape(rng, s)
    return shade(s.scene, relief(s.grid, -pits, 0.03) - rng.uniform(0.2, 0.8) * pits)


def dent(rng: Draw, s: Spot) -> Scene:
    """A pressed-in or raised place that only its shading shows."""
    u, v = s.grid.turned(rng.uniform(0, np.pi), s.x, s.y)
    q = (u / s.radius) ** 2 + (v / s.radius / rng.uniform(0.4, 1)) ** 2
    height = np.exp(-(q ** rng.uniform(1, 3)))
    up = rng.choice([-1, -1, 1])
    light = relief(s.grid, up * height, s.radius * rng.uniform(0.25, 0.7))
    return shade(s.scene, light + up * rng.uniform(0, 0.2) * height, 0.3)


def stain(rng: Draw, s: Spot) -> Scene:
    """A translucent spill that tints what is under it, with a dried edge."""
    d = outlined(rng, s) + 0.15 * s.radius * noise(rng, s.grid.side, 0.4 * s.radius)
    amount = soft(d, between(rng, 0.03, 0.5 * s.radius + 0.04)) * rng.uniform(0.35, 0.95)
    amount = amount * (1 + rng.uniform(0, 0.5) * np.exp(-((d / (0.1 * s.radius + 0.02)) ** 2)))
    tint = colour(rng, rng.choice(["earth", "dark", "vivid"]))
    if rng.random() < 0.25:
        return paint(s.scene, amount, colour(rng, "pale"), rng.random() < 0.2)
    return paint(s.scene, amount, s.scene.rgb * tint, rng.random() < 0.2)


def wet(rng: Draw, s: Spot) -> Scene:
    """Oil, water or drops: darker, glossy, refracting."""
    if rng.random() < 0.5:
        d = (_spots(rng, s, int(rng.integers(1, 8)), 0.04, 0.5 * s.radius + 0.05) - 1) * 0.1
    else:
        d = outlined(rng, s)
    inside = soft(d, 0.04)
    light = -rng.uniform(0.1, 0.45) * inside + 0.6 * rim(s.grid, d, 0.1) * inside
    return shade(s.scene, light, 0.4)


def contamination(rng: Draw, s: Spot) -> Scene:
    """A foreign body lies on the part and casts a shadow."""
    d = outlined(rng, s)
    rgb = s.foreign() if rng.random() < 0.5 else np.broadcast_to(colour(rng), s.scene.rgb.shape)
    rgb = shaded(rgb, rng.uniform(0, 0.7) * rim(s.grid, d, s.radius * rng.uniform(0.2, 1)))
    scene, everywhere = s.scene, rng.random() < 0.4
    step = round(0.3 * s.radius / s.grid.pixel * rng.random())
    dx, dy = round(-s.grid.light[0] * step), round(-s.grid.light[1] * step)
    shadow = 0.5 * soft(np.roll(d, (dy, dx), (0, 1)), 0.3 * s.radius)
    scene = shade(scene, -shadow, 0)
    return paint(scene, soft(d, 3 * s.grid.pixel), rgb, everywhere)


def dust(rng: Draw, s: Spot) -> Scene:
    """Specks, crumbs and lint."""
    lines = []
    for _ in range(rng.integers(3, 16)):
        there = replace(
            s, x=s.x + rng.normal(0, 0.7) * s.radius, y=s.y + rng.normal(0, 0.7) * s.radius
        )
        lines.append((curve(rng, there, between(rng, 0.01, 0.15), 2), between(rng, 0.02, 0.06)))
    return paint(
        s.scene,
        blurred(drawn(s.grid, lines), 0.5) * rng.uniform(0.6, 1),
        colour(rng),
        rng.random() < 0.5,
    )


def _to_rim(rng: Draw, s: Spot) -> Spot:
    """The spot moved to the object's edge (or to the picture's, for a surface)."""
    inside = s.scene.alpha > 0.5
    inner = inside.copy()
    inner[1:-1, 1:-1] = inside[2:, 1:-1] & inside[:-2, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2]
    inner[0], inner[-1], inner[:, 0], inner[:, -1] = False, False, False, False
    border = np.flatnonzero(inside & ~inner)
    if not len(border):
        return s
    at = border[rng.integers(len(border))]
    return replace(s, x=float(s.grid.x.flat[at]), y=float(s.grid.y.flat[at]))


def _gone(rng: Draw, s: Spot, d: np.ndarray) -> Scene:
    """Take away the part where d < 0; what is left has a rough fracture."""
    d = d + 0.1 * s.radius * noise(rng, s.grid.side, max(0.04, 0.3 * s.radius))
    width = between(rng, 0.02, 0.1)
    face = np.clip(1 - d / width, 0, 1) * (rng.random() < 0.7)
    rgb = (
        np.broadcast_to(colour(rng), s.scene.rgb.shape)
        if rng.random() < 0.3
        else (s.scene.rgb * rng.uniform(0.4, 1.5))
    )
    rgb = shaded(rgb, 0.4 * noise(rng, s.grid.side, 0.04) - 0.4 * rim(s.grid, -d, 0.1))
    scene = paint(s.scene, face * rng.uniform(0.4, 1), rgb)
    return replace(scene, alpha=scene.alpha * soft(-d, 2 * s.grid.pixel))


def chip(rng: Draw, s: Spot) -> Scene:
    """A piece broken off the edge."""
    s = _to_rim(rng, s)
    return _gone(rng, s, outlined(rng, s))


def broken(rng: Draw, s: Spot) -> Scene:
    """A large piece broken off along a jagged line."""
    line = walk(rng, 0, 0, 0, 3.2, rng.uniform(0.2, 0.5))
    u, v = s.grid.turned(rng.uniform(0, 2 * np.pi), s.x, s.y)
    px = np.array([p[0] for p in line]) - line[len(line) // 2][0]
    py = np.array([p[1] for p in line]) - line[len(line) // 2][1]
    order = np.argsort(px)
    d = (v - np.interp(u, px[order], py[order]) * rng.uniform(0.3, 1)).astype(np.float32)
    inside = s.scene.alpha > 0.5
    if (inside & (d < 0)).sum() > 0.5 * inside.sum():
        d = -d
    share = rng.uniform(0.06, 0.35)
    d = d - np.float32(np.quantile(d[inside], share))
    return _gone(rng, s, d)


def missing(rng: Draw, s: Spot) -> Scene:
    """A part is not there: a sector, strip or block without its cover."""
    u, v = s.grid.turned(rng.uniform(0, 2 * np.pi), s.x, s.y)
    kind = rng.integers(3)
    if kind == 0:
        d = np.maximum(np.abs(u) - s.radius, np.abs(v) - s.radius * rng.uniform(0.3, 1))
    elif kind == 1:
        d = np.hypot(u, v) - s.radius
    else:
        d = np.maximum(np.abs(v) - 0.6 * u, s.away() - 1.6 * s.radius)
    amount = soft(d, 2 * s.grid.pixel)
    if rng.random() < 0.5:
        return replace(s.scene, alpha=s.scene.alpha * (1 - amount))
    ground = np.broadcast_to(colour(rng, rng.choice(["dark", "grey"])), s.scene.rgb.shape)
    return paint(s.scene, amount, shaded(ground, -0.5 * rim(s.grid, d, 0.1)))


def rust(rng: Draw, s: Spot) -> Scene:
    """Patchy corrosion in browns, rough."""
    t = noise(rng, s.grid.side, 0.5 * s.radius + 0.03) + noise(rng, s.grid.side, 0.08)
    t = t + 0.5 * noise(rng, s.grid.side, 0.03)
    patch = soft(outlined(rng, s), s.radius)
    amount = np.clip((t + 4 * patch - rng.uniform(2, 3)) * 1.5, 0, 1)
    a = hsv(rng.uniform(0.02, 0.09), rng.uniform(0.5, 0.9), rng.uniform(0.25, 0.65))
    if rng.random() < 0.15:
        a = hsv(rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.8))
    rgb = a * (1 + 0.45 * t)[..., None] * np.ones(3, np.float32)
    return paint(s.scene, amount * rng.uniform(0.6, 1), np.clip(rgb, 0, 1))


def discoloration(rng: Draw, s: Spot) -> Scene:
    """A soft change of hue or brightness."""
    gain = np.exp(rng.uniform(-1, 1, 3) * rng.uniform(0.2, 0.7)).astype(np.float32)
    if rng.random() < 0.5:
        gain[:] = np.exp(rng.choice([-1, 1]) * rng.uniform(0.2, 0.7))
    return paint(s.scene, shape(rng, s, s.radius * rng.uniform(0.2, 1.5)), s.scene.rgb * gain)


def fray(rng: Draw, s: Spot) -> Scene:
    """Loose fibres stand out of an edge or a tear."""
    s = _to_rim(rng, s) if rng.random() < 0.6 else s
    angle, tints = rng.uniform(0, 2 * np.pi), s.scene.rgb
    at = (
        min(int((s.y + 1) / s.grid.pixel), s.grid.side - 1),
        min(int((s.x + 1) / s.grid.pixel), s.grid.side - 1),
    )
    tint = np.clip(tints[at] * rng.choice([0.5, 1.4]) + rng.uniform(-0.15, 0.25), 0, 1)
    lines = []
    for _ in range(rng.integers(6, 22)):
        x, y = s.x + rng.normal(0, 0.4) * s.radius, s.y + rng.normal(0, 0.4) * s.radius
        there = replace(s, x=x, y=y)
        lines.append(
            (
                curve(rng, there, s.radius * rng.uniform(0.6, 1.8), 2, angle + rng.normal(0, 0.5)),
                between(rng, 0.012, 0.03),
            )
        )
    hairs = blurred(drawn(s.grid, lines), 0.4)
    scene = shade(s.scene, -0.4 * blurred(hairs, 4), 0)
    return paint(scene, hairs * 0.9, tint.astype(np.float32), True)


def moved(scene: Scene, dx: np.ndarray, dy: np.ndarray, background: bool = False) -> Scene:
    """The foreground shifted by a field given in units of length."""
    side = scene.grid.side
    rows, columns = np.indices((side, side), dtype=np.float32)
    at = [rows - dy / scene.grid.pixel, columns - dx / scene.grid.pixel]

    def move(plane: np.ndarray) -> np.ndarray:
        return map_coordinates(plane, at, order=1, mode="nearest")

    rgb = np.stack([move(scene.rgb[..., c]) for c in range(3)], axis=-1)
    return replace(scene, rgb=rgb, alpha=move(scene.alpha))


def bent(rng: Draw, s: Spot) -> Scene:
    """Pushed or pulled aside."""
    s = _to_rim(rng, s) if rng.random() < 0.6 else s
    angle, radius = rng.uniform(0, 2 * np.pi), max(s.radius, 0.15) * 1.5
    near = np.clip(1 - (s.away() / radius) ** 2, 0, 1) ** 2
    far = radius * rng.uniform(0.25, 0.55) * near
    scene = moved(s.scene, far * np.cos(angle), far * np.sin(angle))
    return shade(scene, relief(s.grid, near, radius * rng.uniform(0, 0.25)), 0.1)


def pinched(rng: Draw, s: Spot) -> Scene:
    """Squeezed, swollen or twisted about a point."""
    radius = max(s.radius, 0.12) * 1.5
    dx, dy = s.grid.x - s.x, s.grid.y - s.y
    near = np.clip(1 - (dx**2 + dy**2) / radius**2, 0, 1) ** 2
    if rng.random() < 0.5:
        k = rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
        scene = moved(s.scene, k * near * dx, k * near * dy)
    else:
        k = rng.choice([-1, 1]) * rng.uniform(0.8, 2.5) * near
        scene = moved(
            s.scene, dx * (1 - np.cos(k)) - dy * np.sin(k), dy * (1 - np.cos(k)) + dx * np.sin(k)
        )
    return shade(scene, relief(s.grid, near, radius * rng.uniform(-0.2, 0.2)), 0.1)


def cut(rng: Draw, s: Spot) -> Scene:
    """A clean cut, open in the middle."""
    u, v = s.grid.turned(rng.uniform(0, np.pi), s.x, s.y)
    half = s.radius * rng.uniform(0.8, 2)
    v = v + rng.uniform(-0.3, 0.3) * u * u
    opening = between(rng, 0.015, 0.08) * np.sqrt(np.clip(1 - (u / half) ** 2, 0, 1))
    d = np.where(np.abs(u) < half, np.abs(v) - opening, 9)
    inside = soft(d, 2 * s.grid.pixel)
    lip = np.exp(-((d / 0.03) ** 2)) * np.sign(v) * rng.uniform(-0.5, 0.5)
    scene = shade(s.scene, lip)
    if rng.random() < 0.3:
        return replace(scene, alpha=scene.alpha * (1 - inside))
    return shade(scene, -rng.uniform(0.6, 0.95) * inside, 0)


def fold(rng: Draw, s: Spot) -> Scene:
    """A crease or wrinkle, bright on one side and dark on the other."""
    u, v = s.grid.turned(rng.uniform(0, np.pi), s.x, s.y)
    half, width = s.radius * rng.uniform(1, 3), between(rng, 0.03, 0.15)
    v = v + rng.uniform(-0.4, 0.4) * u * u + 0.03 * noise(rng, s.grid.side, 0.3)
    t = v / width
    light = t * np.exp(-t * t) * 1.6 * soft(np.abs(u) - half, 0.5 * half)
    return shade(s.scene, rng.choice([-1, 1]) * rng.uniform(0.4, 0.9) * light, 0.15)


def thread(rng: Draw, s: Spot) -> Scene:
    """A hair, thread, fibre or wire lies on it."""
    n = 1 if rng.random() < 0.7 else int(rng.integers(2, 5))
    lines = [
        (curve(rng, s, s.radius * rng.uniform(2, 5), rng.uniform(1, 7)), between(rng, 0.015, 0.05))
        for _ in range(n)
    ]
    hair = blurred(drawn(s.grid, lines), 0.4)
    step = round(rng.uniform(0.01, 0.05) / s.grid.pixel)
    shadow = np.roll(hair, (round(-s.grid.light[1] * step), round(-s.grid.light[0] * step)), (0, 1))
    scene = shade(s.scene, -rng.uniform(0, 0.4) * blurred(shadow, 1), 0)
    return paint(scene, hair, colour(rng), True)


def prints(rng: Draw, s: Spot) -> Scene:
    """A wrong or smudged print: letters, bars, rings, dots."""
    u, v = s.grid.turned(rng.uniform(0, 2 * np.pi), s.x, s.y)
    u, v = u / s.radius, v / s.radius
    kind = rng.integers(4)
    if kind == 0:
        marks = rng.random((int(rng.integers(3, 7)), int(rng.integers(3, 12)))) < 0.55
        i = ((v * rng.uniform(1, 2.5) + 1) / 2 * len(marks)).astype(int)
        j = ((u + 1) / 2 * marks.shape[1]).astype(int)
        ok = (i >= 0) & (j >= 0) & (i < len(marks)) & (j < marks.shape[1])
        amount = marks[i.clip(0, len(marks) - 1), j.clip(0, marks.shape[1] - 1)] * ok
    elif kind == 1:
        amount = soft(np.abs(np.hypot(u, v) - 0.8) - rng.uniform(0.05, 0.2), 0.05)
    elif kind == 2:
        amount = soft(np.maximum(np.abs(u) - 1, np.abs(v) - 0.6), 0.03) * (
            np.sin(u * rng.uniform(8, 25)) > rng.uniform(-0.5, 0.5)
        )
    else:
        amount = soft(
            np.minimum(
                np.maximum(np.abs(u) - 1, np.abs(v) - 0.15),
                np.maximum(np.abs(v) - 1, np.abs(u) - 0.15),
            ),
            0.05,
        )
    amount = amount * np.clip(rng.uniform(0.6, 1.2) + 0.4 * noise(rng, s.grid.side, 0.1), 0, 1)
    return paint(s.scene, amount.astype(np.float32), colour(rng))


def ink(rng: Draw, s: Spot) -> Scene:
    """A pen stroke, paint splash or smear."""
    if rng.random() < 0.5:
        line = curve(rng, s, s.radius * rng.uniform(2, 5), rng.uniform(1, 8))
        amount = drawn(s.grid, [(line, between(rng, 0.03, 0.12))])
    else:
        d = _spots(rng, s, int(rng.integers(2, 12)), 0.03, 0.4 * s.radius + 0.04)
        amount = soft(d - 1 + 0.2 * noise(rng, s.grid.side, 0.1), 0.2)
    return paint(s.scene, blurred(amount, 0.5) * rng.uniform(0.6, 1), colour(rng))


def glue(rng: Draw, s: Spot) -> Scene:
    """A translucent, glossy strip or drop of glue or resin."""
    if rng.random() < 0.5:
        line = curve(rng, s, s.radius * 2, 1.5)
        d = 0.5 - blurred(drawn(s.grid, [(line, s.radius * rng.uniform(0.3, 0.7))]), 2)
        d = d * 0.2
    else:
        d = outlined(rng, s)
    inside = soft(d, 0.03)
    scene = paint(
        s.scene, inside * rng.uniform(0.2, 0.7), colour(rng, rng.choice(["pale", "earth", "grey"]))
    )
    edge = rim(s.grid, d, max(0.05, 0.5 * s.radius)) * inside
    return replace(scene, rgb=scene.rgb + (rng.uniform(0.2, 0.6) * edge)[..., None])


def burn(rng: Draw, s: Spot) -> Scene:
    """Scorched: brown at the border, black in the middle, sooty."""
    d = outlined(rng, s) + 0.2 * s.radius * noise(rng, s.grid.side, 0.3 * s.radius + 0.02)
    t = np.clip(0.5 - d / s.radius, 0, 1)[..., None]
    brown = hsv(rng.uniform(0.04, 0.1), 0.7, rng.uniform(0.3, 0.6))
    rgb = s.scene.rgb * (1 - np.clip(1.6 * t, 0, 1) * (1 - brown))
    return replace(s.scene, rgb=rgb * (1 - rng.uniform(0.4, 0.95) * np.clip(2 * t - 0.8, 0, 1)))


def pasted(rng: Draw, s: Spot) -> Scene:
    """A patch cut from another picture."""
    d = outlined(rng, s)
    if rng.random() < 0.4:
        u, v = s.grid.turned(rng.uniform(0, np.pi), s.x, s.y)
        d = np.maximum(np.abs(u) - s.radius, np.abs(v) - s.radius * rng.uniform(0.2, 1))
    return paint(s.scene, soft(d, 2 * s.grid.pixel), s.foreign(), rng.random() < 0.2)


def perlin(rng: Draw, s: Spot) -> Scene:
    """Foreign texture in cloud-like patches, opaque or translucent."""
    t = noise(rng, s.grid.side, s.radius * rng.uniform(0.3, 1.2) + 0.03)
    t = t + 0.5 * noise(rng, s.grid.side, s.radius * rng.uniform(0.1, 0.5) + 0.02)
    window = 1.5 * np.clip(1.2 - s.away() / (1.8 * s.radius + 0.1), -2, 1)
    amount = np.clip((t + window - rng.uniform(0.7, 1.1)) * 4, 0, 1)
    return paint(s.scene, amount * rng.uniform(0.35, 1), s.foreign())


def blended(rng: Draw, s: Spot) -> Scene:
    """A foreign or own patch whose brightness is fitted to the surroundings, softly blended."""
    amount = soft(outlined(rng, s), s.radius * rng.uniform(0.3, 1))
    rgb = s.foreign() if rng.random() < 0.6 else _shifted(rng, s)
    weight = amount[..., None] / (amount.sum() + 1e-3)
    there, here = (rgb * weight).sum((0, 1)), (s.scene.rgb * weight).sum((0, 1))
    rgb = rgb + rng.uniform(0.5, 1) * (here - there)
    return paint(s.scene, amount, np.clip(rgb, 0, 1.2))


def _shifted(rng: Draw, s: Spot) -> np.ndarray:
    """The scene's own foreground, shifted, turned or mirrored."""
    step = rng.uniform(0.15, 0.8) / s.grid.pixel
    angle = rng.uniform(0, 2 * np.pi)
    rgb = np.roll(s.scene.rgb, (round(step * np.sin(angle)), round(step * np.cos(angle))), (0, 1))
    turn = rng.integers(6)
    return np.rot90(rgb, turn) if turn < 4 else rgb[::-1] if turn == 4 else rgb[:, ::-1]


def noisy(rng: Draw, s: Spot) -> Scene:
    """A patch of grain or coloured noise."""
    grain = rng.normal(0, rng.uniform(0.2, 0.6), (s.grid.side // 2, s.grid.side // 2, 3))
    if rng.random() < 0.6:
        grain[..., 1:] = grain[..., :1]
    grain = np.repeat(np.repeat(grain, 2, 0), 2, 1).astype(np.float32)
    return replace(s.scene, rgb=s.scene.rgb + shape(rng, s)[..., None] * grain)


def smeared(rng: Draw, s: Spot) -> Scene:
    """A patch without its texture: wiped, melted or out of focus."""
    picture = Image.fromarray((np.clip(s.scene.rgb, 0, 1) * 255).astype(np.uint8))
    sigma = between(rng, 0.06, 0.25) / s.grid.pixel
    rgb = np.asarray(picture.filter(ImageFilter.BoxBlur(sigma)), np.float32) / 255
    return paint(s.scene, shape(rng, s), rgb * rng.uniform(0.75, 1.25))


def misplaced(rng: Draw, s: Spot) -> Scene:
    """A patch of the same part in the wrong place."""
    u, v = s.grid.turned(0, s.x, s.y)
    d = np.maximum(np.abs(u) - s.radius, np.abs(v) - s.radius * rng.uniform(0.3, 1))
    d = d if rng.random() < 0.5 else outlined(rng, s)
    return paint(s.scene, soft(d, 2 * s.grid.pixel), _shifted(rng, s))


def swapped(rng: Draw, s: Spot) -> Scene:
    """A round or square piece put back turned or mirrored."""
    half = max(2, int(s.radius / s.grid.pixel))
    side = s.grid.side
    cx = int(np.clip((s.x + 1) / s.grid.pixel, half, side - half))
    cy = int(np.clip((s.y + 1) / s.grid.pixel, half, side - half))
    rgb = s.scene.rgb.copy()
    block = rgb[cy - half : cy + half, cx - half : cx + half]
    turn = rng.integers(1, 5)
    other = np.rot90(block, turn) if turn < 4 else block[:, ::-1]
    line = np.linspace(-1, 1, 2 * half)
    inside = (np.hypot(line[:, None], line) < 1) | (rng.random() < 0.5)
    rgb[cy - half : cy + half, cx - half : cx + half] = np.where(inside[..., None], other, block)
    return replace(s.scene, rgb=rgb)


def peeling(rng: Draw, s: Spot) -> Scene:
    """Paint or plating flaked off; the ground shows, with a step at the border."""
    d = outlined(rng, s) + 0.25 * s.radius * noise(rng, s.grid.side, 0.3 * s.radius + 0.02)
    ground = colour(rng) * (1 + 0.15 * noise(rng, s.grid.side, 0.05))[..., None]
    scene = paint(s.scene, soft(d, 2 * s.grid.pixel), ground)
    step = np.exp(-((d / 0.03) ** 2)) * rim(s.grid, d, 1)
    return shade(scene, -rng.uniform(0.2, 0.7) * step, 0.1)


def mould(rng: Draw, s: Spot) -> Scene:
    """Fuzzy spots that spread."""
    d = _spots(rng, s, int(rng.integers(3, 14)), 0.04, 0.35 * s.radius + 0.06)
    fuzz = 0.25 * noise(rng, s.grid.side, 0.04)
    amount = soft(d - 0.8 + fuzz, 0.9) * rng.uniform(0.5, 0.95)
    tint = hsv(rng.uniform(0.2, 0.5), rng.uniform(0, 0.4), rng.uniform(0.05, 0.9))
    return paint(s.scene, amount, tint)


def streak(rng: Draw, s: Spot) -> Scene:
    """A straight line or band across the part: roller mark, missing row, uneven coat."""
    _, v = s.grid.turned(rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)]), s.x, s.y)
    width = between(rng, 0.02, max(0.04, 0.4 * s.radius))
    band = soft(np.abs(v) - width, between(rng, 0.02, 0.1))
    if rng.random() < 0.3:
        return paint(s.scene, band, _shifted(rng, s))
    return shade(s.scene, band * rng.choice([-1, 1]) * rng.uniform(0.15, 0.6), 0.1)


DEFECTS: dict[str, tuple[Callable[[Draw, Spot], Scene], tuple[str, ...]]] = {
    "scratch": (scratch, ("scratch", "scratch mark", "line scratch")),
    "scratches": (scratches, ("scratches", "scratched", "multiple scratches")),
    "scuff": (scuff, ("scuff", "abrasion", "worn", "rough")),
    "crack": (crack, ("crack", "cracked", "fracture")),
    "crazing": (crazing, ("cracks", "crazing", "crack network")),
    "gouge": (gouge, ("gouge", "groove", "furrow")),
    "hole": (hole, ("hole", "puncture", "poke")),
    "blowhole": (blowhole, ("blowhole", "pore", "bubble")),
    "pitting": (pitting, ("pitting", "pits", "erosion")),
    "dent": (dent, ("dent", "bump", "impression", "flattening")),
    "stain": (stain, ("stain", "spot", "dirt")),
    "wet": (wet, ("oil", "liquid", "drops")),
    "contamination": (contamination, ("contamination", "foreign body", "foreign object")),
    "dust": (dust, ("dust", "specks", "crumbs")),
    "chip": (chip, ("chip", "chipped edge", "broken edge")),
    "broken": (broken, ("broken", "broken large", "breakage")),
    "missing": (missing, ("missing part", "missing", "gap")),
    "rust": (rust, ("rust", "corrosion", "oxidation")),
    "discoloration": (discoloration, ("discoloration", "color", "fading")),
    "fray": (fray, ("fray", "frayed", "loose fibres")),
    "bent": (bent, ("bent", "deformation", "damaged edge")),
    "pinched": (pinched, ("squeeze", "distortion", "twisted")),
    "cut": (cut, ("cut", "slit", "tear")),
    "fold": (fold, ("fold", "crease", "wrinkle")),
    "thread": (thread, ("thread", "hair", "fibre")),
    "prints": (prints, ("print", "faulty imprint", "misprint")),
    "ink": (ink, ("ink", "paint", "pen mark", "splash")),
    "glue": (glue, ("glue", "glue strip", "resin")),
    "burn": (burn, ("burn", "burn mark", "scorch")),
    "pasted": (pasted, ("patch", "wrong patch", "cut and paste")),
    "perlin": (perlin, ("foreign texture", "anomaly", "texture defect")),
    "blended": (blended, ("blended patch", "soft anomaly")),
    "noisy": (noisy, ("noise", "grain", "rough patch")),
    "smeared": (smeared, ("smear", "blur", "melted")),
    "misplaced": (misplaced, ("misplaced", "wrong place", "shifted")),
    "swapped": (swapped, ("swapped", "flip", "turned piece")),
    "peeling": (peeling, ("peeling", "flaking", "coating loss")),
    "mould": (mould, ("mould", "fungus", "spots")),
    "streak": (streak, ("streak", "band", "uneven")),
}
