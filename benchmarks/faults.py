"""Kills train, generate, score and detect at random moments and says how many were survived: the
test of `make test`, longer.

Each stage is killed with SIGKILL until its share of the kills is used up, then ends undisturbed:
its files must be those of the unbroken run, byte for byte. resumed: attempts that said that they go
on from what was there.

    python benchmarks/faults.py [--kills 50] [--note "..."] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import torch
from record import ROOT, write

from helixbench.engine.devices import describe

TESTS = (
    "tests/robustness/test_faults.py",
    "tests/workflow/test_disorder.py",
    "tests/workflow/test_killed_workflow.py",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", *TESTS, f"--junitxml={report}"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "HELIXBENCH_KILLS": str(options.kills)},
            check=False,
        )
        cases = list(ElementTree.parse(report).iter("testcase"))
    result = {"name": "faults", "device": describe(torch.device("cpu")), "tests": len(cases)}
    result["passed"] = sum(
        not any(case.find(end) is not None for end in ("failure", "error", "skipped"))
        for case in cases
    )
    for case in cases:
        found = {entry.get("name"): int(entry.get("value")) for entry in case.iter("property")}
        stage = case.get("name").partition("[")[2].rstrip("]")
        result |= {
            f"{stage}, {name}": number
            for name, number in found.items()
            if name in ("kills", "resumed")
        }
    result["kills"] = sum(
        number for name, number in result.items() if str(name).endswith(", kills")
    )
    print(result)
    if options.out and not done.returncode:
        write(options.out, result, options.note)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
