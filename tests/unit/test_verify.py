"""Scores are what their jobs wrote, and every job of the configuration has left something."""

from __future__ import annotations

import dataclasses
import json

import pytest

from helixbench import provenance
from helixbench.config import digest
from helixbench.errors import UserError
from helixbench.protocol import Protocol
from helixbench.records import Score, read_csv, write_csv
from helixbench.report import run_csv, verify
from helixbench.report.run_folder import RunFolder, read_scores, score_files

ROW = Score(
    dataset="Data",
    category="disc",
    defect="all",
    method="dhdiff",
    metric="pixel_ap",
    value=41.5,
    std=None,
    n=9,
    seed=0,
    split="half",
    split_sha256="ab",
    protocol=Protocol("localization", {"network": "unet"}).cell(),
    config_digest="digest",
)


@pytest.fixture
def run(tmp_path):
    """A run of one method with a score file of `score` and one of `detect`, both recorded."""
    folder = tmp_path / "run"
    for name, record in (
        ("score/dhdiff/Data/disc.csv", "disc.json"),
        ("detect/dhdiff/Data/disc/seed0/scores.csv", "manifest.json"),
    ):
        file = folder / name
        write_csv(file, [ROW], Score)
        facts = {"stage": name.split("/")[0], "config": {}, "config_digest": digest({})}
        facts |= {"files": {file.name: provenance.sha256(file)}}
        facts |= {"cost": {"wall_s": 1.0, "peak_rss_mib": 1.0}}
        provenance.write_json(file.with_name(record), facts)
    provenance.write_json(folder / "prepare/Data/disc/split.json", {"sha256": "ab"})
    return folder


@pytest.mark.parametrize("which", [0, 1])
def test_scores_are_read_only_as_their_job_wrote_them(which, run, tmp_path):
    verify.run(run)
    file = score_files(run)[which]
    assert read_scores(file) == [ROW]
    write_csv(file, [dataclasses.replace(ROW, value=91.5)], Score)
    for read in (
        lambda: read_scores(file),
        lambda: run_csv.run(run, tmp_path / "out.csv", command="", date=""),
        lambda: verify.run(run),
    ):
        with pytest.raises(UserError, match="delete it and run the workflow again|run its stage"):
            read()
    assert not (tmp_path / "out.csv").exists()
    record = file.with_suffix(".json") if which == 0 else file.with_name("manifest.json")
    record.unlink()
    with pytest.raises(UserError, match=record.name):
        read_scores(file)
    elsewhere = tmp_path / "by_hand.csv"
    write_csv(elsewhere, [ROW], Score)
    assert read_scores(elsewhere) == read_csv(elsewhere, Score)


def test_scores_of_another_place_are_told(run):
    """Copied with its record from another seed, a file is whole but not in its place."""
    first, second = (run / f"detect/dhdiff/Data/disc/seed{n}/scores.csv" for n in (0, 1))
    second.parent.mkdir()
    for name in ("scores.csv", "manifest.json"):
        (second.parent / name).write_bytes((first.parent / name).read_bytes())
    with pytest.raises(UserError, match="seed1/scores.csv: of dhdiff Data/disc, seed 0"):
        read_scores(second)


def test_curves_are_read_only_as_their_job_wrote_them(run):
    job = run / "detect/dhdiff/Data/disc/seed0"
    (job / "curves.csv").write_text("curve,x,y\nimage_roc,0,0\n")
    facts = json.loads((job / "manifest.json").read_text())
    facts["files"]["curves.csv"] = provenance.sha256(job / "curves.csv")
    provenance.write_json(job / "manifest.json", facts)
    place = "dhdiff", "Data", "disc", 0
    folder = RunFolder.__new__(RunFolder)
    folder.results = run
    assert folder.curves(*place) == {"image_roc": [(0.0, 0.0)]}
    (job / "curves.csv").write_text("curve,x,y\nimage_roc,0,1\n")
    with pytest.raises(UserError, match="curves.csv: altered since manifest.json"):
        folder.curves(*place)


def test_verify_tells_each_job_of_the_configuration_that_left_nothing(run, capsys):
    there = "detect/dhdiff/Data/disc/seed0/scores.csv"
    absent = [
        "detect/dhdiff/Data/disc/classification0/scores.csv",
        "detect/dhdiff/Data/disc/unet0/scores.csv",
        "detect/no_dda/Data/disc/seed0/scores.csv",
        "train/no_dda/Data/disc/manifest.json",
    ]
    verify.run(run)
    assert "no config/jobs.json" in capsys.readouterr().out
    provenance.write_json(run / "config/jobs.json", {"files": [there, *absent]})
    with pytest.raises(UserError) as caught:
        verify.run(run)
    assert str(caught.value).splitlines() == [
        f"{run / name}: missing; run the workflow again" for name in absent
    ]
    for damaged in ("[]", "{}", '{"files": ["../../x"]}', '{"files": 3}'):
        (run / "config/jobs.json").write_text(damaged)
        with pytest.raises(UserError):
            verify.run(run)
