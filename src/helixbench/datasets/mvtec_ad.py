"""The layout of MVTec AD (Bergmann et al., CVPR 2019), which many data sets and plants use, and
those that differ from it in a few names.

Normals are <category>/train/good/000.png and <category>/test/good/000.png, defects
<category>/test/<defect>/000.png with masks <category>/ground_truth/<defect>/000_mask.png (000.png
is accepted, too).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from helixbench.datasets.layout import (
    Layout,
    folders_in,
    none_found,
    pictures_below,
    pictures_in,
    unicode_name,
)
from helixbench.datasets.problems import Problems
from helixbench.records import GOOD, RawSample


class MVTecAD(Layout):
    """MVTec AD."""

    name = "mvtec_ad"
    title = "MVTec AD"
    published = "MVTec-AD"
    marks = ("train", "test", "ground_truth")
    needs = ("train/good",)

    good: ClassVar[str] = GOOD
    """Folder name of the normals."""

    mask_names: ClassVar[tuple[str, ...]] = ("{stem}_mask", "{stem}")
    """Names of a picture's mask, the published one first."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Folders of a category that are published with it and not used."""

    def samples(
        self, root: Path, dataset: str, category: str, problems: Problems
    ) -> list[RawSample]:
        """Every picture; problems are missing or orphan masks and empty folders."""
        folder = root / category
        samples = []
        for subset in ("train", "test"):
            place = folder / subset / self.good
            normals = pictures_in(place, problems)
            if not normals and (subset == "test" or place.is_dir()):
                problems.add(none_found(place, "put normal pictures there"))
            samples += [
                RawSample(dataset, category, GOOD, subset, image.absolute(), None)
                for image in normals.values()
            ]
        for path in folders_in(folder / "train"):
            if path.name != self.good:
                problems.odd.append(
                    f"{path}: not read; only train/{self.good} is, and defects are in test/<defect>"
                )
        for path in folders_in(folder):
            if path.name not in (*self.marks, *self.unused):
                problems.odd.append(f"{path}: not read; only train, test and ground_truth are")
        return samples + self.defective(folder, dataset, category, problems)

    def defective(
        self, folder: Path, dataset: str, category: str, problems: Problems
    ) -> list[RawSample]:
        """Defective pictures and their masks of one category's folder: test/<defect> and
        ground_truth/<defect>.
        """
        defects = {
            unicode_name(path.name): path
            for path in folders_in(folder / "test")
            if path.name != self.good
        }
        if not defects:
            problems.add(
                f"{folder / 'test'}: no defect types; put defective pictures into test/<defect> "
                f"and masks into ground_truth/<defect>"
            )
        marked = {unicode_name(path.name): path for path in folders_in(folder / "ground_truth")}
        samples = []
        for defect, path in defects.items():
            found = pictures_in(path, problems)
            if not found:
                problems.add(none_found(path, "put defective pictures there or remove the folder"))
            masks = self.masks(
                marked.get(defect, folder / "ground_truth" / path.name), found, problems
            )
            for stem, image in found.items():
                mask = masks.get(stem)
                samples.append(
                    RawSample(
                        dataset,
                        category,
                        defect,
                        "test",
                        image.absolute(),
                        mask and mask.absolute(),
                    )
                )
        for defect, path in marked.items():
            if defect not in defects and defect != self.good and pictures_below(path):
                problems.add(
                    f"{path}: masks without a folder test/{path.name}; add the pictures or remove "
                    f"the masks"
                )
        return samples

    def masks(self, folder: Path, pictures: dict[str, Path], problems: Problems) -> dict[str, Path]:
        """Picture stem -> mask, of pictures by their stems; every mask must belong to one."""
        found = pictures_in(folder, problems)
        masks, used = {}, set()
        for stem, picture in pictures.items():
            names = [pattern.format(stem=stem) for pattern in self.mask_names]
            name = next((name for name in names if name in found), None)
            if name is None:
                near = next((path for other, path in found.items() if other.startswith(stem)), None)
                there = f" ({near.name} is there, which is not its name)" if near else ""
                problems.add(
                    f"{picture}: its mask {folder / names[0]}.png is missing{there}; add the mask "
                    f"or remove the picture"
                )
                continue
            masks[stem] = found[name]
            used.add(name)
        for name, path in found.items():
            if name not in used:
                problems.add(
                    f"{path}: mask without a picture in test/{folder.name}; add the picture or "
                    f"remove the mask"
                )
        return masks


class MPDD(MVTecAD):
    """MPDD (Jezek et al., ICUMT 2021)."""

    name = "mpdd"
    title = published = "MPDD"


class BTAD(MVTecAD):
    """BTAD (Mishra et al., ISIE 2021): `ok` for normals, `ko` for defects, BMP and PNG mixed, masks
    named like their pictures; categories 01, 02, 03.
    """

    name = "btad"
    title = published = "BTAD"
    needs = ("train/ok",)
    good = "ok"
    mask_names = ("{stem}", "{stem}_mask")


class MVTecLOCO(MVTecAD):
    """MVTec LOCO AD (Bergmann et al., IJCV 2022): a picture has a folder of masks.

    <category>/ground_truth/<defect>/000/000.png, 001.png, ... A mask's value names the kind of
    anomaly, which defects_config.json gives a saturation area; here every pixel that is not 0 in
    any of them is anomalous. validation/good is not used.
    """

    name = "mvtec_loco"
    title = "MVTec LOCO AD"
    published = "MVTec-LOCO"
    unused = ("validation",)

    def masks(self, folder: Path, pictures: dict[str, Path], problems: Problems) -> dict[str, Path]:
        """Picture stem -> its folder of masks."""
        found = {unicode_name(path.name): path for path in folders_in(folder)}
        for path in pictures_in(folder).values():
            problems.add(
                f"{path}: a mask outside of its picture's folder; move it to "
                f"{folder / path.stem}/000.png"
            )
        for stem, picture in pictures.items():
            if stem not in found or not pictures_in(found[stem], problems):
                problems.add(
                    f"{picture}: no masks in {folder / stem}; add them or remove the picture"
                )
                found.pop(stem, None)
        for stem, path in found.items():
            if stem not in pictures:
                problems.add(
                    f"{path}: masks without a picture in test/{folder.name}; add the picture or "
                    f"remove the masks"
                )
        return found
