"""Section `score`: the scores and their protocols."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from helixbench.schema.section import Section


class InceptionScore(Section):
    """Inception Score through torch-fidelity."""

    network: Literal["auto", "inception-v3", "squeezenet1_1", "random"] = Field(
        "inception-v3",
        description="classifier; auto: the first of these whose weights are on this machine",
    )
    splits: int = Field(10, ge=1, description="splits of the score (reading 23)")


class IcLpips(Section):
    """Intra-cluster LPIPS."""

    network: Literal["auto", "vgg", "alex", "squeeze", "random"] = Field(
        "vgg", description="LPIPS backbone; auto as above, then squeeze"
    )
    cap: int = Field(50, ge=2, description="images kept per cluster")
    shuffles: int = Field(5, ge=1, description="seeded shuffles; mean and std are reported")
    defect: bool = Field(
        True, description="also on the defects alone: pictures cropped around their masks"
    )
    variants: tuple[Literal["seas", "dfmgan", "dfmgan_zero", "anomalydiffusion"], ...] = Field(
        (),
        description="also as others compute it; seas: cap 140; dfmgan: AlexNet, cap 200, all real "
        "pictures of the type as anchors; "
        "dfmgan_zero: and clusters without a pair count 0; "
        "anomalydiffusion: VGG, cap 50, the first third of the real pictures as anchors",
    )


class Kid(Section):
    """Kernel Inception Distance through torch-fidelity, to all real pictures of the defect type."""

    subsets: int = Field(100, ge=1, description="random subsets; mean and std over them")
    subset_size: int = Field(
        1000,
        ge=2,
        description="pictures a subset; fewer where fewer are there, which the protocol says",
    )


class MaskAgreement(Section):
    """How well masks cover what differs from the nearest normal pictures (docs/scores.md)."""

    size: int = Field(128, ge=16, description="side that pictures are averaged down to [pixel]")
    neighbours: int = Field(
        8, ge=1, description="nearest normal pictures that a pair is compared with"
    )
    shift: int = Field(
        2,
        ge=0,
        le=16,
        description="how far a pixel may look for its like [pixel of the small picture]",
    )


class ScoreSection(Section):
    """How generated pairs are scored."""

    inception_score: InceptionScore = InceptionScore()
    ic_lpips: IcLpips = IcLpips()
    kid: Kid = Kid()
    mask_agreement: MaskAgreement = MaskAgreement()
    batch: int = Field(32, ge=1, description="images through a network at once")
    memory_gib: float = Field(
        4.0, gt=0, description="memory that LPIPS embeddings may take at one time [GiB]"
    )
