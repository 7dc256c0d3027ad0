"""DFMGAN's networks (Duan et al., AAAI 2023): StyleGAN2 (Karras et al. 2020) with a second branch
that draws a defect and its mask.

Pictures are (B, 3, S, S) in about [-1, 1]. Weights are standard normal and scaled as they are used
(equalised learning rate).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Noise = Callable[[int], torch.Tensor] | None
"""Side -> standard normal noise (B, 1, side, side); None: each layer's constant noise."""


def sides(size: int) -> list[int]:
    """Sides of the features, the smallest first: the picture's, halved while it stays whole and at
    least 4.
    """
    found = [size]
    while found[0] % 2 == 0 and found[0] >= 8:
        found.insert(0, found[0] // 2)
    return found


def activate(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def up(x: torch.Tensor) -> torch.Tensor:
    """Twice the side, by StyleGAN2's filter (1, 3, 3, 1), which is bilinear interpolation."""
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def down(x: torch.Tensor) -> torch.Tensor:
    """Half the side, by the same filter."""
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


class Linear(nn.Module):
    """Linear layer whose weights learn `rate` times as fast."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.gain, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (B, inputs) -> (B, outputs)."""
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class Convolution(nn.Module):
    """Convolution that keeps the side."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain, self.padding = 1 / math.sqrt(inputs * kernel**2), kernel // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (B, inputs, S, S) -> (B, outputs, S, S)."""
        return F.conv2d(x, self.weight * self.gain, self.bias, padding=self.padding)


class Mapping(nn.Module):
    """Latent z, and a label where there are classes, to style w."""

    def __init__(self, z: int, w: int, layers: int, classes: int = 0):
        super().__init__()
        self.label = nn.Embedding(classes, w) if classes else None
        widths = [z + (w if classes else 0), *[w] * layers]
        self.layers = nn.ModuleList(
            Linear(widths[i], widths[i + 1], rate=0.01) for i in range(layers)
        )

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Z (B, Z), labels (B,) -> w (B, W)."""
        parts = [unit(z)] + ([unit(self.label(labels))] if self.label is not None else [])
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = activate(layer(x))
        return x


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows scaled to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class ModulatedConvolution(nn.Module):
    """Convolution whose input channels are scaled by a style, and its output to unit variance
    (demodulation).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, w: int, demodulate: bool = True):
        super().__init__()
        self.style = Linear(w, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.gain, self.padding, self.demodulate = (
            1 / math.sqrt(inputs * kernel**2),
            kernel // 2,
            demodulate,
        )

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """X (B, inputs, S, S), w (B, W) -> (B, outputs, S, S)."""
        style = self.style(w)
        x = F.conv2d(x * style[:, :, None, None], self.weight * self.gain, padding=self.padding)
        if not self.demodulate:
            return x
        norm = style.square() @ (self.weight * self.gain).square().sum((2, 3)).T
        return x * (norm + 1e-8).rsqrt()[:, :, None, None]


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias, activation; `side` is that of its features [pixel].

    It trains with fresh noise. For sampling it also has constant noise, drawn once when it is made
    and saved with the weights (StyleGAN2-ADA's `noise_const`).
    """

    def __init__(self, inputs: int, outputs: int, w: int, side: int):
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, outputs, 3, w)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("constant_noise", torch.randn(side, side))

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: Noise) -> torch.Tensor:
        """X (B, inputs, S, S), w (B, W) -> (B, outputs, S, S)."""
        drawn = self.constant_noise if noise is None else noise(x.shape[-1])
        return activate(self.convolution(x, w) + self.strength * drawn + self.bias[:, None, None])


class Projection(nn.Module):
    """Features to a picture or a mask: 1x1, modulated, without demodulation."""

    def __init__(self, inputs: int, outputs: int, w: int):
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, outputs, 1, w, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """X (B, inputs, S, S), w (B, W) -> (B, outputs, S, S)."""
        return self.convolution(x, w) + self.bias[:, None, None]


class Block(nn.Module):
    """Twice the side, two styled layers; `side` is that of what comes out [pixel]."""

    def __init__(self, inputs: int, outputs: int, w: int, side: int):
        super().__init__()
        self.first = StyledLayer(inputs, outputs, w, side)
        self.second = StyledLayer(outputs, outputs, w, side)

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: Noise) -> torch.Tensor:
        """X (B, inputs, S, S) -> (B, outputs, 2S, 2S)."""
        return self.second(self.first(up(x), w, noise), w, noise)


def blocks(levels: list[int], channels: Callable[[int], int], w: int) -> nn.ModuleDict:
    """A block for each side, by its name."""
    made = {str(s): Block(channels(s // 2), channels(s), w, s) for s in levels}
    return nn.ModuleDict(made)


class Backbone(nn.Module):
    """StyleGAN2's synthesis: what a normal looks like. Skip connections carry the picture."""

    def __init__(self, size: int, channels: Callable[[int], int], w: int):
        super().__init__()
        self.sides = sides(size)
        first = channels(self.sides[0])
        self.constant = nn.Parameter(torch.randn(first, self.sides[0], self.sides[0]))
        self.start = StyledLayer(first, first, w, self.sides[0])
        self.blocks = blocks(self.sides[1:], channels, w)
        self.pictures = nn.ModuleDict({str(s): Projection(channels(s), 3, w) for s in self.sides})


class Defect(nn.Module):
    """The defect-aware residual blocks, from one side up, and the mask, from the first of them."""

    def __init__(self, size: int, channels: Callable[[int], int], w: int, from_side: int):
        super().__init__()
        self.sides = [s for s in sides(size)[1:] if s >= from_side]
        self.blocks = blocks(self.sides, channels, w)
        self.mask = Projection(channels(self.sides[0]), 1, w)


class Generator(nn.Module):
    """Picture of a normal, or of a defect with its mask, from styles."""

    def __init__(self, backbone: Backbone, defect: Defect):
        super().__init__()
        self.backbone, self.defect = backbone, defect

    def forward(
        self, ws: torch.Tensor, defect_ws: torch.Tensor | None, noise: Noise
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Picture (B, 3, S, S), and the mask's logits (B, 1, S, S) if there is a defect.

        Args:
            ws: styles of the backbone's levels (B, levels, W).
            defect_ws: styles of the defect's levels (B, its levels, W), or None for a normal.
            noise: noise of a layer by its side; None: the layers' constant noise.
        """
        body, defect, mask = self.backbone, self.defect, None
        x = body.start(body.constant.expand(len(ws), -1, -1, -1), ws[:, 0], noise)
        picture = body.pictures[str(body.sides[0])](x, ws[:, 0])
        for level, side in enumerate(body.sides[1:], start=1):
            residual = 0.0
            if defect_ws is not None and side in defect.sides:
                w = defect_ws[:, defect.sides.index(side)]
                residual = defect.blocks[str(side)](x, w, noise)
                mask = defect.mask(residual, w) if mask is None else up(mask)
                # Features change inside the mask only; a step has no gradient: the mask learns from
                # the discriminators.
                residual = residual * (mask >= 0)
            x = body.blocks[str(side)](x, ws[:, level], noise) + residual
            picture = up(picture) + body.pictures[str(side)](x, ws[:, level])
        return picture, mask


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator of pictures, or of pictures and masks, given their label
    (projection).
    """

    def __init__(self, size: int, inputs: int, channels: Callable[[int], int], classes: int):
        super().__init__()
        levels = sides(size)[::-1]
        self.enter = Convolution(inputs, channels(size), 1)
        self.blocks = nn.ModuleList(_Down(channels(s), channels(s // 2)) for s in levels[:-1])
        last, width = levels[-1], channels(levels[-1])
        self.convolution = Convolution(width + 1, width, 3)
        self.linear, self.out = Linear(width * last**2, width), Linear(width, width)
        self.label = nn.Embedding(classes, width)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """X (B, inputs, S, S), labels (B,) -> logits (B,); above 0 is real."""
        x = activate(self.enter(x))
        for block in self.blocks:
            x = block(x)
        x = activate(self.convolution(with_deviation(x)))
        x = self.out(activate(self.linear(x.flatten(1))))
        return (x * unit(self.label(labels))).sum(1) / math.sqrt(x.shape[1])


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = Convolution(inputs, inputs, 3), Convolution(inputs, outputs, 3)
        self.skip = Convolution(inputs, outputs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            activate(self.second(down(activate(self.first(x))))) + self.skip(down(x))
        ) / math.sqrt(2)


def with_deviation(x: torch.Tensor, group: int = 4) -> torch.Tensor:
    """X (B, C, S, S) with one more channel: the mean standard deviation over groups of the batch,
    of at most `group`.
    """
    members = max(g for g in range(1, min(group, len(x)) + 1) if len(x) % g == 0)
    grouped = x.unflatten(0, (members, -1))
    deviation = (grouped.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (B / members,)
    return torch.cat(
        [x, deviation.repeat(members)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1
    )
