"""Settings of STAGE under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from helixbench.schema.method import STAR, MethodSettings
from helixbench.schema.section import Optim, Symmetries


class Stage(MethodSettings):
    """STAGE (arXiv 2509.06693): a defect drawn into a clean picture inside a given mask;
    deviations: docs/rivals.md.
    """

    kind: Literal["stage"]
    label: str = Field("STAGE", description="name in the tables")
    vectors: int = Field(4, ge=1, le=16, description="vectors of the learned word of a defect type")
    prompt: str = Field("Anomaly *", pattern=STAR, description="prompt; * is the learned word")
    widths: tuple[int, ...] = Field(
        (64, 256, 512, 256, 64), min_length=1, description="channels of the mask guidance adapters"
    )
    mask_end: int = Field(
        200,
        ge=0,
        lt=1000,
        description="time step from which down M_t is the exact mask (alignment)",
    )
    windows: tuple[tuple[int, int], ...] = Field(
        ((700, 800), (300, 400)), description="time steps led by the anomaly-only branch"
    )
    sampling_steps: int = Field(
        1000, ge=1, le=1000, description="DDPM steps of a pair; generate.sampling is not read"
    )
    augment: Symmetries = Field((), description="random symmetries of a training pair")
    trainable: Literal["adapters", "all"] = Field(
        "adapters", description="words and adapters, or also the U-Net, for a scratch base"
    )
    optim: Optim

    @field_validator("windows")
    @classmethod
    def _rising_windows(cls, windows):
        for low, high in windows:
            if not 0 <= low <= high <= 1000:
                raise ValueError(
                    f"window {[low, high]} must be two time steps of 0 to 1000, the smaller first"
                )
        return windows
