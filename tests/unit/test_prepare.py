import dataclasses
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helixbench.config import Slice
from helixbench.datasets.problems import Problems
from helixbench.datasets.procedural.render import draw
from helixbench.detect.held_out import HeldOut
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.pictures.prepared import bilinear_file, read_samples
from helixbench.pictures.raw import bilinear_mask, read_mask, read_rgb, resize_mask
from helixbench.pictures.raw_mask import cell_edges, cells_to_mask, raw_mask_cells, reference_crop
from helixbench.prepare import stage
from helixbench.prepare.progress import Progress
from helixbench.prepare.split import (
    calibrating,
    check_leaks,
    generator_part,
    roles,
    split_record,
    told_apart,
)
from helixbench.provenance import MARK, sha256, sha256_tree
from helixbench.records import GOOD, LEAKING, RawSample, Sample, parse_cells, read_csv
from helixbench.schema import Procedural

DATA = Path(os.environ.get("HELIXBENCH_DATA") or Path(__file__).parents[2].parent / "shared/data")
VALUES = {"prepare.size": 48, "prepare.split": "half", "prepare.raw_mask_cells": 5}


# ------------------------------------------------------------------------------------------------
# raw masks, references


@given(st.integers(1, 9), st.integers(9, 70), st.integers(9, 70), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_cells_of_a_mask(k, height, width, random):
    mask = np.zeros((height, width), bool)
    for _ in range(random.randrange(4)):
        mask[random.randrange(height), random.randrange(width)] = True
    cells = raw_mask_cells(mask, k)
    covered = cells_to_mask(k, cells, (height, width))
    assert not (mask & ~covered).any()
    assert raw_mask_cells(covered, k) == cells
    assert len(cells) <= mask.sum()
    assert bool(cells) == mask.any()


def test_cells_are_row_major_and_tile_the_picture():
    mask = np.zeros((50, 50), bool)
    mask[12, 31] = True
    assert raw_mask_cells(mask, 5) == (8,)
    assert (
        cells_to_mask(5, (8,), 50)[10:20, 30:40].all() and cells_to_mask(5, (8,), 50).sum() == 100
    )
    assert (
        sum(cells_to_mask(5, (c,), 256).astype(int) for c in range(25)).tolist()
        == np.ones((256, 256), int).tolist()
    )
    edges = cell_edges(256, 5)
    assert edges == [0, 51, 102, 154, 205, 256] and [256 - e for e in reversed(edges)] == edges


def test_reference_crops():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    cells = cells_to_mask(4, (5, 6), 40)
    kept = reference_crop(image, cells, "cells")
    assert (kept[cells] == image[cells]).all() and (kept[~cells] == 128).all()
    rest = reference_crop(image, cells, "background")
    assert (rest[cells] == 128).all() and (rest[~cells] == image[~cells]).all()
    tight = reference_crop(image, cells, "tight")
    assert tight.shape == image.shape and tight.dtype == np.uint8
    expected = Image.fromarray(image[10:20, 10:30]).resize((40, 40), Image.Resampling.LANCZOS)
    assert (tight == np.asarray(expected)).all()
    nothing = np.zeros((40, 40), bool)
    assert (reference_crop(image, nothing, "cells") == 128).all() and (
        reference_crop(image, nothing, "tight") == 128
    ).all()
    assert (reference_crop(image, nothing, "background") == image).all()


# ------------------------------------------------------------------------------------------------
# split, leaks


def raw(defect, name, subset="test"):
    return RawSample(
        "d",
        "c",
        defect,
        subset,
        Path(f"/r/c/{subset}/{defect}/{name}.png"),
        None if defect == GOOD else Path("/m"),
    )


def test_half_split_takes_the_first_half_of_the_sorted_files():
    assert generator_part(["b", "e", "a", "d", "c"], "half") == ["a", "b"]
    samples = [
        raw("dent", "2"),
        raw("dent", "0"),
        raw("dent", "1"),
        raw(GOOD, "0"),
        raw(GOOD, "0", "train"),
    ]
    assert roles(samples, "half") == ["test", "generator", "test", "test", "normal"]


def test_half_of_one_is_nothing():
    with pytest.raises(UserError, match="/r/c/test/dent: 1 picture only, and half of 1 is 0"):
        roles([raw("dent", "0"), raw(GOOD, "0", "train")], "half")


def test_third_and_literal():
    names = [f"{i}" for i in range(8)]
    assert generator_part(names, "third") == ["0", "1"] and generator_part(names, "literal") == [
        "0",
        "1",
        "2",
        "3",
    ]
    samples = [*(raw("dent", name) for name in "012"), raw(GOOD, "0"), raw(GOOD, "0", "train")]
    assert roles(samples, "third") == ["generator", "test", "test", "test", "normal"]
    assert roles(samples, "literal") == ["both", "test", "test", "test", "normal"]
    with pytest.raises(UserError, match="2 pictures only, and a third of 2 is 0"):
        roles([raw("dent", "0"), raw("dent", "1"), raw(GOOD, "0", "train")], "third")


@pytest.mark.parametrize(
    "n, trains, both", [(3, 1, 0), (8, 2, 0), (9, 3, 0), (12, 4, 0), (27, 9, 0)]
)
def test_the_rivals_count_one_picture_more(n, trains, both):
    """AnomalyDiffusion's loop always, DualAnoDiff's script unless floor(n/3) is a multiple of 3;
    both test from floor(n/3) on."""
    names = [f"{i:02d}" for i in range(n)]
    samples = [*(raw("dent", name) for name in names), raw(GOOD, "0"), raw(GOOD, "0", "train")]
    assert [roles(samples, "third").count(role) for role in ("generator", "both", "test")] == [
        trains,
        both,
        n - trains + 1,
    ]
    found = roles(samples, "third_anomalydiffusion")
    assert [found.count(role) for role in ("generator", "both", "test")] == [trains, 1, n - trains]
    assert (
        found[trains] == "both"
        and generator_part(names, "third_anomalydiffusion") == names[: trains + 1]
    )
    found = roles(samples, "third_dualanodiff")
    extra = int(trains % 3 != 0)
    assert [found.count(role) for role in ("generator", "both", "test")] == [
        trains,
        extra,
        n - trains - extra + 1,
    ]


def grouped(defect, name, group, subset="test"):
    return dataclasses.replace(raw(defect, name, subset), group=group)


@given(
    st.lists(
        st.tuples(st.sampled_from(["dent", "hole"]), st.integers(1, 7)), min_size=6, max_size=30
    ),
    st.sampled_from(["half", "third"]),
)
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole_and_the_share_is_the_rules(sizes, rule):
    samples = [
        grouped(d, f"{n:02d}_{i}", f"{n:02d}")
        for n, (d, size) in enumerate(sizes)
        for i in range(size)
    ]
    samples += [grouped(GOOD, f"{n}", f"{n:02d}", "train") for n in range(len(sizes))]
    parts = roles(samples, rule, Problems(collect=True))
    sides = {}
    for sample, role in zip(samples, parts, strict=True):
        sides.setdefault(sample.group, set()).add(role == "test")
    assert all(len(both) == 1 for both in sides.values())
    for defect in ("dent", "hole"):
        own = [role for s, role in zip(samples, parts, strict=True) if s.defect == defect]
        part = {"half": 2, "third": 3}[rule]
        assert abs(own.count("generator") - len(own) / part) <= 7


def test_groups_that_cannot_be_split():
    one = [grouped("dent", str(i), "a") for i in range(6)]
    with pytest.raises(
        UserError,
        match="dent: 6 pictures only, of 1 object, which stay together: none of the defect dent",
    ):
        roles(one, "half")
    normals = [grouped(GOOD, "0", "x", "train"), grouped(GOOD, "1", "x")]
    with pytest.raises(UserError, match="/good/1.png: its group x is in training and in test"):
        roles([raw("dent", "0"), raw("dent", "1"), *normals], "half")


def told(train, test):
    samples = [raw("dent", name) for name in (*train, *test)]
    return told_apart(samples, ["generator"] * len(train) + ["test"] * len(test))


@pytest.mark.parametrize(
    "pattern, values",
    [
        ("exp{}_num_7{}", "exp1, exp2 against exp3, exp4"),
        ("kos0{}_Part{}", "kos01, kos02 against kos03, kos04"),
        ("audiojack_000_NG_C{}_2{}", "C1, C2 against C3, C4"),
        ("2024013{}_12000{}", "20240131, 20240132 against 20240133, 20240134"),
        ("IMG2024013{}12000{}", "IMG20240131, IMG20240132 against IMG20240133, IMG20240134"),
        ("{}{}", None),
        ("{1}_{0}", "1, 2 against 3, 4"),
        ("part {}{}", None),
    ],
)
def test_names_that_tell_the_sides_apart(pattern, values):
    """Values 1 and 2 train, 3 and 4 test, five pictures each; a running number tells nothing."""
    name = pattern.format
    sides = [[name(group, i) for group in groups for i in range(5)] for groups in ((1, 2), (3, 4))]
    lines = told(*sides)
    assert len(lines) == (values is not None)
    if values:
        assert lines[0].startswith(
            f"c: names of dent tell training from test: {values}; if that is a camera"
        )
    mixed = [[one for i, one in enumerate(sides[0] + sides[1]) if i % 2 == k] for k in (0, 1)]
    assert told(*mixed) == []


def test_names_that_tell_sides_apart_are_noted_by_prepare(tmp_path):
    draw(
        tmp_path / "raw",
        "drawn",
        "tile",
        Procedural(size=32, train_good=8, test_good=4, per_defect=4),
        seed=0,
    )
    for n, file in enumerate(sorted((tmp_path / "raw/tile").glob("*/good/*.png"))):
        lot = 2 if file.parts[-3] == "test" else 1
        file.rename(file.with_name(f"lot{lot}_{n:03}.png"))
    stage.run(
        "drawn",
        "tile",
        Slice(VALUES),
        layout="mvtec_ad",
        raw=tmp_path / "raw",
        out=tmp_path / "tile",
    )
    (line,) = json.loads((tmp_path / "tile/manifest.json").read_text())["odd"]
    assert line.startswith(
        "tile: names of good tell training from test: lot1 against lot2; if that is"
    )


def test_literal_leaks_its_own_pictures_and_no_others():
    leaking = [
        ("g.png", "normal", "1"),
        ("b.png", "both", "2"),
        ("c.png", "both", "2"),
        ("t.png", "test", "3"),
    ]
    assert check_leaks(leaking) == 3
    for bad in (("x.png", "both", "1"), ("x.png", "test", "2"), ("x.png", "test", "1")):
        with pytest.raises(UserError, match="the same picture as"):
            check_leaks([*leaking, bad])
    members = [("x0", "dent", "both"), ("x1", "dent", "test"), ("g0", GOOD, "normal")]
    record = split_record("literal", 5, "d", "c", members)
    assert record["leaking"] and record["defects"]["dent"] == {
        "generator": ["x0"],
        "test": ["x0", "x1"],
    }
    assert "leaking" not in split_record("half", 5, "d", "c", members[1:])


@pytest.mark.parametrize("role", ["normal", "generator"])
def test_leak_names_both_files(role):
    good = [
        ("a.png", "normal", "1"),
        ("b.png", "generator", "2"),
        ("c.png", "test", "3"),
        ("d.png", "test", "3"),
        ("e.png", "normal", "1"),
    ]
    assert check_leaks(good) == 3
    with pytest.raises(UserError, match="^z.png: the same picture as y.png"):
        check_leaks([*good, ("y.png", role, "9"), ("z.png", "test", "9")])


def test_split_hash_depends_on_the_members_alone():
    members = [
        ("x0", "dent", "generator"),
        ("x1", "dent", "test"),
        ("g0", GOOD, "normal"),
        ("g1", GOOD, "test"),
    ]
    record = split_record("half", 5, "d", "c", members)
    assert record["defects"] == {"dent": {"generator": ["x0"], "test": ["x1"]}} and record[
        "normal"
    ] == ["g0"]
    assert record["good"] == {"test": ["g1"]}
    assert split_record("half", 5, "d", "c", members[::-1]) == record
    moved = [("x0", "dent", "test"), ("x1", "dent", "generator"), *members[2:]]
    assert split_record("half", 5, "d", "c", moved)["sha256"] != record["sha256"]


# ------------------------------------------------------------------------------------------------
# pictures


def scene():
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:15, 5:20] = (200, 100, 50)
    return image


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def test_read_rgb_of_every_mode(tmp_path):
    image = scene()
    colour = Image.fromarray(image)
    assert (read_rgb(saved(tmp_path / "a.png", colour)) == image).all()
    assert (read_rgb(saved(tmp_path / "b.png", colour.quantize(4))) == image).all()
    rgba = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    assert (read_rgb(saved(tmp_path / "c.png", Image.fromarray(rgba))) == image).all()
    rgba[5:15, 5:10, 3] = 0
    assert (read_rgb(saved(tmp_path / "d.png", Image.fromarray(rgba)))[5:15, 5:10] == 0).all()
    grey = image[..., 0]
    assert (read_rgb(saved(tmp_path / "e.png", Image.fromarray(grey))) == grey[..., None]).all()
    assert (
        read_rgb(saved(tmp_path / "f.png", Image.fromarray(grey.astype(np.uint16) * 257)))
        == grey[..., None]
    ).all()
    assert (
        read_rgb(saved(tmp_path / "g.png", Image.fromarray(grey > 0)))
        == (grey > 0)[..., None] * 255
    ).all()
    read = read_rgb(saved(tmp_path / "h.jpg", colour.convert("CMYK"), quality=95))
    assert read.shape == image.shape and np.abs(read.astype(int) - image).mean() < 12


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    path = saved(tmp_path / "a.jpg", Image.fromarray(scene()), exif=exif, quality=95)
    upright = read_rgb(path)
    assert upright.shape == (30, 20, 3)
    assert np.abs(upright.astype(int) - np.rot90(scene(), -1)).mean() < 12


BOX = np.zeros((20, 30), np.uint8)
BOX[5:15, 5:20] = 1


def coloured_labels():
    picture = Image.fromarray(BOX * 3, mode=None)
    picture = picture.convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 64, 0, 0] + [0] * (252 * 3))
    return picture


def test_colours_are_kept_where_transparency_means_nothing(tmp_path):
    """An alpha channel that is 0 everywhere, as some tools write it; white keyed as transparent."""
    colours = np.random.default_rng(1).integers(0, 256, (8, 9, 3), np.uint8)
    unused = Image.fromarray(np.dstack([colours, np.zeros((8, 9), np.uint8)]))
    assert (read_rgb(saved(tmp_path / "a.png", unused)) == colours).all()
    grey = colours[..., 0] | 1
    grey[0, 0] = 255
    Image.fromarray(grey).save(tmp_path / "keyed.png", transparency=255)
    assert (read_rgb(tmp_path / "keyed.png") == grey[..., None]).all()


def labelled(*boxes: tuple[int, int, int, int, object], channels: int = 0) -> np.ndarray:
    """Boxes (y, x, height, width, value) on black, later ones on top."""
    array = np.zeros((48, 64, channels) if channels else (48, 64), np.uint8)
    for y, x, height, width, value in boxes:
        array[y : y + height, x : x + width] = value
    return array


def test_all_labels_count_also_where_they_straddle_half_of_the_range(tmp_path):
    """Labels 85 and 255; colours; a border of 255 around 1, as VOC has it."""
    boxes = ((4, 4, 16, 16), (30, 10, 14, 30))
    area = 16 * 16 + 14 * 30
    grey = labelled((*boxes[0], 85), (*boxes[1], 255))
    colour = labelled((*boxes[0], (64, 0, 0)), (*boxes[1], (0, 64, 128)), channels=3)
    border = labelled((9, 19, 22, 26, 255), (10, 20, 20, 24, 1))
    masks = [saved(tmp_path / f"{i}.png", Image.fromarray(a)) for i, a in enumerate((grey, colour))]
    assert [read_mask(mask).sum() for mask in masks] == [area, area]
    assert read_mask(saved(tmp_path / "b.png", Image.fromarray(border))).sum() == 20 * 24
    scratch = labelled((*boxes[0], 85), (40, 5, 2, 50, 255))
    assert read_mask(saved(tmp_path / "s.png", Image.fromarray(scratch))).sum() == 16 * 16 + 100


def test_antialiased_edges_and_lossy_files_are_cut_at_half(tmp_path):
    disc = np.hypot(*np.mgrid[-240:240, -320:320]) < 150
    small = Image.fromarray(disc.astype(np.uint8) * 255).resize((64, 48), Image.Resampling.LANCZOS)
    right = np.asarray(small) > 127
    assert (read_mask(saved(tmp_path / "edges.png", small)) == right).all()
    grown = small.resize((256, 192), Image.Resampling.NEAREST)
    assert (read_mask(saved(tmp_path / "grown.png", grown)) == (np.asarray(grown) > 127)).all()
    for value in (100, 255):
        box = Image.fromarray(labelled((10, 20, 20, 24, value)))
        found = read_mask(saved(tmp_path / f"{value}.jpg", box))
        assert abs(int(found.sum()) - 20 * 24) <= 24


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(BOX * 255),
        Image.fromarray(BOX),  # 0 and 1
        Image.fromarray(BOX * 4),  # labels
        Image.fromarray(BOX.astype(bool)),
        Image.fromarray(BOX.astype(np.uint16) * 65535),
        Image.fromarray(BOX.astype(np.uint16) * 255),
        Image.fromarray(np.dstack([BOX * 255] * 3)),
        Image.fromarray(np.dstack([BOX * 255, BOX * 0, BOX * 0])),  # painted red
        Image.fromarray(
            np.dstack([BOX * 0 + 255] * 3 + [BOX * 255])
        ),  # painted on a transparent layer
        Image.fromarray(BOX * 255).convert("P"),
        coloured_labels(),
    ],
    ids=[
        "grey",
        "zero-one",
        "labels",
        "1-bit",
        "16-bit",
        "8-in-16-bit",
        "rgb",
        "red",
        "layer",
        "grey palette",
        "colour palette",
    ],
)
def test_read_mask_of_every_mode(tmp_path, picture):
    assert (read_mask(saved(tmp_path / "m.png", picture)) == BOX.astype(bool)).all()


def test_antialiased_masks_are_cut_at_half(tmp_path):
    path = saved(
        tmp_path / "m.png", Image.fromarray(np.array([[0, 1, 100, 127, 128, 200, 255]], np.uint8))
    )
    assert read_mask(path).tolist() == [[False, False, False, False, True, True, True]]


def test_mask_of_another_size(tmp_path):
    path = saved(tmp_path / "m.png", Image.fromarray(BOX))
    assert read_mask(path, (20, 30)).any()
    with pytest.raises(UserError, match="m.png: mask is 30x20 pixels but its picture is 20x30"):
        read_mask(path, (30, 20))


def test_resized_masks_keep_area_and_never_vanish():
    mask = np.zeros((900, 900), bool)
    mask[100:400, 200:600] = True
    small = resize_mask(mask, 256)
    assert small.dtype == bool and abs(small.mean() - mask.mean()) < 0.002
    thin = np.zeros((900, 700), bool)
    thin[450, 100:650] = True
    assert not (
        np.asarray(Image.fromarray(thin.astype(np.float32)).resize((64, 64), Image.Resampling.BOX))
        >= 0.5
    ).any()
    small = resize_mask(thin, 64)
    assert small[32, 10:59].all() and small.sum() < 60
    assert not resize_mask(np.zeros((90, 90), bool), 64).any()


@given(st.integers(2, 60), st.integers(2, 60), st.data())
@settings(max_examples=40, deadline=None)
def test_a_single_pixel_survives_any_resize(height, width, data):
    mask = np.zeros((height, width), bool)
    mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    assert resize_mask(mask, 16).any()


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=60, deadline=None)
def test_garbage_is_one_line(tmp_path_factory, content, signed):
    path = tmp_path_factory.mktemp("garbage") / "a.png"
    path.write_bytes((b"\x89PNG\r\n\x1a\n" if signed else b"") + content)
    with pytest.raises(UserError) as caught:
        read_rgb(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------
# stage


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    draw(
        root, "drawn", "disc", Procedural(size=64, train_good=3, test_good=2, per_defect=3), seed=0
    )
    return root


@pytest.fixture(scope="module")
def out(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "disc"
    stage.run("drawn", "disc", Slice(VALUES), layout="procedural", raw=drawn, out=folder)
    return folder


def test_samples_and_files_agree(out, drawn):
    samples = read_csv(out / "samples.csv", Sample)
    assert [s.id for s in samples] == sorted(s.id for s in samples)
    named = {"samples.csv", "split.json", "sheet.png", "manifest.json", MARK}
    for s in samples:
        assert s.sha256 == sha256(drawn / s.source)
        bilinear = bilinear_file(s.mask) if s.mask else ""
        named |= {
            name
            for name in (s.image, s.mask, bilinear, s.reference_cells, s.reference_tight)
            if name
        }
        image = Image.open(out / s.image)
        assert image.mode == "RGB" and image.size == (48, 48)
        assert (
            (s.defect == GOOD)
            == (s.mask == "")
            == (s.raw_mask == "")
            == (s.reference_cells == "")
            == (s.reference_tight == "")
        )
        if s.mask:
            mask = np.asarray(Image.open(out / s.mask))
            assert mask.shape == (48, 48) and set(np.unique(mask)) == {0, 255}
            k, cells = parse_cells(s.raw_mask)
            assert k == 5 and cells == raw_mask_cells(mask > 0, 5)
            kept = cells_to_mask(k, cells, 48)
            expected = np.where(kept[..., None], np.asarray(image), 128)
            assert (np.asarray(Image.open(out / s.reference_cells)) == expected).all()
    assert named == set(sha256_tree(out))


@pytest.mark.parametrize("sides", [(512, 512, 256), (90, 60, 48), (48, 48, 48), (30, 40, 48)])
def test_bilinear_masks_are_those_of_the_public_scripts(sides):
    """torch's bilinear resizing without antialiasing is OpenCV's; pixels wholly inside keep the
    full value."""
    height, width, size = sides
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2 + 1, width // 3 : width // 2 + 2] = True
    found = bilinear_mask(mask, size)
    planes = torch.from_numpy(mask.astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(
        planes, (size, size), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    assert np.abs(found - 255 * expected).max() <= 0.51
    if (height, width) == (size, size):
        assert ((found == 255) == mask).all() and set(np.unique(found)) == {0, 255}


def test_split_file(out):
    split = json.loads((out / "split.json").read_text())
    samples = read_csv(out / "samples.csv", Sample)
    assert split["rule"] == "half" and split["k"] == 5
    assert split["defects"]["bend"] == {
        "generator": ["test_bend_000"],
        "test": ["test_bend_001", "test_bend_002"],
    }
    assert split["normal"] == ["train_good_000", "train_good_001", "train_good_002"]
    roles_of = {s.id: s.role for s in samples}
    assert all(
        roles_of[i] == role
        for parts in split["defects"].values()
        for role, ids in parts.items()
        for i in ids
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["split_sha256"] == split["sha256"] and manifest["roles"] == {
        "normal": 3,
        "generator": 4,
        "test": 10,
    }


@pytest.mark.parametrize(
    "rule, generator, test",
    [("half", 1, 2), ("third", 1, 2), ("literal", 1, 3), ("third_anomalydiffusion", 2, 2)],
)
def test_every_split_through_its_readers(drawn, tmp_path, rule, generator, test):
    """Training, scoring and testing read the same folder; of three pictures one trains; splits that
    leak test some of those."""
    stage.run(
        "drawn",
        "disc",
        Slice({**VALUES, "prepare.split": rule}),
        layout="procedural",
        raw=drawn,
        out=tmp_path / "disc",
    )
    samples = read_csv(tmp_path / "disc/samples.csv", Sample)
    bends = [s for s in samples if s.defect == "bend"]
    data = Pictures.load(tmp_path / "disc")
    trains = [data.samples[i].id for i in data.defective if data.samples[i].defect == "bend"]
    assert (
        len(trains) == generator == sum(s.defect_trains for s in bends)
        and sum(s.tests for s in bends) == test
    )
    tests = HeldOut.read(tmp_path / "disc", samples)
    tested = tests.samples
    shared = set(trains) & {s.id for s in tested}
    assert shared == {"literal": set(trains), "third_anomalydiffusion": set(trains[1:])}.get(
        rule, set()
    )
    assert len(tested) == len(tests.images) == len(tests.masks)
    assert not any(s.role == "normal" for s in tested)
    split = json.loads((tmp_path / "disc/split.json").read_text())
    assert split["rule"] == rule and split.get("leaking", False) == (rule in LEAKING)
    rest = {key: value for key, value in split.items() if key != "sha256"}
    assert hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest() == split["sha256"]
    manifest = json.loads((tmp_path / "disc/manifest.json").read_text())
    assert manifest["split_sha256"] == split["sha256"]
    assert manifest["roles"] == {"normal": 3, "generator": 4 * generator, "test": 2 + 4 * test}
    assert manifest.get("leaking") == (4 if rule in LEAKING else None)


@pytest.mark.parametrize("rule", ["half", "third", "literal"])
def test_a_leak_stops_every_split(drawn, tmp_path, rule):
    """The second picture of a type, which is tested, is the first saved anew; `literal` allows the
    first alone to be both."""
    shutil.copytree(drawn, tmp_path / "raw")
    first, second = (tmp_path / "raw/disc/test/bend" / name for name in ("000.png", "001.png"))
    with Image.open(first) as picture:
        picture.save(second, compress_level=0)
    assert sha256(first) != sha256(second)
    with pytest.raises(
        UserError, match="bend/001.png: the same picture as .*bend/000.png, which is in training"
    ):
        stage.run(
            "drawn",
            "disc",
            Slice({**VALUES, "prepare.split": rule}),
            layout="procedural",
            raw=tmp_path / "raw",
            out=tmp_path / "disc",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_one_name_in_train_and_test_is_no_leak(drawn, tmp_path):
    """Names say nothing: train/good/000 and test/good/000 are two pictures."""
    shutil.copytree(drawn, tmp_path / "raw")
    assert (tmp_path / "raw/disc/train/good/000.png").exists() and (
        tmp_path / "raw/disc/test/good/000.png"
    ).exists()
    stage.run(
        "drawn",
        "disc",
        Slice(VALUES),
        layout="procedural",
        raw=tmp_path / "raw",
        out=tmp_path / "disc",
    )


def test_progress_names_its_category(caplog, monkeypatch):
    now = iter([0.0, 1.0, 6.0, 6.0, 7.0, 12.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with caplog.at_level("INFO", logger="helixbench.prepare.progress"):
        bar = Progress("MVTec-AD bottle", 3)
        for _ in range(3):
            bar.step()
        bar.done(["x.jpg: left out"])
    assert caplog.messages == [
        "MVTec-AD bottle: 2 of 3 pictures",
        "MVTec-AD bottle: x.jpg: left out",
        "MVTec-AD bottle: 3 pictures in 12.5 s",
    ]


def test_pictures_that_are_left_out_are_counted(tmp_path, caplog):
    """A magnetic tile whose mask is empty as published: seen in the log and in the manifest."""
    draw(
        tmp_path / "raw",
        "drawn",
        "tile",
        Procedural(size=32, train_good=8, test_good=2, per_defect=3, layout="magnetic_tile"),
        seed=0,
    )
    odd = tmp_path / "raw/tile/MT_Stain/Imgs/exp0001.png"
    Image.new("L", (32, 32)).save(odd)
    with caplog.at_level("INFO", logger="helixbench.prepare.progress"):
        stage.run(
            "drawn",
            "tile",
            Slice(VALUES),
            layout="magnetic_tile",
            raw=tmp_path / "raw",
            out=tmp_path / "tile",
        )
    line = f"{odd.with_suffix('.jpg')}: left out, its mask exp0001.png is empty"
    assert f"drawn tile: {line}" in caplog.messages
    manifest = json.loads((tmp_path / "tile/manifest.json").read_text())
    assert manifest["odd"] == [line] and manifest["roles"] == {
        "normal": 8,
        "generator": 3,
        "test": 2 + 5,
    }


def test_a_second_run_gives_the_same_files_in_place_of_the_first(out, drawn, tmp_path):
    folder = tmp_path / "disc"
    shutil.copytree(out, folder)
    (folder / "stale.png").write_bytes(b"")
    (folder / "manifest.json").unlink()  # as Snakemake does before a job
    stage.run("drawn", "disc", Slice(VALUES), layout="procedural", raw=drawn, out=folder)
    first, second = sha256_tree(out), sha256_tree(folder)
    assert first.pop("manifest.json") and second.pop("manifest.json")
    assert first == second and [p.name for p in tmp_path.iterdir()] == ["disc"]


def test_a_folder_of_somebody_else_is_not_replaced(drawn, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.png").write_bytes(b"mine")
    arguments = {"layout": "procedural", "raw": drawn, "out": tmp_path / "photos"}
    with pytest.raises(UserError, match="photos: holds files that helixbench did not write"):
        stage.run("drawn", "disc", Slice(VALUES), **arguments)
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "holiday.png"]


@pytest.mark.parametrize(
    "name, change",
    [
        ("images", lambda data: data.replace(b"IDAT", b"IDAU", 1)),
        ("masks", lambda data: _inverted(data)),
        ("samples.csv", lambda data: b"".join(data.splitlines(True)[:-1])),
        ("samples.csv", lambda data: data.replace(b",test,", b",both,", 1)),
    ],
)
def test_what_was_altered_after_it_was_prepared_is_not_read(out, tmp_path, name, change):
    """Inverted test masks once took a pixel AP from 4 to 69, under the same split."""
    folder = tmp_path / "disc"
    shutil.copytree(out, folder)
    tested = next(s for s in read_samples(folder) if s.role == "test" and s.mask)
    file = folder / {"images": tested.image, "masks": tested.mask}.get(name, name)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=f"{file.name}: altered since"):
        HeldOut.read(folder, read_samples(folder))


def _inverted(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(data)))).save(buffer, "PNG")
    return buffer.getvalue()


def test_reads_no_other_key_than_its_own(out):
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest["config"]) == sorted(VALUES)


@pytest.mark.skipif(
    not (DATA / "mvtec_ad/bottle").is_dir(),
    reason="no MVTec AD bottle; set HELIXBENCH_DATA to the folder of mvtec_ad/",
)
def test_the_real_bottle(tmp_path):
    stage.run(
        "MVTec-AD",
        "bottle",
        Slice({**VALUES, "prepare.size": 64}),
        layout="mvtec_ad",
        raw=DATA / "mvtec_ad",
        out=tmp_path / "bottle",
    )
    manifest = json.loads((tmp_path / "bottle/manifest.json").read_text())
    assert manifest["roles"] == {"normal": 209, "generator": 31, "test": 52}
    assert manifest["defects"] == ["broken_large", "broken_small", "contamination"]
    for s in read_csv(tmp_path / "bottle/samples.csv", Sample):
        if s.mask:
            assert np.asarray(Image.open(tmp_path / "bottle" / s.mask)).any()


# ------------------------------------------------------------------------------------------------
# calibration


def test_normals_for_calibration_are_a_share_drawn_by_their_names():
    samples = [raw(GOOD, f"{i:03d}", "train") for i in range(40)]
    samples += [raw(GOOD, f"{i:03d}") for i in range(10)] + [raw("hole", f"{i}") for i in range(4)]
    ids = stage.sample_ids(samples, Path("/r"))
    parts = roles(samples, "half")
    assert calibrating(samples, ids, parts, 0.0) == parts
    found = calibrating(samples, ids, parts, 0.25)
    kept = [name for name, role in zip(ids, found, strict=True) if role == "calibration"]
    assert len(kept) == 10 and all(name.startswith("train_good") for name in kept)
    assert [role for role in found if role != "calibration"].count("normal") == 30
    assert kept != sorted(ids)[:10], "not the first ones: they may be of one day"
    # the same pictures in another order, or fewer of them, are drawn alike
    again = calibrating(samples[::-1], ids[::-1], parts[::-1], 0.25)
    assert again[::-1] == found
    assert set(kept[:3]) <= {
        name
        for name, role in zip(ids, calibrating(samples, ids, parts, 0.5), strict=True)
        if role == "calibration"
    }
    for share, few in ((0.9, samples[:1]), (0.5, samples[-4:])):
        with pytest.raises(UserError, match="cannot give a share"):
            calibrating(few, ids[: len(few)], roles(few, "half"), share)


def test_groups_stay_whole_and_apart_from_defects():
    samples = [
        dataclasses.replace(raw(GOOD, f"{group}{i}", "train"), group=group)
        for group in "abcdefgh"
        for i in range(3)
    ]
    samples += [
        dataclasses.replace(raw("hole", f"x{i}"), group=group) for i, group in enumerate("ab")
    ]
    parts = roles(samples, "half")
    found = calibrating(samples, [s.image.stem for s in samples], parts, 0.3)
    kept = [s.group for s, role in zip(samples, found, strict=True) if role == "calibration"]
    assert kept and all(kept.count(group) == 3 for group in kept) and not set(kept) & set("ab")


def test_a_calibration_picture_is_in_no_other_role():
    uses = [("a", "normal", "1"), ("b", "calibration", "2"), ("c", "calibration", "2")]
    assert check_leaks(uses) == 2
    with pytest.raises(UserError, match="d: the same picture as a, .* training: a calibration"):
        check_leaks([*uses, ("d", "calibration", "1")])
    with pytest.raises(UserError, match="d: the same picture as b, .* in calibration: a test"):
        check_leaks([*uses, ("d", "test", "2")])


def test_a_split_without_calibration_has_the_hash_that_it_had():
    members = [("n", GOOD, "normal"), ("g", "hole", "generator"), ("t", "hole", "test")]
    known = "213284dd9111cc6377e1ec57429bf1a13d2f93c4f139d3704b0ba79b64cbb1b4"
    assert split_record("half", 5, "d", "c", members)["sha256"] == known
    other = split_record("half", 5, "d", "c", [*members, ("k", GOOD, "calibration")], 0.5)
    assert other["calibration"] == {"share": 0.5, "normal": ["k"]} and other["sha256"] != known
