"""Picture files as cameras and programs write them, against what those programs read in them:
tifffile 2026.3.3, OpenCV 5.0.0, Pillow 13.0.0."""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.pictures.raw import header, read_mask, read_rgb
from helixbench.prepare import importing, stage

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 65536, (20, 30), np.uint16)
COLOUR = RNG.integers(0, 65536, (20, 30, 3), np.uint16)
SMALL = (COLOUR >> 8).astype(np.uint8)


def rounded(values: np.ndarray, top: int) -> np.ndarray:
    grey = np.rint(values.astype(float) * 255 / top).astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


TIFFS = {
    "grey": (SMALL[..., 0], {}, SMALL[..., :1].repeat(3, 2)),
    "16-bit grey, LZW": (GREY, {"compression": "lzw", "predictor": True}, rounded(GREY, 65535)),
    "16-bit grey, big endian": (GREY, {"byteorder": ">"}, rounded(GREY, 65535)),
    "16-bit grey, white is 0": (GREY, {"photometric": "miniswhite"}, rounded(65535 - GREY, 65535)),
    "12-bit grey": (GREY >> 4, {"bitspersample": 12}, rounded(GREY >> 4, 4095)),
    "colour, JPEG": (SMALL, {"photometric": "ycbcr", "compression": "jpeg"}, None),
    "colour in planes": (SMALL.transpose(2, 0, 1), {"photometric": "rgb"}, SMALL),
    "16-bit colour": (COLOUR, {"photometric": "rgb"}, SMALL),
    "16-bit colour in planes": (COLOUR.transpose(2, 0, 1), {"photometric": "rgb"}, SMALL),
    "tiles, Zstandard": (GREY, {"tile": (16, 16), "compression": "zstd"}, rounded(GREY, 65535)),
    "1-bit": (GREY > 30000, {"photometric": "minisblack"}, rounded(GREY > 30000, 1)),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_is_what_tifffile_reads(kind, tmp_path):
    values, options, expected = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.TIF", values, **options)
    expected = tifffile.imread(tmp_path / "a.TIF") if expected is None else expected
    assert (read_rgb(tmp_path / "a.TIF") == expected).all()


def test_of_several_pages_the_first_is_read(tmp_path):
    pages = [GREY, 65535 - GREY, GREY // 2]
    tifffile.imwrite(tmp_path / "a.tif", np.stack(pages), photometric="minisblack")
    assert (read_rgb(tmp_path / "a.tif") == rounded(GREY, 65535)).all()
    assert header(tmp_path / "a.tif") == ("16-bit grey", False, 3)


@pytest.mark.parametrize("suffix", [".tiff", ".webp", ".png"])
def test_what_opencv_writes_is_what_it_reads(suffix, tmp_path):
    file = tmp_path / f"a{suffix}"
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    assert cv2.imwrite(str(file), SMALL[..., ::-1], lossless)
    read = cv2.cvtColor(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB)
    assert (read_rgb(file) == read).all() and (read == SMALL).all()


@pytest.mark.parametrize("suffix", [".tiff", ".png"])
def test_twelve_bits_in_sixteen_are_scaled_by_one_factor(suffix, tmp_path):
    """Two pictures of different brightness stay comparable; OpenCV has all 16 bits of both."""
    for name, values in (("grey", GREY >> 4), ("colour", COLOUR >> 4), ("dark", GREY >> 6)):
        file = tmp_path / (name + suffix)
        assert cv2.imwrite(str(file), values)
        read = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        expected = rounded(read[..., ::-1] if read.ndim == 3 else read, 4095)
        assert (read_rgb(file, bits=12) == expected).all()
        assert read_rgb(file).max() <= 16, "as the file stands it has 16 bits"
    line = "dark.*: value 1023 has more than 9 bits; set bits: 10"
    dark = GREY >> 6
    dark[0, 0] = 1023
    cv2.imwrite(str(tmp_path / f"dark{suffix}"), dark)
    with pytest.raises(UserError, match=line):
        read_rgb(tmp_path / f"dark{suffix}", bits=9)


def test_bits_and_pages_at_import_and_in_prepare(tmp_path, capsys):
    """A camera of 12 bits; the first picture of the train set is a stack."""
    root, level = tmp_path / "raw", {"train/good": 1000, "test/good": 2000, "test/dent": 3000}
    for folder, value in level.items():
        (root / "part" / folder).mkdir(parents=True)
        for i in range(2):
            pages = np.full((2 - i, 32, 32), value + 400 * i, np.uint16)
            tifffile.imwrite(root / "part" / folder / f"{i}.tif", pages, photometric="minisblack")
    (root / "part/ground_truth/dent").mkdir(parents=True)
    for i in range(2):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:20, 8:20] = 255
        tifffile.imwrite(root / f"part/ground_truth/dent/{i}_mask.tif", mask)
    importing.run("mvtec_ad", root)
    said = capsys.readouterr().out
    assert "odd: part: of several pages the first: 3 of 6 pictures, e.g. " in said
    assert "uses about 12 of its 16 bits: all pictures are dark; set bits: 12" in said
    importing.run("mvtec_ad", root, bits=12)
    assert "of its 16 bits" not in capsys.readouterr().out
    values = {"prepare.size": 32, "prepare.split": "half", "prepare.raw_mask_cells": 5}
    for bits, scale in ((None, 65535), (12, 4095)):
        given = values | ({"prepare.datasets.Any.bits": bits} if bits else {})
        out = tmp_path / f"out{bits}/part"
        stage.run("Any", "part", Slice(given), layout="mvtec_ad", raw=root, out=out)
        for name, value in (("train_good_0", 1000), ("test_dent_1", 3400)):
            image = read_rgb(out / f"images/{name}.png")
            assert (image == round(value * 255 / scale)).all()


def test_bits_say_nothing_about_8_bit_pictures(tmp_path):
    for suffix in (".png", ".bmp", ".tif"):
        Image.fromarray(SMALL).save(tmp_path / f"a{suffix}")
        assert (read_rgb(tmp_path / f"a{suffix}", bits=12) == SMALL).all()


def test_profiles_and_large_metadata_are_no_obstacle(tmp_path):
    """More than Pillow's limit of 1 MB; the pixels are those without them."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("history", "x" * 3_000_000, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile += RNG.bytes(2_000_000)
    picture = Image.fromarray(SMALL)
    for name, options in {
        "text.png": {"pnginfo": texts},
        "profile.png": {"icc_profile": profile},
        "profile.tif": {"icc_profile": profile},
        "profile.webp": {"icc_profile": profile, "lossless": True},
    }.items():
        picture.save(tmp_path / name, **options)
        assert (read_rgb(tmp_path / name) == SMALL).all(), name


def test_a_tiff_is_turned_upright(tmp_path):
    for values in (SMALL, GREY):
        tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(274, 3, 1, 6, True)])
        upright = read_rgb(tmp_path / "a.tif")
        tifffile.imwrite(tmp_path / "b.tif", values)
        assert (upright == np.rot90(read_rgb(tmp_path / "b.tif"), -1)).all()
        assert header(tmp_path / "a.tif").turned


def test_masks_of_tiff_and_webp(tmp_path):
    box = np.zeros((40, 60), np.uint8)
    box[10:30, 10:40] = 1
    tifffile.imwrite(tmp_path / "labels.tif", box.astype(np.uint16) * 3)
    Image.fromarray(np.dstack([box * 2] * 3)).save(tmp_path / "labels.webp", lossless=True)
    for name in ("labels.tif", "labels.webp"):
        assert (read_mask(tmp_path / name) == box.astype(bool)).all()
    profile = bytes(1000)
    Image.fromarray(box * 255).save(tmp_path / "lossy.webp", quality=50, icc_profile=profile)
    assert (read_mask(tmp_path / "lossy.webp") ^ box.astype(bool)).sum() <= 20


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # as the program has it
def test_bad_files_are_one_line(tmp_path, capfd, caplog):
    file = tmp_path / "a.tif"
    for options in ({"compression": "zlib"}, {"compression": "lzw"}, {}):
        tifffile.imwrite(file, GREY, **options)
        whole = file.read_bytes()
        for size in (20, 300, len(whole) // 2, len(whole) - 10):
            file.write_bytes(whole[:size])
            with pytest.raises(UserError, match=re.escape(f"{file}: ")) as caught:
                read_rgb(file)
            assert "\n" not in str(caught.value)
    buffer = io.BytesIO()
    Image.fromarray(SMALL).save(buffer, "WEBP", lossless=True)
    (tmp_path / "a.webp").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(UserError, match="a.webp: "):
        read_rgb(tmp_path / "a.webp")
    for values in (GREY.astype(np.float32), GREY.astype(np.uint32), GREY.astype(np.int16)):
        tifffile.imwrite(file, values)
        with pytest.raises(UserError, match=f"values are {values.dtype}, .* export it with 8 or"):
            read_rgb(file)
    tifffile.imwrite(file, SMALL.repeat(3, 2), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match="a.tif: "):
        read_rgb(file)
    assert capfd.readouterr().err == "" and not caplog.records
