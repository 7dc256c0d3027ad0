"""Annotations of other tools, made into masks and a manifest: COCO, LabelMe, YOLO segmentation and
label masks such as those of Pascal VOC.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from helixbench.datasets.folder import NAME
from helixbench.datasets.layout import Layout, refused, unicode_name
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError, UserErrors
from helixbench.pictures.files import is_picture
from helixbench.pictures.raw import read_rgb, read_values, write_png
from helixbench.prepare import importing
from helixbench.prepare.stage import fitting
from helixbench.provenance import DAMAGED, whole_folder
from helixbench.records import GOOD, RawSample

COMBINED = "combined"
"""Defect type of a picture that shows several, as MVTec AD calls it."""

TEST_SHARE = 5
"""One in so many normals is for testing, where no folder says which are."""

LINE_WIDTH = 10
"""Of a line or line strip of LabelMe [pixel], as its own masks have it."""

_BOX = "a box is no outline: draw the outline, or take boxes as masks, too large, by --boxes"

Marks = Iterator[tuple[str, np.ndarray]]
"""Label and mask (H, W) bool of each mark of a picture."""


@dataclass(frozen=True)
class Options:
    """What a person says of the annotations.

    labels: value of a label mask -> defect type; ignore: values of it that mean nothing; boxes:
    whether a box is taken as a mask.
    """

    labels: Mapping[int, str] = field(default_factory=dict)
    ignore: Sequence[int] = ()
    boxes: bool = False


@dataclass
class _Annotated:
    """A picture and what makes its marks, given its size (H, W)."""

    image: Path
    where: str
    marks: list[Callable[[tuple[int, int]], Marks]] = field(default_factory=list)


class _Pictures:
    """All pictures below a root, found by any last part of their paths."""

    def __init__(self, root: Path, without: Path):
        self.root = root
        self.every = [
            path
            for path in sorted(root.rglob("*"))
            if is_picture(path.name)
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
            and without not in path.parents
        ]
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in self.every:
            self._named[unicode_name(path.name)].append(path)

    def find(self, name: str, home: Path, where: str) -> Path:
        """The picture that an annotation names, beside it or anywhere below the root; UserError
        when there is none, or more than one.
        """
        parts = PurePosixPath(unicode_name(name.replace("\\", "/"))).parts
        last = [part for part in parts if part not in ("..", ".", "/")]
        found = self._named.get(last[-1], []) if last else []
        if len(found) > 1:
            beside = home.joinpath(*last)
            same = lambda path: [unicode_name(part) for part in path.parts[-len(last) :]] == last
            found = [beside] if beside in found else [path for path in found if same(path)]
        if len(found) != 1:
            there = f"{len(found)} pictures are called so" if found else "no such picture"
            raise UserError(
                f"{where}: {name!r}: {there} below {self.root}; add it, or name it by its path"
            )
        return found[0]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except DAMAGED as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file}: not readable as JSON ({said}); export it again") from None


# ------------------------------------------------------------------------------------------------
# COCO


def _coco(pictures: _Pictures, options: Options) -> Iterator[_Annotated]:
    """Every JSON file below the root that has images and annotations."""
    if find_spec("pycocotools") is None:
        raise UserError(
            "COCO annotations need the package pycocotools; install it: pip install pycocotools"
        )
    contents = {file: _json(file) for file in sorted(pictures.root.rglob("*.json"))}
    contents = {file: content for file, content in contents.items() if _is_coco(content)}
    if not contents:
        raise UserError(f"{pictures.root}: no JSON file with images and annotations below it")
    for file, content in contents.items():
        try:
            names = {one["id"]: str(one["name"]) for one in content["categories"]}
            images = {one["id"]: one for one in content["images"]}
            found = {
                key: _Annotated(pictures.find(one["file_name"], file.parent, str(file)), str(file))
                for key, one in images.items()
            }
            for entry in content["annotations"]:
                image, label = images[entry["image_id"]], names[entry["category_id"]]
                size = int(image["height"]), int(image["width"])
                mark = _coco_mark(entry, label, size, f"{file}: annotation {entry['id']}", options)
                found[entry["image_id"]].marks.append(mark)
        except DAMAGED as error:
            raise UserError(
                f"{file}: not as COCO has it ({type(error).__name__}: {error}); export it again"
            ) from None
        yield from found.values()


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def _coco_mark(
    entry: dict, label: str, size: tuple[int, int], where: str, options: Options
) -> Callable[[tuple[int, int]], Marks]:
    def mark(_: tuple[int, int]) -> Marks:
        from pycocotools import mask as coco

        height, width = size
        marked = entry.get("segmentation")
        if not marked:
            if not options.boxes:
                raise UserError(f"{where}: {_BOX}")
            x, y, w, h = entry["bbox"]
            marked = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if isinstance(marked, list):
            for polygon in marked:
                _check_polygon(polygon, where)
            runs = coco.merge(coco.frPyObjects(marked, height, width))
        else:
            # pycocotools would fill what wrong runs leave with whatever is in memory.
            counts = marked["counts"]
            counts = counts if isinstance(counts, list) else _runs(counts)
            of_size = list(marked["size"]) == [height, width] and sum(counts) == height * width
            if not of_size or min(counts) < 0:
                raise UserError(f"{where}: runs that are not of {width}x{height} pixels")
            runs = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        yield label, coco.decode(runs).astype(bool)

    return mark


def _runs(text: str) -> list[int]:
    """Lengths of the runs that COCO's text of them holds: 5 bits a character, low ones first, as
    differences to the run before the last.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << 1 << (shift - 5)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else []


def _check_polygon(numbers: Any, where: str) -> None:
    good = isinstance(numbers, list) and len(numbers) >= 6 and len(numbers) % 2 == 0
    if not good or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise UserError(f"{where}: a polygon needs three points or more, x and y of each")


# ------------------------------------------------------------------------------------------------
# LabelMe


def _labelme(pictures: _Pictures, options: Options) -> Iterator[_Annotated]:
    """A JSON file per picture."""
    files = sorted(pictures.root.rglob("*.json"))
    contents = ((file, _json(file)) for file in files)
    found = [(file, one) for file, one in contents if isinstance(one, dict) and "shapes" in one]
    if not found:
        raise UserError(f"{pictures.root}: no JSON file of LabelMe (with `shapes`) below it")
    named = set()
    for file, content in found:
        try:
            name = str(content["imagePath"])
            one = _Annotated(pictures.find(name, file.parent, str(file)), str(file))
            for number, shape in enumerate(content["shapes"], 1):
                if str(shape["label"]) not in ("__ignore__", "_background_"):
                    where = f"{file}: shape {number}"
                    one.marks.append(_labelme_mark(shape, where, options))
        except DAMAGED as error:
            raise UserError(
                f"{file}: not as LabelMe has it ({type(error).__name__}: {error}); save it again"
            ) from None
        named.add(one.image)
        yield one
    yield from (_Annotated(image, str(image)) for image in pictures.every if image not in named)


def _labelme_mark(shape: dict, where: str, options: Options) -> Callable[[tuple[int, int]], Marks]:
    def mark(size: tuple[int, int]) -> Marks:
        kind = shape.get("shape_type") or "polygon"
        points = [(float(x), float(y)) for x, y in shape["points"]]
        area = Image.new("L", size[::-1])
        draw = ImageDraw.Draw(area)
        if kind == "polygon" and len(points) > 2:
            draw.polygon(points, outline=1, fill=1)
        elif kind == "circle" and len(points) == 2:
            radius, (x, y) = math.dist(*points), points[0]
            box = [x - radius, y - radius, x + radius, y + radius]
            draw.ellipse(box, outline=1, fill=1)
        elif kind in ("line", "linestrip") and len(points) > 1:
            draw.line(points, fill=1, width=LINE_WIDTH)
        elif kind == "mask" and len(points) == 2:
            with Image.open(
                io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)
            ) as stored:
                area.paste(stored.convert("1").convert("L").point(bool), tuple(map(int, points[0])))
        elif kind == "rectangle" and len(points) == 2:
            if not options.boxes:
                raise UserError(f"{where}: {_BOX}")
            (x, y), (u, v) = points
            draw.rectangle([min(x, u), min(y, v), max(x, u), max(y, v)], outline=1, fill=1)
        else:
            raise UserError(
                f"{where}: {kind} of {len(points)} points marks no area; draw a polygon"
            )
        yield str(shape["label"]), np.asarray(area) > 0

    return mark


# ------------------------------------------------------------------------------------------------
# YOLO segmentation


def _yolo(pictures: _Pictures, options: Options) -> Iterator[_Annotated]:
    """Names in data.yaml; labels/<name>.txt for images/<name>.*, or beside it."""
    files = [*sorted(pictures.root.rglob("*.yaml")), *sorted(pictures.root.rglob("*.yml"))]
    names = next((found for file in files if (found := _yolo_names(file))), None)
    if names is None:
        raise UserError(f"{pictures.root}: no data.yaml with `names` below it; add it")
    any_labels = False
    for image in pictures.every:
        parts = list(image.relative_to(pictures.root).parts)
        at = max((i for i, part in enumerate(parts[:-1]) if part == "images"), default=None)
        if at is not None:
            parts[at] = "labels"
        file = pictures.root.joinpath(*parts).with_suffix(".txt")
        one = _Annotated(image, str(file if file.is_file() else image))
        if file.is_file():
            any_labels = True
            one.marks.append(_yolo_mark(file, names, options))
        yield one
    if not any_labels:
        raise UserError(f"{pictures.root}: no labels; put <name>.txt into labels beside images")


def _yolo_names(file: Path) -> dict[int, str] | None:
    try:
        names = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("names")
        listed = enumerate(names) if isinstance(names, list) else dict(names or {}).items()
        return {int(number): str(name) for number, name in listed} or None
    except (*DAMAGED, yaml.YAMLError):
        return None  # some other YAML file


def _yolo_mark(
    file: Path, names: dict[int, str], options: Options
) -> Callable[[tuple[int, int]], Marks]:
    def mark(size: tuple[int, int]) -> Marks:
        import cv2

        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            where, words = f"{file}: line {number}", line.split()
            if not words:
                continue
            try:
                label, values = names[int(words[0])], [float(word) for word in words[1:]]
            except (ValueError, KeyError):
                raise UserError(f"{where}: no class of data.yaml and its outline") from None
            if len(values) == 4:
                if not options.boxes:
                    raise UserError(f"{where}: {_BOX}")
                (x, y), (w, h) = values[:2], (value / 2 for value in values[2:])
                values = [x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h]
            _check_polygon(values, where)
            if min(values) < 0 or max(values) > 1:
                raise UserError(f"{where}: outlines of YOLO are parts of the side, from 0 to 1")
            area = np.zeros(size, np.uint8)
            corners = np.array(values, np.float32).reshape(-1, 2) * np.array(size[::-1], np.float32)
            cv2.fillPoly(area, [corners.astype(np.int32)], 1)  # whole pixels, as ultralytics does
            yield label, area > 0

    return mark


# ------------------------------------------------------------------------------------------------
# label masks


MASK_FOLDERS = ("SegmentationClass", "masks", "labels", "annotations", "ground_truth")
"""Names of folders that label masks lie in; the first is Pascal VOC's."""


def _label_masks(pictures: _Pictures, options: Options) -> Iterator[_Annotated]:
    """A mask of labels per picture, of the same name (or <name>_mask), in a folder beside that of
    the pictures.
    """
    labels, ignore = dict(options.labels), set(options.ignore)
    if not labels:
        raise UserError("label masks need --labels, e.g. --labels 1=scratch,2=dent")
    masks: dict[tuple[Path, str], Path] = {}
    for path in pictures.every:
        if path.parent.name in MASK_FOLDERS:
            masks[path.parent.parent, unicode_name(path.stem).removesuffix("_mask")] = path
    if not masks:
        raise UserError(
            f"{pictures.root}: no label masks; put <name>.png into a folder "
            f"{', '.join(MASK_FOLDERS)}"
        )
    for image in pictures.every:
        if image.parent.name in MASK_FOLDERS or image.parent.name.startswith("Segmentation"):
            continue
        stem, homes = unicode_name(image.stem), (image.parent, image.parent.parent)
        mask = next((masks.pop((home, stem)) for home in homes if (home, stem) in masks), None)
        one = _Annotated(image, str(mask or image))
        if mask:
            one.marks.append(_label_mark(mask, labels, ignore))
        yield one
    for mask in masks.values():
        raise UserError(f"{mask}: mask without a picture; add the picture or remove the mask")


def _label_mark(
    mask: Path, labels: dict[int, str], ignore: set[int]
) -> Callable[[tuple[int, int]], Marks]:
    def mark(_: tuple[int, int]) -> Marks:
        values = read_values(mask)
        unknown = sorted(set(np.unique(values).tolist()) - {0} - labels.keys() - ignore)
        if unknown:
            raise UserError(
                f"{mask}: value {unknown[0]} is none of {sorted(labels)}; name it in --labels, or "
                f"in --ignore"
            )
        for value, label in labels.items():
            if (values == value).any():
                yield label, values == value

    return mark


KINDS: dict[str, Callable[[_Pictures, Options], Iterator[_Annotated]]] = {
    "coco": _coco,
    "labelme": _labelme,
    "yolo": _yolo,
    "labels": _label_masks,
}


# ------------------------------------------------------------------------------------------------
# conversion


class _Converted(Layout):
    """What a conversion has found, as a layout; its root is one category."""

    title = "the pictures"

    def __init__(self, samples: Sequence[RawSample], odd: Sequence[str]):
        self._samples, self._odd = samples, odd

    def samples(
        self, root: Path, dataset: str, category: str, problems: Problems
    ) -> list[RawSample]:
        """Those that were found."""
        problems.odd += self._odd
        return [replace(s, dataset=dataset, category=category) for s in self._samples]

    def categories(
        self, root: Path, problems: Problems | None = None
    ) -> tuple[list[str], list[Path]]:
        """The root."""
        return ["."], []


def _subset(image: Path, root: Path) -> str | None:
    """Subset that a folder of the path names, if one does."""
    for part in image.relative_to(root).parts[:-1]:
        word = part.lower().rstrip("0123456789")
        if word in ("train", "training"):
            return "train"
        if word in ("test", "val", "valid", "validation"):
            return "test"
    return None


def _masks(one: _Annotated, problems: Problems) -> dict[str, np.ndarray]:
    """Label -> mask (H, W) bool of all its marks in a picture."""
    masks: dict[str, np.ndarray] = {}
    size = read_rgb(one.image).shape[:2]
    for mark in one.marks:
        try:
            for label, mask in mark(size):
                label = unicode_name(label.strip())
                if not NAME.fullmatch(label) or label in (GOOD, COMBINED) or refused(label):
                    raise UserError(
                        f"{one.where}: {label!r} can be no defect type; rename the label (letters, "
                        f"digits, blanks and . + - _)"
                    )
                if mask.shape != size:
                    (h, w), (height, width) = mask.shape, size
                    raise UserError(
                        f"{one.where}: marks {w}x{h} pixels, {one.image} has {width}x{height}; "
                        f"export both at one size"
                    )
                masks[label] = masks.get(label, False) | mask
        except (*DAMAGED, Image.DecompressionBombError) as error:
            problems.add(f"{one.where}: damaged ({error}); export it again")
    found = {label: mask for label, mask in masks.items() if mask.any()}
    if masks and not found:
        raise UserError(
            f"{one.where}: {one.image}: its marks hold no pixel; draw them larger, or remove them"
        )
    return found


def convert(
    kind: str, root: Path, folder: Path, options: Options, problems: Problems, without: Path
) -> list[RawSample]:
    """Write a mask per defective picture into `folder`; returns all pictures as samples.

    A picture without a mark is normal; one with several labels has the defect type `combined`.
    without: folder whose pictures are not read. What is wrong is a problem.
    """
    pictures, seen = _Pictures(root, without), {}
    for one in KINDS[kind](pictures, options):
        seen.setdefault(one.image, replace(one, marks=[])).marks.extend(one.marks)
    samples, normals = [], []
    for one in seen.values():
        with problems.caught():
            masks = _masks(one, problems)
            if not masks:
                normals.append(one.image)
                continue
            (defect,) = masks if len(masks) == 1 else (COMBINED,)
            mask = folder / f"{fitting(f'{len(samples):06d}_{one.image.stem}')}.png"
            write_png(mask, np.logical_or.reduce(list(masks.values())))
            samples.append(RawSample("", "", defect, "test", one.image, mask))
    for i, image in enumerate(sorted(normals)):
        subset = _subset(image, root) or ("train" if i % TEST_SHARE else "test")
        samples.append(RawSample("", "", GOOD, subset, image, None))
    for subset in {"train", "test"} - {s.subset for s in samples if s.defect == GOOD}:
        problems.add(f"{root}: no picture without a mark to {subset} on; add normal pictures")
    if len(samples) == len(normals):
        problems.add(f"{root}: no marks of defects; annotate some")
    combined = sum(sample.defect == COMBINED for sample in samples)
    if combined:
        problems.odd.append(f"{root}: {combined} pictures of several labels, called {COMBINED}")
    plain = sum(one.where == str(one.image) for one in seen.values())
    if plain:
        problems.odd.append(f"{root}: {plain} pictures without annotations, taken as normal")
    unread = len(set(pictures.every) - seen.keys())
    if unread and kind != "labels":
        problems.odd.append(f"{root}: {unread} pictures that no annotation names, not read")
    return samples


def run(kind: str, root: Path, out: Path, options: Options, **importing_options: Any) -> None:
    """Convert annotations below `root` and import what comes of them.

    Writes `out`, a manifest in `root` itself, and the folder of masks `<stem of out>_masks` beside
    it; both or none. Raises UserError, or UserErrors with every problem.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    if kind not in KINDS:
        raise UserError(f"{kind}: no such kind of annotations; there are {', '.join(KINDS)}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one of the pictures and annotations")
    if out.parent != root:
        raise UserError(f"{out}: the manifest names pictures below it; write it into {root}")
    masks, problems = root / f"{out.stem}_masks", Problems(collect=True)
    with whole_folder(masks) as folder:
        samples = convert(kind, root, folder, options, problems, masks)
        if problems.lines:
            raise UserErrors(problems.lines)
        importing.run(
            _Converted(samples, problems.odd),
            root,
            out=out,
            renamed=(folder.absolute(), masks),
            **importing_options,
        )
