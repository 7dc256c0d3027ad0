"""Settings of Crop&Paste under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from helixbench.schema.method import MethodSettings
from helixbench.schema.section import setting


class CropPaste(MethodSettings):
    """Crop&Paste (Lin et al., ICME 2021): a real defect cut by its mask, moved, and pasted into a
    normal's foreground.
    """

    in_paper_run = True
    kind: Literal["crop_paste"]
    label: str = setting("Crop&Paste", description="name in the tables", source="paper Table I")
    max_rotation: float = setting(
        180.0,
        ge=0,
        le=180,
        description="rotation of the cut [degree]",
        source="ours, after Lin et al. (ICME 2021)",
    )
    scale: tuple[float, float] = setting(
        (0.8, 1.25), description="range of the isotropic scale factor", source="ours"
    )
    feather: float = setting(
        1.0, ge=0, description="standard deviation of the soft edge [pixel]", source="ours"
    )

    @model_validator(mode="after")
    def _scale_is_a_range(self):
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"scale {list(self.scale)} must be two positive numbers, the smaller first"
            )
        return self
