"""Section `detect`: downstream detectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from helixbench.schema.comparators import Comparator
from helixbench.schema.section import Name, Optim, Section, used_only

Checkpoints = Annotated[
    tuple[Literal["last", "best_on_test"], ...],
    Field(
        min_length=1,
        description="weights that are tested; best_on_test: chosen by the test pictures, every "
        "optim.validate_every steps",
    ),
]
MaxPairs = Annotated[
    int | None,
    Field(ge=1, description="pairs used per defect type; null: all (paper IV-D); rivals: 500"),
]
SegmentationEncoder = Literal[
    "resnet18", "resnet34", "resnet50", "mit_b0", "mit_b1", "mit_b2", "mit_b3"
]


def _some_point_to_choose(section):
    """Check of a detector's section."""
    if "best_on_test" in section.checkpoints and not section.optim.validate_every:
        raise ValueError(
            "checkpoints: best_on_test needs optim.validate_every above 0, the steps between two "
            "tests"
        )
    return section


class Localization(Section):
    """U-Net trained on pairs and normals, tested on held-out real pictures."""

    width: int = Field(
        64, ge=1, le=256, description="channels of the first of the six levels; 64: DRAEM's"
    )
    normal_share: float = Field(0.5, ge=0, lt=1, description="share of normals in a batch")
    max_pairs: MaxPairs = None
    focal_gamma: float = Field(2.0, ge=0, description="gamma of the focal loss")
    score_window: int = Field(
        21, ge=1, description="side of the averaging window of the image score [pixel] (reading 21)"
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="training seeds; tables give mean and std"
    )
    pro_limit: float = Field(
        0.3, gt=0, le=1, description="false-positive rate up to which PRO is integrated"
    )
    pro_thresholds: int | None = Field(
        None,
        ge=2,
        description="thresholds of PRO; null: all, exact; 100: public scripts (docs/detectors.md)",
    )
    ground_truth: Literal["exact", "full_value"] = Field(
        "exact",
        description="exact: a pixel at least half covered is anomalous; full_value: masks as the "
        "public scripts have them, resized "
        "bilinearly, wholly covered pixels for AUROC, AP and F1, any covered ones for PRO",
    )
    checkpoints: Checkpoints = ("last",)
    optim: Optim
    _choice = model_validator(mode="after")(_some_point_to_choose)


class Classification(Section):
    """A network that names the defect type: trained on pairs, `optim.steps` for each type, tested
    on held-out real defects.
    """

    network: Literal["resnet18", "resnet34", "resnet50"] = Field(
        "resnet34", description="torchvision network"
    )
    weights: Literal["auto", "imagenet", "none"] = Field(
        "auto", description="start; auto: imagenet where its file is on this machine"
    )
    normalise: bool = Field(
        False,
        description="channels normalised as ImageNet's, which the published weights were trained "
        "with",
    )
    max_pairs: MaxPairs = None
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="training seeds; tables give mean and std"
    )
    checkpoints: Checkpoints = ("last",)
    optim: Optim
    _choice = model_validator(mode="after")(_some_point_to_choose)


class Segmentation(Section):
    """Segmenters trained on pairs and normals, tested by IoU and accuracy on held-out real
    defects.
    """

    networks: dict[Literal["segformer", "unet", "deeplabv3plus"], SegmentationEncoder] = Field(
        min_length=1,
        description="segmentation-models-pytorch encoder of each architecture, no pretrained "
        "weights",
    )
    normal_share: float = Field(0.5, ge=0, lt=1, description="share of normals in a batch")
    max_pairs: MaxPairs = None
    focal_gamma: float = Field(0.0, ge=0, description="gamma of the focal loss; 0: cross-entropy")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="training seeds; tables give mean and std"
    )
    checkpoints: Checkpoints = ("last",)
    optim: Optim
    _choice = model_validator(mode="after")(_some_point_to_choose)

    @field_validator("networks")
    @classmethod
    def _they_go_together(cls, networks):
        if networks.get("deeplabv3plus", "").startswith("mit"):
            raise ValueError(
                f"deeplabv3plus has no dilated {networks['deeplabv3plus']}; choose a resnet"
            )
        return networks


class Detect(Section):
    """Downstream detectors, and detectors that use no pairs."""

    localization: Localization
    classification: Classification | None = Field(None, description="trained if `use` names it")
    segmentation: Segmentation | None = Field(None, description="trained if `use` names it")
    use: tuple[Name, ...] | None = Field(
        None,
        description="detectors of this run beside the localizer: `classification`, "
        "`segmentation`, and comparators by their keys; null: all",
    )
    comparators: dict[Name, Comparator] = Field(
        {}, description="detectors of Tables IV to VII that learn from normals alone, by key"
    )
    _used = used_only("comparators", "classification", "segmentation")
