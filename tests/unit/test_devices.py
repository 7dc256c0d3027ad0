"""Device choice, GPU leases, precision."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import small
import torch

from helixbench import devices
from helixbench.devices import autocast
from helixbench.trainer import fit

HOLD = """
import pathlib, sys, time
from helixbench import devices
devices.LEASES = pathlib.Path(sys.argv[1])
print(devices.lease(2, 0.05), flush=True)
time.sleep(60)
"""


def test_two_processes_get_two_gpus_and_a_killed_one_gives_its_back(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jobs = []
    try:
        for expected in ("0", "1"):
            jobs.append(subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True))
            assert jobs[-1].stdout.readline().strip() == expected
        jobs[0].kill()
        jobs[0].wait()
        monkeypatch.setattr(devices, "LEASES", tmp_path)
        began = time.monotonic()
        assert devices.lease(2, 0.05) == 0 and time.monotonic() - began < 5
    finally:
        for job in jobs:
            job.kill()
        while devices._HELD:
            devices._HELD.pop().close()


def test_a_set_device_is_taken(monkeypatch):
    devices.pick_device.cache_clear()
    monkeypatch.setenv("HELIXBENCH_DEVICE", "meta")
    assert devices.pick_device() == torch.device("meta")
    devices.pick_device.cache_clear()


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_training_computes_in_the_asked_precision_and_keeps_fp32_weights(tmp_path, precision, expected):
    model, seen = torch.nn.Linear(4, 1), set()

    def loss(step, rng):
        out = model(torch.randn(8, 4, generator=rng))
        seen.add(out.dtype)
        return out.float().square().mean()

    options = small.optim(steps=3, precision=precision)
    fit(model, loss, options, seed=0, state_dir=tmp_path, config_digest="a", device=torch.device("cpu"), name="toy")
    assert seen == {expected} and model.weight.dtype == torch.float32


def test_auto_is_what_the_processor_has(monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "_cpu_has_bf16", lambda native=native: native)
        with autocast(torch.device("cpu"), "auto"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
