"""NSA, natural synthetic anomalies (Schlueter et al., ECCV 2022): patches of another normal,
blended in seamlessly.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from helixbench.methods.method import Conditions
from helixbench.methods.synthetic import (
    TRIES,
    Draws,
    SyntheticMethod,
    another_normal,
    array,
    object_of,
)

ATTEMPTS = 200
"""To find a place of a patch, in the source and in the destination, as in NSA's code."""


class NsaMethod(SyntheticMethod):
    """Blends resized rectangles of a random normal into the plan's background, which hides their
    borders.

    The mask is where the picture changed; the plan's defect type has no part in it.
    """

    def draw(self, conditions: Conditions, i: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
        """See SyntheticMethod.draw; drawn again until something changed."""
        config, normal = self.config, array(conditions.background, i)
        destination_object = object_of(normal)
        for _ in range(TRIES):
            source = another_normal(conditions, i, rng)
            source_object = object_of(source)
            image = normal
            # One patch always, each further one in half of the pictures.
            for number in range(config.patches):
                if number == 0 or rng.chance(0.5):
                    image = self.patch(image, source, destination_object, source_object, rng)
            mask = changed(normal, image, config.tolerance)
            if mask.any():
                return image, mask
        return normal, np.zeros(normal.shape[:2], bool)

    def patch(
        self,
        image: np.ndarray,
        source: np.ndarray,
        destination_object: np.ndarray,
        source_object: np.ndarray,
        rng: Draws,
    ) -> np.ndarray:
        """The picture (H, W, 3) with one more patch; the same where none fits the objects.

        Args:
            image: destination (H, W, 3) in [0, 1].
            source: another normal of that shape.
            destination_object: foreground (H, W) bool of the destination.
            source_object: foreground (H, W) bool of the source.
            rng: random numbers of the pair.
        """
        config, sides = self.config, image.shape[:2]
        limits = [[max(3, round(share * side)) for share in config.half_side] for side in sides]
        halves = [self.half(side, limit, rng) for side, limit in zip(sides, limits, strict=True)]
        for _ in range(ATTEMPTS):
            spans = zip(sides, halves, limits, strict=True)
            rows, columns = (_cut(side, half, limit[0], rng) for side, half, limit in spans)
            if source_object[rows, columns].mean() > config.min_object:
                break
        else:
            return image
        piece = source[rows, columns]
        scale = np.clip(1 + 0.5 * rng.normal(1)[0], *config.resize)
        height, width = _scaled(piece.shape[:2], scale, limits)
        patch = _resized(piece, (height, width))
        shown = _resized(source_object[rows, columns].astype(np.float32), (height, width)) > 0.5
        for _ in range(ATTEMPTS):
            y, x = rng.integer(sides[0] - height + 1), rng.integer(sides[1] - width + 1)
            shared = (shown & destination_object[y : y + height, x : x + width]).sum()
            if shown.mean() > config.min_object and shared > config.min_overlap * shown.sum():
                return poisson_blend(image, patch, y, x)
        return image

    def half(self, side: int, limit: list[int], rng: Draws) -> int:
        """Half a side of a patch [pixel], from a shifted gamma distribution of shape 2.

        Args:
            side: side of the picture [pixel].
            limit: smallest and largest half side [pixel].
            rng: random numbers of the pair.
        """
        # Shape 2 is the sum of two exponential draws.
        draw = -np.log(rng.uniform(1e-9, 1) * rng.uniform(1e-9, 1))
        share = self.config.half_side[0] + self.config.gamma_scale * draw
        return int(np.clip(share * side, *limit))


def changed(before: np.ndarray, after: np.ndarray, tolerance: float) -> np.ndarray:
    """Label (H, W) bool: channels change by more than `tolerance` on average, median of 5 x 5.

    Args:
        before: picture (H, W, 3) in [0, 1].
        after: the same with patches.
        tolerance: in grey levels, 1/255.
    """
    label = 255 * np.abs(after - before).mean(-1) > tolerance
    return ndimage.median_filter(label, 5, mode="nearest")


def _cut(side: int, half: int, margin: int, rng: Draws) -> slice:
    """Pixels within `half` of a centre that keeps `margin` from both ends; the side cuts them."""
    centre = margin + rng.integer(max(1, side - 2 * margin))
    return slice(max(centre - half, 0), min(centre + half, side))


def _scaled(shape: tuple[int, int], scale: float, limits: list[list[int]]) -> tuple[int, int]:
    """A patch's shape times `scale`, in its own proportion, each side within its limits."""
    (height, width), (of_height, of_width) = shape, limits
    new = np.clip(scale * height, *of_height)
    new_width = int(np.clip(int(new / height * width), *of_width))
    return int(np.clip(int(new_width / width * height), *of_height)), new_width


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of (h, w[, 3]) float to `size` (height, width)."""
    if picture.ndim == 3:
        return np.stack([_resized(picture[..., c], size) for c in range(3)], axis=-1)
    resized = Image.fromarray(picture.astype(np.float32)).resize(
        (size[1], size[0]), Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


def poisson_blend(image: np.ndarray, patch: np.ndarray, y: int, x: int) -> np.ndarray:
    """Seamless clone (Perez et al. 2003): the patch's Laplacian inside, the picture's own colours
    on its outermost pixels.

    image (H, W, 3) and patch (h, w, 3) in [0, 1], h, w >= 3; the patch's upper left corner goes to
    (y, x). On a rectangle the discrete sine transform diagonalises the Laplacian, so that the
    solution is exact.
    """
    height, width = patch.shape[0] - 2, patch.shape[1] - 2
    out = image.astype(np.float64)
    # The correction of the patch is harmonic: on the border it is the difference to the picture.
    border = out[y : y + height + 2, x : x + width + 2] - patch
    right = np.zeros((height, width, 3))
    right[0] -= border[0, 1:-1]
    right[-1] -= border[-1, 1:-1]
    right[:, 0] -= border[1:-1, 0]
    right[:, -1] -= border[1:-1, -1]
    eigen = lambda n: 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) - 2
    spectrum = (
        fft.dstn(right, type=1, axes=(0, 1)) / (eigen(height)[:, None] + eigen(width))[..., None]
    )
    correction = fft.idstn(spectrum, type=1, axes=(0, 1))
    out[y + 1 : y + height + 1, x + 1 : x + width + 1] = patch[1:-1, 1:-1] + correction
    return out.clip(0, 1).astype(np.float32)
