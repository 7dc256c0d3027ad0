"""The picture grids of the report: which pairs they show, and that tiles are drawn as they are."""

import numpy as np
import pytest
from PIL import Image
from test_report import config

from helixbench.errors import UserError
from helixbench.records import Pair, Sample, write_csv
from helixbench.report import grid


def draw_pair(folder, name, rng, size=96, radius=14, hue=(150, 120, 90)):
    """A disc with a dark spot, its mask beside it; relative paths of both."""
    y, x = np.mgrid[:size, :size]
    cy, cx = rng.integers(30, size - 30, 2)
    body = (y - size / 2) ** 2 + (x - size / 2) ** 2 < (0.42 * size) ** 2
    spot = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    image = np.where(body[..., None], np.array(hue), 235) + rng.normal(0, 6, (size, size, 3))
    image[spot] *= 0.4
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{name}.png")
    Image.fromarray((spot * 255).astype(np.uint8)).save(folder / "images" / f"{name}_mask.png")
    return f"images/{name}.png", f"images/{name}_mask.png"


def make_run(root, datasets=("disc",), defects=("broken_large", "hole"), pairs=9, real=4):
    rng = np.random.default_rng(0)
    for category in datasets:
        folder, rows = root / "prepare" / "Procedural" / category, []
        for defect in defects:
            for i in range(real):
                image, mask = draw_pair(folder, f"{defect}_{i}", rng)
                role = "generator" if i < real - 1 else "test"
                rows.append(
                    Sample(
                        f"{defect}_{i}",
                        "Procedural",
                        category,
                        defect,
                        role,
                        image,
                        mask,
                        "5x5:1",
                        "",
                        "",
                        "raw.png",
                        "0",
                    )
                )
        write_csv(folder / "samples.csv", rows, Sample)
        for method, hue in (("dhdiff", (90, 130, 150)), ("crop", (150, 130, 60))):
            folder, rows = root / "generate" / method / "Procedural" / category, []
            for defect in defects:
                for i in range(pairs):
                    image, mask = draw_pair(folder, f"{defect}_{i}", rng, hue=hue)
                    gate = "small" if i == 0 or (method == "crop" and defect == "hole") else "ok"
                    common = (
                        i,
                        "Procedural",
                        category,
                        defect,
                        method,
                        image,
                        mask,
                        1,
                        "d",
                        "b",
                        "5x5:1",
                        "a photo",
                        gate,
                        0,
                        0.1,
                        "0",
                        "0",
                    )
                    rows.append(Pair(*common))
            write_csv(folder / "manifest.csv", rows, Pair)


def grid_config(categories=("disc",), columns=3):
    return config(
        datasets={
            "Procedural": {"layout": "procedural", "categories": list(categories), "procedural": {}}
        },
        columns=columns,
    )


def test_grid(tmp_path):
    make_run(tmp_path / "run")
    grid.run(
        "Procedural", grid_config(), results=tmp_path / "run", out=tmp_path / "report" / "grid.png"
    )
    first = (tmp_path / "report" / "grid.png").read_bytes()
    pdf = (tmp_path / "report" / "grid.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and sorted(p.name for p in (tmp_path / "report").iterdir()) == [
        "grid.pdf",
        "grid.png",
    ]
    grid.run(
        "Procedural", grid_config(), results=tmp_path / "run", out=tmp_path / "report" / "grid.png"
    )
    assert (tmp_path / "report" / "grid.png").read_bytes() == first and (
        tmp_path / "report" / "grid.pdf"
    ).read_bytes() == pdf


def test_grid_takes_pairs_that_passed_and_real_ones_that_train(tmp_path):
    make_run(tmp_path)
    broken, hole = grid._blocks(
        tmp_path, "Procedural", "disc", {"dhdiff": "DH-Diff", "crop": "Crop&Paste"}, 3
    )
    assert [block.title for block in (broken, hole)] == ["disc / broken_large", "disc / hole"]
    assert [(group.label, group.total, len(group.images)) for group in broken.groups] == [
        ("real", 3, 3),
        ("DH-Diff", 8, 3),
        ("Crop&Paste", 8, 3),
    ]
    assert [group.total for group in hole.groups] == [3, 8, 0]
    assert set(np.unique(broken.groups[0].masks[0])) == {
        0,
        255,
    }  # no grey where a small mask is enlarged


def test_tiles_are_drawn_pixel_for_pixel(tmp_path):
    make_run(tmp_path)
    (block, _) = grid._blocks(tmp_path, "Procedural", "disc", {"dhdiff": "DH-Diff"}, 2)
    grid.compose([block], 2, 1).savefig(tmp_path / "sheet.png", dpi=100)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    left, top = grid._MARGIN + grid._LABEL, grid._MARGIN + grid._TITLE
    shown = sheet[top : top + grid.TILE, left : left + grid.TILE]
    assert np.abs(shown - block.groups[0].images[0]).mean() < 1


@pytest.mark.parametrize(
    ("n", "chosen"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (20, list(range(10)))]
)
def test_evenly(n, chosen):
    assert grid.evenly(range(10), n) == chosen


def test_grid_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match="samples.csv"):
        grid.run("Procedural", grid_config(), results=tmp_path, out=tmp_path / "grid.png")
    make_run(tmp_path)
    (tmp_path / "generate/dhdiff/Procedural/disc/images/hole_1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="hole_1.png: cannot be read"):
        grid.run("Procedural", grid_config(), results=tmp_path, out=tmp_path / "grid.png")
    (tmp_path / "generate/dhdiff/Procedural/disc/manifest.csv").unlink()
    with pytest.raises(UserError, match="manifest.csv"):
        grid.run("Procedural", grid_config(), results=tmp_path, out=tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()
