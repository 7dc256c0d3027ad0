"""Pairs by hand: the pipeline and `helixbench sample`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image, ImageDraw
from test_training import build_base, train

import helixbench
from helixbench.errors import UserError
from helixbench.generate import by_hand
from helixbench.methods.dhdiff.pipeline import DHDiffPipeline, read_drawing


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A trained model, a normal picture of another size, and a sketch."""
    folder = tmp_path_factory.mktemp("hand")
    prepared = small.prepared(folder / "disc")
    model = train(
        prepared,
        build_base(prepared, folder),
        folder,
        reference="background",
        reference_noise="none",
    )
    good = np.random.default_rng(0).integers(90, 130, (60, 50, 3)).astype(np.uint8)
    Image.fromarray(good).save(folder / "good.png")
    sketch = Image.new("L", (200, 200))
    ImageDraw.Draw(sketch).ellipse((40, 60, 120, 140), outline=255, width=6)
    sketch.save(folder / "sketch.png")
    return {"model": model, "good": folder / "good.png", "sketch": folder / "sketch.png"}


@pytest.fixture(scope="module")
def pipeline(files) -> DHDiffPipeline:
    return helixbench.DHDiffPipeline.from_pretrained(files["model"], "cpu")


def make(pipeline, files, **changes):
    options = {
        "reference": Image.open(files["good"]),
        "raw_mask": "5x5:6,7",
        "defect": "hole",
        "steps": 2,
    }
    return pipeline(**(options | changes))


def same(one, other, tolerance=0):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= tolerance


def test_pairs_are_pictures_and_seeded(pipeline, files):
    pairs = make(pipeline, files, num_pairs=3, batch=2)
    assert [image.size for image in pairs.images] == [(small.SIZE, small.SIZE)] * 3
    assert all(set(np.unique(mask)) <= {0, 255} for mask in pairs.masks)
    again = make(pipeline, files, num_pairs=3, batch=2)
    assert all(same(one, other) for one, other in zip(pairs.images, again.images, strict=True))
    assert same(make(pipeline, files, num_pairs=1).images[0], pairs.images[0], tolerance=1), (
        "whatever num_pairs is"
    )
    assert not same(pairs.images[0], pairs.images[1], tolerance=1)
    assert not same(make(pipeline, files, seed=1).images[0], pairs.images[0], tolerance=1)


def test_prompt_or_defect_are_the_same_thing(pipeline, files):
    by_defect = make(pipeline, files)
    by_prompt = make(pipeline, files, defect=None, prompt="a photo of a disc with hole")
    assert same(by_defect.images[0], by_prompt.images[0])
    assert pipeline._text("a photo of a disc with a big hole", None)[1] == "a big hole"
    assert pipeline._text("one hole, seen from above", None)[1] == "hole"


def test_what_is_given_changes_the_pair(pipeline, files):
    for name, modules in pipeline.method.unet.helix.items():
        small.randomise(modules, 0.05, seed=len(name))
    plain = make(pipeline, files).images[0]
    other_reference = Image.fromarray(np.full((40, 40, 3), 200, np.uint8))
    for change in (
        {"reference": other_reference},
        {"raw_mask": "5x5:20"},
        {"control": Image.open(files["sketch"])},
        {"points": [(0.2, 0.9)]},
    ):
        assert not same(make(pipeline, files, **change).images[0], plain, tolerance=0), change


def test_a_sketch_is_filled_and_survives_shrinking():
    drawing = Image.new("L", (256, 256))
    ImageDraw.Draw(drawing).ellipse((64, 64, 192, 192), outline=255, width=3)
    ImageDraw.Draw(drawing).line((8, 8, 8, 120), fill=255, width=3)
    mask = read_drawing(drawing, 32)
    rows, columns = np.ogrid[:32, :32]
    disc = (rows - 15.5) ** 2 + (columns - 15.5) ** 2 <= 7.5**2
    assert mask[disc].all(), "a closed outline is filled"
    assert mask[2:14, 0:2].any(axis=1).all(), "a stroke thinner than a pixel is still one"
    assert mask[:, 26:].sum() == 0


def test_points_are_discs(pipeline):
    drawn = pipeline._control(None, [(0.0, 1.0), (0.5, 0.5)])
    assert drawn[-1, 0] and drawn[16, 16] and drawn.sum() < 15


BAD = {
    "no words": ({"defect": None}, "give a prompt or a defect; this model knows hole, scratch"),
    "grid of another size": ({"raw_mask": "4x4:1"}, "trained with 5x5 cells"),
    "cell outside": ({"raw_mask": "5x5:25"}, "cells from 0 to K\\*K-1"),
    "no raw mask": ({"raw_mask": None}, "give a reference and a raw mask"),
    "no reference": ({"reference": None}, "give a reference and a raw mask"),
    "point outside": ({"points": [(1.5, 0.2)]}, "shares of the sides"),
    "steps": ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
    "option": ({"stepz": 4}, "stepz: Extra inputs are not permitted"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_told(pipeline, files, case):
    changes, message = case
    with pytest.raises(UserError, match=message):
        make(pipeline, files, **changes)


GIVEN = {
    "a raw mask that has no way in": (
        {"annotation_input": "none", "reference": "cells"},
        {"reference": None},
        "annotation_input none",
    ),
    "a reference of no cells": (
        {"reference": "cells"},
        {"raw_mask": None},
        "which cells of the reference are shown",
    ),
    "a reference without DDA": ({"dda_encoder": 0, "dda_decoder": 0}, {}, "no DDA layer"),
    "a control without SSM": (
        {"ssm_encoder": 0, "ssm_decoder": 0},
        {"points": [(0.2, 0.2)]},
        "no SSM layer",
    ),
    "a control after a training without": (
        {"control_drop": 1.0},
        {"points": [(0.2, 0.2)]},
        "without a control",
    ),
    "a prompt after a training without": (
        {"prompt_drop": 1.0},
        {"defect": None, "prompt": "a hole"},
        "without prompts",
    ),
    "a defect beside a prompt": (
        {},
        {"prompt": "a photo of a disc with hole"},
        "what the control is about",
    ),
    "a raw mask of nothing": ({}, {"raw_mask": np.zeros((9, 9), bool)}, "raw mask: marks nothing"),
    "a control of nothing": ({}, {"control": np.zeros((9, 9), np.uint8)}, "control: draws nothing"),
    "a strength from noise": ({}, {"strength": 0.5}, "strength is read with start: reference only"),
    "a prediction for no noise": (
        {},
        {"reference_noise": "predicted"},
        "needs a model trained with `same`, not none",
    ),
}


@pytest.mark.parametrize("case", GIVEN.values(), ids=GIVEN)
def test_what_cannot_act_is_refused(pipeline, files, monkeypatch, case):
    trained, given, message = case
    monkeypatch.setattr(
        pipeline.method, "config", pipeline.method.config.model_copy(update=trained)
    )
    with pytest.raises(UserError, match=message):
        make(pipeline, files, **given)


def test_a_raw_mask_alone_moves_the_pair(tmp_path_factory):
    """It is an input of its own (reading 9): a reference is not needed for it to act."""
    folder = tmp_path_factory.mktemp("alone")
    prepared = small.prepared(folder / "disc")
    model = helixbench.DHDiffPipeline.from_pretrained(
        train(prepared, build_base(prepared, folder), folder, reference="cells"), "cpu"
    )
    small.randomise(model.method.unet.inputs, 0.2)
    pairs = [
        model(defect="hole", raw_mask=cells, steps=2).images[0]
        for cells in ("5x5:6", "5x5:18", None)
    ]
    assert not any(same(pairs[i], pairs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def command(*arguments):
    line = [sys.executable, "-m", "helixbench.cli", "sample", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_from_the_command_line(files, tmp_path):
    given = [
        "--model",
        files["model"],
        "--reference",
        files["good"],
        "--raw-mask",
        "5x5:1,7",
        "--control",
        files["sketch"],
    ]
    given += ["--prompt", "a photo of a disc with hole", "--steps", "2", "-n", "3"]
    done = command(*given, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."}
    assert names == {f"{i:03d}{kind}.png" for i in range(3) for kind in ("", "_mask")} | {
        "overview.png",
        "manifest.json",
    }
    facts = json.loads((tmp_path / "out/manifest.json").read_text())
    assert len(facts["pairs"]) == 3 and facts["raw_mask"] == "5x5:1,7" and facts["control"]
    again = command(*given, "-o", tmp_path / "out")
    assert again.returncode == 2 and again.stderr.endswith("is there already; name a new folder\n")


def test_the_documented_example_runs(files, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs/by_hand.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(files["model"])
    Path("good.png").symlink_to(files["good"])
    exec(code, {})
    assert all(
        Image.open(f"00{i}{kind}.png").size == (small.SIZE, small.SIZE)
        for i in (0, 1)
        for kind in ("", "_mask")
    )


FILES = {
    "a folder that is no model": (
        {"model": "{tmp}"},
        "no dhdiff.json; give the folder of a trained DH-Diff",
    ),
    "a control that is not there": (
        {"control": "{tmp}/no.png"},
        r"no.png: unreadable picture \(No such file",
    ),
    "a raw mask that is not there": (
        {"raw_mask": "5x5"},
        r"5x5: unreadable picture \(No such file",
    ),
    "a point": ({"points": ["0.3"]}, "write x,y as shares"),
    "no pairs": ({"number": 0}, "make at least one pair"),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_bad_files_leave_nothing_behind(files, tmp_path, case):
    changes, message = case
    given = {
        "model": files["model"],
        "out": tmp_path / "out",
        "number": 1,
        "seed": 0,
        "prompt": None,
        "defect": "hole",
        "options": {"steps": 1},
    }
    given |= {"reference": files["good"], "raw_mask": "5x5:1", "control": None, "points": []}
    paths = {
        key: Path(value.format(tmp=tmp_path))
        for key, value in changes.items()
        if key in ("model", "control")
    }
    with pytest.raises(UserError, match=message):
        by_hand.run(**(given | changes | paths))
    assert not (tmp_path / "out").exists()


def test_a_command_without_a_model_says_so(tmp_path):
    done = command("--prompt", "x", "-o", tmp_path / "out")
    assert done.returncode == 2 and "Missing option '--model'" in done.stderr
