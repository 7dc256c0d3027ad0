"""Looking into the self-attention of a DH-Diff: who looks at whom, with DDA and without (the
paper's Figure 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention

from helixbench.methods.dhdiff.modules import DomainDecoupledAttention, _heads
from helixbench.methods.dhdiff.unet import DHDiffUNet, Layer, _SelfAttention


@dataclass(frozen=True)
class ScoreMaps:
    """Attention of one layer for one pair, mean over the heads: rows are queries, columns keys, (N,
    N) each.

    `image_annotation` is what image queries give to annotation keys. A query's weights sum to 1
    over both key domains.
    """

    image_image: torch.Tensor
    image_annotation: torch.Tensor
    annotation_image: torch.Tensor
    annotation_annotation: torch.Tensor

    @property
    def leak(self) -> tuple[float, float]:
        """Share of attention that crosses into the other domain: of image queries, of annotation
        queries; in [0, 1].
        """
        return float(self.image_annotation.sum(1).mean()), float(
            self.annotation_image.sum(1).mean()
        )


def score_maps(
    attention: Attention,
    dda: DomainDecoupledAttention | None,
    x: torch.Tensor,
    reference: torch.Tensor | None,
    raw: torch.Tensor | None = None,
    has_raw: torch.Tensor | None = None,
) -> ScoreMaps:
    """Softmax weights of Eq. 1-3 (no DDA: tokens of both domains) or Eq. 4 and 5 (DDA), of pair 0
    of x (2B, N, C).
    """
    image, annotation = (part[:1] for part in x.chunk(2))
    weights = lambda q, k: (
        ((_heads(q, attention.heads) @ _heads(k, attention.heads).mT) * attention.scale)
        .softmax(-1)[0]
        .mean(0)
    )
    if dda is None:
        both = torch.cat([image, annotation], dim=1)
        found, n = weights(attention.to_q(both), attention.to_k(both)), image.shape[1]
        return ScoreMaps(found[:n, :n], found[:n, n:], found[n:, :n], found[n:, n:])
    first = [None if given is None else given[:1] for given in (reference, raw, has_raw)]
    of_image, of_annotation = dda.sources(image, annotation, *first)
    own = weights(attention.to_q(image), attention.to_k(of_image))
    other = weights(dda.to_q(annotation), dda.to_k(of_annotation))
    return ScoreMaps(own, torch.zeros_like(own), torch.zeros_like(own), other)


@dataclass
class Record:
    """What `recording` found: score maps by layer key, in order of computation, and the timestep
    they are from.
    """

    maps: dict[str, ScoreMaps] = field(default_factory=dict)
    timestep: int | None = None


@contextmanager
def recording(unet: DHDiffUNet, timestep: int) -> Iterator[Record]:
    """Score maps of all self-attention layers in the first pass at or below a timestep; nothing
    that is computed changes.
    """
    record, active = Record(), False

    def begin(module: DHDiffUNet, args: tuple) -> None:
        nonlocal active
        t = int(args[2][0])
        active = record.timestep is None and t <= timestep
        if active:
            record.timestep = t

    def end(module: DHDiffUNet, args: tuple, out: tuple) -> None:
        nonlocal active
        active = False

    class Watching:
        """An attention processor that notes its input and passes it on."""

        def __init__(self, layer: Layer, real: _SelfAttention):
            self.layer, self.real = layer, real

        def __call__(self, attn, hidden_states, *args, **kwargs):
            flow = unet.flow
            if active and not flow.writing:
                reference = (flow.reference or {}).get(self.layer.reads)
                raw = (flow.raw_features or {}).get(self.layer.reads)
                with torch.no_grad():
                    record.maps[self.layer.key] = score_maps(
                        attn, self.real.dda, hidden_states, reference, raw, flow.has_raw
                    )
            return self.real(attn, hidden_states, *args, **kwargs)

    hooks = [unet.register_forward_pre_hook(begin), unet.register_forward_hook(end)]
    processors = {layer.key: layer.block.attn1.processor for layer in unet.layers}
    for layer in unet.layers:
        layer.block.attn1.set_processor(Watching(layer, processors[layer.key]))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        for layer in unet.layers:
            layer.block.attn1.set_processor(processors[layer.key])
