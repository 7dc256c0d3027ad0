"""Raw layouts: the same drawn pictures written as each data set is published, and read back."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import helixbench
from helixbench.config import Slice
from helixbench.datasets import magnetic_tile
from helixbench.datasets.fingerprint import fingerprint
from helixbench.datasets.layout import Layout
from helixbench.datasets.procedural.render import draw
from helixbench.datasets.procedural.writers import WRITERS, Drawing, write
from helixbench.errors import UserError
from helixbench.pictures.raw import read_mask, read_rgb
from helixbench.prepare import stage
from helixbench.prepare.split import roles, told_apart
from helixbench.records import RawSample, Sample, read_csv
from helixbench.schema import Dataset, Procedural

REAL = Path(os.environ.get("HELIXBENCH_DATA", Path(__file__).parents[3] / "shared/data"))
VALUES = {"prepare.size": 48, "prepare.split": "half", "prepare.raw_mask_cells": 5}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    draw(
        root, "drawn", "disc", Procedural(size=48, train_good=8, test_good=2, per_defect=3), seed=0
    )
    return root / "disc"


def save(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).save(target)


def written(drawn: Path, root: Path, layout: str, category: str = "disc") -> None:
    """The drawn pictures in another layout."""
    drawings = []
    for s in Layout.named("mvtec_ad").read(drawn.parent, "Data", "disc"):
        mask = None if s.mask is None else read_mask(s.mask)
        drawings.append(Drawing(s.subset, s.defect, int(s.image.stem), read_rgb(s.image), mask))
    drawings.sort(key=lambda d: (d.subset != "train", d.defect, d.number))
    write(layout, root, category, drawings)


ONE_KIND = {"btad": lambda defect: "ko", "visa": lambda defect: "anomaly"}
ONE_KIND["mvtec_loco"] = lambda defect: (
    "logical_anomalies" if defect == "missing_part" else "structural_anomalies"
)
LOSSY = ("visa", "magnetic_tile")


def test_every_layout_can_be_written():
    assert set(WRITERS) == {name for name, one in Layout.every().items() if not one.drawn}


@pytest.mark.parametrize("layout", WRITERS)
def test_the_same_pictures_come_back(layout, drawn, tmp_path):
    written(drawn, tmp_path, layout)
    Layout.named(layout).check(tmp_path, ["disc"])
    assert Layout.named(layout).categories(tmp_path)[0] == ["disc"]
    found = Layout.named(layout).read(tmp_path, "Data", "disc")
    expected = Layout.named("mvtec_ad").read(drawn.parent, "Data", "disc")
    kind = ONE_KIND.get(layout, lambda defect: defect)
    counts = lambda samples, kind: Counter(
        (s.subset, s.defect if s.mask is None else kind(s.defect)) for s in samples
    )
    assert counts(found, lambda defect: defect) == counts(expected, kind)
    # Sorted by kind the pictures are the same with the same masks: exactly, but for JPEG of best
    # quality, and grey where it is.
    ours = sorted(found, key=lambda s: (s.subset, s.defect))
    theirs = sorted(
        expected, key=lambda s: (s.subset, s.defect if s.mask is None else kind(s.defect))
    )
    for one, other in zip(ours, theirs, strict=True):
        original = read_rgb(other.image)
        if layout == "magnetic_tile":
            original = np.asarray(Image.fromarray(original).convert("L"))[..., None]
        assert np.abs(read_rgb(one.image).astype(int) - original).max() <= (
            12 if layout in LOSSY else 0
        )
        assert (one.mask is None) == (other.mask is None)
        assert one.mask is None or (read_mask(one.mask) == read_mask(other.mask)).all()
    assert found == sorted(found, key=lambda s: (s.subset, s.defect, s.image.name))


def test_layouts_are_as_their_authors_publish_them(drawn, tmp_path):
    """What makes each of them hard to read is there."""
    for layout in WRITERS:
        written(drawn, tmp_path / layout, layout)
    files = {
        layout: [path for path in (tmp_path / layout).rglob("*") if path.is_file()]
        for layout in WRITERS
    }
    suffixes = lambda layout, part: {path.suffix for path in files[layout] if part in path.parts}
    values = lambda paths: set(np.unique([np.asarray(Image.open(path)) for path in paths]))
    assert suffixes("btad", "ko") == {".bmp", ".png"} and suffixes("btad", "ground_truth") == {
        ".bmp",
        ".png",
    }
    assert suffixes("visa", "Images") == {".JPG"} and values(
        (tmp_path / "visa/disc/Data/Masks/Anomaly").iterdir()
    ) == {0, 1, 2, 3}
    assert (
        len(list((tmp_path / "mvtec_loco/disc/ground_truth/structural_anomalies/000").iterdir()))
        == 2
    )
    config = json.loads((tmp_path / "mvtec_loco/disc/defects_config.json").read_text())
    assert {row["pixel_value"] for row in config} == values(
        (tmp_path / "mvtec_loco").rglob("ground_truth/*/*/*.png")
    ) - {0}
    assert len(values((tmp_path / "magnetic_tile").rglob("MT_Bend/Imgs/*.png"))) > 20
    assert values((tmp_path / "magnetic_tile").rglob("MT_Free/Imgs/*.png")) == {0}
    assert any(" " in path.name for path in files["folder"]) and any(
        not str(path.relative_to(tmp_path)).isascii() for path in files["folder"]
    )


def test_categories_share_a_split_of_visa(tmp_path):
    sizes = Procedural(size=32, train_good=2, test_good=2, per_defect=2, layout="visa")
    for category in ("tile", "disc", "tile"):
        draw(tmp_path, "Data", category, sizes, seed=0)
    with open(tmp_path / "split_csv/1cls.csv", newline="") as handle:
        rows = [row["object"] for row in csv.DictReader(handle)]
    assert Counter(rows) == {"disc": 2 + 2 + 8, "tile": 2 + 2 + 6}
    assert Layout.named("visa").categories(tmp_path) == (["disc", "tile"], [tmp_path / "split_csv"])


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_can_be_prepared(layout, drawn, tmp_path):
    written(drawn, tmp_path / "raw", layout)
    stage.run(
        "Data", "disc", Slice(VALUES), layout=layout, raw=tmp_path / "raw", out=tmp_path / "out"
    )
    samples = read_csv(tmp_path / "out/samples.csv", Sample)
    assert {s.role for s in samples} == {"normal", "generator", "test"}
    assert all(bool(s.mask) == (s.defect != "good") for s in samples)


def test_a_changed_split_of_visa_is_a_change_of_its_categories(drawn, tmp_path):
    written(drawn, tmp_path, "visa")
    shared = Layout.named("visa").shared_files(tmp_path, "disc")
    before = fingerprint(tmp_path, "disc", tmp_path / "cache.json", shared)
    assert "../split_csv/1cls.csv" in json.loads(before)
    text = shared[0].read_text()
    shared[0].write_text(text.replace("disc,test,normal", "disc,train,normal", 1))
    assert fingerprint(tmp_path, "disc", tmp_path / "cache.json", shared) != before
    assert Layout.named("mvtec_ad").shared_files(tmp_path, "disc") == []


def test_a_layout_of_ones_own_is_one_file(drawn, tmp_path):
    """The documented one, put into a copy of the package, is known to it and can be prepared."""
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    package = tmp_path / "copy/helixbench"
    shutil.copytree(Path(helixbench.__file__).parent, package)
    (package / "datasets/ours.py").write_text(code, encoding="utf-8")
    raw = tmp_path / "raw"
    for folder, files in (("ok", drawn.glob("train/good/*")), ("bad", drawn.glob("test/bend/*"))):
        for file in files:
            save(file, raw / "disc" / folder / file.name)
    for file in drawn.glob("ground_truth/bend/*"):
        save(file, raw / "disc/bad/masks" / file.name.replace("_mask", ""))
    (tmp_path / "slice.json").write_text(json.dumps(VALUES))
    prepare = "prepare Ours disc --layout ours --config slice.json --raw raw --out out"

    def call(arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "helixbench.cli", *arguments.split()],
            env={**os.environ, "PYTHONPATH": str(tmp_path / "copy")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    done = call(prepare)
    assert done.returncode == 0, done.stderr
    samples = read_csv(tmp_path / "out/samples.csv", Sample)
    assert Counter((s.defect, s.role) for s in samples) == {
        ("good", "normal"): 6,
        ("good", "test"): 2,
        ("bad", "generator"): 1,
        ("bad", "test"): 2,
    }
    (raw / "disc/bad/masks/000.png").unlink()
    done = call(prepare)
    assert done.returncode == 2 and "000.png: no mask bad/masks/000.png" in done.stderr
    shutil.rmtree(raw / "disc/ok")
    done = call(prepare)
    assert done.returncode == 2 and "disc/ok: no such folder; download" in done.stderr


def test_the_configuration_knows_the_layouts_that_are_there():
    known = {"root": "data", "categories": ["disc"]}
    for name in Layout.every():
        assert Dataset(layout=name, procedural=Procedural(), **known).layout == name
    with pytest.raises(ValueError, match="nowhere: no such raw layout; known: btad"):
        Dataset(layout="nowhere", **known)
    with pytest.raises(ValueError, match="procedural is drawn in a layout, it is none itself"):
        Procedural(layout="procedural")
    with pytest.raises(ValueError, match="nut cannot be drawn; there are capsule, disc"):
        Dataset(layout="procedural", categories=["nut"], procedural=Procedural())


def test_every_layout_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in Layout.every())


def test_a_damaged_mask_of_a_tile_is_one_line(drawn, tmp_path):
    written(drawn, tmp_path / "raw", "magnetic_tile")
    (tmp_path / "raw/disc/MT_Bend/Imgs/exp0000.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="exp0000.png: not a picture"):
        stage.run(
            "Data",
            "disc",
            Slice(VALUES),
            layout="magnetic_tile",
            raw=tmp_path / "raw",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def remove(pattern, number=1):
    return lambda root: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in sorted(root.glob(pattern))[:number]
    ]


def edit(file, old, new):
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new, 1))


KIND = "structural_anomalies"
BAD = {
    "btad without ok": (
        "btad",
        remove("disc/train/ok"),
        r"disc/train/ok: no such folder; download BTAD",
    ),
    "btad mask missing": (
        "btad",
        remove("disc/ground_truth/ko/*"),
        r"0000.bmp: its mask .* is missing",
    ),
    "loco masks missing": (
        "mvtec_loco",
        remove("disc/ground_truth/structural_anomalies/000"),
        r"000.png: no masks in .*structural_anomalies/000",
    ),
    "loco picture missing": (
        "mvtec_loco",
        remove("disc/test/structural_anomalies/000.png"),
        r"ground_truth/structural_anomalies/000: masks without a picture",
    ),
    "loco empty folder": (
        "mvtec_loco",
        remove("disc/ground_truth/structural_anomalies/000/*"),
        None,
    ),
    "visa without split": (
        "visa",
        remove("split_csv/1cls.csv"),
        r"1cls.csv: not there; download VisA",
    ),
    "visa column": (
        "visa",
        edit("split_csv/1cls.csv", "label", "lable"),
        r"1cls.csv: column label is missing",
    ),
    "visa split": (
        "visa",
        edit("split_csv/1cls.csv", "disc,train", "disc,trian"),
        r"row \d+: split 'trian'",
    ),
    "visa outside": (
        "visa",
        edit("split_csv/1cls.csv", "disc/Data/Images", "../../etc"),
        r"leaves .*; paths in a manifest",
    ),
    "visa picture missing": (
        "visa",
        remove("disc/Data/Images/Normal/*"),
        r"row \d+: its image .* is missing",
    ),
    "visa mask missing": (
        "visa",
        remove("disc/Data/Masks/Anomaly/*"),
        r"row \d+: its mask .* is missing",
    ),
    "tile without normals": (
        "magnetic_tile",
        remove("disc/MT_Free"),
        r"MT_Free/Imgs: no such folder; download the magnetic tile set",
    ),
    "tile mask missing": (
        "magnetic_tile",
        remove("disc/MT_Bend/Imgs/*.png"),
        r"its mask exp0000.png is missing",
    ),
    "unknown layout": (
        "mvtec",
        lambda root: None,
        r"mvtec: no such raw layout; known: btad, folder",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_raw_data_is_one_line(case, drawn, tmp_path):
    layout, damage, message = case
    written(drawn, tmp_path, layout if layout in WRITERS else "mvtec_ad")
    damage(tmp_path)
    if message is None:  # one of two masks is left: nothing is wrong
        assert Layout.named(layout).read(tmp_path, "Data", "disc")
        return
    with pytest.raises(UserError, match=message) as caught:
        Layout.named(layout).read(tmp_path, "Data", "disc")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not (REAL / "mpdd/metal_plate").is_dir(),
    reason="no MPDD metal_plate; set HELIXBENCH_DATA to the folder of mpdd/",
)
def test_the_real_metal_plate():
    found = Layout.named("mpdd").read(REAL / "mpdd", "MPDD", "metal_plate")
    counts = {(s.subset, s.defect): 0 for s in found}
    for sample in found:
        counts[sample.subset, sample.defect] += 1
    assert counts == {("train", "good"): 54, ("test", "good"): 26, ("test", "defect"): 71}
    assert all(read_mask(s.mask).any() for s in found if s.mask)


@pytest.mark.skipif(
    not (REAL / "magnetic_tile").is_dir(),
    reason="no magnetic tiles; set HELIXBENCH_DATA to the folder of magnetic_tile/",
)
def test_the_real_magnetic_tiles():
    found = Layout.named("magnetic_tile").read(REAL, "MTD", "magnetic_tile")
    counts = {}
    for sample in found:
        counts[sample.subset, sample.defect] = counts.get((sample.subset, sample.defect), 0) + 1
    assert counts == {
        ("train", "good"): 761,
        ("test", "good"): 191,
        ("test", "blowhole"): 115,
        ("test", "break"): 85,
        ("test", "crack"): 57,
        ("test", "fray"): 32,
        ("test", "uneven"): 99,
    }


@pytest.mark.skipif(
    not (REAL / "magnetic_tile").is_dir(),
    reason="no magnetic tiles; set HELIXBENCH_DATA to the folder of magnetic_tile/",
)
@pytest.mark.parametrize("rule", ["half", "third"])
def test_real_tiles_and_exposures_are_split_alike(rule):
    """Sorted by name, exposure 6 was tested only, and mean brightness told defects apart (0.64)."""
    found = Layout.named("magnetic_tile").read(REAL, "MTD", "magnetic_tile")
    parts = roles(found, rule)
    assert told_apart(found, parts) == []
    sides = {}
    for sample, role in zip(found, parts, strict=True):
        sides.setdefault(sample.group, set()).add(role == "test")
    assert len(sides) == 214 and all(len(both) == 1 for both in sides.values())
    exposures = {}
    for sample, role in zip(found, parts, strict=True):
        exposures.setdefault((sample.mask is None, role), []).append(sample.image.name[:4])
    assert set(exposures) == {
        (True, "normal"),
        (True, "test"),
        (False, "generator"),
        (False, "test"),
    }
    for names in exposures.values():
        shares = [names.count(f"exp{e}") / len(names) for e in range(1, 7)]
        assert max(shares) - min(shares) < 0.04, shares
    wanted = {"half": 1 / 2, "third": 1 / 3}[rule]
    for defect in {s.defect for s in found if s.mask}:
        own = [role for s, role in zip(found, parts, strict=True) if s.defect == defect]
        # The largest tile of a type has 15 of its 57 pictures.
        assert abs(own.count("generator") / len(own) - wanted) < 0.12
    tests = [s for s, role in zip(found, parts, strict=True) if role == "test"]
    grey = [np.asarray(Image.open(s.image).convert("L")).mean() for s in tests]
    assert abs(roc_auc_score([s.mask is not None for s in tests], grey) - 0.5) < 0.04


def test_frames_of_one_tile_are_one_group():
    """Six exposures that follow one another, begun anywhere; two tiles side by side; other
    names."""
    a = [
        ("crack", f"exp{e}_num_{frame}")
        for e, frame in zip((4, 5, 6, 1, 2, 3), range(100, 220, 20), strict=True)
    ]
    b = [("good", f"exp{e}_num_{700 + 20 * e}") for e in range(1, 7)]
    beside = [("break", f"exp{e}_num_{705 + 20 * e}") for e in range(1, 7)]
    late = [("good", "exp3_num_9000")]
    groups = magnetic_tile.tiles([*beside, *late, *b, *a, ("good", "exp0007"), ("good", "other")])
    assert [set(groups[one] for one in tile) for tile in (a, b, beside, late)] == [
        {"crack_100"},
        {"good_720"},
        {"break_725"},
        {"good_9000"},
    ]
    assert len(groups) == 19, "names of another kind have no group"


def test_a_tile_pictured_again_is_the_same_group():
    names = [
        ("good", f"exp{e}_num_{start + 10 * e - 10}")
        for start in (53011, 65001)
        for e in range(1, 7)
    ]
    assert set(magnetic_tile.tiles(names).values()) == {"good_53011"}


def test_exposures_of_drawn_tiles_are_on_both_sides():
    """Names of the reported case: exp<e>_num_<i>, of which the sorted half has e <= 3 only."""
    names = [("crack", f"exp{e}_num_{i}") for e in range(1, 7) for i in range(8)]
    groups = magnetic_tile.tiles(names)
    raw = [
        RawSample("d", "c", kind, "test", Path(f"/r/{name}.jpg"), Path("/m"), group)
        for kind, name in names
        for group in [groups[kind, name]]
    ]
    for rule, number in (("half", 24), ("third", 18)):
        first = [
            s.image.name[:4]
            for s, role in zip(raw, roles(raw, rule), strict=True)
            if role == "generator"
        ]
        assert Counter(first) == {f"exp{e}": number // 6 for e in range(1, 7)}
