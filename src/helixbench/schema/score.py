"""Section `score`: the scores and their protocols."""

from __future__ import annotations

from typing import Literal

from helixbench.schema.section import Section, setting


class InceptionScore(Section):
    """Inception Score through torch-fidelity."""

    network: Literal["auto", "inception-v3", "efficientnet_lite0", "squeezenet1_1", "random"] = (
        setting(
            "inception-v3",
            description="classifier; auto: inception-v3 where its weights are on this machine, "
            "else efficientnet_lite0",
            source="paper IV-B names IS, whose classifier this is",
        )
    )
    splits: int = setting(10, ge=1, description="splits of the score", source="reading 23")


class IcLpips(Section):
    """Intra-cluster LPIPS."""

    network: Literal["auto", "vgg", "alex", "squeeze", "efficientnet_lite0", "random"] = setting(
        "vgg",
        description="LPIPS backbone; auto: vgg, squeeze, whose weights are here first, else "
        "efficientnet_lite0, a distance like LPIPS on its features (docs/scores.md)",
        source="the protocol of AnomalyDiffusion",
    )
    cap: int = setting(
        50, ge=2, description="images kept per cluster", source="the protocol of AnomalyDiffusion"
    )
    shuffles: int = setting(
        5,
        ge=1,
        description="seeded shuffles; mean and std are reported",
        source="ours: public codes shuffle once, unseeded",
    )
    defect: bool = setting(
        True,
        description="also on the defects alone: pictures cropped around their masks",
        source="SeaS reports it",
    )
    variants: tuple[Literal["seas", "dfmgan", "dfmgan_zero", "anomalydiffusion"], ...] = setting(
        (),
        description="also as others compute it; seas: cap 140; dfmgan: AlexNet, cap 200, all real "
        "pictures of the type as anchors; "
        "dfmgan_zero: and clusters without a pair count 0; "
        "anomalydiffusion: VGG, cap 50, the first third of the real pictures as anchors",
        source="ours",
    )


class Kid(Section):
    """Kernel Inception Distance through torch-fidelity, to all real pictures of the defect type."""

    subsets: int = setting(
        100, ge=1, description="random subsets; mean and std over them", source="torch-fidelity"
    )
    subset_size: int = setting(
        1000,
        ge=2,
        description="pictures a subset; fewer where fewer are there, which the protocol says",
        source="torch-fidelity",
    )


class MaskAgreement(Section):
    """How well masks cover what differs from the nearest normal pictures (docs/scores.md)."""

    size: int = setting(
        128,
        ge=16,
        description="side that pictures are averaged down to [pixel]",
        source="ours (docs/scores.md)",
    )
    neighbours: int = setting(
        8, ge=1, description="nearest normal pictures that a pair is compared with", source="ours"
    )
    shift: int = setting(
        2,
        ge=0,
        le=16,
        description="how far a pixel may look for its like [pixel of the small picture]",
        source="ours",
    )


class ScoreSection(Section):
    """How generated pairs are scored."""

    inception_score: InceptionScore = InceptionScore()
    ic_lpips: IcLpips = IcLpips()
    kid: Kid = Kid()
    mask_agreement: MaskAgreement = MaskAgreement()
    batch: int = setting(32, ge=1, description="images through a network at once", source="ours")
    memory_gib: float = setting(
        4.0,
        gt=0,
        description="memory that LPIPS embeddings may take at one time [GiB]",
        source="ours",
    )
