"""Reading what cameras, annotation tools and data-set authors write; resizing; writing."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from scipy.ndimage import binary_dilation

from helixbench.errors import UserError
from helixbench.pictures.files import FORMATS, is_picture
from helixbench.records import RawSample

MAX_MEGAPIXELS = 80
"""A picture decodes to at least 3 bytes a pixel; a small file can claim any size, so its header is
asked first."""

_NOT_READ = {
    "GIF": re.compile(rb"GIF8"),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  "),
    "AVIF or HEIC": re.compile(rb".{4}ftyp(avif|heic|heix|mif1)", re.DOTALL),
    "PDF": re.compile(rb"%PDF"),
    "Photoshop": re.compile(rb"8BPS"),
}
"""What people's files with the suffix of another format hold, by their first bytes."""

warnings.filterwarnings(
    "ignore", category=Image.DecompressionBombWarning
)  # the limit above is lower than Pillow's and stops
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # what is damaged has its one line
for _library in ("PIL.TiffImagePlugin", "tifffile"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)


_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def _open(path: str | Path, bits: int | None = None) -> Image.Image:
    """Decode a whole picture, upright; UserError for anything that is none.

    Grey of more than 8 bits has the mode I;16 and its values as they are, `info["bits"]` says of
    how many; colour is scaled to 8 bits. bits: as in `read_rgb`.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty file (0 bytes); copy it again from its source")
        try:
            return _decoded(path, path, bits)
        except ValueError as error:  # Pillow's limit of 1 MB, which no pixel needs
            if "MAX_TEXT" not in str(error):
                raise
            return _decoded(path, _without_texts(path.read_bytes()), bits)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: too large to decode ({error}; the limit is {MAX_MEGAPIXELS} megapixels); "
            f"scale it down or cut it into tiles"
        ) from None
    except UnidentifiedImageError:
        with open(path, "rb") as handle:
            start = handle.read(12)
        for kind, known in _NOT_READ.items():
            if known.match(start):
                raise UserError(f"{path}: holds {kind}; convert it to PNG") from None
        raise UserError(
            f"{path}: not a picture; replace it by a PNG, JPEG, BMP, TIFF or WebP, or remove it"
        ) from None
    except Exception as error:  # a damaged file can raise anything from within a decoder
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{path}: unreadable picture ({reason}); copy it again from its source"
        ) from None


def _decoded(path: Path, source: Path | io.BytesIO, bits: int | None) -> Image.Image:
    with Image.open(source, formats=FORMATS) as picture:
        if picture.width * picture.height > MAX_MEGAPIXELS * 10**6:
            raise Image.DecompressionBombError(f"{picture.width}x{picture.height} pixels")
        own, stored = picture.format, str(picture.tile)  # which asking for EXIF empties
        turn = picture.getexif().get(ExifTags.Base.Orientation, 1)
        if own == "TIFF" and picture.tag_v2.get(_TIFF_PHOTOMETRIC) in (0, 1, 2, 6):
            picture = _tiff(path, bits)
        elif bits and own == "PNG" and picture.mode != "I;16" and ";16" in stored:
            picture = _shallow(_png(path), bits, path)  # Pillow keeps the high bytes only
        picture.load()
        if turn not in (0, 1):
            picture.getexif()[ExifTags.Base.Orientation] = turn
        upright = ImageOps.exif_transpose(picture)
        upright.format = own  # which a copy does not know
        return upright


def _without_texts(png: bytes) -> io.BytesIO:
    """A PNG without its texts and colour profile, however large they are."""
    kept, at = [png[:8]], 8
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[at:end])
        at = end
    return io.BytesIO(b"".join(kept))


def _png(path: Path) -> np.ndarray:
    """Colours of 16 bits, (H, W, 3 or 4) uint16."""
    import imagecodecs

    return imagecodecs.png_decode(path.read_bytes())


def _tiff(path: Path, bits: int | None) -> Image.Image:
    """First page of a TIFF of grey or colour values.

    Pillow reads planes of 16 bits and inverted grey of 16 bits wrongly, and lets a library print
    what is damaged.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        values, deep = page.asarray(maxworkers=1), page.bitspersample
        inverted, planes = page.photometric == 0, page.planarconfig == 2
    if values.dtype not in (bool, np.uint8, np.uint16):
        raise UserError(
            f"{path}: values are {values.dtype}, of a range that nobody knows; export it with 8 "
            f"or 16 bits, all pictures by the same factor"
        )
    if planes and values.ndim == 3:
        values = np.moveaxis(values, 0, 2)
    if inverted:
        values = ~values if values.dtype == bool else (2**deep - 1) - values
    if values.ndim != 2 and (values.ndim != 3 or values.shape[2] not in (2, 3, 4)):
        raise UserError(f"{path}: {values.shape} values are no picture; export grey or RGB")
    if values.dtype != np.uint16:
        return Image.fromarray(values)
    if values.ndim == 3:
        return _shallow(values, bits or deep, path)
    picture = Image.fromarray(np.ascontiguousarray(values))
    picture.info["bits"] = deep
    return picture


def _eight_bits(values: np.ndarray, bits: int, path: Path) -> np.ndarray:
    """uint16 values of so many bits as uint8; UserError when one has more."""
    top, brightest = 2**bits - 1, int(values.max(initial=0))
    if brightest > top:
        raise UserError(
            f"{path}: value {brightest} has more than {bits} bits; set bits: "
            f"{brightest.bit_length()} for all pictures of the data set"
        )
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _shallow(values: np.ndarray, bits: int, path: Path) -> Image.Image:
    """Colours (H, W, 2 to 4) uint16 of so many bits with 8; of 16 the high bytes, as Pillow has it
    for PNG.
    """
    return Image.fromarray(
        (values >> 8).astype(np.uint8) if bits == 16 else _eight_bits(values, bits, path)
    )


def _on_black(picture: Image.Image) -> Image.Image:
    """RGB of a picture with transparency, laid on black; all-opaque pictures keep their values."""
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


def _transparent(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel, or a palette with one; not for one colour of a grey
    or colour picture that is to be taken as transparent, which is a colour like others.
    """
    keyed = "transparency" in picture.info and picture.mode == "P"
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or keyed


KINDS = {
    "1": "1-bit",
    "L": "grey",
    "RGB": "colour",
    "P": "palette",
    "CMYK": "CMYK",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
}


class Header(NamedTuple):
    """What the header of a file says: the kind of picture, e.g. `grey` or `16-bit grey`; whether
    its EXIF orientation turns it; how many pages or frames there are, of which the first is read.
    """

    kind: str
    turned: bool
    pages: int


def header(path: str | Path) -> Header:
    """Header of a file that `read_rgb` has read."""
    with Image.open(path, formats=FORMATS) as picture:
        kind = "transparent" if _transparent(picture) else KINDS.get(picture.mode, picture.mode)
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
        return Header(kind, turned, getattr(picture, "n_frames", 1))


def read_rgb(path: str | Path, bits: int | None = None) -> np.ndarray:
    """Picture as (H, W, 3) uint8 RGB, upright; of several pages or frames the first.

    Values of more than 8 bits are scaled by their full range, never stretched a picture: brightness
    stays comparable between pictures. The range is that of the file (65535, or 4095 in a TIFF of
    12 bits), or `bits` where the camera used fewer than the file has. Colour profiles are not
    applied. Transparency is laid on black, unless all is transparent: such an alpha channel means
    nothing. Raises UserError, one line naming the file.
    """
    picture = _open(path, bits)
    if picture.mode == "I;16":
        values = np.asarray(picture)
        grey = _eight_bits(values, bits or picture.info.get("bits", 16), Path(path))
        return np.repeat(grey[..., None], 3, axis=2)
    if _transparent(picture):
        rgba = picture.convert("RGBA")
        unused = rgba.getchannel("A").getextrema() == (0, 0)
        return np.array(rgba)[..., :3] if unused else np.array(_on_black(picture))
    return np.array(picture.convert("RGB"))


_FLAT = 5
"""Side of a square of one value [pixel] that no antialiased edge holds."""


def _binarise(values: np.ndarray, lossy: bool = False) -> np.ndarray:
    """Anomalous pixels of grey values (H, W).

    Two kinds of mask are around. Black and white, perhaps with antialiased edges: the threshold is
    half of the range (127 of 255; `> 0` would fatten it). Labels, 0 and any other values: all but 0
    is anomalous. Labels are told by a flat area of a value in the lower half, which an edge does
    not have. A lossy file blurs its values, so that half of the brightest decides there.
    """
    top = int(values.max(initial=0))
    half = (255 if top <= 255 else 65535) // 2
    if lossy:
        return values > min(half, top // 2)
    low, counts = np.unique(values[(values > 0) & (values <= half)], return_counts=True)
    common = low[np.argsort(-counts)][:8]
    if top <= half or any(_is_flat(values == value) for value in common):
        if values.all():  # a background that is not quite black
            return values > half
        return (values > 0) & ~_border(values, half)
    return values > half


def _is_flat(area: np.ndarray, side: int = _FLAT) -> bool:
    """Whether an area (H, W) bool holds a square of `side` pixels."""
    if min(area.shape) < side or area.sum() < side**2:
        return False
    return bool(sliding_window_view(area, (side, side)).all(axis=(2, 3)).any())


def _border(values: np.ndarray, half: int) -> np.ndarray:
    """Where 255 is the thin border around labels that PASCAL VOC and mmseg ignore, (H, W) bool."""
    border, labels = values == 2 * half + 1, (values > 0) & (values <= half)
    near = binary_dilation(labels, iterations=_FLAT) if border.any() and labels.any() else border
    thin = not _is_flat(border, _FLAT + 2) and bool((border & ~near).sum() <= 0.05 * border.sum())
    return border if labels.any() and thin else np.zeros_like(border)


def _lossy(path: Path, picture: Image.Image) -> bool:
    """Whether a file keeps its values about only: JPEG, and WebP of that kind."""
    if picture.format != "WEBP":
        return picture.format == "JPEG"
    data, at = path.read_bytes(), 12
    while at + 8 <= len(data):
        if data[at : at + 4] in (b"VP8 ", b"VP8L"):
            return data[at : at + 4] == b"VP8 "
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return True


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Mask as (H, W) bool, True on anomalous pixels; see `_binarise` for what counts as such.

    Of colour masks the brightest channel counts; a palette of colours is a label picture: all but
    black is anomalous. A folder holds several masks of one picture: what is not 0 in any of them is
    anomalous. size: (H, W) of its picture. Raises UserError when the file is unreadable or of
    another size.
    """
    if Path(path).is_dir():
        parts = [
            read_rgb(file).max(axis=2) > 0
            for file in sorted(Path(path).iterdir())
            if is_picture(file.name)
        ]
        if not parts:
            raise UserError(f"{path}: no masks in this folder; add them or remove the picture")
        return np.logical_or.reduce(
            [_of_size(path, part, size or parts[0].shape) for part in parts]
        )
    picture = _open(path)
    palette, lossy = picture.mode in ("P", "PA"), _lossy(Path(path), picture)
    if picture.mode in ("I;16", "L"):
        mask = _binarise(np.asarray(picture), lossy)
    else:
        rgb = np.asarray(_on_black(picture) if _transparent(picture) else picture.convert("RGB"))
        brightest = rgb.max(axis=2)
        coloured = palette and bool((rgb.min(axis=2) != brightest).any())
        mask = brightest > 0 if coloured else _binarise(brightest, lossy)
    return mask if size is None else _of_size(path, mask, size)


def _of_size(path: str | Path, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if mask.shape != tuple(size):
        wanted, given = (f"{w}x{h}" for h, w in (size, mask.shape))
        turned = " upright" if mask.shape == (size[1], size[0]) else ""
        raise UserError(
            f"{path}: mask is {given} pixels but its picture is {wanted}{turned}; export the mask "
            f"at the picture's size"
        )
    return mask


def read_values(path: str | Path) -> np.ndarray:
    """Values of a label mask, (H, W) integers: grey as it is, of a palette the index. Raises
    UserError for a picture of colours.
    """
    picture = _open(path)
    if picture.mode not in ("1", "L", "P", "I;16"):
        raise UserError(f"{path}: colours are no labels; export grey values or a palette")
    return np.asarray(picture).astype(np.int64)


def read_defect_mask(raw: RawSample, size: tuple[int, int] | None = None) -> np.ndarray:
    """Mask of a defective picture, (H, W) bool; UserError when it is unreadable, of another size
    than (H, W), or empty.
    """
    mask = read_mask(raw.mask, size)
    if not mask.any():
        raise UserError(
            f"{raw.mask}: empty mask for the defect {raw.defect}; mark the defect, or move the "
            f"picture to test/good"
        )
    return mask


def content_hash(image: np.ndarray) -> str:
    """Hash of decoded pixels: the same picture saved anew, under any name, is the same content."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def resize_rgb(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 to (size, size, 3), antialiased Lanczos; other shapes become square, as is
    usual in the field.
    """
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) bool to (size, size): at least half covered; a defect too thin for that keeps every
    pixel it touches.
    """
    if mask.shape == (size, size):
        return mask
    area = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    small = np.asarray(area) >= 0.5
    if mask.any() and not small.any():
        small = np.zeros((size, size), bool)
        rows, columns = np.nonzero(mask)
        small[rows * size // mask.shape[0], columns * size // mask.shape[1]] = True
    return small


def bilinear_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) bool to (size, size) uint8, 255 where wholly covered: bilinear without antialiasing,
    as OpenCV resizes by default.

    That is the ground truth of AnomalyDiffusion's test script and of those that follow it; read
    only where it is asked for.
    """
    at = [((np.arange(size) + 0.5) * side / size - 0.5).clip(0, side - 1) for side in mask.shape]
    values = ndimage.map_coordinates(
        mask.astype(np.float32), np.meshgrid(*at, indexing="ij"), order=1
    )
    return np.rint(255 * values).astype(np.uint8)


def write_png(path: str | Path, array: np.ndarray) -> None:
    """(H, W, 3) uint8 or (H, W) bool as PNG; bool becomes 0 and 255."""
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(
        path, compress_level=4
    )
