"""`helixbench import`: what it says about good data, in every layout, and all that is wrong with
bad data."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helixbench import cli
from helixbench.datasets.layout import Layout
from helixbench.datasets.procedural.render import draw
from helixbench.datasets.procedural.writers import WRITERS
from helixbench.errors import UserErrors
from helixbench.pictures.outline import RED
from helixbench.prepare import importing
from helixbench.provenance import sha256
from helixbench.schema import Procedural

DOCS = Path(__file__).parents[2] / "docs/data.md"
REAL = Path(os.environ.get("HELIXBENCH_DATA", Path(__file__).parents[3] / "shared/data"))
HEADER = [
    "dataset",
    "category",
    "defect",
    "split",
    "image",
    "mask",
    "width",
    "height",
    "sha256",
    "group",
]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        assert reader.fieldnames == HEADER
        return list(reader)


@pytest.fixture
def raw(tmp_path):
    def make(layout="mvtec_ad", categories=("tile",), **sizes):
        for category in categories:
            sizes = {"size": 32, "train_good": 8, "test_good": 2, "per_defect": 3, **sizes}
            draw(tmp_path / "raw", "Any", category, Procedural(**sizes, layout=layout), seed=0)
        return tmp_path / "raw"

    return make


@pytest.mark.parametrize("layout", WRITERS)
def test_the_manifest_of_every_layout_is_one_of_the_layout_folder(layout, raw, tmp_path, capsys):
    root = raw(layout, ("tile", "weave"))
    importing.run(
        layout, root, out=root / "manifest.csv", report=tmp_path / "sheet.png", dataset="Any"
    )
    printed = capsys.readouterr().out.splitlines()
    rows = rows_of(root / "manifest.csv")
    assert len(rows) == 2 * (10 + 9) and {row["dataset"] for row in rows} == {"Any"}
    assert any(line.startswith(f"pictures: {len(rows)}, masks: 18, ") for line in printed)
    for row in rows:
        assert (row["width"], row["height"]) == ("32", "32") and row["sha256"] == sha256(
            root / row["image"]
        )
        assert (row["mask"] == "") == (row["defect"] == "good") and (
            not row["mask"] or (root / row["mask"]).exists()
        )
    for category in ("tile", "weave"):
        (root / category / "manifest.csv").unlink(missing_ok=True)  # the nearer one would be read
        key = lambda sample: str(sample.image)
        before = (
            sorted(Layout.named(layout).read(root, "Any", category), key=key)
            if layout != "folder"
            else None
        )
        after = sorted(Layout.named("folder").read(root, "Any", category), key=key)
        assert before is None or before == after
        assert len(after) == 19
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (np.asarray(sheet) == RED).all(axis=2).sum() > 500


def test_the_summary(raw, tmp_path, capsys):
    root = raw(categories=("disc", "tile"), per_defect=2)
    Image.open(root / "tile/test/good/000.png").resize((40, 36)).save(
        root / "tile/test/good/000.png"
    )
    importing.run("mvtec_ad", root)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["category", "defect", "train", "test", "masks", "mask", "area", "size"]
    table = {(line[0], line[1]): line[2:] for line in lines[1:10]}
    assert list(table) == [
        *(("disc", defect) for defect in ("good", "bend", "missing_part", "scratch", "stain")),
        *(("tile", defect) for defect in ("good", "hole", "scratch", "stain")),
    ]
    assert table["disc", "good"] == ["8", "2", "0", "32x32"]
    assert table["tile", "good"] == ["8", "2", "0", "2", "sizes,", "32-40", "x", "32-36"]
    assert table["tile", "hole"][:3] == ["0", "2", "2"] and table["tile", "hole"][-1] == "32x32"
    assert (
        " ".join(lines[10])
        == "pictures: 34, masks: 14, defect types: 7, categories: 2, odd things: 7"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "nothing is written unasked"


def test_what_is_odd(raw, capsys):
    root = raw(per_defect=3)
    tile = root / "tile"
    Image.open(tile / "train/good/000.png").save(tile / "train/good/100.png")
    Image.new("L", (32, 32), 255).save(tile / "ground_truth/hole/000_mask.png")
    dot = Image.new("L", (32, 32))
    dot.putpixel((3, 3), 255)
    dot.save(tile / "ground_truth/hole/001_mask.png")
    importing.run("mvtec_ad", root)
    odd = [line for line in capsys.readouterr().out.splitlines() if line.startswith("odd: ")]
    assert odd == [
        f"odd: tile: mask over more than half of the picture: 1 of 20 pictures, e.g. "
        f"{tile}/test/hole/000.png",
        f"odd: tile: mask of fewer than 10 pixels: 1 of 20 pictures, e.g. {tile}/test/hole/001.png",
        f"odd: {tile}/train/good/100.png: the same picture as {tile}/train/good/000.png",
    ]


def test_a_root_that_is_itself_a_category(raw, tmp_path, capsys):
    root = raw()
    importing.run("mvtec_ad", root / "tile", out=root / "tile/manifest.csv")
    rows = rows_of(root / "tile/manifest.csv")
    assert {(row["category"], row["image"].split("/")[0]) for row in rows} == {
        ("tile", "train"),
        ("tile", "test"),
    }
    found = Layout.named("folder").read(root, "Any", "tile")
    assert found == Layout.named("mvtec_ad").read(root, "Any", "tile")
    assert [
        dataclasses.replace(s, category="x")
        for s in Layout.named("folder").read(root / "tile", "Any", "tile")
    ] == [dataclasses.replace(s, category="x") for s in found]


def spoil(root: Path) -> list[str]:
    """Five things wrong in two categories, by the file that each is about."""
    (root / "tile/test/hole/001.png").write_bytes(b"")
    (root / "tile/ground_truth/scratch/002_mask.png").unlink()
    Image.new("L", (32, 32)).save(root / "tile/ground_truth/stain/000_mask.png")
    Image.new("L", (32, 32)).save(root / "disc/ground_truth/bend/009_mask.png")
    Image.open(root / "disc/train/good/001.png").save(
        root / "disc/test/good/001.png", compress_level=0
    )
    return [
        "disc/ground_truth/bend/009_mask.png",
        "disc/test/good/001.png",
        "scratch/002.png",
        "test/hole/001.png",
        "stain/000_mask.png",
    ]


def test_every_problem_has_its_line(raw, tmp_path, monkeypatch, capsys):
    root = raw(categories=("disc", "tile"))
    files = spoil(root)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "helixbench",
            "import",
            "--layout",
            "mvtec_ad",
            str(root),
            "--out",
            str(tmp_path / "m.csv"),
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == len(files) and all(line.startswith("helixbench: ") for line in lines)
    for file, line in zip(files, lines, strict=True):
        assert f"{file}: " in line
    assert not (tmp_path / "m.csv").exists()


def test_fifty_problems_are_enough(raw, tmp_path):
    root = raw(train_good=60)
    for file in (root / "tile/train/good").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(UserErrors) as caught:
        importing.run("mvtec_ad", root, out=tmp_path / "m.csv")
    assert len(caught.value.lines) == 50 and caught.value.lines[-1].endswith(" (and 10 more)")
    assert len(set(caught.value.lines)) == 50 and not (tmp_path / "m.csv").exists()


REAL_SETS = {
    "mvtec_ad": (
        "mvtec_ad/bottle",
        "mvtec_ad",
        292,
        {"broken_large": 20, "broken_small": 22, "contamination": 21, "good": 229},
    ),
    "mpdd": ("mpdd/metal_plate", "mpdd", 151, {"defect": 71, "good": 80}),
    "magnetic_tile": (
        "magnetic_tile/MT_Free",
        "magnetic_tile",
        1340,
        {"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "good": 952, "uneven": 99},
    ),
}


@pytest.mark.parametrize("layout", REAL_SETS)
def test_real_data(layout, tmp_path, capsys):
    needed, root, number, defects = REAL_SETS[layout]
    if not (REAL / needed).is_dir():
        pytest.skip(f"no {needed}; set HELIXBENCH_DATA to its folder")
    importing.run(layout, REAL / root, out=tmp_path / "manifest.csv", report=tmp_path / "sheet.png")
    rows = rows_of(tmp_path / "manifest.csv")
    assert len(rows) == number
    assert {
        d: sum(row["defect"] == d for row in rows) for d in {row["defect"] for row in rows}
    } == defects
    assert all((REAL / root / row["image"]).is_file() for row in rows)
    printed = capsys.readouterr().out
    blocks = re.findall(r"^```\w*\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), flags=re.S | re.M)
    (example,) = (
        block
        for block in blocks
        if block.startswith(f"$ helixbench import --layout {layout} ../shared")
    )
    assert printed.replace(str(REAL), "../shared/data") == example.partition("\n")[2], (
        "the documentation shows what the command prints"
    )
    left_out = [line for line in printed.splitlines() if "left out, its mask" in line]
    assert len(left_out) == (4 if layout == "magnetic_tile" else 0)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000
