"""`helixbench import`: look at raw pictures before anything is made of them, and write down what
they are.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from helixbench.datasets.layout import Layout
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError, UserErrors
from helixbench.pictures.perceptual import BITS, near_duplicates, perceptual_hash
from helixbench.pictures.raw import KINDS, content_hash, header, read_defect_mask, read_rgb
from helixbench.prepare.progress import Progress
from helixbench.prepare.selection import Selection
from helixbench.prepare.sheet import draw_lines, tile
from helixbench.prepare.split import check_leaks, told_apart
from helixbench.provenance import sha256
from helixbench.records import GOOD, RawSample, write_csv
from helixbench.schema import NAME

TILES = 8
"""Pictures of a defect type on the contact sheet."""

DARK = 64
"""Brightest of 255 grey levels up to which 16-bit pictures use 14 bits or fewer."""

LARGE, SMALL = 0.5, 10
"""Share of the picture above which a mask is odd, perhaps inverted; pixels below which it is,
perhaps a slip."""


@dataclass(frozen=True)
class Imported:
    """A row of the manifest: paths are relative to the root.

    width, height: of the upright picture [pixel]; group: pictures of one object share it; empty
    where nothing is known.
    """

    dataset: str
    category: str
    defect: str
    split: str
    image: str
    mask: str
    width: int
    height: int
    sha256: str
    group: str


@dataclass
class _Seen:
    """What opening a picture and its mask has shown."""

    raw: RawSample
    problems: list[str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    content: str = ""
    perceptual: bytes = b""
    kind: str = ""
    turned: bool = False
    pages: int = 1
    brightest: int = 0
    area: float | None = None
    tile: Image.Image | None = None


def _look(raw: RawSample, shown: bool, bits: int | None) -> _Seen:
    seen, image, mask = _Seen(raw), None, None
    try:
        image = read_rgb(raw.image, bits)
        seen.size, seen.content, seen.sha256 = (
            (image.shape[1], image.shape[0]),
            content_hash(image),
            sha256(raw.image),
        )
        seen.perceptual = perceptual_hash(image)
        seen.kind, seen.turned, seen.pages = header(raw.image)
        seen.brightest = int(image.max())
    except UserError as error:
        seen.problems.append(str(error))
    try:
        if raw.mask is not None:
            mask = read_defect_mask(raw, None if image is None else image.shape[:2])
            seen.area = float(mask.mean())
    except UserError as error:
        seen.problems.append(str(error))
    if shown and image is not None:
        seen.tile = tile(image, mask)
    return seen


def _chosen(samples: Sequence[RawSample]) -> set[Path]:
    """Up to TILES pictures of each defect type, spread over all of them."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.defect].append(sample.image)
    pick = lambda images: (
        images[int(i)] for i in np.linspace(0, len(images) - 1, min(TILES, len(images))).round()
    )
    return {image for images in groups.values() for image in pick(images)}


def _counted(
    found: Sequence[_Seen], what: Callable[[_Seen], object], text: str, category: str
) -> list[str]:
    """A line when this is true of any picture: how many, and which is the first."""
    those = [seen.raw.image for seen in found if what(seen)]
    return (
        [f"{category}: {text}: {len(those)} of {len(found)} pictures, e.g. {those[0]}"]
        if those
        else []
    )


def _odd(found: Sequence[_Seen], category: str) -> list[str]:
    kinds = Counter(seen.kind for seen in found)
    plain = kinds.keys() & {"colour", "grey"}
    usual = max(plain, key=kinds.get) if plain else None
    lines = []
    for kind in sorted(kinds.keys() - {usual, ""}):
        lines += _counted(found, lambda seen, kind=kind: seen.kind == kind, kind, category)
    deep = [seen for seen in found if seen.kind == KINDS["I;16"]]
    brightest = max((seen.brightest for seen in deep), default=255)
    if brightest <= DARK:
        used = (257 * brightest - 128).bit_length()  # of the least value that is so bright
        lines.append(
            f"{category}: 16-bit grey that uses about {used} of its 16 bits: all pictures are "
            f"dark; set bits: {max(9, used)}, or what the camera has (here --bits)"
        )
    lines += _counted(found, lambda seen: seen.pages > 1, "of several pages the first", category)
    lines += _counted(
        found,
        lambda seen: seen.turned,
        "turned upright by the EXIF orientation, look whether masks agree",
        category,
    )
    lines += _counted(
        found,
        lambda seen: (seen.area or 0) > LARGE,
        "mask over more than half of the picture",
        category,
    )
    pixels = lambda seen: SMALL if seen.area is None else seen.area * seen.size[0] * seen.size[1]
    lines += _counted(
        found,
        lambda seen: pixels(seen) < SMALL - 0.5,
        f"mask of fewer than {SMALL} pixels",
        category,
    )
    for defect, count in Counter(
        seen.raw.defect for seen in found if seen.raw.defect != GOOD
    ).items():
        if count == 2:
            lines.append(
                f"{category}: 2 pictures of {defect}: too few for prepare.split third, which "
                f"gives a third to the generator"
            )
    first: dict[str, Path] = {}
    for seen in found:
        if seen.content and first.setdefault(seen.content, seen.raw.image) != seen.raw.image:
            lines.append(f"{seen.raw.image}: the same picture as {first[seen.content]}")
    return lines


def look_at(
    layout: Layout,
    root: Path,
    dataset: str,
    folder: str,
    category: str,
    problems: Problems,
    sheet: bool,
    bits: int | None = None,
    selection: Selection | None = None,
) -> list[_Seen]:
    """Read a category whole; what is wrong or odd goes to `problems`, which collects."""
    raw: list[RawSample] = []
    root, selection = root.absolute(), selection or Selection()
    with problems.caught():
        raw = layout.read(root, dataset, folder, problems)
        raw = selection.chosen(raw, root, problems)
    shown, progress = _chosen(raw) if sheet else set(), Progress(f"{dataset} {category}", len(raw))
    found = []
    with ThreadPoolExecutor() as pool:  # decoding and hashing run outside of the interpreter's lock
        for seen in pool.map(lambda sample: _look(sample, sample.image in shown, bits), raw):
            found.append(seen)
            problems.lines += seen.problems
            progress.step()
    parts = selection.roles(raw, root, problems)
    check_leaks(
        (
            (str(s.raw.image), role, s.content)
            for s, role in zip(found, parts, strict=True)
            if s.content
        ),
        problems,
    )
    problems.odd += [*told_apart(raw, parts), *_odd(found, category), *_alike(found, parts)]
    return found


def _alike(found: Sequence[_Seen], parts: Sequence[str]) -> list[str]:
    """A line when pictures of the test are nearly some that are trained on."""
    sides: dict[bool, list[_Seen]] = {True: [], False: []}
    for seen, part in zip(found, parts, strict=True):
        if seen.perceptual:
            sides[part == "test"].append(seen)
    hashes = {test: [seen.perceptual for seen in own] for test, own in sides.items()}
    pairs = near_duplicates(hashes[False], hashes[True])
    if not pairs:
        return []
    trained, tested, bits = min(pairs, key=lambda pair: pair[2])
    one, other = sides[True][tested].raw, sides[False][trained].raw
    return [
        f"{one.category}: nearly the same pictures in training and test: {len(pairs)} of "
        f"{len(sides[True])} test pictures, e.g. {one.image} and {other.image} (perceptual hashes "
        f"that differ in {bits} of {BITS} bits); if they show one object, name it as group"
    ]


def _sizes(found: Sequence[_Seen]) -> str:
    sizes = sorted({seen.size for seen in found})
    if len(sizes) == 1:
        return "{}x{}".format(*sizes[0])
    ranges = (
        "-".join(map(str, sorted({min(side), max(side)}))) for side in zip(*sizes, strict=True)
    )
    return f"{len(sizes)} sizes, " + " x ".join(ranges)


def _table(found: dict[str, list[_Seen]]) -> str:
    """A line for each defect type of each category, and the sum."""
    rows = [("category", "defect", "train", "test", "masks", "mask area", "size")]
    for category, all_seen in found.items():
        for defect in sorted(
            {seen.raw.defect for seen in all_seen}, key=lambda name: (name != GOOD, name)
        ):
            those = [seen for seen in all_seen if seen.raw.defect == defect]
            subset = Counter(seen.raw.subset for seen in those)
            areas = [100 * seen.area for seen in those if seen.area is not None]
            area = f"{min(areas):.2f}-{max(areas):.1f} %" if areas else ""
            rows.append(
                (
                    category,
                    defect,
                    str(subset["train"]),
                    str(subset["test"]),
                    str(len(areas)),
                    area,
                    _sizes(those),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.rjust, str.ljust)
    return "\n".join(
        "  ".join(
            side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _sheet(path: Path, title: str, found: dict[str, list[_Seen]]) -> None:
    lines = []
    for category, all_seen in found.items():
        for defect in sorted(
            {seen.raw.defect for seen in all_seen}, key=lambda name: (name != GOOD, name)
        ):
            those = [seen for seen in all_seen if seen.raw.defect == defect and seen.tile]
            names = [
                s.raw.image.stem if len(s.raw.image.stem) < 15 else f"..{s.raw.image.stem[-12:]}"
                for s in those
            ]
            lines.append(
                (
                    f"{category}\n{defect}",
                    [
                        (f"{s.raw.subset} {name}", s.tile)
                        for s, name in zip(those, names, strict=True)
                    ],
                )
            )
    draw_lines(path, title, lines)


def _written(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); choose "
            f"another file"
        ) from None


def run(
    layout: str | Layout,
    root: Path,
    *,
    out: Path | None = None,
    report: Path | None = None,
    dataset: str | None = None,
    bits: int | None = None,
    group: str | None = None,
    without: tuple[str, ...] | None = None,
    renamed: tuple[Path, Path] | None = None,
) -> None:
    """Check every category of a raw folder, print what is there, and write the manifest and the
    contact sheet.

    bits: what the camera uses of files of 16 bits; None: all. group, without: as of
    `prepare.datasets.<dataset>`. renamed: folder that will have another name by the time the
    manifest is read. The manifest's columns are those of `Imported`; at the root it is one of the
    layout `folder`. Raises UserErrors with every problem, and then writes nothing.
    """
    root, problems = Path(root), Problems(collect=True)
    selection = Selection(group=group, without=without)
    reader = layout if isinstance(layout, Layout) else Layout.named(layout)
    dataset = dataset or reader.published or root.resolve().name
    folders, others = reader.categories(root, problems)
    found = {}
    for folder in folders:
        category = root.resolve().name if folder == "." else folder
        found[category] = look_at(
            reader, root, dataset, folder, category, problems, report is not None, bits, selection
        )
    home = root.absolute()
    then, now = renamed or (home, home)
    as_given = lambda lines: [
        line.replace(str(then), str(now)).replace(str(home), str(root)) for line in lines
    ]
    if problems.lines:
        raise UserErrors(as_given(problems.lines))
    used = [path for folder in folders for path in reader.shared_files(home, folder)]
    for seen in (one for all_seen in found.values() for one in all_seen):
        used += [path for path in (seen.raw.image, seen.raw.mask) if path]
    read = {path.relative_to(home).parts[0] for path in used}
    problems.odd[:0] = [
        f"{path}: not read; no category in the layout {reader.name}"
        for path in others
        if path.name not in read
    ] + [
        f"{category}: the workflow takes names of letters, digits, _ and - only; rename the folder"
        for category in found
        if not re.fullmatch(NAME, category)
    ]
    final = lambda path: now / path.relative_to(then) if path.is_relative_to(then) else path
    relative = lambda path: final(path).relative_to(home).as_posix() if path else ""
    facts = lambda s: (s.defect, s.subset, relative(s.image), relative(s.mask))
    rows = [
        Imported(dataset, category, *facts(s.raw), *s.size, s.sha256, s.raw.group)
        for category, all_seen in found.items()
        for s in all_seen
    ]
    if out is not None:
        _written(out, lambda: write_csv(out, rows, Imported))
    if report is not None:
        title = f"{dataset}: {reader.name}, " if reader.name else f"{dataset}: "
        _written(report, lambda: _sheet(report, f"{title}{len(rows)} pictures", found))
    print(_table(found))
    defects = {(row.category, row.defect) for row in rows if row.defect != GOOD}
    masks = sum(bool(row.mask) for row in rows)
    counts = {
        "pictures": len(rows),
        "masks": masks,
        "defect types": len(defects),
        "categories": len(found),
        "odd things": len(problems.odd),
    }
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    for line in as_given(problems.odd[: UserErrors.SHOWN]):
        print(f"odd: {line.encode(errors='backslashreplace').decode()}")
    if len(problems.odd) > UserErrors.SHOWN:
        print(f"odd: and {len(problems.odd) - UserErrors.SHOWN} more")
