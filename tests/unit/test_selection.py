"""Which pictures a run uses and who trains: seeds, groups, strata, lists, chosen types, and what is
nearly the same on both sides."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from helixbench.config import Slice, validate
from helixbench.datasets.layout import Layout
from helixbench.datasets.problems import Problems
from helixbench.datasets.procedural.render import draw
from helixbench.errors import UserError
from helixbench.pictures.perceptual import near_duplicates, perceptual_hash
from helixbench.pictures.raw import read_rgb
from helixbench.prepare import importing, split, stage
from helixbench.prepare.selection import Selection
from helixbench.protocol import Protocol
from helixbench.records import GOOD, RawSample
from helixbench.report.protocol import words
from helixbench.schema import Procedural

ROOT = Path("/data")
REAL = Path(os.environ.get("HELIXBENCH_DATA", Path(__file__).parents[3] / "shared/data"))


def raw(defect: str, name: str, root: Path = ROOT, **more) -> RawSample:
    subset = "train" if defect == GOOD else "test"
    return RawSample("d", "c", defect, subset, root / f"c/{defect}/{name}.png", None, **more)


def lots(root: Path = ROOT) -> list[RawSample]:
    """Two defect types, 12 pictures each: 4 lots of 3, of which lot 1 and 2 are of camera A."""
    return [
        raw(defect, f"cam{'AABB'[lot]}_lot{lot}_{i}", root)
        for defect in ("bend", "dent")
        for lot in range(4)
        for i in range(3)
    ]


def sides(selection: Selection, samples, root: Path = ROOT) -> dict[str, str]:
    problems = Problems()
    samples = selection.chosen(samples, root, problems)
    found = selection.roles(samples, root, problems)
    return {f"{s.defect} {s.image.stem}": role for s, role in zip(samples, found, strict=True)}


def test_without_settings_the_split_is_what_it_was():
    assert list(sides(Selection(), lots()).values()) == split.roles(lots(), "half")
    assert Selection().label({"bend"}) == "half"


def test_a_seed_gives_a_random_split_that_is_the_same_at_any_root():
    found = [sides(Selection(seed=seed), lots()) for seed in range(8)]
    assert len({json.dumps(one) for one in found}) == 8
    for one in found:
        by_type = Counter((name.split()[0], role) for name, role in one.items())
        assert set(by_type.values()) == {6}
    moved = Path("/elsewhere/on disk")
    assert sides(Selection(seed=3), lots(moved), moved) == found[3]
    first = [one["bend camA_lot0_0"] for one in found]
    assert set(first) == {"generator", "test"}
    assert Selection("third", seed=3).label(set()) == "third, seed 3"


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_groups_by_a_pattern_stay_on_one_side(seed):
    samples = [
        *lots(),
        raw(GOOD, "camA_lot1_9"),
        raw(GOOD, "camB_lot2_9"),
        raw(GOOD, "camA_lot7_1"),
    ]
    found = sides(Selection(seed=seed, group=r"(lot\d)"), samples)
    of_lot: dict[str, set[str]] = {}
    for name, role in found.items():
        lot = name.split("_")[1]
        of_lot.setdefault(lot, set()).add("test" if role == "test" else "train")
    assert all(len(roles) == 1 for roles in of_lot.values()), of_lot
    assert Counter(found.values())["generator"] == 12
    assert found["good camA_lot7_1"] == "normal"


def test_each_stratum_has_its_share():
    lopsided = [s for s in lots() if s.defect == "bend"] + [
        raw("bend", f"camA_lot9_{i}") for i in range(8)
    ]
    plain = sides(Selection(), lopsided)
    fair = sides(Selection(strata="cam(.)"), lopsided)
    count = lambda found: Counter(name[8] for name, role in found.items() if role == "generator")
    assert count(plain) == {"A": 10} and count(fair) == {"A": 7, "B": 3}
    both = sides(Selection(strata="cam(.)", group=r"(lot\d)"), lots())
    assert count(both) == {"A": 6, "B": 6}
    label = Selection(seed=0, strata="a", group="b").label(set())
    assert label == "half, seed 0, grouped, stratified"


def test_by_list(tmp_path):
    file = tmp_path / "c.txt"
    by_list = Selection("list", listed=str(tmp_path / "{category}.txt"))
    file.write_text("# ours\nc/bend/camA_lot0_1.png\n\ndent/camB_lot3_2\r\n", encoding="utf-8")
    found = sides(by_list, [*lots(), raw(GOOD, "0")])
    assert {name for name, role in found.items() if role == "generator"} == {
        "bend camA_lot0_1",
        "dent camB_lot3_2",
    }
    assert found["good 0"] == "normal" and Counter(found.values())["test"] == 22
    for text, line in {
        "camA_lot0_1": "line 1: 2 pictures are called camA_lot0_1; write its path",
        "bend/x.png": "line 1: no picture is called bend/x.png",
        "good/0": "line 1: good/0 is normal; list defective",
        "bend/camA_lot0_0": "12 pictures only, and none is listed: none of the defect dent is left",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=line):
            sides(by_list, [*lots(), raw(GOOD, "0")])
    file.unlink()
    with pytest.raises(UserError, match="c.txt: No such file or directory; give a text file"):
        sides(by_list, lots())


def test_types_are_chosen():
    samples, problems = [*lots(), raw("crack", "0"), raw(GOOD, "0")], Problems()
    types = lambda selection: {s.defect for s in selection.chosen(samples, ROOT, problems)}
    there = {"bend", "dent", "crack"}
    assert types(Selection(defects=("bend",))) == {"bend", GOOD}
    assert types(Selection(without=("crack",))) == {"bend", "dent", GOOD} and not problems.odd
    assert Selection(without=("crack",)).label(there) == "half, without crack"
    assert Selection(defects=("bend", "dent", "crack")).label(there) == "half"
    assert types(Selection(defects=("bend", "hole"))) == {"bend", GOOD}
    assert problems.odd == ["c: has no defect type hole to choose"]
    with pytest.raises(UserError, match="none of its defect types .bend, crack, dent. is chosen"):
        types(Selection(defects=("hole",)))


def test_columns_of_a_manifest(tmp_path):
    with pytest.raises(
        UserError, match="no manifest with a column lot; add it, or write a pattern"
    ):
        sides(Selection(group="lot"), lots())
    home = tmp_path / "c"
    home.mkdir()
    rows = ["image,mask,defect,split,lot"]
    for i in range(8):
        for name in (f"{i}.png", f"{i}_mask.png"):
            Image.new("L", (8, 8), 9 + i).save(home / name)
        rows.append(f"{i}.png,{i}_mask.png,dent,test,{'abab'[i % 4]}")
    for split_, name in (("train", "n0"), ("test", "n1")):
        Image.new("L", (8, 8)).save(home / f"{name}.png")
        rows.append(f"{name}.png,,good,{split_},")
    (home / "manifest.csv").write_text("\n".join(rows))
    samples = Layout.named("folder").read(tmp_path, "d", "c")
    found = sides(Selection(group="lot"), samples, tmp_path)
    trains = {int(name.split()[1]) % 2 for name, role in found.items() if role == "generator"}
    assert len(trains) == 1, "one of the two lots"


def test_patterns_that_miss_are_odd():
    problems = Problems()
    Selection(group="camA_(lot.)").chosen(lots(), ROOT, problems)
    assert problems.odd == [
        "c: camA_(lot.) matches 12 of 24 paths, and not, e.g., /data/c/bend/camB_lot2_0.png"
    ]


@pytest.mark.parametrize(
    "prepare, own, line",
    [
        ({}, {"group": "(lot"}, "group: is no regular expression"),
        ({}, {"strata": "(?:lot)"}, "strata: has no parentheses around what counts"),
        ({}, {"defects": ["a"], "without": ["a"]}, "a is in defects and in without"),
        ({"split": "literal", "split_seed": 1}, {}, "split_seed is for the splits half and third"),
        ({"split": "list"}, {}, "need each other"),
        ({}, {"generator_list": "a.txt"}, "need each other"),
    ],
)
def test_settings_that_contradict(prepare, own, line):
    import yaml

    values = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    values["prepare"] |= {"use": ["MPDD"], **prepare}
    values["prepare"]["datasets"]["MPDD"] |= own
    with pytest.raises(UserError, match=line):
        validate(values)


def test_the_split_says_in_every_score_how_it_was_made(tmp_path):
    sizes = Procedural(size=32, train_good=4, test_good=2, per_defect=4)
    draw(tmp_path / "raw", "Any", "tile", sizes, seed=0)
    values = {"prepare.size": 32, "prepare.split": "literal", "prepare.raw_mask_cells": 5}
    values["prepare.datasets.Any.without"] = ["stain"]
    out = tmp_path / "out/tile"
    stage.run("Any", "tile", Slice(values), layout="mvtec_ad", raw=tmp_path / "raw", out=out)
    made = json.loads((out / "split.json").read_text())
    assert made["rule"] == "literal, without stain" and made["leaking"]
    assert set(made["defects"]) == {"hole", "scratch"}
    assert "stain" not in (out / "samples.csv").read_text()
    text = words(Protocol("localization", {"split": made["rule"]}))
    assert "literal, without stain split (leaking: its test holds pictures of the gen" in text


# ------------------------------------------------------------------------------------------------
# nearly the same


def test_the_hash_is_of_the_cosine_transform():
    """Against SciPy's, on noise; and the same whatever the size."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 1), np.uint8).repeat(3, 2)
    low = dctn(image[..., 0].astype(float))[:16, :16]
    assert perceptual_hash(image) == np.packbits(low > np.median(low)).tobytes()
    assert perceptual_hash(image.repeat(3, 0).repeat(3, 1)) == perceptual_hash(image)
    assert perceptual_hash(np.full((9, 9, 3), 7, np.uint8)) == b""


def test_near_duplicates_are_found_among_pictures_that_look_alike():
    """10,000 hashes that differ in about 65 bits of 256, as pictures of one product do."""
    rng = np.random.default_rng(1)
    alike = rng.integers(0, 2, 256) ^ (rng.random((10000, 256)) < 0.15)
    for test, bits in ((5000, 0), (6000, 4), (7000, 12), (8000, 16), (9000, 17)):
        alike[test] = alike[test - 5000]
        alike[test, rng.choice(256, bits, replace=False)] ^= 1
    hashes = [np.packbits(row.astype(bool)).tobytes() for row in alike]
    assert near_duplicates(hashes[:5000], hashes[5000:]) == [
        (0, 0, 0),
        (1000, 1000, 4),
        (2000, 2000, 12),
        (3000, 3000, 16),
    ]
    assert near_duplicates([], hashes) == near_duplicates(hashes, []) == []


@pytest.mark.skipif(not (REAL / "mpdd").is_dir(), reason="needs the real data")
def test_a_picture_that_was_saved_anew_is_found_on_the_other_side(tmp_path, capsys):
    plate = tmp_path / "raw/plate"
    for folder in ("train/good", "test/good", "test/defect", "ground_truth/defect"):
        (plate / folder).mkdir(parents=True)
        for file in sorted((REAL / "mpdd/metal_plate" / folder).iterdir())[:8]:
            (plate / folder / file.name).symlink_to(file)
    files = [file.resolve() for file in sorted(plate.rglob("*.png"))]
    for link, file in zip(sorted(plate.rglob("*.png")), files, strict=True):
        link.unlink()
        link.write_bytes(file.read_bytes())
    importing.run("mpdd", tmp_path / "raw")
    assert "nearly the same" not in capsys.readouterr().out
    first = sorted((plate / "train/good").iterdir())[0]
    buffer = io.BytesIO()
    Image.fromarray(read_rgb(first)).save(buffer, "JPEG", quality=60)
    (plate / "test/good/again.jpg").write_bytes(buffer.getvalue())
    importing.run("mpdd", tmp_path / "raw")
    line = next(x for x in capsys.readouterr().out.splitlines() if "nearly the same" in x)
    assert f"1 of 13 test pictures, e.g. {plate}/test/good/again.jpg and {first} (" in line
