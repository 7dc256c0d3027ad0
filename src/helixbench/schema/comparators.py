"""Detectors under `detect.comparators`, which learn from normals alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from helixbench.schema.section import Section, setting

if TYPE_CHECKING:
    from helixbench.schema import Config


def _label(name: str, source: str) -> Any:
    return setting(
        name,
        min_length=1,
        description="name in the tables; a published method's own puts them side by side",
        source=source,
    )


def _batch(pictures: int, source: str) -> Any:
    return setting(pictures, ge=1, description="pictures per step", source=source)


def _epochs(number: int, source: str) -> Any:
    return setting(number, ge=1, description="passes through the normals", source=source)


AnyBackbone = Literal["wide_resnet50_2", "resnet18", "squeezenet1_1", "efficientnet_lite0"]


class _Comparator(Section):
    """An anomaly detector that learns from normals alone, as anomalib has it
    (docs/comparators.md).
    """

    key: ClassVar[str] = ""  # in params.yaml, where it is not the kind
    kind: str
    label: str
    batch: int = _batch(32, "ours: speed only")
    seeds: tuple[int, ...] = setting(
        (0,),
        min_length=1,
        description="training seeds; tables give mean and std",
        source="ours: one training",
    )

    def conflict(self, config: Config) -> str:
        """Why this detector cannot run under the whole configuration; empty: it can."""
        return ""


class _OnFeatures(_Comparator):
    """One that reads features of a classifier of ImageNet."""

    needs_resnet: ClassVar[bool] = False
    backbone: Literal["wide_resnet50_2", "resnet18", "efficientnet_lite0"] = setting(
        "wide_resnet50_2",
        description="network of the features, of torchvision; efficientnet_lite0: of timm",
        source="its paper",
    )
    weights: Literal["auto", "imagenet", "none"] = setting(
        "auto",
        description="of the backbone; auto: imagenet where its file is on this machine, else "
        "efficientnet_lite0 in its place (rd4ad, cfa: random ones); none: random ones",
        source="its paper: ImageNet's; ours: where their file is here",
    )


class PatchCore(_OnFeatures):
    """Roth et al., CVPR 2022: distance to the nearest of a core set of patch features."""

    kind: Literal["patchcore"]
    label: str = _label("PatchCore", "paper Table V")
    backbone: AnyBackbone = setting(
        "wide_resnet50_2", description="network of the features", source="PatchCore"
    )
    coreset: float = setting(
        0.1,
        gt=0,
        le=1,
        description="share of the patches that are kept",
        source="PatchCore: 0.01, 0.1 and 0.25",
    )
    neighbours: int = setting(
        9, ge=1, description="neighbours that weigh the image score", source="anomalib"
    )


class PaDiM(_OnFeatures):
    """Defard et al., ICPR 2020: Mahalanobis distance to a Gaussian for each position."""

    kind: Literal["padim"]
    label: str = _label("PaDiM", "paper Table V")
    backbone: AnyBackbone = setting(
        "wide_resnet50_2", description="network of the features", source="PaDiM"
    )
    features: int = setting(
        550,
        ge=1,
        description="channels drawn at random of those of the three layers",
        source="PaDiM",
    )


class Cflow(_OnFeatures):
    """Gudovskiy et al., WACV 2022: likelihood of features under conditional normalizing flows."""

    kind: Literal["cflow"]
    label: str = _label("CFLOW", "paper Table IV")
    batch: int = _batch(32, "CFLOW")
    epochs: int = _epochs(200, "CFLOW's code: 25 times 8")
    lr: float = setting(2e-4, gt=0, description="learning rate of Adam", source="CFLOW")
    coupling_blocks: int = setting(8, ge=1, description="blocks of each flow", source="CFLOW")
    condition: int = setting(
        128, ge=4, multiple_of=4, description="channels of the code of the position", source="CFLOW"
    )
    fibres: int = setting(
        256, ge=2, description="positions that a step of the flow takes", source="CFLOW"
    )


class ReverseDistillation(_OnFeatures):
    """Deng and Li, CVPR 2022 (RD4AD): a student that decodes the teacher's features from a
    bottleneck.
    """

    key = "rd4ad"
    needs_resnet: ClassVar[bool] = True
    kind: Literal["reverse_distillation"]
    label: str = _label("RD4AD", "paper Table IV")
    backbone: Literal["wide_resnet50_2", "resnet18"] = setting(
        "wide_resnet50_2", description="torchvision network of the features", source="its paper"
    )
    batch: int = _batch(16, "RD4AD")
    epochs: int = _epochs(200, "RD4AD")


class Cfa(_OnFeatures):
    """Lee et al., IEEE Access 2022 (CFA): features adapted to hyperspheres around the mean
    features.
    """

    needs_resnet: ClassVar[bool] = True
    kind: Literal["cfa"]
    label: str = _label("CFA", "paper Table IV")
    backbone: Literal["wide_resnet50_2", "resnet18"] = setting(
        "wide_resnet50_2", description="torchvision network of the features", source="its paper"
    )
    batch: int = _batch(4, "CFA's code")
    epochs: int = _epochs(30, "CFA's code")


class EfficientAd(_Comparator):
    """Batzner et al., WACV 2024: a student and an autoencoder beside a small teacher."""

    key = "efficientad"
    kind: Literal["efficient_ad"]
    label: str = _label("EfficientAD", "paper Table VII")
    size: Literal["small", "medium"] = setting(
        "small", description="of the networks", source="ours"
    )
    steps: int = setting(
        70000, ge=2, description="training steps, one picture each", source="EfficientAD"
    )
    batch: Literal[1] = setting(1, description="pictures per step", source="EfficientAD")
    teacher: str = setting(
        "",
        description="weights file of the teacher, as anomalib publishes it; empty: a random "
        "teacher",
        source="ours; EfficientAD: pretrained_teacher_small.pth of anomalib",
    )
    imagenet: str = setting(
        "",
        description="folder of folders of pictures for the penalty; empty: black ones, next to no "
        "penalty",
        source="ours",
    )

    def conflict(self, config: Config) -> str:
        """Its networks need 256 pixels."""
        size = config.prepare.size
        return f"EfficientAD needs 256 pixels or more, prepare.size is {size}" if size < 256 else ""


class DraemDetector(_Comparator):
    """Zavrtanik et al., ICCV 2021: reconstruction and segmentation of synthetic anomalies."""

    key = "draem_detector"
    kind: Literal["draem"]
    label: str = _label("DRAEM", "paper Table II")
    batch: int = _batch(8, "DRAEM")
    epochs: int = _epochs(700, "DRAEM")
    textures: str = setting(
        "",
        description="folder of pictures to take anomalies from, there DTD; empty: the category's "
        "own normals",
        source="ours; DRAEM: the DTD pictures",
    )


class SuperSimpleNet(_OnFeatures):
    """Rolih et al., ICPR 2024, successor of SimpleNet (CVPR 2023), which anomalib does not have."""

    kind: Literal["supersimplenet"]
    label: str = _label("SuperSimpleNet", "ours: the paper has SimpleNet, which it follows")
    batch: int = _batch(32, "SuperSimpleNet")
    epochs: int = _epochs(300, "SuperSimpleNet")
    backbone: AnyBackbone = setting(
        "wide_resnet50_2", description="network of the features", source="SuperSimpleNet"
    )
    threshold: float = setting(
        0.2,
        gt=0,
        lt=1,
        description="of the Perlin noise that says where features are disturbed",
        source="SuperSimpleNet",
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
