"""The layout of VisA (Zou et al., ECCV 2022): pictures and masks below the category, the split in
split_csv/1cls.csv.

The CSV has the columns object, split (train, test), label (normal, anomaly), image and mask, with
paths relative to the root. All anomalies of a category are one defect type, `anomaly`; mask values
1 to n are kinds of defects: all of them are anomalous.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets.layout import Layout
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample, inside, read_rows

SPLIT = Path("split_csv/1cls.csv")
COLUMNS = ("object", "split", "label", "image", "mask")
DEFECT = "anomaly"
ADVICE = f"restore the file; its columns are {', '.join(COLUMNS)}"


class VisA(Layout):
    """VisA."""

    name = "visa"
    title = published = "VisA"

    def require(self, root: Path, category: str, key: str) -> None:
        """UserError when the category or the split is missing."""
        for wanted, there in (
            (root / category, (root / category).is_dir()),
            (root / SPLIT, (root / SPLIT).is_file()),
        ):
            if not there:
                raise UserError(
                    f"{wanted}: not there; download VisA and unpack it so that {root}/{SPLIT} "
                    f"exists, or set {key}"
                )

    def listed(self, root: Path, problems: Problems) -> list[str]:
        """The objects of the split that are there; UserError when it cannot be read."""
        if not (root / SPLIT).is_file() and (root.absolute().parent / SPLIT).is_file():
            raise UserError(
                f"{root}: one object of VisA; give {root.absolute().parent}, which holds {SPLIT}"
            )
        named = sorted({row["object"] for _, row in read_rows(root / SPLIT, COLUMNS, ADVICE)})
        found = [name for name in named if (root / name).is_dir()]
        if found and len(found) < len(named):
            missing = ", ".join(name for name in named if name not in found)
            problems.odd.append(f"{root / SPLIT}: names objects that are not there: {missing}")
        return found

    def shared_files(self, root: Path, category: str) -> list[Path]:
        """The split decides what a category is."""
        return [Path(root) / SPLIT]

    def samples(
        self, root: Path, dataset: str, category: str, problems: Problems
    ) -> list[RawSample]:
        """Every picture; problems name the row of the CSV that is wrong."""
        path, samples = root / SPLIT, []
        for number, row in read_rows(path, COLUMNS, ADVICE):
            if row["object"] == category:
                with problems.caught():
                    samples.append(_sample(root, dataset, row, f"{path}: row {number}"))
        found = {(s.subset, s.defect) for s in samples}
        for wanted, what in (
            (("train", GOOD), "normals to train on"),
            (("test", GOOD), "normals to test on"),
            (("test", DEFECT), "anomalies"),
        ):
            if wanted not in found:
                problems.add(f"{path}: no {what} of {category}; restore the file")
        return samples


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
