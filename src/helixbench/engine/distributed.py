"""Processes that share one training, a GPU each: `helixbench train ... --processes 4`.

The passes of a step (`optim.accumulate`) are dealt out to the processes and their gradients added
up, so that the step is the same one whatever their number, up to rounding. Process 0 alone writes
files.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from helixbench.engine.devices import TEAM as MARK
from helixbench.engine.gpu_lock import lease
from helixbench.errors import UserError

_CHUNK = 2**24
"""Numbers added up in one message."""
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True)
class Team:
    """rank: this process, from 0; size: how many there are."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Team:
        """The team that `launch` started this process for; a team of one otherwise."""
        if not launched():
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every process gets the sum of all processes' gradients; a weight that none has used keeps
        None.
        """
        if self.size == 1:
            return
        device = parameters[0].device
        used = (
            self._sum(torch.tensor([float(p.grad is not None) for p in parameters], device=device))
            > 0
        )
        chosen = [p for p, any_has in zip(parameters, used.tolist(), strict=True) if any_has]
        for p in chosen:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self._sum_in_place([p.grad for p in chosen])

    def average_buffers(self, module: nn.Module) -> None:
        """Running statistics become the mean over the processes, each of which saw passes of its
        own.
        """
        if self.size > 1:
            buffers = [b for b in module.buffers() if b.is_floating_point()]
            self._sum_in_place(buffers)
            for buffer in buffers:
                buffer.div_(self.size)

    def add(self, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sum of each scalar over the processes."""
        if self.size == 1:
            return terms
        total = self._sum(torch.stack([value.float() for value in terms.values()]))
        return dict(zip(terms, total.unbind(), strict=True))

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import reduce

        return reduce(tensor, "sum")

    def _sum_in_place(self, tensors: Sequence[torch.Tensor]) -> None:
        for group in _chunks(tensors):
            total = self._sum(torch.cat([tensor.flatten() for tensor in group]))
            for tensor, part in zip(group, total.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view_as(tensor))


def _chunks(tensors: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Consecutive tensors of one type, together no longer than a message, or one that is longer."""
    group: list[torch.Tensor] = []
    for tensor in tensors:
        if group and (
            tensor.dtype != group[0].dtype
            or sum(t.numel() for t in group) + tensor.numel() > _CHUNK
        ):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def launched() -> bool:
    """Whether this process is one of a team already."""
    return MARK in os.environ


def launch(size: int, arguments: Sequence[str]) -> int:
    """Run `helixbench <arguments>` in `size` processes on this node; the exit code of the first
    that fails, or 0.

    Leases as many GPUs. Without a GPU the processes share the CPU. What process 0 says is heard, of
    the others only why they failed. None outlives this process.
    """
    environment = os.environ | {
        MARK: "1",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _port(),
    }
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if count < size:
            raise UserError(
                f"--processes {size}: this node shows {count} GPUs; each process needs one"
            )
        if "SLURM_JOB_ID" not in os.environ:
            visible = (
                os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
            ).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(
                visible[lease(count)] for _ in range(size)
            )
    command = [sys.executable, "-m", "helixbench.cli", *arguments]
    with tempfile.TemporaryFile() as whispers:
        jobs = []
        for rank in range(size):
            rank_is = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            heard = None if rank == 0 else whispers
            jobs.append(
                subprocess.Popen(
                    command,
                    env=environment | rank_is,
                    stdout=heard,
                    stderr=heard,
                    preexec_fn=_die_with_parent,
                )
            )
        code, leader_failed = _wait(jobs)
        if code and not leader_failed:
            whispers.seek(0)
            lines = whispers.read().decode(errors="replace").strip().splitlines()
            sys.stderr.write(
                next(
                    (line for line in reversed(lines) if line.startswith("helixbench: ")),
                    "\n".join(lines[-20:]),
                )
                + "\n"
            )
    return code


def _wait(jobs: Sequence[subprocess.Popen]) -> tuple[int, bool]:
    """Exit code of the first job to fail, and whether it is the leader; the others are stopped
    then.
    """
    try:
        while True:
            codes = [job.poll() for job in jobs]
            failed = [i for i, code in enumerate(codes) if code]
            if failed:
                time.sleep(0.5)  # the same bad input fails them all: let the leader say so
                leader = jobs[0].poll()
                first = 0 if leader else failed[0]
                code = jobs[first].returncode
                return (code if code > 0 else 128 - code), first == 0
            if all(code == 0 for code in codes):
                return 0, False
            time.sleep(0.05)
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def _port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
