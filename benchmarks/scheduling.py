"""Where the workflow engine itself becomes the limit: dry run and scheduling rate of Snakemake.

`touch`: so many jobs that only touch a file, all ready at once, one target, no rule of ours:
`dry_run_s` is the wall time of `snakemake --dry-run`, `run_s` that of the whole real run, start
included, and jobs_per_s what follows from both: jobs over run_s - dry_run_s, that is without
building the graph. A run that takes longer than --limit is stopped: run_s stays empty, and
jobs_per_s is that of the `done` jobs in the time that there was. `paper`: dry run of our own
Snakefile on params.yaml with pretended data, 0 jobs done; `jobs` as Snakemake counts them.

    python benchmarks/scheduling.py [--jobs 100 1000 10000] [--cores 2] [--scheduler ilp greedy]
        [--limit 360] [--note "..."] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from overhead import BIN, pretend, project
from record import stamp

TOUCH = """\
rule all:
    input:
        expand("made/{{i}}", i=range({jobs})),


rule make:
    output:
        "made/{{i}}",
    shell:
        "touch {{output}}"
"""


def timed(limit: float, cwd: Path, *arguments: str, **environment: str) -> tuple[float | None, str]:
    """Wall time [s] of snakemake, None where the limit was reached, and its output so far; stops
    where it fails."""
    command = [str(BIN / "snakemake"), *arguments]
    with (cwd / "output.txt").open("w+", encoding="utf-8") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None, (cwd / "output.txt").read_text(encoding="utf-8")
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{shlex.join(command)}: {text[-2000:]}")
    return seconds, text


def touch(jobs: int, cores: int, limit: float, scheduler: str) -> dict[str, object]:
    """Dry run and run of so many trivial jobs."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "Snakefile").write_text(TOUCH.format(jobs=jobs), encoding="utf-8")
        common = ("--cores", str(cores), "--quiet", "all", "--scheduler", scheduler)
        dry, _ = timed(limit, place, *common, "--dry-run")
        full, _ = timed(limit, place, *common)
        made = len(list((place / "made").glob("*")))
    if full and made != jobs:
        sys.exit(f"{made} of {jobs} jobs were run")
    rate = round(made / ((full or limit) - dry), 1) if dry else None
    return {
        "workflow": "touch",
        "jobs": jobs,
        "scheduler": scheduler,
        "cores": cores,
        "dry_run_s": dry,
        "run_s": full,
        "done": made,
        "jobs_per_s": rate,
    }


def paper(cores: int, limit: float) -> dict[str, object]:
    """Dry run of the paper's configuration."""
    with tempfile.TemporaryDirectory() as folder:
        place = project(Path(folder))
        pretend(place)
        seconds, text = timed(
            limit,
            place,
            "--cores",
            str(cores),
            "--quiet",
            "all",
            "--dry-run",
            TORCH_HOME=str(place / "torch"),
        )
    counts = dict(re.findall(r"^(\w+) +(\d+)$", text, flags=re.M))
    print(" ".join(f"{rule}={count}" for rule, count in counts.items()), file=sys.stderr)
    return {"workflow": "paper", "jobs": counts.get("total"), "cores": cores, "dry_run_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument(
        "--scheduler",
        nargs="+",
        choices=("ilp", "greedy"),
        default=["ilp", "greedy"],
        help="ilp is Snakemake's default",
    )
    parser.add_argument(
        "--limit", type=float, default=360, help="seconds a call of Snakemake may take"
    )
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    version = subprocess.run(
        [str(BIN / "snakemake"), "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    shared = {
        "limit_s": options.limit,
        "snakemake": version,
        "machine": f"{os.cpu_count()} CPU cores",
        **stamp(options.note),
    }
    columns = [
        "workflow",
        "jobs",
        "scheduler",
        "cores",
        "dry_run_s",
        "run_s",
        "done",
        "jobs_per_s",
        *shared,
    ]
    rows = [
        lambda: paper(options.cores, options.limit),
        *(
            lambda n=n, s=s: touch(n, options.cores, options.limit, s)
            for s in options.scheduler
            for n in options.jobs
        ),
    ]
    with options.out.open("w", encoding="utf-8", newline="") if options.out else sys.stdout as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            found = {
                key: round(value, 2) if isinstance(value, float) else value
                for key, value in row().items()
            }
            writer.writerow(found | shared)
            file.flush()


if __name__ == "__main__":
    main()
