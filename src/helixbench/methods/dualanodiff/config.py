"""Settings of DualAnoDiff under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from helixbench.schema.method import MethodSettings, known_places
from helixbench.schema.section import Optim, Symmetries, setting, values


class DualAnoDiff(MethodSettings):
    """DualAnoDiff (Jin et al., CVPR 2025): whole picture and defective part in two branches;
    deviations: docs/rivals.md.
    """

    in_paper_run = True
    kind: Literal["dualanodiff"]
    label: str = setting(
        "DualAnoDiff",
        description="name in the tables",
        source="paper Table I, which prints DualAno",
    )
    rank: int = setting(
        32,
        ge=1,
        description="rank of the two sets of adapters on the U-Net's attention",
        source="DualAnoDiff's code",
    )
    text_rank: int = setting(
        32,
        ge=0,
        description="rank of the text encoder's adapters; 0: none",
        source="DualAnoDiff's code",
    )
    background: bool = setting(
        False,
        description="background compensation module",
        source="ours: its published numbers do not say where the module was on",
    )
    background_width: int = setting(
        320, ge=1, description="hidden width of its MLP", source="DualAnoDiff's code"
    )
    prompt: str = setting(
        "a {category} with {defect}",
        description="prompt of the whole picture",
        source="ours, for one model a category; there: a vfx with sks",
    )
    prompt_part: str = setting(
        "{defect}", description="prompt of the part", source="ours; there: sks"
    )
    prompt_drop: float = setting(
        0.0,
        ge=0,
        le=1,
        description="share of empty prompts, for guidance",
        source="DualAnoDiff's code: none",
    )
    augment: Symmetries = setting(
        ("hflip", "vflip"),
        description="random symmetries of a training pair",
        source="DualAnoDiff's code",
    )
    mask_threshold: float = setting(
        0.1,
        gt=0,
        lt=0.5,
        description="distance from grey, in [0, 1], beyond which the part is mask",
        source="ours: where no saliency network is given",
    )
    saliency: str = setting(
        "",
        description="U2-Net as an ONNX file, which makes the masks; empty: the distance from grey",
        source="ours; DualAnoDiff: U2-Net",
    )
    saliency_threshold: float = setting(
        0.5,
        gt=0,
        lt=1,
        description="its output, stretched to [0, 1], above which the part is mask",
        source="ours",
    )
    sampling_steps: int | None = setting(
        100,
        ge=1,
        le=500,
        description="denoising steps of a pair; null: those of generate.sampling",
        source="DualAnoDiff's code; 50 with background compensation",
    )
    guidance: float | None = setting(
        2.5,
        ge=1,
        description="classifier-free guidance scale; null: that of generate.sampling",
        source="DualAnoDiff's code; 2.0 with background compensation",
    )
    trainable: Literal["lora", "all"] = setting(
        "lora",
        description="adapters and new modules, or also all of the U-Net",
        source="DualAnoDiff",
    )
    optim: Optim = values(
        steps=(25000, "DualAnoDiff's code: 5,000 per defect type, of five"),
        batch=(4, "DualAnoDiff's code"),
        lr=(2e-05, "DualAnoDiff's code"),
        warmup=(0, "DualAnoDiff's code"),
        decay=("constant", "DualAnoDiff's code"),
        weight_decay=(0.01, "DualAnoDiff's code"),
        grad_clip=(1.0, "DualAnoDiff's code"),
        ema=(0.0, "DualAnoDiff's code: the last weights"),
        validate_every=(250, "ours"),
    )

    _places = field_validator("prompt", "prompt_part")(known_places)
