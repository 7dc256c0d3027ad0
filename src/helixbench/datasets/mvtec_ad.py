"""The layout of MVTec AD (Bergmann et al., CVPR 2019), which MPDD, BTAD exports and many plants use too.

Normals are <category>/train/good/000.png and <category>/test/good/000.png, defects <category>/test/<defect>/000.png
with masks <category>/ground_truth/<defect>/000_mask.png (000.png is accepted, too).
"""

from __future__ import annotations

import os
from pathlib import Path

from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})


def is_picture(name: str) -> bool:
    """Whether a file name is a picture's: hidden files, license.txt and the like are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _pictures(folder: Path) -> dict[str, Path]:
    """Stem -> picture, sorted by file name; empty when the folder is missing."""
    found: dict[str, Path] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if is_picture(path.name) and path.is_file():
                if path.stem in found:
                    raise UserError(f"{path}: same name as {found[path.stem].name}; keep one of the two")
                found[path.stem] = path
    return found


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or its train/good is missing; `key` is the configuration key of the root."""
    folder = root / category
    for wanted in (folder, folder / "train" / GOOD):
        if not wanted.is_dir():
            raise UserError(
                f"{wanted}: no such folder; download MVTec AD and unpack it so that {root}/<category>/train/good exists, or set {key}"
            )


def _masks(folder: Path, pictures: dict[str, Path]) -> dict[str, Path]:
    """Picture stem -> mask. `<stem>_mask` is preferred to `<stem>`; every mask must belong to a picture."""
    found = _pictures(folder)
    masks, used = {}, set()
    for stem, picture in pictures.items():
        name = next((name for name in (f"{stem}_mask", stem) if name in found), None)
        if name is None:
            raise UserError(f"{picture}: its mask {folder / f'{stem}_mask.png'} is missing; add the mask or remove the picture")
        masks[stem] = found[name]
        used.add(name)
    for name, path in found.items():
        if name not in used:
            raise UserError(f"{path}: mask without a picture in test/{folder.name}; add the picture or remove the mask")
    return masks


def read(root: Path, dataset: str, category: str) -> list[RawSample]:
    """Every picture of a category, sorted; UserError for missing or orphan masks and empty folders."""
    folder = root / category
    check(root, category, f"prepare.datasets.{dataset}.root")

    def sample(subset: str, defect: str, image: Path, mask: Path | None = None) -> RawSample:
        return RawSample(dataset, category, defect, subset, image.absolute(), mask and mask.absolute())

    samples = []
    for subset in ("train", "test"):
        normals = _pictures(folder / subset / GOOD)
        if not normals:
            raise UserError(f"{folder / subset / GOOD}: no pictures; put normal pictures there ({', '.join(sorted(SUFFIXES))})")
        samples += [sample(subset, GOOD, image) for image in normals.values()]
    defects = [path for path in _folders(folder / "test") if path.name != GOOD]
    if not defects:
        raise UserError(
            f"{folder / 'test'}: no defect types; put defective pictures into test/<defect> and masks into ground_truth/<defect>"
        )
    for path in defects:
        pictures = _pictures(path)
        if not pictures:
            raise UserError(f"{path}: no pictures; put defective pictures there or remove the folder")
        masks = _masks(folder / "ground_truth" / path.name, pictures)
        samples += [sample("test", path.name, image, masks[stem]) for stem, image in pictures.items()]
    names = {path.name for path in defects}
    for path in _folders(folder / "ground_truth"):
        if path.name not in names and _pictures(path) and path.name != GOOD:
            raise UserError(f"{path}: masks without a folder test/{path.name}; add the pictures or remove the masks")
    return sorted(samples, key=lambda s: (s.subset, s.defect, s.image.name))
