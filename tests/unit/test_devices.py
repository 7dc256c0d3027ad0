"""Device choice, precision."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import small
import torch

from helixbench.engine import devices
from helixbench.engine.devices import autocast
from helixbench.engine.loop import fit
from helixbench.errors import UserError


@pytest.fixture
def nothing_picked():
    """No device is picked yet, and what a test picks is forgotten, also when it fails."""
    devices.pick_device.cache_clear()
    yield
    devices.pick_device.cache_clear()


def test_a_set_device_is_taken(monkeypatch, nothing_picked):
    monkeypatch.setenv("HELIXBENCH_DEVICE", "meta")
    assert devices.pick_device() == torch.device("meta")


@pytest.mark.parametrize(
    ("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_training_computes_in_the_asked_precision_and_keeps_fp32_weights(
    tmp_path, precision, expected
):
    model, seen = torch.nn.Linear(4, 1), set()

    def loss(step, rng):
        out = model(torch.randn(8, 4, generator=rng))
        seen.add(out.dtype)
        return out.float().square().mean()

    options = small.optim(steps=3, precision=precision)
    fit(
        model,
        loss,
        options,
        seed=0,
        state_dir=tmp_path,
        config_digest="a",
        device=torch.device("cpu"),
        name="toy",
    )
    assert seen == {expected} and model.weight.dtype == torch.float32


def test_auto_is_what_the_processor_has(monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "_cpu_has_bf16", lambda native=native: native)
        with autocast(torch.device("cpu"), "auto"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def _gpus(expected: int, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "helixbench.cli", "gpus", "--expect", str(expected)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_a_job_that_does_not_see_its_gpus_says_so_in_one_line():
    one_more = torch.cuda.device_count() + 1
    told = _gpus(one_more, SLURM_JOB_GPUS="7", CUDA_VISIBLE_DEVICES="")
    assert told.returncode == 2 and told.stderr.count("\n") == 1
    for words in (
        f"{one_more} asked for, 0 seen by torch {torch.__version__}",
        "SLURM_JOB_GPUS 7",
        "docs/cluster.md",
    ):
        assert words in told.stderr
    assert _gpus(0, CUDA_VISIBLE_DEVICES="").returncode == 0


@pytest.mark.parametrize("wrong", [False, True])
def test_each_gpu_has_to_compute(monkeypatch, wrong):
    """Two pretended GPUs, whose products this processor makes; those of the second are right or
    not."""
    ones = torch.ones

    def on(*shape, device):
        return ones(*shape) * (2 if wrong and device == "cuda:1" else 1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: SimpleNamespace(name="Pretended", total_memory=8 * 2**30),
    )
    monkeypatch.setattr(torch, "ones", on)
    if wrong:
        with pytest.raises(UserError, match="GPU 1 on .*: a product of matrices is wrong"):
            devices.check_gpus(2)
    else:
        first, second = devices.check_gpus(2)
        assert first.startswith("GPU 0: Pretended, 8 GiB, torch") and second.startswith("GPU 1: ")
    with pytest.raises(UserError, match="1 asked for, 2 seen"):
        devices.check_gpus(1)
