"""The detectors of anomalib that comparators.py trains, built for one size of picture, with
features of our weights.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

# anomalib's own imports warn of its and timm's deprecated names.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    import torch
    import torchvision
    from anomalib import models
    from anomalib.models.components.base import AnomalibModule
    from anomalib.models.image.cfa import torch_model as cfa_model
    from anomalib.pre_processing import PreProcessor
    from torch import nn
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.transforms.v2 import Resize

from helixbench import schema, weights
from helixbench.engine import checkpoint, lite0
from helixbench.errors import UserError

_BARE = {
    "pre_processor": False,
    "post_processor": False,
    "evaluator": False,
    "visualizer": False,
}
"""Pictures, thresholds and metrics are ours."""

_LAYERS = {
    "squeezenet1_1": {1: "features.4", 2: "features.7", 3: "features.12"},
    weights.LITE0: lite0.STAGES,
}
"""Layers with the strides of a ResNet's layer1 to layer4: 4, 8, 16, 32."""


def start(config: schema.Comparator) -> tuple[str, str]:
    """The backbone that is read, and its weights: `weights.start`."""
    return weights.start(config.backbone, config.weights, config.needs_resnet)


def _layers(config: schema.Comparator, *numbers: int) -> list[str]:
    names = _LAYERS.get(start(config)[0], {})
    return [names.get(number, f"layer{number}") for number in numbers]


def features(config: schema.Comparator) -> nn.Module:
    """The network (B, 3, H, W) that features are read from, ImageNet's weights or random ones of
    the global seed.
    """
    backbone, begin = start(config)
    if backbone == weights.LITE0:
        return lite0.network()
    network = getattr(torchvision.models, backbone)(weights=None)
    if begin == "imagenet":
        network.load_state_dict(checkpoint.load_published(backbone))
    return network.eval()


def _patchcore(config: schema.PatchCore, size: int, normals: Sequence[Path]) -> AnomalibModule:
    return models.Patchcore(
        features(config),
        _layers(config, 2, 3),
        coreset_sampling_ratio=config.coreset,
        num_neighbors=config.neighbours,
        **_BARE,
    )


def _padim(config: schema.PaDiM, size: int, normals: Sequence[Path]) -> AnomalibModule:
    return models.Padim(
        features(config),
        _layers(config, 1, 2, 3),
        n_features=config.features,
        **_BARE,
    )


def _cflow(config: schema.Cflow, size: int, normals: Sequence[Path]) -> AnomalibModule:
    return models.Cflow(
        features(config),
        _layers(config, 2, 3, 4),
        fiber_batch_size=config.fibres,
        condition_vector=config.condition,
        coupling_blocks=config.coupling_blocks,
        lr=config.lr,
        **_BARE,
    )


def _reverse_distillation(
    config: schema.ReverseDistillation, size: int, normals: Sequence[Path]
) -> AnomalibModule:
    # Its decoder mirrors a backbone that is named, so that the teacher's weights are put in
    # afterwards.
    fixed = PreProcessor(transform=Resize((size, size)))
    module = models.ReverseDistillation(
        config.backbone,
        _layers(config, 1, 2, 3),
        pre_trained=False,
        **{**_BARE, "pre_processor": fixed},
    )
    module.pre_processor = None
    teacher, published = module.model.encoder.feature_extractor, features(config).state_dict()
    teacher.load_state_dict({name: published[name] for name in teacher.state_dict()})
    return module


class _Cfa(models.Cfa):
    def on_train_start(self) -> None:
        """The centroids are of the untrained features: a resumed training keeps them."""
        if self.model.memory_bank.ndim == 0:
            super().on_train_start()


def _cfa(config: schema.Cfa, size: int, normals: Sequence[Path]) -> AnomalibModule:
    def extractor(backbone: str, nodes: list[str]) -> nn.Module:
        return create_feature_extractor(features(config), nodes).eval()

    with mock.patch.object(
        cfa_model, "get_feature_extractor", extractor
    ):  # it knows downloaded weights only
        return _Cfa(config.backbone, **_BARE)


class _EfficientAd(models.EfficientAd):
    teacher_file = ""

    def prepare_pretrained_model(self) -> None:
        """The teacher's published weights, where their file is given."""
        if self.teacher_file:
            self.model.teacher.load_state_dict(
                torch.load(self.teacher_file, map_location=self.device, weights_only=True)
            )

    def prepare_imagenette_data(self, image_size: tuple[int, int]) -> None:
        """Pictures of the penalty: black ones without a folder."""
        if self.imagenet_dir.name:
            super().prepare_imagenette_data(image_size)
        else:
            self.imagenet_iterator = itertools.repeat([torch.zeros(1, 3, *image_size)])


def _efficient_ad(config: schema.EfficientAd, size: int, normals: Sequence[Path]) -> AnomalibModule:
    if config.imagenet and not Path(config.imagenet).is_dir():
        raise UserError(
            f"{config.imagenet}: no such folder; put folders of pictures there, or leave "
            f"detect.comparators' imagenet empty"
        )
    if config.teacher and not Path(config.teacher).is_file():
        raise UserError(
            f"{config.teacher}: no such file; put the teacher's weights there, or leave "
            f"detect.comparators' teacher empty"
        )
    module = _EfficientAd(Path(config.imagenet), model_size=config.size, **_BARE)
    module.teacher_file = config.teacher
    return module


def _draem(config: schema.DraemDetector, size: int, normals: Sequence[Path]) -> AnomalibModule:
    if config.textures and not Path(config.textures).is_dir():
        raise UserError(
            f"{config.textures}: no such folder; put pictures there, or leave detect.comparators' "
            f"textures empty"
        )
    with tempfile.TemporaryDirectory() as nothing:  # without a folder it would download one
        module = models.Draem(Path(config.textures or nothing), **_BARE)
    if not config.textures:
        module.augmenter.anomaly_source_paths = list(normals)
    return module


def _supersimplenet(
    config: schema.SuperSimpleNet, size: int, normals: Sequence[Path]
) -> AnomalibModule:
    return models.Supersimplenet(
        config.threshold,
        features(config),
        _layers(config, 2, 3),
        **_BARE,
    )


_BUILDERS: dict[str, Callable[..., AnomalibModule]] = {
    "patchcore": _patchcore,
    "padim": _padim,
    "cflow": _cflow,
    "reverse_distillation": _reverse_distillation,
    "cfa": _cfa,
    "efficient_ad": _efficient_ad,
    "draem": _draem,
    "supersimplenet": _supersimplenet,
}


def build(
    config: schema.Comparator, size: int, seed: int, normals: Sequence[Path]
) -> AnomalibModule:
    """The detector for pictures of size x size, seeded; normals: files of normal pictures.
    UserError for files that are not there.
    """
    pl.seed_everything(seed % 2**32, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of the network among the hyperparameters, which are dropped
        module = _BUILDERS[config.kind](config, size, normals)
    module.hparams.clear()  # the network, pickled, would be in each checkpoint
    return module
