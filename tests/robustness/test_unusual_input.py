"""Raw data that is unusual but right: converted as it must be, pixel by pixel."""

# ruff: noqa: F401, F811 (pytest finds imported fixtures by their names)

from __future__ import annotations

import csv
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from raw_folders import MASK, PICTURE, chunk, drawn, helixbench, prepare, raw


def sixteen_bits(image, target):
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(target)
    return np.repeat(image[..., :1], 3, axis=2)


def palette(image, target):
    few = Image.fromarray(image).quantize(16)
    few.save(target)
    return np.asarray(few.convert("RGB"))


def transparent(image, target):
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    Image.fromarray(np.dstack([image, alpha])).save(target)
    return np.where(alpha[..., None] > 0, image, 0)


def grey_with_alpha(image, target):
    picture = Image.fromarray(image).convert("L").convert("LA")
    picture.save(target)
    return np.asarray(picture.convert("RGB"))


def one_bit(image, target):
    bits = image[..., 0] > 100
    Image.fromarray(bits).save(target)
    return np.repeat(bits[..., None] * np.uint8(255), 3, axis=2)


def grey(image, target):
    Image.fromarray(image[..., 1]).save(target)
    return np.repeat(image[..., 1:2], 3, axis=2)


def colour_of_16_bits(image, target):
    """48-bit PNG, which Pillow reads and cannot write: the high bytes are the picture."""
    lines = b"".join(
        b"\0" + (line.astype(np.uint16) * 256 + 77).astype(">u2").tobytes() for line in image
    )
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 16, 2, 0, 0, 0)
    target.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return image


def bitmap(image, target):
    Image.fromarray(image).save(target, format="BMP")
    return image


UNUSUAL = {
    "16-bit": sixteen_bits,
    "48-bit": colour_of_16_bits,
    "palette": palette,
    "RGBA": transparent,
    "grey with alpha": grey_with_alpha,
    "1-bit": one_bit,
    "grey": grey,
    "BMP called .png": bitmap,
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_pictures_are_converted_rightly(kind, raw, helixbench, prepare, tmp_path):
    root = raw()
    file = root / "tile" / PICTURE
    expected = UNUSUAL[kind](np.asarray(Image.open(file)), file)
    assert prepare(root).returncode == 0
    prepared = Image.open(tmp_path / "prepared/tile/images/test_hole_001.png")
    assert prepared.mode == "RGB" and (np.asarray(prepared) == expected).all()
    done = helixbench("import", "--layout", "mvtec_ad", root)
    assert done.returncode == 0
    named = {"16-bit": "16-bit grey", "RGBA": "transparent", "grey with alpha": "transparent"}.get(
        kind, kind
    )
    assert (f"tile: {named}: 1 of 13 pictures, e.g. {file}" in done.stdout) == (
        kind not in ("48-bit", "BMP called .png")
    )


def mask_as(change):
    def spoil(tile):
        mask = np.asarray(Image.open(tile / MASK)) > 0
        change(mask).save(tile / MASK)
        return mask

    return spoil


MASKS = {
    "1-bit": mask_as(Image.fromarray),
    "0 and 1": mask_as(lambda m: Image.fromarray(m.astype(np.uint8))),
    "16-bit": mask_as(lambda m: Image.fromarray(m.astype(np.uint16) * 65535)),
    "palette": mask_as(lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("P")),
    "RGBA layer": mask_as(lambda m: Image.fromarray(np.dstack([m * np.uint8(255)] * 4))),
    "red on black": mask_as(
        lambda m: Image.fromarray(np.dstack([m * np.uint8(255), m * np.uint8(0), m * np.uint8(0)]))
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_unusual_masks_are_converted_rightly(kind, raw, prepare, tmp_path):
    root = raw()
    expected = MASKS[kind](root / "tile")
    assert prepare(root).returncode == 0
    assert (
        np.asarray(Image.open(tmp_path / "prepared/tile/masks/test_hole_001.png")) == expected * 255
    ).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_and_its_mask_agree(orientation, raw, helixbench, prepare, tmp_path):
    """Whatever way the camera was held: the mask is drawn on the picture as it is seen."""
    root, upright = raw(), np.full((32, 32, 3), 40, np.uint8)
    upright[4:12, 6:24] = (240, 220, 60)
    mask = upright[..., 0] > 100
    stored = Image.fromarray(upright)
    back = {
        2: [0],
        3: [3],
        4: [1],
        5: [5],
        6: [2],
        7: [6],
        8: [4],
    }  # Transpose operations that undo what the reader does
    for operation in back.get(orientation, []):
        stored = stored.transpose(Image.Transpose(operation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (root / "tile" / PICTURE).unlink()
    stored.save(root / "tile/test/hole/001.jpg", exif=exif, quality=100, subsampling=0)
    Image.fromarray(mask).save(root / "tile" / MASK)
    assert prepare(root).returncode == 0
    prepared = tmp_path / "prepared/tile"
    image = np.asarray(Image.open(prepared / "images/test_hole_001.png"))
    inside = np.asarray(Image.open(prepared / "masks/test_hole_001.png")) > 0
    assert (
        (inside == mask).all()
        and image[inside].mean(axis=0)[0] > 230
        and image[~inside].mean() < 50
    )
    done = helixbench("import", "--layout", "mvtec_ad", root)
    assert (
        "tile: turned upright by the EXIF orientation, look whether masks agree: 1 of 13 pictures"
        in done.stdout
    ) == (orientation > 1)


def test_two_pictures_in_one_jpeg(raw, prepare):
    """What telephones write: the first counts."""
    root = raw()
    file = root / "tile" / PICTURE
    first = Image.open(file).convert("RGB")
    first.save(
        file.with_suffix(".jpg"), format="MPO", save_all=True, append_images=[first.rotate(90)]
    )
    file.unlink()
    assert prepare(root).returncode == 0


def test_names_that_people_give(raw, helixbench, prepare, tmp_path):
    root = raw()
    tile = root / "tile"
    for folder in ("test", "ground_truth"):
        (tile / folder / "hole").rename(tile / folder / "Loch (groß) 穴")
    (tile / "test/Loch (groß) 穴/001.png").rename(tile / "test/Loch (groß) 穴/Aufnahme 1.PNG")
    (tile / "ground_truth/Loch (groß) 穴/001_mask.png").rename(
        tile / "ground_truth/Loch (groß) 穴/Aufnahme 1_mask.Png"
    )
    (tile / "train/good/000.png").rename(tile / "train/good/no. 1, «ok».JpEg")
    assert prepare(root).returncode == 0
    assert (tmp_path / "prepared/tile/masks/test_Loch (groß) 穴_Aufnahme 1.png").is_file()
    done = helixbench(
        "import",
        "--layout",
        "mvtec_ad",
        root,
        "--out",
        root / "manifest.csv",
        "--report",
        tmp_path / "sheet.png",
    )
    assert done.returncode == 0, done
    with open(root / "manifest.csv", newline="", encoding="utf-8") as handle:
        rows = {row["image"]: row for row in csv.DictReader(handle)}
    assert (
        rows["tile/test/Loch (groß) 穴/Aufnahme 1.PNG"]["mask"]
        == "tile/ground_truth/Loch (groß) 穴/Aufnahme 1_mask.Png"
    )
    assert "tile/train/good/no. 1, «ok».JpEg" in rows


def test_links_within_the_root_and_a_linked_root(raw, prepare, tmp_path):
    root = raw()
    (root / "store").mkdir()
    shutil.move(root / "tile" / PICTURE, root / "store/picture.png")
    (root / "tile" / PICTURE).symlink_to("../../../store/picture.png")
    (tmp_path / "link").symlink_to(root)
    assert prepare(tmp_path / "link").returncode == 0


@pytest.mark.parametrize("layout", ["folder", "visa"])
def test_a_byte_order_mark_does_no_harm(layout, raw, prepare):
    root = raw(layout)
    path = root / {"folder": "tile/manifest.csv", "visa": "split_csv/1cls.csv"}[layout]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert prepare(root, layout).returncode == 0


def test_files_that_are_not_read_are_odd(raw, helixbench):
    root = raw()
    Image.new("L", (8, 8)).save(root / "tile/train/good/900.gif")
    (root / "tile/train/bad").mkdir()
    (root / "notes").mkdir()
    (root / "license.txt").write_text("free")
    done = helixbench("import", "--layout", "mvtec_ad", root)
    assert done.returncode == 0 and "odd things: 6" in done.stdout
    for line in (
        "good/900.gif: not read; pictures end in .bmp, .jpeg, .jpg, .png, .tif",
        "train/bad: not read",
        "notes: not read; no category",
    ):
        assert line in done.stdout
