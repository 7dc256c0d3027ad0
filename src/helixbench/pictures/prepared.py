"""Reading prepared pictures and generated pairs back: checked against their manifests, kept as
8-bit arrays.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from helixbench.errors import UserError
from helixbench.pictures.files import FORMATS
from helixbench.provenance import read_object
from helixbench.records import Pair, Sample, inside, read_csv


def read_image(path: Path, mode: str, sha256: str | None = None) -> np.ndarray:
    """One picture as uint8, (H, W, 3) for mode RGB and (H, W) for L.

    Raises UserError naming the file when it is missing, unreadable, or not the one whose sha256 was
    recorded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; make the folder again") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{path}: altered since its manifest was written (sha256 differs); make the folder "
            f"again"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return np.asarray(picture.convert(mode))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: not a readable picture ({error}); make the folder again"
        ) from None


def _stack(arrays: list[np.ndarray], paths: list[Path], shape: tuple[int, ...]) -> np.ndarray:
    for array, path in zip(arrays, paths, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            size, first = array.shape[:2], arrays[0].shape[:2]
            raise UserError(
                f"{path}: is {size[1]}x{size[0]}, {paths[0]} is {first[1]}x{first[0]}; make the "
                f"folder again"
            )
    return np.stack(arrays) if arrays else np.zeros(shape, np.uint8)


def pair_images(folder: Path, pairs: Sequence[Pair]) -> np.ndarray:
    """Images of generated pairs, (n, H, W, 3) uint8, each checked against its sha256."""
    paths = [inside(folder, pair.image) for pair in pairs]
    return _stack(
        [read_image(path, "RGB", pair.sha256) for path, pair in zip(paths, pairs, strict=True)],
        paths,
        (0, 0, 0, 3),
    )


def pair_masks(folder: Path, pairs: Sequence[Pair]) -> np.ndarray:
    """Masks of generated pairs, (n, H, W) bool, each checked against its sha256."""
    paths = [inside(folder, pair.mask) for pair in pairs]
    masks = [
        read_image(path, "L", pair.mask_sha256) for path, pair in zip(paths, pairs, strict=True)
    ]
    return _stack(masks, paths, (0, 0, 0)) > 127


def read_samples(folder: Path) -> list[Sample]:
    """Rows of a prepared folder's samples.csv, as `prepare` wrote them."""
    file = folder / "samples.csv"
    known = _hashes(folder)
    if known and hashlib.sha256(file.read_bytes()).hexdigest() != known.get(file.name):
        raise UserError(f"{file}: altered since it was prepared (sha256 differs); prepare again")
    return read_csv(file, Sample)


def _hashes(folder: Path) -> dict[str, str]:
    """File -> sha256, as the manifest of a prepared folder has them; empty where it has none, as in
    the folders that the judge makes and reads itself.
    """
    file = folder / "manifest.json"
    return _hashes_in(file, file.stat().st_mtime_ns) if file.is_file() else {}


@lru_cache(maxsize=8)
def _hashes_in(file: Path, mtime: int) -> dict[str, str]:
    return read_object(file, "prepare again", lambda made: dict(made["files"]))


def _read_prepared(folder: Path, name: str, mode: str) -> tuple[Path, np.ndarray]:
    """A prepared picture, checked against the manifest."""
    path, known = inside(folder, name), _hashes(folder)
    if known and name not in known:
        raise UserError(f"{path}: not in the folder's manifest; prepare again")
    return path, read_image(path, mode, known.get(name))


def sample_images(folder: Path, samples: Sequence[Sample]) -> np.ndarray:
    """Prepared pictures, (n, H, W, 3) uint8, each checked against the manifest."""
    found = [_read_prepared(folder, sample.image, "RGB") for sample in samples]
    return _stack([array for _, array in found], [path for path, _ in found], (0, 0, 0, 3))


def sample_masks(folder: Path, samples: Sequence[Sample], size: tuple[int, int]) -> np.ndarray:
    """Prepared masks, (n, H, W) bool; all False for normals, which have no mask file."""
    masks = np.zeros((len(samples), *size), bool)
    for mask, sample in zip(masks, samples, strict=True):
        if sample.mask:
            path, array = _read_prepared(folder, sample.mask, "L")
            if array.shape != size:
                raise UserError(
                    f"{path}: is {array.shape[1]}x{array.shape[0]}, its picture "
                    f"{size[1]}x{size[0]}; prepare again"
                )
            mask[:] = array > 127
    return masks


def bilinear_file(mask: str) -> str:
    """Manifest path of a mask -> that of the same mask resized bilinearly, grey where it is partly
    covered.
    """
    return mask.removesuffix(".png") + "_bilinear.png"


def bilinear_masks(folder: Path, samples: Sequence[Sample], size: tuple[int, int]) -> np.ndarray:
    """Prepared masks as the rivals' scripts resize them, (n, H, W) uint8; 0 for normals. UserError
    where one is missing.
    """
    masks = np.zeros((len(samples), *size), np.uint8)
    for mask, sample in zip(masks, samples, strict=True):
        if sample.mask:
            path, array = _read_prepared(folder, bilinear_file(sample.mask), "L")
            if array.shape != size:
                raise UserError(
                    f"{path}: is {array.shape[1]}x{array.shape[0]}, its picture "
                    f"{size[1]}x{size[0]}; prepare again"
                )
            mask[:] = array
    return masks


def load_pairs(folder: Path) -> list[Pair]:
    """Rows of a pairs folder's manifest; UserError when there are none."""
    pairs = read_csv(folder / "manifest.csv", Pair)
    if not pairs:
        raise UserError(f"{folder / 'manifest.csv'}: lists no pairs; generate again")
    return pairs


def _pair_facts(folder: Path) -> dict:
    """manifest.json of a pairs folder; empty where it has none."""
    try:
        return read_object(folder / "manifest.json", "")
    except UserError:
        return {}


def pair_settings(folder: Path) -> str:
    """How a pairs folder was made, as its manifest says it; empty when it says nothing."""
    return str(_pair_facts(folder).get("settings") or "")


def pairs_follow_cells(folder: Path) -> bool:
    """Whether the method that made a pairs folder was given the raw masks that its manifest
    names.
    """
    return _pair_facts(folder).get("takes_raw_mask") is True


def calibration_share(prepared: Path) -> float:
    """Share of the normals that a prepared folder's split.json keeps for calibration; 0: none."""
    take = lambda split: float(split.get("calibration", {}).get("share", 0.0))
    return read_object(prepared / "split.json", "prepare again", take)


def read_split(prepared: Path) -> tuple[str, str]:
    """Rule and sha256 of a prepared folder's split.json."""
    return read_object(
        prepared / "split.json",
        "prepare again",
        lambda split: (str(split["rule"]), str(split["sha256"])),
    )
