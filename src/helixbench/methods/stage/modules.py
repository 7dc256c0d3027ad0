"""The new parts of STAGE (arXiv 2509.06693): mask guidance adapter, explicit mask alignment, graded
windows.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class MaskGuidanceAdapter(nn.Module):
    """MGA: the noise prediction refined by the mask, with convolutions of 64, 256, 512, 256 and 64
    channels.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (64, 256, 512, 256, 64)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((2 * channels, *widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 1))

    def forward(self, noise: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predicted noise (B, C, h, w) and mask (B, 1, h, w) in [0, 1] -> predicted noise (B, C, h,
        w).
        """
        return self.layers(torch.cat([noise, mask.expand_as(noise)], dim=1))


def aligned_mask(mask: torch.Tensor, t: torch.Tensor, end: int, total: int) -> torch.Tensor:
    """EMA: M_t = m + alpha_t (1 - m), alpha_t = clip((t - end) / (total - end), 0, 1): all ones at
    t = total, m from t = end down.

    mask (B, 1, h, w) in {0, 1}, t (B,) or scalar.
    """
    alpha = ((t - end) / (total - end)).clamp(0, 1).view(-1, 1, 1, 1)
    return mask + alpha * (1 - mask)


def in_window(t: int, windows: tuple[tuple[int, int], ...]) -> bool:
    """Whether the anomaly-only branch leads at t."""
    return any(low <= t <= high for low, high in windows)
