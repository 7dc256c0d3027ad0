"""Reading what cameras, annotation tools and data-set authors write; resizing; writing."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

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
    "WebP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  "),
    "AVIF or HEIC": re.compile(rb".{4}ftyp(avif|heic|heix|mif1)", re.DOTALL),
    "PDF": re.compile(rb"%PDF"),
    "Photoshop": re.compile(rb"8BPS"),
}
"""What people's files with the suffix of another format hold, by their first bytes."""

warnings.filterwarnings(
    "ignore", category=Image.DecompressionBombWarning
)  # the limit above is lower than Pillow's and stops


def _open(path: str | Path) -> Image.Image:
    """Decode a whole picture, upright; UserError for anything that is none."""
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty file (0 bytes); copy it again from its source")
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_MEGAPIXELS * 10**6:
                raise Image.DecompressionBombError(f"{picture.width}x{picture.height} pixels")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            upright.format = picture.format  # which a copy does not know
            return upright
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
            f"{path}: not a picture; replace it by a PNG, JPEG or BMP, or remove it"
        ) from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(
            f"{path}: unreadable picture ({reason}); copy it again from its source"
        ) from None
    except Exception as error:  # a damaged file can raise anything from within a decoder
        if "MAX_TEXT" in str(error):
            raise UserError(
                f"{path}: more than 1 MB of text or colour profile in it; save it anew without "
                f"metadata"
            ) from None
        raise UserError(
            f"{path}: unreadable picture ({' '.join(str(error).split())}); copy it again from its "
            f"source"
        ) from None


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
    "I": "16-bit grey",
}


def kind_of(path: str | Path) -> tuple[str, bool]:
    """Kind of picture by its header, e.g. `grey` or `16-bit grey`, and whether its EXIF orientation
    turns it.

    The file is one that `read_rgb` has read.
    """
    with Image.open(path, formats=FORMATS) as picture:
        kind = "transparent" if _transparent(picture) else KINDS.get(picture.mode, picture.mode)
        return kind, picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)


def read_rgb(path: str | Path) -> np.ndarray:
    """Picture as (H, W, 3) uint8 RGB, upright.

    16-bit grey is scaled by its full range of 65535, never stretched a picture: brightness stays
    comparable between pictures. Transparency is laid on black, unless all is transparent: such an
    alpha channel means nothing. Raises UserError, one line naming the file.
    """
    picture = _open(path)
    if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = (np.asarray(picture).clip(0, 65535).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
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
    palette, lossy = picture.mode in ("P", "PA"), picture.format == "JPEG"
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "L"):
        mask = _binarise(np.asarray(picture).clip(0, 65535), lossy)
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
