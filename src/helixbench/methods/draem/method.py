"""DRAEM's synthetic defects (Zavrtanik et al., ICCV 2021): a foreign texture behind a Perlin-noise
mask.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from helixbench.errors import UserError
from helixbench.methods.method import Conditions
from helixbench.methods.perlin import perlin_mask
from helixbench.methods.synthetic import (
    TRIES,
    Draws,
    SyntheticMethod,
    another_normal,
    array,
    seen,
    turned,
)
from helixbench.pictures.files import FORMATS


class DraemMethod(SyntheticMethod):
    """Blends a texture into the plan's background where rotated Perlin noise exceeds a threshold.

    The plan's defect type has no part in it: each type gets pairs of the same kind.
    """

    def describe(self) -> str:
        """Where the textures are from."""
        return (
            f"textures of {Path(self.config.textures).name}"
            if self.config.textures
            else "textures of the category's own normals, altered"
        )

    @cached_property
    def files(self) -> list[Path]:
        """Pictures of the texture folder, sorted."""
        folder = Path(self.config.textures)
        files = sorted(
            p
            for p in folder.rglob("*")
            if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
        )
        if not files:
            raise UserError(
                f"{folder}: no pictures; put textures there, or leave "
                f"train.methods.<name>.textures empty"
            )
        return files

    def draw(self, conditions: Conditions, i: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
        """See SyntheticMethod.draw; the mask leaves out pieces that nobody would see."""
        config, normal = self.config, array(conditions.background, i)
        size = normal.shape[:2]
        if rng.chance(config.rotate_share):
            angle = rng.uniform(-config.max_rotation, config.max_rotation)
            # Black corners, as in DRAEM's code.
            normal = turned(normal, angle, mode="constant").clip(0, 1)
        for _ in range(TRIES):
            mask = perlin_mask(size, config.max_scale, config.threshold, config.max_rotation, rng)
            texture = altered(self.texture(conditions, i, rng), rng)
            opacity = rng.uniform(*config.opacity)
            alpha = opacity * mask[..., None]
            image = (normal * (1 - alpha) + texture * alpha).astype(np.float32)
            mask = seen(normal, image, mask)
            if mask.any():
                return image, mask
        return normal, np.zeros(size, bool)

    def texture(self, conditions: Conditions, i: int, rng: Draws) -> np.ndarray:
        """A texture (H, W, 3) in [0, 1]: a file of the folder, or an enlarged, turned piece of a
        normal.
        """
        height, width = conditions.background.shape[-2:]
        if not self.config.textures:
            # Enlarged and turned, so that it does not repeat what it covers.
            return turned(
                another_normal(conditions, i, rng), rng.uniform(-180, 180), rng.uniform(1.5, 4)
            ).clip(0, 1)
        file = self.files[rng.integer(len(self.files))]
        try:
            picture = (
                Image.open(file, formats=FORMATS)
                .convert("RGB")
                .resize((width, height), Image.Resampling.BILINEAR)
            )
        except OSError as error:
            raise UserError(
                f"{file}: not a readable picture ({error}); repair or remove it"
            ) from None
        return np.asarray(picture, np.float32) / 255


def altered(texture: np.ndarray, rng: Draws) -> np.ndarray:
    """Three of ten changes of colour and shape, as DRAEM makes them, of (H, W, 3) in [0, 1].

    Ranges are those of imgaug's augmenters with DRAEM's arguments, or their defaults.
    """
    picture = Image.fromarray((texture * 255).round().astype(np.uint8))
    for name in rng.order(len(_CHANGES))[:3]:
        picture = _CHANGES[name](picture, rng)
    return np.asarray(picture, np.float32) / 255


def _per_channel(picture: Image.Image, change) -> Image.Image:
    values = np.asarray(picture, np.float32) / 255
    return Image.fromarray(
        (np.stack([change(values[..., c]) for c in range(3)], -1).clip(0, 1) * 255)
        .round()
        .astype(np.uint8)
    )


def _gamma(picture: Image.Image, rng: Draws) -> Image.Image:
    return _per_channel(picture, lambda channel: channel ** rng.uniform(0.5, 2.0))


def _brightness(picture: Image.Image, rng: Draws) -> Image.Image:
    factor, offset = rng.uniform(0.8, 1.2), rng.uniform(-30, 30) / 255
    return _per_channel(picture, lambda channel: channel * factor + offset)


def _hue_and_saturation(picture: Image.Image, rng: Draws) -> Image.Image:
    values = np.asarray(picture.convert("HSV")).astype(int)
    values[..., 0] = (values[..., 0] + round(rng.uniform(-50, 50))) % 256
    values[..., 1] = (values[..., 1] + round(rng.uniform(-50, 50))).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8), "HSV").convert("RGB")


def _rotated(picture: Image.Image, rng: Draws) -> Image.Image:
    values = turned(np.asarray(picture, np.float32), rng.uniform(-45, 45), mode="constant")
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _sharpened(picture: Image.Image, rng: Draws) -> Image.Image:
    # Factors below 1 blur.
    return ImageEnhance.Sharpness(picture).enhance(rng.uniform(0, 3))


def _solarized(picture: Image.Image, rng: Draws) -> Image.Image:
    """In half of the draws, as DRAEM's `Solarize(0.5)`."""
    threshold = round(rng.uniform(32, 128))
    return ImageOps.solarize(picture, threshold) if rng.chance(0.5) else picture


def _contrasted(picture: Image.Image, rng: Draws) -> Image.Image:
    # Up to 20 % of the darkest and of the brightest pixels become black and white.
    return ImageOps.autocontrast(picture, cutoff=rng.integer(21))


_CHANGES = (
    _gamma,
    _brightness,
    _hue_and_saturation,
    _rotated,
    _sharpened,
    _solarized,
    lambda picture, rng: ImageOps.posterize(picture, 1 + rng.integer(8)),  # bits
    lambda picture, rng: ImageOps.invert(picture),
    _contrasted,
    lambda picture, rng: ImageOps.equalize(picture),
)
