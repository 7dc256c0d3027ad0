"""docs/own_method.md is true: its file and its overlay work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import small
import yaml
from PIL import Image
from test_generate import generate

from helixbench import config
from helixbench.errors import UserError
from helixbench.generate import stage
from helixbench.methods.method import method_class
from helixbench.records import Pair, read_csv

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = dict(
    re.findall(
        r"```(python|yaml)\n(.*?)```",
        (ROOT / "docs/own_method.md").read_text(encoding="utf-8"),
        flags=re.S,
    )
)


@pytest.fixture
def overlay(tmp_path, monkeypatch) -> dict:
    """The document's file, importable, and its overlay."""
    (tmp_path / "my_stain.py").write_text(BLOCKS["python"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return yaml.safe_load(BLOCKS["yaml"])


def validated(tmp_path, overlay: dict) -> config.Config:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    return config.load(ROOT / "params.yaml", file)


def test_the_example_makes_pairs(overlay, tmp_path):
    loaded = validated(tmp_path, overlay)
    assert loaded.train.methods["stain"].label == "Stain" and not hasattr(
        loaded.train.methods["stain"], "optim"
    )
    loaded = loaded.model_copy(update={"generate": generate(pairs=3)})
    part = config.Slice(
        config.slice_config(
            loaded, ["run.seed", "generate", "train.methods", "train.methods.stain"]
        )
    )
    assert part["train.methods.stain"].strength == 0.5, (
        "its settings come through the slice of a job"
    )
    assert part["train.methods"]["stain"] == part["train.methods.stain"]
    prepared = small.prepared(tmp_path / "disc")
    stage.run(
        "stain",
        "Data",
        "disc",
        part,
        prepared=prepared,
        model=None,
        state=tmp_path / "s",
        out=tmp_path / "o",
    )
    pairs = read_csv(tmp_path / "o/manifest.csv", Pair)
    assert len(pairs) == 6
    for pair in pairs:
        image, mask = (
            np.asarray(Image.open(tmp_path / "o" / name)) for name in (pair.image, pair.mask)
        )
        assert np.ptp(image[mask > 0].mean(-1)) < np.ptp(image[mask == 0].mean(-1)), (
            "half a stain halves what it covers"
        )
        assert pair.method == "stain"


def test_the_whole_configuration_is_written_with_its_settings(overlay, tmp_path, recwarn):
    dumped = validated(tmp_path, overlay).model_dump(mode="json")
    assert dumped["train"]["methods"]["stain"] == {
        "kind": "my_stain:Stain",
        "label": "Stain",
        "strength": 0.5,
    }
    assert not [warning for warning in recwarn if "serializ" in str(warning.message).lower()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strenght": 0.5}, r"train\.methods\.stain\.strenght: no such key"),
        (
            {"strength": 2},
            r"train\.methods\.stain\.strength: Input should be less than or equal to 1",
        ),
        ({"kind": "my_stain:Stane"}, r"train\.methods\.stain: my_stain:Stane cannot be imported"),
        (
            {"kind": "my_stane:Stain"},
            r"train\.methods\.stain: my_stane:Stain cannot be imported .* PYTHONPATH",
        ),
        (
            {"kind": "my_stain:Method"},
            r"train\.methods\.stain: my_stain:Method needs a class attribute Config",
        ),
        ({"kind": "stain"}, r"train\.methods\.stain\.kind: "),
        ({"label": "DH-Diff"}, "two methods have one label"),
    ],
)
def test_a_mistake_is_one_line(overlay, tmp_path, change, message):
    overlay["train"]["methods"]["stain"] |= change
    with pytest.raises(UserError, match=message) as caught:
        validated(tmp_path, overlay)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_one_line(overlay, tmp_path):
    (tmp_path / "my_broken.py").write_text("class Stain(:\n", encoding="utf-8")
    overlay["train"]["methods"]["stain"]["kind"] = "my_broken:Stain"
    with pytest.raises(
        UserError, match=r"stain: my_broken:Stain cannot be imported \(SyntaxError"
    ) as caught:
        validated(tmp_path, overlay)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_method_is_one_line(overlay, tmp_path):
    (tmp_path / "no_method.py").write_text(
        "import my_stain\n\nclass Thing:\n    Config = my_stain.Stain.Config\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match="no_method:Thing: not a subclass"):
        method_class("no_method:Thing")
