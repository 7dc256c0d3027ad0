"""DVC's stages are Snakemake's targets, both watch the same keys, and what DVC shows is there. What
they do: test_dvc_contract.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict

import pytest
import yaml
from conftest import NO_SETTINGS, ROOT

from helixbench.config import load

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
RUNS = DVC["vars"][0]["runs"]
STAGES = {name: stage["do"] for name, stage in DVC["stages"].items()}
ROOMS = ["prepare", "train", "generate", "score", "detect", "report"]
OVERLAY = "${item.overlay}"
QUIET = {"DVC_NO_ANALYTICS": "1", **NO_SETTINGS}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
CHOICE = {"bits": 12, "defects": ["scratch"], "without": ["hole"], "group": "(.)", "strata": "(.)"}
EVERYTHING = {
    "prepare": {
        "use": ["Procedural", "MVTec-AD"],
        "split_seed": 1,
        "calibration": 0.5,
        "datasets": {
            "MVTec-AD": {"layout": "procedural", "categories": ["disc"], "procedural": {}, **CHOICE}
        },
    },
    "train": {"joint": {"own": True, "optim": {"steps": 1, "batch": 1, "lr": 0.1}}},
    "report": PARAMS["report"],
    "detect": {
        "use": ["classification", "segmentation", "patchcore"],
        "classification": {"weights": "none"},
    },
}
CHOOSE_JOBS = {
    "run.name",
    "prepare.use",
    "train.use",
    "detect.use",
    "report.tables",
    "train.ablations",
    "train.methods",
}
"""Keys that decide which jobs there are, not what one job does: in no slice of their own."""

BY_NAME = {"report_control"}
"""Rules of targets that are made when they are named only, and so by no stage: Figure 1."""


def watched(stage: str) -> tuple[list[str], list[str]]:
    """Keys of params.yaml and of the overlay that DVC watches for a stage."""
    params = STAGES[stage]["params"]
    return [key for key in params if isinstance(key, str)], next(
        keys[OVERLAY] for keys in params if isinstance(keys, dict)
    )


def covers(param: str, key: str) -> bool:
    """Whether a change below `key` is a change below `param`."""
    return f"{key}.".startswith(f"{param}.")


def touches(param: str, key: str) -> bool:
    """Whether one of the two contains the other."""
    return covers(param, key) or covers(key, param)


@pytest.fixture
def dvc(project):
    """A copy of the project that DVC may work in."""
    subprocess.run(
        ["git", "init", "--quiet"], cwd=project.root, check=True, env={**os.environ, **NO_SETTINGS}
    )
    started = project.run("dvc", "init", "--quiet", **QUIET)
    assert started.returncode == 0, started.stdout
    return project


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> dict[str, set[str]]:
    """Keys of the configuration slices among the inputs of each room's files, as Snakemake itself
    draws them.

    The smoke run with everything on, so that every rule that takes a slice has a job, once with
    each base that a rule makes, and once with a list; data are drawn in the run.
    """
    from conftest import Project

    project = Project(tmp_path_factory.mktemp("slices") / "project")
    everything = project.write("everything.yaml", EVERYTHING)
    joint = project.write("joint.yaml", {"train": {"base": "joint"}})
    (project.root / "list.txt").write_text("000\n")
    named = {"generator_list": "list.txt"}
    datasets = {"Procedural": named, "MVTec-AD": named}
    prepare = {"split": "list", "split_seed": None, "datasets": datasets}
    listed = project.write("listed.yaml", {"prepare": prepare})
    found, rules = defaultdict(set), set()
    for overlays in ((), (joint,), (listed,)):
        overlays = ("config/smoke.yaml", everything, *overlays)
        graph = project.snakemake("--filegraph", overlays=overlays)
        assert graph.returncode == 0, graph.stdout[-3000:]
        for node in graph.stdout.split('<b><font point-size="18">')[1:]:
            rules.add(rule := node.split("<")[0])
            # A rule reads the slices that are called like it; `gather` reads those of `generate`.
            config, name = (
                project.root / "results/smoke/config",
                {"gather": "generate"}.get(rule, rule),
            )
            single, several = config / f"{name}.json", (config / name).glob("*.json")
            keys = set(json.loads(single.read_text())) if single.is_file() else set()
            for file in several:  # one per method, data set or comparator
                keys |= {
                    re.sub(rf"\.{file.stem}(?=\.|$)", ".{name}", key)
                    for key in json.loads(file.read_text())
                }
            outputs = (
                re.findall(r">results/smoke/([\w.]+)", node.split("output &rarr;")[-1])
                if "output &rarr;" in node
                else []
            )
            for room in outputs:
                found["report" if room in ("summary.json", "tables") else room] |= keys
    assert set(found) == set(ROOMS) and all(found.values())
    written = {
        rule
        for file in (ROOT / "workflow/rules").glob("*.smk")
        for rule, body in re.findall(
            r"^rule (\w+):\n(.*?)(?=^\S|\Z)", file.read_text(), flags=re.M | re.S
        )
        if "config_slice(" in body
    }
    written -= BY_NAME
    assert written and written <= rules, f"no job of {written - rules}"
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> dict:
    """All values of that run."""
    file = tmp_path_factory.mktemp("everything") / "everything.yaml"
    file.write_text(yaml.safe_dump(EVERYTHING))
    return load(ROOT / "params.yaml", ROOT / "config/smoke.yaml", file).model_dump()


def test_dvc_reads_six_stages_a_run(dvc):
    result = dvc.run("dvc", "stage", "list", "--name-only", **QUIET)
    assert result.returncode == 0, result.stdout
    assert set(result.stdout.split()) == {f"{room}@{run}" for room in ROOMS for run in RUNS}
    assert list(STAGES) == ROOMS and {"paper", "mini"} <= set(RUNS)


def test_commands_are_targets_of_the_snakefile():
    text = (ROOT / "workflow/rules/collect.smk").read_text()
    targets = set(re.findall(r"^rule (\w+):", text, flags=re.M))
    for stage in STAGES.values():
        named = re.fullmatch(
            r"snakemake --cores all (.*) --configfile \$\{item\.overlay\}", stage["cmd"]
        )
        assert named and set(named[1].split()) <= targets


def test_finished_work_is_never_deleted():
    for room, stage in STAGES.items():
        outs = {
            path: options
            for out in [*stage["outs"], *stage.get("metrics", [])]
            for path, options in out.items()
        }
        assert f"results/${{key}}/{room}" in outs
        assert all(options["persist"] for options in outs.values())


def test_what_dvc_does_not_keep_git_does(dvc):
    """`cache: false` and ignored by git would be lost; cached and not ignored would be kept
    twice."""

    def ignored(file: str) -> bool:
        command = ["git", "check-ignore", "--quiet", file]
        return (
            subprocess.run(command, cwd=dvc.root, env={**os.environ, **NO_SETTINGS}).returncode == 0
        )

    for stage in STAGES.values():
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            for path, options in out.items():
                for run in RUNS:
                    file = path.replace("${key}", run) + (
                        "" if path.endswith(".json") else "/dataset/category.csv"
                    )
                    assert ignored(file) == options.get("cache", True), file
    for file, kept in (
        ("data/mvtec_ad.dvc", True),
        ("data/mvtec_ad/x.png", False),
        ("models/sd.dvc", True),
        ("models/sd/x", False),
    ):
        assert ignored(file) != kept, file


@pytest.mark.parametrize("room", ROOMS)
def test_params_cover_the_configuration_slices(slices, room):
    of_params, of_overlay = watched(room)
    for key in slices[room]:
        assert any(covers(param, key) for param in of_params), f"{room} reads {key}"


@pytest.mark.parametrize("room", ROOMS)
def test_params_are_read_by_the_stage(slices, room):
    """A key too many would run a stage for nothing."""
    for param in watched(room)[0]:
        assert param in CHOOSE_JOBS or any(touches(param, key) for key in slices[room]), (
            f"{room} does not read {param}"
        )


def leaves(node, name=""):
    """Dotted keys of all values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name


FOLLOWED_BY_CONTENT = re.compile(r"prepare\.datasets\.[^.]+\.root|train\.pretrained\.path")
"""Folders: a fingerprint of what is in them is the input of the jobs instead of their name."""
CHOOSES = re.compile(
    r"(prepare|train|detect)\.use|prepare\.datasets\.[^.]+\.categories|train\.ablations\..*|report\.tables|.*\.seeds|detect\.(localization|classification|segmentation)\.seeds"
)
"""Which jobs there are, not what one does."""


@pytest.mark.parametrize("room", ["prepare", "train", "generate", "score", "detect"])
def test_each_watched_value_is_one_that_a_job_reads(slices, everything, room):
    """Snakemake must see each change that DVC sees: what it left as it was would be locked under
    the new value."""
    named = [
        re.sub(r"\{\w+\}", "[^.]+", re.escape(key).replace(r"\{", "{").replace(r"\}", "}"))
        for key in slices[room]
    ]
    for leaf in leaves(everything):
        if any(covers(param, leaf) for param in watched(room)[0]):
            read = any(re.match(rf"{key}(\.|$)", leaf) for key in named)
            assert read or FOLLOWED_BY_CONTENT.fullmatch(leaf) or CHOOSES.fullmatch(leaf), (
                f"{room}: no job reads {leaf}"
            )


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("room", ROOMS)
def test_what_an_overlay_changes_is_watched_there(slices, room, run):
    overlay = yaml.safe_load((ROOT / RUNS[run]["overlay"]).read_text())
    of_params, of_overlay = watched(room)

    changed = set(leaves(overlay))
    assert overlay["run"]["name"] == run
    for key in of_overlay:  # DVC stops at a key that it does not find
        assert any(covers(key, leaf) for leaf in changed), f"{RUNS[run]['overlay']}: no {key}"
    if run != "paper":
        for leaf in changed:
            if any(covers(key, leaf) for key in of_params):
                assert any(covers(key, leaf) for key in of_overlay), (
                    f"{room}: {leaf} of {RUNS[run]['overlay']}"
                )


def test_metrics_and_plots_are_what_dvc_shows(dvc):
    """Files as the report writes them, at the paths of dvc.yaml; the columns are the labels of the
    methods, of which DVC shows two."""
    for run, dataset in (("paper", "MVTec-AD"), ("mini", "Procedural")):
        files = ["params.yaml"] if run == "paper" else ["params.yaml", RUNS[run]["overlay"]]
        labels = [
            method.label for method in load(*(ROOT / file for file in files)).train.methods.values()
        ]
        report = dvc.root / f"results/{run}/report"
        report.mkdir(parents=True)
        (report.parent / "summary.json").write_text(
            json.dumps({dataset: {"DH-Diff": {"pixel_ap": 12.5}}})
        )
        for kind, x in (
            ("image_roc", "false-positive rate"),
            ("pixel_pr", "recall"),
            ("pro", "false-positive rate"),
        ):
            rows = [
                ",".join([x, *labels]),
                *(",".join([f"{i / 4}", *["0.5"] * len(labels)]) for i in range(5)),
            ]
            (report / f"{kind}_{dataset}.csv").write_text("\n".join(rows) + "\n")
        shown = dvc.run("dvc", "metrics", "show", "--json", f"results/{run}/summary.json", **QUIET)
        found = json.loads(shown.stdout)[""]["data"][f"results/{run}/summary.json"]["data"]
        assert found[dataset]["DH-Diff"]["pixel_ap"] == 12.5
        names = [f"{run}_{kind}" for kind in ("image_roc", "pixel_pr", "pro")]
        drawn = dvc.run("dvc", "plots", "show", "--json", *names, **QUIET)
        assert drawn.returncode == 0, drawn.stdout
        answer = json.loads(drawn.stdout)
        assert not answer.get("errors"), answer["errors"]
        assert set(answer["data"]) == set(names)
        for name in names:
            shown = json.dumps(answer["data"][name])
            assert all(label in labels and label in shown for label in ("DH-Diff", "Crop&Paste"))
