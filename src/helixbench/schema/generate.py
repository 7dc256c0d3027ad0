"""Section `generate`: the pairs to make."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from helixbench.schema.section import Section, Symmetries, setting


class Gate(Section):
    """When a generated mask is redrawn (counted in the manifest)."""

    limits: Literal["learned", "fixed"] = setting(
        "learned",
        description="learned: limits widened for each defect type to its real masks; fixed: as "
        "given",
        source="ours: `fixed` refuses most real masks of textures",
    )
    margin: float = setting(
        1.25, ge=1, description="learned limits over the real masks [factor]", source="ours"
    )
    min_area: float = setting(
        0.0005, ge=0, le=1, description="smallest mask [share of the picture]", source="reading 10"
    )
    max_area: float = setting(
        0.6, gt=0, le=1, description="largest mask [share of the picture]", source="ours"
    )
    max_border: float = setting(
        0.333,
        gt=0,
        le=1,
        description="longest run on a picture side [share of the side]",
        source="ours, the rule of AnomalyDiffusion",
    )
    redraws: int = setting(
        3,
        ge=0,
        le=20,
        description="further tries before the last one is kept and flagged",
        source="ours",
    )

    @model_validator(mode="after")
    def _some_mask_passes(self):
        if self.min_area >= self.max_area:
            raise ValueError(f"min_area {self.min_area} must be below max_area {self.max_area}")
        return self


class Sampling(Section):
    """How a diffusion method is sampled (the paper prints nothing of it)."""

    sampler: Literal["ddim", "dpmsolver++"] = setting(
        "ddim", description="diffusers scheduler", source="reading 18"
    )
    steps: int = setting(50, ge=1, le=500, description="denoising steps", source="reading 18")
    guidance: float = setting(
        2.5, ge=1, description="classifier-free guidance scale; 1: off", source="reading 18"
    )
    guidance_interval: tuple[float, float] = setting(
        (0.0, 1.0),
        description="timesteps, as shares of T, at which guidance is on; off saves half of a step "
        "(reading 18)",
        source="ours",
    )
    start: Literal["noise", "reference"] = setting(
        "noise", description="pure noise, or the noised reference and raw mask", source="reading 9"
    )
    strength: float = setting(
        0.8,
        gt=0,
        le=1,
        description="share of the steps run, for start: reference (reading 9)",
        source="ours",
    )
    reference_noise: Literal["initial", "predicted"] = setting(
        "initial",
        description="what stands in for the image's noise, for reference_noise: same",
        source="reading 7",
    )
    control: Literal["none", "raw", "detailed"] = setting(
        "none", description="graphical mask given to every pair by the plan", source="reading 12"
    )

    @field_validator("guidance_interval")
    @classmethod
    def _interval(cls, interval):
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(
                f"{list(interval)} must be two numbers between 0 and 1, the smaller first"
            )
        return interval


class Generate(Section):
    """The pairs to make."""

    pairs: int = setting(
        1000, ge=1, description="pairs per defect type", source="paper IV-C and IV-D, reading 22"
    )
    batch: int = setting(
        32,
        ge=1,
        description="pairs sampled together; another number may change pixels by rounding, "
        "nothing else",
        source="ours",
    )
    max_shift: int = setting(
        1,
        ge=0,
        le=32,
        description="largest move of a raw mask by the plan [cell]",
        source="reading 8",
    )
    symmetries: Symmetries = setting(
        (), description="symmetries the plan may apply to a raw mask", source="reading 8"
    )
    composite: float | None = setting(
        None,
        gt=0,
        le=1,
        description="share of the height around the mask from which on a pair is the normal "
        "itself, for methods that draw into one; null: as the method drew it",
        source="ours",
    )
    gate: Gate = Gate()
    sampling: Sampling = Sampling()
