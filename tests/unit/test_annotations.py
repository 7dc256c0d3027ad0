"""Annotations as people's tools write them, pixel by pixel against what those tools make of them:
pycocotools 2.0.11, LabelMe 5.8.1, ultralytics 8.4.190, Pascal VOC palettes (Pillow 13.0.0)."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from helixbench import cli
from helixbench.datasets.layout import Layout
from helixbench.errors import UserError
from helixbench.pictures.outline import RED
from helixbench.pictures.raw import read_mask
from helixbench.prepare import annotations

SIZE = (48, 64)

STORED = (
    "iVBORw0KGgoAAAANSUhEUgAAAAkAAAAHAQAAAADy4FrNAAAAHUlEQVR4nGPgYGAyY2ByZGD838hQz8Bgx8DAwQAA"
    "HWQCyk8NmpIAAAAASUVORK5CYII="
)
SHAPES = [
    {"points": [[3.4, 4.2], [20.7, 6.1], [17.2, 18.9], [9.5, 12.3]], "shape_type": "polygon"},
    {"points": [[50.2, 12.8], [56.1, 15.3]], "shape_type": "circle"},
    {"points": [[5.5, 40.1], [30.2, 35.7], [44.9, 42.3]], "shape_type": "linestrip"},
    {"points": [[48.0, 30.0], [56.0, 36.0]], "shape_type": "mask", "mask": STORED},
]

LABELME = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwAQAAAACJMEGyAAAAoklEQVR42rXQzW3DMAwF4M9S0PhQwN2gnaLXZrLG"
    "m7UjdARnAx11UMweLAE59lICBIn3+PjHH+ylxxSlZ+eoKBLIz1JTOSVph3mSYqh6jzVZS0e+B/UzZpw3lpC0rVN3"
    "1IALuY3C4t9tlnBavYO2ucLrvYqVHLG7yj4vpunrZomI2GZHUsfJT6QK+0D6N24aztF8VORYLQW5HH5Ub0Py9rDa"
    "L42nOKOGIAG4AAAAAElFTkSuQmCC"
)
"""What `labelme.utils.shapes_to_label` makes of these shapes."""

OUTLINES = [
    [0.11, 0.21, 0.52, 0.13, 0.61, 0.77, 0.3, 0.5],
    [0.7, 0.7, 0.93, 0.72, 0.81, 0.95],
]

ULTRALYTICS = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwAQAAAACJMEGyAAAAkklEQVR42p2QMQ7CMAxFX12kstEb9CZcjR4t3CQD"
    "A2NGVJWYIf5RhZjI9OLvb30b/n1jAgzYaXALYXHPgA25/c1DMFZBEgAzYKiZIngJdkGFM2D4wR6wChI9x94qpUdW"
    "5d3ta++uAVM97gWAJK6XmLVMXgzgCeUEsFnkccgWtsgy6AI4Y8DdNDsq28O+Ljz/uPoHsmQqwPkWjvAAAAAASUVO"
    "RK5CYII="
)
"""What `ultralytics.data.utils.polygon2mask` makes of these outlines."""


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",))) > 0


@pytest.fixture
def root(tmp_path):
    """A folder `part` with ten different pictures, images/0.jpg to 9.jpg."""
    (tmp_path / "part/images").mkdir(parents=True)
    for i in range(10):
        image = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(image).resize(SIZE[::-1])
        picture.save(tmp_path / f"part/images/{i}.jpg", quality=95)
    return tmp_path / "part"


@pytest.fixture
def convert(root, capsys):
    """What the conversion prints, or what is wrong (and that nothing is left of it); defect and
    mask of each picture as the layout `folder` reads them."""

    def call(kind: str, report: Path | None = None, **options):
        said = annotations.Options(**options)
        try:
            annotations.run(kind, root, root / "manifest.csv", said, report=report)
        except UserError as error:
            assert not [path for path in root.iterdir() if path.name.startswith((".", "man"))]
            assert capsys.readouterr().out == ""
            return str(error), {}
        printed = capsys.readouterr().out
        samples = Layout.named("folder").read(root.parent, "Any", "part")
        assert len(samples) == len(list(csv.reader(open(root / "manifest.csv")))) - 1
        read = lambda s: (s.defect, read_mask(s.mask, SIZE) if s.mask else None)
        return printed, {int(s.image.stem): read(s) for s in samples}

    return call


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


# ------------------------------------------------------------------------------------------------
# COCO


def coco_file() -> dict:
    """Polygons, runs of both kinds, two marks of a type and two types in a picture, normals."""
    images = [
        {"id": 7 + i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for i in range(10)
    ]
    disc = np.hypot(*(np.mgrid[:48, :64] - np.array([20, 30])[:, None, None])) < 9.3
    packed = coco_mask.encode(np.asfortranarray(disc.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    changes = np.flatnonzero(np.diff(disc.ravel(order="F")))
    runs = np.diff([0, *(changes + 1), disc.size]).tolist()
    triangle = [3.2, 4.1, 30.8, 6.6, 11.1, 40.3]
    hook = [40.5, 10.2, 60.1, 12.3, 58.8, 44.4, 50.2, 20.6]
    marks = [
        (0, 1, [triangle]),
        (1, 1, [triangle, hook]),
        (2, 2, packed),
        (3, 2, {"size": list(SIZE), "counts": runs}),
        (4, 1, [triangle]),
        (4, 1, packed),
        (5, 1, [hook]),
        (5, 2, packed),
        (6, 1, [hook]),
        (6, 2, packed),
    ]
    annotations = [
        {"id": n, "image_id": 7 + i, "category_id": c, "segmentation": s, "iscrowd": 0}
        for n, (i, c, s) in enumerate(marks)
    ]
    categories = [{"id": 1, "name": "dent"}, {"id": 2, "name": "stain"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_coco(root, convert):
    write_json(root / "annotations/instances.json", coco_file())
    said, found = convert("coco", report=root.parent / "sheet.png")
    tool, expected = COCO(str(root / "annotations/instances.json")), {}
    for one in tool.loadAnns(tool.getAnnIds()):
        mask = expected.get(one["image_id"] - 7, False)
        expected[one["image_id"] - 7] = mask | (tool.annToMask(one) > 0)
    assert set(expected) == set(range(7)) and len(found) == 10
    for i, mask in expected.items():
        assert (found[i][1] == mask).all() and mask.any(), i
    kinds = ["dent", "dent", "stain", "stain", "dent", "combined", "combined"]
    kinds += ["good"] * 3
    assert [found[i][0] for i in range(10)] == kinds
    assert "2 pictures of several labels, called combined" in said
    sheet = np.asarray(Image.open(root.parent / "sheet.png", formats=("PNG",)))
    assert (sheet == RED).all(axis=2).sum() > 500
    before = (root / "manifest.csv").read_bytes()
    assert convert("coco")[1] and (root / "manifest.csv").read_bytes() == before


def changed(what) -> dict:
    content = coco_file()
    what(content)
    return content


def boxed(content: dict) -> None:
    content["annotations"][0] |= {"segmentation": [], "bbox": [4, 6, 10, 20]}


def sliver(content: dict) -> None:
    outside = [70.0, 4.0, 80.0, 4.0, 80.0, 9.0]
    content["annotations"][0]["segmentation"] = [outside]


BAD_COCO = {
    "beside the picture": (sliver, "0.jpg: its marks hold no pixel"),
    "box": (boxed, "annotation 0: a box is no outline: draw the outline, or take boxes"),
    "four numbers": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        "annotation 0: a polygon needs three points or more",
    ),
    "runs too long": (
        lambda c: c["annotations"][3]["segmentation"].update(counts=[5, 10**9]),
        "annotation 3: runs that are not of 64x48 pixels",
    ),
    "runs of nothing": (
        lambda c: c["annotations"][2]["segmentation"].update(counts="~~~~~~"),
        "annotation 2: runs that are not of 64x48 pixels",
    ),
    "other size": (
        lambda c: [one.update(height=47) for one in c["images"][:1]],
        "marks 64x47 pixels, ",
    ),
    "no such picture": (
        lambda c: c["images"][0].update(file_name="../x/zero.jpg"),
        "'../x/zero.jpg': no such picture below",
    ),
    "no such category": (lambda c: c["categories"].pop(), "not as COCO has it (KeyError: 2)"),
    "a name that is taken": (
        lambda c: c["categories"][0].update(name="good"),
        "'good' can be no defect type; rename the label",
    ),
    "a path as a name": (
        lambda c: c["categories"][0].update(name="../x"),
        "'../x' can be no defect type; rename the label",
    ),
    "no normals": (lambda c: c.update(images=c["images"][:7]), "no picture without a mark to"),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_bad_coco_is_told_and_leaves_nothing(case, root, convert):
    spoil, line = BAD_COCO[case]
    write_json(root / "instances.json", changed(spoil))
    said, found = convert("coco")
    assert line in said and not found


def test_boxes_are_masks_where_that_is_said(root, convert):
    write_json(root / "instances.json", changed(boxed))
    mask = np.zeros(SIZE, bool)
    mask[6:26, 4:14] = True
    assert (convert("coco", boxes=True)[1][0][1] == mask).all()


def test_a_package_that_is_missing_is_named(root, convert, monkeypatch):
    write_json(root / "instances.json", coco_file())
    monkeypatch.setattr("helixbench.prepare.annotations.find_spec", lambda name: None)
    assert "need the package pycocotools; install it" in convert("coco")[0]


# ------------------------------------------------------------------------------------------------
# LabelMe


def labelme(root: Path, *shapes, name: str = "0") -> None:
    content = {"version": "5.8.1", "flags": {}, "shapes": [{"label": "dent", **s} for s in shapes]}
    content |= {"imagePath": f"{name}.jpg", "imageHeight": 48, "imageWidth": 64, "imageData": None}
    write_json(root / f"images/{name}.json", content)


def test_labelme(root, convert):
    labelme(root, *SHAPES)
    labelme(root, *SHAPES[:1], *SHAPES[2:], name="2")
    labelme(root, {**SHAPES[0], "label": "__ignore__"}, name="1")
    said, found = convert("labelme")
    assert found[0][0] == "dent" and (found[0][1] == decoded(LABELME)).all()
    assert Counter(kind for kind, _ in found.values()) == {"dent": 2, "good": 8}
    assert "7 pictures without annotations, taken as normal" in said


@pytest.mark.parametrize(
    "shape, line",
    [
        ({"points": [[1, 2], [9, 8]], "shape_type": "rectangle"}, "shape 1: a box is no outline"),
        ({"points": [[1, 2]], "shape_type": "point"}, "shape 1: point of 1 points marks no area"),
        ({"points": [[1, 2], [3, 4], "x"], "shape_type": "polygon"}, "0.json: damaged"),
        ({**SHAPES[3], "mask": "AAAA"}, "0.json: damaged"),
    ],
)
def test_bad_labelme(shape, line, root, convert):
    labelme(root, shape)
    assert line in convert("labelme")[0]
    (root / "images/0.json").write_text('{"shapes": [')
    assert "0.json: not readable as JSON" in convert("labelme")[0]


# ------------------------------------------------------------------------------------------------
# YOLO


def yolo(root: Path, *lines: str) -> None:
    (root / "labels").mkdir(exist_ok=True)
    (root / "data.yaml").write_text("path: .\ntrain: images\nnames: {0: dent, 1: stain}\n")
    (root / "labels/3.txt").write_text("\n".join(lines))
    (root / "labels/4.txt").write_text("")
    (root / "labels/5.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n\n1 0.5 0.9 0.5 0.6 0.9 0.9")


def test_yolo(root, convert):
    yolo(root, *(f"1 {' '.join(map(str, outline))}" for outline in OUTLINES))
    said, found = convert("yolo")
    assert found[3][0] == "stain" and (found[3][1] == decoded(ULTRALYTICS)).all()
    assert "7 pictures without annotations" in said and found[4][0] == "good"


@pytest.mark.parametrize(
    "text, line",
    [
        ("0 0.5 0.5 0.2 0.2", "3.txt: line 1: a box is no outline"),
        ("2 0.1 0.1 0.5 0.1 0.5 0.5", "3.txt: line 1: no class of data.yaml"),
        ("0 10 10 50 10 50 50", "3.txt: line 1: outlines of YOLO are parts of the side"),
        ("0 0.1 0.1 0.5 nan 0.5 0.5", "3.txt: line 1: a polygon needs three points"),
    ],
)
def test_bad_yolo(text, line, root, convert):
    yolo(root, text)
    assert line in convert("yolo")[0]


# ------------------------------------------------------------------------------------------------
# label masks


def voc(root: Path, values: np.ndarray, name: str = "2") -> None:
    """A palette of colours, as VOC's SegmentationClass has it: the index is the label."""
    picture = Image.fromarray(values.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9, 9, 9] * 252 + [224, 224, 192])
    picture.putdata(values.ravel().tolist())
    (root / "SegmentationClass").mkdir(exist_ok=True)
    picture.save(root / f"SegmentationClass/{name}.png")


def test_label_masks(root, convert):
    values = np.zeros(SIZE, int)
    values[4:20, 4:30], values[10:14, 10:14], values[20, 4:30] = 1, 2, 255
    for name in "23":
        voc(root, np.where(values == 1, 0, values), name)
    for name in "56":
        voc(root, values, name)
    voc(root, np.zeros(SIZE, int), "7")
    stated = {"labels": {1: "dent", 2: "stain"}, "ignore": [255]}
    said, found = convert("labels", **stated)
    assert found[7][0] == "good" and "5 pictures without annotations" in said
    assert (found[2][0], found[5][0]) == ("stain", "combined")
    assert (found[2][1] == (values == 2)).all()
    assert (found[5][1] == ((values > 0) & (values < 255))).all()
    for path in (root / "manifest.csv", *(root / "manifest_masks").iterdir()):
        path.unlink()
    (root / "manifest_masks").rmdir()
    assert "label masks need --labels" in convert("labels")[0]
    assert "value 255 is none of [1, 2]" in convert("labels", labels=stated["labels"])[0]
    Image.new("RGB", SIZE[::-1]).save(root / "SegmentationClass/2.png")
    assert "colours are no labels" in convert("labels", **stated)[0]
    Image.new("L", SIZE[::-1]).save(root / "SegmentationClass/77.png")
    assert "77.png: mask without a picture" in convert("labels", **stated)[0]


def test_the_command(root, monkeypatch, capsys):
    write_json(root / "instances.json", changed(boxed))
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^helixbench import .*--annotations coco.*$", page, flags=re.M)
    monkeypatch.chdir(root.parent)
    line = line.replace("data/gear", "part")
    monkeypatch.setattr(sys, "argv", [*line.split(), "--boxes", "--without", "combined"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert "pictures: 8, masks: 5, defect types: 2" in capsys.readouterr().out
    assert {path.name for path in root.parent.iterdir()} == {"part", "sheet.png"}
    for options, line in {
        (): "give --layout or --annotations",
        ("--annotations", "coco", "--layout", "folder"): "give --layout or --annotations",
        ("--annotations", "coco"): "--annotations needs --out",
        ("--annotations", "coco", "--out", "m.csv"): "m.csv: the manifest names pictures below",
        ("--annotations", "coco", "--ignore", "1"): "are for --annotations labels",
        ("--annotations", "labels", "--labels", "1=a,1=b", "--out", "m.csv"): "each value once",
        ("--layout", "folder", "--boxes"): "--boxes is for --annotations",
        ("--annotations", "cvat", "--out", f"{root}/m.csv"): "cvat: no such kind of annotations",
    }.items():
        monkeypatch.setattr(sys, "argv", ["helixbench", "import", str(root), *options])
        with pytest.raises(SystemExit):
            cli.main()
        assert line in capsys.readouterr().err
