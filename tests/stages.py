"""The smoke run's stages as commands, in processes that can be killed at any moment and yet start
at once.

A fork server has torch and the stages loaded; each command is a fork of it, so that a test may kill
dozens.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import yaml

from helixbench.config import overlay, slice_config, validate

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("train", "generate", "score", "detect")
PICTURES = ("manifest.json", "stats.jsonl")
"""What says when and how fast: never the same twice."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "helixbench.cli",
        "helixbench.prepare.stage",
        "helixbench.train.stage",
        "helixbench.methods.dhdiff.method",
        "helixbench.generate.stage",
        "helixbench.score.stage",
        "helixbench.detect.localization",
        "helixbench.detect.classification",
        "helixbench.detect.segmentation",
        "helixbench.report.tables",
    ]
)


def _call(arguments: list[str], log: Path, folder: Path) -> None:
    """What the console script does, its output in a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.chdir(folder)
    sys.argv = ["helixbench", *arguments]
    from helixbench.cli import main

    main()


class Process:
    """A command that runs."""

    def __init__(self, arguments: list[str], log: Path, folder: Path):
        self.log = log
        self.process = _SERVER.Process(target=_call, args=(arguments, log, folder))
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Exit code; None while it runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self) -> bool:
        """SIGKILL; whether it was that which ended it."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


class Run:
    """A folder with the slices of the smoke configuration and the outputs of its stages, one folder
    each."""

    def __init__(self, folder: Path, changes: dict):
        self.folder = folder
        values: dict = {}
        for file in ("params.yaml", "config/smoke.yaml"):
            values = overlay(values, yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))
        config = validate(overlay(values, changes))
        keys = {
            "draw": ("run.seed", "prepare.datasets.Procedural.procedural"),
            "prepare": ("prepare.size", "prepare.split", "prepare.raw_mask_cells"),
            "base": ("run.seed", "train.base", "train.scratch"),
            "train": ("run.seed", "train.methods.dhdiff"),
            "generate": ("run.seed", "generate", "train.methods.dhdiff"),
            "part": ("run.seed", "generate", "train.methods.dhdiff"),
            "gather": ("run.seed", "generate", "train.methods.dhdiff"),
            "score": ("run.seed", "score"),
            "detect": ("run.seed", "detect.localization"),
            "classify": ("run.seed", "detect.classification"),
            "segment": ("run.seed", "detect.segmentation"),
            "report": (
                "report",
                "train.methods",
                "train.ablations",
                "prepare.datasets",
                "detect.comparators",
            ),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for stage, wanted in keys.items():
            (folder / f"{stage}.json").write_text(json.dumps(slice_config(config, wanted)))

    def start(
        self, stage: str, out: Path | None = None, state: Path | None = None, name: str = ""
    ) -> Process:
        """A stage on the earlier stages' outputs in this folder; out, state: other places than its
        own."""
        out = out or self.folder / stage
        state = state or self.folder / f"{stage}.state"
        one = ["Procedural", "disc", "--config", self.folder / f"{stage}.json"]
        prepared, pairs = (
            ["--prepared", self.folder / "prepare"],
            ["--pairs", self.folder / "generate"],
        )
        kept, there = ["--state", state, "--threads", "1"], ["--out", out]
        drawn = [
            "generate",
            "dhdiff",
            *one,
            *prepared,
            "--model",
            self.folder / "train",
            *kept,
            *there,
        ]
        record = ["--record", self.folder / "record.jsonl"]
        arguments = {
            "draw": ["draw", *one, "--out", self.folder / "raw"],
            "prepare": ["prepare", *one, "--raw", self.folder / "raw", "--out", out],
            "base": ["base", *one, *prepared, "--threads", "1", *there],
            "train": [
                "train",
                "dhdiff",
                *one,
                *prepared,
                "--base",
                self.folder / "base",
                *kept,
                *there,
            ],
            "generate": drawn,
            "part": [*drawn, "--part", "1/1", *record],
            "gather": ["gather", "dhdiff", *one, *record, "--state", state, *there],
            "score": [
                "score",
                "dhdiff",
                *one,
                *prepared,
                *pairs,
                "--threads",
                "1",
                "--out",
                out / "scores.csv",
            ],
            "detect": ["detect", "dhdiff", *one, *prepared, *pairs, *kept, *there],
            "classify": ["classify", "dhdiff", *one, *prepared, *pairs, *kept, *there],
            "segment": [
                "segment",
                "dhdiff",
                *one,
                *prepared,
                *pairs,
                *kept,
                *there,
                "--architecture",
                "unet",
            ],
            "report": [
                *(
                    "report",
                    "table",
                    "2",
                    "--config",
                    self.folder / "report.json",
                    "--published",
                    ROOT / "resources/published",
                ),
                *("--scores", self.folder / "detect/scores.csv", *there),
            ],
        }
        return Process(
            [str(part) for part in arguments[stage]],
            self.folder / f"{stage}{name}.log",
            self.folder,
        )

    def do(self, *stages: str) -> None:
        """Run stages to their end."""
        for stage in stages:
            process = self.start(stage)
            assert process.wait(600) == 0, process.text


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a stage's output that must be the same each time."""
    files = [
        file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in PICTURES
    ]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def half_files(*folders: Path) -> list[Path]:
    """Temporary files that a stage has left."""
    return [file for folder in folders for file in folder.rglob(".*.tmp*")]
