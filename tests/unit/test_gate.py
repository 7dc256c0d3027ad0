"""The mask gate: limits learned from real masks refuse none of these, and no empty mask passes."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from helixbench import cli
from helixbench.cli.judge import read_settings
from helixbench.config import Slice
from helixbench.datasets.layout import Layout
from helixbench.generate import by_hand, stage
from helixbench.pictures import mask_gate
from helixbench.pictures.raw import read_defect_mask, resize_mask
from helixbench.prepare import judge
from helixbench.prepare import stage as prepare_stage
from helixbench.prepare.split import roles
from helixbench.records import Pair, Sample, read_csv
from helixbench.schema import Gate, Generate

REAL = Path(os.environ.get("HELIXBENCH_DATA", Path(__file__).parents[3] / "shared/data"))

SIDES = st.integers(2, 24)
MASK = st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays.arrays(bool, shape, fill=st.booleans()))
SETTINGS = st.builds(
    Gate,
    margin=st.floats(1, 4),
    min_area=st.floats(0, 0.4),
    max_area=st.floats(0.5, 1),
    max_border=st.floats(0.01, 1),
)


def bar(rows: int, side: int = 64) -> np.ndarray:
    """A mask along the whole upper side."""
    mask = np.zeros((side, side), bool)
    mask[:rows] = True
    return mask


@given(st.lists(MASK, max_size=6), MASK, SETTINGS)
@settings(max_examples=150, deadline=None)
def test_no_mask_is_refused_that_limits_were_learned_from(masks, other, configured):
    limits = mask_gate.learn(masks, configured)
    for mask in masks:
        assert mask_gate.verdict(mask, limits) == ("ok" if mask.any() else "empty")
    assert mask_gate.verdict(np.zeros_like(other), limits) == "empty"
    if mask_gate.verdict(other, configured) == "ok":
        assert mask_gate.verdict(other, limits) == "ok", "never stricter than what is configured"
    fixed = mask_gate.learn(masks, configured.model_copy(update={"limits": "fixed"}))
    assert (
        mask_gate.verdict(other, fixed) == mask_gate.verdict(other, configured)
        and fixed.real_masks == 0
    )


def test_a_bar_along_a_side_is_what_real_masks_say_it_is():
    assert mask_gate.verdict(bar(12), Gate()) == "border"
    assert mask_gate.verdict(bar(12), mask_gate.learn([bar(4)], Gate())) == "ok"
    assert mask_gate.verdict(bar(12), mask_gate.learn([bar(4)], Gate(limits="fixed"))) == "border"
    assert mask_gate.verdict(bar(63), mask_gate.learn([bar(4)], Gate())) == "large"
    assert mask_gate.learn([], Gate()) == mask_gate.Limits(0.0005, 0.6, 0.333, 0)
    dot = np.zeros((64, 64), bool)
    dot[5, 5] = True
    learned = mask_gate.learn([dot, bar(48)], Gate(margin=1.2))
    expected = mask_gate.Limits(1 / 64**2 / 1.2, 0.75 * 1.2, 1.0, 2)
    assert dataclasses.astuple(learned) == pytest.approx(dataclasses.astuple(expected))


def test_refusals_are_counted_and_said():
    empty = np.zeros((64, 64), bool)
    counted = mask_gate.Refusals.count({"a": [bar(4), bar(5)], "b": [bar(4)[:, :16]]}, Gate())
    assert (
        counted.line()
        == "gate: limits learned from 3 real masks refuse 0 % of them; the fixed ones would "
        "refuse 2 of 2 of a, 1 of 1 of b"
    )
    box = bar(20)
    box[:2], box[:, :2], box[:, 40:] = False, False, False
    assert (
        mask_gate.Refusals.count({"a": [box]}, Gate())
        .line()
        .endswith("the fixed ones would refuse none, too")
    )
    assert (
        mask_gate.reasons(mask_gate.verdict(mask, Gate()) for mask in (bar(4), box, empty, bar(4)))
        == "border 2, empty 1"
    )


REAL_SETS = {
    "bottle": ("mvtec_ad", REAL / "mvtec_ad", {}),
    "metal_plate": ("mpdd", REAL / "mpdd", {}),
    "magnetic_tile": ("magnetic_tile", REAL, {"blowhole": 4, "break": 9, "fray": 6, "uneven": 31}),
}


@pytest.mark.parametrize("category", REAL_SETS)
def test_learned_limits_refuse_no_real_mask(category):
    layout, root, refused = REAL_SETS[category]
    if not (root / category).is_dir():
        pytest.skip(
            f"no {category}; set HELIXBENCH_DATA to the folder that holds mvtec_ad/, mpdd/, "
            f"magnetic_tile/"
        )
    raw = Layout.named(layout).read(root, "D", category)
    masks = {}
    for sample, role in zip(raw, roles(raw, "half"), strict=True):
        if role == "generator":
            mask = resize_mask(read_defect_mask(sample), 256)
            masks.setdefault(sample.defect, []).append(mask)
    counted = mask_gate.Refusals.count(masks, Gate())
    assert set(counted.learned.values()) == {0}
    assert {defect: n for defect, n in counted.fixed.items() if n} == refused


@pytest.fixture
def barred(tmp_path):
    """Prepared pictures whose defect `hole` is a bar along a side, and `scratch` a box."""
    folder = small.prepared(tmp_path / "prepared")
    for file in (folder / "masks").glob("*hole*"):
        Image.fromarray(bar(4, small.SIZE).astype(np.uint8) * 255).save(file)
    return folder


def generated(prepared, folder, settings):
    options = Generate(pairs=6, batch=4, max_shift=0, sampling=small.sampling(), gate=settings)
    values = {
        "run.seed": 0,
        "generate": options.model_dump(),
        "train.methods.cp": small.crop_paste().model_dump(),
    }
    stage.run(
        "cp",
        "Data",
        "disc",
        Slice(values),
        prepared=prepared,
        model=None,
        state=folder / "s",
        out=folder / "o",
    )
    pairs = read_csv(folder / "o/manifest.csv", Pair)
    return pairs, json.loads((folder / "o/manifest.json").read_text())


def test_generated_pairs_are_held_to_the_limits_of_their_type(tmp_path):
    prepared = small.prepared(tmp_path / "prepared")
    pairs, manifest = generated(prepared, tmp_path / "learned", Gate(min_area=0.2, margin=2))
    assert {pair.gate for pair in pairs} == {"ok"} and manifest["redraws"] == 0
    smallest = round(48 / small.SIZE**2 / 2, 6)
    limits = {"min_area": smallest, "max_area": 0.6, "max_border": 0.333, "real_masks": 4}
    assert manifest["gate_limits"] == {"hole": limits, "scratch": limits}
    settings = Gate(limits="fixed", min_area=0.2, redraws=1)
    pairs, manifest = generated(prepared, tmp_path / "fixed", settings)
    assert {pair.gate for pair in pairs} == {"small"}
    assert manifest["gate_limits"]["hole"] == limits | {"min_area": 0.2, "real_masks": 0}


def test_prepare_says_what_the_gate_would_refuse(tmp_path, caplog):
    root = tree(tmp_path / "raw/gear", normals=True)
    values = {"prepare.size": 64, "prepare.split": "half", "prepare.raw_mask_cells": 5}
    with caplog.at_level(logging.INFO):
        prepare_stage.run(
            "D", "gear", Slice(values), layout="mvtec_ad", raw=root.parent, out=tmp_path / "out"
        )
    line = (
        "D gear: gate: limits learned from 2 real masks refuse 0 % of them; the fixed ones "
        "would refuse 2 of 2 of crack"
    )
    assert line in caplog.messages
    record = json.loads((tmp_path / "out/manifest.json").read_text())["gate"]
    assert record == {"masks": {"crack": 2}, "learned": {"crack": 0}, "fixed": {"crack": 2}}


# ------------------------------------------------------------------------------------------------
# the judge


def tree(folder: Path, normals: bool, number: int = 4) -> Path:
    """A category in the layout of MVTec AD whose defects are bars along a side; every picture is
    another."""
    rng = np.random.default_rng(sum(folder.name.encode()))

    def save(path: Path, mask=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        if mask is not None:
            target = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)

    for i in range(3 if normals else 0):
        save(folder / f"train/good/{i:03d}.png")
        save(folder / f"test/good/{i:03d}.png")
    for i in range(number):
        save(folder / f"test/crack/{i:03d}.png", bar(8 + i))
    return folder


SCORE = {"score": "they are scored all the same", "detect": "they are not trained on"}


@pytest.mark.parametrize("command", SCORE)
def test_the_judge_learns_its_limits_from_the_real_defects(command, tmp_path, caplog):
    pairs, real = tree(tmp_path / "pairs", False, 5), tree(tmp_path / "real", True)
    Image.new("L", (64, 64)).save(pairs / "ground_truth/crack/003_mask.png")
    given = {"name": "m", "size": 64}
    normals = tree(tmp_path / "normals", True, 0) / "train/good"
    judged = {
        "score": lambda **more: judge.to_score(pairs, real, **given, **more),
        "detect": lambda **more: judge.to_detect(pairs, normals, real, **given, **more),
    }[command]
    with caplog.at_level(logging.INFO), judged() as found:
        verdicts = [pair.gate for pair in read_csv(found.pairs / "manifest.csv", Pair)]
    assert verdicts == ["ok", "ok", "ok", "empty", "ok"]
    assert f"m: the mask gate refuses 1 of 5 pairs: empty 1; {SCORE[command]}" in caplog.messages
    assert (
        "m crack: gate: area 0.0005 to 0.6 of the picture, border run to 1 of a side (learned "
        "from 4 real masks)" in caplog.messages
    )
    with caplog.at_level(logging.INFO), judged(settings=Gate(limits="fixed")) as found:
        verdicts = [pair.gate for pair in read_csv(found.pairs / "manifest.csv", Pair)]
    assert verdicts == ["border", "border", "border", "empty", "border"]
    assert (
        f"m: the mask gate refuses 5 of 5 pairs: border 4, empty 1; {SCORE[command]}"
        in caplog.messages
    )


def test_settings_of_the_judge_reach_the_gate(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "generate: {gate: {limits: fixed, max_border: 0.5}}\nscore: {ic_lpips: {shuffles: 2}}\n",
        encoding="utf-8",
    )
    scoring, training = read_settings(file, 0)
    assert scoring["generate.gate"] == Gate(limits="fixed", max_border=0.5)
    assert scoring["score"].ic_lpips.shuffles == 2
    assert training["detect.localization"].optim.steps == 12500


def test_a_wrong_setting_of_the_gate_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "settings.yaml").write_text(
        "generate: {gate: {max_bordr: 0.5}}\n", encoding="utf-8"
    )
    line = [
        "judge",
        "--pairs",
        "p",
        "--real",
        "r",
        "--settings",
        str(tmp_path / "settings.yaml"),
        "-o",
        str(tmp_path / "o"),
    ]
    monkeypatch.setattr(sys, "argv", ["helixbench", *line])
    with pytest.raises(SystemExit):
        cli.main()
    assert re.search(r"generate.gate.*max_bordr: no such key", capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------
# by hand


def test_by_hand_the_limits_are_those_of_the_named_type(barred):
    assert by_hand._limits(None, "hole") == mask_gate.learn([], Gate())
    hole, scratch, any_type = (
        by_hand._limits(barred, defect) for defect in ("hole", "scratch", None)
    )
    assert (hole.max_border, scratch.max_border, any_type.max_border) == (
        1.0,
        Gate().max_border,
        1.0,
    )
    trains = [s for s in read_csv(barred / "samples.csv", Sample) if s.defect_trains]
    assert any_type.real_masks == len(trains) == 2 * hole.real_masks
