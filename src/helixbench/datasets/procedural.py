"""The procedural data set: objects and surfaces with defects drawn into them, written in the MVTec AD layout.

A picture is a pure function of (seed, data set, category, subset, defect, number, size): categories can be drawn in any
order and anywhere.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from helixbench.datasets.defects import BREAKERS, VISIBLE, changed_region
from helixbench.datasets.folders import whole_folder
from helixbench.datasets.scenes import PAINTERS, expose
from helixbench.errors import UserError
from helixbench.provenance import sha256_tree, write_text
from helixbench.records import GOOD, derive_seed
from helixbench.schema import Procedural

DEFECTS: dict[str, tuple[str, ...]] = {
    "disc": ("bend", "missing_part", "scratch", "stain"),
    "capsule": ("bend", "missing_part", "scratch"),
    "plate": ("hole", "scratch", "stain"),
    "weave": ("bend", "hole", "stain"),
    "tile": ("hole", "scratch", "stain"),
}
"""Categories and the defect types of each."""

SUPERSAMPLING = 3
AREA = (0.006, 0.25)
"""Share of the picture that a mask may cover; a defect outside is drawn again."""


def _known(category: str) -> tuple[str, ...]:
    if category not in DEFECTS:
        raise UserError(f"{category}: no such procedural category; known: {', '.join(DEFECTS)}")
    return DEFECTS[category]


def picture(
    dataset: str, category: str, subset: str, defect: str, number: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture, its own defect-free rendering, both (size, size, 3) uint8, and the mask, (size, size) bool.

    Outside the mask the two are equal; inside, most pixels differ by more than VISIBLE grey levels.
    """
    own = derive_seed(seed, dataset, category, subset, defect, number)
    rng = lambda *what: np.random.default_rng(derive_seed(own, *what))  # noqa: E731
    scene = PAINTERS[category](rng("scene"), size * SUPERSAMPLING)
    clean = expose(scene, rng("light"), SUPERSAMPLING)
    if defect == GOOD:
        return clean, clean, np.zeros((size, size), bool)
    for attempt in range(20):
        broken = expose(BREAKERS[defect](scene, rng("defect", attempt)), rng("light"), SUPERSAMPLING)
        mask = changed_region(clean, broken, defect)
        visible = np.abs(broken.astype(int) - clean).max(axis=2)[mask] > VISIBLE
        if AREA[0] <= mask.mean() <= AREA[1] and visible.mean() >= 0.5:
            break
    return np.where(mask[..., None], broken, clean), clean, mask


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def draw(out: Path, dataset: str, category: str, sizes: Procedural, seed: int) -> None:
    """Draw a category below <out>/<category>, then write <out>/<category>.csv (path, sha256) as the word that it is whole.

    Raises UserError for an unknown category.
    """
    counts = {("train", GOOD): sizes.train_good, ("test", GOOD): sizes.test_good}
    counts |= {("test", defect): sizes.per_defect for defect in _known(category)}
    index = Path(out) / f"{category}.csv"
    index.unlink(missing_ok=True)
    with whole_folder(Path(out) / category) as folder:
        for (subset, defect), count in counts.items():
            for number in range(count):
                image, _, mask = picture(dataset, category, subset, defect, number, sizes.size, seed)
                _write(folder / subset / defect / f"{number:03}.png", image)
                if defect != GOOD:
                    _write(folder / "ground_truth" / defect / f"{number:03}_mask.png", mask.astype(np.uint8) * 255)
        hashes = sha256_tree(folder)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "sha256"), *((f"{category}/{p}", h) for p, h in hashes.items())])
    write_text(index, text.getvalue())
