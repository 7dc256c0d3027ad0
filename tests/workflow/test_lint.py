"""The rules follow the house style."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

RULES = [
    (file.name, name, body)
    for file in sorted((ROOT / "workflow/rules").glob("*.smk"))
    if file.name not in ("collect.smk", "fetch.smk", "check.smk")  # no files of their own
    for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", file.read_text(), flags=re.M)
]


def test_snakemake_lint_is_quiet(project):
    result = project.run("snakemake", "--lint")
    assert result.returncode == 0, result.stdout
    assert "your workflow is in a good condition" in result.stdout
    assert "Lints for" not in result.stdout


@pytest.mark.parametrize("file, name, body", RULES, ids=[name for _, name, _ in RULES])
def test_every_rule_is_complete(file, name, body):
    sections = re.findall(r"^    (\w+):", body, flags=re.M)
    assert {
        "input",
        "output",
        "log",
        "benchmark",
        "conda",
        "threads",
        "resources",
        "message",
        "shell",
    } <= set(sections)
    for resource in ("gpu=", "mem_mb=", "runtime="):
        assert resource in body
    inputs = re.search(r"^    input:\n((?:        .*\n)+)", body, flags=re.M)[1]
    outputs = re.search(r"^    output:\n((?:        .*\n)+)", body, flags=re.M)[1]
    for line in re.findall(r"^ {8}[^\s)\]].*$", inputs + outputs, flags=re.M):
        assert re.match(r"        \w+=", line), (
            f"{file}: {name}: an input or output has no name: {line.strip()}"
        )
    shell = re.findall(
        r'"([^"]+)"', body.split("    shell:\n")[1]
    )  # snakefmt puts short ones on one line
    assert shell[0].startswith("helixbench ")
    assert shell[-1] == "2>&1 | tee {log:q}"
    for text in shell:
        assert text.count("--") <= 1 and (text == shell[0] or not text.count(" --")), (
            f"{file}: {name}: one flag a string: {text}"
        )


def test_parsing_imports_no_torch(project):
    """A Snakefile is parsed again for every cluster job; torch would cost seconds each time."""
    (project.root / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    result = project.snakemake(
        "--dry-run", "--quiet", "all", overlays=("config/mini.yaml",), PYTHONPATH=str(project.root)
    )
    assert result.returncode == 0, result.stdout
