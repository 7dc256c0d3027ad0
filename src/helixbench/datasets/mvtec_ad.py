"""The layout of MVTec AD (Bergmann et al., CVPR 2019), which MPDD (Jezek et al., ICUMT 2021) and
many plants use too.

Normals are <category>/train/good/000.png and <category>/test/good/000.png, defects
<category>/test/<defect>/000.png with masks <category>/ground_truth/<defect>/000_mask.png (000.png
is accepted, too).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helixbench.datasets.notes import Notes
from helixbench.errors import UserError
from helixbench.pictures.files import SUFFIXES, is_picture
from helixbench.records import GOOD, RawSample

MARKS = ("train", "test", "ground_truth")
"""Any of these says that a folder is a category."""


def pictures_in(folder: Path, notes: Notes | None = None) -> dict[str, Path]:
    """Stem -> picture, sorted by file name; empty when the folder is missing. Of two with one stem,
    the first.
    """
    notes, found = notes or Notes(), {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not is_picture(path.name):
                if path.is_file() and not path.name.startswith("."):
                    notes.odd.append(
                        f"{path}: not read; pictures end in {', '.join(sorted(SUFFIXES))}"
                    )
            elif path.is_file() or path.is_symlink():  # who opens a link that leads nowhere says so
                if path.stem in found:
                    notes.problem(
                        f"{path}: same name as {found[path.stem].name}; keep one of the two"
                    )
                found.setdefault(path.stem, path)
    return found


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones; empty when it is missing."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def check(root: Path, category: str, key: str, name: str = "MVTec AD", good: str = GOOD) -> None:
    """UserError when the category or its train/<good> is missing; `key` is the configuration key of
    the root.
    """
    folder = root / category
    for wanted in (folder, folder / "train" / good):
        if not wanted.is_dir():
            raise UserError(
                f"{wanted}: no such folder; download {name} and unpack it so that "
                f"{root}/<category>/train/{good} exists, or set {key}"
            )


def _masks(folder: Path, pictures: dict[str, Path], notes: Notes) -> dict[str, Path]:
    """Picture stem -> mask. `<stem>_mask` is preferred to `<stem>`; every mask must belong to a
    picture.
    """
    found = pictures_in(folder, notes)
    masks, used = {}, set()
    for stem, picture in pictures.items():
        name = next((name for name in (f"{stem}_mask", stem) if name in found), None)
        if name is None:
            notes.problem(
                f"{picture}: its mask {folder / f'{stem}_mask.png'} is missing; add the mask or "
                f"remove the picture"
            )
            continue
        masks[stem] = found[name]
        used.add(name)
    for name, path in found.items():
        if name not in used:
            notes.problem(
                f"{path}: mask without a picture in test/{folder.name}; add the picture or remove "
                f"the mask"
            )
    return masks


Masks = Callable[[Path, dict[str, Path], Notes], dict[str, Path]]
"""Folder of masks, pictures by stem -> mask by stem."""


def read(
    root: Path,
    dataset: str,
    category: str,
    notes: Notes,
    name: str = "MVTec AD",
    good: str = GOOD,
    masks_of: Masks = _masks,
) -> list[RawSample]:
    """Every picture of a category, sorted; problems are missing or orphan masks and empty folders.

    name: of the data set, for advice; good: folder name of the normals; masks_of: finds the mask of
    each picture of a defect type.
    """
    folder = root / category
    with notes.caught():
        check(root, category, f"prepare.datasets.{dataset}.root", name, good)
    if not folder.is_dir():
        return []

    samples = []
    for subset in ("train", "test"):
        normals = pictures_in(folder / subset / good, notes)
        if not normals and (subset == "test" or (folder / subset / good).is_dir()):
            notes.problem(
                f"{folder / subset / good}: no pictures; put normal pictures there "
                f"({', '.join(sorted(SUFFIXES))})"
            )
        samples += [
            RawSample(dataset, category, GOOD, subset, image.absolute(), None)
            for image in normals.values()
        ]
    for path in folders_in(folder / "train"):
        if path.name != good:
            notes.odd.append(
                f"{path}: not read; only train/{good} is, and defects are in test/<defect>"
            )
    samples += defective(folder, dataset, category, notes, good, masks_of)
    return sorted(samples, key=lambda s: (s.subset, s.defect, s.image.name))


def defective(
    folder: Path,
    dataset: str,
    category: str,
    notes: Notes | None = None,
    good: str = GOOD,
    masks_of: Masks = _masks,
) -> list[RawSample]:
    """Defective pictures and their masks of one category's folder: test/<defect> and
    ground_truth/<defect>.
    """
    notes = notes or Notes()
    samples = []
    defects = [path for path in folders_in(folder / "test") if path.name != good]
    if not defects:
        notes.problem(
            f"{folder / 'test'}: no defect types; put defective pictures into test/<defect> and "
            f"masks into ground_truth/<defect>"
        )
    for path in defects:
        found = pictures_in(path, notes)
        if not found:
            notes.problem(f"{path}: no pictures; put defective pictures there or remove the folder")
        masks = masks_of(folder / "ground_truth" / path.name, found, notes)
        for stem, image in found.items():
            mask = masks.get(stem)
            samples.append(
                RawSample(
                    dataset, category, path.name, "test", image.absolute(), mask and mask.absolute()
                )
            )
    names = {path.name for path in defects}
    for path in folders_in(folder / "ground_truth"):
        if path.name not in names and pictures_in(path) and path.name != good:
            notes.problem(
                f"{path}: masks without a folder test/{path.name}; add the pictures or remove the "
                f"masks"
            )
    return samples
