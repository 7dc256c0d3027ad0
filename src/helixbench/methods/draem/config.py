"""Settings of DRAEM's synthesis under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from helixbench.schema.method import MethodSettings
from helixbench.schema.section import rising


class Draem(MethodSettings):
    """DRAEM's synthetic defects (Zavrtanik et al., ICCV 2021): a foreign texture behind a mask of
    Perlin noise.
    """

    kind: Literal["draem"]
    label: str = Field(
        "DRAEM synthesis", description="name in the tables; DRAEM there is its own detector"
    )
    textures: str = Field(
        "",
        description="folder of texture pictures (DRAEM: DTD); empty: the category's own normals, "
        "altered",
    )
    max_scale: int = Field(
        5, ge=0, le=8, description="Perlin noise of 2^0 ... 2^max_scale cells a side"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="noise above it is mask")
    opacity: tuple[float, float] = Field((0.2, 1.0), description="range of the texture's opacity")
    rotate_share: float = Field(0.3, ge=0, le=1, description="share of normals that are rotated")
    max_rotation: float = Field(
        90.0, ge=0, le=180, description="rotation of masks and of these normals [degree]"
    )

    _ranges = model_validator(mode="after")(rising(opacity=(0, 1)))
