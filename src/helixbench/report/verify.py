"""Whether a finished run is still what its stages wrote: `helixbench verify results/<run>`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helixbench import provenance
from helixbench.config import digest
from helixbench.errors import UserError, UserErrors
from helixbench.records import Pair, inside, read_csv
from helixbench.report.run_folder import read_scores, score_files

JOBS = "config/jobs.json"
"""Files of all jobs that the configuration asks for, arms of ablations included; the workflow
writes it when it makes the page."""


def run(results: Path) -> None:
    """Check every job of a run, and print what was found.

    The files that manifests vouch for, pairs by the hashes of their rows, splits by that of the
    prepared data, and one configuration for all. Code of another commit is told, and is no fault.

    Raises:
        UserErrors: a line for each file that is missing, altered or nobody's, for each job that is
            missing, and for values on which two jobs disagree.
    """
    results = Path(results)
    manifests = sorted(
        file
        for stage in ("prepare", "train", "generate", "detect")
        for file in (results / stage).rglob("manifest.json")
    )
    manifests += sorted(results.glob("score/*/*/*.json"))
    if not manifests:
        raise UserError(f"{results}: no manifest.json of any stage; give the folder of a run")
    problems, seen = [], Counter()
    values: dict[str, tuple[Any, Path]] = {}
    commits: Counter[str] = Counter()
    for file in manifests:
        try:
            record = provenance.read_object(file, "run its stage again")
            if "stage" not in record:
                continue
            commits[record.get("commit") or "unknown"] += 1
            problems += _disagreements(file, record, values)
        except UserError as error:
            problems.append(str(error))
            continue
        seen["jobs"] += 1
        if "files" in record:
            seen["files"] += len(record["files"])
            if record["stage"] != "score":  # its folder is that of other categories, too
                problems += provenance.differences(file)
        if record["stage"] == "generate":
            found = _pairs(file.parent)
            seen["pairs"] += found.pop("pairs")
            problems += found["problems"]
    problems += _splits(results)
    whole = (results / JOBS).is_file()
    try:
        problems += _missing(results) if whole else []
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserErrors(problems)
    print(", ".join(f"{count} {name}" for name, count in seen.items()) + ": all as recorded")
    if not whole:
        print(f"no {JOBS}: whether a job is missing was not checked")
    here = provenance.commit() or "unknown"
    for name, count in commits.most_common():
        if name != here:
            print(f"{count} jobs were made by commit {name}; the code here is {here}")


def _disagreements(
    file: Path, record: dict[str, Any], values: dict[str, tuple[Any, Path]]
) -> Iterator[str]:
    """Lines about a record whose digest is not that of its values, or whose values are not those of
    the jobs before it; these are kept in `values`.
    """
    config = record["config"] if isinstance(record.get("config"), dict) else {}
    if digest(config) != record.get("config_digest"):
        yield f"{file}: its configuration was altered; run its stage again"
    for key, value in config.items():
        known, other = values.setdefault(key, (value, file))
        if known != value:
            yield f"{file}: {key} is not what it is in {other}; run the workflow again"


def _pairs(folder: Path) -> dict[str, Any]:
    """How many pairs a manifest.csv lists, and lines about those that are missing or altered."""
    problems = []
    try:
        pairs = read_csv(folder / "manifest.csv", Pair)
    except UserError as error:
        return {"pairs": 0, "problems": [str(error)]}
    for pair in pairs:
        for name, known in ((pair.image, pair.sha256), (pair.mask, pair.mask_sha256)):
            file = inside(folder, name)
            if not file.is_file() or provenance.sha256(file) != known:
                problems.append(f"{file}: missing or altered; generate again")
    return {"pairs": len(pairs), "problems": problems}


def _splits(results: Path) -> Iterator[str]:
    """Lines about scores that were altered, or whose split is not that of the prepared data."""
    known: dict[tuple[str, str], str] = {}
    for file in score_files(results):
        try:
            for score in read_scores(file):
                place = (score.dataset, score.category)
                if place not in known:
                    prepared = results.joinpath("prepare", *place)
                    known[place] = provenance.read_object(
                        prepared / "split.json", "prepare again", lambda split: split["sha256"]
                    )
                if score.split_sha256 and score.split_sha256 != known[place]:
                    yield f"{file}: of another split than the prepared data; run its stage again"
                    break
        except UserError as error:
            yield str(error)


def _missing(results: Path) -> Iterator[str]:
    """Lines about files that a whole run of the configuration has and this one lacks."""
    wanted = provenance.read_object(
        results / JOBS,
        "run the workflow again",
        lambda jobs: [inside(results, name) for name in jobs["files"]],
    )
    for file in wanted:
        if not file.is_file():
            yield f"{file}: missing; run the workflow again"
