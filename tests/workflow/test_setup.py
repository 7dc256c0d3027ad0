"""Pins, schema, comments and the first lines of the README agree with each other."""

from __future__ import annotations

import os
import re
import stat

import jsonschema
import pytest
import yaml
from conftest import ROOT, below

from helixbench.cli.tools import config_write
from helixbench.config import json_schema, load
from helixbench.errors import UserError
from helixbench.schema import params
from helixbench.schema.params import SCHEMA

OVERLAYS = sorted((ROOT / "config").glob("*.yaml"))
RUNS = [
    file for file in OVERLAYS if not file.name.startswith(("gpu_", "rival_protocol"))
]  # the others go over any of these


def test_conda_environment_holds_the_pins_of_the_lock_file():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    lines = (ROOT / "requirements.lock").read_text().replace(" \\\n", "").splitlines()
    locked = [line.partition("    --hash=")[0] for line in lines]
    assert pip == locked
    assert "python=3.11" in environment["dependencies"]
    assert all(re.match(r"[A-Za-z0-9_.-]+==[\w.+!]+( ; .+)?$", line) for line in locked)
    assert all(re.search(r"    --hash=sha256:[0-9a-f]{64}$", line) for line in lines)


def test_lock_file_pins_every_declared_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + [
        d for group in project["optional-dependencies"].values() for d in group
    ]
    canonical = lambda text: re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", text)[0]).lower()
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {canonical(line) for line in lines if not line.startswith(" ")}
    # bitsandbytes is optional and not beside the others (Makefile says why).
    assert {canonical(d) for d in declared} - {"bitsandbytes"} <= locked


@pytest.mark.parametrize("name", ["params.yaml", SCHEMA])
def test_configuration_and_schema_are_what_the_code_says(tmp_path, name):
    with pytest.raises(UserError, match="--root"):
        config_write(tmp_path)
    (tmp_path / SCHEMA).parent.mkdir(parents=True)
    config_write(tmp_path)
    assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), (
        "write it again: helixbench config write"
    )


def test_paper_configuration_is_valid_against_the_schema():
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    validator = jsonschema.Draft202012Validator(json_schema())
    assert not list(validator.iter_errors(values))
    assert list(validator.iter_errors({**values, "trian": {}})), "an editor would not show a typo"


@pytest.mark.parametrize("file", [ROOT / "params.yaml", *OVERLAYS], ids=lambda path: path.name)
def test_configurations_are_valid_and_name_their_schema(file):
    load(ROOT / "params.yaml", *([*below(file), file] if file in OVERLAYS else []))
    named = re.fullmatch(
        r"# yaml-language-server: \$schema=(\S+)", file.read_text().splitlines()[0]
    )
    assert named
    assert (file.parent / named[1]).is_file()


def test_overlays_have_names_of_their_own():
    names = [
        load(ROOT / "params.yaml", *overlays).run.name
        for overlays in [(), *((*below(file), file) for file in RUNS)]
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "file",
    [file for file in OVERLAYS if not file.name.startswith(("gpu_", "rival_protocol"))],
    ids=lambda path: path.name,
)
def test_the_protocol_of_the_rivals_goes_over_any_run(file):
    files = [*below(file), file, ROOT / "config/rival_protocol.yaml"]
    whole = load(ROOT / "params.yaml", *files)
    found = whole.detect.localization
    assert found.checkpoints == ("last", "best_on_test") and found.ground_truth == "full_value"
    assert (found.pro_thresholds, found.max_pairs) == (100, 500)
    assert "anomalydiffusion" in whole.score.ic_lpips.variants


def test_all_pairs_train_the_detectors_of_the_paper():
    """Section IV-D: the 1,000 pairs form the training set."""
    detect = load(ROOT / "params.yaml").detect
    for section in (detect.localization, detect.classification, detect.segmentation):
        assert section.max_pairs is None


def test_every_value_of_the_paper_configuration_names_its_source(monkeypatch):
    """But for the arms of the ablations, whose source stands above them."""
    sources, line = {}, params._line

    def noted(name, value, description, source, depth):
        sources.setdefault(name, []).append(source)
        return line(name, value, description, source, depth)

    monkeypatch.setattr(params, "_line", noted)
    params.params_yaml()
    bare = {name for name, found in sources.items() if not all(found)}
    assert len(sources) > 100 and bare == {"kind", "of", "change", "rows"}


def test_every_value_of_the_schema_is_in_the_paper_configuration():
    """Nothing that the paper run uses is a hidden default."""

    def leaves(node, path=()):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, (*path, str(key)))
        else:
            yield path

    written = set(leaves(yaml.safe_load((ROOT / "params.yaml").read_text())))
    used = set(leaves(load(ROOT / "params.yaml").model_dump(mode="json")))
    absent = {(*path,) for path in used - written}
    datasets = {
        ("prepare", "datasets", name, "procedural")
        for name in ("MVTec-AD", "MPDD", "VisA", "MVTec-LOCO")
    }
    assert absent == {("train", "scratch"), ("train", "joint"), *datasets}


def test_reading_numbers_of_the_configuration_exist():
    readings = set(
        map(int, re.findall(r"^## (\d+)\. ", (ROOT / "docs/readings.md").read_text(), flags=re.M))
    )
    assert readings == set(range(1, 27))
    assert (
        set(map(int, re.findall(r"reading (\d+)", (ROOT / "params.yaml").read_text()))) <= readings
    )


def test_readme_begins_with_the_two_commands():
    block = re.search(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)[1]
    assert [line.split("#")[0].strip() for line in block.splitlines()][:2] == [
        "make demo",
        "make test",
    ]


def test_readme_names_files_that_exist():
    links = re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_continuous_integration_calls_make_test_and_nothing_else():
    script = ROOT / ".ci/run"
    assert os.stat(script).st_mode & stat.S_IXUSR
    commands = [
        line for line in script.read_text().splitlines() if line and not line.startswith("#")
    ]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
