"""GPU leases of real processes: four pretend GPUs, twelve jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helixbench.engine import gpu_lock

JOB = """
import sys, time
from helixbench.engine import gpu_lock
gpu = gpu_lock.lease(4, 0.01)
print(gpu, time.monotonic(), flush=True)
time.sleep(float(sys.argv[1]))
print(time.monotonic(), flush=True)
"""


class Job:
    """A process that leases a GPU for a while; `gpu`, `start`, `end` on the node's monotonic clock
    [s]."""

    def __init__(self, folder, hold_s: float, **environment: str):
        command = [sys.executable, "-c", JOB, str(hold_s)]
        environment = {**os.environ, "HELIXBENCH_LEASES": str(folder), **environment}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.gpu, self.start, self.end = None, None, None
        self.has_gpu = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if self.gpu is None:
                self.gpu, self.start = int(line.split()[0]), float(line.split()[1])
                self.has_gpu.set()
            else:
                self.end = float(line)

    def kill(self) -> None:
        """SIGKILL; the GPU counts as used until just before it."""
        self.end = time.monotonic()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    started = []
    yield started
    for job in started:
        job.process.kill()
        job.process.wait()


def test_twelve_jobs_share_four_gpus_and_a_killed_one_frees_its_own(tmp_path, jobs):
    hung = Job(tmp_path / "leases", 600)  # would hold its GPU for longer than the test may take
    jobs.append(hung)
    assert hung.has_gpu.wait(60)
    jobs += [Job(tmp_path / "leases", 0.2) for _ in range(11)]
    others = [job for job in jobs if job is not hung]
    deadline = time.monotonic() + 60
    while sum(job.has_gpu.is_set() for job in others) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    hung.kill()
    late = Job(tmp_path / "leases", 0.2)
    jobs.append(late)
    for job in [*others, late]:
        assert job.process.wait(60) == 0
        job.reader.join()
    assert hung.process.returncode == -signal.SIGKILL
    uses = sorted((job.gpu, job.start, job.end) for job in jobs)
    for (gpu, _, end), (other, start, _) in zip(uses, uses[1:], strict=False):
        assert gpu != other or end <= start, f"two jobs on GPU {gpu}: {uses}"
    assert {gpu for gpu, _, _ in uses} == {0, 1, 2, 3}


def test_the_gpu_of_a_killed_job_is_given_to_a_waiting_one(tmp_path, jobs):
    jobs += [Job(tmp_path, 600) for _ in range(4)]
    assert all(job.has_gpu.wait(60) for job in jobs) and {job.gpu for job in jobs} == {0, 1, 2, 3}
    waiting = Job(tmp_path, 0)
    jobs.append(waiting)
    assert not waiting.has_gpu.wait(1), "a fifth job on four GPUs"
    jobs[2].kill()
    assert waiting.has_gpu.wait(10) and waiting.gpu == jobs[2].gpu


def test_locks_go_by_the_names_of_the_visible_gpus(tmp_path, jobs):
    """Jobs that were given overlapping lists of GPUs."""
    jobs.append(Job(tmp_path, 600, CUDA_VISIBLE_DEVICES="6,7"))
    assert jobs[0].has_gpu.wait(60) and jobs[0].gpu == 0
    jobs.append(Job(tmp_path, 600, CUDA_VISIBLE_DEVICES="6,5"))
    assert jobs[1].has_gpu.wait(60) and jobs[1].gpu == 1


def test_jobs_with_temporary_folders_of_their_own_share_the_gpus(tmp_path, jobs):
    """In the folder that is used when nothing is said, with GPUs that nobody else has."""
    names = [f"{tmp_path.name}-{os.getpid()}-{number}" for number in range(2)]
    try:
        for number in range(2):
            own = tmp_path / str(number)
            own.mkdir()
            jobs.append(Job("", 600, TMPDIR=str(own), CUDA_VISIBLE_DEVICES=",".join(names)))
            assert jobs[number].has_gpu.wait(60) and jobs[number].gpu == number
            assert not list(own.iterdir())
        folder = Path("/tmp/helixbench-gpu")
        assert (
            all((folder / f"{name}.lock").is_file() for name in names)
            and folder.stat().st_mode & 0o7777 == 0o1777
        )
    finally:
        for name in names:
            Path(f"/tmp/helixbench-gpu/{name}.lock").unlink(missing_ok=True)


def test_a_folder_that_many_make_at_once_is_one(tmp_path, jobs):
    jobs += [Job(tmp_path / "a/leases", 5, CUDA_VISIBLE_DEVICES="0,1,2,3") for _ in range(4)]
    assert all(job.has_gpu.wait(60) for job in jobs) and {job.gpu for job in jobs} == {0, 1, 2, 3}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["leases"]


def test_a_lock_file_of_another_user_is_usable(tmp_path, monkeypatch):
    """Read-only to us: a lock needs no more."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_lock, "LEASES", tmp_path / "leases")
    monkeypatch.setattr(gpu_lock, "_HELD", [])
    opened, real = [], os.open
    monkeypatch.setattr(
        gpu_lock.os,
        "open",
        lambda path, flags, *mode: (opened.append(flags), real(path, flags, *mode))[1],
    )
    before = os.umask(0o077)
    try:
        assert gpu_lock.lease(1) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "leases").stat().st_mode & 0o7777 == 0o1777
    assert (tmp_path / "leases/0.lock").stat().st_mode & 0o777 == 0o644, (
        "others may lock it, whatever our umask is"
    )
    os.close(gpu_lock._HELD.pop())
    opened.clear()
    assert gpu_lock.lease(1) == 0 and opened == [os.O_RDONLY]
    os.close(gpu_lock._HELD.pop())
