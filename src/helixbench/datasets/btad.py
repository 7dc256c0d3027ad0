"""The layout of BTAD (Mishra et al., ISIE 2021): as MVTec AD's, with `ok` for normals, `ko` for defects, BMP and PNG mixed.

<category>/train/ok, <category>/test/ok, <category>/test/ko, <category>/ground_truth/ko; categories 01, 02, 03. Masks have
the names of their pictures.
"""

from __future__ import annotations

from pathlib import Path

from helixbench.datasets import mvtec_ad
from helixbench.records import RawSample

OK = "ok"


def check(root: Path, category: str, key: str) -> None:
    """UserError when the category or its train/ok is missing; `key` is the configuration key of the root."""
    mvtec_ad.check(root, category, key, "BTAD", OK)


def read(root: Path, dataset: str, category: str) -> list[RawSample]:
    """Every picture of a category, sorted; UserError for missing or orphan masks and empty folders."""
    check(root, category, f"prepare.datasets.{dataset}.root")
    return mvtec_ad.read(root, dataset, category, good=OK)
