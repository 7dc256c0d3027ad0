"""Settings of DRAEM's synthesis under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from helixbench.schema.method import MethodSettings
from helixbench.schema.section import rising, setting


class Draem(MethodSettings):
    """DRAEM's synthetic defects (Zavrtanik et al., ICCV 2021): a foreign texture behind a mask of
    Perlin noise.
    """

    in_paper_run = True
    kind: Literal["draem"]
    label: str = setting(
        "DRAEM synthesis",
        description="name in the tables; DRAEM there is its own detector",
        source="ours",
    )
    textures: str = setting(
        "",
        description="folder of texture pictures (DRAEM: DTD); empty: the category's own normals, "
        "altered",
        source="ours; DRAEM: the DTD pictures",
    )
    max_scale: int = setting(
        5,
        ge=0,
        le=8,
        description="Perlin noise of 2^0 ... 2^max_scale cells a side",
        source="DRAEM's code",
    )
    threshold: float = setting(
        0.5, gt=0, lt=1, description="noise above it is mask", source="DRAEM's code"
    )
    opacity: tuple[float, float] = setting(
        (0.2, 1.0),
        description="range of the texture's opacity",
        source="DRAEM's code: 1 - beta, beta from 0 to 0.8",
    )
    rotate_share: float = setting(
        0.3, ge=0, le=1, description="share of normals that are rotated", source="DRAEM's code"
    )
    max_rotation: float = setting(
        90.0,
        ge=0,
        le=180,
        description="rotation of masks and of these normals [degree]",
        source="DRAEM's code",
    )

    _ranges = model_validator(mode="after")(rising(opacity=(0, 1)))
