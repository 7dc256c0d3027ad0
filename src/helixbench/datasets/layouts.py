"""The raw layouts by name. Imports neither numpy nor torch: the Snakefile calls `check` whenever it
is parsed.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

from helixbench.datasets import btad, folder, magnetic_tile, mvtec_ad, mvtec_loco, visa
from helixbench.datasets.notes import Notes
from helixbench.errors import UserError
from helixbench.records import RawSample

DRAWN = "procedural"
"""Layout of the drawn data set: never missing because the workflow draws it. Unless told otherwise
it is MVTec AD's."""

MODULES: dict[str, ModuleType] = {
    "mvtec_ad": mvtec_ad,
    "mpdd": mvtec_ad,
    "mvtec_loco": mvtec_loco,
    "visa": visa,
    "btad": btad,
    "magnetic_tile": magnetic_tile,
    "folder": folder,
    DRAWN: mvtec_ad,
}
"""One file a layout, with `read` and `check`; perhaps `categories`, `shared_files`. MPDD is laid
out as MVTec AD is."""


def _module(layout: str) -> ModuleType:
    if layout not in MODULES:
        raise UserError(f"{layout}: no such raw layout; known: {', '.join(MODULES)}")
    return MODULES[layout]


@contextmanager
def _readable() -> Iterator[None]:
    """A folder that may not be read is a UserError, too."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}; give this user the right to read it"
        ) from None


def _files(sample: RawSample) -> list[Path]:
    """Picture and masks of a sample."""
    if sample.mask is None:
        return [sample.image]
    return [
        sample.image,
        *([sample.mask] if not sample.mask.is_dir() else sorted(sample.mask.iterdir())),
    ]


def _check_files(sample: RawSample, root: str, notes: Notes) -> None:
    """All files lie below the resolved root and have names that a line of text can hold; a problem
    otherwise.
    """
    for file in _files(sample):
        target = os.path.realpath(file)
        if os.path.commonpath([target, root]) != root:
            notes.problem(f"{file}: links to {target}, outside of {root}; copy the file there")
        elif any(unicodedata.category(character) in ("Cc", "Cs") for character in file.name):
            notes.problem(
                f"{str(file)!r}: name with a line break, another control character or broken "
                f"UTF-8; rename the file"
            )


@_readable()
def read(
    layout: str, root: Path, dataset: str, category: str, notes: Notes | None = None
) -> list[RawSample]:
    """Every picture of a category, sorted by subset, defect and file name.

    Raises UserError, one line naming the file or folder, when the folders do not hold what the
    layout promises, or when a link leads out of the root. With collecting `notes` it goes on, and
    `mask` is None where a defect's mask is missing.
    """
    notes, root = notes or Notes(), Path(root)
    here, home = os.path.realpath(root / category), os.path.realpath(root)
    if os.path.commonpath([here, home]) != home:
        raise UserError(
            f"{root / category}: links to {here}, outside of {home}; make that folder's parent "
            f"the root"
        )
    samples = _module(layout).read(root, dataset, category, notes)
    for sample in samples:
        _check_files(sample, home, notes)
    return samples


@_readable()
def categories(layout: str, root: Path) -> tuple[list[str], list[Path]]:
    """Category folders of a root, `.` when the root is itself one, and folders that are none.

    Raises UserError when there is no category.
    """
    module, root = _module(layout), Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds one folder a category")
    inner, marks = mvtec_ad.folders_in(root), getattr(module, "MARKS", ("*",))
    is_one = lambda path: any(fnmatch(name, mark) for name in os.listdir(path) for mark in marks)
    if hasattr(module, "categories"):
        found = module.categories(root)
    elif hasattr(module, "MARKS") and is_one(root):
        found = ["."]
    else:
        found = [path.name for path in inner if is_one(path)]
    if not found:
        raise UserError(
            f"{root}: no category in the layout {layout}; give the folder that holds one folder a "
            f"category, or another layout"
        )
    return found, [path for path in inner if path.name not in found and "." not in found]


@_readable()
def check(layout: str, root: Path, categories: Iterable[str], dataset: str = "<data set>") -> None:
    """UserError naming the first missing folder and what to do; opens no picture. Drawn data cannot
    be missing.
    """
    module = _module(layout)
    if layout != DRAWN:
        for category in categories:
            module.check(Path(root), category, f"prepare.datasets.{dataset}.root")


def shared_files(layout: str, root: Path, category: str) -> list[Path]:
    """Files outside of a category's folder, or no pictures, that decide what the category is, such
    as a list of its split.
    """
    module = _module(layout)
    return module.shared_files(Path(root), category) if hasattr(module, "shared_files") else []
