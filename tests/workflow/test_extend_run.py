"""docs/extend.md as a user follows it: its file, its overlay and its command in a project, up
to the tables."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex

import pytest
from conftest import Project
from pages import EXTEND, FILES

from helixbench.protocol import Protocol
from helixbench.provenance import sha256
from helixbench.records import Pair, Score, read_csv, write_csv

VARIABLE, *COMMAND = shlex.split(
    re.search(r"^PYTHONPATH=\. snakemake .*$", EXTEND, flags=re.M).group()
)
PLACES = ("disc", "weave")


@pytest.fixture
def mine(project: Project) -> Project:
    """A project with the page's two files in it."""
    for path in ("my_stain.py", COMMAND[-1]):
        (project.root / path).write_text(FILES[path], encoding="utf-8")
    return project


def run(project: Project, *command: str) -> str:
    """Output of a command with the page's PYTHONPATH before what the tests themselves need."""
    name, here = VARIABLE.split("=")
    result = project.run(
        *command, **{name: os.pathsep.join([here, *filter(None, [os.environ.get(name)])])}
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def planned(project: Project, *command: str) -> dict[str, str]:
    """Jobs of a dry run: message -> shell command."""
    jobs = re.findall(
        r"^Job \d+: (.*)\n(?:Reason: .*\n)?Shell command: (.*)$",
        run(project, *command, "-n", "-p"),
        flags=re.M,
    )
    return dict(jobs)


def slices(project: Project) -> dict[str, str]:
    return {
        file.name: file.read_text(encoding="utf-8")
        for file in (project.root / "results/mini/config").glob("*.json")
    }


def test_the_page_s_command_adds_the_jobs_of_the_new_method_and_changes_no_other_method_s(mine):
    assert COMMAND[-2:] == ["config/mini.yaml", "config/mine.yaml"]
    before, known = planned(mine, *COMMAND[:-1]), slices(mine)
    after, now = planned(mine, *COMMAND), slices(mine)
    expected = {
        message.format(f"Procedural {place}")
        for place in PLACES
        for message in (
            "Generate pairs of {} with stain, part 1/1",
            "Gather the pairs of {} with stain",
            "Score stain on {}",
            "Detect on {} with the pairs of stain, seed 0",
        )
    }
    assert (
        len(before) > 20
        and after.keys() - before.keys() == expected
        and before.keys() <= after.keys()
    )
    changed = [command for message, command in before.items() if after[message] != command]
    assert changed and all(command.startswith("helixbench report ") for command in changed), (
        "pages and tables show one more method"
    )
    assert {name for name in known if known[name] != now[name]} == {
        *(name for name, text in known.items() if "train.methods" in json.loads(text)),
        "jobs.json",
    }
    assert all("stain" in name for name in now.keys() - known.keys())


def test_a_job_of_the_workflow_makes_the_new_method_s_pairs(mine):
    folder = mine.root / "results/mini/generate/stain/Procedural/disc"
    run(mine, *COMMAND[:1], str((folder / "manifest.csv").relative_to(mine.root)), *COMMAND[1:])
    pairs = read_csv(folder / "manifest.csv", Pair)
    assert pairs and {pair.method for pair in pairs} == {"stain"}
    assert all((folder / pair.image).is_file() and (folder / pair.mask).is_file() for pair in pairs)


@pytest.mark.parametrize(("number", "metric"), [(1, "inception_score"), (2, "image_auroc")])
def test_the_tables_have_a_column_of_the_new_method(mine, number, metric):
    """The planned job of the table, on one number for each score file that it names."""
    (command,) = [
        c
        for c in planned(mine, *COMMAND).values()
        if c.startswith(f"helixbench report table {number} ")
    ]
    command = shlex.split(command.partition(" 2>&1 ")[0])
    files = [after for flag, after in zip(command, command[1:], strict=False) if flag == "--scores"]
    for value, file in enumerate(files):
        _, _, _, method, dataset, category = file.removesuffix(".csv").split("/")[:6]
        row = Score(
            dataset,
            category,
            "all",
            method,
            metric,
            float(value),
            None,
            40,
            0,
            "half",
            "0" * 64,
            Protocol("one_protocol").cell(),
            "d" * 16,
        )
        (mine.root / file).parent.mkdir(parents=True, exist_ok=True)
        write_csv(mine.root / file, [row], Score)
        record = (mine.root / file).with_suffix(".json")
        record.write_text(
            json.dumps({"files": {record.with_suffix(".csv").name: sha256(mine.root / file)}})
        )
    run(mine, *command)
    text = (mine.root / f"results/mini/tables/table_{number}.md").read_text(encoding="utf-8")
    assert "measured: Stain" in next(
        line for line in text.splitlines() if line.startswith("| category")
    )
    with open(
        mine.root / f"results/mini/tables/table_{number}.csv", newline="", encoding="utf-8"
    ) as handle:
        ours = {
            row["category"]: row["measured"]
            for row in csv.DictReader(handle)
            if row["method"] == "Stain"
        }
    assert {place: ours[place] for place in PLACES} == {
        place: str(value)
        for value, file in enumerate(files)
        for place in PLACES
        if f"/stain/Procedural/{place}" in file
    }
