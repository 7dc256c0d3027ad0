"""Settings of CutPaste under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from helixbench.schema.method import MethodSettings
from helixbench.schema.section import rising, setting


class CutPaste(MethodSettings):
    """CutPaste (Li et al., CVPR 2021): a rectangle of a normal pasted elsewhere in it, as patch or
    as scar.
    """

    in_paper_run = True
    kind: Literal["cutpaste"]
    label: str = setting(
        "CutPaste synthesis",
        description="name in the tables; CutPaste there is its own detector",
        source="ours",
    )
    area: tuple[float, float] = setting(
        (0.02, 0.15),
        description="area of a patch [share of the picture]",
        source="CutPaste, section 2",
    )
    aspect: tuple[float, float] = setting(
        (0.3, 3.3), description="height by width of a patch", source="CutPaste"
    )
    jitter: float = setting(
        0.1,
        ge=0,
        lt=1,
        description="change of brightness, contrast and saturation",
        source="CutPaste",
    )
    scar_share: float = setting(
        0.5,
        ge=0,
        le=1,
        description="share of scars among the pairs",
        source="CutPaste: union of both kinds",
    )
    scar_width: tuple[float, float] = setting(
        (2.0, 16.0), description="width of a scar [pixel of 256]", source="CutPaste"
    )
    scar_length: tuple[float, float] = setting(
        (10.0, 25.0), description="length of a scar [pixel of 256]", source="CutPaste"
    )
    scar_rotation: float = setting(
        45.0, ge=0, le=180, description="rotation of a scar [degree]", source="CutPaste"
    )
    min_overlap: float = setting(
        0.667,
        ge=0,
        le=1,
        description="share of the pasted piece that lies on the object; 0: anywhere",
        source="ours, as Crop&Paste: on the object",
    )

    _ranges = model_validator(mode="after")(
        rising(area=(0, 1), aspect=(0, 100), scar_width=(0, 128), scar_length=(0, 256))
    )
