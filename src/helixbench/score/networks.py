"""Which network measures, and with which weights: facts of a protocol.

ImageNet weights are looked for in torch's hub cache (`$TORCH_HOME/hub/checkpoints`), under the
names that torchvision and torch-fidelity give them; they are never downloaded.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from helixbench.weights import LITE0, SHA256, weights_file

RANDOM_SEED = 20240607
"""Seed of the `random` networks: part of their definition, so that all runs measure with the same
one."""


@lru_cache
def _digest(file: Path, modified: int) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:8]


def facts(name: str) -> dict[str, str | int]:
    """Facts of a protocol: `network`, `weights` (`imagenet` or `none`), and the first 8 hex digits
    of the file's sha256, or the seed of a network without weights.
    """
    if name == "random":
        return {"network": name, "weights": "none", "weights_seed": RANDOM_SEED}
    file = weights_file(name)
    if name == LITE0:  # checked when it is read, and perhaps not in the cache
        return {"network": name, "weights": "imagenet", "weights_hash": SHA256[file.name][:8]}
    digest = _digest(file, file.stat().st_mtime_ns)
    return {"network": name, "weights": "imagenet", "weights_hash": digest}
