"""The same hundred inputs to every reader of raw pictures: `import`, `prepare`, the judge."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helixbench.config import Slice
from helixbench.datasets.layout import Layout
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.pictures.raw import read_mask, read_rgb
from helixbench.prepare import importing, judge, stage
from helixbench.records import Sample, read_csv
from helixbench.schema import Gate

SIZE = 32
RNG = np.random.default_rng(0)


def grey(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(120, 12, (24, 32)).clip(1, 254).astype(np.uint8)


def marked() -> np.ndarray:
    mask = np.zeros((24, 32), np.uint8)
    mask[6:14, 8:20] = 255
    return mask


def _palette(array: np.ndarray) -> Image.Image:
    picture = Image.fromarray(array // 255, "P") if array.max() == 255 else Image.fromarray(array)
    picture.putpalette([0, 0, 0, 200, 30, 30])
    return picture


PICTURES = {
    "grey": lambda a: Image.fromarray(a),
    "colour": lambda a: Image.fromarray(np.repeat(a[..., None], 3, 2)),
    "opaque": lambda a: Image.fromarray(np.dstack([a, a, a, np.full_like(a, 255)])),
    "transparent": lambda a: Image.fromarray(np.dstack([a, a, a, np.zeros_like(a)])),
    "half transparent": lambda a: Image.fromarray(np.dstack([a, a, a, a])),
    "grey with alpha": lambda a: Image.fromarray(a).convert("LA"),
    "16 bit": lambda a: Image.fromarray(a.astype(np.uint16) * 257),
    "palette": lambda a: Image.fromarray(a).convert("P"),
    "1 bit": lambda a: Image.fromarray(a).convert("1"),
}
MASKS = {
    "0 and 255": lambda m: Image.fromarray(m),
    "0 and 1": lambda m: Image.fromarray(m // 255),
    "1 bit": lambda m: Image.fromarray(m).convert("1"),
    "palette": _palette,
    "colour": lambda m: Image.fromarray(np.dstack([m, m // 2, m // 4])),
    "labels": lambda m: Image.fromarray(m // 255 * np.uint8(7)),
    "16 bit": lambda m: Image.fromarray(m.astype(np.uint16) * 257),
    "paint in alpha": lambda m: Image.fromarray(np.dstack([m * 0, m * 0, m * 0, m])),
    "empty": lambda m: Image.fromarray(m * 0),
    "all": lambda m: Image.fromarray(m * 0 + 255),
    "of another size": lambda m: Image.fromarray(m[:-4]),
    "turned": lambda m: Image.fromarray(m.T.copy()),
}
NAMES = ("scratch", "裂纹", "a b", "all", "a\nb", "a\u202eb", "real", "x" * 200)
CASES = [(p, m, "scratch") for p, m in product(PICTURES, MASKS)]
CASES += [("grey", "0 and 255", name) for name in NAMES]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A category without defects."""
    root = tmp_path_factory.mktemp("raw")
    for i in range(4):
        for subset in ("train", "test"):
            file = root / f"gear/{subset}/good/{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey(100 + i + 10 * (subset == "test"))).save(file)
    return root


def made(plain: Path, folder: Path, picture: str, mask: str, name: str) -> Path:
    """The category with two defects of one type."""
    root = folder / "raw"
    shutil.copytree(plain, root)
    for i in range(2):
        for kind, image, suffix in (
            ("test", PICTURES[picture](grey(i)), ""),
            ("ground_truth", MASKS[mask](marked()), "_mask"),
        ):
            file = root / "gear" / kind / name / f"{i}{suffix}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    return root


def by_prepare(root: Path, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    values = {"prepare.size": SIZE, "prepare.split": "half", "prepare.raw_mask_cells": 5}
    stage.run("Data", "gear", Slice(values), layout="mvtec_ad", raw=root, out=folder / "out")
    return pictures(folder / "out")


def by_judge(root: Path, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    outside = judge.Outside(folder / "judge", SIZE, "gear", Gate())
    outside.add(judge._defective(root / "gear", "gear"), "test")
    outside.close()
    return pictures(outside.prepared)


def pictures(prepared: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels and mask of each defective picture by its raw file."""
    return {
        Path(s.source).name: (read_rgb(prepared / s.image), read_mask(prepared / s.mask))
        for s in read_csv(prepared / "samples.csv", Sample)
        if s.mask
    }


def by_import(root: Path, folder: Path) -> list[float]:
    """Shares of the masks."""
    problems = Problems(collect=True)
    layout = Layout.named("mvtec_ad")
    seen = importing.look_at(layout, root, "Data", "gear", "gear", problems, False)
    if problems.lines:
        raise UserError(problems.lines[0])
    return [one.area for one in seen if one.area is not None]


def by_workflow(root: Path, folder: Path) -> int:
    return len(Layout.named("mvtec_ad").read(root, "Data", "gear"))


@pytest.mark.parametrize("case", CASES, ids=[" / ".join(map(repr, case)) for case in CASES])
def test_readers_take_and_refuse_the_same(case, plain, tmp_path):
    root = made(plain, tmp_path, *case)
    found, refusals = {}, {}
    for reader in (by_prepare, by_judge, by_import):
        try:
            found[reader] = reader(root, tmp_path)
        except UserError as error:
            refusals[reader] = str(error).splitlines()[0]
    assert not (found and refusals), refusals
    if refusals:
        named = {line.partition(": ")[0] for line in refusals.values()}
        assert len(named) == 1, refusals  # all name the same file
        return
    for name, (image, mask) in found[by_prepare].items():
        other = found[by_judge][name]
        np.testing.assert_array_equal(image, other[0])
        np.testing.assert_array_equal(mask, other[1])
    share = marked().astype(bool).mean() if case[1] != "all" else 1.0
    assert found[by_import] == pytest.approx([share, share])
    assert by_workflow(root, tmp_path) == 10
