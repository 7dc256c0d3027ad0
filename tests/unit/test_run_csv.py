"""The CSV that keeps a run's numbers with the code."""

from __future__ import annotations

import csv
import json

import pytest

from helixbench.errors import UserError
from helixbench.protocol import Protocol
from helixbench.provenance import sha256
from helixbench.records import Score, write_csv
from helixbench.report import run_csv


def test_scores_and_costs_with_their_origin(tmp_path):
    run = tmp_path / "toy"
    score = Score(
        "Data",
        "disc",
        "all",
        "dhdiff",
        "pixel_ap",
        41.5,
        None,
        9,
        2,
        "half",
        "ab",
        Protocol("localization", {"network": "unet", "width": 64}).cell(),
        "digest",
    )
    folder = run / "detect/dhdiff/Data/disc/seed2"
    write_csv(folder / "scores.csv", [score], Score)
    facts = {
        "files": {"scores.csv": sha256(folder / "scores.csv")},
        "device": "cpu",
        "commit": "abc",
        "config_digest": "digest",
        "seed": 2,
        "cost": {"wall_s": 3.5, "peak_rss_mib": 100.0},
    }
    (folder / "manifest.json").write_text(json.dumps(facts))
    (run / "train/base/Data/disc").mkdir(parents=True)
    (run / "train/base/Data/disc/manifest.json").write_text(json.dumps(facts | {"psnr_db": 30.1}))
    run_csv.run(run, tmp_path / "out.csv", command="snakemake", date="2026-01-01")
    rows = {row["metric"]: row for row in csv.DictReader(open(tmp_path / "out.csv"))}
    assert (
        rows["pixel_ap"]
        | {
            "value": "41.5",
            "protocol": "unet(width 64)",
            "device": "cpu",
            "command": "snakemake",
            "commit": "abc",
            "run": "toy",
        }
        == rows["pixel_ap"]
    )
    assert (
        rows["detect_wall_s"]["value"],
        rows["detect_wall_s"]["method"],
        rows["psnr_db"]["value"],
    ) == ("3.5", "dhdiff", "30.1")
    assert (
        rows["train_peak_mib"]["method"] == "base" and rows["train_peak_mib"]["category"] == "disc"
    )


def test_a_run_without_scores_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no scores"):
        run_csv.run(tmp_path, tmp_path / "out.csv", command="", date="")
