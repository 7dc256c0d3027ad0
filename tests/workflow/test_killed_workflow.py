"""kill -9 of a whole workflow, Snakemake and its jobs, in mid-training and in mid-generation; then
the same command again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress

from conftest import BIN, Project

from helixbench.engine.checkpoint import load_tensors

OVERLAYS = ("config/smoke.yaml", "kill.yaml")
ONE_CORE = ("--max-threads", "1")
STEPS, PAIRS, BATCH = 20, 24, 3
VALUES = {
    "run": {"name": "kill"},
    "train": {
        "use": ["dhdiff"],
        "methods": {
            "dhdiff": {"optim": {"steps": STEPS, "save_every_s": 1.0e-9, "log_every_s": 1.0e-9}},
        },
    },
    "generate": {"pairs": PAIRS // 4, "batch": BATCH},
}
MANY = int(os.environ.get("HELIXBENCH_KILLS", "8")) > 8
"""As `make faults` has it."""
AT_STEPS = (2, 6, 10) if MANY else (5,)
AT_BLOCKS = (0, 2, 4) if MANY else (2,)
TRAIN, GENERATE = "train/dhdiff/Procedural/disc", "generate/dhdiff/Procedural/disc"


def made(project: Project) -> dict[str, bytes]:
    """Models, pairs and records of the run."""
    files = [
        file
        for file in sorted((project.root / "results/kill").rglob("*"))
        if file.suffix in (".safetensors", ".png", ".csv")
    ]
    return {str(file.relative_to(project.root)): file.read_bytes() for file in files}


def killed(project: Project, there) -> None:
    """Start the workflow and kill its process group as soon as `there()` is true; it has to be at
    work then."""
    with open(project.root / "out", "w+") as out:
        command = [
            str(BIN / "snakemake"),
            "--cores",
            "all",
            "pairs",
            *ONE_CORE,
            "--configfile",
            *OVERLAYS,
        ]
        run = subprocess.Popen(
            command, cwd=project.root, stdout=out, stderr=out, start_new_session=True
        )
        deadline = time.monotonic() + 300
        try:
            while not there() and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        assert run.returncode == -signal.SIGKILL and time.monotonic() < deadline, (
            out.seek(0),
            out.read()[-6000:],
        )[1]
    while (
        subprocess.run(["ps", "-o", "stat=", "-g", str(run.pid)], capture_output=True, text=True)
        .stdout.replace("Z", "")
        .strip()
    ):
        assert time.monotonic() < deadline, "jobs outlive their workflow"
        time.sleep(0.05)
    unlocked = project.snakemake("--unlock", overlays=OVERLAYS)
    assert unlocked.returncode == 0, unlocked.stdout


def test_a_workflow_killed_in_training_and_in_generation_goes_on_and_ends_with_the_same_bytes(
    tmp_path,
):
    whole = Project(tmp_path / "whole")
    whole.write(OVERLAYS[1], VALUES)
    unbroken = whole.snakemake("pairs", *ONE_CORE, overlays=OVERLAYS)
    assert unbroken.returncode == 0, unbroken.stdout[-3000:]
    cut = Project.at(shutil.copytree(whole.root, tmp_path / "cut"))
    for folder in (
        "results/kill/train/dhdiff",
        "results/kill/generate",
        "logs",
    ):  # from the base model on it does all again
        shutil.rmtree(cut.root / folder)

    state, blocks = (
        cut.root / "scratch/kill" / TRAIN,
        cut.root / "scratch/kill" / GENERATE / "blocks",
    )
    stats = state / "stats.jsonl"
    for step in AT_STEPS:
        killed(cut, lambda step=step: stats.is_file() and stats.read_text().count("\n") > step)
        assert not (cut.root / "results/kill" / TRAIN / "manifest.json").exists(), (
            "trained before it could be killed"
        )
        left = [
            file
            for file in (state / "state.safetensors", state / "state.before.safetensors")
            if file.is_file()
        ]
        reached = load_tensors(left[0])[1]["step"]
    for number in AT_BLOCKS:
        killed(cut, lambda number=number: len(list(blocks.glob("block*.json"))) > number)
        assert not (cut.root / "results/kill" / GENERATE / "manifest.csv").exists(), (
            "all pairs were made before it could be killed"
        )
        there = len(list(blocks.glob("block*.json")))
    assert (
        f"resuming at step {reached} of {STEPS}"
        in (cut.root / "logs/kill" / f"{TRAIN}.log").read_text()
    )
    again = cut.snakemake("pairs", *ONE_CORE, overlays=OVERLAYS)
    assert again.returncode == 0, again.stdout[-6000:]
    assert (
        f"{PAIRS - BATCH * there} of {PAIRS} pairs to make"
        in (cut.root / "logs/kill" / GENERATE / "1of1.log").read_text()
    )

    steps = re.findall(
        r'"step": (\d+), "image"', (cut.root / "results/kill" / TRAIN / "stats.jsonl").read_text()
    )
    assert steps == sorted(set(steps), key=int) and int(steps[-1]) == STEPS
    assert made(cut) == made(whole) and len(made(whole)) > 2 * PAIRS
