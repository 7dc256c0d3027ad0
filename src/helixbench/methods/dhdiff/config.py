"""Settings of DH-Diff under `train.methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from helixbench.schema.method import MethodSettings, known_places
from helixbench.schema.section import Optim, Symmetries

if TYPE_CHECKING:
    from helixbench.schema import Config


class DHDiff(MethodSettings):
    """Double Helix Diffusion (readings of docs/readings.md in parentheses)."""

    kind: Literal["dhdiff"]
    label: str = Field("DH-Diff", description="name in the tables")
    dda_encoder: int = Field(
        4, ge=0, le=4, description="encoder stages with DDA, from the input side (reading 2)"
    )
    dda_decoder: int = Field(
        2, ge=0, le=4, description="decoder stages with DDA, every other one (reading 2)"
    )
    ssm_encoder: int = Field(4, ge=0, le=4, description="encoder stages with SSM (reading 2)")
    ssm_decoder: int = Field(2, ge=0, le=4, description="decoder stages with SSM (reading 2)")
    streams: Literal["batch", "channels", "canvas"] = Field(
        "batch",
        description="how convolutions see the two streams: as two samples, stacked in one map, or "
        "side by side (reading 3)",
    )
    merging: bool = Field(
        True, description="zero-initialised 1x1 convolution on the concatenated pair (reading 4)"
    )
    annotation_input: Literal["channels", "attention", "none"] = Field(
        "channels",
        description="how the raw mask enters both streams: its latent beside theirs, as keys and "
        "values of DDA, or not (reading 9)",
    )
    raw_mask_drop: float = Field(
        0.1, ge=0, lt=1, description="share of training pairs without their raw mask (reading 9)"
    )
    loss_weighting: Literal["epsilon", "v"] = Field(
        "epsilon",
        description="epsilon: all timesteps alike (paper, Eq. 8); v: by 1 / abar, the squared "
        "error of v, so that large t counts",
    )
    defect_weight: float = Field(
        0.0,
        ge=0,
        description="what the image's noise under the mask weighs more than elsewhere in the loss "
        "(0: paper, Eq. 8)",
    )
    reference: Literal["cells", "tight", "background"] = Field(
        "cells",
        description="cells: only the raw-mask cells kept; tight: their box resized; background: "
        "all but the cells (reading 8)",
    )
    reference_input: Literal["attention", "both"] = Field(
        "attention",
        description="how the reference enters the image stream: by Eq. 4, or also beside z^I by "
        "channels (reading 9)",
    )
    reference_noise: Literal["same", "independent", "none"] = Field(
        "independent",
        description="noise of the reference latent against the image's; the paper's `same` leaks "
        "(reading 7)",
    )
    reference_encoder: Literal["shared", "copy"] = Field(
        "shared",
        description="tau_theta: the U-Net's own encoder path, or a trainable copy of it "
        "(reading 6)",
    )
    eta_kernel: Literal[1, 3] = Field(1, description="kernel of eta over (h, w) (reading 13)")
    renormalise: bool = Field(
        False, description="rows of the modified score maps sum to 1 again (reading 13)"
    )
    control: Literal["tokens", "broadcast"] = Field(
        "tokens",
        description="score map of a graphical mask: on defect words / BOS, or the same on all "
        "tokens (reading 12)",
    )
    control_drop: float = Field(
        0.5, ge=0, le=1, description="share of training pairs without a control map (reading 12)"
    )
    prompt: str = Field(
        "a photo of a {category} with {defect}",
        description="prompt of a defective pair (reading 16)",
    )
    prompt_good: str = Field(
        "a photo of a flawless {category}", description="prompt of a normal (reading 16)"
    )
    prompt_drop: float = Field(
        0.1, ge=0, le=1, description="share of empty prompts, for guidance (reading 16)"
    )
    text_tokens: Literal["prompt", "all"] = Field(
        "all",
        description="text tokens attended to: the text model's all, or as many as the category's "
        "longest prompt has (reading 25)",
    )
    normal_share: float = Field(
        0.25, ge=0, le=1, description="share of normals in a batch (reading 15)"
    )
    augment: Symmetries = Field((), description="random symmetries of a training pair")
    trainable: Literal["attention", "lora", "all"] = Field(
        "attention",
        description="attention and new modules; these and low-rank adapters on convolutions; all "
        "of the U-Net (reading 17)",
    )
    lora_rank: int = Field(
        16,
        ge=1,
        le=256,
        description="rank of the adapters, read only with trainable: lora (reading 17)",
    )
    checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    frozen_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="what frozen convolutions and linear layers are held in while training; bf16 "
        "needs optim.precision bf16",
    )
    offload: bool = Field(
        False,
        description="autoencoder and text encoder visit the GPU only for what is not encoded yet",
    )
    compile: bool = Field(
        False, description="torch.compile of ResNet blocks and feed-forward layers"
    )
    train_noise_offset: float = Field(
        0.0, ge=0, le=1, description="per-channel constant added to the noise (0: paper)"
    )
    optim: Optim

    _places = field_validator("prompt", "prompt_good")(known_places)

    @model_validator(mode="after")
    def _raw_mask_has_a_way_in(self):
        if self.annotation_input == "attention" and not self.dda_encoder + self.dda_decoder:
            raise ValueError(
                "annotation_input attention needs a layer with DDA: set dda_encoder, dda_decoder "
                "or channels"
            )
        return self

    @model_validator(mode="after")
    def _half_precision_needs_autocast(self):
        if self.frozen_precision == "bf16" and self.optim.precision != "bf16":
            raise ValueError(
                f"frozen_precision bf16 needs optim.precision bf16, not {self.optim.precision}"
            )
        return self

    def conflict(self, config: Config) -> str:
        """A control that this DH-Diff would not follow."""
        control = config.generate.sampling.control
        if control == "none":
            return ""
        remedy = f"set generate.sampling.control to none, not {control}"
        if self.control_drop == 1:
            return f"is trained without a control (control_drop 1): {remedy}"
        if not self.ssm_encoder + self.ssm_decoder:
            return f"has no SSM layer to look at a control: {remedy}"
        return ""
