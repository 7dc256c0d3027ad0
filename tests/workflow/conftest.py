"""A copy of the project's workflow in a folder of its own, and Snakemake as a user calls it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COPIED = (
    "Snakefile",
    "params.yaml",
    "environment.yml",
    "Makefile",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
)
COPIED += ("config", "profiles", "workflow", "resources")
NO_SETTINGS = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
NO_SETTINGS |= {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.excludesFile",
    "GIT_CONFIG_VALUE_0": os.devnull,
}
"""For git: signed commits, hooks or ignored files of whoever runs the tests are not its."""


def below(overlay: Path) -> list[Path]:
    """The overlay that this one goes over, where its head names one."""
    return [
        overlay.with_name(name)
        for name in re.findall(r"^# over: (\S+)$", overlay.read_text(), flags=re.M)
    ]


class Project:
    """A temporary copy of everything that Snakemake and DVC read."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, root / name)

    @classmethod
    def at(cls, root: Path) -> Project:
        """The project that lies there already."""
        project = cls.__new__(cls)
        project.root = root
        return project

    def write(self, name: str, values: dict) -> str:
        """An overlay; returns its name."""
        (self.root / name).write_text(yaml.safe_dump(values), encoding="utf-8")
        return name

    def run(
        self, *command: str, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess:
        """A program of the environment; output and errors together."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.root,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def snakemake(
        self, *arguments: str, overlays: tuple[str, ...] = (), **more
    ) -> subprocess.CompletedProcess:
        """`snakemake --cores all`, with overlays."""
        configfiles = ["--configfile", *overlays] if overlays else []
        return self.run("snakemake", "--cores", "all", *arguments, *configfiles, **more)

    def plan(self, *arguments: str, overlays: tuple[str, ...] = ()) -> set[str]:
        """Messages of the jobs that a dry run would start."""
        result = self.snakemake("--dry-run", *arguments, overlays=overlays)
        assert result.returncode == 0, result.stdout
        return set(re.findall(r"^Job \d+: (.*)$", result.stdout, flags=re.M))

    def job_counts(self, *arguments: str, overlays: tuple[str, ...] = ()) -> dict[str, int]:
        """Jobs per rule that a dry run would start, without the total."""
        result = self.snakemake("--quiet", "all", "--dry-run", *arguments, overlays=overlays)
        assert result.returncode == 0, result.stdout
        return {
            rule: int(count)
            for rule, count in re.findall(r"^(\w+) +(\d+)$", result.stdout, flags=re.M)
            if rule != "total"
        }


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "project")


def fake_mvtec(root: Path, categories) -> None:
    """The folders of MVTec AD with four 8-pixel pictures a category."""
    for category in categories:
        for name in (
            "train/good/000",
            "train/good/001",
            "test/good/000",
            "test/broken/000",
            "test/broken/001",
        ):
            path = root / category / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (90, 90, 90)).save(path)
        for name in ("000", "001"):
            path = root / category / "ground_truth" / "broken" / f"{name}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 255).save(path)
