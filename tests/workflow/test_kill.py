"""kill -9 in the middle of a real `helixbench train`, then the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from filecmp import cmp
from pathlib import Path

import pytest
import small

HELIXBENCH = Path(sys.executable).with_name("helixbench")


def command(folder: Path, prepared: Path, state: Path, out: Path) -> list[str]:
    options = [
        "--config",
        folder / "train.json",
        "--prepared",
        prepared,
        "--base",
        folder / "base",
        "--state",
        state,
        "--out",
        out,
        "--threads",
        "1",
    ]
    return [str(part) for part in (HELIXBENCH, "train", "dhdiff", "Data", "disc", *options)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    options = small.dhdiff(optim=small.optim(steps=40, save_every_s=1e-9, log_every_s=1e-9))
    values = {"run.seed": 0, "train.methods.dhdiff": options.model_dump(mode="json")}
    (folder / "train.json").write_text(json.dumps(values))
    small.base().save(folder / "base")
    small.prepared(folder / "prepared")
    return folder


def test_sigkill_and_resume_give_the_bytes_of_an_unbroken_run(folder):
    whole, cut, state = folder / "whole", folder / "cut", folder / "state"
    subprocess.run(
        command(folder, folder / "prepared", folder / "state whole", whole),
        check=True,
        capture_output=True,
    )
    job = subprocess.Popen(command(folder, folder / "prepared", state, cut), stderr=subprocess.PIPE)
    stats, deadline = state / "stats.jsonl", time.monotonic() + 300
    while (
        stats.read_text().count("\n") if stats.is_file() else 0
    ) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    assert job.returncode == -signal.SIGKILL and not (cut / "manifest.json").exists(), (
        "trained before it could be killed"
    )
    again = subprocess.run(
        command(folder, folder / "prepared", state, cut), check=True, capture_output=True, text=True
    )
    assert "resuming at step" in again.stderr
    for name in (
        "dhdiff.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/config.json",
    ):
        assert cmp(cut / name, whole / name, shallow=False)
    steps = [json.loads(line)["step"] for line in (cut / "stats.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 40
