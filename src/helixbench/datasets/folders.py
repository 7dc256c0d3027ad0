"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """Give a temporary sibling of `out` to fill, and put it in `out`'s place when the block
    succeeds.

    When the block fails the sibling is removed and `out` is what it was before, usually nothing.
    What an earlier, killed process left beside `out` is cleared first.
    """
    out = Path(out)
    temporary, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("tmp", "old"))
    made = [parent for parent in out.parents if not parent.exists()]
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if out.exists():
            os.replace(out, old)
        os.replace(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:  # innermost first; one that something else filled meanwhile stays
            try:
                parent.rmdir()
            except OSError:
                break
        raise
