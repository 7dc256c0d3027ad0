"""Settings of DH-Diff under `train.methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import field_validator, model_validator

from helixbench.schema.method import Arm, MethodSettings, known_places
from helixbench.schema.section import Optim, Symmetries, setting, values

if TYPE_CHECKING:
    from helixbench.schema import Config


def _layers(dda_encoder: int, dda_decoder: int, ssm_encoder: int, ssm_decoder: int) -> dict:
    return {
        "dda_encoder": dda_encoder,
        "dda_decoder": dda_decoder,
        "ssm_encoder": ssm_encoder,
        "ssm_decoder": ssm_decoder,
    }


class DHDiff(MethodSettings):
    """Double Helix Diffusion (readings of docs/readings.md in parentheses)."""

    in_paper_run = True
    arms = {
        "dhdiff_full": Arm(
            {},
            {8: "(4) DDA=yes SSM=yes", 9: "(4) as in the text: DDA-E=4 DDA-D=2 SSM-E=4 SSM-D=2"},
            "paper IV-E, Tables VIII and IX: the method itself; reading 2",
        ),
        "dhdiff_plain": Arm(
            _layers(0, 0, 0, 0),
            {8: "(1) DDA=no SSM=no"},
            "paper IV-E, Table VIII, Fig. 9: plain diffusion model; merging as in all arms: ours",
        ),
        "dhdiff_dda": Arm(
            {"ssm_encoder": 0, "ssm_decoder": 0},
            {8: "(2) DDA=yes SSM=no"},
            "paper IV-E, Table VIII",
        ),
        "dhdiff_ssm": Arm(
            {"dda_encoder": 0, "dda_decoder": 0},
            {8: "(3) DDA=no SSM=yes"},
            "paper IV-E, Table VIII",
        ),
        "dhdiff_unmerged": Arm(
            {"merging": False},
            {8: "(5) as (4), without merging"},
            "ours: what merging itself does, reading 4; no row of the paper",
        ),
        "dhdiff_e4_d0": Arm(
            _layers(4, 0, 4, 0),
            {9: "(1) DDA-E=4 DDA-D=0 SSM-E=4 SSM-D=0"},
            "paper IV-E, Table IX",
        ),
        "dhdiff_e2_d0": Arm(
            _layers(2, 0, 2, 0),
            {9: "(2) DDA-E=2 DDA-D=0 SSM-E=2 SSM-D=0"},
            "paper IV-E, Table IX",
        ),
        "dhdiff_e2_d2": Arm(
            _layers(2, 2, 2, 2),
            {9: "(3) DDA-E=2 DDA-D=2 SSM-E=2 SSM-D=2"},
            "paper IV-E, Table IX",
        ),
        "dhdiff_as_printed": Arm(
            _layers(4, 4, 2, 2),
            {9: "(4) DDA-E=4 DDA-D=4 SSM-E=2 SSM-D=2"},
            "paper Table IX, against its own text",
        ),
    }

    kind: Literal["dhdiff"]
    label: str = setting("DH-Diff", description="name in the tables", source="paper Table I")
    start: Literal["base", "joint"] = setting(
        "base",
        description="base: from the plain base, as in the paper; joint: from DH-Diff as the base "
        "brings it, trained on its task over many categories (train.joint.methods)",
        source="paper IV-B: Stable Diffusion",
    )
    dda_encoder: int = setting(
        4,
        ge=0,
        le=4,
        description="encoder stages with DDA, from the input side",
        source="paper IV-B: all blocks, reading 2",
    )
    dda_decoder: int = setting(
        2,
        ge=0,
        le=4,
        description="decoder stages with DDA, every other one",
        source="paper IV-B: every other block, reading 2",
    )
    ssm_encoder: int = setting(
        4, ge=0, le=4, description="encoder stages with SSM", source="paper IV-B, reading 2"
    )
    ssm_decoder: int = setting(
        2, ge=0, le=4, description="decoder stages with SSM", source="paper IV-B, reading 2"
    )
    streams: Literal["batch", "channels", "canvas"] = setting(
        "batch",
        description="how convolutions see the two streams: as two samples, stacked in one map, or "
        "side by side",
        source="paper II-C: a single backbone, reading 3",
    )
    merging: bool = setting(
        True,
        description="zero-initialised 1x1 convolution on the concatenated pair",
        source="paper III-B names the stage, reading 4",
    )
    annotation_input: Literal["channels", "attention", "none"] = setting(
        "channels",
        description="how the raw mask enters both streams: its latent beside theirs, as keys and "
        "values of DDA, or not",
        source="paper III-B and III-D, reading 9",
    )
    raw_mask_drop: float = setting(
        0.1,
        ge=0,
        lt=1,
        description="share of training pairs without their raw mask",
        source="reading 9",
    )
    loss_weighting: Literal["epsilon", "v"] = setting(
        "epsilon",
        description="epsilon: all timesteps alike; v: by 1 / abar, the squared "
        "error of v, so that large t counts",
        source="paper, Eq. 8",
    )
    defect_weight: float = setting(
        0.0,
        ge=0,
        description="what the image's noise under the mask weighs more than elsewhere in the loss",
        source="paper, Eq. 8",
    )
    reference: Literal["cells", "tight", "background"] = setting(
        "cells",
        description="cells: only the raw-mask cells kept; tight: their box resized; background: "
        "all but the cells",
        source="paper III-B: cropped by the raw mask, reading 8",
    )
    reference_input: Literal["attention", "both"] = setting(
        "attention",
        description="how the reference enters the image stream: by Eq. 4, or also beside z^I by "
        "channels",
        source="paper, Eq. 4, reading 9",
    )
    reference_noise: Literal["same", "independent", "none"] = setting(
        "independent",
        description="noise of the reference latent against the image's; the paper's `same` leaks",
        source="ours, against paper III-C (`same`): reading 7",
    )
    reference_encoder: Literal["shared", "copy"] = setting(
        "shared",
        description="tau_theta: the U-Net's own encoder path, or a trainable copy of it",
        source='paper III-C: "Siamese", reading 6',
    )
    eta_kernel: Literal[1, 3] = setting(
        1, description="kernel of eta over (h, w)", source="reading 13"
    )
    renormalise: bool = setting(
        False, description="rows of the modified score maps sum to 1 again", source="reading 13"
    )
    control: Literal["tokens", "broadcast"] = setting(
        "tokens",
        description="score map of a graphical mask: on defect words / BOS, or the same on all "
        "tokens",
        source="reading 12",
    )
    control_drop: float = setting(
        0.5,
        ge=0,
        le=1,
        description="share of training pairs without a control map",
        source="reading 12",
    )
    prompt: str = setting(
        "a photo of a {category} with {defect}",
        description="prompt of a defective pair",
        source="reading 16",
    )
    prompt_good: str = setting(
        "a photo of a flawless {category}", description="prompt of a normal", source="reading 16"
    )
    prompt_drop: float = setting(
        0.1, ge=0, le=1, description="share of empty prompts, for guidance", source="reading 16"
    )
    text_tokens: Literal["prompt", "all"] = setting(
        "all",
        description="text tokens attended to: the text model's all, or as many as the category's "
        "longest prompt has",
        source="reading 25",
    )
    normal_share: float = setting(
        0.25, ge=0, le=1, description="share of normals in a batch", source="reading 15"
    )
    augment: Symmetries = setting(
        (), description="random symmetries of a training pair", source="ours"
    )
    trainable: Literal["attention", "lora", "all"] = setting(
        "attention",
        description="attention and new modules; these and low-rank adapters on convolutions; all "
        "of the U-Net",
        source="reading 17",
    )
    lora_rank: int = setting(
        16,
        ge=1,
        le=256,
        description="rank of the adapters, read only with trainable: lora (reading 17)",
        source="ours",
    )
    checkpointing: bool = setting(
        False,
        description="recompute activations in the backward pass: less memory, more time",
        source="ours",
    )
    frozen_precision: Literal["fp32", "bf16"] = setting(
        "fp32",
        description="what frozen convolutions and linear layers are held in while training; bf16 "
        "needs optim.precision bf16",
        source="ours",
    )
    offload: bool = setting(
        False,
        description="autoencoder and text encoder visit the GPU only for what is not encoded yet",
        source="ours",
    )
    compile: bool = setting(
        False, description="torch.compile of ResNet blocks and feed-forward layers", source="ours"
    )
    train_noise_offset: float = setting(
        0.0,
        ge=0,
        le=1,
        description="per-channel constant added to the noise (0: paper)",
        source="ours",
    )
    optim: Optim = values(
        steps=(5000, "reading 17"),
        batch=(32, "paper IV-B"),
        lr=(0.0001, "paper IV-B"),
        weight_decay=(0.0, "paper IV-B: Adam"),
        validate_every=(250, "ours"),
    )

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
