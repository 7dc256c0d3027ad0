"""Settings of DualAnoDiff under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from helixbench.schema.method import MethodSettings, known_places
from helixbench.schema.section import Optim, Symmetries


class DualAnoDiff(MethodSettings):
    """DualAnoDiff (Jin et al., CVPR 2025): whole picture and defective part in two branches;
    deviations: docs/rivals.md.
    """

    kind: Literal["dualanodiff"]
    label: str = Field("DualAnoDiff", description="name in the tables")
    rank: int = Field(
        32, ge=1, description="rank of the two sets of adapters on the U-Net's attention"
    )
    text_rank: int = Field(32, ge=0, description="rank of the text encoder's adapters; 0: none")
    background: bool = Field(False, description="background compensation module")
    background_width: int = Field(320, ge=1, description="hidden width of its MLP")
    prompt: str = Field("a {category} with {defect}", description="prompt of the whole picture")
    prompt_part: str = Field("{defect}", description="prompt of the part")
    prompt_drop: float = Field(0.0, ge=0, le=1, description="share of empty prompts, for guidance")
    augment: Symmetries = Field(
        ("hflip", "vflip"), description="random symmetries of a training pair"
    )
    mask_threshold: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="distance from grey, in [0, 1], beyond which the part is mask",
    )
    saliency: str = Field(
        "",
        description="U2-Net as an ONNX file, which makes the masks; empty: the distance from grey",
    )
    saliency_threshold: float = Field(
        0.5, gt=0, lt=1, description="its output, stretched to [0, 1], above which the part is mask"
    )
    sampling_steps: int | None = Field(
        100, ge=1, le=500, description="denoising steps of a pair; null: those of generate.sampling"
    )
    guidance: float | None = Field(
        2.5, ge=1, description="classifier-free guidance scale; null: that of generate.sampling"
    )
    trainable: Literal["lora", "all"] = Field(
        "lora", description="adapters and new modules, or also all of the U-Net"
    )
    optim: Optim

    _places = field_validator("prompt", "prompt_part")(known_places)
