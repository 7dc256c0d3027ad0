"""Several processes at one training: real processes that add up gradients over the loopback
interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file

HELIXBENCH = Path(sys.executable).with_name("helixbench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    small.prepared(folder / "prepared")
    small.base().save(folder / "base")
    return folder


def command(folder: Path, name: str, processes: int, **changes) -> list[str]:
    # Without the raw mask, whose blank latents let a tiny random base amplify rounding.
    options = small.dhdiff(
        annotation_input="none",
        optim=small.optim(
            **{"steps": 3, "accumulate": 4, "lr": 1e-6, "log_every_s": 1e-9, "ema": 0.5, **changes}
        ),
    )
    values = {"run.seed": 0, "train.methods.dhdiff": options.model_dump(mode="json")}
    (folder / f"{name}.json").write_text(json.dumps(values))
    places = [
        "--config",
        folder / f"{name}.json",
        "--prepared",
        folder / "prepared",
        "--base",
        folder / "base",
    ]
    places += [
        "--state",
        folder / f"{name} state",
        "--out",
        folder / name,
        "--processes",
        processes,
        "--threads",
        processes,
    ]
    return [str(part) for part in (HELIXBENCH, "train", "dhdiff", "Data", "disc", *places)]


def weights(model: Path) -> dict[str, torch.Tensor]:
    files = ("unet/diffusion_pytorch_model.safetensors", "dhdiff.safetensors")
    return {
        f"{file}/{name}": tensor
        for file in files
        for name, tensor in load_file(model / file).items()
    }


def test_two_processes_train_the_model_that_one_does(folder):
    for name, processes in (("one", 1), ("two", 2)):
        done = subprocess.run(
            command(folder, name, processes), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / name / "manifest.json").read_text())["processes"] == processes
    one, two = weights(folder / "one"), weights(folder / "two")
    assert one.keys() == two.keys()
    logged = [
        [json.loads(line) for line in (folder / name / "stats.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for a, b in zip(*logged, strict=True):
        assert a["step"] == b["step"]
        for key, within in (("image", 1e-3), ("annotation", 1e-3), ("grad_norm", 1e-2)):
            assert a[key] == pytest.approx(b[key], rel=within)
    # Adam's first steps have the learning rate's length even where a gradient is rounding alone: no
    # closer than that.
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 3 * 2 * 1e-6


def test_passes_that_cannot_be_shared_are_one_line(folder):
    done = subprocess.run(command(folder, "odd", 3), capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("helixbench: ")] == [
        "helixbench: dhdiff disc: 3 processes share the passes of a step; set optim.accumulate to "
        "a multiple of 3"
    ]
    assert not (folder / "odd/manifest.json").exists()


def test_killed_in_mid_training_no_process_is_left_and_a_team_of_another_size_goes_on(folder):
    job = subprocess.Popen(
        command(folder, "cut", 2, steps=40, save_every_s=1e-9), stderr=subprocess.DEVNULL
    )
    stats, deadline = folder / "cut state/stats.jsonl", time.monotonic() + 300
    while (
        stats.read_text().count("\n") if stats.is_file() else 0
    ) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    members = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(members) == 2, "trained before it could be killed"
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    while (
        any(Path(f"/proc/{pid}/stat").exists() and _alive(pid) for pid in members)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in members)
    again = subprocess.run(
        command(folder, "cut", 1, steps=40, save_every_s=1e-9),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert again.returncode == 0 and "resuming at step" in again.stderr
    steps = [
        json.loads(line)["step"] for line in (folder / "cut/stats.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)) and steps[-1] == 40


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
