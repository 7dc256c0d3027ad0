"""The layout of BTAD (Mishra et al., ISIE 2021): as MVTec AD's, with `ok` for normals, `ko` for
defects, BMP and PNG mixed.

<category>/train/ok, <category>/test/ok, <category>/test/ko, <category>/ground_truth/ko; categories
01, 02, 03. Masks have the names of their pictures.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets import mvtec_ad
from helixbench.datasets.notes import Notes
from helixbench.records import RawSample

OK = "ok"
MARKS = mvtec_ad.MARKS


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or its train/ok is missing; `key` is the configuration key of the
    root.
    """
    mvtec_ad.check(root, category, key, "BTAD", OK)


def read(root: Path, dataset: str, category: str, notes: Notes) -> list[RawSample]:
    """Every picture of a category, sorted; problems are missing or orphan masks and empty
    folders.
    """
    return mvtec_ad.read(root, dataset, category, notes, "BTAD", OK)
