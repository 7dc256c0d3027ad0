"""A clock that went back, and results that only look new."""

from __future__ import annotations

import os
import random
import time

import pytest
from conftest import Project

SMOKE = ("config/smoke.yaml",)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("disorder") / "project")
    result = project.snakemake("prepared", overlays=SMOKE)
    assert result.returncode == 0, result.stdout
    return project


def test_a_clock_that_went_back_stops_the_run_and_touch_puts_times_in_order(prepared):
    stamp = prepared.root / "scratch/smoke/clock"
    ahead = time.time() + 5 * 3600
    os.utime(stamp, (ahead, ahead))  # the last run saw a clock five hours ahead of today's
    rng = random.Random(0)
    for file in sorted((prepared.root / "results").rglob("*")):
        moment = ahead - rng.uniform(0, 3600)
        os.utime(file, (moment, moment))
    result = prepared.snakemake("prepared", overlays=SMOKE)
    lines = [line for line in result.stdout.splitlines() if line.startswith("helixbench: ")]
    assert result.returncode != 0 and len(lines) == 1 and "Job" not in result.stdout
    assert (
        "the clock is 5.0 h behind the last run of results/smoke" in lines[0]
        and "--touch" in lines[0]
    )
    assert prepared.snakemake("prepared", "--touch", "--forceall", overlays=SMOKE).returncode == 0
    assert "Nothing to be done" in prepared.snakemake("prepared", overlays=SMOKE).stdout
    changed = prepared.write(
        "other.yaml", {"prepare": {"raw_mask_cells": 4}}
    )  # and a change is seen
    assert prepared.plan("prepared", overlays=(*SMOKE, changed)) == {
        "Prepare Procedural disc",
        "All categories are prepared",
    }


@pytest.mark.parametrize("touch", [("--touch", "--forceall"), ("-tF",), ("--tou", "-F")])
def test_however_touching_is_asked_for_results_of_other_values_are_not_touched(prepared, touch):
    other = prepared.write("cells.yaml", {"prepare": {"raw_mask_cells": 3}})
    result = prepared.snakemake("prepared", *touch, overlays=(*SMOKE, other))
    assert result.returncode != 0 and "manifest.json: damaged, or made with" in result.stdout
