"""Two workflows on one folder: the second says so and changes nothing that the first one reads."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from conftest import BIN, Project

OVERLAY = "config/smoke.yaml"


@pytest.fixture
def at_work(project: Project):
    """A workflow that has begun its first job, and stays there until it is let go."""
    command = [str(BIN / "snakemake"), "--cores", "1", "prepared", "--configfile", OVERLAY]
    # Its `helixbench` waits for a file: the first job lasts as long as the test needs.
    waiting, go = project.root / "bin/helixbench", project.root / "go"
    waiting.parent.mkdir()
    waiting.write_text(
        f'#!/bin/sh\nwhile [ ! -e "{go}" ]; do sleep 0.1; done\nexec "{BIN}/helixbench" "$@"\n'
    )
    waiting.chmod(0o755)
    environment = {**os.environ, "PATH": f"{waiting.parent}:{os.environ['PATH']}"}
    log = open(project.root / "first.log", "w")
    first = subprocess.Popen(
        command, cwd=project.root, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while "Draw the procedural category" not in (project.root / "first.log").read_text():
        assert first.poll() is None and time.monotonic() < deadline, (
            project.root / "first.log"
        ).read_text()
        time.sleep(0.05)
    yield first, go
    if first.poll() is None:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    log.close()


def slices(project: Project) -> dict[str, tuple[bytes, int]]:
    return {
        f.name: (f.read_bytes(), f.stat().st_mtime_ns)
        for f in (project.root / "results/smoke/config").rglob("*.json")
    }


def test_the_second_workflow_says_so_and_changes_nothing(project, at_work):
    first, go = at_work
    before = slices(project)
    other = project.write("other.yaml", {"prepare": {"raw_mask_cells": 4}})
    for overlays in ((OVERLAY,), (OVERLAY, other)):
        second = project.snakemake("prepared", overlays=overlays)
        assert second.returncode != 0 and "Traceback" not in second.stdout
        lines = [line for line in second.stdout.splitlines() if line.startswith("helixbench: ")]
        assert (
            lines
            == [line for line in lines if f"another workflow (process {first.pid} on " in line]
            and len(lines) == 1
        ), second.stdout
        assert slices(project) == before
    assert project.plan("prepared", overlays=(OVERLAY,)), (
        "a dry run of the same configuration may look"
    )
    looked = project.snakemake("--dry-run", "prepared", overlays=(OVERLAY, other))
    assert (
        looked.returncode != 0
        and "another workflow with another configuration is reading it" in looked.stdout
    )
    assert slices(project) == before
    go.touch()
    assert first.wait(timeout=300) == 0, (project.root / "first.log").read_text()
    assert project.plan("prepared", overlays=(OVERLAY,)) == set()


def test_a_killed_workflow_leaves_no_lock_of_ours(project, at_work):
    first, go = at_work
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert project.snakemake("--unlock", overlays=(OVERLAY,)).returncode == 0
    again = project.snakemake("prepared", overlays=(OVERLAY,))
    assert again.returncode == 0, again.stdout[-3000:]
