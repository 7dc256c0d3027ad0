"""The layout of MVTec LOCO AD (Bergmann et al., IJCV 2022): as MVTec AD's, but a picture has a
folder of masks.

<category>/train/good, <category>/test/{good,logical_anomalies,structural_anomalies}/000.png and
<category>/ground_truth/<defect>/000/000.png, 001.png, ... A mask's value names the kind of anomaly,
which defects_config.json gives a saturation area; here every pixel that is not 0 in any of them is
anomalous. validation/good is not used.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets import mvtec_ad
from helixbench.datasets.notes import Notes
from helixbench.records import RawSample

MARKS = mvtec_ad.MARKS


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or its train/good is missing; `key` is the configuration key of
    the root.
    """
    mvtec_ad.check(root, category, key, "MVTec LOCO AD")


def _masks(folder: Path, pictures: dict[str, Path], notes: Notes) -> dict[str, Path]:
    """Picture stem -> its folder of masks."""
    found = {path.name: path for path in mvtec_ad.folders_in(folder)}
    for path in mvtec_ad.pictures_in(folder, notes).values():
        notes.problem(
            f"{path}: a mask outside of its picture's folder; move it to "
            f"{folder / path.stem}/000.png"
        )
    for stem, picture in pictures.items():
        if stem not in found or not mvtec_ad.pictures_in(found[stem], notes):
            notes.problem(f"{picture}: no masks in {folder / stem}; add them or remove the picture")
            found.pop(stem, None)
    for stem, path in found.items():
        if stem not in pictures:
            notes.problem(
                f"{path}: masks without a picture in test/{folder.name}; add the picture or "
                f"remove the masks"
            )
    return found


def read(root: Path, dataset: str, category: str, notes: Notes) -> list[RawSample]:
    """Every picture of a category, sorted; `mask` is a folder. Problems are missing or orphan masks
    and empty folders.
    """
    return mvtec_ad.read(root, dataset, category, notes, "MVTec LOCO AD", masks_of=_masks)
