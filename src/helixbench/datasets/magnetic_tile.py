"""The layout of the magnetic tile set (Huang et al., 2018): <category>/MT_<type>/Imgs/<name>.jpg with mask <name>.png.

MT_Free holds the normals, whose masks are empty. The set has no split of its own: here the last fifth of the sorted normals
is for testing. Masks are antialiased; the few defects whose mask is empty as published are left out.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets import mvtec_ad
from helixbench.datasets.notes import Notes
from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample

FREE = "MT_Free"
TEST_SHARE = 5
"""One in so many normals is for testing."""

MARKS = ("MT_*",)


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or its MT_Free/Imgs is missing; `key` is the configuration key of the root."""
    for wanted in (root / category, root / category / FREE / "Imgs"):
        if not wanted.is_dir():
            raise UserError(f"{wanted}: no such folder; unpack the magnetic tile set so that it exists, or set {key}")


def _empty(mask: Path) -> bool:
    """Whether a mask marks nothing; a damaged one does not count as such, `prepare` says what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(mask) as picture:
            return picture.convert("L").getextrema()[1] <= 127
    except Exception:  # a damaged file can raise anything from within a decoder
        return False


def _files(folder: Path, notes: Notes) -> tuple[dict[str, Path], dict[str, Path]]:
    """Pictures and masks by stem, sorted."""
    images, masks = {}, {}
    for file in sorted(folder.glob("*")):
        if mvtec_ad.is_picture(file.name):
            kind = masks if file.suffix.lower() == ".png" else images
            if file.stem in kind:
                notes.problem(f"{file}: same name as {kind[file.stem].name}; keep one of the two")
            kind.setdefault(file.stem, file.absolute())
    for stem in masks.keys() - images.keys():
        notes.problem(f"{masks[stem]}: mask without a picture {stem}.jpg; add the picture or remove the mask")
    if not images:
        notes.problem(f"{folder}: no pictures; put <name>.jpg there or remove the folder")
    return images, masks


def read(root: Path, dataset: str, category: str, notes: Notes) -> list[RawSample]:
    """Every picture, sorted; problems are missing or orphan masks and empty folders. Empty masks are noted as odd."""
    with notes.caught():
        check(root, category, f"prepare.datasets.{dataset}.root")
    samples = []
    for path in mvtec_ad.folders_in(root / category):
        if not path.name.startswith("MT_"):
            notes.odd.append(f"{path}: not read; only MT_<type> is")
            continue
        images, masks = _files(path / "Imgs", notes)
        if path.name == FREE:
            first_test = len(images) - max(1, len(images) // TEST_SHARE)
            for number, image in enumerate(images.values()):
                samples.append(RawSample(dataset, category, GOOD, "train" if number < first_test else "test", image, None))
            continue
        defect = path.name.removeprefix("MT_").lower()
        for stem, image in images.items():
            mask = masks.get(stem)
            if mask is None:
                notes.problem(f"{image}: its mask {stem}.png is missing; add the mask or remove the picture")
            elif _empty(mask):
                notes.odd.append(f"{image}: left out, its mask {mask.name} is empty")
                continue
            samples.append(RawSample(dataset, category, defect, "test", image, mask))
    if len({s.defect for s in samples}) < 2:
        notes.problem(f"{root / category}: no defect types; put defective pictures with masks into MT_<type>/Imgs")
    return sorted(samples, key=lambda s: (s.subset, s.defect, s.image.name))
