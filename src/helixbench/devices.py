"""Device and precision choice."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TextIO

import torch

_HELD: list[TextIO] = []


LEASES = Path(tempfile.gettempdir()) / "helixbench-gpu"
"""Lock files of the GPUs of this node; node-local, whatever folder the run is in."""


TEAM = "HELIXBENCH_TEAM"
"""Set for the processes of a team (team.py): other launchers set WORLD_SIZE and LOCAL_RANK for reasons of their own."""


@cache
def pick_device() -> torch.device:
    """The device of this process: HELIXBENCH_DEVICE if set, a CUDA device of its own, or the CPU.

    Snakemake counts GPUs and names none, so that on a node with several each process leases one by a file lock, which
    the kernel releases however the process ends. Under Slurm the scheduler has chosen already.
    """
    name = os.environ.get("HELIXBENCH_DEVICE")
    if name:
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if TEAM in os.environ:  # one of a team, whose launcher holds the leases
        return torch.device(f"cuda:{os.environ['LOCAL_RANK']}")
    count = torch.cuda.device_count()
    if count == 1 or "SLURM_JOB_ID" in os.environ:
        return torch.device("cuda:0")
    return torch.device(f"cuda:{lease(count)}")


def lease(count: int, poll_s: float = 1.0) -> int:
    """Number of a GPU that no other process has leased; waits until one of `count` is free.

    The lock is held until the process ends.
    """
    LEASES.mkdir(exist_ok=True)
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    while True:
        for number, identity in enumerate(visible[:count]):
            handle = open(LEASES / f"{identity.strip()}.lock", "a")  # noqa: SIM115
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                continue
            _HELD.append(handle)
            return number
        time.sleep(poll_s)


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
