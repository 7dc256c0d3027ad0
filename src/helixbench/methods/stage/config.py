"""Settings of STAGE under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from helixbench.schema.method import STAR, MethodSettings
from helixbench.schema.section import Optim, Symmetries, setting, values


class Stage(MethodSettings):
    """STAGE (arXiv 2509.06693): a defect drawn into a clean picture inside a given mask;
    deviations: docs/rivals.md.
    """

    in_paper_run = True
    kind: Literal["stage"]
    label: str = setting("STAGE", description="name in the tables", source="ours")
    vectors: int = setting(
        4,
        ge=1,
        le=16,
        description="vectors of the learned word of a defect type",
        source="STAGE's code",
    )
    prompt: str = setting(
        "Anomaly *",
        pattern=STAR,
        description="prompt; * is the learned word",
        source="STAGE's code",
    )
    widths: tuple[int, ...] = setting(
        (64, 256, 512, 256, 64),
        min_length=1,
        description="channels of the mask guidance adapters",
        source="STAGE's code",
    )
    mask_end: int = setting(
        200,
        ge=0,
        lt=1000,
        description="time step from which down M_t is the exact mask (alignment)",
        source="STAGE's code",
    )
    windows: tuple[tuple[int, int], ...] = setting(
        ((700, 800), (300, 400)),
        description="time steps led by the anomaly-only branch",
        source="STAGE's code",
    )
    sampling_steps: int = setting(
        1000,
        ge=1,
        le=1000,
        description="DDPM steps of a pair; generate.sampling is not read",
        source="STAGE's code",
    )
    augment: Symmetries = setting(
        (), description="random symmetries of a training pair", source="STAGE's code: none"
    )
    trainable: Literal["adapters", "all"] = setting(
        "adapters",
        description="words and adapters, or also the U-Net, for a scratch base",
        source="STAGE",
    )
    optim: Optim = values(
        steps=(80000, "STAGE's code: at most, for each defect type; ours: for a category"),
        batch=(8, "STAGE's code"),
        lr=(0.016, "STAGE's code: 2e-3 times the batch"),
        warmup=(0, "STAGE's code"),
        decay=("constant", "STAGE's code"),
        weight_decay=(0.01, "STAGE's code: the default of AdamW"),
        validate_every=(250, "ours"),
    )

    @field_validator("windows")
    @classmethod
    def _rising_windows(cls, windows):
        for low, high in windows:
            if not 0 <= low <= high <= 1000:
                raise ValueError(
                    f"window {[low, high]} must be two time steps of 0 to 1000, the smaller first"
                )
        return windows
