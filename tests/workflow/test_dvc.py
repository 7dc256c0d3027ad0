"""DVC's stages are Snakemake's targets, and both watch the same keys."""

from __future__ import annotations

import re
import subprocess

import yaml
from conftest import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RULES_OF = {
    "prepare": ["prepare"],
    "train": ["train"],
    "generate": ["generate"],
    "score": ["score"],
    "detect": ["detect"],
    "report": ["report"],
}


def test_dvc_reads_the_stages(project):
    subprocess.run(["git", "init", "--quiet"], cwd=project.root, check=True)
    quiet = {"DVC_NO_ANALYTICS": "1"}
    started = project.run("dvc", "init", "--quiet", **quiet)
    assert started.returncode == 0, started.stdout
    result = project.run("dvc", "stage", "list", "--name-only", **quiet)
    assert result.returncode == 0, result.stdout
    assert result.stdout.split() == list(RULES_OF)


def test_commands_are_targets_of_the_snakefile():
    targets = set(re.findall(r"^rule (\w+):", (ROOT / "workflow/rules/collect.smk").read_text(), flags=re.M))
    for stage in STAGES.values():
        command, named = stage["cmd"].split(" all ")
        assert command == "snakemake --cores"
        assert set(named.split()) <= targets


def test_finished_work_is_never_deleted():
    for stage in STAGES.values():
        for out in stage["outs"]:
            assert isinstance(out, dict)
            assert all(options["persist"] for options in out.values())


def test_params_cover_the_configuration_slices():
    for stage, files in RULES_OF.items():
        text = "".join((ROOT / f"workflow/rules/{file}.smk").read_text() for file in files)
        keys = {key for call in re.findall(r"config_slice\((.*?)\)", text, flags=re.S) for key in re.findall(r'"([^"]+)"', call)}
        assert keys
        for key in keys:
            assert any(f"{key}.".startswith(f"{param}.") for param in STAGES[stage]["params"]), f"{stage}: {key}"
