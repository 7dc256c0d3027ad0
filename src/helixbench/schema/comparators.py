"""Detectors under `detect.comparators`, which learn from normals alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from helixbench.schema.section import Section

if TYPE_CHECKING:
    from helixbench.schema import Config


class _Comparator(Section):
    """An anomaly detector that learns from normals alone, as anomalib has it
    (docs/comparators.md).
    """

    label: str = Field(
        min_length=1,
        description="name in the tables; a published method's own puts them side by side",
    )
    batch: int = Field(ge=1, description="pictures a step")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="training seeds; tables give mean and std"
    )

    def conflict(self, config: Config) -> str:
        """Why this detector cannot run under the whole configuration; empty: it can."""
        return ""


class _OnFeatures(_Comparator):
    """One that reads features of a classifier of ImageNet."""

    backbone: Literal["wide_resnet50_2", "resnet18"] = Field(
        "wide_resnet50_2", description="torchvision network of the features"
    )
    weights: Literal["auto", "imagenet", "none"] = Field(
        "auto",
        description="of the backbone; auto: imagenet where its file is on this machine; none: "
        "random ones",
    )


class PatchCore(_OnFeatures):
    """Roth et al., CVPR 2022: distance to the nearest of a core set of patch features."""

    kind: Literal["patchcore"]
    backbone: Literal["wide_resnet50_2", "resnet18", "squeezenet1_1"] = Field(
        "wide_resnet50_2", description="network of the features"
    )
    coreset: float = Field(0.1, gt=0, le=1, description="share of the patches that are kept")
    neighbours: int = Field(9, ge=1, description="neighbours that weigh the image score")


class PaDiM(_OnFeatures):
    """Defard et al., ICPR 2020: Mahalanobis distance to a Gaussian for each position."""

    kind: Literal["padim"]
    backbone: Literal["wide_resnet50_2", "resnet18", "squeezenet1_1"] = Field(
        "wide_resnet50_2", description="network of the features"
    )
    features: int = Field(
        550, ge=1, description="channels drawn at random of those of the three layers"
    )


class Cflow(_OnFeatures):
    """Gudovskiy et al., WACV 2022: likelihood of features under conditional normalizing flows."""

    kind: Literal["cflow"]
    epochs: int = Field(ge=1, description="passes through the normals")
    lr: float = Field(gt=0, description="learning rate of Adam")
    coupling_blocks: int = Field(8, ge=1, description="blocks of each flow")
    condition: int = Field(
        128, ge=4, multiple_of=4, description="channels of the code of the position"
    )
    fibres: int = Field(64, ge=2, description="positions that a step of the flow takes")


class ReverseDistillation(_OnFeatures):
    """Deng and Li, CVPR 2022 (RD4AD): a student that decodes the teacher's features from a
    bottleneck.
    """

    kind: Literal["reverse_distillation"]
    epochs: int = Field(ge=1, description="passes through the normals")


class Cfa(_OnFeatures):
    """Lee et al., IEEE Access 2022 (CFA): features adapted to hyperspheres around the mean
    features.
    """

    kind: Literal["cfa"]
    epochs: int = Field(ge=1, description="passes through the normals")


class EfficientAd(_Comparator):
    """Batzner et al., WACV 2024: a student and an autoencoder beside a small teacher."""

    kind: Literal["efficient_ad"]
    size: Literal["small", "medium"] = Field("small", description="of the networks")
    steps: int = Field(ge=2, description="training steps, a picture each")
    batch: Literal[1] = Field(1, description="pictures a step")
    teacher: str = Field(
        "",
        description="weights file of the teacher, as anomalib publishes it; empty: a random "
        "teacher",
    )
    imagenet: str = Field(
        "",
        description="folder of folders of pictures for the penalty; empty: black ones, next to no "
        "penalty",
    )

    def conflict(self, config: Config) -> str:
        """Its networks need 256 pixels."""
        size = config.prepare.size
        return f"EfficientAD needs 256 pixels or more, prepare.size is {size}" if size < 256 else ""


class DraemDetector(_Comparator):
    """Zavrtanik et al., ICCV 2021: reconstruction and segmentation of synthetic anomalies."""

    kind: Literal["draem"]
    epochs: int = Field(ge=1, description="passes through the normals")
    textures: str = Field(
        "",
        description="folder of pictures to take anomalies from, there DTD; empty: the category's "
        "own normals",
    )


class SuperSimpleNet(_OnFeatures):
    """Rolih et al., ICPR 2024, successor of SimpleNet (CVPR 2023), which anomalib does not have."""

    kind: Literal["supersimplenet"]
    backbone: Literal["wide_resnet50_2", "resnet18", "squeezenet1_1"] = Field(
        "wide_resnet50_2", description="network of the features"
    )
    epochs: int = Field(ge=1, description="passes through the normals")
    threshold: float = Field(
        0.2, gt=0, lt=1, description="of the Perlin noise that says where features are disturbed"
    )


Comparator = Annotated[
    PatchCore
    | PaDiM
    | Cflow
    | ReverseDistillation
    | Cfa
    | EfficientAd
    | DraemDetector
    | SuperSimpleNet,
    Field(discriminator="kind"),
]
