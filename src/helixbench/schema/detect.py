"""Section `detect`: downstream detectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from helixbench.schema.comparators import Comparator
from helixbench.schema.section import Name, Optim, Section, setting, used_only, values

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

    width: int = setting(
        64,
        ge=1,
        le=256,
        description="channels of the first of the six levels; 64: DRAEM's",
        source="paper IV-D: U-Net; AnomalyDiffusion's, which is DRAEM's",
    )
    normal_share: float = setting(
        0.5,
        ge=0,
        lt=1,
        description="share of normals in a batch",
        source="the protocol of AnomalyDiffusion",
    )
    max_pairs: MaxPairs = setting(None, source="paper IV-D; AnomalyDiffusion: 500")
    focal_gamma: float = setting(
        2.0, ge=0, description="gamma of the focal loss", source="the protocol of AnomalyDiffusion"
    )
    score_window: int = setting(
        21,
        ge=1,
        description="side of the averaging window of the image score [pixel]",
        source="paper IV-D, as in DRAEM: reading 21",
    )
    seeds: tuple[int, ...] = setting(
        (0,),
        min_length=1,
        description="training seeds; tables give mean and std",
        source="ours: one training",
    )
    pro_limit: float = setting(
        0.3,
        gt=0,
        le=1,
        description="false-positive rate up to which PRO is integrated",
        source="ours: the limit of the MVTec AD evaluation",
    )
    pro_thresholds: int | None = setting(
        None,
        ge=2,
        description="thresholds of PRO; null: all, exact; 100: public scripts (docs/detectors.md)",
        source="ours: exact; AnomalyDiffusion: 100",
    )
    ground_truth: Literal["exact", "full_value"] = setting(
        "exact",
        description="exact: a pixel at least half covered is anomalous; full_value: masks as the "
        "public scripts have them, resized "
        "bilinearly, wholly covered pixels for AUROC, AP and F1, any covered ones for PRO",
        source="ours; full_value: the protocol of AnomalyDiffusion",
    )
    checkpoints: Checkpoints = setting(("last",), source="ours; AnomalyDiffusion: best_on_test")
    optim: Optim = values(
        steps=(12500, "ours: 200 epochs x 500 samples / batch 8 of AnomalyDiffusion"),
        batch=(8, "the protocol of AnomalyDiffusion"),
        lr=(0.0001, "the protocol of AnomalyDiffusion"),
        decay=("multistep", "ours: x0.2 at 80 % and 90 %, the protocol of AnomalyDiffusion"),
        grad_clip=(None, "the protocol of AnomalyDiffusion"),
    )
    _choice = model_validator(mode="after")(_some_point_to_choose)


class Classification(Section):
    """A network that names the defect type: trained on pairs, `optim.steps` for each type, tested
    on held-out real defects.
    """

    network: Literal["resnet18", "resnet34", "resnet50", "efficientnet_lite0"] = setting(
        "resnet34",
        description="of torchvision; efficientnet_lite0: of timm",
        source="the protocol of AnomalyDiffusion",
    )
    weights: Literal["auto", "imagenet", "none"] = setting(
        "auto",
        description="start; auto: imagenet where its file is on this machine, else "
        "efficientnet_lite0's",
        source="AnomalyDiffusion: ImageNet; ours: where its file is here",
    )
    normalise: bool = setting(
        False,
        description="channels normalised as the published weights were trained with",
        source="the protocol of AnomalyDiffusion, whose weights expect it",
    )
    max_pairs: MaxPairs = setting(None, source="ours: as localization; AnomalyDiffusion: 500")
    seeds: tuple[int, ...] = setting(
        (0,),
        min_length=1,
        description="training seeds; tables give mean and std",
        source="ours: one training",
    )
    checkpoints: Checkpoints = setting(("last",), source="ours; AnomalyDiffusion: best_on_test")
    optim: Optim = values(
        steps=(9375, "30 epochs x 5 x 500 pairs / batch 8 of AnomalyDiffusion"),
        batch=(8, "the protocol of AnomalyDiffusion"),
        lr=(0.0001, "the protocol of AnomalyDiffusion"),
        decay=("multistep", "the protocol of AnomalyDiffusion"),
        grad_clip=(None, "the protocol of AnomalyDiffusion"),
    )
    _choice = model_validator(mode="after")(_some_point_to_choose)


class Segmentation(Section):
    """Segmenters trained on pairs and normals, tested by IoU and accuracy on held-out real
    defects.
    """

    networks: dict[Literal["segformer", "unet", "deeplabv3plus"], SegmentationEncoder] = setting(
        {"segformer": "mit_b2", "unet": "resnet34", "deeplabv3plus": "resnet34"},
        min_length=1,
        description="segmentation-models-pytorch encoder of each architecture, no pretrained "
        "weights",
        source="STAGE tests SegFormer; encoders ours",
    )
    normal_share: float = setting(
        0.5, ge=0, lt=1, description="share of normals in a batch", source="ours: as localization"
    )
    max_pairs: MaxPairs = setting(None, source="ours: as localization")
    focal_gamma: float = setting(
        0.0,
        ge=0,
        description="gamma of the focal loss; 0: cross-entropy",
        source="ours: cross-entropy",
    )
    seeds: tuple[int, ...] = setting(
        (0,),
        min_length=1,
        description="training seeds; tables give mean and std",
        source="ours: one training",
    )
    checkpoints: Checkpoints = setting(("last",), source="ours")
    optim: Optim = values(
        steps=(12500, "ours: as localization"),
        batch=(8, "ours: as localization"),
        lr=(0.0001, "ours"),
        warmup=(200, "ours"),
        decay=("cosine", "ours"),
        weight_decay=(0.01, "ours"),
    )
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
    classification: Classification | None = setting(
        None, written={}, description="trained if `use` names it"
    )
    segmentation: Segmentation | None = setting(
        None, written={}, description="trained if `use` names it"
    )
    false_alarms: float = setting(
        0.05,
        gt=0,
        lt=1,
        description="rate of false alarms that the threshold promises, where prepare.calibration "
        "keeps normals for it",
        source="ours",
    )
    use: tuple[Name, ...] | None = setting(
        None,
        description="detectors of this run beside the localizer: `classification`, "
        "`segmentation`, and comparators by their keys; null: all",
        source="ours",
    )
    comparators: dict[Name, Comparator] = Field(
        {}, description="detectors of Tables IV to VII that learn from normals alone, by key"
    )
    _used = used_only("comparators", "classification", "segmentation")
