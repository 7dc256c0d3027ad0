"""Device and precision choice."""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch


def pick_device() -> torch.device:
    """The first CUDA device, else the CPU; HELIXBENCH_DEVICE overrides."""
    name = os.environ.get("HELIXBENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _cpu_has_bf16() -> bool:
    """Native bf16 dot products (avx512_bf16, amx_bf16); emulated bf16 is slower than fp32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            flags = next((line for line in handle if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, precision: str):
    """Autocast context for 'fp32', 'bf16' or 'auto' (bf16 where the device computes it natively)."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
        precision = "bf16" if native else "fp32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def set_threads(threads: int | None) -> None:
    """Limit CPU threads to what the workflow gave this job."""
    if threads:
        torch.set_num_threads(threads)


def describe(device: torch.device) -> str:
    """Name of the device, for manifests."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
