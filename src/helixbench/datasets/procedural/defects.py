"""Defects of the procedural data set: each changes a scene itself, so that light, shadow and
texture stay those of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.ndimage import (
    binary_closing,
    binary_dilation,
    binary_fill_holes,
    distance_transform_edt,
    label,
    map_coordinates,
)

from helixbench.datasets.procedural.scenes import LIGHT, Scene, edge, smooth

VISIBLE = 8
"""Grey levels by which a channel must change to count as visibly changed."""


def _inner(scene: Scene, rng: np.random.Generator, depth: float) -> tuple[float, float]:
    """A random point at least `depth` inside the object and inside the picture."""
    inside = np.pad(scene.alpha > 0.5, 1)
    distance = distance_transform_edt(inside)[1:-1, 1:-1] / scene.unit
    rows, columns = np.nonzero(distance >= min(depth, 0.8 * distance.max()))
    n = rng.integers(len(rows))
    return float(scene.x[rows[n], columns[n]]), float(scene.y[rows[n], columns[n]])


def _rim(
    scene: Scene, rng: np.random.Generator, farthest: float
) -> tuple[float, float, np.ndarray]:
    """A point on the object's outer edge and the unit vector to its middle; `farthest` share of the
    edge is eligible.
    """
    inside = binary_fill_holes(scene.alpha > 0.5)
    distance = distance_transform_edt(inside)
    middle = np.array([scene.x[inside].mean(), scene.y[inside].mean()])
    rows, columns = np.nonzero((distance > 0) & (distance <= 1.5))
    points = np.stack([scene.x[rows, columns], scene.y[rows, columns]], axis=1)
    reach = np.linalg.norm(points - middle, axis=1)
    points = points[reach >= np.quantile(reach, 1 - farthest)]
    point = points[rng.integers(len(points))]
    inward = middle - point
    return float(point[0]), float(point[1]), inward / np.linalg.norm(inward)


def _blob(
    scene: Scene, rng: np.random.Generator, x: float, y: float, radius: float, rough: float
) -> np.ndarray:
    """Signed distance (about) to an irregular closed outline around a point, negative inside."""
    dx, dy = scene.x - x, scene.y - y
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.75, 1.0)
    u = np.cos(turn) * dx + np.sin(turn) * dy
    v = (-np.sin(turn) * dx + np.cos(turn) * dy) / stretch
    angle = np.arctan2(v, u)
    outline = 1 + sum(
        rough / k * rng.uniform(-1, 1) * np.cos(k * angle + rng.uniform(0, 6.3))
        for k in range(2, 8)
    )
    return np.hypot(u, v) - radius * outline


def _relief(scene: Scene, height: np.ndarray, strength: float) -> np.ndarray:
    """Brightness that a height map adds under the light, (S, S)."""
    gy, gx = np.gradient(height, 1 / scene.unit)
    return np.clip(-strength * (gx * LIGHT[0] + gy * LIGHT[1]), -0.45, 0.45)


def scratch(scene: Scene, rng: np.random.Generator) -> Scene:
    """A curved gouge: dark ground, one bright and one dark flank, uneven depth."""
    x, y = _inner(scene, rng, 0.14)
    angle, length, bow = rng.uniform(0, np.pi), rng.uniform(0.3, 0.5), rng.uniform(-0.35, 0.35)
    width = rng.uniform(0.022, 0.03)
    dx, dy = scene.x - x, scene.y - y
    along = np.cos(angle) * dx + np.sin(angle) * dy
    wave = bow * along**2 + 0.012 * np.sin(along * rng.uniform(9, 16))
    across = -np.sin(angle) * dx + np.cos(angle) * dy - wave
    taper = edge(np.abs(along) - length + 0.06, 0.14)
    groove = np.exp(-((across / width) ** 2)) * taper
    depth = groove * np.clip(0.92 + 0.12 * smooth(rng, len(dx), 0.08), 0.6, 1.1)
    flank = _relief(scene, -width * groove, 0.75)
    rgb = scene.rgb * (1 - 0.72 * depth[..., None] ** 2) + flank[..., None]
    return replace(scene, rgb=rgb)


def hole(scene: Scene, rng: np.random.Generator) -> Scene:
    """A puncture: dark inside, the far wall lit, a raised lip, soot-like dirt around."""
    radius = rng.uniform(0.11, 0.18)
    x, y = _inner(scene, rng, radius + 0.12)
    distance = _blob(scene, rng, x, y, radius, 0.35)
    inside = edge(distance, 0.03)[..., None]
    away = ((scene.x - x) * -LIGHT[0] + (scene.y - y) * -LIGHT[1]) / radius
    wall = np.clip(0.25 + away, 0, 1.2) * edge(-distance - 0.05, 0.06)
    bottom = (0.07 + 0.5 * wall)[..., None] * scene.rgb
    lip = 0.04 * np.exp(-(((distance - 0.03) / 0.035) ** 2))
    dirt = 0.3 * np.exp(-((np.maximum(distance, 0) / 0.05) ** 2))
    around = (scene.rgb * (1 - dirt[..., None])) + _relief(scene, lip, 0.17)[..., None]
    return replace(scene, rgb=around * (1 - inside) + bottom * inside)


def stain(scene: Scene, rng: np.random.Generator) -> Scene:
    """Oil, rust or ink: multiplies the colour under it, darker where it dried last, droplets beside
    it.
    """
    radius = rng.uniform(0.15, 0.26)
    x, y = _inner(scene, rng, 0.8 * radius)
    side = len(scene.alpha)
    distance = _blob(scene, rng, x, y, radius, 0.5) + 0.02 * smooth(rng, side, 0.05)
    for _ in range(rng.integers(1, 4)):
        angle, reach = rng.uniform(0, 6.3), radius * rng.uniform(1.1, 1.5)
        drop = _blob(
            scene,
            rng,
            x + reach * np.cos(angle),
            y + reach * np.sin(angle),
            rng.uniform(0.03, 0.05),
            0.2,
        )
        distance = np.minimum(distance, drop)
    colour = np.array([(0.62, 0.42, 0.2), (0.3, 0.28, 0.3), (0.38, 0.5, 0.28)][rng.integers(3)])
    dried = np.exp(-(((distance + 0.02) / 0.022) ** 2))
    amount = (
        edge(distance, 0.06)
        * np.clip(0.78 + 0.2 * dried + 0.06 * smooth(rng, side, 0.06), 0, 1)
        * scene.alpha
    )
    return replace(scene, rgb=scene.rgb * (1 - amount[..., None] * (1 - colour)))


def _warp(scene: Scene, shift_x: np.ndarray, shift_y: np.ndarray) -> Scene:
    """Move the scene's content by a displacement field given in units of length."""
    rows, columns = np.indices(scene.alpha.shape, dtype=np.float32)
    at = [rows - shift_y * scene.unit, columns - shift_x * scene.unit]
    move = lambda plane: map_coordinates(plane, at, order=1, mode="nearest")
    return replace(
        scene,
        rgb=np.stack([move(scene.rgb[..., c]) for c in range(3)], axis=-1),
        alpha=move(scene.alpha),
    )


def bend(scene: Scene, rng: np.random.Generator) -> Scene:
    """An object's rim pushed in, or a surface's pattern dragged aside; the dent is shaded."""
    solid = scene.alpha.min() < 1
    if solid:
        x, y, direction = _rim(scene, rng, 1.0)
        radius, amount = rng.uniform(0.24, 0.3), rng.uniform(0.15, 0.19)
        x, y = x + 0.3 * radius * direction[0], y + 0.3 * radius * direction[1]
    else:
        x, y = rng.uniform(-0.5, 0.5, 2)
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        radius, amount = rng.uniform(0.28, 0.36), rng.uniform(0.17, 0.22)
    near = np.clip(1 - ((scene.x - x) ** 2 + (scene.y - y) ** 2) / (1.6 * radius) ** 2, 0, 1) ** 3
    warped = _warp(scene, amount * near * direction[0], amount * near * direction[1])
    shade = _relief(scene, -near * radius, 0.22 if solid else 0.09)
    return replace(
        warped, rgb=warped.rgb * (1 - 0.2 * near + shade)[..., None] + 0.4 * shade[..., None]
    )


def missing_part(scene: Scene, rng: np.random.Generator) -> Scene:
    """A piece broken off the object's outer edge: the background shows, and the fracture is rough
    and bright.
    """
    x, y, direction = _rim(scene, rng, 0.5)
    radius = rng.uniform(0.22, 0.32)
    distance = _blob(
        scene, rng, x + 0.15 * radius * direction[0], y + 0.15 * radius * direction[1], radius, 0.45
    )
    distance = distance + 0.012 * smooth(rng, len(distance), 0.03)
    fracture = np.exp(-((np.maximum(distance, 0) / 0.035) ** 2))[..., None]
    facing = ((scene.x - x) * -LIGHT[0] + (scene.y - y) * -LIGHT[1])[..., None] / radius
    rgb = scene.rgb * (1 - 0.55 * fracture) + fracture * (0.12 + 0.22 * np.clip(facing, 0, 1))
    return replace(scene, rgb=rgb, alpha=scene.alpha * edge(-distance, 0.02))


BREAKERS: dict[str, Callable[[Scene, np.random.Generator], Scene]] = {
    "scratch": scratch,
    "hole": hole,
    "stain": stain,
    "bend": bend,
    "missing_part": missing_part,
}
_CLOSING = {"bend": 0.1}
"""Radius that joins changed pixels [unit of length]: a bent pattern matches itself here and there
inside the bend."""
_MOVED = {"bend": 1, "missing_part": 1}
"""These take an outline away: a ring of pixels more, so that no ghost of its antialiased rim stays
behind."""


def changed_region(before: np.ndarray, after: np.ndarray, defect: str) -> np.ndarray:
    """(H, W) bool mask of what a defect changed: gaps and holes closed, specks dropped."""
    side = len(before)
    changed = np.abs(after.astype(int) - before).max(axis=2) > VISIBLE // 2
    reach = max(1, round(_CLOSING.get(defect, 0.03) * side / 2))
    line = np.arange(-reach, reach + 1)
    ball = line[:, None] ** 2 + line**2 <= reach**2 + 0.5
    wide = np.pad(changed, reach)
    region = binary_fill_holes(binary_closing(wide, ball)[reach:-reach, reach:-reach])
    parts, count = label(region)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    keep = sizes >= max(3, 0.0008 * side * side)
    keep[0] = False
    ring = (side >= 48) * _MOVED.get(defect, 0) * (1 + side // 200)
    return (
        binary_dilation(keep[parts], iterations=ring, structure=np.ones((3, 3)))
        if ring
        else keep[parts]
    )
