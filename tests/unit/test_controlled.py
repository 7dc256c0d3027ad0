"""Figure 1: pairs under point, detailed and raw-mask control."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small
from PIL import Image
from test_training import build_base, train

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.generate import controlled
from helixbench.schema import Generate

CONFIG = Slice({"generate": Generate(sampling=small.sampling()).model_dump(), "run.seed": 0})


@pytest.fixture(scope="module", params=["background", "cells"])
def files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure")
    prepared = small.prepared(folder / "disc")
    model = train(prepared, build_base(prepared, folder), folder, reference=request.param)
    return {"prepared": prepared, "model": model}


def test_the_middle_is_in_the_mask():
    ring = np.zeros((9, 9), bool)
    ring[[0, 8]] = ring[:, [0, 8]] = True
    assert ring[controlled.middle_of(ring)]
    box = np.zeros((9, 9), bool)
    box[2:5, 4:7] = True
    assert controlled.middle_of(box) == (3, 5)


def test_the_figure_says_what_was_given_and_is_the_same_again(files, tmp_path):
    for name in ("a", "b"):
        controlled.run(CONFIG, **files, out=tmp_path / name / "figure.png")
    given = json.loads((tmp_path / "a/figure.json").read_text())["rows"]
    assert [row["defect"] for row in given] == ["hole", "scratch"]
    assert all(row["raw_mask"].startswith("5x5:") and 0 <= min(row["point"]) for row in given)
    with Image.open(tmp_path / "a/figure.png") as picture:
        assert picture.width == 1432
    assert (tmp_path / "a/figure.pdf").stat().st_size > 1000
    for suffix in ("png", "json"):
        assert (tmp_path / f"a/figure.{suffix}").read_bytes() == (
            tmp_path / f"b/figure.{suffix}"
        ).read_bytes()


def test_the_three_controls_get_their_drawings(files, tmp_path, monkeypatch):
    asked, real = [], controlled.DHDiffPipeline.__call__

    def call(self, *words, **options):
        asked.append(options)
        return real(self, *words, **options)

    monkeypatch.setattr(controlled.DHDiffPipeline, "__call__", call)
    controlled.run(CONFIG, **files, out=tmp_path / "figure.png")
    point, detailed, raw = asked[:3]
    assert len(point["points"]) == 1 and "control" not in point
    assert 0 < (detailed["control"] > 0).sum() < (raw["control"] > 0).sum()
    assert ((detailed["control"] > 0) <= (raw["control"] > 0)).all()
    assert point["raw_mask"] == detailed["raw_mask"] == raw["raw_mask"]
    assert point["seed"] == detailed["seed"] == raw["seed"] != asked[3]["seed"]


def test_a_model_of_another_size_is_one_line(files, tmp_path):
    other = small.prepared(tmp_path / "other", size=64)
    with pytest.raises(UserError, match="trained at 32 pixel"):
        controlled.run(CONFIG, model=files["model"], prepared=other, out=tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
