"""The program itself, in a process of its own, on good and bad raw data; test_raw_input.py has all
that can be wrong."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from helixbench.datasets.procedural.render import draw
from helixbench.schema import Procedural

VALUES = {"prepare.size": 32, "prepare.split": "half", "prepare.raw_mask_cells": 5}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    draw(
        root, "drawn", "tile", Procedural(size=32, train_good=2, test_good=2, per_defect=2), seed=0
    )
    return root


def prepare(root, out):
    config = root / "slice.json"
    config.write_text(json.dumps(VALUES))
    command = [sys.executable, "-m", "helixbench.cli", "prepare", "drawn", "tile"]
    return subprocess.run(
        [*command, "--config", config, "--raw", root, "--out", out],
        capture_output=True,
        text=True,
        timeout=60,
    )


def truncate(tile):
    path = tile / "test/stain/001.png"
    path.write_bytes(path.read_bytes()[:-400])


CASES = {
    "truncated picture": (truncate, "tile/test/stain/001.png", "copy it again"),
    "100 megapixels": (
        lambda t: Image.new("1", (12_000, 9_000)).save(t / "test/stain/001.png"),
        "tile/test/stain/001.png",
        "scale it down",
    ),
    "no category": (shutil.rmtree, "tile: no such folder", "prepare.datasets.drawn.root"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(case, drawn, tmp_path):
    spoil, named, advice = CASES[case]
    root = tmp_path / "raw"
    shutil.copytree(drawn / "tile", root / "tile")
    spoil(root / "tile")
    done = prepare(root, tmp_path / "out" / "tile")
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done.stderr
    assert named in lines[0] and advice in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_the_unspoilt_data_is_accepted(drawn, tmp_path):
    shutil.copytree(drawn / "tile", tmp_path / "raw/tile")
    done = prepare(tmp_path / "raw", tmp_path / "out/tile")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/tile/manifest.json").is_file()


def test_a_failed_run_leaves_an_earlier_result_alone(drawn, tmp_path):
    shutil.copytree(drawn / "tile", tmp_path / "raw/tile")
    assert prepare(tmp_path / "raw", tmp_path / "out/tile").returncode == 0
    before = (tmp_path / "out/tile/manifest.json").read_bytes()
    truncate(tmp_path / "raw/tile")
    assert prepare(tmp_path / "raw", tmp_path / "out/tile").returncode == 2
    assert (tmp_path / "out/tile/manifest.json").read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tile"]


def test_one_defect_type_is_enough(drawn, tmp_path):
    shutil.copytree(drawn / "tile", tmp_path / "raw/tile")
    for defect in ("hole", "scratch"):
        for folder in ("test", "ground_truth"):
            shutil.rmtree(tmp_path / "raw/tile" / folder / defect)
    done = prepare(tmp_path / "raw", tmp_path / "out/tile")
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "out/tile/split.json").read_text())["defects"]) == ["stain"]
