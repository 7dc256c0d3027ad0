"""What a finished run left in its folder, as plots and the page need it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.pictures.prepared import read_samples
from helixbench.provenance import DAMAGED, check_recorded, read_object
from helixbench.records import ALL, Pair, Sample, Score, read_csv, read_rows

STAGES = ("prepare", "train", "generate", "detect")
"""Stages whose jobs leave a manifest.json."""
BASE = "base"
JOINT = "_joint"
"""Folder of a base that all categories share."""
BASE_LABEL = "base model"


SCORES = ("score/*/*/*.csv", "detect/*/*/*/*/scores.csv")
"""Where the score files of a run are, below its folder."""


def score_files(results: Path) -> list[Path]:
    """The score files of a run, in order."""
    return [file for pattern in SCORES for file in sorted(results.glob(pattern))]


def read_scores(file: Path) -> list[Score]:
    """Rows of a score file, whole as its job left it.

    Raises UserError when it was altered since. Only a file that is not where a run has them may
    lack the record of its job.
    """
    rows = read_csv(file, Score)
    record = file.with_suffix(".json")
    if file.name == "scores.csv" and not record.is_file():
        record = file.with_name("manifest.json")
    if any(file.match(pattern) for pattern in SCORES):
        check_recorded(file, record)
        _check_place(file, rows)
    elif record.is_file():
        check_recorded(file, record)
    return rows


def _of_seed(seed: int, detector: str) -> bool:
    """Whether a detector's folder, `seed0`, `classification0`, `<network>0`, is that of a seed."""
    if detector.startswith("seed"):
        return detector == f"seed{seed}"
    return detector.endswith(str(seed) if detector else "")  # names of networks may end in a digit


def _check_place(file: Path, rows: list[Score]) -> None:
    """UserError for a score file of a run that another job has written."""
    detector = file.parent.name if file.match(SCORES[1]) else ""
    own = (file.parent if detector else file.with_suffix("")).parts
    own = own[-4:-1] if detector else own[-3:]
    for row in rows:
        if (row.method, row.dataset, row.category) != own or not _of_seed(row.seed, detector):
            raise UserError(
                f"{file}: of {row.method} {row.dataset}/{row.category}, seed {row.seed}; delete it "
                f"and run the workflow again"
            )


@dataclass(frozen=True)
class Job:
    """One job's manifest. method: its label, empty for `prepare`; seed: the detector's, otherwise
    None.
    """

    stage: str
    method: str
    dataset: str
    category: str
    seed: int | None
    folder: Path
    facts: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size of all files of the job."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


class RunFolder:
    """The results folder of a run, seen through its configuration (keys train.methods,
    prepare.datasets, detect).
    """

    def __init__(self, results: Path, config: Slice):
        self.results = Path(results)
        self.labels: dict[str, str] = {
            key: method.label for key, method in config["train.methods"].items()
        }
        self.datasets: dict[str, tuple[str, ...]] = {
            name: d.categories for name, d in config["prepare.datasets"].items()
        }
        self.seeds: tuple[int, ...] = config["detect"].localization.seeds
        self.comparators = config["detect"].comparators or {}

    def places(self, dataset: str | None = None) -> Iterator[tuple[str, str]]:
        """(data set, category)."""
        for name, categories in self.datasets.items():
            if dataset in (None, name):
                yield from ((name, category) for category in categories)

    def jobs(self) -> Iterator[Job]:
        """Every job with a manifest, stage by stage; methods that do not learn have none under
        `train`.
        """
        for d, c in self.places():
            yield self._job("prepare", "", d, c, self.results / "prepare" / d / c)
        joint = self.results / "train" / BASE / JOINT
        if (joint / "manifest.json").is_file():
            yield self._job("train", BASE_LABEL, ALL, ALL, joint)
        for key, label in {BASE: BASE_LABEL, **self.labels}.items():
            for d, c in self.places():
                folder = self.results / "train" / key / d / c
                if (folder / "manifest.json").is_file():
                    yield self._job("train", label, d, c, folder)
        for key, label in self.labels.items():
            for d, c in self.places():
                yield self._job("generate", label, d, c, self.results / "generate" / key / d / c)
        for key, label in self.labels.items():
            for d, c in self.places():
                for seed in self.seeds:
                    yield self._job("detect", label, d, c, self.detection(key, d, c, seed), seed)
        for key, comparator in self.comparators.items():
            for d, c in self.places():
                for seed in comparator.seeds:
                    yield self._job(
                        "detect", comparator.label, d, c, self.detection(key, d, c, seed), seed
                    )

    def _job(
        self,
        stage: str,
        method: str,
        dataset: str,
        category: str,
        folder: Path,
        seed: int | None = None,
    ) -> Job:
        return Job(
            stage,
            method,
            dataset,
            category,
            seed,
            folder,
            read_object(folder / "manifest.json", "run its stage again"),
        )

    def detection(self, key: str, dataset: str, category: str, seed: int) -> Path:
        """Folder of a detector."""
        return self.results / "detect" / key / dataset / category / f"seed{seed}"

    def curves(
        self, key: str, dataset: str, category: str, seed: int
    ) -> dict[str, list[tuple[float, float]]]:
        """Curve name -> points, as `detect` left them."""
        file = self.detection(key, dataset, category, seed) / "curves.csv"
        found: dict[str, list[tuple[float, float]]] = {}
        for line, row in read_rows(file, ("curve", "x", "y"), "run `detect` again"):
            try:
                found.setdefault(row["curve"], []).append((float(row["x"]), float(row["y"])))
            except ValueError:
                raise UserError(
                    f"{file}: row {line}: no point of a curve; run `detect` again"
                ) from None
        check_recorded(file, file.with_name("manifest.json"))
        return found

    def prepared(self, dataset: str, category: str) -> tuple[Path, list[Sample]]:
        """Folder and samples of a prepared category."""
        folder = self.results / "prepare" / dataset / category
        return folder, read_samples(folder)

    def pairs(self, key: str, dataset: str, category: str) -> tuple[Path, list[Pair]]:
        """Folder and pairs of a method, in the order of the plan."""
        folder = self.results / "generate" / key / dataset / category
        return folder, sorted(read_csv(folder / "manifest.csv", Pair), key=lambda pair: pair.index)

    @staticmethod
    def curve_of_training(job: Job) -> list[dict[str, float]]:
        """Rows of stats.jsonl of a training; empty where there is none."""
        file = job.folder / "stats.jsonl"
        try:
            return (
                [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
                if file.is_file()
                else []
            )
        except DAMAGED as error:
            raise UserError(
                f"{file}: not a training's statistics ({error}); run its stage again"
            ) from None
