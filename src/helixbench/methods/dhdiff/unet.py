"""DH-Diff's U-Net: a plain diffusers U-Net whose attention layers carry DDA, SSM and merging."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils.checkpoint
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig
from torch import nn

from helixbench.engine import checkpoint
from helixbench.errors import UserError
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.modules import (
    DomainDecoupledAttention,
    Flow,
    InputChannels,
    Merging,
    SemanticScoreMapModification,
    concatenated_attention,
    cross_attention,
)
from helixbench.methods.dhdiff.streams import Streams

CONVOLUTIONS = ["conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "conv"]
"""Names of a diffusers U-Net's convolutions, for low-rank adapters."""


@dataclass(frozen=True)
class Layer:
    """One transformer block of the U-Net and its place: part `encoder` or `decoder`, stage counted
    from 0.

    key: its place in words, e.g. `encoder.2.0` (stage 2, layer 0); reads: key of the encoder layer
    whose reference features a DDA layer at this place takes (its own in the encoder, the one of the
    same resolution in the decoder).
    """

    key: str
    part: str
    stage: int
    reads: str | None
    block: BasicTransformerBlock


def layers(unet: UNet2DConditionModel) -> list[Layer]:
    """All transformer blocks in order of computation.

    Encoder stages are the down blocks with attention; a mid block with attention is one more where
    Stable Diffusion has only three of them, and otherwise belongs to the last (reading 2).
    """

    def blocks(module: nn.Module) -> Iterator[BasicTransformerBlock]:
        for attention in getattr(module, "attentions", None) or ():
            yield from attention.transformer_blocks

    out: list[Layer] = []
    level_stage: dict[int, int] = {}
    for level, down in enumerate(unet.down_blocks):
        found = list(blocks(down))
        if found:
            stage = level_stage[level] = len(level_stage)
            keys = [f"encoder.{stage}.{i}" for i in range(len(found))]
            out += [
                Layer(key, "encoder", stage, key, block)
                for key, block in zip(keys, found, strict=True)
            ]
    stages = len(level_stage)
    mid = list(blocks(unet.mid_block))
    for i, block in enumerate(mid):
        stage = stages if stages < 4 else stages - 1
        out.append(Layer(f"encoder.mid.{i}", "encoder", stage, f"encoder.mid.{i}", block))
    count = {
        stage: sum(x.stage == stage and "mid" not in x.key for x in out)
        for stage in level_stage.values()
    }
    decoder_stage = 0
    for position, up in enumerate(unet.up_blocks):
        found = list(blocks(up))
        if not found:
            continue
        stage = level_stage.get(len(unet.down_blocks) - 1 - position)
        for i, block in enumerate(found):
            reads = None if stage is None else f"encoder.{stage}.{min(i, count[stage] - 1)}"
            out.append(
                Layer(f"decoder.{decoder_stage}.{i}", "decoder", decoder_stage, reads, block)
            )
        decoder_stage += 1
    return out


def chosen_stages(part: str, stages: int, count: int) -> set[int]:
    """Which of `stages` stages carry a module: every other one first (paper IV-E), then the gaps.

    Both sides count from the full resolution, encoder 0, 2 and decoder 3, 1 of four: the same
    resolutions.
    """
    if part == "encoder":
        order = [*range(0, stages, 2), *range(1, stages, 2)]
    else:
        order = [*range(stages - 1, -1, -2), *range(stages - 2, -1, -2)]
    return set(order[:count])


class DHDiffUNet(nn.Module):
    """Predicts the noise of the joint latent z = (z^I, z^A) (Eq. 8).

    The streams share one U-Net and lie in it as `config.streams` says (reading 3). `unet` stays a
    plain diffusers model; `helix` holds the new modules by layer key.
    """

    def __init__(self, unet: UNet2DConditionModel, config: DHDiff):
        super().__init__()
        self.unet, self.config = unet, config
        self.streams = Streams(config.streams)
        self.flow = Flow()
        self.tau = _encoder_copy(unet) if config.reference_encoder == "copy" else None
        for layer in layers(self.tau) if self.tau is not None else ():
            layer.block.attn1.set_processor(_Recording(self, layer))
        self.layers = layers(unet)
        stages = {
            part: 1 + max((x.stage for x in self.layers if x.part == part), default=-1)
            for part in ("encoder", "decoder")
        }
        wants = {("dda", "encoder"): config.dda_encoder, ("dda", "decoder"): config.dda_decoder}
        wants |= {("ssm", "encoder"): config.ssm_encoder, ("ssm", "decoder"): config.ssm_decoder}
        where = {
            (name, part): chosen_stages(part, stages[part], count)
            for (name, part), count in wants.items()
        }
        self.helix = nn.ModuleDict()
        for layer in self.layers:
            block, modules = layer.block, nn.ModuleDict()
            if layer.stage in where["dda", layer.part]:
                modules["dda"] = DomainDecoupledAttention(
                    block.attn1, config.annotation_input == "attention"
                )
            if layer.stage in where["ssm", layer.part]:
                modules["ssm"] = SemanticScoreMapModification(
                    block.attn2, config.eta_kernel, config.renormalise
                )
            if config.merging:
                modules["merging"] = Merging(block.attn1.to_q.in_features)
            block.register_forward_pre_hook(self._part)
            block.register_forward_hook(self._join(modules["merging"] if config.merging else None))
            self.helix[layer.key.replace(".", "_")] = modules
            block.attn1.set_processor(
                _SelfAttention(self, layer, modules["dda"] if "dda" in modules else None)
            )
            block.attn2.set_processor(
                _CrossAttention(self, modules["ssm"] if "ssm" in modules else None)
            )
        self.inputs = None
        by_channels = config.annotation_input == "channels", config.reference_input == "both"
        if any(by_channels):
            latent = unet.conv_in.in_channels // (2 if config.streams == "channels" else 1)
            self.inputs = InputChannels(latent, unet.conv_in.out_channels, *by_channels)
            unet.conv_in.register_forward_hook(self._add_inputs)
        self.read = {
            x.reads for x in self.layers if "dda" in self.helix[x.key.replace(".", "_")] and x.reads
        }

    def _add_inputs(self, conv_in: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        """After the first convolution: what enters beside the two noisy latents."""
        return out if self.flow.writing else self.streams.add(out, *self.inputs(self.flow))

    def _part(self, block: nn.Module, args: tuple) -> tuple | None:
        """Before a transformer block: its tokens as two streams on the batch axis."""
        return None if self.flow.writing else (self.streams.part(args[0], self.flow), *args[1:])

    def _join(self, merging: Merging | None):
        """After a transformer block: merging, then the layout that the convolutions see."""

        def hook(block: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
            if self.flow.writing:
                return out
            return self.streams.join(out if merging is None else merging(out), self.flow)

        return hook

    def forward(
        self,
        z_image: torch.Tensor,
        z_annotation: torch.Tensor,
        t: torch.Tensor,
        text: torch.Tensor,
        reference: dict[str, torch.Tensor] | None = None,
        flow: Flow | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise predictions of both domains.

        Args:
            z_image: noisy image latents z^I(t) (B, C, h, w).
            z_annotation: noisy annotation latents z^A(t), same shape.
            t: timesteps (B,), shared by the two domains (reading 11).
            text: text embeddings T (B, L, D).
            reference: what `encode_reference` gave for the same t; None: no reference.
            flow: a Flow holding the raw mask, the reference's latent and the control map; None:
                none of them.
        """
        self.flow = flow or Flow()
        self.flow.reference = reference
        self.flow.aspect = z_image.shape[-2] / z_image.shape[-1]
        try:
            z = torch.cat([z_image, z_annotation], dim=self.streams.axis)
            copies = len(z) // len(t)
            out = self.unet(z, t.repeat(copies), text.repeat(copies, 1, 1)).sample
        finally:
            self.flow = Flow()
        return tuple(out.chunk(2, dim=self.streams.axis))

    def encode_reference(
        self, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Siamese encoder tau_theta: hidden states (B, N, C) entering each attn1 that a DDA layer
        reads, by layer key.

        It also reads the raw mask, for `annotation_input: attention` (reading 9).

        The U-Net's own encoder path or its copy (reading 6), run no further than it is read. In Eq.
        8 tau_theta(r) is a condition beside the text, so `text` is the empty prompt's; guidance
        then needs one such pass, not two.

        Args:
            z: (noised) reference latents (B, C, h, w).
            t: timesteps (B,).
            text: embeddings of the empty prompt (B, L, D).
        """
        unet = self.unet if self.tau is None else self.tau
        self.flow = Flow(writing=True, reference={})
        found = self.flow.reference
        try:
            embedding = unet.time_embedding(unet.time_proj(t).to(z.dtype))
            hidden = unet.conv_in(self.streams.alone(z))
            for down in unet.down_blocks:
                if self.read <= found.keys():
                    break
                extra = (
                    {"encoder_hidden_states": text}
                    if getattr(down, "has_cross_attention", False)
                    else {}
                )
                hidden, _ = down(hidden_states=hidden, temb=embedding, **extra)
            if not self.read <= found.keys():
                unet.mid_block(hidden, embedding, encoder_hidden_states=text)
        finally:
            self.flow = Flow()
        return found

    def trainable_(self) -> DHDiffUNet:
        """Set requires_grad: the new modules and, by `config.trainable`, the attention layers or
        all (reading 17).

        `lora`: the attention layers and low-rank adapters on the frozen convolutions.
        """
        self.unet.requires_grad_(self.config.trainable == "all")
        if self.config.trainable == "lora":
            rank = self.config.lora_rank
            self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=CONVOLUTIONS))
        if self.config.trainable != "all":
            for layer in self.layers:
                layer.block.attn1.requires_grad_(True)
                layer.block.attn2.requires_grad_(True)
        self.helix.requires_grad_(True)
        if self.inputs is not None:
            self.inputs.requires_grad_(True)
        if self.config.checkpointing:
            self.unet.enable_gradient_checkpointing(self._recomputed)
        if self.config.frozen_precision == "bf16":
            for module in self._frozen_layers():
                for name, weight in list(module.named_parameters(recurse=False)):
                    setattr(
                        module,
                        name,
                        nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False),
                    )
        if self.config.compile:
            self.compile_parts()
        if self.tau is not None:
            self.tau.requires_grad_(False)
            for part in (
                self.tau.conv_in,
                self.tau.time_embedding,
                self.tau.down_blocks,
                self.tau.mid_block,
            ):
                part.requires_grad_(True)
        return self

    def _recomputed(self, module: nn.Module, *inputs) -> torch.Tensor:
        """Gradient checkpointing that repeats a module in the flow of its first time, which is over
        by then.
        """
        flow = self.flow

        def again(*inputs):
            current, self.flow = self.flow, flow
            try:
                return module(*inputs)
            finally:
                self.flow = current

        return torch.utils.checkpoint.checkpoint(again, *inputs, use_reentrant=False)

    def _frozen_layers(self) -> list[nn.Module]:
        """Convolutions and linear layers that training leaves alone; autocast computes them in half
        precision anyway.
        """
        kinds = (nn.Conv2d, nn.Linear)
        return [
            m
            for m in self.modules()
            if isinstance(m, kinds) and not any(p.requires_grad for p in m.parameters())
        ]

    def compile_parts(self) -> None:
        """Compile what is a pure function of its input, in place; names of weights stay, and
        attention with its state is left alone.
        """
        for module in self.modules():
            if isinstance(module, (ResnetBlock2D, FeedForward)):
                module.compile()

    def fuse_adapters(self) -> None:
        """Make adapters part of the weights, in full precision, as they are to be saved."""
        self.float()
        if hasattr(self.unet, "peft_config"):
            self.unet.fuse_lora()
            self.unet.unload_lora()

    def save_helix(self, file: Path, facts: dict | None = None) -> None:
        """Write the new modules and facts; adapters are fused before."""
        checkpoint.save_tensors(file, self._own().state_dict(), facts)

    def _own(self) -> nn.ModuleDict:
        """Everything that is not the plain U-Net."""
        parts = {"helix": self.helix, "inputs": self.inputs, "tau": self.tau}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def load_helix(self, file: Path) -> dict:
        """Load the new modules' weights, whose names must all match; returns the facts saved with
        them.
        """
        tensors, facts = checkpoint.load_tensors(file)
        try:
            self._own().load_state_dict(tensors)
        except RuntimeError:
            raise UserError(
                f"{file}: trained with other dda_*, ssm_*, merging, annotation_input or "
                f"reference_encoder; train again"
            ) from None
        return facts


def _encoder_copy(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A U-Net without a decoder, starting with the same weights (as ControlNet's)."""
    tau = copy.deepcopy(unet)
    tau.up_blocks = nn.ModuleList()
    return tau


class _Recording:
    """diffusers attention processor of a copied encoder: the plain layer, its input kept as
    reference.
    """

    def __init__(self, owner: DHDiffUNet, layer: Layer):
        self.owner, self.layer = owner, layer

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        if self.layer.key in self.owner.read:
            self.owner.flow.reference[self.layer.key] = hidden_states
        return cross_attention(attn, hidden_states, hidden_states)


class _SelfAttention:
    """diffusers attention processor of attn1: DDA, concatenated tokens, or the plain layer of the
    reference pass.
    """

    def __init__(self, owner: DHDiffUNet, layer: Layer, dda: DomainDecoupledAttention | None):
        self.owner, self.layer, self.dda = owner, layer, dda

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        flow = self.owner.flow
        if flow.writing:
            if self.layer.key in self.owner.read:
                flow.reference[self.layer.key] = hidden_states
            return cross_attention(attn, hidden_states, hidden_states)
        if self.dda is None:
            return concatenated_attention(attn, hidden_states)
        reference = (flow.reference or {}).get(self.layer.reads)
        raw = (flow.raw_features or {}).get(self.layer.reads)
        return self.dda(attn, hidden_states, reference, raw, flow.has_raw)


class _CrossAttention:
    """diffusers attention processor of attn2: SSM or plain text cross-attention."""

    def __init__(self, owner: DHDiffUNet, ssm: SemanticScoreMapModification | None):
        self.owner, self.ssm = owner, ssm

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        if self.ssm is None or self.owner.flow.writing:
            copies = len(hidden_states) // len(encoder_hidden_states)
            return cross_attention(attn, hidden_states, encoder_hidden_states.repeat(copies, 1, 1))
        return self.ssm(
            attn, hidden_states, encoder_hidden_states[: len(hidden_states) // 2], self.owner.flow
        )
