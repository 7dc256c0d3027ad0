"""The layout of the magnetic tile set (Huang et al., 2018): <category>/MT_<type>/Imgs/<name>.jpg.

The mask of a picture is <name>.png beside it, antialiased. MT_Free holds the normals, whose masks
are empty; the few defects whose mask is empty as published are left out. The set has no split of
its own: here about one in five of the normals is for testing.

Names are exp<exposure>_num_<frame>: each tile was pictured under six exposures, in frames that
follow one another. The pictures of one tile are one group, which stays on one side of every split.
So each side has the same light, and no tile is on both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from helixbench.datasets.layout import Layout, folders_in, none_found, pictures_below, unicode_name
from helixbench.datasets.problems import Problems
from helixbench.pictures.files import is_picture
from helixbench.records import GOOD, RawSample

FREE = "MT_Free"
TEST_SHARE = 5
"""One in so many normals is for testing."""

NAME = re.compile(r"exp(\d+)_num_(\d+)")
NEXT, NEAR = 500, 100
"""Most frames to a tile's next exposure, and to any other exposure that it still lacks."""

SIDE_BY_SIDE = 32
"""Series looked at for a picture."""

AGAIN = (
    (743, 797),
    (5874, 13526),
    (8676, 9196, 10334),
    (37056, 37243, 37262, 37556),
    (53011, 65001),
    (85602, 85781, 86828, 88149),
    (108719, 108889),
    (116934, 116949),
    (306586, 309352),
    (320808, 320895),
    (355636, 358102),
)
"""First frames of series that show one tile again, or that run side by side and look alike.

Found by comparing the textures of all pictures (high-pass, 64 x 96 pixels, best shift): such series
correlate by 0.84 and more. Pairs below that were looked at; they share a border, not a tile.
"""


@dataclass
class _Series:
    """Pictures taken for one tile, (kind, name) each, with what is known of the last of them."""

    members: list[tuple[str, str]] = field(default_factory=list)
    frames: set[int] = field(default_factory=set)
    exposures: set[int] = field(default_factory=set)
    frame: int = 0
    exposure: int = 0

    def add(self, frame: int, exposure: int, kind: str, name: str) -> None:
        self.members.append((kind, name))
        self.frames.add(frame)
        self.exposures.add(exposure)
        self.frame, self.exposure = frame, exposure

    def lacks(self, frame: int, exposure: int) -> bool:
        """Whether the next picture may be one of this tile."""
        reach = NEXT if exposure == self.exposure + 1 else NEAR
        return exposure not in self.exposures and frame - self.frame <= reach

    def misfit(self, frame: int, exposure: int, kind: str) -> tuple[bool, bool, int]:
        """The smaller, the likelier is a picture one of this tile."""
        return exposure != self.exposure + 1, kind != self.members[-1][0], frame - self.frame


def tiles(pictures: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(kind, name) -> group, e.g. `break_116934`, of pictures whose name tells exposure and frame.

    kind: defect type or `good`. Of several series that lack an exposure a picture joins one whose
    next exposure it is, of these one whose last picture is of its kind, of these the nearest.
    """
    named = ((NAME.fullmatch(name), kind, name) for kind, name in pictures)
    frames = [(int(found[2]), int(found[1]), kind, name) for found, kind, name in named if found]
    every: list[_Series] = []
    for frame, exposure, kind, name in sorted(frames):
        # Older series are out of reach: no more than a few run side by side.
        lacking = [one for one in every[-SIDE_BY_SIDE:] if one.lacks(frame, exposure)]
        if lacking:
            series = min(lacking, key=lambda one, now=(frame, exposure, kind): one.misfit(*now))
        else:
            series = _Series()
            every.append(series)
        series.add(frame, exposure, kind, name)
    again = {frame: shown for shown in AGAIN for frame in shown}
    groups, called = {}, {}
    for series in every:
        label = f"{series.members[0][0]}_{min(series.frames)}"
        shown = next((again[frame] for frame in sorted(series.frames) if frame in again), None)
        label = called.setdefault(shown, label) if shown else label
        groups |= dict.fromkeys(series.members, label)
    return groups


def _tested(normals: list[str], groups: dict[tuple[str, str], str]) -> set[str]:
    """Normals for testing: whole tiles, spread over the set; of other names the last fifth."""
    test, seen, of_tile, others = set(), 0, defaultdict(list), []
    for name in normals:
        (of_tile[groups[GOOD, name]] if (GOOD, name) in groups else others).append(name)
    for members in of_tile.values():
        seen += len(members)
        if len(test) + len(members) / 2 < seen / TEST_SHARE:
            test.update(members)
    return test | set(others[len(others) - max(1, len(others) // TEST_SHARE) :] if others else ())


class MagneticTile(Layout):
    """The magnetic tile set; the whole set is one category."""

    name = "magnetic_tile"
    title = "the magnetic tile set"
    published = "MTD"
    marks = ("MT_*",)
    needs = (f"{FREE}/Imgs",)

    def samples(
        self, root: Path, dataset: str, category: str, problems: Problems
    ) -> list[RawSample]:
        """Every picture; problems are missing or orphan masks and empty folders. Empty masks are
        noted as odd.
        """
        found: dict[str, tuple[dict[str, Path], dict[str, Path]]] = {}
        for path in folders_in(root / category):
            if not path.name.startswith("MT_"):
                problems.odd.append(f"{path}: not read; only MT_<type> is")
                continue
            defect = GOOD if path.name == FREE else path.name.removeprefix("MT_").lower()
            found[defect] = _files(path / "Imgs", problems)
        groups = tiles((defect, stem) for defect, (images, _) in found.items() for stem in images)
        tested = _tested(list(found.get(GOOD, ({}, {}))[0]), groups)
        samples = []
        for defect, (images, masks) in found.items():
            for stem, image in images.items():
                mask, subset = masks.get(stem), "test"
                if defect == GOOD:
                    mask, subset = None, "test" if stem in tested else "train"
                elif mask is None:
                    problems.add(
                        f"{image}: its mask {stem}.png is missing; add the mask or remove the "
                        f"picture"
                    )
                elif _empty(mask):
                    problems.odd.append(f"{image}: left out, its mask {mask.name} is empty")
                    continue
                group = groups.get((defect, stem), "")
                samples.append(RawSample(dataset, category, defect, subset, image, mask, group))
        if len({s.defect for s in samples}) < 2:
            problems.add(
                f"{root / category}: no defect types; put defective pictures with masks into "
                f"MT_<type>/Imgs"
            )
        return samples


def _empty(mask: Path) -> bool:
    """Whether a mask marks nothing; a damaged one does not count as such, `prepare` says what is
    wrong with it.
    """
    from PIL import Image

    try:
        with Image.open(mask, formats=("PNG",)) as picture:
            return picture.convert("L").getextrema()[1] <= 127
    except Exception:  # a damaged file can raise anything from within a decoder
        return False


def _files(folder: Path, problems: Problems) -> tuple[dict[str, Path], dict[str, Path]]:
    """Pictures and masks by stem, sorted."""
    images, masks = {}, {}
    for file in sorted(folder.glob("*")):
        if file.is_dir():
            if inner := pictures_below(file):
                problems.odd.append(f"{file}: a folder of {inner} pictures, not read")
        elif is_picture(file.name):
            kind, stem = masks if file.suffix.lower() == ".png" else images, unicode_name(file.stem)
            if stem in kind:
                problems.add(f"{file}: same name as {kind[stem].name}; keep one of the two")
            kind.setdefault(stem, file.absolute())
    for stem in masks.keys() - images.keys():
        problems.add(
            f"{masks[stem]}: mask without a picture {stem}.jpg; add the picture or remove the mask"
        )
    if not images:
        problems.add(none_found(folder, "put <name>.jpg there or remove the folder"))
    return images, masks
