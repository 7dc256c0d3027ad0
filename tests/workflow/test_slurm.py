"""The workflow through sbatch of a real Slurm, and a training that `scancel` ends in the middle."""

from __future__ import annotations

import os
import re
import subprocess
import time
from filecmp import cmp
from pathlib import Path

import one_node_slurm
import pytest
import torch
from conftest import Project

pytestmark = pytest.mark.skipif(
    bool(one_node_slurm.missing()), reason="needs Debian's slurm-wlm and munge (apt-get install)"
)

OVERLAYS = ("config/smoke.yaml", "slurm.yaml")
STEPS = 80
VALUES = {
    "run": {"name": "slurm", "shards": 2},
    "train": {
        "use": ["dhdiff"],
        "methods": {
            "dhdiff": {"optim": {"steps": STEPS, "save_every_s": 1.0e-9, "log_every_s": 1.0e-9}},
        },
    },
}
HERE = [
    "--slurm-no-account",
    "--slurm-status-command",
    "squeue",
    "--slurm-init-seconds-before-status-checks",
    "1",
    "--seconds-between-status-checks",
    "1",
]
FAST = ["--max-threads", "1", "--latency-wait", "10", "--workflow-profile", "profiles/slurm", *HERE]


def jobs_of(rule: str, environment: dict[str, str], states: str) -> list[str]:
    """Slurm's numbers of a rule's jobs."""
    command = ["squeue", "-h", "-t", states, "-o", "%A %k"]
    queue = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    return re.findall(rf"^(\d+) rule_{rule}(?:_wildcards.*)?$", queue, flags=re.M)


def told_about(job: str, environment: dict[str, str]) -> dict[str, str]:
    """Slurm's facts about a job."""
    shown = subprocess.run(
        ["scontrol", "show", "job", job],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return dict(re.findall(r"(\w+)=(\S+)", shown))


@pytest.fixture(scope="module")
def slurm():
    with one_node_slurm.running() as environment:
        yield environment


def test_the_gpu_check_is_a_job_that_holds_a_gpu_and_tells_what_it_sees(tmp_path, slurm):
    project = Project(tmp_path / "project")
    told = project.run(
        "snakemake",
        "gpu_check",
        *FAST,
        "--retries",
        "0",
        "--configfile",
        "config/smoke.yaml",
        **slurm,
    )
    (job,) = jobs_of("gpu_check", slurm, "all")
    assert told_about(job, {**os.environ, **slurm})["TresPerJob"] == "gres:gpu:1"
    log = (project.root / "logs/smoke/gpu_check.log").read_text()
    if torch.cuda.is_available():  # the job may use the first of the four, which is a real one here
        assert told.returncode == 0 and re.fullmatch(r"GPU 0: .+\n", log), log
        return
    assert told.returncode == 1, told.stdout[-3000:]
    assert re.fullmatch(
        r"helixbench: GPUs: 1 asked for, 0 seen by torch \S+ on \S+ \(.*SLURM_GPUS_ON_NODE 1\); "
        r".*\n",
        log,
    ), log


def lines_of(stats: Path) -> int:
    return stats.read_text().count("\n") if stats.is_file() else 0


def test_a_job_cancelled_in_mid_training_resumes_and_the_result_is_that_of_one_machine(
    tmp_path, slurm
):
    cluster, one = Project(tmp_path / "cluster"), Project(tmp_path / "one")
    for project in (cluster, one):
        project.write("slurm.yaml", VALUES)
    command = [str(one_node_slurm.BIN / "snakemake"), "pairs", *FAST, "--configfile", *OVERLAYS]
    environment = {**os.environ, **slurm}
    with open(tmp_path / "out", "w+") as out:
        run = subprocess.Popen(command, cwd=cluster.root, env=environment, stdout=out, stderr=out)
        try:
            stats = cluster.root / "scratch/slurm/train/dhdiff/Procedural/disc/stats.jsonl"
            deadline = time.monotonic() + 300
            while lines_of(stats) < 4 and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            trained = jobs_of("train", environment, "running")
            assert len(trained) == 1, "trained before it could be cancelled"
            job = trained[0]
            subprocess.run(["scancel", job], env=environment, check=True)
            local = one.snakemake("pairs", "--max-threads", "1", overlays=OVERLAYS)
            assert local.returncode == 0, local.stdout[-3000:]
            assert run.wait(300) == 0, (out.seek(0), out.read()[-6000:])[1]
        finally:
            run.kill()
            run.wait()
    # Slurm was asked for what the rules and the profile say; a second try may use twice the memory.
    first, second = (
        told_about(one_try, environment)
        for one_try in sorted(jobs_of("train", environment, "all"), key=int)
    )
    for facts, memory, state in ((first, "32000M", "CANCELLED"), (second, "62.50G", "COMPLETED")):
        assert (
            facts["JobState"] == state
            and facts["Partition"] == "gpu"
            and facts["TimeLimit"] == "12:00:00"
        )
        assert (
            facts["MinMemoryNode"] == memory
            and facts["TresPerJob"] == "gres:gpu:1"
            and facts["Requeue"] == "1"
        )
    (prepare,) = jobs_of("prepare", environment, "all")
    assert told_about(prepare, environment)[
        "Partition"
    ] == "cpu" and "TresPerJob" not in told_about(prepare, environment)
    logs = cluster.root / "logs/slurm"
    assert "resuming at step" in (logs / "train/dhdiff/Procedural/disc.log").read_text()
    told = "".join(file.read_text() for file in logs.rglob(f"{job}.log"))
    assert "CANCELLED" in told, sorted(map(str, logs.rglob("*")))
    steps = re.findall(
        r'"step": (\d+), "image"',
        (cluster.root / "results/slurm/train/dhdiff/Procedural/disc/stats.jsonl").read_text(),
    )
    assert len(steps) == len(set(steps)) and int(steps[-1]) == STEPS
    same = [
        str(file.relative_to(one.root))
        for file in (one.root / "results/slurm").rglob("*")
        if file.suffix in (".safetensors", ".png", ".csv")
    ]
    assert any(name.endswith("dhdiff.safetensors") for name in same) and any(
        "/test/" in name for name in same
    )
    for name in same:
        assert cmp(cluster.root / name, one.root / name, shallow=False), name
