"""Results of benchmarks as CSV for results/measured: a number a row, with device, command, commit
and date."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def stamp(note: str = "") -> dict[str, str]:
    """What a committed number is to say about its making; note: what else the machine did
    meanwhile."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    words = [word for word in sys.argv[1:] if word not in (note, "--note")]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    return {"note": note, "command": command, "commit": commit, "date": date.today().isoformat()}


def write(path: Path, result: dict[str, object], note: str = "") -> None:
    """The numbers of a result that has a `name` and a `device`; what the file holds under other
    names stays."""
    shared = {"device": result["device"], **stamp(note)}
    header = ["benchmark", "measure", "value", *shared]
    kept = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [
                [row[name] for name in header]
                for row in csv.DictReader(file)
                if row["benchmark"] != result["name"]
            ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header, *kept])
        numbers = ((key, value) for key, value in result.items() if isinstance(value, int | float))
        writer.writerows([result["name"], key, value, *shared.values()] for key, value in numbers)
