"""Pictures of one's own: a tree like MVTec AD's, or any tree with a manifest.csv."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from helixbench.config import Slice
from helixbench.datasets.fingerprint import fingerprint
from helixbench.datasets.layout import Layout
from helixbench.datasets.problems import Problems
from helixbench.datasets.procedural.render import draw
from helixbench.errors import UserError
from helixbench.prepare import stage
from helixbench.prepare.split import roles
from helixbench.records import Sample, read_csv
from helixbench.schema import Procedural

VALUES = {"prepare.size": 32, "prepare.split": "half", "prepare.raw_mask_cells": 5}
FOLDER = Layout.named("folder")
HEADER = "image,mask,defect,split"
ROWS = (
    "Kamera 1/ä.png,,good,train",
    "Kamera 1/b.PNG,,good,train",
    "Kamera 2/ä.png,,good,test",
    "Kamera 1/c.png,masks/c.png,Kratzer tief,test",
    "Kamera 2/c.png,masks/d.png,Kratzer tief,test",
    "Kamera 2/d.png,masks/e.png,Kratzer tief,test",
)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (value, 90, 255 - value)).save(path)


def manifest(folder: Path, rows=ROWS, header=HEADER, encoding="utf-8") -> None:
    """A tree with pictures and masks, and its manifest."""
    for number, row in enumerate(rows):
        cells = dict(zip(header.split(","), row.split(","), strict=True))
        picture(folder / cells["image"], 10 * number)
        if cells["mask"]:
            (folder / cells["mask"]).parent.mkdir(parents=True, exist_ok=True)
            mask = Image.new("L", (40, 30))
            mask.paste(255, (5, 5, 15, 12))
            mask.save(folder / cells["mask"])
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def found(root: Path, category: str) -> list[tuple]:
    samples = FOLDER.read(root, "Mine", category)
    name = lambda path: path and path.relative_to(root).as_posix()
    return [(s.subset, s.defect, name(s.image), name(s.mask)) for s in samples]


EXPECTED = [
    ("test", "Kratzer tief", "bolt/Kamera 1/c.png", "bolt/masks/c.png"),
    ("test", "Kratzer tief", "bolt/Kamera 2/c.png", "bolt/masks/d.png"),
    ("test", "Kratzer tief", "bolt/Kamera 2/d.png", "bolt/masks/e.png"),
    ("test", "good", "bolt/Kamera 2/ä.png", None),
    ("train", "good", "bolt/Kamera 1/b.PNG", None),
    ("train", "good", "bolt/Kamera 1/ä.png", None),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_manifest_in_the_folder_of_the_category(tmp_path, encoding):
    manifest(tmp_path / "bolt", encoding=encoding)
    FOLDER.check(tmp_path, ["bolt"])
    assert FOLDER.categories(tmp_path)[0] == ["bolt"]
    assert found(tmp_path, "bolt") == EXPECTED


def test_a_manifest_at_the_root_serves_all_categories(tmp_path):
    rows = [f"bolt/{row},bolt".replace("masks/", "bolt/masks/") for row in ROWS]
    manifest(tmp_path, rows, f"{HEADER},category")
    manifest(tmp_path / "nut")
    (tmp_path / "manifest.csv").write_text(
        (tmp_path / "manifest.csv").read_text() + "nut/Kamera 1/b.PNG,,good,train,nut\n"
    )
    assert FOLDER.categories(tmp_path)[0] == ["bolt", "nut"]
    assert found(tmp_path, "bolt") == EXPECTED
    (tmp_path / "nut/manifest.csv").unlink()
    with pytest.raises(UserError, match="no normal picture in test"):
        found(tmp_path, "nut")
    with pytest.raises(
        UserError,
        match="manifest.csv: no rows of the category screw; add them or set "
        "prepare.datasets.Mine.root",
    ):
        FOLDER.check(tmp_path, ["screw"], "Mine")


def test_a_manifest_without_categories_is_one(tmp_path):
    manifest(tmp_path)
    assert FOLDER.categories(tmp_path)[0] == ["."]
    assert [row[0] for row in found(tmp_path, "any")] == [row[0] for row in EXPECTED]
    assert found(tmp_path, ".") == found(tmp_path, "any")


def test_a_tree_like_that_of_mvtec_ad(tmp_path):
    draw(
        tmp_path,
        "Mine",
        "tile",
        Procedural(size=32, train_good=2, test_good=2, per_defect=2),
        seed=0,
    )
    (tmp_path / "notes").mkdir()
    assert FOLDER.categories(tmp_path) == (["tile"], [tmp_path / "notes"])
    assert FOLDER.categories(tmp_path / "tile") == (["."], [])
    found = FOLDER.read(tmp_path, "Mine", "tile")
    assert found == Layout.named("mvtec_ad").read(tmp_path, "Mine", "tile")
    with pytest.raises(
        UserError,
        match="nuts: neither manifest.csv nor train/good; put .* or set prepare.datasets.Mine.root",
    ):
        FOLDER.check(tmp_path, ["nuts"], "Mine")


def test_pictures_of_one_name_in_several_folders_are_prepared(tmp_path):
    manifest(tmp_path / "raw/bolt")
    stage.run(
        "Mine", "bolt", Slice(VALUES), layout="folder", raw=tmp_path / "raw", out=tmp_path / "out"
    )
    samples = {s.id: s.role for s in read_csv(tmp_path / "out/samples.csv", Sample)}
    assert samples == {
        "test_Kratzer tief_bolt_Kamera 1_c.png": "generator",
        "test_Kratzer tief_bolt_Kamera 2_c.png": "test",
        "test_Kratzer tief_d": "test",
        "test_good_ä": "test",
        "train_good_b": "normal",
        "train_good_ä": "normal",
    }
    assert all((tmp_path / "out/images" / f"{name}.png").is_file() for name in samples)


def test_fingerprint_follows_the_manifest_and_what_it_lists(tmp_path):
    root, cache = tmp_path / "raw", tmp_path / "cache.json"
    manifest(root)
    version = lambda: fingerprint(root, "any", cache, FOLDER.shared_files(root, "any"))
    first = version()
    names = {
        *(row.split(",")[0] for row in ROWS),
        "masks/c.png",
        "masks/d.png",
        "masks/e.png",
        "manifest.csv",
    }
    assert json.loads(first).keys() == {f"../{name}" for name in names}
    picture(root / "Kamera 3/not listed.png", 1)
    os.utime(root / "manifest.csv")
    assert version() == first
    picture(root / "Kamera 1/ä.png", 200)
    second = version()
    assert second != first
    text = (root / "manifest.csv").read_text()
    (root / "manifest.csv").write_text(text.replace("good,test", "good,train"))
    assert version() != second


def test_collected_problems_are_all_of_them(tmp_path):
    bad = ("../x.png,,good,train", "y.png,,good,trian", "z.png,,Riss,test")
    manifest(tmp_path / "bolt")
    path = tmp_path / "bolt/manifest.csv"
    path.write_text(path.read_text() + "\n".join(bad) + "\n")
    problems = Problems(collect=True)
    assert len(FOLDER.read(tmp_path, "Mine", "bolt", problems)) == len(ROWS)
    assert [line.partition("manifest.csv: ")[2].partition(":")[0] for line in problems.lines] == [
        "row 8",
        "row 9",
        "row 10",
    ]
    with pytest.raises(UserError, match="row 8"):
        FOLDER.read(tmp_path, "Mine", "bolt")


def test_a_column_group_keeps_the_pictures_of_one_object_together(tmp_path):
    """As `helixbench import` writes it of a layout that knows groups."""
    rows = [("train/0.png", "", "good", "train", "")]
    rows += [("test/0.png", "", "good", "test", "")]
    rows += [
        (f"dent/{i}.png", f"mask/{i}.png", "dent", "test", f" part {i % 2} ") for i in range(4)
    ]
    for image, mask, *_ in rows:
        for name in filter(None, (image, mask)):
            (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "c" / name).touch()
    with open(tmp_path / "c/manifest.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("image", "mask", "defect", "split", "group"), *rows])
    found = FOLDER.read(tmp_path, "D", "c")
    dents = [s for s in found if s.defect == "dent"]
    assert [s.group for s in dents] == ["part 0", "part 1"] * 2
    parts = dict(zip((s.image.stem for s in dents), roles(dents, "half"), strict=True))
    assert parts["0"] == parts["2"] != parts["1"] == parts["3"]
