"""Which network measures, and where its weights are: found on this machine or refused, never downloaded.

ImageNet weights are looked for in torch's hub cache (`$TORCH_HOME/hub/checkpoints`), under the names that torchvision
and torch-fidelity give them. Every network says which weights it carries, because that text enters the protocol.
"""

from __future__ import annotations

import hashlib
import pickle
from functools import lru_cache
from pathlib import Path

import torch

from helixbench.errors import UserError
from helixbench.weights import URLS, weights_file

RANDOM_SEED = 20240607
"""Seed of the `random` networks: part of their definition, so that all runs measure with the same one."""


def load_weights(name: str) -> dict[str, torch.Tensor]:
    """State dict of a network's weights file, in float32; only tensors are unpickled."""
    file = weights_file(name)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    except (OSError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: not a readable weights file ({reason}); fetch {URLS[name]} again") from None


@lru_cache
def _digest(file: Path, modified: int) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:8]


def describe(name: str) -> str:
    """Text for a protocol: network and weights, e.g. `squeezenet1_1 (ImageNet weights 1a2b3c4d)`."""
    if name == "random":
        return f"random SqueezeNet (untrained, seed {RANDOM_SEED})"
    file = weights_file(name)
    return f"{name} (ImageNet weights {_digest(file, file.stat().st_mtime_ns)})"
