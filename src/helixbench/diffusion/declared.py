"""What a diffusers folder declares, compared with the weights that it holds, before anything is
built: a damaged or foreign configuration must not cost memory or hours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from helixbench.provenance import read_object

LIMIT = 1_000_000
"""No size, count, id or number of steps in a Stable Diffusion model comes near it."""


def check_numbers(folder: Path) -> None:
    """ValueError for a configuration below a folder with a whole number above LIMIT, and for what
    is no regular file (reading a pipe waits for ever).
    """
    for file in sorted(folder.rglob("*")):
        if not file.is_file() and not file.is_dir():
            raise ValueError(f"{file.relative_to(folder)} is not a regular file")
        if file.name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            for name, number in _numbers("", read_object(file, "fetch or train it again")):
                if abs(number) > LIMIT:
                    raise ValueError(
                        f"{file.relative_to(folder)} says {name} {str(number)[:20]}, "
                        f"more than any such model has"
                    )


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Numbers in a JSON value, each with the key that it is below."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(key, part)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(name, part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def check_weights(folder: Path, build: Callable[[], nn.Module]) -> None:
    """ValueError for a part whose configuration declares other weights than its files hold.

    folder: of one part, with *.safetensors. build: makes the module of its configuration; it is
    stopped as soon as it makes more tensors than the files hold, and takes no memory for them.
    """
    held = _held(folder)

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += parameter is not None
        if made > len(held):
            raise ValueError(
                f"{folder.name}/config.json declares more than the {len(held)} tensors of its "
                f"weights"
            )

    made = 0
    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            module = build()
    finally:
        hook.remove()
    declared = sum(t.numel() for t in module.state_dict().values() if t.is_floating_point())
    if declared != sum(held.values()):
        raise ValueError(
            f"{folder.name}/config.json declares {declared:,} weights; its files hold "
            f"{sum(held.values()):,}"
        )


def _held(folder: Path) -> dict[str, int]:
    """Name -> number of values of each tensor of floating point, from the headers alone."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():
                tensor = handle.get_slice(name)
                if "F" in tensor.get_dtype():
                    found[name] = math.prod(tensor.get_shape())
    return found
