"""Settings of AnomalyDiffusion under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from helixbench.schema.method import STAR_OR_TEMPLATES, MethodSettings
from helixbench.schema.section import Optim, Symmetries, rising, setting, values


class AnomalyDiffusion(MethodSettings):
    """AnomalyDiffusion (Hu et al., AAAI 2024): a defect drawn into a clean picture; deviations:
    docs/rivals.md.
    """

    in_paper_run = True
    kind: Literal["anomalydiffusion"]
    label: str = setting(
        "AnomalyDiffusion", description="name in the tables", source="paper Table I"
    )
    vectors: int = setting(
        4,
        ge=1,
        le=16,
        description="vectors of the learned word of a defect type",
        source="AnomalyDiffusion's code",
    )
    spatial_vectors: int = setting(
        4, ge=1, le=16, description="vectors that the mask gives", source="AnomalyDiffusion's code"
    )
    prompt: str = setting(
        "templates",
        pattern=STAR_OR_TEMPLATES,
        description="prompt, where * is the learned word and the mask's vectors; "
        "templates: a random one of 80 plain phrases, which need a text encoder of 77 tokens",
        source="AnomalyDiffusion's code",
    )
    sampling_steps: int = setting(
        200,
        ge=1,
        le=1000,
        description="DDIM steps of a pair; generate.sampling is not read",
        source="AnomalyDiffusion's code",
    )
    eta: float = setting(
        1.0,
        ge=0,
        le=1,
        description="share of fresh noise in a DDIM step",
        source="AnomalyDiffusion's code",
    )
    reweight: tuple[float, float] | None = setting(
        None,
        description="limits of the attention's weights in the mask, which is then widened at early "
        "steps; null: neither; its authors take 1 and 1.5 for defects of texture or colour only",
        source="AnomalyDiffusion's code",
    )
    masks: Literal["generated", "plan"] = setting(
        "generated",
        description="masks drawn by embedding inversion, or the plan's real ones",
        source="AnomalyDiffusion",
    )
    mask_vectors: int = setting(
        16,
        ge=1,
        le=64,
        description="vectors of the word of a defect type's masks",
        source="AnomalyDiffusion's code",
    )
    mask_prompt: str = setting(
        "templates",
        pattern=STAR_OR_TEMPLATES,
        description="prompt of the masks, where * is that word; templates: as for prompt",
        source="AnomalyDiffusion's code",
    )
    mask_sampling_steps: int = setting(
        100, ge=1, le=1000, description="DDIM steps of a mask", source="AnomalyDiffusion's code"
    )
    mask_guidance: float = setting(
        5.0,
        ge=1,
        description="classifier-free guidance scale of a mask, against the empty prompt",
        source="AnomalyDiffusion's code",
    )
    mask_threshold: float = setting(
        0.8,
        gt=-1,
        lt=1,
        description="value in [-1, 1] above which a drawn mask is mask",
        source="AnomalyDiffusion's code",
    )
    augment: Symmetries = setting(
        ("hflip", "vflip"),
        description="random symmetries of a training pair",
        source="AnomalyDiffusion's code, which also rotates and crops",
    )
    trainable: Literal["adapters", "all"] = setting(
        "adapters",
        description="words and encoder, or also the U-Net, for a scratch base",
        source="AnomalyDiffusion",
    )
    optim: Optim = values(
        steps=(20000, "ours; its author: 300,000 for the 15 categories of MVTec AD together"),
        batch=(4, "AnomalyDiffusion's code"),
        lr=(0.02, "AnomalyDiffusion's code: 5e-3 times the batch"),
        warmup=(0, "AnomalyDiffusion's code"),
        decay=("constant", "AnomalyDiffusion's code"),
        weight_decay=(0.0, "AnomalyDiffusion's code: Adam"),
        validate_every=(250, "ours"),
    )

    _ranges = model_validator(mode="after")(rising(reweight=(0, 10)))
