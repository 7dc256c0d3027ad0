"""Settings of Crop&Paste under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from helixbench.schema.method import MethodSettings


class CropPaste(MethodSettings):
    """Crop&Paste (Lin et al., ICME 2021): a real defect cut by its mask, moved, and pasted into a
    normal's foreground.
    """

    kind: Literal["crop_paste"]
    label: str = Field("Crop&Paste", description="name in the tables")
    max_rotation: float = Field(180.0, ge=0, le=180, description="rotation of the cut [degree]")
    scale: tuple[float, float] = Field(
        (0.8, 1.25), description="range of the isotropic scale factor"
    )
    feather: float = Field(1.0, ge=0, description="standard deviation of the soft edge [pixel]")

    @model_validator(mode="after")
    def _scale_is_a_range(self):
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"scale {list(self.scale)} must be two positive numbers, the smaller first"
            )
        return self
