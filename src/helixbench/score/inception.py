"""Inception Score (Salimans et al., 2016) and KID (Binkowski et al., 2018) through torch-fidelity,
whose formulas they are.

Networks other than its own Inception-v3 enter through its feature-extractor registry, so that every
network goes through the same shuffling and splitting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

from helixbench.engine import lite0
from helixbench.engine.checkpoint import load_published
from helixbench.errors import UserError
from helixbench.score import networks
from helixbench.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    IS_ORDER,
    LITE0,
    choose,
    weights_file,
)


class _SqueezeNet(FeatureExtractorBase):
    """torchvision's SqueezeNet 1.1: 1000 logits, 512 pooled features; pictures are resized to 224 x
    224, its training size.
    """

    size = 224

    def __init__(self, name: str, features_list: list[str], **_: object):
        super().__init__(name, features_list)
        self.net = torchvision.models.squeezenet1_1(weights=None)
        self._fill()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def _fill(self) -> None:
        self.net.load_state_dict(load_published("squeezenet1_1"))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """1000-way logits, and the last convolution's features before them, averaged over the
        picture.
        """
        return ("logits", "pool")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Logits for IS, pooled features for the distances."""
        return "logits" if metric == "isc" else "pool"

    @staticmethod
    def can_be_compiled() -> bool:
        """Not worth its start-up time."""
        return False

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(
            images.float() / 255, size=(self.size, self.size), mode="bilinear", antialias=True
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) uint8 -> (logits (B, 1000), features (B, 512))."""
        features = self.net.features((self._resized(images) - self.mean) / self.std)
        return self.net.classifier(features).flatten(1), features.mean((2, 3))


class _RandomSqueezeNet(_SqueezeNet):
    """The same network, untrained: a stand-in where no weights are; its score is comparable with
    itself only.

    Its logits hardly differ between pictures; they are standardised per class over a fixed batch of
    noise, so that the softmax is not flat.
    """

    size = 64

    def _fill(self) -> None:
        rng = torch.Generator().manual_seed(networks.RANDOM_SEED)
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
                module.weight.data = (
                    torch.randn(module.weight.shape, generator=rng) * (2 / fan) ** 0.5
                )
                module.bias.data.zero_()
        # torchvision ends in a ReLU before pooling; signed logits say more
        self.net.classifier[2] = nn.Identity()
        self.net.eval()
        noise = torch.randn(16, 3, 8, 8, generator=rng)
        noise = nn.functional.interpolate(noise, size=(self.size, self.size), mode="bilinear")
        with torch.no_grad():
            logits = self.net(noise)
        self.register_buffer("shift", logits.mean(0))
        self.register_buffer("scale", logits.std(0) + 1e-6)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) uint8 -> (logits (B, 1000), features (B, 512))."""
        logits, features = super().forward(images)
        return (logits - self.shift) / self.scale, features


class _Lite0(_SqueezeNet):
    """EfficientNet-Lite0: 1000 logits, 1280 pooled features; pictures are resized as there, 224
    being its training size, too.
    """

    def _fill(self) -> None:
        self.net = lite0.network()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) uint8 -> (logits (B, 1000), features (B, 1280))."""
        features = self.net.forward_features(2 * self._resized(images) - 1)
        return self.net.forward_head(features), features.mean((2, 3))


_EXTRACTORS = {
    LITE0: (f"helixbench-{LITE0}", _Lite0),
    "squeezenet1_1": ("helixbench-squeezenet1_1", _SqueezeNet),
    "random": ("helixbench-random", _RandomSqueezeNet),
}


class _Images(Dataset):
    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(self.images[i]).permute(2, 0, 1).contiguous()


class Features(NamedTuple):
    """Of n pictures: logits (n, classes), and pooled features (n, D), both float32 on the CPU."""

    logits: torch.Tensor
    pooled: torch.Tensor


class InceptionScorer:
    """One network, loaded once, applied to the images of one defect type after the other.

    network: `auto`, `inception-v3`, `efficientnet_lite0`, `squeezenet1_1` or `random`. Raises
    UserError when its weights are not here.
    """

    def __init__(self, network: str, device: torch.device, batch: int = 32):
        self.network = choose(network, IS_ORDER)
        self.cuda, self.batch = device.type == "cuda", batch
        if self.network == "inception-v3":
            load_published(
                "inception-v3"
            )  # torch-fidelity unpickles without restriction: look first
            options = {"feature_extractor_weights_path": str(weights_file("inception-v3"))}
            name, self.layers = "inception-v3-compat", ("logits_unbiased", "2048")
        else:
            (name, cls), self.layers, options = _EXTRACTORS[self.network], ("logits", "pool"), {}
            if name not in FEATURE_EXTRACTORS_REGISTRY:
                register_feature_extractor(name, cls)
        self.extractor = create_feature_extractor(
            name, list(self.layers), cuda=self.cuda, verbose=False, **options
        )

    def features(self, images: np.ndarray) -> Features:
        """Images (n, H, W, 3) uint8 through the network."""
        found = extract_featuresdict_from_input_id(
            1,
            self.extractor,
            input1=_Images(images),
            batch_size=self.batch,
            cuda=self.cuda,
            save_cpu_ram=True,  # no worker processes: the pictures are in memory already
            verbose=False,
        )
        return Features(*(found[layer] for layer in self.layers))

    def inception_score(self, features: Features, splits: int) -> tuple[float, float, int]:
        """Mean and standard deviation over splits, splits used: at most one an image."""
        used = max(1, min(splits, len(features.logits)))
        found = isc_features_to_metric(features.logits, splits=used)
        if not np.isfinite(
            found[KEY_METRIC_ISC_MEAN]
        ):  # 0 log 0 of a class that no image of a split can be
            raise UserError(
                f"{self.network}: the Inception Score is not a finite number; its weights file is "
                f"not the published one"
            )
        return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD], used

    @staticmethod
    def kid(
        features: Features, real: Features, subsets: int, subset_size: int
    ) -> tuple[float, float, int]:
        """Kernel Inception Distance: mean and standard deviation over subsets, and their size: at
        most what is there.

        Unbiased, hence slightly below 0 for like distributions. ValueError for fewer than two
        pictures on either side.
        """
        size = min(subset_size, len(features.pooled), len(real.pooled))
        if size < 2:
            raise ValueError("KID needs two pictures on either side")
        found = kid_features_to_metric(
            features.pooled, real.pooled, kid_subsets=subsets, kid_subset_size=size, verbose=False
        )
        return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD], size
