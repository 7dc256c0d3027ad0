"""The layout of MVTec LOCO AD (Bergmann et al., IJCV 2022): as MVTec AD's, but a picture has a folder of masks.

<category>/train/good, <category>/test/{good,logical_anomalies,structural_anomalies}/000.png and
<category>/ground_truth/<defect>/000/000.png, 001.png, ... A mask's value names the kind of anomaly, which defects_config.json
gives a saturation area; here every pixel that is not 0 in any of them is anomalous. validation/good is not used.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets import mvtec_ad
from helixbench.errors import UserError
from helixbench.records import RawSample


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or its train/good is missing; `key` is the configuration key of the root."""
    mvtec_ad.check(root, category, key, "MVTec LOCO AD")


def _masks(folder: Path, pictures: dict[str, Path]) -> dict[str, Path]:
    """Picture stem -> its folder of masks."""
    found = {path.name: path for path in mvtec_ad.folders_in(folder)}
    for stem, picture in pictures.items():
        if stem not in found or not mvtec_ad.pictures_in(found[stem]):
            raise UserError(f"{picture}: no masks in {folder / stem}; add them or remove the picture")
    for stem, path in found.items():
        if stem not in pictures:
            raise UserError(f"{path}: masks without a picture in test/{folder.name}; add the picture or remove the masks")
    return {stem: found[stem] for stem in pictures}


def read(root: Path, dataset: str, category: str) -> list[RawSample]:
    """Every picture of a category, sorted; `mask` is a folder. UserError for missing or orphan masks and empty folders."""
    check(root, category, f"prepare.datasets.{dataset}.root")
    return mvtec_ad.read(root, dataset, category, masks_of=_masks)
