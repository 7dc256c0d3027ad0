"""DVC's stages are Snakemake's targets, and both watch the same keys."""

from __future__ import annotations

import json
import re
import subprocess

import yaml
from conftest import ROOT

from helixbench.config import load

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


def test_metrics_and_plots_are_what_dvc_shows(project):
    """Files as the report writes them, at the paths of dvc.yaml; the columns are the labels of params.yaml."""
    labels = [method.label for method in load(ROOT / "params.yaml").train.methods.values()]
    report = project.root / "results/paper/report"
    report.mkdir(parents=True)
    (report / "summary.json").write_text(json.dumps({"MVTec-AD": {"DH-Diff": {"pixel_ap": 12.5}}}))
    for kind, x in (("image_roc", "false-positive rate"), ("pixel_pr", "recall"), ("pro", "false-positive rate")):
        rows = [",".join([x, *labels]), *(",".join([f"{i / 4}", *["0.5"] * len(labels)]) for i in range(5))]
        (report / f"{kind}_MVTec-AD.csv").write_text("\n".join(rows) + "\n")
    subprocess.run(["git", "init", "--quiet"], cwd=project.root, check=True)
    quiet = {"DVC_NO_ANALYTICS": "1"}
    assert project.run("dvc", "init", "--quiet", **quiet).returncode == 0
    shown = project.run("dvc", "metrics", "show", "--json", **quiet)
    assert json.loads(shown.stdout)[""]["data"]["results/paper/report/summary.json"]["data"]["MVTec-AD"]["DH-Diff"]["pixel_ap"] == 12.5
    drawn = project.run("dvc", "plots", "show", "--json", **quiet)
    assert drawn.returncode == 0, drawn.stdout
    answer = json.loads(drawn.stdout)
    assert not answer.get("errors"), answer["errors"]
    assert set(answer["data"]) == {"image_roc", "pixel_pr", "pro"}
    for name in answer["data"]:
        assert all(label in json.dumps(answer["data"][name]) for label in labels)
