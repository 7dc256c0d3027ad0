"""The user's own pictures: a tree like MVTec AD's, or any tree with a manifest.csv.

The manifest stands at the root or in a category's folder and has the columns image, mask, defect
(`good` for normals) and split (train, test); paths are relative to the manifest's own folder and
stay inside it. At the root a column `category` says which rows are whose; without it all rows are
of the one category that is asked for. Pictures of one object have the same word in a column
`group`. What `helixbench import` writes is such a manifest; its other columns are not used.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePath

from helixbench.datasets.layout import pictures_in, unicode_name
from helixbench.datasets.mvtec_ad import MVTecAD
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.pictures.files import SUFFIXES, is_picture
from helixbench.records import GOOD, RawSample, read_rows

MANIFEST = "manifest.csv"
COLUMNS = ("image", "mask", "defect", "split")
ADVICE = f"write a header line with {','.join(COLUMNS)} and commas between the cells"
NAME = re.compile(r"\w[\w .+-]*")
"""Defect types become names of folders and files."""


class Folder(MVTecAD):
    """Pictures of one's own."""

    name = "folder"
    title = "the pictures"
    published = ""
    marks = (MANIFEST, *MVTecAD.marks)

    def require(self, root: Path, category: str, key: str) -> None:
        """UserError when there is neither a manifest with rows of the category nor a train/good."""
        manifest = _manifest(root, category)
        if manifest is None:
            if not (root / category / "train" / GOOD).is_dir():
                raise UserError(
                    f"{root / category}: neither {MANIFEST} nor train/{GOOD}; put normals into "
                    f"train/{GOOD}, or list the pictures in a "
                    f"{MANIFEST} with {','.join(COLUMNS)}, or set {key}"
                )
        elif not _rows(manifest, root, category):
            raise UserError(
                f"{manifest}: no rows of the category {category}; add them or set {key}"
            )

    def listed(self, root: Path, problems: Problems) -> list[str] | None:
        """Categories of the root's manifest, if it has one; `.` when they have no names."""
        if not (root / MANIFEST).is_file():
            return None
        rows = _rows(root / MANIFEST, root, ".")
        return sorted({row.get("category", ".") for _, row in rows}) or ["."]

    def shared_files(self, root: Path, category: str) -> list[Path]:
        """The manifest and what it lists, wherever that is."""
        manifest = _manifest(Path(root), category)
        if manifest is None:
            return []
        rows = _rows(manifest, Path(root), category)
        cells = [row[name] for _, row in rows for name in ("image", "mask") if row[name]]
        files = [manifest]
        for path in (_stored(manifest.parent, cell) for cell in cells):
            files += pictures_in(path).values() if path.is_dir() else [path]
        return files

    def samples(
        self, root: Path, dataset: str, category: str, problems: Problems
    ) -> list[RawSample]:
        """Every picture; problems name the row of the manifest, or the file of the tree, that is
        wrong.
        """
        manifest = _manifest(root, category)
        if manifest is None:
            return super().samples(root, dataset, category, problems)
        samples: dict[Path, RawSample] = {}
        for number, row in _rows(manifest, root, category):
            where = f"{manifest}: row {number}"
            with problems.caught():
                sample = _sample(manifest.parent, dataset, category, row, where)
                if sample.image in samples:
                    raise UserError(
                        f"{where}: image {row['image']} is listed twice; remove one of the rows"
                    )
                samples[sample.image] = sample
        found = {
            ("defect" if s.defect != GOOD else f"normal picture in {s.subset}")
            for s in samples.values()
        }
        for wanted in ("normal picture in train", "normal picture in test", "defect"):
            if wanted not in found:
                problems.add(f"{manifest}: no {wanted}; add rows of the kind")
        return list(samples.values())


def _manifest(root: Path, category: str) -> Path | None:
    return next(
        (path for path in (root / category / MANIFEST, root / MANIFEST) if path.is_file()), None
    )


def _rows(manifest: Path, root: Path, category: str) -> list[tuple[int, dict[str, str]]]:
    """Rows of a category; blanks around cells and rows without any word do not count."""
    rows = []
    for number, row in read_rows(manifest, COLUMNS, ADVICE):
        # Cells beyond the header's have no name.
        cells = {name: cell.strip() for name, cell in row.items() if name is not None}
        if any(cells.values()):
            rows.append((number, cells))
    nameless = next((number for number, row in rows if not row.get("category", category)), None)
    if nameless is not None:
        raise UserError(
            f"{manifest}: row {nameless}: no category; write one in every row, or leave the "
            f"column out"
        )
    mixed = manifest.parent == root and category != "."
    return [
        (number, row)
        for number, row in rows
        if not mixed or row.get("category", category) == category
    ]


def _stored(folder: Path, cell: str) -> Path:
    """The file that a cell names, whichever form of Unicode its name has."""
    forms = [folder / unicodedata.normalize(form, cell) for form in ("NFC", "NFD")]
    return next((path for path in (folder / cell, *forms) if path.exists()), folder / cell)


def _path(folder: Path, cell: str, where: str, what: str) -> Path:
    """Absolute path of a cell; UserError when it leaves the folder or is missing."""
    if PurePath(cell).is_absolute() or ".." in PurePath(cell).parts:
        raise UserError(
            f"{where}: {what} {cell}: write a path relative to {folder} that stays inside, "
            f"without .."
        )
    path = _stored(folder, cell)
    if not path.exists():
        advice = "write / instead of \\" if "\\" in cell else "correct the path or remove the row"
        raise UserError(f"{where}: {what} {cell}: no such file in {folder}; {advice}")
    return path.absolute()


def _sample(
    folder: Path, dataset: str, category: str, row: dict[str, str], where: str
) -> RawSample:
    image, mask, defect, split = (row[name] for name in COLUMNS)
    defect = unicode_name(defect)
    if split not in ("train", "test"):
        raise UserError(f"{where}: split {split!r} is neither train nor test; write one of the two")
    if not NAME.fullmatch(defect):
        raise UserError(
            f"{where}: defect {defect!r} is no name; write {GOOD} for a normal picture, or "
            f"letters, digits, blanks and . + - _"
        )
    if defect == GOOD and mask:
        raise UserError(
            f"{where}: a mask for a normal picture; leave the cell empty, or name the defect"
        )
    if defect != GOOD and not mask:
        raise UserError(
            f"{where}: the defect {defect} has no mask; name its mask, or write {GOOD} for a "
            f"normal picture"
        )
    if defect != GOOD and split == "train":
        raise UserError(
            f"{where}: a defect in train; write test: the key prepare.split says which defects "
            f"train the generator"
        )
    if not is_picture(PurePath(image).name):
        raise UserError(
            f"{where}: image {image!r} is no picture; name a file that ends in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    file = _path(folder, image, where, "image")
    own_mask = _path(folder, mask, where, "mask") if mask else None
    group = row.get("group", "")
    return RawSample(dataset, category, defect, split, file, own_mask, group, columns=row)
