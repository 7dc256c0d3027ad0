"""Settings of RealNet's synthesis under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from helixbench.schema.method import MethodSettings, known_places
from helixbench.schema.section import Optim, Symmetries


class RealNet(MethodSettings):
    """RealNet's SDAS (Zhang et al., CVPR 2024): normals sampled with too much noise, blended in;
    deviations: docs/rivals.md.
    """

    kind: Literal["realnet"]
    label: str = Field(
        "RealNet synthesis", description="name in the tables; RealNet there is its own detector"
    )
    prompt: str = Field("a photo of a flawless {category}", description="prompt of the normals")
    sampling_steps: int = Field(
        20, ge=1, le=1000, description="DDPM steps of a source; generate.sampling is not read"
    )
    betas: Literal["linear", "base"] = Field(
        "linear",
        description="noise schedule: DDPM's linear one, or that of the base model",
    )
    strength: tuple[float, float] = Field(
        (0.1, 0.2), description="range of s: each step's variance is 1 + s times DDPM's"
    )
    max_scale: int = Field(
        5, ge=0, le=8, description="Perlin noise of 2^0 ... 2^max_scale cells a side"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="noise above it is mask")
    max_rotation: float = Field(90.0, ge=0, le=180, description="rotation of masks [degree]")
    opacity: tuple[float, float] = Field((0.5, 1.0), description="range of the source's opacity")
    augment: Symmetries = Field((), description="random symmetries of a normal")
    optim: Optim

    _places = field_validator("prompt")(known_places)

    @model_validator(mode="after")
    def _ranges(self):
        low, high = self.strength
        if not 0 <= low <= high:
            raise ValueError(
                f"strength {[low, high]} must be two numbers from 0 up, the smaller first"
            )
        if not 0 < self.opacity[0] <= self.opacity[1] <= 1:
            raise ValueError(
                f"opacity {list(self.opacity)} must be two numbers above 0 and up to 1, the "
                f"smaller first"
            )
        return self
