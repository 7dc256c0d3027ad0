"""Settings of RealNet's synthesis under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from helixbench.schema.method import MethodSettings, known_places
from helixbench.schema.section import Optim, Symmetries, setting, values


class RealNet(MethodSettings):
    """RealNet's SDAS (Zhang et al., CVPR 2024): normals sampled with too much noise, blended in;
    deviations: docs/rivals.md.
    """

    in_paper_run = True
    kind: Literal["realnet"]
    label: str = setting(
        "RealNet synthesis",
        description="name in the tables; RealNet there is its own detector",
        source="ours",
    )
    prompt: str = setting(
        "a photo of a flawless {category}",
        description="prompt of the normals",
        source="ours: its model has no text",
    )
    sampling_steps: int = setting(
        20,
        ge=1,
        le=1000,
        description="DDPM steps of a source; generate.sampling is not read",
        source="RealNet's code",
    )
    betas: Literal["linear", "base"] = setting(
        "linear",
        description="noise schedule: DDPM's linear one, or that of the base model",
        source="RealNet's code",
    )
    strength: tuple[float, float] = setting(
        (0.1, 0.2),
        description="range of s: each step's variance is 1 + s times DDPM's",
        source="RealNet's code",
    )
    max_scale: int = setting(
        5,
        ge=0,
        le=8,
        description="Perlin noise of 2^0 ... 2^max_scale cells a side",
        source="RealNet's code",
    )
    threshold: float = setting(
        0.5, gt=0, lt=1, description="noise above it is mask", source="RealNet's code"
    )
    max_rotation: float = setting(
        90.0, ge=0, le=180, description="rotation of masks [degree]", source="RealNet's code"
    )
    opacity: tuple[float, float] = setting(
        (0.5, 1.0), description="range of the source's opacity", source="RealNet's code"
    )
    augment: Symmetries = setting(
        (), description="random symmetries of a normal", source="RealNet's code: none"
    )
    optim: Optim = values(
        steps=(20000, "ours: RealNet trains one model of all categories for 1,000 epochs"),
        batch=(15, "RealNet's code: 5, three passes a step"),
        lr=(0.0001, "RealNet's code"),
        warmup=(0, "RealNet's code"),
        decay=("constant", "RealNet's code"),
        weight_decay=(0.0, "RealNet's code"),
        grad_clip=(1.0, "RealNet's code"),
        ema=(0.9999, "RealNet's code"),
        validate_every=(250, "ours"),
    )

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
