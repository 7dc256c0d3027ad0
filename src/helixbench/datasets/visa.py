"""The layout of VisA (Zou et al., ECCV 2022): pictures and masks below the category, the split in
split_csv/1cls.csv.

The CSV has the columns object, split (train, test), label (normal, anomaly), image and mask, with
paths relative to the root. All anomalies of a category are one defect type, `anomaly`; mask values
1 to n are kinds of defects: all of them are anomalous.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets.notes import Notes
from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample, inside, read_rows

SPLIT = Path("split_csv/1cls.csv")
COLUMNS = ("object", "split", "label", "image", "mask")
DEFECT = "anomaly"
ADVICE = f"restore the file; its columns are {', '.join(COLUMNS)}"


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or the split is missing; `key` is the configuration key of the
    root.
    """
    for wanted, there in (
        (root / category, (root / category).is_dir()),
        (root / SPLIT, (root / SPLIT).is_file()),
    ):
        if not there:
            raise UserError(
                f"{wanted}: not there; download VisA and unpack it so that {root}/{SPLIT} exists, "
                f"or set {key}"
            )


def categories(root: Path) -> list[str]:
    """The objects of the split; UserError when it cannot be read."""
    return sorted({row["object"] for _, row in read_rows(root / SPLIT, COLUMNS, ADVICE)})


def shared_files(root: Path, category: str) -> list[Path]:
    """The split decides what a category is."""
    return [root / SPLIT]


def _sample(root: Path, dataset: str, row: dict[str, str], where: str) -> RawSample:
    if row["split"] not in ("train", "test") or row["label"] not in ("normal", DEFECT):
        raise UserError(
            f"{where}: split {row['split']!r} and label {row['label']!r} are not of VisA; restore "
            f"the file"
        )
    normal = row["label"] == "normal"
    if not row["image"] or not (normal or row["mask"]):
        raise UserError(f"{where}: a row needs an image, and an anomaly a mask; restore the file")
    files = {name: (root / row[name]).absolute() for name in ("image", "mask") if row[name]}
    for name, file in files.items():
        if not inside(root, row[name]).is_file():
            raise UserError(f"{where}: its {name} {file} is missing; unpack VisA again")
    return RawSample(
        dataset,
        row["object"],
        GOOD if normal else DEFECT,
        row["split"],
        files["image"],
        None if normal else files["mask"],
    )


def read(root: Path, dataset: str, category: str, notes: Notes) -> list[RawSample]:
    """Every picture of a category, sorted; problems name the row of the CSV that is wrong."""
    check(root, category, f"prepare.datasets.{dataset}.root")
    path, samples = root / SPLIT, []
    for number, row in read_rows(path, COLUMNS, ADVICE):
        if row["object"] == category:
            with notes.caught():
                samples.append(_sample(root, dataset, row, f"{path}: row {number}"))
    found = {(s.subset, s.defect) for s in samples}
    for wanted, what in (
        (("train", GOOD), "normals to train on"),
        (("test", GOOD), "normals to test on"),
        (("test", DEFECT), "anomalies"),
    ):
        if wanted not in found:
            notes.problem(f"{path}: no {what} of {category}; restore the file")
    return sorted(samples, key=lambda s: (s.subset, s.defect, s.image.name))
