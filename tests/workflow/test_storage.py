"""Disks that are full or may not be written, as the whole workflow meets them: one line, before any
job."""

from __future__ import annotations

import pytest
from conftest import Project
from disks import disk, fill, mounts, read_only

SMOKE = ("config/smoke.yaml",)
SAID = {"full": "no space left on the disk", "read-only": "the file system is read-only"}


def our_line(result) -> str:
    lines = [line for line in result.stdout.splitlines() if line.startswith("helixbench: ")]
    assert (
        result.returncode != 0
        and len(lines) == 1
        and "Traceback" not in result.stdout
        and "Error in file" not in result.stdout
    ), result.stdout
    return lines[0]


@mounts
@pytest.mark.parametrize("state", SAID)
@pytest.mark.parametrize("folder", ["results", "scratch"])
def test_a_disk_that_takes_nothing_is_one_line_before_any_job_and_with_room_the_run_begins(
    project: Project, folder, state
):
    with disk(project.root / folder, 2) as small:
        fill(small)
        if state == "read-only":
            read_only(small)
        assert SAID[state] in our_line(project.snakemake("prepared", overlays=SMOKE))
    assert "Draw the procedural category disc" in project.plan("prepared", overlays=SMOKE)


@mounts
def test_a_dry_run_looks_at_results_that_nobody_may_write(project: Project):
    with disk(project.root / "results", 2) as results, disk(project.root / "scratch", 2) as scratch:
        before = project.plan(overlays=SMOKE)
        for small in (results, scratch):
            read_only(small)
        assert project.plan(overlays=SMOKE) == before
        other = project.write("other.yaml", {"prepare": {"raw_mask_cells": 4}})
        assert SAID["read-only"] in our_line(
            project.snakemake("--dry-run", overlays=(*SMOKE, other))
        )


@mounts
def test_where_snakemake_cannot_write_its_own_folder_a_dry_run_is_one_line(tmp_path):
    with disk(tmp_path / "disk", 30) as small:
        project = Project(small / "project")
        assert project.plan("prepared", overlays=SMOKE)
        read_only(small)
        assert SAID["read-only"] in our_line(
            project.snakemake("--dry-run", "prepared", overlays=SMOKE)
        )
