"""The layout of VisA (Zou et al., ECCV 2022): pictures and masks below the category, the split in split_csv/1cls.csv.

The CSV has the columns object, split (train, test), label (normal, anomaly), image and mask, with paths relative to the root.
All anomalies of a category are one defect type, `anomaly`; mask values 1 to n are kinds of defects: all of them are anomalous.
"""

from __future__ import annotations

import csv
from pathlib import Path

from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample, inside

SPLIT = Path("split_csv/1cls.csv")
SHARED = (SPLIT,)
"""Files outside of the category's folder that decide what it is."""

COLUMNS = ("object", "split", "label", "image", "mask")
DEFECT = "anomaly"


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or the split is missing; `key` is the configuration key of the root."""
    for wanted, there in ((root / category, (root / category).is_dir()), (root / SPLIT, (root / SPLIT).is_file())):
        if not there:
            raise UserError(f"{wanted}: not there; download VisA and unpack it so that {root}/{SPLIT} exists, or set {key}")


def read(root: Path, dataset: str, category: str) -> list[RawSample]:
    """Every picture of a category, sorted; UserError naming the row of the CSV that is wrong."""
    check(root, category, f"prepare.datasets.{dataset}.root")
    path, samples = root / SPLIT, []
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        absent = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if absent:
            raise UserError(f"{path}: no column {absent[0]}; columns are {', '.join(COLUMNS)}")
        for number, row in enumerate(reader, start=2):
            if row["object"] != category:
                continue
            if row["split"] not in ("train", "test") or row["label"] not in ("normal", DEFECT):
                raise UserError(
                    f"{path}: row {number}: split {row['split']!r} and label {row['label']!r} are not of VisA; restore the file"
                )
            files = {name: (root / row[name]).absolute() for name in ("image", "mask") if row[name]}
            for name, file in files.items():
                if not inside(root, row[name]).is_file():
                    raise UserError(f"{file}: {name} of row {number} of {path} is missing; unpack VisA again")
            normal = row["label"] == "normal"
            if "image" not in files or (not normal and "mask" not in files):
                raise UserError(f"{path}: row {number}: an anomaly needs image and mask; restore the file")
            defect, mask = (GOOD, None) if normal else (DEFECT, files["mask"])
            samples.append(RawSample(dataset, category, defect, row["split"], files["image"], mask))
    for subset, what in (("train", "normals to train on"), ("test", "pictures to test on")):
        if not any(s.subset == subset for s in samples):
            raise UserError(f"{path}: no {what} of {category}; restore the file")
    return sorted(samples, key=lambda s: (s.subset, s.defect, s.image.name))
