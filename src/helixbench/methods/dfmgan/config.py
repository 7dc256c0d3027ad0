"""Settings of DFMGAN under `train.methods`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from helixbench.schema.method import MethodSettings
from helixbench.schema.section import AdversarialOptim


class DFMGAN(MethodSettings):
    """DFMGAN (Duan et al., AAAI 2023): a GAN of normals with a branch for defect and mask;
    deviations: docs/rivals.md.
    """

    kind: Literal["dfmgan"]
    label: str = Field("DFMGAN", description="name in the tables")
    backbone_steps: int = Field(
        93750,
        ge=0,
        description="of optim.steps, those that train the GAN of normals, before all others",
    )
    z: int = Field(512, ge=1, description="latents of a picture, and of a defect")
    w: int = Field(512, ge=1, description="width of a style")
    mapping_layers: int = Field(2, ge=1, description="layers from latents to style")
    channel_base: int = Field(16384, ge=16, description="channels times side of the features")
    channel_max: int = Field(512, ge=1, description="channels at most")
    defect_side: int = Field(
        64,
        ge=8,
        description="side of the features from which on the defect branch adds to them [pixel]",
    )
    match_base: int = Field(4096, ge=16, description="channel_base of the matching discriminator")
    match_max: int = Field(128, ge=1, description="channel_max of the matching discriminator")
    match_weight: float = Field(1.0, ge=0, description="weight of the match of picture and mask")
    seek_weight: float = Field(0.1, ge=0, description="weight of mode seeking")
    r1: float = Field(
        0.0002, ge=0, description="R1 penalty by side squared / batch (StyleGAN2-ADA's rule)"
    )
    path_weight: float = Field(2.0, ge=0, description="weight of path length regularisation")
    style_mixing: float = Field(
        0.9, ge=0, le=1, description="share of batches with two styles a picture"
    )
    ada_target: float = Field(
        0.6,
        ge=0,
        lt=1,
        description="mean sign of the scores of real pictures that augmentation aims at; 0: none",
    )
    ada_kimg: float = Field(
        500, gt=0, description="thousand pictures in which its probability can go from 0 to 1"
    )
    ada_kimg_defect: float = Field(
        100, gt=0, description="the same in the second stage, which goes on from a trained backbone"
    )
    optim: AdversarialOptim
