"""Pairs, normals and held-out pictures in the formats of other tools: anomalib, COCO."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from helixbench.errors import UserError
from helixbench.pictures.prepared import load_pairs, read_image, read_samples
from helixbench.provenance import sha256, whole_folder, write_text
from helixbench.records import GOOD, Pair, csv_text, inside

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A picture to export: name without suffix, defect type, file, mask file (None for normals),
    and what it is: `train`, `calibration`, `test` or `pair`.
    """

    name: str
    defect: str
    image: Path
    mask: Path | None
    kind: str


def items(prepared: Path, pairs: Path) -> list[Item]:
    """Normals, held-out pictures, and the pairs past the mask gate, of one category.

    prepared, pairs: folders written by `prepare` and `generate`. Raises UserError for pairs of
    another category, for altered ones, and where none passed the gate.
    """
    kinds = {"normal": "train", "calibration": "calibration"}
    found = []
    for s in read_samples(prepared):
        if (kind := "test" if s.tests else kinds.get(s.role)) is not None:
            mask = inside(prepared, s.mask) if s.mask else None
            found.append(Item(s.id, s.defect, inside(prepared, s.image), mask, kind))
            category = s.dataset, s.category
    every = load_pairs(pairs)
    used = [pair for pair in every if pair.gate == "ok"]
    if not used:
        raise UserError(f"{pairs}: no pair passed the mask gate; generate again")
    if (other := (used[0].dataset, used[0].category)) != category:
        raise UserError(
            f"{pairs}: pairs of {'/'.join(other)}, but {prepared} is {'/'.join(category)}; give "
            f"two folders of one category"
        )
    log.info("%s: %d of %d pairs passed the mask gate", pairs, len(used), len(every))
    for pair in used:
        image, mask = _checked(pairs, pair)
        found.append(Item(f"{pair.index:05d}", pair.defect, image, mask, "pair"))
    return found


def _checked(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """Files of a pair; UserError where they are not what the manifest says."""
    files = inside(folder, pair.image), inside(folder, pair.mask)
    for file, known in zip(files, (pair.sha256, pair.mask_sha256), strict=True):
        if not file.is_file() or sha256(file) != known:
            raise UserError(
                f"{file}: missing or altered since its manifest was written; generate again"
            )
    return files


def run(prepared: Path, pairs: Path, out: Path, to: str) -> None:
    """Write `out`, whole or not at all; to: `anomalib` or `coco`."""
    found = items(prepared, pairs)
    with whole_folder(out) as folder:
        _FORMATS[to](folder, found)
    counts = {kind: sum(item.kind == kind for item in found) for kind in ("pair", "train", "test")}
    log.info("%s: %s", out, ", ".join(f"{n} {kind}" for kind, n in counts.items()))


def _copy(source: Path, folder: Path, name: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / name)
    return name


def _anomalib(folder: Path, found: Sequence[Item]) -> None:
    """Folders as those of MVTec AD, pairs beside them, and two tables for anomalib's `Tabular`.

    real.csv: normals, and held-out pictures as test. pairs.csv: the same normals, and pairs with
    the normals for calibration as test, for a validation that sees no real defect.
    """
    places = {"train": "train", "calibration": "calibration", "test": "test", "pair": "pairs"}
    tables: dict[str, list[tuple]] = {"real.csv": [], "pairs.csv": []}
    for item in found:
        place = f"{item.defect}/{item.name}.png"
        image, mask = _copy(item.image, folder, f"{places[item.kind]}/{place}"), ""
        if item.mask:
            masks = "pairs_masks" if item.kind == "pair" else "ground_truth"
            mask = _copy(item.mask, folder, f"{masks}/{place}")
        label = int(item.defect != GOOD)
        row = (image, label, "train" if item.kind == "train" else "test", mask)
        for name, kinds in _TABLES.items():
            if item.kind in kinds:
                tables[name].append(row)
    for name, rows in tables.items():
        header = ("image_path", "label_index", "split", "mask_path")
        write_text(folder / name, csv_text([header, *rows]))


_TABLES = {"real.csv": ("train", "test"), "pairs.csv": ("train", "calibration", "pair")}


def _coco(folder: Path, found: Sequence[Item]) -> None:
    """train.json with pairs and normals, test.json with held-out pictures; each connected piece of
    a mask is an object, as a run-length code of its pixels.
    """
    defects = sorted({item.defect for item in found} - {GOOD})
    for part, kinds in (("train", ("train", "pair")), ("test", ("test",))):
        own = [item for item in found if item.kind in kinds]
        content = _annotations(folder, part, own, defects)
        write_text(folder / f"{part}.json", json.dumps(content))


def _annotations(
    folder: Path, part: str, found: Iterable[Item], defects: Sequence[str]
) -> dict[str, Any]:
    """Pictures and objects of a part; the pictures are copied."""
    images: list[dict] = []
    objects: list[dict] = []
    for number, item in enumerate(found, 1):
        height, width = read_image(item.image, "L").shape
        file = _copy(item.image, folder, f"{part}/{item.defect}/{item.name}.png")
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        if not item.mask:
            continue
        labels, count = ndimage.label(read_image(item.mask, "L") > 127, np.ones((3, 3)))
        for piece in range(1, count + 1):
            about = {"id": len(objects) + 1, "image_id": number, "iscrowd": 0}
            about["category_id"] = 1 + defects.index(item.defect)
            objects.append({**about, **_object(labels == piece)})
    categories = [{"id": i, "name": name} for i, name in enumerate(defects, 1)]
    return {"images": images, "annotations": objects, "categories": categories}


def _object(mask: np.ndarray) -> dict[str, Any]:
    """Area, box and uncompressed run lengths, column by column, of a mask (H, W) bool."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))  # the first run is of 0
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "segmentation": {"counts": counts.tolist(), "size": list(mask.shape)},
        "area": int(mask.sum()),
        "bbox": [int(side) for side in box],
    }


_FORMATS = {"anomalib": _anomalib, "coco": _coco}
