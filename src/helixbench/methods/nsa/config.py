"""Settings of NSA under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from helixbench.schema.method import MethodSettings
from helixbench.schema.section import rising, setting


class Nsa(MethodSettings):
    """NSA (Schlueter et al., ECCV 2022): resized patches of another normal, blended in by solving
    Poisson's equation.
    """

    in_paper_run = True
    kind: Literal["nsa"]
    label: str = setting("NSA", description="name in the tables", source="ours")
    patches: int = setting(
        3,
        ge=1,
        le=16,
        description="patches at most; each after the first with probability 1/2",
        source="NSA's setting of bottle",
    )
    half_side: tuple[float, float] = setting(
        (0.03, 0.4),
        description="limits of half a patch's side as cut, of all of it as pasted [share of the "
        "side]",
        source="NSA's setting of bottle",
    )
    gamma_scale: float = setting(
        0.05,
        gt=0,
        le=1,
        description="scale of the gamma distribution (shape 2) of half sides above the smallest",
        source="NSA's code",
    )
    resize: tuple[float, float] = setting(
        (0.7, 1.3),
        description="range of the patch's scale factor, drawn from N(1, 0.5)",
        source="NSA's code",
    )
    min_object: float = setting(
        0.7,
        ge=0,
        le=1,
        description="share of the patch that shows the source's object",
        source="NSA's setting of bottle",
    )
    min_overlap: float = setting(
        0.25,
        ge=0,
        le=1,
        description="share of that which lies on the destination's object",
        source="NSA's setting of bottle",
    )
    tolerance: float = setting(
        1.0,
        gt=0,
        lt=255,
        description="mean change of a pixel's channels that counts as defect [grey level of 255]",
        source="NSA's code",
    )

    _ranges = model_validator(mode="after")(rising(half_side=(0, 0.45), resize=(0, 4)))
