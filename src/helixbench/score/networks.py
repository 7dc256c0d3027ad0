"""Which network measures, and where its weights are: found on this machine or refused, never
downloaded.

ImageNet weights are looked for in torch's hub cache (`$TORCH_HOME/hub/checkpoints`), under the
names that torchvision and torch-fidelity give them. Every network says which weights it carries,
because that text enters the protocol.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from helixbench.engine.checkpoint import load_published as load_weights
from helixbench.weights import weights_file

__all__ = ["RANDOM_SEED", "describe", "load_weights"]

RANDOM_SEED = 20240607
"""Seed of the `random` networks: part of their definition, so that all runs measure with the same
one."""


@lru_cache
def _digest(file: Path, modified: int) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:8]


def describe(name: str) -> str:
    """Text for a protocol: network and weights, e.g. `squeezenet1_1 (ImageNet weights
    1a2b3c4d)`.
    """
    if name == "random":
        return f"random SqueezeNet (untrained, seed {RANDOM_SEED})"
    file = weights_file(name)
    return f"{name} (ImageNet weights {_digest(file, file.stat().st_mtime_ns)})"
