"""Inception Score (Salimans et al., 2016) through torch-fidelity, which stays the implementation of the formula.

Networks other than its own Inception-v3 enter through its feature-extractor registry, so that every network goes
through the same shuffling and splitting.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_input_id_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from helixbench.errors import UserError
from helixbench.score import networks
from helixbench.weights import IS_ORDER, choose, weights_file

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _SqueezeNet(FeatureExtractorBase):
    """torchvision's SqueezeNet 1.1 with 1000 logits; pictures are resized to 224 x 224, its training size."""

    size = 224

    def __init__(self, name: str, features_list: list[str], **_: object):
        super().__init__(name, features_list)
        self.net = torchvision.models.squeezenet1_1(weights=None)
        self._fill()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))

    def _fill(self) -> None:
        self.net.load_state_dict(networks.load_weights("squeezenet1_1"))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The only feature: 1000-way logits."""
        return ("logits",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The logits, for every metric."""
        return "logits"

    @staticmethod
    def can_be_compiled() -> bool:
        """Not worth its start-up time."""
        return False

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, 3, H, W) uint8 -> (logits (B, 1000),)."""
        x = nn.functional.interpolate(images.float() / 255, size=(self.size, self.size), mode="bilinear", antialias=True)
        return (self.net((x - self.mean) / self.std),)


class _RandomSqueezeNet(_SqueezeNet):
    """The same network, untrained: a stand-in where no weights are; its score is comparable with itself only.

    Its logits hardly differ between pictures; they are standardised per class over a fixed batch of noise, so that the
    softmax is not flat.
    """

    size = 64

    def _fill(self) -> None:
        rng = torch.Generator().manual_seed(networks.RANDOM_SEED)
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
                module.weight.data = torch.randn(module.weight.shape, generator=rng) * (2 / fan) ** 0.5
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

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, 3, H, W) uint8 -> (logits (B, 1000),)."""
        return ((super().forward(images)[0] - self.shift) / self.scale,)


_EXTRACTORS = {"squeezenet1_1": ("helixbench-squeezenet1_1", _SqueezeNet), "random": ("helixbench-random", _RandomSqueezeNet)}


class _Images(Dataset):
    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(self.images[i]).permute(2, 0, 1).contiguous()


class InceptionScorer:
    """One network, loaded once, applied to the images of one defect type after the other.

    network: `auto`, `inception-v3`, `squeezenet1_1` or `random`. Raises UserError when its weights are not here.
    """

    def __init__(self, network: str, device: torch.device, batch: int = 32):
        self.network = choose(network, IS_ORDER)
        self.cuda, self.batch = device.type == "cuda", batch
        if self.network == "inception-v3":
            networks.load_weights("inception-v3")  # torch-fidelity unpickles without restriction: look first
            path = str(weights_file("inception-v3"))
            name, self.layer, options = "inception-v3-compat", "logits_unbiased", {"feature_extractor_weights_path": path}
        else:
            (name, cls), self.layer, options = _EXTRACTORS[self.network], "logits", {}
            if name not in FEATURE_EXTRACTORS_REGISTRY:
                register_feature_extractor(name, cls)
        self.extractor = create_feature_extractor(name, [self.layer], cuda=self.cuda, verbose=False, **options)

    def __call__(self, images: np.ndarray, splits: int) -> tuple[float, float, int]:
        """Images (n, H, W, 3) uint8 -> (mean, standard deviation over splits, splits used: at most n)."""
        used = max(1, min(splits, len(images)))
        found = isc_input_id_to_metric(
            1,
            self.extractor,
            self.layer,
            input1=_Images(images),
            isc_splits=used,
            batch_size=self.batch,
            cuda=self.cuda,
            save_cpu_ram=True,  # no worker processes: the pictures are in memory already
            verbose=False,
            cache=False,
        )
        if not np.isfinite(found[KEY_METRIC_ISC_MEAN]):  # 0 log 0 of a class that no image of a split can be
            raise UserError(f"{self.network}: the Inception Score is not a finite number; its weights file is not the published one")
        return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD], used
