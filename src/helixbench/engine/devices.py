"""Device and precision choice."""

from __future__ import annotations

import os
import platform
from contextlib import nullcontext
from functools import cache

import torch

from helixbench.engine.gpu_lock import lease
from helixbench.errors import UserError

TEAM = "HELIXBENCH_TEAM"
"""Set for the processes of a team (distributed.py): other launchers set WORLD_SIZE and LOCAL_RANK
for reasons of their own."""


@cache
def pick_device() -> torch.device:
    """The device of this process: HELIXBENCH_DEVICE if set, a CUDA device of its own, or the CPU.

    Snakemake counts GPUs and names none, so that on a node with several each process leases one by
    a file lock, which the kernel releases however the process ends. Under Slurm the scheduler has
    chosen already.
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


def _cpu_has_bf16() -> bool:
    """Native bf16 dot products (avx512_bf16, amx_bf16); emulated bf16 is slower than fp32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            flags = next((line for line in handle if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, precision: str):
    """Autocast context for 'fp32', 'bf16' or 'auto' (bf16 where the device computes it
    natively).
    """
    if precision == "auto":
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else _cpu_has_bf16()
        )
        precision = "bf16" if native else "fp32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def on_device(rng: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator of the device, seeded by a CPU one; on the CPU that one itself."""
    if device.type == "cpu":
        return rng
    seed = int(torch.randint(2**62, (), generator=rng))
    return torch.Generator(device).manual_seed(seed)


def check_gpus(expected: int) -> list[str]:
    """A line on each visible GPU, after a matrix product on it; UserError unless there are as many
    as expected.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found != expected:
        given = {
            name: os.environ.get(name, "not set")
            for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
        }
        told = ", ".join(f"{name} {value}" for name, value in given.items())
        raise UserError(
            f"GPUs: {expected} asked for, {found} seen by torch {torch.__version__} on "
            f"{platform.node()} ({told}); "
            "see docs/cluster.md, GPU check"
        )
    lines = []
    for number in range(found):
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        if not bool((ones @ ones == 64).all()):
            raise UserError(f"GPU {number} on {platform.node()}: a product of matrices is wrong")
        facts = torch.cuda.get_device_properties(number)
        lines.append(
            f"GPU {number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, torch "
            f"{torch.__version__}, {platform.node()}"
        )
    return lines


def set_threads(threads: int | None) -> None:
    """Limit CPU threads to what the workflow gave this job."""
    if threads:
        torch.set_num_threads(threads)


def describe(device: torch.device) -> str:
    """Name of the device, for manifests."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.get_num_threads()} threads)"
    )
