"""A drawn world for pre-training: surfaces and objects of every kind, defects with exact masks.

`World(64).sample(7)` is a pure function of the seed. Data sets that a model is judged on have no
part in it, and none of the procedural data set's painters or defects is used.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import binary_closing, binary_fill_holes, label

from helixbench.datasets.world.defects import DEFECTS, Spot
from helixbench.datasets.world.objects import Scene, placed
from helixbench.datasets.world.textures import (
    SURFACE_WORDS,
    Draw,
    Grid,
    between,
    colour,
    noise,
    surface,
)

VISIBLE = 6
"""Grey levels by which a channel must change for a pixel to belong to the mask."""
_LUMA = np.array([0.3, 0.59, 0.11], np.float32)
_SQUARE = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Drawn:
    """A picture with a defect, its mask, and the same picture without.

    image, normal: (S, S, 3) uint8; mask: (S, S) bool, empty for a good picture; equal outside the
    mask. object, defect: English words; kind: the defect's function, or "good".
    """

    image: np.ndarray
    mask: np.ndarray
    normal: np.ndarray
    object: str
    defect: str
    kind: str


class World:
    """Pictures of size x size pixels, drawn anew for each seed.

    photos: (N, H, H, 3) uint8 real textures; `real` of the pictures show one of them. `good` is the
    share of pictures without a defect.
    """

    def __init__(
        self, size: int, photos: np.ndarray | None = None, real: float = 0.5, good: float = 0.1
    ):
        self.size, self.photos, self.good = size, photos, good
        self.real = real if photos is not None else 0.0

    def sample(self, seed: int, kind: str | None = None) -> Drawn:
        """The picture of a seed (at least 0); kind: this defect, or "good"."""
        rng = np.random.default_rng(seed)
        scene, name = self._scene(rng)
        camera = Camera(rng, scene.grid, name)
        normal = camera(scene)
        if kind == "good" or (kind is None and rng.random() < self.good):
            normal = camera.compressed(normal)
            return Drawn(normal, np.zeros(normal.shape[:2], bool), normal, name, "good", "good")
        for attempt in range(12):
            chosen = kind or _KINDS[rng.integers(len(_KINDS))]
            draw, words = DEFECTS[chosen]
            spot = self._spot(rng, scene, attempt)
            image = camera(draw(rng, spot))
            mask = changed(normal, image)
            if 0.001 <= mask.mean() <= 0.4 and _strength(normal, image, mask) >= 24 - 1.5 * attempt:
                break
        else:  # nothing shows on this scene: a plain spot does
            chosen, words = "stain", DEFECTS["stain"][1]
            away = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, self.size)] * 2)) < 0.2
            image = np.where(away[..., None], 255 - normal // 2 * (normal > 127), normal)
            image = image.astype(np.uint8)
            mask = changed(normal, image)
        image = np.where(mask[..., None], camera.compressed(image), camera.compressed(normal))
        return Drawn(image, mask, camera.compressed(normal), name, str(rng.choice(words)), chosen)

    def _scene(self, rng: Draw) -> tuple[Scene, str]:
        g = Grid(2 * self.size, rng.uniform(0, 2 * np.pi))
        if rng.random() < self.real:
            rgb, name = self._photo(rng), str(rng.choice(["surface", "texture", "material"]))
        elif rng.random() < 0.42:
            rgb, kind = surface(rng, g)
            name = str(rng.choice(SURFACE_WORDS[kind]))
        else:
            scene, _, name = placed(rng, g)
            if self.real and rng.random() < 0.15:
                scene.background = self._photo(rng)
            elif self.real and rng.random() < 0.15:
                tone = self._photo(rng).mean(axis=2)
                scene.rgb = scene.rgb * np.clip(tone / (tone.mean() + 0.05), 0.3, 2)[..., None]
            return scene, name
        ground = np.broadcast_to(colour(rng, rng.choice(["dark", "grey", "pale"])), rgb.shape)
        return Scene(rgb, np.ones_like(g.x), ground.astype(np.float32), g), name

    def _photo(self, rng: Draw) -> np.ndarray:
        """(2S, 2S, 3) a crop of a real texture: turned, mirrored, its colours changed a little."""
        photo = self.photos[rng.integers(len(self.photos))]
        side = len(photo)
        n = int(side * rng.uniform(0.5, 1))
        y, x = rng.integers(0, side - n + 1, 2)
        photo = np.rot90(photo[y : y + n, x : x + n], rng.integers(4))
        photo = photo[:, ::-1] if rng.random() < 0.5 else photo
        picture = Image.fromarray(np.ascontiguousarray(photo))
        rgb = np.asarray(picture.resize((2 * self.size,) * 2, Image.Resampling.BICUBIC), np.float32)
        rgb = (rgb / 255) ** rng.uniform(0.7, 1.4)
        if rng.random() < 0.7:  # many textures of games are dark: expose them like a photograph
            level = rgb.mean()
            contrast = min(between(rng, 0.04, 0.2) / (rgb.std() + 0.01), 4)
            rgb = rng.uniform(0.25, 0.75) + (rgb - level) * max(contrast, 0.5)
        if rng.random() < 0.35:
            rgb = rgb + rng.uniform(0.4, 1) * (rgb.mean(axis=2, keepdims=True) - rgb)
        return np.clip(rgb * rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3), 0, 1).astype(
            np.float32
        )

    def _spot(self, rng: Draw, scene: Scene, attempt: int) -> Spot:
        """A place on the foreground and a radius for 0.2 to 30 percent of the picture."""
        g = scene.grid
        inside = scene.alpha > 0.5
        share = max(float(inside.mean()), 0.01)
        central = np.flatnonzero(inside & (np.maximum(np.abs(g.x), np.abs(g.y)) < 0.85))
        if not len(central) or rng.random() < 0.1:
            central = np.flatnonzero(inside) if inside.any() else np.arange(inside.size)
        at = central[rng.integers(len(central))]
        radius = np.sqrt(4 * between(rng, 0.002, 0.3) / np.pi)
        radius = float(min(radius * (1 + 0.1 * attempt), 0.9 * np.sqrt(share)))
        return Spot(scene, float(g.x.flat[at]), float(g.y.flat[at]), radius, self._foreign(rng, g))

    def _foreign(self, rng: Draw, g: Grid) -> Callable[[], np.ndarray]:
        def picture() -> np.ndarray:
            if rng.random() < self.real:
                return self._photo(rng)
            if rng.random() < 0.8:
                return surface(rng, g)[0]
            scene = placed(rng, g)[0]
            return scene.background + scene.alpha[..., None] * (scene.rgb - scene.background)

        return picture


_KINDS = tuple(DEFECTS)


class Camera:
    """One exposure: light, optics, sensor; the same for a picture with and without its defect."""

    def __init__(self, rng: Draw, g: Grid, name: str):
        side = g.side // 2
        x, y = Grid(side, 0).x, Grid(side, 0).y
        tilt = between(rng, 0.02, 0.4) * (x * g.light[0] + y * g.light[1])
        light = rng.uniform(0.85, 1.3) * (1 + tilt)
        if rng.random() < 0.4:
            light = light * (1 - between(rng, 0.05, 0.5) * (x * x + y * y) * 0.5)
        if rng.random() < 0.25:
            light = light * (1 + rng.uniform(0.05, 0.3) * noise(rng, side, between(rng, 0.4, 1.5)))
        self.light = light[..., None]
        self.spot = None
        if rng.random() < 0.2:
            cx, cy = rng.uniform(-1, 1, 2)
            reach = between(rng, 0.15, 0.8)
            q = ((x - cx) ** 2 + (y - cy) ** 2) / reach**2
            self.spot = (rng.uniform(0.05, 0.35) * np.exp(-q))[..., None]
        self.grey = rng.random() < 0.22
        self.cast = rng.uniform(0.94, 1.06, 3).astype(np.float32)
        self.gamma = rng.uniform(0.8, 1.25)
        self.fade = (rng.uniform(0, 0.12), rng.uniform(0.85, 1)) if rng.random() < 0.4 else (0, 1)
        self.blur = between(rng, 0.3, 1.6) * side / 96 if rng.random() < 0.45 else 0
        grain = rng.standard_normal((side, side, 1 if rng.random() < 0.5 else 3), dtype=np.float32)
        self.grain = grain * between(rng, 0.002, 0.03)
        self.quality = int(rng.integers(55, 96)) if rng.random() < 0.3 else None

    def __call__(self, scene: Scene) -> np.ndarray:
        """(S, S, 3) uint8 photograph of a (2S, 2S) scene."""
        alpha = scene.alpha[..., None]
        rgb = scene.background + alpha * (scene.rgb - scene.background)
        rgb = rgb[::2] + rgb[1::2]
        rgb = (rgb[:, ::2] + rgb[:, 1::2]) * (0.25 * self.light)
        if self.spot is not None:
            rgb = rgb + self.spot
        if self.grey:
            rgb = np.repeat((rgb @ _LUMA)[..., None], 3, axis=2)
        rgb = np.clip(rgb * self.cast, 0, 1) ** self.gamma
        low, high = self.fade
        rgb = low + (high - low) * rgb
        if self.blur:
            picture = Image.fromarray((rgb * 255 + 0.5).astype(np.uint8))
            picture = picture.filter(ImageFilter.GaussianBlur(self.blur))
            rgb = np.asarray(picture, np.float32) / 255
        return (np.clip(rgb + self.grain, 0, 1) * 255 + 0.5).astype(np.uint8)

    def compressed(self, picture: np.ndarray) -> np.ndarray:
        """The picture after JPEG, where this camera stores JPEG."""
        if self.quality is None:
            return picture
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "jpeg", quality=self.quality)
        return np.asarray(Image.open(file, formats=("JPEG",)).convert("RGB"))


def _strength(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Grey levels by which the masked pixels differ: the mean of the strongest tenth."""
    levels = np.abs(after[mask].astype(np.int16) - before[mask]).max(axis=1)
    n = max(1, len(levels) // 10)
    return float(np.partition(levels, -n)[-n:].mean())


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(S, S) bool: pixels that visibly differ; gaps of a pixel closed, small holes filled, specks
    dropped.
    """
    difference = np.abs(after.astype(np.int16) - before) >= VISIBLE
    difference = difference[..., 0] | difference[..., 1] | difference[..., 2]
    if not difference.any():
        return difference
    side = len(difference)
    region = binary_closing(np.pad(difference, 2), _SQUARE)[2:-2, 2:-2]
    holes, count = label(binary_fill_holes(region) & ~region)
    if count:
        sizes = np.bincount(holes.ravel())
        small = sizes <= max(4, 0.003 * side * side)
        small[0] = False
        region = region | small[holes]
    parts, count = label(region, _SQUARE)
    keep = np.bincount(parts.ravel()) >= max(3, 0.0006 * side * side)
    keep[0] = False
    return keep[parts]
