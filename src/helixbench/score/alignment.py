"""Image-mask agreement: does the mask cover what is unusual in the picture? Defined and argued in
docs/scores.md.

The reference of a pair are the normal pictures most like it. At each pixel the difference is the
smallest, over those normals and over small shifts, of the squared colour distances; then it is
averaged over a small window. The agreement is the AUROC of that difference against the mask within
the picture: the chance that a pixel inside the mask differs more than one outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from helixbench.metrics import auroc

NOTHING = 0.5
"""Agreement of a mask that is empty or full: it says nothing about where the difference is."""

_BLUR = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
_WINDOW = 5


@dataclass(frozen=True)
class Agreement:
    """Agreement of each pair (n,), and of the same pictures with the mask of the next pair instead
    (n,), both in [0, 1].
    """

    own: np.ndarray
    shuffled: np.ndarray


class MaskAgreement:
    """Normal pictures (n, H, W, 3) uint8 in memory, that pairs are compared with.

    size: pictures are averaged down to at most this side; neighbours: normals that a picture is
    compared with; shift: how far a pixel may look for its like [pixel of the small pictures].
    """

    def __init__(
        self,
        normals: np.ndarray,
        device: torch.device,
        *,
        size: int = 128,
        neighbours: int = 8,
        shift: int = 2,
    ):
        self.device, self.size, self.shift = device, size, shift
        self.normals = self._small(normals)
        self.neighbours = min(neighbours, len(normals))

    def _shrunk(self, planes: torch.Tensor) -> torch.Tensor:
        height, width = planes.shape[-2:]
        scale = min(1, self.size / max(height, width))
        return F.interpolate(
            planes, size=(round(height * scale), round(width * scale)), mode="area"
        )

    def _small(self, images: np.ndarray) -> torch.Tensor:
        """(n, H, W, 3) uint8 -> (n, 3, h, w) float32 in [0, 1], slightly blurred: noise and half a
        pixel's shift are no defect.
        """
        parts = [
            torch.from_numpy(images[i : i + 32]).permute(0, 3, 1, 2).float() / 255
            for i in range(0, len(images), 32)
        ]
        small = torch.cat([self._shrunk(part) for part in parts]).to(self.device)
        kernel = _BLUR.to(self.device)[None, None].repeat(3, 1, 1, 1)
        return F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)

    @torch.no_grad()
    def difference(self, image: np.ndarray) -> np.ndarray:
        """Picture (H, W, 3) uint8 -> (h, w) float32: how far each pixel is from its like in the
        nearest normals.
        """
        own = self._small(image[None])
        distance = (self.normals - own).square().mean((1, 2, 3))
        nearest = self.normals[distance.topk(self.neighbours, largest=False).indices]
        height, width = own.shape[-2:]
        padded = F.pad(nearest, (self.shift,) * 4, mode="replicate")
        least = torch.full((height, width), torch.inf, device=self.device)
        for y in range(2 * self.shift + 1):
            for x in range(2 * self.shift + 1):
                moved = padded[:, :, y : y + height, x : x + width]
                least = torch.minimum(least, (moved - own).square().sum(1).amin(0))
        return (
            F.avg_pool2d(least[None, None], _WINDOW, 1, _WINDOW // 2, count_include_pad=False)[0, 0]
            .cpu()
            .numpy()
        )

    def __call__(self, images: np.ndarray, masks: np.ndarray) -> Agreement:
        """Images (n, H, W, 3) uint8, masks (n, H, W) bool, of the normals' size."""
        small = self._shrunk(torch.from_numpy(masks)[:, None].float())[:, 0].numpy() >= 0.5
        own, shuffled = [], []
        for i, image in enumerate(images):
            values = self.difference(image)
            own.append(_auroc(values, small[i]))
            shuffled.append(
                _auroc(values, small[(i + 1) % len(images)]) if len(images) > 1 else NOTHING
            )
        return Agreement(np.array(own), np.array(shuffled))


def _auroc(values: np.ndarray, mask: np.ndarray) -> float:
    return NOTHING if not mask.any() or mask.all() else auroc(values, mask)
