"""Settings of DFMGAN under `train.methods`."""

from __future__ import annotations

from typing import Literal

from helixbench.schema.method import MethodSettings
from helixbench.schema.section import AdversarialOptim, setting, values


class DFMGAN(MethodSettings):
    """DFMGAN (Duan et al., AAAI 2023): a GAN of normals with a branch for defect and mask;
    deviations: docs/rivals.md.
    """

    in_paper_run = True
    kind: Literal["dfmgan"]
    label: str = setting("DFMGAN", description="name in the tables", source="paper Table I")
    backbone_steps: int = setting(
        93750,
        ge=0,
        description="of optim.steps, those that train the GAN of normals, before all others",
        source="DFMGAN's code: 3,000,000 pictures",
    )
    z: int = setting(
        512, ge=1, description="latents of a picture, and of a defect", source="DFMGAN's code"
    )
    w: int = setting(512, ge=1, description="width of a style", source="DFMGAN's code")
    mapping_layers: int = setting(
        2, ge=1, description="layers from latents to style", source="DFMGAN's code"
    )
    channel_base: int = setting(
        16384, ge=16, description="channels times side of the features", source="DFMGAN's code"
    )
    channel_max: int = setting(512, ge=1, description="channels at most", source="DFMGAN's code")
    defect_side: int = setting(
        64,
        ge=8,
        description="side of the features from which on the defect branch adds to them [pixel]",
        source="DFMGAN's code",
    )
    match_base: int = setting(
        4096,
        ge=16,
        description="channel_base of the matching discriminator",
        source="DFMGAN's code",
    )
    match_max: int = setting(
        128, ge=1, description="channel_max of the matching discriminator", source="DFMGAN's code"
    )
    match_weight: float = setting(
        1.0, ge=0, description="weight of the match of picture and mask", source="DFMGAN's code"
    )
    seek_weight: float = setting(
        0.1, ge=0, description="weight of mode seeking", source="DFMGAN's code"
    )
    r1: float = setting(
        0.0002,
        ge=0,
        description="R1 penalty by side squared / batch (StyleGAN2-ADA's rule)",
        source="StyleGAN2-ADA",
    )
    path_weight: float = setting(
        2.0, ge=0, description="weight of path length regularisation", source="StyleGAN2-ADA"
    )
    style_mixing: float = setting(
        0.9,
        ge=0,
        le=1,
        description="share of batches with two styles a picture",
        source="StyleGAN2-ADA",
    )
    ada_target: float = setting(
        0.6,
        ge=0,
        lt=1,
        description="mean sign of the scores of real pictures that augmentation aims at; 0: none",
        source="StyleGAN2-ADA",
    )
    ada_kimg: float = setting(
        500,
        gt=0,
        description="thousand pictures in which its probability can go from 0 to 1",
        source="StyleGAN2-ADA",
    )
    ada_kimg_defect: float = setting(
        100,
        gt=0,
        description="the same in the second stage, which goes on from a trained backbone",
        source="StyleGAN2-ADA, where it goes on from a trained network",
    )
    optim: AdversarialOptim = values(
        steps=(156250, "DFMGAN's code, with 400,000 pictures per defect type"),
        batch=(32, "DFMGAN's code, on two GPUs"),
        lr=(0.0025, "DFMGAN's code"),
        warmup=(0, "DFMGAN's code"),
        decay=("constant", "DFMGAN's code"),
        weight_decay=(0.0, "DFMGAN's code"),
        grad_clip=(None, "DFMGAN's code: none"),
        ema=(0.998, "DFMGAN's code: half of 10,000 pictures back"),
        precision=("fp32", "ours: DFMGAN's code has half precision in large features"),
    )
