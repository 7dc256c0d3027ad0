"""Bad raw data through `import` and `prepare`: exit code 2, one line naming the file and what to
do, nothing half-written."""

# ruff: noqa: F401, F811 (pytest finds imported fixtures by their names)

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from raw_folders import MASK, PICTURE, drawn, helixbench, no_trace, png_header, prepare, raw, remove


def shorten(path, keep=0.5):
    return lambda tile: (tile / path).write_bytes(
        (tile / path).read_bytes()[: int(keep * (tile / path).stat().st_size)]
    )


def content(path, data):
    return lambda tile: (tile / path).write_bytes(data)


def picture(path, mode="L", size=(32, 32), value=0, **options):
    return lambda tile: Image.new(mode, size, value).save(tile / path, **options)


def copy(source, target, **options):
    """The same pixels under another name, perhaps in another format: other bytes, same content."""
    return lambda tile: Image.open(tile / source).save(tile / target, **options)


def converted(path, suffix, **options):
    """A picture saved in another format, in the place of the first."""

    def change(tile):
        Image.open(tile / path).save((tile / path).with_suffix(suffix), **options)
        (tile / path).unlink()

    return change


def link_out(path):
    """Move a file or folder out of the raw root and leave a link."""

    def spoil(tile):
        outside = tile.parents[1] / "outside"
        outside.mkdir()
        shutil.move(tile / path, outside / "moved")
        (tile / path).symlink_to(outside / "moved")

    return spoil


def both(*steps):
    return lambda tile: [step(tile) for step in steps]


def flip_a_bit(path):
    def spoil(tile):
        data = bytearray((tile / path).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (tile / path).write_bytes(data)

    return spoil


def turned_jpeg(tile):
    """A camera on its side: the file holds 40x24, upright it is 24x40, and its mask was drawn on
    the 40x24."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tile / PICTURE).unlink()
    Image.new("RGB", (40, 24), "red").save(tile / "test/hole/001.jpg", exif=exif)
    Image.new("L", (40, 24), 255).save(tile / MASK)


UNREADABLE = "copy it again from its source"
TREE = {
    "truncated PNG": (shorten(PICTURE), f"{PICTURE}: unreadable picture", UNREADABLE),
    "truncated JPEG": (
        both(converted(PICTURE, ".jpg"), shorten("test/hole/001.jpg")),
        "test/hole/001.jpg: unreadable picture",
        UNREADABLE,
    ),
    "truncated BMP": (
        both(converted(PICTURE, ".bmp"), shorten("test/hole/001.bmp")),
        "test/hole/001.bmp: unreadable picture",
        UNREADABLE,
    ),
    "damaged PNG": (flip_a_bit(PICTURE), f"{PICTURE}: unreadable picture", UNREADABLE),
    "PNG without pictures": (content(PICTURE, b"\x89PNG\r\n\x1a\n"), f"{PICTURE}: ", ""),
    "text called .png": (
        content(PICTURE, b"hello"),
        f"{PICTURE}: not a picture",
        "replace it by a PNG, JPEG, BMP, TIFF or WebP",
    ),
    "web page called .jpg": (
        both(remove(PICTURE), content("test/hole/001.jpg", b"<!DOCTYPE html><html>404</html>")),
        "test/hole/001.jpg: not a picture",
        "replace it by a PNG, JPEG, BMP, TIFF or WebP",
    ),
    "GIF called .png": (
        picture(PICTURE, "RGB", format="GIF"),
        f"{PICTURE}: holds GIF",
        "convert it to PNG",
    ),
    "JPEG 2000 called .png": (
        picture(PICTURE, "RGB", format="JPEG2000"),
        f"{PICTURE}: holds JPEG 2000",
        "convert it to PNG",
    ),
    "zero bytes": (content(PICTURE, b""), f"{PICTURE}: empty file (0 bytes)", UNREADABLE),
    "100 megapixels": (
        picture(PICTURE, "1", (12_000, 9_000)),
        f"{PICTURE}: too large to decode (12000x9000 pixels; the limit is 80 megapixels)",
        "scale it down",
    ),
    "400 megapixels": (
        content(PICTURE, png_header(20_000, 20_000)),
        f"{PICTURE}: too large to decode",
        "cut it into tiles",
    ),
    "mask of 100 megapixels": (
        picture(MASK, "1", (12_000, 9_000)),
        f"{MASK}: too large to decode",
        "scale it down",
    ),
    "mask missing": (remove(MASK), f"{PICTURE}: its mask", "add the mask or remove the picture"),
    "orphan mask": (
        picture("ground_truth/hole/007_mask.png"),
        "ground_truth/hole/007_mask.png: mask without a picture",
        "remove the mask",
    ),
    "orphan masks of a defect": (
        remove("test/hole"),
        "ground_truth/hole: masks without a folder test/hole",
        "remove the masks",
    ),
    "mask of another size": (
        picture(MASK, size=(16, 32), value=255),
        f"{MASK}: mask is 16x32 pixels but its picture is 32x32;",
        "export the mask",
    ),
    "mask of a turned JPEG": (
        turned_jpeg,
        f"{MASK}: mask is 40x24 pixels but its picture is 24x40 upright;",
        "export the mask",
    ),
    "mask all black": (picture(MASK), f"{MASK}: empty mask for the defect hole", "mark the defect"),
    "mask all transparent": (
        picture(MASK, "RGBA", value=(255, 255, 255, 0)),
        f"{MASK}: empty mask for the defect hole",
        "mark the defect",
    ),
    "mask of text": (content(MASK, b"x"), f"{MASK}: not a picture", "replace it"),
    "mask of zero bytes": (content(MASK, b""), f"{MASK}: empty file", UNREADABLE),
    "truncated mask": (shorten(MASK), f"{MASK}: unreadable picture", UNREADABLE),
    "link out of the root": (link_out(PICTURE), f"{PICTURE}: links to", "copy the file there"),
    "mask links out of the root": (link_out(MASK), f"{MASK}: links to", "copy the file there"),
    "link to nothing": (
        both(remove(PICTURE), lambda t: (t / PICTURE).symlink_to("nowhere.png")),
        f"{PICTURE}: unreadable picture",
        UNREADABLE,
    ),
    "link to itself": (
        both(remove(PICTURE), lambda t: (t / PICTURE).symlink_to("001.png")),
        f"{PICTURE}: unreadable picture",
        UNREADABLE,
    ),
    "category links out of the root": (
        link_out("."),
        "tile: links to",
        "make that folder's parent the root",
    ),
    "no normals": (
        remove("train/good/*"),
        "tile/train/good: no pictures",
        "put normal pictures there",
    ),
    "no folder of normals": (remove("train/good"), "tile/train/good: no such folder", "unpack it"),
    "no normals to test": (
        remove("test/good"),
        "tile/test/good: no pictures",
        "put normal pictures there",
    ),
    "empty defect folder": (
        remove("test/hole/*", "ground_truth/hole"),
        "tile/test/hole: no pictures",
        "remove the folder",
    ),
    "no defects": (
        remove("test/[hs]*", "ground_truth"),
        "tile/test: no defect types",
        "put defective pictures into test/<defect>",
    ),
    "one picture of a defect": (
        remove(PICTURE, MASK),
        "tile/test/hole: 1 picture only, and half of 1 is 0: none of the defect hole is left to "
        "train the generator",
        "add pictures",
    ),
    "two pictures of one name": (
        copy(PICTURE, "test/hole/001.bmp"),
        "test/hole/001.png: same name as 001.bmp",
        "keep one",
    ),
    "name with a line break": (
        lambda t: (t / "train/good/000.png").rename(t / "train/good/0\n00.png"),
        r"train/good/0\n00.png': name with a line break",
        "rename the file",
    ),
    "name that is not UTF-8": (
        lambda t: os.rename(t / "train/good/000.png", os.fsencode(t / "train/good") + b"/\xff.png"),
        r"\udcff.png': name with a line break, another control character or broken UTF-8",
        "rename the file",
    ),
    "copy in train and test": (
        lambda t: shutil.copy(t / "train/good/001.png", t / "test/good/001.png"),
        "test/good/001.png: the same picture as",
        "train/good/001.png, which is in training",
    ),
    "saved anew in train and test": (
        copy("train/good/001.png", "test/good/009.png", compress_level=0),
        "test/good/009.png: the same picture as",
        "train/good/001.png, which is in training",
    ),
    "other format in train and test": (
        copy("train/good/001.png", "test/good/other name.bmp"),
        "test/good/other name.bmp: the same picture as",
        "train/good/001.png, which is in training",
    ),
    "defect in both halves": (
        copy("test/hole/000.png", PICTURE),
        f"{PICTURE}: the same picture as",
        "test/hole/000.png, which is in training",
    ),
}


@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # pytest forgets the filter of the program
@pytest.mark.parametrize("command", ["import", "prepare"])
@pytest.mark.parametrize("case", TREE)
def test_a_bad_tree(case, command, raw, helixbench, prepare, tmp_path):
    spoil, *expected = TREE[case]
    root = raw()
    spoil(root / "tile")
    if command == "import":
        done = helixbench(
            "import",
            "--layout",
            "mvtec_ad",
            root,
            "--out",
            tmp_path / "m.csv",
            "--report",
            tmp_path / "s.png",
        )
    else:
        done = prepare(root)
    assert (done.returncode, len(done.lines), done.stdout) == (2, 1, ""), done
    assert done.lines[0].startswith("helixbench: ")
    for part in expected:
        assert part in done.lines[0]
    assert no_trace(tmp_path)


# ------------------------------------------------------------------------------------------------
# manifests


def edit(old, new, file="manifest.csv"):
    """Change the first occurrence in a text file."""

    def spoil(tile):
        path = tile / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return spoil


def written(data: bytes):
    return content("manifest.csv", data)


HOLE = "hole/test 001.png,Flächen/hole/test 001.png,hole,test"
NORMAL = "good/train 000.png,,good,train"
MANIFEST = {
    "column missing": (
        edit("mask,", "msak,"),
        "manifest.csv: column mask is missing (there are: image, msak, defect, split)",
        "header line",
    ),
    "semicolons": (
        edit("image,mask,defect,split", "image;mask;defect;split"),
        "column image is missing (there are: image;mask;defect;split)",
        "commas between the cells",
    ),
    "empty file": (
        written(b""),
        "manifest.csv: column image is missing (there are: none)",
        "write a header line",
    ),
    "only a header": (
        written(b"image,mask,defect,split\n"),
        "manifest.csv: no rows of the category tile",
        "add them",
    ),
    "not UTF-8": (
        written("image,mask,defect,split\nä.png,,good,train\n".encode("latin-1")),
        "manifest.csv: not UTF-8",
        "save it as CSV in UTF-8",
    ),
    "a spreadsheet": (
        written(b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xbf\xff"),
        "manifest.csv: not",
        "UTF-8",
    ),
    "parent folder": (
        edit(NORMAL, "../../outside.png,,good,train"),
        "row 2: image ../../outside.png: write a path relative to",
        "without ..",
    ),
    "parent folder of a mask": (
        edit("Flächen/hole/test 001", "../x"),
        "mask ../x.png: write a path relative to",
        "without ..",
    ),
    "parent folder inside": (
        edit(NORMAL, "hole/../good/train 000.png,,good,train"),
        "row 2: image hole/../good/train 000.png:",
        "without ..",
    ),
    "absolute path": (
        edit(NORMAL, "/etc/a.png,,good,train"),
        "row 2: image /etc/a.png: write a path relative to",
        "stays inside",
    ),
    "picture missing": (
        edit("good/train 000", "good/train 999"),
        "row 2: image good/train 999.png: no such file",
        "remove the row",
    ),
    "mask missing": (
        remove("Flächen/hole/test 001.png"),
        "mask Flächen/hole/test 001.png: no such file",
        "correct the path",
    ),
    "defect without a mask": (
        edit(HOLE, "hole/test 001.png,,hole,test"),
        "the defect hole has no mask",
        "name its mask",
    ),
    "normal with a mask": (
        edit(NORMAL, "good/train 000.png,hole/test 000.png,good,train"),
        "row 2: a mask for a normal picture",
        "leave the cell empty",
    ),
    "unknown split": (
        edit("good,train", "good,val"),
        "row 2: split 'val' is neither train nor test",
        "write one of the two",
    ),
    "defect in train": (
        edit(HOLE, HOLE.replace(",test", ",train")),
        "a defect in train",
        "prepare.split says which",
    ),
    "defect named as a path": (
        edit(HOLE, HOLE.replace(",hole,", ",../hole,")),
        "defect '../hole' is no name",
        "letters, digits",
    ),
    "no defect name": (
        edit("good,train", ",train"),
        "row 2: defect '' is no name",
        "write good for a normal picture",
    ),
    "listed twice": (
        edit(NORMAL, f"{NORMAL}\n{NORMAL}"),
        "row 3: image good/train 000.png is listed twice",
        "remove one of the rows",
    ),
    "not a picture": (
        edit("good/train 000.png", "good/train 000.gif"),
        "row 2: image 'good/train 000.gif' is no picture",
        "ends in",
    ),
    "no category in a row": (
        lambda t: (t / "manifest.csv").write_text(
            "image,mask,defect,split,category\na.png,,good,train,\n"
        ),
        "manifest.csv: row 2: no category",
        "leave the column out",
    ),
    "picture links out": (
        link_out("good/train 000.png"),
        "good/train 000.png: links to",
        "copy the file there",
    ),
    "truncated picture": (
        shorten("hole/test 001.png"),
        "hole/test 001.png: unreadable picture",
        UNREADABLE,
    ),
    "row cut short": (
        edit(HOLE, "hole/test 001.png"),
        "split '' is neither train nor test",
        "write one of the two",
    ),
}


@pytest.mark.parametrize("command", ["import", "prepare"])
@pytest.mark.parametrize("case", MANIFEST)
def test_a_bad_manifest(case, command, raw, helixbench, prepare, tmp_path):
    spoil, *expected = MANIFEST[case]
    root = raw("folder")
    # One hole more, so that one that is refused leaves enough of them.
    for folder in ("hole", "Flächen/hole"):
        Image.open(root / "tile" / folder / "test 000.png").rotate(90).save(
            root / "tile" / folder / "test 900.png"
        )
    with open(root / "tile/manifest.csv", "a", encoding="utf-8") as handle:
        handle.write(HOLE.replace("001", "900") + "\n")
    spoil(root / "tile")
    done = (
        helixbench("import", "--layout", "folder", root, "--out", tmp_path / "m.csv")
        if command == "import"
        else prepare(root, "folder")
    )
    assert (done.returncode, len(done.lines), done.stdout) == (2, 1, ""), done
    for part in expected:
        assert part in done.lines[0]
    assert no_trace(tmp_path)


LAYOUTS = {
    "LOCO: black masks": (
        "mvtec_loco",
        lambda t: [
            Image.new("L", (32, 32)).save(p)
            for p in (t / "ground_truth/structural_anomalies/001").iterdir()
        ],
        "structural_anomalies/001: empty mask",
    ),
    "LOCO: mask of another size": (
        "mvtec_loco",
        picture("ground_truth/structural_anomalies/001/001.png", size=(30, 32), value=254),
        "structural_anomalies/001: mask is 30x32 pixels",
    ),
    "LOCO: only a note in the folder of masks": (
        "mvtec_loco",
        both(
            remove("ground_truth/structural_anomalies/001/*"),
            content("ground_truth/structural_anomalies/001/Thumbs.db", b"x"),
        ),
        "structural_anomalies/001.png: no masks in",
    ),
    "LOCO: mask links out": (
        "mvtec_loco",
        link_out("ground_truth/structural_anomalies/001/001.png"),
        "structural_anomalies/001/001.png: links to",
    ),
    "BTAD: mask missing": ("btad", remove("ground_truth/ko/0003.*"), "test/ko/0003.png: its mask"),
    "VisA: split not UTF-8": (
        "visa",
        content("../split_csv/1cls.csv", b"object,\xe4\n"),
        "1cls.csv: not UTF-8",
    ),
    "VisA: absolute path": (
        "visa",
        edit("tile/Data/Images/Normal/0000.JPG", "/etc/0000.JPG", "../split_csv/1cls.csv"),
        "/etc/0000.JPG: leaves",
    ),
    "VisA: zero bytes": (
        "visa",
        content("Data/Images/Anomaly/0008.JPG", b""),
        "Anomaly/0008.JPG: empty file (0 bytes)",
    ),
    "tiles: mask of another size": (
        "magnetic_tile",
        picture("MT_Hole/Imgs/exp0001.png", size=(16, 16), value=255),
        "MT_Hole/Imgs/exp0001.png: mask is 16x16 pixels",
    ),
    "tiles: two pictures of one name": (
        "magnetic_tile",
        picture("MT_Hole/Imgs/exp0001.bmp", "RGB"),
        "exp0001.jpg: same name as exp0001.bmp",
    ),
    "tiles: bomb as a mask": (
        "magnetic_tile",
        content("MT_Hole/Imgs/exp0001.png", png_header(20_000, 20_000)),
        "MT_Hole/Imgs/exp0001.png: too large to decode",
    ),
}


@pytest.mark.parametrize("command", ["import", "prepare"])
@pytest.mark.parametrize("case", LAYOUTS)
def test_other_layouts(case, command, raw, helixbench, prepare, tmp_path):
    layout, spoil, expected = LAYOUTS[case]
    root = raw(layout)
    spoil(root / "tile")
    done = (
        helixbench("import", "--layout", layout, root, "--out", tmp_path / "m.csv")
        if command == "import"
        else prepare(root, layout)
    )
    assert (done.returncode, len(done.lines), done.stdout) == (2, 1, ""), done
    assert expected in done.lines[0]
    assert no_trace(tmp_path)


@pytest.mark.parametrize("split, picture_count", [("third", 2), ("literal", 1)])
def test_too_few_pictures_for_the_split(split, picture_count, raw, prepare, tmp_path):
    root = raw()
    if picture_count == 1:
        for folder in ("hole", "scratch", "stain"):
            remove(f"test/{folder}/001.png", f"ground_truth/{folder}/001_mask.png")(root / "tile")
    done = prepare(root, split=split)
    share = {"third": "a third of 2 is 0", "literal": "half of 1 is 0"}[split]
    assert done.returncode == 2 and len(done.lines) == 1 and share in done.lines[0]
    assert no_trace(tmp_path)


def test_paths_that_are_no_folders(helixbench, raw, tmp_path):
    root = raw()
    (tmp_path / "file").write_text("x")
    for given in (tmp_path / "nowhere", tmp_path / "file"):
        done = helixbench("import", "--layout", "folder", given)
        assert (done.returncode, done.lines) == (
            2,
            [
                f"helixbench: {given}: no such folder; give the folder that holds one folder a "
                f"category"
            ],
        )
    (tmp_path / "empty").mkdir()
    done = helixbench("import", "--layout", "mvtec_ad", tmp_path / "empty")
    assert done.returncode == 2 and "empty: no category in the layout mvtec_ad" in done.lines[0]
    done = helixbench("import", "--layout", "mvtecad", root)
    assert (
        done.returncode == 2 and "mvtecad: no such raw layout; known: btad, folder" in done.lines[0]
    )
    done = helixbench("import", "--layout", "mvtec_ad", root, "--out", tmp_path / "empty")
    assert (
        done.returncode == 2
        and "empty: cannot be written (Is a directory)" in done.lines[-1]
        and not Path(root / "m.csv").exists()
    )


def mortal():
    """In the child: root, but without the right to read what file permissions forbid."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24 is PR_CAPBSET_DROP
        libc.prctl(24, capability, 0, 0, 0)


@pytest.fixture(scope="module")
def obeys_permissions(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_text("x")
    path.chmod(0)
    if subprocess.run(["cat", path], preexec_fn=mortal, capture_output=True).returncode == 0:
        pytest.skip("this user reads everything")


@pytest.mark.parametrize("command", ["import", "prepare"])
@pytest.mark.parametrize(
    "path", [PICTURE, MASK, "test/hole", "ground_truth/hole", "train/good", "."]
)
def test_what_may_not_be_read(path, command, raw, obeys_permissions, tmp_path):
    root = raw()
    (tmp_path / "slice.json").write_text(
        json.dumps({"prepare.size": 32, "prepare.split": "half", "prepare.raw_mask_cells": 5})
    )
    arguments = {
        "import": ["--layout", "mvtec_ad", root, "--out", tmp_path / "m.csv"],
        "prepare": [
            "Any",
            "tile",
            "--config",
            tmp_path / "slice.json",
            "--raw",
            root,
            "--out",
            tmp_path / "prepared/tile",
        ],
    }
    target = root / "tile" / path
    mode = target.stat().st_mode
    target.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "helixbench.cli", command, *arguments[command]],
            preexec_fn=mortal,
            capture_output=True,
            text=True,
        )
    finally:
        target.chmod(mode)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done
    assert str(target) in lines[0] and "Permission denied" in lines[0]
    (tmp_path / "slice.json").unlink()
    assert no_trace(tmp_path)
