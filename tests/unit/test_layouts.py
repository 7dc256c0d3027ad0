"""Raw layouts: the same drawn pictures written as each data set is published, and read back."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helixbench.config import Slice
from helixbench.datasets import layouts
from helixbench.datasets.fingerprint import fingerprint
from helixbench.datasets.procedural import draw
from helixbench.errors import UserError
from helixbench.prepare import stage
from helixbench.prepare.pictures import read_mask, read_rgb
from helixbench.records import Sample, read_csv
from helixbench.schema import Procedural

REAL = Path(os.environ.get("HELIXBENCH_DATA", Path(__file__).parents[3] / "shared/data"))
VALUES = {"prepare.size": 48, "prepare.split": "half", "prepare.raw_mask_cells": 5}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    draw(root, "drawn", "disc", Procedural(size=48, train_good=5, test_good=2, per_defect=3), seed=0)
    return root / "disc"


def save(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).save(target)


def as_mvtec(drawn: Path, root: Path) -> None:
    shutil.copytree(drawn, root / "disc")


def as_btad(drawn: Path, root: Path) -> None:
    """Normals as PNG, defects as BMP, all of one kind; masks of two suffixes."""
    for subset in ("train", "test"):
        for file in (drawn / subset / "good").iterdir():
            save(file, root / f"disc/{subset}/ok/{file.name}")
    for number, file in enumerate(sorted((drawn / "test").glob("[!g]*/*.png"))):
        save(file, root / f"disc/test/ko/{number:04}.bmp")
        mask = drawn / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
        save(mask, root / f"disc/ground_truth/ko/{number:04}{('.png', '.bmp')[number % 2]}")


def as_loco(drawn: Path, root: Path) -> None:
    """Each mask cut into two files with values of their own."""
    shutil.copytree(drawn / "train", root / "disc/train")
    shutil.copytree(drawn / "test", root / "disc/test")
    for file in (drawn / "ground_truth").glob("*/*.png"):
        mask = np.asarray(Image.open(file)) > 0
        half = np.arange(mask.shape[1]) < np.flatnonzero(mask.any(axis=0)).mean()
        folder = root / "disc/ground_truth" / file.parent.name / file.stem.removesuffix("_mask")
        folder.mkdir(parents=True)
        for number, part in enumerate((mask & half, mask & ~half)):
            Image.fromarray(part.astype(np.uint8) * (200 + number)).save(folder / f"{number:03}.png")


def as_visa(drawn: Path, root: Path) -> None:
    """Pictures as JPEG of best quality, mask values 1 to 3."""
    rows = []
    for subset, good in (("train", True), ("test", True), ("test", False)):
        for number, file in enumerate(sorted((drawn / subset).glob("good/*.png" if good else "[!g]*/*.png"))):
            kind = "Normal" if good else "Anomaly"
            image = f"disc/Data/Images/{kind}/{subset}{number:03}.JPG"
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).save(root / image, quality=100, subsampling=0, format="JPEG")
            mask = "" if good else f"disc/Data/Masks/Anomaly/{subset}{number:03}.png"
            if mask:
                (root / mask).parent.mkdir(parents=True, exist_ok=True)
                values = (
                    np.asarray(Image.open(drawn / "ground_truth" / file.parent.name / f"{file.stem}_mask.png")) // 255 * (1 + number % 3)
                )
                Image.fromarray(values).save(root / mask)
            rows.append(("disc", subset, "normal" if good else "anomaly", image, mask))
    (root / "split_csv").mkdir()
    with open(root / "split_csv/1cls.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("object", "split", "label", "image", "mask"), *rows, ("other", "train", "normal", "x.JPG", "")])


def as_magnetic_tile(drawn: Path, root: Path) -> None:
    """All normals in one folder with empty masks; one defect with an empty mask, as published."""
    normals = [*sorted((drawn / "train/good").iterdir()), *sorted((drawn / "test/good").iterdir())]
    for number, file in enumerate(normals):
        folder = root / "disc/MT_Free/Imgs"
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(folder / f"exp{number}.jpg", quality=100, subsampling=0)
        Image.new("L", (48, 48)).save(folder / f"exp{number}.png")
    for file in sorted((drawn / "test").glob("[!g]*/*.png")):
        folder = root / f"disc/MT_{file.parent.name.capitalize()}/Imgs"
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(folder / f"exp{file.stem}.jpg", quality=100, subsampling=0)
        save(drawn / "ground_truth" / file.parent.name / f"{file.stem}_mask.png", folder / f"exp{file.stem}.png")
    Image.new("RGB", (48, 48)).save(root / "disc/MT_Stain/Imgs/odd.jpg")
    Image.new("L", (48, 48)).save(root / "disc/MT_Stain/Imgs/odd.png")


WRITERS = {
    "mvtec_ad": as_mvtec,
    "mpdd": as_mvtec,
    "btad": as_btad,
    "mvtec_loco": as_loco,
    "visa": as_visa,
    "magnetic_tile": as_magnetic_tile,
}
ONE_KIND = {"btad": "ko", "visa": "anomaly"}


def test_every_layout_is_tested():
    assert WRITERS.keys() == layouts.READERS.keys() - {layouts.DRAWN}


@pytest.mark.parametrize("layout", WRITERS)
def test_the_same_pictures_come_back(layout, drawn, tmp_path):
    WRITERS[layout](drawn, tmp_path)
    layouts.check(layout, tmp_path, ["disc"])
    found = layouts.read(layout, tmp_path, "Data", "disc")
    expected = layouts.read("mvtec_ad", drawn.parent, "Data", "disc")
    kinds = sorted(ONE_KIND.get(layout, s.defect) for s in expected if s.mask)
    assert sorted(s.defect for s in found if s.mask) == kinds
    normals = {subset: sum(s.subset == subset and s.mask is None for s in found) for subset in ("train", "test")}
    assert normals == ({"train": 6, "test": 1} if layout == "magnetic_tile" else {"train": 5, "test": 2})
    # In the order of their names the defects are the same pictures with the same masks.
    ours, theirs = ([s for s in samples if s.mask] for samples in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        difference = np.abs(read_rgb(one.image).astype(int) - read_rgb(other.image)).mean()
        assert difference < 2, "JPEG of best quality at most"
        assert (read_mask(one.mask) == read_mask(other.mask)).all()
    assert found == sorted(found, key=lambda s: (s.subset, s.defect, s.image.name))


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_can_be_prepared(layout, drawn, tmp_path):
    WRITERS[layout](drawn, tmp_path / "raw")
    stage.run("Data", "disc", Slice(VALUES), layout=layout, raw=tmp_path / "raw", out=tmp_path / "out")
    samples = read_csv(tmp_path / "out/samples.csv", Sample)
    assert {s.role for s in samples} == {"normal", "generator", "test"}
    assert all(bool(s.mask) == (s.defect != "good") for s in samples)


def test_a_changed_split_of_visa_is_a_change_of_its_categories(drawn, tmp_path):
    as_visa(drawn, tmp_path)
    shared = layouts.shared_files("visa", tmp_path)
    before = fingerprint(tmp_path, "disc", tmp_path / "cache.json", shared)
    assert "../split_csv/1cls.csv" in json.loads(before)
    text = shared[0].read_text()
    shared[0].write_text(text.replace("disc,test,normal", "disc,train,normal", 1))
    assert fingerprint(tmp_path, "disc", tmp_path / "cache.json", shared) != before
    assert layouts.shared_files("mvtec_ad", tmp_path) == []


def test_the_documented_layout_works(drawn, tmp_path):
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    module = {}
    exec(code, module)
    for folder, files in (("ok", drawn.glob("train/good/*")), ("bad", drawn.glob("test/bend/*"))):
        for file in files:
            save(file, tmp_path / "disc" / folder / file.name)
    for file in drawn.glob("ground_truth/bend/*"):
        save(file, tmp_path / "disc/bad/masks" / file.name.replace("_mask", ""))
    found = module["read"](tmp_path, "Ours", "disc")
    assert [(s.subset, s.defect) for s in found] == [("test", "bad")] * 3 + [("test", "good")] + [("train", "good")] * 4
    assert all(read_mask(s.mask).any() for s in found if s.mask)
    (tmp_path / "disc/bad/masks/000.png").unlink()
    with pytest.raises(UserError, match="000.png: no mask bad/masks/000.png"):
        module["read"](tmp_path, "Ours", "disc")


def test_every_layout_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in layouts.READERS)


def test_a_damaged_mask_of_a_tile_is_one_line(drawn, tmp_path):
    as_magnetic_tile(drawn, tmp_path / "raw")
    (tmp_path / "raw/disc/MT_Bend/Imgs/exp000.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="exp000.png: not a picture"):
        stage.run("Data", "disc", Slice(VALUES), layout="magnetic_tile", raw=tmp_path / "raw", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def remove(pattern):
    return lambda root: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in [next(iter(sorted(root.glob(pattern))))]]


def edit(file, old, new):
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new, 1))


BAD = {
    "btad without ok": ("btad", remove("disc/train/ok"), r"disc/train/ok: no such folder; download BTAD"),
    "btad mask missing": ("btad", remove("disc/ground_truth/ko/*"), r"0000.bmp: its mask .* is missing"),
    "loco masks missing": ("mvtec_loco", remove("disc/ground_truth/bend/000"), r"bend/000.png: no masks in .*ground_truth/bend/000"),
    "loco picture missing": ("mvtec_loco", remove("disc/test/bend/000.png"), r"ground_truth/bend/000: masks without a picture"),
    "loco empty folder": ("mvtec_loco", remove("disc/ground_truth/bend/000/*"), None),
    "visa without split": ("visa", remove("split_csv/1cls.csv"), r"1cls.csv: not there; download VisA"),
    "visa column": ("visa", edit("split_csv/1cls.csv", "label", "lable"), r"1cls.csv: no column label"),
    "visa split": ("visa", edit("split_csv/1cls.csv", "disc,train", "disc,trian"), r"row 2: split 'trian'"),
    "visa outside": ("visa", edit("split_csv/1cls.csv", "disc/Data/Images", "../../etc"), r"leaves .*; paths in a manifest"),
    "visa picture missing": ("visa", remove("disc/Data/Images/Normal/*"), r"image of row \d+ of .* is missing"),
    "visa mask missing": ("visa", remove("disc/Data/Masks/Anomaly/*"), r"mask of row \d+ of .* is missing"),
    "tile without normals": ("magnetic_tile", remove("disc/MT_Free"), r"MT_Free/Imgs: no such folder; unpack the magnetic tile set"),
    "tile mask missing": ("magnetic_tile", remove("disc/MT_Bend/Imgs/*.png"), r"its mask exp000.png is missing"),
    "unknown layout": ("mvtec", lambda root: None, r"mvtec: no such raw layout; known: mvtec_ad"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_raw_data_is_one_line(case, drawn, tmp_path):
    layout, damage, message = case
    WRITERS.get(layout, as_mvtec)(drawn, tmp_path)
    damage(tmp_path)
    if message is None:  # one of two masks is left: nothing is wrong
        assert layouts.read(layout, tmp_path, "Data", "disc")
        return
    with pytest.raises(UserError, match=message) as caught:
        layouts.read(layout, tmp_path, "Data", "disc")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (REAL / "mpdd/metal_plate").is_dir(), reason="no MPDD metal_plate; set HELIXBENCH_DATA to the folder of mpdd/")
def test_the_real_metal_plate():
    found = layouts.read("mpdd", REAL / "mpdd", "MPDD", "metal_plate")
    counts = {(s.subset, s.defect): 0 for s in found}
    for sample in found:
        counts[sample.subset, sample.defect] += 1
    assert counts == {("train", "good"): 54, ("test", "good"): 26, ("test", "defect"): 71}
    assert all(read_mask(s.mask).any() for s in found if s.mask)


@pytest.mark.skipif(not (REAL / "magnetic_tile").is_dir(), reason="no magnetic tiles; set HELIXBENCH_DATA to the folder of magnetic_tile/")
def test_the_real_magnetic_tiles():
    found = layouts.read("magnetic_tile", REAL, "MTD", "magnetic_tile")
    counts = {}
    for sample in found:
        counts[sample.subset, sample.defect] = counts.get((sample.subset, sample.defect), 0) + 1
    assert counts == {
        ("train", "good"): 762,
        ("test", "good"): 190,
        ("test", "blowhole"): 115,
        ("test", "break"): 85,
        ("test", "crack"): 57,
        ("test", "fray"): 32,
        ("test", "uneven"): 99,
    }
