"""Pictures with known masks, written in each raw layout as its authors publish it: the other way
round of `Layout.read`.

Where a layout mixes formats or cuts masks, so do these: BTAD in BMP and PNG, VisA in JPEG with mask
values from 1, MVTec LOCO AD with several mask files a picture, the magnetic tiles in grey with
antialiased masks.
"""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from helixbench.datasets import folder, magnetic_tile, visa
from helixbench.datasets.mvtec_ad import BTAD
from helixbench.provenance import whole_folder, write_json, write_text
from helixbench.records import GOOD, csv_text, read_rows


@dataclass(frozen=True)
class Drawing:
    """A picture, (H, W, 3) uint8, of a subset (train, test) and a defect type; mask (H, W) bool,
    None for normals.
    """

    subset: str
    defect: str
    number: int
    image: np.ndarray
    mask: np.ndarray | None


def _save(path: Path, array: np.ndarray, **options) -> None:
    """Write uint8 values, or bool as 0 and 255, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(
        path, **options
    )


BEST = {"quality": 100, "subsampling": 0}


def _mvtec_ad(out: Path, drawings: Iterable[Drawing]) -> None:
    for d in drawings:
        _save(out / d.subset / d.defect / f"{d.number:03}.png", d.image)
        if d.mask is not None:
            _save(out / "ground_truth" / d.defect / f"{d.number:03}_mask.png", d.mask)


LOGICAL = ("missing_part",)
"""Defect types that count as logical anomalies; the others are structural."""


def _mvtec_loco(out: Path, drawings: Iterable[Drawing]) -> None:
    count, values = Counter(), {}
    for d in drawings:
        kind = (
            GOOD
            if d.mask is None
            else f"{'logical' if d.defect in LOGICAL else 'structural'}_anomalies"
        )
        name = f"{count[d.subset, kind]:03}"
        count[d.subset, kind] += 1
        _save(out / d.subset / kind / f"{name}.png", d.image)
        if d.mask is not None:
            value = values.setdefault(d.defect, 255 - len(values))
            left = np.arange(d.mask.shape[1]) < np.flatnonzero(d.mask.any(axis=0)).mean()
            for number, part in enumerate((d.mask & left, d.mask & ~left)):
                _save(
                    out / "ground_truth" / kind / name / f"{number:03}.png",
                    part.astype(np.uint8) * np.uint8(value),
                )
    areas = {"saturation_threshold": 1.0, "relative_saturation": True}
    write_json(
        out / "defects_config.json",
        [
            {"defect_name": defect, "pixel_value": value, **areas}
            for defect, value in values.items()
        ],
    )


def _btad(out: Path, drawings: Iterable[Drawing]) -> None:
    count = Counter()
    for d in drawings:
        kind = BTAD.good if d.mask is None else "ko"
        number = count[d.subset, kind]
        count[d.subset, kind] += 1
        _save(out / d.subset / kind / f"{number:04}{('.bmp', '.png')[number % 2]}", d.image)
        if d.mask is not None:
            _save(
                out / "ground_truth" / kind / f"{number:04}{('.png', '.bmp')[number // 2 % 2]}",
                d.mask,
            )


def _magnetic_tile(out: Path, drawings: Iterable[Drawing]) -> None:
    count = Counter()
    for d in drawings:
        kind = magnetic_tile.FREE if d.mask is None else f"MT_{d.defect.capitalize()}"
        file = out / kind / "Imgs" / f"exp{count[kind]:04}.jpg"
        count[kind] += 1
        _save(file, np.asarray(Image.fromarray(d.image).convert("L")), **BEST)
        mask = np.zeros(d.image.shape[:2], bool) if d.mask is None else d.mask
        soft = gaussian_filter(mask * 255.0, 0.6)
        _save(
            file.with_suffix(".png"),
            np.where(mask, soft.clip(128), soft.clip(max=127)).astype(np.uint8),
        )


def _visa(out: Path, drawings: Iterable[Drawing]) -> list[tuple[str, ...]]:
    """Rows of the split, without the object."""
    rows = []
    for number, d in enumerate(drawings):
        kind = "Normal" if d.mask is None else "Anomaly"
        image, mask = f"Data/Images/{kind}/{number:04}.JPG", f"Data/Masks/{kind}/{number:04}.png"
        _save(out / image, d.image, **BEST)
        if d.mask is not None:
            _save(out / mask, d.mask.astype(np.uint8) * np.uint8(1 + number % 3))
        rows.append(
            (
                d.subset,
                "normal" if d.mask is None else visa.DEFECT,
                image,
                "" if d.mask is None else mask,
            )
        )
    return rows


def _enter_split(root: Path, category: str, rows: Iterable[tuple[str, ...]]) -> None:
    """Put a category's rows into the split of VisA, which categories drawn at the same time
    share.
    """
    path = root / visa.SPLIT
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = read_rows(path, visa.COLUMNS) if path.exists() else []
        kept = [
            tuple(row[name] for name in visa.COLUMNS)
            for _, row in others
            if row["object"] != category
        ]
        own = [
            (category, subset, label, *(name and f"{category}/{name}" for name in files))
            for subset, label, *files in rows
        ]
        write_text(path, csv_text([visa.COLUMNS, *sorted([*kept, *own])]))


def _folder(out: Path, drawings: Iterable[Drawing]) -> None:
    """A tree of its own with names as people give them, and a manifest that says what is what."""
    rows = []
    for d in drawings:
        name = f"{d.subset} {d.number:03}.png"
        mask = "" if d.mask is None else f"Flächen/{d.defect}/{name}"
        _save(out / d.defect / name, d.image)
        if d.mask is not None:
            _save(out / mask, d.mask)
        rows.append((f"{d.defect}/{name}", mask, d.defect, d.subset))
    write_text(out / folder.MANIFEST, csv_text([folder.COLUMNS, *rows]))


WRITERS: dict[str, Callable[[Path, Iterable[Drawing]], list[tuple[str, ...]] | None]] = {
    "mvtec_ad": _mvtec_ad,
    "mpdd": _mvtec_ad,
    "mvtec_loco": _mvtec_loco,
    "visa": _visa,
    "btad": _btad,
    "magnetic_tile": _magnetic_tile,
    "folder": _folder,
}


def write(layout: str, root: Path, category: str, drawings: Iterable[Drawing]) -> None:
    """Write a category below <root>/<category>, which appears whole or not at all."""
    with whole_folder(Path(root) / category) as out:
        rows = WRITERS[layout](out, drawings)
    if rows is not None:
        _enter_split(Path(root), category, rows)
