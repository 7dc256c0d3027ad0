"""Atomic safetensors files: weights, and everything that a training run needs to go on as if never
stopped.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helixbench.errors import UserError
from helixbench.provenance import write_atomic
from helixbench.weights import URLS, weights_file

_HASH = "sha256"


def _content(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> str:
    """sha256 of facts and of all names, types, shapes and bytes."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def save_tensors(
    path: str | Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any] | None = None
) -> None:
    """Write named tensors and JSON facts (kept in the file's header, with a hash of both) as one
    atomic safetensors file.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    hashed = {**(facts or {}), _HASH: _content(plain, facts or {})}
    # One entry: safetensors writes several in no particular order, and equal files shall be equal
    # bytes.
    header = {"facts": json.dumps(hashed, sort_keys=True)}
    write_atomic(path, lambda temporary: save_file(plain, temporary, header))


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read save_tensors' file; UserError when it is missing, cut off, or altered by as much as a
    bit.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            facts = json.loads((handle.metadata() or {}).get("facts", "{}"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
        if not isinstance(facts, dict):
            raise ValueError("its header holds no facts")
        written = facts.pop(_HASH, None)
        if _content(tensors, facts) != written:
            raise ValueError("its content is not what was written: sha256 differs")
        return tensors, facts
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({error}); delete it and run again"
        ) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's state as flat named tensors: `<parameter index>/<name>`, and `<index>/<group>/<name>`
    where it is nested.
    """
    state = optimizer.state_dict()["state"]
    flat: dict[str, torch.Tensor] = {}
    for i, values in state.items():
        for name, value in values.items():
            nested = (
                {f"{name}/{key}": part for key, part in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
            flat |= {f"{i}/{key}": torch.as_tensor(part) for key, part in nested.items()}
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of optimizer_tensors, into a freshly built optimizer over the same parameters."""
    state: dict[int, dict] = {}
    for key, tensor in tensors.items():
        index, *groups, name = key.split("/")
        values = state.setdefault(int(index), {})
        for group in groups:
            values = values.setdefault(group, {})
        values[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def load_published(name: str) -> dict[str, torch.Tensor]:
    """State dict of a published network's weights file, in float32; only tensors are unpickled.
    UserError when damaged.
    """
    file = weights_file(name)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {
            key: value.float() if value.is_floating_point() else value
            for key, value in state.items()
        }
    except (OSError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{file}: not a readable weights file ({reason}); fetch {URLS[name]} again"
        ) from None
