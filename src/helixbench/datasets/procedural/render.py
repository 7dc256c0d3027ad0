"""Pictures of the procedural data set, written in any raw layout.

A picture is a pure function of (seed, data set, category, subset, defect, number, size): categories
can be drawn in any order and anywhere.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from helixbench.datasets.procedural import DEFECTS
from helixbench.datasets.procedural.defects import BREAKERS, VISIBLE, changed_region
from helixbench.datasets.procedural.scenes import PAINTERS, expose
from helixbench.datasets.procedural.writers import WRITERS, Drawing, write
from helixbench.errors import UserError
from helixbench.provenance import sha256_tree, write_text
from helixbench.records import GOOD, derive_seed
from helixbench.schema import Procedural

SUPERSAMPLING = 3
AREA = (0.006, 0.25)
"""Share of the picture that a mask may cover; a defect outside is drawn again."""


def picture(
    dataset: str, category: str, subset: str, defect: str, number: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture, its own defect-free rendering, both (size, size, 3) uint8, and the mask, (size,
    size) bool.

    Outside the mask the two are equal; inside, most pixels differ by more than VISIBLE grey levels.
    """
    own = derive_seed(seed, dataset, category, subset, defect, number)
    rng = lambda *what: np.random.default_rng(derive_seed(own, *what))
    scene = PAINTERS[category](rng("scene"), size * SUPERSAMPLING)
    clean = expose(scene, rng("light"), SUPERSAMPLING)
    if defect == GOOD:
        return clean, clean, np.zeros((size, size), bool)
    for attempt in range(20):
        broken = expose(
            BREAKERS[defect](scene, rng("defect", attempt)), rng("light"), SUPERSAMPLING
        )
        mask = changed_region(clean, broken, defect)
        visible = np.abs(broken.astype(int) - clean).max(axis=2)[mask] > VISIBLE
        if AREA[0] <= mask.mean() <= AREA[1] and visible.mean() >= 0.5:
            break
    return np.where(mask[..., None], broken, clean), clean, mask


def _drawings(dataset: str, category: str, sizes: Procedural, seed: int) -> Iterator[Drawing]:
    counts = {("train", GOOD): sizes.train_good, ("test", GOOD): sizes.test_good}
    counts |= {("test", defect): sizes.per_defect for defect in DEFECTS[category]}
    for (subset, defect), count in counts.items():
        for number in range(count):
            image, _, mask = picture(dataset, category, subset, defect, number, sizes.size, seed)
            yield Drawing(subset, defect, number, image, None if defect == GOOD else mask)


def draw(
    out: Path, dataset: str, category: str, sizes: Procedural, seed: int, layout: str | None = None
) -> None:
    """Draw a category below <out>/<category>, then write <out>/<category>.csv (path, sha256) as the
    word that it is whole.

    layout: raw layout of the folder; None: that of `sizes`. Raises UserError for an unknown
    category or layout.
    """
    layout = layout or sizes.layout
    if category not in DEFECTS:
        raise UserError(f"{category}: no such procedural category; known: {', '.join(DEFECTS)}")
    if layout not in WRITERS:
        raise UserError(f"{layout}: no layout to write; there are {', '.join(WRITERS)}")
    index = Path(out) / f"{category}.csv"
    index.unlink(missing_ok=True)
    write(layout, out, category, _drawings(dataset, category, sizes, seed))
    hashes = sha256_tree(Path(out) / category)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [("path", "sha256"), *((f"{category}/{p}", h) for p, h in hashes.items())]
    )
    write_text(index, text.getvalue())
