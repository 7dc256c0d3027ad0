"""Settings of AnomalyDiffusion under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from helixbench.schema.method import STAR_OR_TEMPLATES, MethodSettings
from helixbench.schema.section import Optim, Symmetries, rising


class AnomalyDiffusion(MethodSettings):
    """AnomalyDiffusion (Hu et al., AAAI 2024): a defect drawn into a clean picture; deviations:
    docs/rivals.md.
    """

    kind: Literal["anomalydiffusion"]
    label: str = Field("AnomalyDiffusion", description="name in the tables")
    vectors: int = Field(4, ge=1, le=16, description="vectors of the learned word of a defect type")
    spatial_vectors: int = Field(4, ge=1, le=16, description="vectors that the mask gives")
    prompt: str = Field(
        "templates",
        pattern=STAR_OR_TEMPLATES,
        description="prompt, where * is the learned word and the mask's vectors; "
        "templates: a random one of 80 plain phrases, which need a text encoder of 77 tokens",
    )
    sampling_steps: int = Field(
        200, ge=1, le=1000, description="DDIM steps of a pair; generate.sampling is not read"
    )
    eta: float = Field(1.0, ge=0, le=1, description="share of fresh noise in a DDIM step")
    reweight: tuple[float, float] | None = Field(
        None,
        description="limits of the attention's weights in the mask, which is then widened at early "
        "steps; null: neither; its authors take 1 and 1.5 for defects of texture or colour only",
    )
    masks: Literal["generated", "plan"] = Field(
        "generated", description="masks drawn by embedding inversion, or the plan's real ones"
    )
    mask_vectors: int = Field(
        16, ge=1, le=64, description="vectors of the word of a defect type's masks"
    )
    mask_prompt: str = Field(
        "templates",
        pattern=STAR_OR_TEMPLATES,
        description="prompt of the masks, where * is that word; templates: as for prompt",
    )
    mask_sampling_steps: int = Field(100, ge=1, le=1000, description="DDIM steps of a mask")
    mask_guidance: float = Field(
        5.0,
        ge=1,
        description="classifier-free guidance scale of a mask, against the empty prompt",
    )
    mask_threshold: float = Field(
        0.8,
        gt=-1,
        lt=1,
        description="value in [-1, 1] above which a drawn mask is mask",
    )
    augment: Symmetries = Field(
        ("hflip", "vflip"), description="random symmetries of a training pair"
    )
    trainable: Literal["adapters", "all"] = Field(
        "adapters", description="words and encoder, or also the U-Net, for a scratch base"
    )
    optim: Optim

    _ranges = model_validator(mode="after")(rising(reweight=(0, 10)))
