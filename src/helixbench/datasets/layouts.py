"""The raw layouts by name. Imports neither numpy nor torch: the Snakefile calls `check` whenever it is parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from helixbench.datasets import btad, magnetic_tile, mvtec_ad, mvtec_loco, visa
from helixbench.errors import UserError
from helixbench.records import RawSample

DRAWN = "procedural"
"""Layout of the drawn data set: read like MVTec AD, and never missing because the workflow draws it."""

_MODULES = {"mvtec_ad": mvtec_ad, "mpdd": mvtec_ad, "mvtec_loco": mvtec_loco, "visa": visa, "btad": btad, "magnetic_tile": magnetic_tile}
"""One file a layout, with `read` and `check`. MPDD is laid out as MVTec AD is."""

READERS: dict[str, Callable[[Path, str, str], list[RawSample]]] = {
    **{name: module.read for name, module in _MODULES.items()},
    DRAWN: mvtec_ad.read,
}
_CHECKS: dict[str, Callable[[Path, str, str], None]] = {name: module.check for name, module in _MODULES.items()}


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


def shared_files(layout: str, root: Path) -> list[Path]:
    """Files of the data set that belong to every category, such as a list of its split."""
    return [Path(root) / name for name in getattr(_MODULES.get(_known(layout)), "SHARED", ())]
