"""What the tools cost beyond the work: the start of the command, a job of the workflow, a run with
nothing to do.

help_s: `helixbench --help`, beside `python -c pass`. overhead_per_job_s: wall time of a small real
run through Snakemake (drawn pictures, two methods that do not learn, every stage) less the time of
the same commands, called a second time in one process that has all packages loaded; by rule: the
job's wall time as Snakemake measured it less its own work. noop_s: `snakemake` on the paper's
configuration with every output and all of Snakemake's records there (empty files, as many pretended
raw pictures as are published). Each is the best of several.

    python benchmarks/overhead.py [--repeats 3] [--only help job noop] [--note "..."] [--out
    FILE.csv]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import chdir
from pathlib import Path

import torch
import yaml
from PIL import Image
from record import ROOT, write

from helixbench.config import digest, load, slice_config
from helixbench.engine.devices import describe
from helixbench.weights import FILES

BIN = Path(sys.executable).parent
PICTURES = {"train/good": 400, "test/good": 60, "test/broken": 60, "ground_truth/broken": 60}
"""Of a category: 38 of them make about the 20,000 pictures that the four data sets have
together."""
TOUCH = (
    "import sys, snakemake.cli, snakemake.executors.touch as t; t.Executor.SLEEPING_TIME = 0; "
    "snakemake.cli.main(sys.argv[1:])"
)
"""`snakemake`, which would wait a tenth of a second for each job that it touches."""
COPIED = (
    "Snakefile",
    "params.yaml",
    "environment.yml",
    "config",
    "profiles",
    "workflow",
    "resources",
)


def run(*command: str, cwd: Path, **environment: str) -> tuple[float, str]:
    """Wall time and output of a program of the environment; stops where it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
    return seconds, done.stdout + done.stderr


def project(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    return folder


def start(folder: Path, repeats: int) -> dict[str, float]:
    """Best of several starts."""
    ours = min(run("helixbench", "--help", cwd=folder)[0] for _ in range(repeats))
    floor = min(run("python", "-c", "pass", cwd=folder)[0] for _ in range(repeats))
    return {"help_s": round(ours, 3), "python_s": round(floor, 3)}


def jobs(folder: Path) -> dict[str, object]:
    """Overhead of the jobs of a small run."""
    removed = dict.fromkeys(("dhdiff", "cutpaste", "nsa"))
    overlay = {
        "train": {
            "methods": removed
            | {"draem": load("params.yaml").train.methods["draem"].model_dump(mode="json")}
        }
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(overlay))
    target = [
        "table_1",
        "table_2",
        "--cores",
        "1",
        "--configfile",
        "config/smoke.yaml",
        "small.yaml",
    ]
    _, planned = run("snakemake", *target, "--dry-run", "--printshellcmds", cwd=folder)
    commands = re.findall(r"^(?:Shell command:)? *(helixbench .*?) 2>&1", planned, flags=re.M)
    total, _ = run("snakemake", *target, cwd=folder)
    work = defaultdict(list)
    with chdir(folder):
        from helixbench.cli import app

        for attempt in range(2):
            for command in commands:
                begun = time.perf_counter()
                app(shlex.split(command)[1:], standalone_mode=False)
                if attempt:
                    work[command.split()[1]].append(time.perf_counter() - begun)
    logged = {
        path: float(next(csv.DictReader(path.open(), delimiter="\t"))["s"])
        for path in (folder / "logs/smoke").rglob("*.tsv")
    }
    measured = sum(logged.values())
    own = sum(map(sum, work.values()))
    by_rule = {
        "/".join(path.relative_to(folder / "logs/smoke").with_suffix("").parts[:2]): seconds
        for path, seconds in logged.items()
    }
    return {
        "jobs": len(commands),
        "total_s": round(total, 2),
        "own_work_s": round(own, 2),
        "overhead_per_job_s": round((total - own) / len(commands), 2),
        "of_that_snakemake_s": round((total - measured) / len(commands), 2),
        "jobs_s": {name: round(seconds, 2) for name, seconds in sorted(by_rule.items())},
        "work_s": {name: [round(seconds, 2) for seconds in found] for name, found in work.items()},
    }


def pretend(folder: Path) -> None:
    """Raw pictures and weights, as far as a run with nothing to do looks at them."""
    paper = load("params.yaml")
    for dataset in paper.prepare.datasets.values():
        for category in dataset.categories:
            for inner, number in PICTURES.items():
                inside = folder / dataset.root / category / inner
                inside.mkdir(parents=True)
                mask = inner.startswith("ground_truth")
                names = [inside / f"{i}{'_mask' * mask}.png" for i in range(number)]
                Image.new("L" if mask else "RGB", (8, 8), 255).save(names[0])
                for name in names[1:]:
                    os.link(names[0], name)
    visa = paper.prepare.datasets["VisA"]
    rows = [
        ("train", "normal", "train/good/0"),
        ("test", "normal", "test/good/0"),
        ("test", "anomaly", "test/broken/0"),
    ]
    lines = [
        f"{c},{split},{label},{c}/{name}.png,"
        + (f"{c}/ground_truth/broken/0_mask.png" if label == "anomaly" else "")
        for c in visa.categories
        for split, label, name in rows
    ]
    (folder / visa.root / "split_csv").mkdir()
    (folder / visa.root / "split_csv/1cls.csv").write_text(
        "\n".join(["object,split,label,image,mask", *lines]) + "\n"
    )
    (folder / paper.train.pretrained.path).mkdir(parents=True)
    (folder / paper.train.pretrained.path / "model_index.json").write_text("{}")
    checkpoints = folder / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    for network in ("inception-v3", "vgg"):
        (checkpoints / FILES[network]).touch()


def noop(folder: Path, repeats: int) -> dict[str, float]:
    """A whole paper run whose every output is there."""
    pretend(folder)
    environment = {"TORCH_HOME": str(folder / "torch")}
    _, summary = run("snakemake", "--summary", "--cores", "1", cwd=folder, **environment)
    outputs = [line.split("\t")[0] for line in summary.splitlines() if line.startswith("results/")]
    for name in outputs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        # What the workflow asks of a result before it takes it: with which values it was made.
        if name.endswith("manifest.json"):
            (folder / name).write_text(json.dumps({"config": {}, "config_digest": digest({})}))
        elif name.startswith("results/paper/score/"):
            values = slice_config(load("params.yaml"), ["run.seed", "score"])
            (folder / name).write_text(f"config_digest\n{digest(values)}\n")
    seconds, _ = run(
        "python", "-c", TOUCH, "--touch", "--forceall", "--cores", "1", cwd=folder, **environment
    )
    records = sum(1 for _ in Path(folder, ".snakemake/metadata").iterdir())
    times = []
    for _ in range(repeats):
        took, text = run("snakemake", "--cores", "1", cwd=folder, **environment)
        if "Nothing to be done" not in text:
            sys.exit(f"something was to be done: {text[-2000:]}")
        times.append(took)
    return {
        "noop_s": round(min(times), 2),
        "outputs": len(outputs),
        "records": records,
        "touch_without_waiting_s": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=("help", "job", "noop"), default=("help", "job", "noop")
    )
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {"name": "overhead", "device": describe(torch.device("cpu"))}
    for part in options.only:
        with tempfile.TemporaryDirectory() as folder:
            if part == "job":  # a run of its own each time
                runs = [
                    jobs(project(Path(folder, str(number)))) for number in range(options.repeats)
                ]
                result |= min(runs, key=lambda found: found["overhead_per_job_s"])
                continue
            place = project(Path(folder))
            result |= (
                start(place, options.repeats + 2)
                if part == "help"
                else noop(place, options.repeats)
            )
    print(json.dumps(result))
    if options.out:
        write(options.out, result, options.note)


if __name__ == "__main__":
    main()
