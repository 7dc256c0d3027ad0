"""The raw layouts by name. Imports neither numpy nor torch: the Snakefile calls `check` whenever it is parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from helixbench.datasets import mvtec_ad
from helixbench.errors import UserError
from helixbench.records import RawSample

DRAWN = "procedural"
"""Layout of the drawn data set: read like MVTec AD, and never missing because the workflow draws it."""

READERS: dict[str, Callable[[Path, str, str], list[RawSample]]] = {"mvtec_ad": mvtec_ad.read, DRAWN: mvtec_ad.read}
_CHECKS: dict[str, Callable[[Path, str, str], None]] = {"mvtec_ad": mvtec_ad.check}


def _known(layout: str) -> str:
    if layout not in READERS:
        raise UserError(f"{layout}: no such raw layout; known: {', '.join(READERS)}")
    return layout


def read(layout: str, root: Path, dataset: str, category: str) -> list[RawSample]:
    """Every picture of a category, sorted by subset, defect and file name.

    Raises UserError, one line naming the file or folder, when the folders do not hold what the layout promises.
    """
    return READERS[_known(layout)](Path(root), dataset, category)


def check(layout: str, root: Path, categories: Iterable[str], dataset: str = "<data set>") -> None:
    """UserError naming the first missing folder and what to do; opens no picture. Drawn data cannot be missing."""
    if _known(layout) != DRAWN:
        for category in categories:
            _CHECKS[layout](Path(root), category, f"prepare.datasets.{dataset}.root")
