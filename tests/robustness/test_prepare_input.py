"""Bad raw data: exit code 2, one line naming the file and what to do, and nothing half-written."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helixbench.datasets.procedural import draw
from helixbench.schema import Procedural

VALUES = {"prepare.size": 32, "prepare.split": "half", "prepare.raw_mask_cells": 5}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    draw(root, "drawn", "tile", Procedural(size=32, train_good=2, test_good=2, per_defect=2), seed=0)
    return root


def prepare(root, out):
    config = root / "slice.json"
    config.write_text(json.dumps(VALUES))
    command = [sys.executable, "-m", "helixbench.cli", "prepare", "drawn", "tile"]
    return subprocess.run([*command, "--config", config, "--raw", root, "--out", out], capture_output=True, text=True, timeout=60)


def truncate(tile):
    path = tile / "test/stain/001.png"
    path.write_bytes(path.read_bytes()[:-400])


def white(path, size=(32, 32)):
    Image.fromarray(np.full(size, 255, np.uint8)).save(path)


def only_one(tile):
    for path in ("test/stain/001.png", "ground_truth/stain/001_mask.png"):
        (tile / path).unlink()


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def saved_anew(tile):
    """The same pixels as another file: its bytes differ, so that only a comparison of content finds it."""
    source, copy = tile / "train/good/001.png", tile / "test/good/000.png"
    Image.open(source).save(copy, compress_level=0)
    assert source.read_bytes() != copy.read_bytes()


CASES = {
    "missing mask": (lambda t: (t / "ground_truth/hole/001_mask.png").unlink(), "tile/ground_truth/hole/001_mask.png", "add the mask"),
    "orphan mask": (lambda t: white(t / "ground_truth/hole/007_mask.png"), "tile/ground_truth/hole/007_mask.png", "remove the mask"),
    "truncated picture": (truncate, "tile/test/stain/001.png", "copy it again"),
    "text called .png": (lambda t: (t / "train/good/000.png").write_text("hello"), "tile/train/good/000.png", "not a picture; replace it"),
    "zero bytes": (lambda t: (t / "test/good/001.png").write_bytes(b""), "tile/test/good/001.png", "empty file"),
    "text as mask": (
        lambda t: (t / "ground_truth/hole/000_mask.png").write_text("x"),
        "tile/ground_truth/hole/000_mask.png",
        "not a picture",
    ),
    "mask of another size": (lambda t: white(t / "ground_truth/hole/000_mask.png", (16, 32)), "000_mask.png", "export the mask"),
    "empty mask": (
        lambda t: Image.new("L", (32, 32)).save(t / "ground_truth/hole/000_mask.png"),
        "tile/ground_truth/hole/000_mask.png",
        "mark the defect",
    ),
    "no normals": (lambda t: empty(t / "train/good"), "tile/train/good: no pictures", "put normal pictures there"),
    "empty defect folder": (lambda t: empty(t / "test/hole"), "tile/test/hole: no pictures", "remove the folder"),
    "no category": (shutil.rmtree, "tile: no such folder", "prepare.datasets.drawn.root"),
    "one picture of a defect": (only_one, "tile/test/stain: 1 picture only", "add pictures"),
    "copy in train and test": (
        lambda t: shutil.copy(t / "test/hole/000.png", t / "test/hole/001.png"),
        "tile/test/hole/001.png: the same picture as",
        "remove one",
    ),
    "saved anew in train and test": (saved_anew, "tile/test/good/000.png: the same picture as", "train/good/001.png"),
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
