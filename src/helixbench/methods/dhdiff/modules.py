"""The new modules of DH-Diff: Domain Decoupled Attention, Semantic Score Map Modification, merging.

Double Helix Diffusion for Cross-Domain Anomaly Image Generation (arXiv 2509.12787), equations 1 to
7.

Notation (<name here> -> <symbol in the paper>): image, annotation -> F^I, F^A; reference -> F^R;
text -> T; control -> S^O. The two streams are folded on the batch axis, image first: (2B, N, C)
with N = h*w positions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional as F


@dataclass
class Flow:
    """What one forward pass of the U-Net shares between its layers.

    writing: the reference pass itself is running. reference: hidden states (B, N, C) entering each
    attn1 of the reference pass, by layer key; reference_latent: latent (B, C, h, w) of the
    reference without noise, where it also enters by channels (reading 9); None: no reference.
    raw_latent: latent (B, C, h, w) of the raw mask, or raw_features: its hidden states, as
    `reference` holds those of the reference (reading 9); None: no raw mask; has_raw: (B,) in {0,
    1}. control: graphical mask (B, 1, H, W) in [0, 1] or None; has_control: (B,) in {0, 1}; inside,
    outside: (B, L) rows over text tokens that S^O takes inside and outside the graphical mask.
    aspect: h / w of the latents.
    """

    writing: bool = False
    reference: dict[str, torch.Tensor] | None = None
    reference_latent: torch.Tensor | None = None
    raw_latent: torch.Tensor | None = None
    raw_features: dict[str, torch.Tensor] | None = None
    has_raw: torch.Tensor | None = None
    control: torch.Tensor | None = None
    has_control: torch.Tensor | None = None
    inside: torch.Tensor | None = None
    outside: torch.Tensor | None = None
    aspect: float = 1.0
    maps: dict[int, torch.Tensor] = field(default_factory=dict)

    def rows(self, positions: int) -> int:
        """H of a layer with N = h*w positions."""
        return round((positions * self.aspect) ** 0.5)

    def control_map(self, positions: int, dtype: torch.dtype) -> torch.Tensor:
        """S^O (B, N, L) at a layer of N positions: rows `inside` in the mask, `outside` elsewhere,
        0 without control.
        """
        if positions not in self.maps:
            h = self.rows(positions)
            mask = (
                F.interpolate(self.control, (h, positions // h), mode="area")
                .flatten(2)
                .transpose(1, 2)
            )
            rows = mask * self.inside[:, None] + (1 - mask) * self.outside[:, None]
            self.maps[positions] = rows * self.has_control[:, None, None]
        return self.maps[positions].to(dtype)


def zero_(module: nn.Module) -> nn.Module:
    """Set all parameters to zero (zero-initialised convolution, ControlNet)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, heads, N, d)


def _convolve(convolution: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    return convolution(x.transpose(1, 2)).transpose(1, 2)  # over positions: (B, N, C) -> (B, N, C)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    out = F.scaled_dot_product_attention(_heads(q, heads), _heads(k, heads), _heads(v, heads))
    return out.transpose(1, 2).flatten(2)


class InputChannels(nn.Module):
    """What enters the streams beside z^I and z^A by channels (reading 9): the raw mask, and the
    reference if wanted.

    Each is read off its latent by a zero-initialised 3x3 convolution, whose output is added to the
    features of the U-Net's first convolution, as further input channels of that convolution would
    be. The raw mask has one convolution per stream; the reference enters the image stream only.
    """

    def __init__(self, channels: int, width: int, raw_mask: bool, reference: bool):
        super().__init__()
        names = ("raw_image", "raw_annotation") * raw_mask + ("reference",) * reference
        self.zeta = nn.ModuleDict(
            {name: zero_(nn.Conv2d(channels, width, 3, padding=1)) for name in names}
        )

    def forward(self, flow: Flow) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Latents of a pass -> features (B, width, h, w) of image and annotation stream, 0 where
        nothing is given.
        """
        image = annotation = 0.0
        if flow.raw_latent is not None:
            present = flow.has_raw.to(flow.raw_latent.dtype)[:, None, None, None]
            image = image + self.zeta["raw_image"](flow.raw_latent) * present
            annotation = annotation + self.zeta["raw_annotation"](flow.raw_latent) * present
        if flow.reference_latent is not None:
            image = image + self.zeta["reference"](flow.reference_latent)
        return image, annotation


class DomainDecoupledAttention(nn.Module):
    """DDA (Eq. 4 and 5) in place of one self-attention layer (reading 5).

    Image:      F^I = softmax(Q K^T / sqrt(d)) V, Q = W_Q F^I, K, V = W_K, W_V (zeta(F^R) + F^I)
    (Eq. 4) Annotation: F^A = softmax(Q K^T / sqrt(d)) V with W_Q, W_K, W_V of its own
    (Eq. 5)

    The image keeps the U-Net's own projections; the annotation's start as copies of them (reading
    3). zeta is a zero-initialised 1x1 convolution. With `raw_mask`, keys and values of both streams
    also read the raw mask's features F^M through such convolutions of their own (reading 9,
    `attention`).
    """

    def __init__(self, attention: Attention, raw_mask: bool = False):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (
            copy.deepcopy(m) for m in (attention.to_q, attention.to_k, attention.to_v)
        )
        self.to_out = copy.deepcopy(attention.to_out)
        width = attention.to_q.in_features
        self.zeta = zero_(nn.Conv1d(width, width, 1))
        if raw_mask:
            self.zeta_raw = nn.ModuleDict(
                {name: zero_(nn.Conv1d(width, width, 1)) for name in ("image", "annotation")}
            )

    def sources(
        self,
        image: torch.Tensor,
        annotation: torch.Tensor,
        reference: torch.Tensor | None,
        raw: torch.Tensor | None = None,
        has_raw: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What keys and values of both streams are made of, (B, N, C) each; has_raw: (B,) in {0,
        1}.
        """
        if reference is not None:
            image = image + _convolve(self.zeta, reference)
        if raw is not None:
            present = has_raw.to(image.dtype)[:, None, None]
            image = image + _convolve(self.zeta_raw["image"], raw) * present
            annotation = annotation + _convolve(self.zeta_raw["annotation"], raw) * present
        return image, annotation

    def forward(
        self,
        attention: Attention,
        x: torch.Tensor,
        reference: torch.Tensor | None,
        raw: torch.Tensor | None = None,
        has_raw: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """X (2B, N, C), reference and raw (B, N, C) or None, has_raw (B,) in {0, 1} -> (2B, N,
        C).
        """
        image, annotation = x.chunk(2)
        of_image, of_annotation = self.sources(image, annotation, reference, raw, has_raw)
        q = torch.cat([attention.to_q(image), self.to_q(annotation)])
        k = torch.cat([attention.to_k(of_image), self.to_k(of_annotation)])
        v = torch.cat([attention.to_v(of_image), self.to_v(of_annotation)])
        image, annotation = _attend(q, k, v, attention.heads).chunk(2)
        return torch.cat([attention.to_out[0](image), self.to_out[0](annotation)])


def concatenated_attention(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """Self-attention over the tokens of both domains (Eq. 1-3): what a layer does without DDA. (2B,
    N, C) -> same.
    """
    image, annotation = x.chunk(2)
    both = torch.cat([image, annotation], dim=1)
    out = attention.to_out[0](
        _attend(attention.to_q(both), attention.to_k(both), attention.to_v(both), attention.heads)
    )
    return torch.cat(out.chunk(2, dim=1))


class SemanticScoreMapModification(nn.Module):
    """SSM (Eq. 6 and 7) in place of one text cross-attention layer (reading 5).

    S^I, S^A = softmax(Q K_T^T / sqrt(d))  (Eq. 6 with the scale it lacks, reading 14)
    (S'^I, S'^A) = eta(S^I, S^A, S^O) + mu(S^I, S^A, S^O),  F = (S'^I V_T, S'^A V_T)  (Eq. 7)

    mu: mean over the maps that are there. eta: convolution from 3 maps to 2 per head,
    zero-initialised (reading 13); a missing S^O enters it as zeros.
    """

    def __init__(self, attention: Attention, kernel: int, renormalise: bool):
        super().__init__()
        self.kernel, self.renormalise = kernel, renormalise
        heads = attention.heads
        self.eta = zero_(
            nn.Conv2d(3 * heads, 2 * heads, kernel, padding=kernel // 2, groups=heads, bias=False)
        )

    def forward(
        self, attention: Attention, x: torch.Tensor, text: torch.Tensor, flow: Flow
    ) -> torch.Tensor:
        """X (2B, N, C), text (B, L, D) -> (2B, N, C)."""
        q, k, v = (
            _heads(attention.to_q(x), attention.heads),
            attention.to_k(text),
            attention.to_v(text),
        )
        k, v = _heads(k, attention.heads), _heads(v, attention.heads)
        q = q.unflatten(0, (2, -1))  # (2, B, heads, N, d)
        scores = (q @ k.transpose(-1, -2) * attention.scale).softmax(
            -1
        )  # S^I, S^A (2, B, heads, N, L)
        s_i, s_a = self.modify(scores[0], scores[1], flow)
        out = (torch.stack([s_i, s_a]) @ v).flatten(0, 1)  # (2B, heads, N, d)
        return attention.to_out[0](out.transpose(1, 2).flatten(2))

    def modify(
        self, s_i: torch.Tensor, s_a: torch.Tensor, flow: Flow
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 7, first line: score maps (B, heads, N, L) of both domains -> modified maps."""
        batch, heads, positions, tokens = s_i.shape
        if flow.control is None:
            s_o, present = torch.zeros_like(s_i), 0.0
        else:
            s_o = flow.control_map(positions, s_i.dtype)[:, None].expand(-1, heads, -1, -1)
            present = flow.has_control[:, None, None, None].to(s_i.dtype)
        mu = (s_i + s_a + s_o) / (2 + present)  # s_o is zero where absent
        maps = torch.stack([s_i, s_a, s_o], dim=2)  # (B, heads, 3, N, L)
        if self.kernel == 1:
            eta = self.eta(maps.flatten(1, 2)).unflatten(1, (heads, 2))
        else:  # over (h, w), one token at a time
            h = flow.rows(positions)
            grid = maps.permute(0, 4, 1, 2, 3).reshape(batch * tokens, heads * 3, h, positions // h)
            eta = self.eta(grid).reshape(batch, tokens, heads, 2, positions).permute(0, 2, 3, 4, 1)
        out = eta + mu[:, :, None]
        if self.renormalise:
            out = out / out.sum(-1, keepdim=True).clamp_min(1e-6)
        return out[:, :, 0], out[:, :, 1]


def cross_attention(attention: Attention, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Plain text cross-attention: what a layer does without SSM. x (2B, N, C), text (2B, L, D) ->
    (2B, N, C).
    """
    out = _attend(attention.to_q(x), attention.to_k(text), attention.to_v(text), attention.heads)
    return attention.to_out[0](out)


class Merging(nn.Module):
    """Third stage of the helix: a zero-initialised 1x1 convolution on the concatenated pair, added
    (reading 4).

    It stands at the end of the transformer block: the paper's cycle is CNN, DDA, SSM, CNN.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = zero_(nn.Conv1d(2 * width, 2 * width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (2B, N, C) -> (2B, N, C)."""
        pair = torch.cat(x.chunk(2), dim=-1)  # (B, N, 2C)
        return x + torch.cat(self.conv(pair.transpose(1, 2)).transpose(1, 2).chunk(2, dim=-1))
