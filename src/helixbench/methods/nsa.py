"""NSA, natural synthetic anomalies (Schlueter et al., ECCV 2022): patches of another normal, blended in seamlessly."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from helixbench.methods.drawing import TRIES, DrawingMethod, Draws, another_normal, array, object_of
from helixbench.methods.method import Conditions


class NsaMethod(DrawingMethod):
    """Blends resized rectangles of a random normal into the plan's background, which hides their borders.

    The mask is where the picture changed; the plan's defect type has no part in it.
    """

    def draw(self, conditions: Conditions, i: int, rng: Draws) -> tuple[np.ndarray, np.ndarray]:
        """See DrawingMethod.draw; drawn again until something changed."""
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
            changed = np.abs(image - normal).max(-1) > config.tolerance
            # The borders of a blended patch differ by less than what is inside; single pixels are noise of the camera.
            mask = ndimage.median_filter(ndimage.binary_fill_holes(changed), 3)
            if mask.any():
                return image, mask
        return normal, np.zeros(normal.shape[:2], bool)

    def patch(
        self, image: np.ndarray, source: np.ndarray, destination_object: np.ndarray, source_object: np.ndarray, rng: Draws
    ) -> np.ndarray:
        """The picture (H, W, 3) with one more patch; the same where none fits the two objects (H, W) bool."""
        config, shape = self.config, image.shape[:2]
        for _ in range(TRIES):
            # half-sides from a shifted gamma distribution of shape 2, as the sum of two exponential draws
            half = [config.half_side[0] - config.gamma_scale * np.log(rng.uniform(1e-9, 1) * rng.uniform(1e-9, 1)) for _ in range(2)]
            sides = [2 * min(h, config.half_side[1]) * side for h, side in zip(half, shape, strict=True)]
            scale = np.clip(1 + 0.5 * rng.normal(1)[0], *config.resize)
            size = [int(np.clip(round(s), 3, side)) for s, side in zip(sides, shape, strict=True)]
            new = [int(np.clip(round(s * scale), 3, side)) for s, side in zip(size, shape, strict=True)]
            top, left = (rng.integer(side - s + 1) for s, side in zip(size, shape, strict=True))
            y, x = (rng.integer(side - s + 1) for s, side in zip(new, shape, strict=True))
            of_source = _resized(source_object[top : top + size[0], left : left + size[1]].astype(np.float32), new) > 0.5
            of_destination = destination_object[y : y + new[0], x : x + new[1]]
            if of_source.mean() < config.min_object or (of_source & of_destination).sum() < config.min_overlap * of_source.sum():
                continue
            return poisson_blend(image, _resized(source[top : top + size[0], left : left + size[1]], new), y, x)
        return image


def _resized(picture: np.ndarray, size: list[int]) -> np.ndarray:
    """Bilinear resize of (h, w[, 3]) float."""
    if picture.ndim == 3:
        return np.stack([_resized(picture[..., c], size) for c in range(3)], axis=-1)
    resized = Image.fromarray(picture.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def poisson_blend(image: np.ndarray, patch: np.ndarray, y: int, x: int) -> np.ndarray:
    """Seamless clone (Perez et al. 2003): the patch's Laplacian inside, the picture's own colours on its outermost pixels.

    image (H, W, 3) and patch (h, w, 3) in [0, 1], h, w >= 3; the patch's upper left corner goes to (y, x). On a rectangle
    the discrete sine transform diagonalises the Laplacian, so that the solution is exact.
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
    eigen = lambda n: 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) - 2  # noqa: E731
    spectrum = fft.dstn(right, type=1, axes=(0, 1)) / (eigen(height)[:, None] + eigen(width))[..., None]
    correction = fft.idstn(spectrum, type=1, axes=(0, 1))
    out[y + 1 : y + height + 1, x + 1 : x + width + 1] = patch[1:-1, 1:-1] + correction
    return out.clip(0, 1).astype(np.float32)
