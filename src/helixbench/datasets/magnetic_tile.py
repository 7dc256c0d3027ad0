"""The layout of the magnetic tile set (Huang et al., 2018): <category>/MT_<type>/Imgs/<name>.jpg with mask <name>.png.

MT_Free holds the normals, whose masks are empty. The set has no split of its own: here the last fifth of the sorted normals
is for testing. Masks are antialiased; the few defects whose mask is empty as published are left out.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets import mvtec_ad
from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample

FREE = "MT_Free"
TEST_SHARE = 5
"""One in so many normals is for testing."""


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
    except OSError:
        return False


def read(root: Path, dataset: str, category: str) -> list[RawSample]:
    """Every picture, sorted; UserError for missing masks and empty folders."""
    folder = root / category
    check(root, category, f"prepare.datasets.{dataset}.root")
    samples = []
    for path in mvtec_ad.folders_in(folder):
        if not path.name.startswith("MT_"):
            continue
        files = [file for file in sorted((path / "Imgs").glob("*")) if mvtec_ad.is_picture(file.name)]
        images = {file.stem: file.absolute() for file in files if file.suffix.lower() != ".png"}
        masks = {file.stem: file.absolute() for file in files if file.suffix.lower() == ".png"}
        if not images:
            raise UserError(f"{path / 'Imgs'}: no pictures; put <name>.jpg there or remove the folder")
        if path.name == FREE:
            first_test = len(images) - max(1, len(images) // TEST_SHARE)
            for number, image in enumerate(images.values()):
                samples.append(RawSample(dataset, category, GOOD, "train" if number < first_test else "test", image, None))
            continue
        defect = path.name.removeprefix("MT_").lower()
        for stem, image in images.items():
            if stem not in masks:
                raise UserError(f"{image}: its mask {stem}.png is missing; add the mask or remove the picture")
            if not _empty(masks[stem]):
                samples.append(RawSample(dataset, category, defect, "test", image, masks[stem]))
    return sorted(samples, key=lambda s: (s.subset, s.defect, s.image.name))
