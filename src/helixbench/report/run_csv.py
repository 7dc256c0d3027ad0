"""A run's scores and costs as one small CSV, to be kept with the code: what was measured, on what,
by what command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from helixbench.errors import UserError
from helixbench.protocol import Protocol
from helixbench.provenance import read_object, write_text
from helixbench.records import csv_text
from helixbench.report.protocol import words
from helixbench.report.run_folder import read_scores, score_files

COLUMNS = (
    "run",
    "dataset",
    "category",
    "defect",
    "method",
    "metric",
    "value",
    "std",
    "seed",
    "n",
    "protocol",
    "device",
    "config_digest",
    "command",
    "commit",
    "date",
)

AGAIN = "run its stage again"


def _scores(results: Path) -> Iterator[dict]:
    for file in score_files(results):
        manifest = file.with_name("manifest.json")
        facts = read_object(manifest, AGAIN) if manifest.is_file() else {}
        made = {key: facts.get(key, "") for key in ("device", "commit")}
        for row in read_scores(file):
            told = words(Protocol.parse(row.protocol))
            yield {**dataclasses.asdict(row), "protocol": told, **made}


def _costs(results: Path) -> Iterator[dict]:
    """Wall seconds and peak memory of every stage that keeps a manifest, as metrics
    `<stage>_wall_s`, `<stage>_peak_mib`.
    """
    for stage in ("prepare", "train", "generate", "detect"):
        for file in sorted((results / stage).rglob("manifest.json")):
            parts = file.parent.relative_to(results / stage).parts
            method = parts[0] if stage != "prepare" else ""
            dataset, category = (parts[1:] if method else parts)[:2]
            facts = read_object(file, AGAIN)
            shared = {"dataset": dataset, "category": category, "method": method, "defect": "all"}
            shared |= {
                key: facts.get(key, "") for key in ("seed", "device", "commit", "config_digest")
            }
            extra = {"psnr_db": facts["psnr_db"]} if "psnr_db" in facts else {}
            other = facts.get("detector", "localization")
            name = stage if other == "localization" else other.replace(" ", "_")
            cost = {
                f"{name}_wall_s": facts["cost"]["wall_s"],
                f"{name}_peak_mib": facts["cost"]["peak_rss_mib"],
            }
            for metric, value in (cost | extra).items():
                yield {**shared, "metric": metric, "value": value}


def run(results: Path, out: Path, *, command: str, date: str) -> None:
    """Write all scores and costs found under a run folder, each with the commit that its job ran
    from.

    Raises UserError when there are no scores.
    """
    scores = list(_scores(results))
    if not scores:
        raise UserError(f"{results}: no scores; run the workflow first")
    shared = {"run": results.name, "command": command, "date": date}
    rows = [row | shared for row in [*scores, *_costs(results)]]
    lines = [[row.get(column) for column in COLUMNS] for row in rows]
    write_text(out, csv_text([COLUMNS, *lines]))
