"""Adaptive augmentation of what a discriminator sees (ADA, Karras et al. 2020): geometry and
colour, each change with probability p.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def augment(x: torch.Tensor, p: float, rng: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, S, S) changed at random; p = 0 changes nothing."""
    if p <= 0:
        return x
    draws = _Draws(len(x), p, rng)
    return recoloured(moved(x, geometry(draws).to(x)), colour(draws).to(x))


class _Draws:
    """Random numbers a picture, at rest where the change is not to happen."""

    def __init__(self, count: int, p: float, rng: torch.Generator):
        self.count, self.p, self.rng = count, p, rng

    def uniform(self) -> torch.Tensor:
        return torch.rand(self.count, generator=self.rng)

    def normal(self, deviation: float) -> torch.Tensor:
        return torch.randn(self.count, generator=self.rng) * deviation

    def happens(self, p: float | None = None) -> torch.Tensor:
        return self.uniform() < (self.p if p is None else p)

    def maybe(self, value: torch.Tensor, rest: float = 0.0, p: float | None = None) -> torch.Tensor:
        return torch.where(self.happens(p), value, rest)


def geometry(d: _Draws) -> torch.Tensor:
    """Matrices (B, 2, 3) of the inverse maps, in coordinates of [-1, 1]: flips, quarter turns,
    shifts, scales, rotations.
    """
    turn = lambda angle: torch.stack(
        [angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1
    ).view(-1, 2, 2)
    stretch = lambda a, b: torch.diag_embed(torch.stack([a, b], -1))
    one = torch.ones(d.count)
    matrix = stretch(d.maybe(-one, 1.0, d.p / 2), one)
    matrix = matrix @ turn(d.maybe((d.uniform() * 4).floor() * math.pi / 2))
    scale = d.maybe(2 ** d.normal(0.2), 1.0)
    # Twice, before and after the stretch, so that together they happen with probability p.
    rotations = [
        d.maybe((d.uniform() * 2 - 1) * math.pi, 0.0, 1 - math.sqrt(1 - d.p)) for _ in range(2)
    ]
    aspect = d.maybe(2 ** d.normal(0.2), 1.0)
    matrix = (
        matrix
        @ stretch(scale, scale)
        @ turn(rotations[0])
        @ stretch(aspect, 1 / aspect)
        @ turn(rotations[1])
    )
    across, along = d.happens(), d.happens()
    whole = torch.where(
        across[:, None], torch.stack([d.uniform(), d.uniform()], -1) * 0.5 - 0.25, 0.0
    )
    part = torch.where(along[:, None], torch.stack([d.normal(0.25), d.normal(0.25)], -1), 0.0)
    return torch.cat([matrix, (whole + part)[..., None]], dim=-1)


def colour(d: _Draws) -> torch.Tensor:
    """Matrices (B, 3, 4) of colours: brightness, contrast, flip of luma, hue, saturation."""
    identity = torch.eye(3).expand(d.count, 3, 3)
    luma = torch.full((3, 3), 1 / 3)
    shift = d.maybe(d.normal(0.2))
    contrast = d.maybe(2 ** d.normal(0.5), 1.0)[:, None, None]
    matrix = identity * contrast
    matrix = (identity - 2 * luma * d.happens(d.p / 2).float()[:, None, None]) @ matrix
    angle = d.maybe((d.uniform() * 2 - 1) * math.pi)[:, None, None]
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    hue = (
        angle.cos() * identity + angle.sin() * cross + (1 - angle.cos()) * luma
    )  # Rodrigues, about the grey axis
    saturation = d.maybe(2 ** d.normal(1.0), 1.0)[:, None, None]
    matrix = (luma + (identity - luma) * saturation) @ hue @ matrix
    return torch.cat([matrix, matrix @ shift[:, None, None].expand(-1, 3, 1)], dim=-1)


def moved(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Pictures resampled by inverse maps (B, 2, 3), mirrored at their sides."""
    return F.grid_sample(
        x,
        F.affine_grid(matrix, x.shape, align_corners=False),
        padding_mode="reflection",
        align_corners=False,
    )


def recoloured(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, S, S) with colours mapped by (B, 3, 4)."""
    return torch.einsum("bij,bjhw->bihw", matrix[..., :3], x) + matrix[..., 3, None, None]
