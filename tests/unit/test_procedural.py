import csv

import numpy as np
import pytest
from PIL import Image

from helixbench.datasets.layout import Layout
from helixbench.datasets.procedural import DEFECTS, render
from helixbench.datasets.procedural.defects import VISIBLE, changed_region
from helixbench.datasets.procedural.render import draw, picture
from helixbench.errors import UserError
from helixbench.provenance import sha256, sha256_tree
from helixbench.records import GOOD
from helixbench.schema import Procedural

SIZES = Procedural(size=48, train_good=3, test_good=2, per_defect=2)
KINDS = [(category, defect) for category, defects in DEFECTS.items() for defect in defects]


@pytest.mark.parametrize(("category", "defect"), KINDS)
@pytest.mark.parametrize("size", [32, 48, 97])
def test_the_mask_is_where_the_picture_changed(category, defect, size):
    for number in range(2):
        image, clean, mask = picture("drawn", category, "test", defect, number, size, seed=5)
        assert image.shape == clean.shape == (size, size, 3) and image.dtype == np.uint8
        difference = np.abs(image.astype(int) - clean).max(axis=2)
        assert difference[~mask].max() <= 2
        assert (difference[mask] > VISIBLE).mean() >= 0.5
        assert difference[mask].mean() > 2 * VISIBLE
        assert 0.005 < mask.mean() < 0.3


def test_a_region_is_closed_and_free_of_specks():
    before = np.full((64, 64, 3), 100, np.uint8)
    after = before.copy()
    after[10:30, 10:30, 1] += 50
    after[18:22, 18:22] = 100  # a hole
    after[12:28, 25] = 100  # a gap
    after[50, 50] = 255  # a speck
    after[40:60, 5:20] += 4  # too little to see
    expected = np.zeros((64, 64), bool)
    expected[10:30, 10:30] = True
    assert (changed_region(before, after, "stain") == expected).all()
    ringed = np.zeros((64, 64), bool)
    ringed[9:31, 9:31] = True
    assert (changed_region(before, after, "missing_part") == ringed).all()


@pytest.mark.parametrize("category", DEFECTS)
def test_normals_vary_but_little(category):
    pictures = [
        picture("drawn", category, "train", GOOD, i, 48, seed=0)[0].astype(float) for i in range(4)
    ]
    assert all(np.abs(a - b).mean() > 1 for i, a in enumerate(pictures) for b in pictures[:i])
    means = [p.mean() for p in pictures]
    assert max(means) - min(means) < 25
    assert 40 < np.mean(means) < 230


def test_what_a_picture_depends_on():
    first = picture("drawn", "disc", "test", "bend", 0, 48, seed=3)[0]
    assert np.array_equal(first, picture("drawn", "disc", "test", "bend", 0, 48, seed=3)[0])
    for other in (
        ("other", "bend", 0, 3),
        ("drawn", "scratch", 0, 3),
        ("drawn", "bend", 1, 3),
        ("drawn", "bend", 0, 4),
    ):
        assert not np.array_equal(
            first, picture(other[0], "disc", "test", other[1], other[2], 48, seed=other[3])[0]
        )


def test_draw_writes_the_layout_and_its_index(tmp_path):
    draw(tmp_path / "a", "drawn", "capsule", SIZES, seed=0)
    samples = Layout.named("procedural").read(tmp_path / "a", "drawn", "capsule")
    counts = {}
    for s in samples:
        counts[s.subset, s.defect] = counts.get((s.subset, s.defect), 0) + 1
    assert counts == {
        ("train", GOOD): 3,
        ("test", GOOD): 2,
        **{("test", d): 2 for d in DEFECTS["capsule"]},
    }
    for s in samples:
        if s.mask:
            assert set(np.unique(np.asarray(Image.open(s.mask)))) == {0, 255}
    with open(tmp_path / "a/capsule.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["path"] for row in rows} == {
        f"capsule/{p}" for p in sha256_tree(tmp_path / "a/capsule")
    }
    assert all(sha256(tmp_path / "a" / row["path"]) == row["sha256"] for row in rows)


def test_draw_repeats_itself_in_any_order_and_leaves_nothing_stale(tmp_path):
    for category in ("weave", "tile"):
        draw(tmp_path / "a", "drawn", category, SIZES, seed=0)
    draw(tmp_path / "b", "drawn", "tile", SIZES, seed=1)
    (tmp_path / "b/tile/train/good/stale.png").write_bytes(b"")
    for category in ("tile", "weave"):
        draw(tmp_path / "b", "drawn", category, SIZES, seed=0)
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")


def test_an_interrupted_drawing_leaves_no_index(tmp_path, monkeypatch):
    draw(tmp_path, "drawn", "tile", SIZES, seed=0)
    monkeypatch.setattr(render, "picture", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(tmp_path, "drawn", "tile", SIZES, seed=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tile"]


def test_unknown_category(tmp_path):
    with pytest.raises(
        UserError,
        match="^spoon: no such procedural category; known: disc, capsule, plate, weave, tile$",
    ):
        draw(tmp_path, "drawn", "spoon", SIZES, seed=0)
    assert not list(tmp_path.iterdir())
