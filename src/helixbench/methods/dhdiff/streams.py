"""How the two streams lie in one U-Net outside of its transformer blocks (reading 3).

Inside the blocks they are always folded on the batch axis, image first: (2B, N, C).
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from helixbench.methods.dhdiff.modules import Flow

AXES = {"batch": 0, "channels": 1, "canvas": 3}


class Streams:
    """Layout of the streams for the convolutions.

    batch: (2B, C, h, w), two samples with shared weights; canvas: (B, C, h, 2w), side by side, so
    that convolutions and their normalisation see both; channels: (B, C, h, w), one feature map for
    both, read by a U-Net whose first and last convolutions hold twice the channels (see `widen`).
    There each block parts the map into two equal streams and ends with their mean.
    """

    def __init__(self, kind: str):
        self.kind, self.axis = kind, AXES[kind]

    def part(self, x: torch.Tensor, flow: Flow) -> torch.Tensor:
        """Tokens (B', N', C) of the layout -> (2B, N, C)."""
        if self.kind == "channels":
            return x.repeat(2, 1, 1)
        if self.kind == "canvas":
            h = flow.rows(x.shape[1] // 2)
            return torch.cat(x.unflatten(1, (h, -1)).chunk(2, dim=2)).flatten(1, 2)
        return x

    def join(self, x: torch.Tensor, flow: Flow) -> torch.Tensor:
        """Tokens (2B, N, C) -> (B', N', C) of the layout."""
        if self.kind == "channels":
            return x.unflatten(0, (2, -1)).mean(0)
        if self.kind == "canvas":
            h = flow.rows(x.shape[1])
            return torch.cat(x.unflatten(1, (h, -1)).chunk(2), dim=2).flatten(1, 2)
        return x

    def add(
        self, x: torch.Tensor, image: torch.Tensor | float, annotation: torch.Tensor | float
    ) -> torch.Tensor:
        """Feature maps (B', C, h, w') of the layout plus maps (B, C, h, w) of either stream, or 0.

        Where one map holds both streams, it gets their sum.
        """
        if self.kind == "channels":
            return x + image + annotation
        own_image, own_annotation = x.chunk(2, dim=self.axis)
        return torch.cat([own_image + image, own_annotation + annotation], dim=self.axis)

    def alone(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) of a picture without a mask, for the reference pass."""
        return torch.cat([z, torch.zeros_like(z)], dim=1) if self.kind == "channels" else z


def widen(unet: UNet2DConditionModel) -> None:
    """Give the first and the last convolution twice the channels, in place: picture and mask
    stacked.

    Both halves start with the U-Net's own weights, the input's scaled by 1/sqrt(2), so that two
    independent latents give features of the scale that the next layers know.
    """
    with torch.no_grad():
        old, new = unet.conv_in, _like(unet.conv_in, inputs=2)
        new.weight.copy_(torch.cat([old.weight, old.weight], dim=1) / 2**0.5)
        new.bias.copy_(old.bias)
        unet.conv_in = new
        old, new = unet.conv_out, _like(unet.conv_out, outputs=2)
        new.weight.copy_(torch.cat([old.weight, old.weight]))
        new.bias.copy_(torch.cat([old.bias, old.bias]))
        unet.conv_out = new
    unet.register_to_config(
        in_channels=unet.conv_in.in_channels, out_channels=unet.conv_out.out_channels
    )


def _like(convolution: nn.Conv2d, inputs: int = 1, outputs: int = 1) -> nn.Conv2d:
    """A convolution of the same kernel with more channels."""
    return nn.Conv2d(
        inputs * convolution.in_channels,
        outputs * convolution.out_channels,
        convolution.kernel_size,
        padding=convolution.padding,
    )
