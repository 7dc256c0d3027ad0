"""The localization U-Net: DRAEM's segmentation network (Zavrtanik et al., ICCV 2021), of any width.

28 convolutions of 3 x 3; 28.4 M parameters at width 64. AnomalyDiffusion and its successors test
with this network alone, on the three colour channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

WIDTHS = (1, 2, 4, 8, 8, 8)
"""Channels of the six levels, full size first, in units of the base width."""

SPREAD = 0.02
"""Standard deviation of the first weights, as in DRAEM's training script."""


def _conv(into: int, out: int) -> nn.Sequential:
    """3 x 3 convolution, batch normalisation, ReLU: (B, into, H, W) -> (B, out, H, W)."""
    conv = nn.Conv2d(into, out, kernel_size=3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _block(into: int, out: int) -> nn.Sequential:
    """Two such convolutions."""
    return nn.Sequential(_conv(into, out), _conv(out, out))


def _start(module: nn.Module) -> None:
    """Convolutions N(0, 0.02), scales of the normalisation N(1, 0.02) and shifts 0.

    The biases of the convolutions keep PyTorch's start, as they do there.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, SPREAD)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, SPREAD)
        nn.init.zeros_(module.bias)


class UNet(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> logits (B, 2, H, W) of the classes normal and anomalous.

    width: channels of the first level. H and W: at least 32 pixels. Where a side is no multiple of
    32, a pooling leaves out an odd last row, and features are enlarged to the size of those that
    they join.
    """

    def __init__(self, width: int):
        super().__init__()
        channels = [width * factor for factor in WIDTHS]
        self.down = nn.ModuleList(_block(into, out) for into, out in pairwise([3, *channels]))
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        below = channels[-1]
        for level in reversed(range(len(channels) - 1)):
            out = channels[max(level - 1, 0)]  # as wide as the level above, which comes next
            self.up.append(_conv(below, out))
            self.join.append(_block(out + channels[level], out))
            below = out
        self.last = nn.Conv2d(below, 2, kernel_size=3, padding=1)
        self.apply(_start)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        levels = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            levels.append(x)
        for skip, up, join in zip(levels[-2::-1], self.up, self.join, strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
            x = join(torch.cat([up(x), skip], dim=1))
        return self.last(x)
