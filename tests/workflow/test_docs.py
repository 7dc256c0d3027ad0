"""The documentation builds strictly, its links lead somewhere, and its picture of the workflow is
today's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_site_builds_strictly(tmp_path):
    command = [
        str(Path(sys.executable).with_name("mkdocs")),
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/index.html").is_file()
    fetched = re.findall(
        r"""<(?:script|link)[^>]*(?:src|href)="(https?://[^"]+)""",
        (tmp_path / "site/index.html").read_text(),
    )
    assert not fetched, "pages must be readable without a network"


def test_every_page_is_in_the_navigation():
    def files(node):
        for entry in node:
            for value in entry.values():
                yield from files(value) if isinstance(value, list) else [value]

    assert sorted(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == [
        page.name for page in PAGES
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_targets_of_the_documentation_exist(project):
    listed = project.run("snakemake", "--list-rules")
    assert listed.returncode == 0, listed.stdout
    targets = set(listed.stdout.split())
    named = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/paper_run.md").read_text(), flags=re.M))
    stages = {"train", "generate", "score", "detect"}
    assert named - stages <= targets and {f"table_{n}" for n in range(1, 10)} <= named


def test_the_picture_shows_the_rules_of_today(project):
    """Written by: snakemake --cores 1 --configfile config/smoke.yaml --rulegraph dot -F all | dot
    -Tsvg > docs/rulegraph.svg."""
    result = project.snakemake(
        "--quiet", "all", "--rulegraph", "dot", "-F", "all", overlays=("config/smoke.yaml",)
    )
    assert result.returncode == 0, result.stdout
    labels = dict(re.findall(r'(\d+)\[label = "(\w+)"', result.stdout))
    edges = {(labels[a], labels[b]) for a, b in re.findall(r"(\d+) -> (\d+)", result.stdout)}
    drawn = (ROOT / "docs/rulegraph.svg").read_text()
    nodes = dict(re.findall(r"<title>(\d+)</title>.*?<text[^>]*>(\w+)</text>", drawn, flags=re.S))
    arrows = {
        (nodes[a], nodes[b]) for a, b in re.findall(r"<title>(\d+)&#45;&gt;(\d+)</title>", drawn)
    }
    assert set(labels.values()) == set(nodes.values()) and edges == arrows


@pytest.mark.parametrize(
    "call",
    re.findall(
        r"^(?:`)?(python benchmarks/paper_cost.py[^`#\n]*)",
        (ROOT / "docs/scaling.md").read_text(),
        flags=re.M,
    ),
)
def test_the_cost_of_the_paper_run_is_todays(call):
    """The tables of docs/scaling.md are what the configuration of today gives."""
    done = subprocess.run(
        [sys.executable, *call.split()[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs/scaling.md").read_text()
    assert [block for block in done.stdout.strip().split("\n\n") if block not in page] == []
