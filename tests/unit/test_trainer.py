"""The shared trainer: schedule, resume, average, damage."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
from torch import nn

from helixbench.engine.checkpoint import load_tensors, save_tensors
from helixbench.engine.loop import fit, learning_rate
from helixbench.errors import UserError
from helixbench.schema import Optim


def train(
    folder,
    optim: Optim,
    *,
    stop_at: int | None = None,
    digest: str = "a",
    poison: int | None = None,
    steep: int | None = None,
) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def loss(step, rng):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=rng)
        out = model(x)
        if step == steep:  # a finite loss whose gradient is not
            return {"root": (0 * out.sum()).sqrt()}
        return {
            "square": (out - x.sum(1, keepdim=True)).square().mean()
            * (math.nan if step == poison else 1)
        }

    arguments = {
        "seed": 3,
        "state_dir": folder,
        "config_digest": digest,
        "device": torch.device("cpu"),
        "name": "toy",
    }
    fit(model, loss, optim, **arguments)
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


EVERY_STEP = small.optim(steps=12, save_every_s=1e-9, ema=0.9, decay="cosine", warmup=3)


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_resume_equals_the_unbroken_run_bit_for_bit(tmp_path, stop):
    expected = train(tmp_path / "whole", EVERY_STEP)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", EVERY_STEP, stop_at=stop)
    assert same(train(tmp_path / "cut", EVERY_STEP), expected)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "cut/stats.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(tmp_path, EVERY_STEP)
    assert same(train(tmp_path, EVERY_STEP, stop_at=0), first)


def test_state_of_another_configuration_is_not_gone_on_with(tmp_path):
    train(tmp_path, EVERY_STEP)
    assert same(
        train(tmp_path, EVERY_STEP, digest="b"), train(tmp_path / "fresh", EVERY_STEP, digest="b")
    )
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, EVERY_STEP, digest="c", stop_at=0)


def test_state_of_another_number_of_threads_is_not_gone_on_with(tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        train(tmp_path, EVERY_STEP)
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, EVERY_STEP, stop_at=0)
    finally:
        torch.set_num_threads(threads)


def test_not_a_number_stops_with_the_step_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(UserError, match="step 7"):
        train(tmp_path, EVERY_STEP, poison=7)
    assert load_tensors(tmp_path / "state.safetensors")[1]["step"] == 7


def test_a_gradient_that_is_not_finite_reaches_no_weight(tmp_path):
    with pytest.raises(UserError, match="gradient.* step 5"):
        train(tmp_path, EVERY_STEP, steep=5)
    tensors, facts = load_tensors(tmp_path / "state.safetensors")
    assert facts["step"] == 5 and all(torch.isfinite(t).all() for t in tensors.values())


def test_a_line_of_statistics_that_a_kill_cut_off_is_dropped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, EVERY_STEP, stop_at=5)
    with open(tmp_path / "stats.jsonl", "a") as handle:
        handle.write('{"step": 6, "sq')
    train(tmp_path, EVERY_STEP)
    assert all(json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines())


def test_average_is_kept_and_left_in_the_module(tmp_path):
    raw = train(tmp_path / "a", small.optim(steps=12))
    averaged = train(tmp_path / "b", small.optim(steps=12, ema=0.9))
    assert not same(raw, averaged)
    # decay min(0.9, (1+k)/(10+k)) after step k, over the same trajectory
    kept, weights = None, []
    for steps in range(1, 13):
        weights.append(train(tmp_path / f"c{steps}", small.optim(steps=steps))[0].weight.detach())
    torch.manual_seed(0)
    kept = nn.Linear(4, 8).weight.detach().clone()
    for k, weight in enumerate(weights, start=1):
        kept.lerp_(weight, 1 - min(0.9, (1 + k) / (10 + k)))
    torch.testing.assert_close(averaged[0].weight, kept)


def test_learning_rates():
    optim = Optim(steps=110, batch=1, lr=1.0, warmup=10, decay="cosine")
    assert [round(learning_rate(k, optim), 6) for k in (0, 4, 9, 10, 60)] == [
        0.1,
        0.5,
        1.0,
        1.0,
        0.5,
    ]
    assert learning_rate(109, optim) < 0.001
    multi = Optim(steps=100, batch=1, lr=1.0, decay="multistep")
    assert [learning_rate(k, multi) for k in (79, 80, 90)] == pytest.approx([1.0, 0.2, 0.04])


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)}, {"step": 1})
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="x.safetensors: not a readable checkpoint"):
        load_tensors(tmp_path / "x.safetensors")


def test_frozen_weights_are_not_state(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    fit(
        model,
        lambda step, rng: model(torch.randn(4, 2, generator=rng)).square().mean(),
        small.optim(steps=2),
        seed=0,
        state_dir=tmp_path,
        config_digest="a",
        device=torch.device("cpu"),
        name="toy",
    )
    names = load_tensors(tmp_path / "state.safetensors")[0]
    assert not any(name.startswith("weights/0.") for name in names) and "weights/1.weight" in names


def test_accumulated_passes_are_one_step(tmp_path):
    """Two passes of two samples move the weights as one pass of four does."""
    data = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def run(folder, accumulate):
        torch.manual_seed(0)
        model, passes = nn.Linear(4, 1), []

        def loss(step, rng):
            passes.append(torch.rand(1, generator=rng).item())
            size = 4 // accumulate
            first = size * ((len(passes) - 1) % accumulate)
            return (model(data[first : first + size]) - 1).square().mean()

        options = small.optim(steps=3, batch=4, accumulate=accumulate)
        fit(
            model,
            loss,
            options,
            seed=1,
            state_dir=folder,
            config_digest="a",
            device=torch.device("cpu"),
            name="toy",
        )
        return model, passes

    (one, passes_of_one), (two, passes_of_two) = run(tmp_path / "1", 1), run(tmp_path / "2", 2)
    torch.testing.assert_close(two.weight, one.weight, rtol=1e-5, atol=1e-6)
    assert len(passes_of_two) == 6 and len(set(passes_of_two)) == 6, "each pass has its own samples"
    assert passes_of_two[::2] == passes_of_one


def test_validation_is_on_the_same_samples_every_time(tmp_path):
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 1), []

    def loss(rng):
        return (model(torch.randn(2, 4, generator=rng)) - 1).square().mean()

    def validate(rng):
        assert not torch.is_grad_enabled()
        seen.append(rng.get_state())
        return {"square": loss(rng)}

    options = small.optim(steps=5, validate_every=2)
    arguments = {
        "seed": 1,
        "state_dir": tmp_path,
        "config_digest": "a",
        "device": torch.device("cpu"),
        "name": "toy",
    }
    fit(model, lambda step, rng: loss(rng), options, **arguments, validate=validate)
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    found = [(row["step"], row["val_square"]) for row in rows if "val_square" in row]
    assert [step for step, _ in found] == [2, 4, 5] and found[0][1] != found[1][1]
    assert all(torch.equal(state, seen[0]) for state in seen)


def test_validation_leaves_running_statistics_and_modes_alone(tmp_path):
    def run(folder, every):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5).eval(), nn.Linear(3, 1)
        )

        def loss(rng):
            return model(torch.randn(8, 4, generator=rng)).square().mean()

        options = small.optim(steps=4, validate_every=every)
        arguments = {
            "seed": 1,
            "state_dir": folder,
            "config_digest": "a",
            "device": torch.device("cpu"),
            "name": "toy",
        }
        fit(
            model,
            lambda step, rng: loss(rng),
            options,
            **arguments,
            validate=lambda rng: {"loss": loss(rng)},
        )
        assert [part.training for part in model] == [True, True, False, True]
        return model

    assert same(run(tmp_path / "never", 0), run(tmp_path / "always", 1))


EXTRAS = Path(__file__).parents[2] / ".venv/extras"
"""Where `make test` puts bitsandbytes, which every start would pay for if it were installed beside
the others."""


@pytest.mark.skipif(
    not (EXTRAS / "bitsandbytes").is_dir(),
    reason="bitsandbytes is not in .venv/extras; make test puts it there",
)
def test_adam_in_8_bit_takes_a_quarter_of_the_memory_learns_and_resumes(tmp_path):
    code = """
import sys, torch
from pathlib import Path
from torch import nn
import small
from helixbench.engine.loop import adam, fit

def run(folder, stop=None):
    torch.manual_seed(0)
    model, losses = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)), []
    def loss(step, rng):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(32, 64, generator=rng)
        losses.append((model(x) - x).square().mean())
        return losses[-1]
    options = small.optim(steps=60, lr=1e-2, adam="8bit", save_every_s=1e-9)
    try:
        fit(
            model,
            loss,
            options,
            seed=1,
            state_dir=folder,
            config_digest="a",
            device=torch.device("cpu"),
            name="toy",
        )
    except KeyboardInterrupt:
        pass
    return model, losses

folder = Path(sys.argv[1])
whole, losses = run(folder / "whole")
assert losses[-1] < 0.3 * losses[0], (losses[0], losses[-1])
run(folder / "cut", stop=25)
again, _ = run(folder / "cut")
assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
optimizer = adam(list(whole.parameters()), small.optim(adam="8bit"))
whole(torch.randn(4, 64)).sum().backward()
optimizer.step()
state = optimizer.state[whole[0].weight]
moments = {name: t for name, t in state.items() if name.startswith("state")}
assert {t.dtype for t in moments.values()} == {torch.uint8} and len(moments) == 2
"""
    paths = [str(EXTRAS), str(Path(small.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_adam_in_8_bit_without_its_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        train(tmp_path, small.optim(adam="8bit"))


def test_tensorboard_shows_the_curves_and_changes_no_weight(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = train(tmp_path / "plain", EVERY_STEP)
    monkeypatch.setenv("HELIXBENCH_TENSORBOARD", str(tmp_path / "board"))
    assert same(train(tmp_path / "watched", EVERY_STEP), plain)
    (folder,) = (tmp_path / "board").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    rows = [
        json.loads(line) for line in (tmp_path / "watched/stats.jsonl").read_text().splitlines()
    ]
    assert {"square", "lr", "grad_norm", "images_per_s"} <= set(events.Tags()["scalars"])
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("square")] == [
        (r["step"], round(r["square"], 4)) for r in rows
    ]
