"""What a category's raw pictures are, as text that changes exactly when their content does.

The workflow keeps this text in a file that is the input of `prepare`: a changed picture reruns its
category alone, and a touch, a copy or a clone reruns nothing, whatever happens to modification
times.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from helixbench.errors import UserError
from helixbench.pictures.files import escapes, is_picture
from helixbench.provenance import sha256, write_text

_SETTLED_NS = 2_000_000_000
"""A file changed this recently could change again within one tick of the clock: it is hashed again
next time."""


def _files(folder: str, wanted: Callable[[str], bool], home: str) -> Iterator[os.DirEntry]:
    """Wanted files below a folder; home: where links must stay, empty: anywhere."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            read = entry.is_dir() or wanted(entry.name)
            if read and home and entry.is_symlink() and (target := escapes(entry.path, home)):
                raise UserError(
                    f"{entry.path}: links to {target}, outside of {home}; copy it there"
                )
            if entry.is_dir():
                if entry.is_symlink() and _holds(os.path.realpath(entry.path), folder):
                    raise UserError(f"{entry.path}: links to a folder that holds it; remove it")
                yield from _files(entry.path, wanted, home)
            elif wanted(entry.name):
                yield entry


def _holds(outer: str, inner: str) -> bool:
    return os.path.commonpath([outer, os.path.realpath(inner)]) == outer


def _load(cache: Path) -> dict[str, list]:
    """The cache, or nothing when it is missing or damaged: it only saves time."""
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def fingerprint(
    root: Path,
    category: str,
    cache: Path,
    shared: Iterable[Path] = (),
    wanted: Callable[[str], bool] = is_picture,
) -> str:
    """Sorted JSON {path relative to the category: sha256} of its raw pictures and masks.

    shared: further files, wherever they are; with them the category need not have a folder. wanted:
    which names count, for folders of other things than pictures.

    cache: file of (size, mtime_ns, sha256) by absolute path, made when missing; categories may
    share it, one file a category is faster. Raises UserError when the category's folder is missing,
    a picture is no file or cannot be read, or a link leads out of the root.
    """
    folder = os.path.abspath(Path(root) / category)
    home = os.path.realpath(root) if wanted is is_picture else ""
    known = _load(Path(cache))
    inside = folder + os.sep
    fresh = {path: row for path, row in known.items() if not path.startswith(inside)}
    found = {}
    now = time.time_ns()
    shared = {os.path.abspath(path): None for path in shared}
    try:
        entries = (
            []
            if shared and not os.path.isdir(folder)
            else [(entry.path, entry) for entry in _files(folder, wanted, home)]
        )
        for path, entry in {**shared, **dict(entries)}.items():
            stat = os.stat(path) if entry is None else entry.stat()
            if not S_ISREG(stat.st_mode):
                raise UserError(f"{path}: neither a file nor a folder; remove it")
            row = known.get(path)
            if not (
                isinstance(row, list)
                and row[:2] == [stat.st_size, stat.st_mtime_ns]
                and len(row) == 3
            ):
                row = [stat.st_size, stat.st_mtime_ns, sha256(path)]
            if now - stat.st_mtime_ns > _SETTLED_NS:
                fresh[path] = row
            found[Path(os.path.relpath(path, folder)).as_posix()] = row[2]
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; give a readable folder"
        ) from None
    if fresh != known:
        with suppress(OSError):  # on a read-only or full disk: the cache only saves time
            write_text(cache, json.dumps(fresh, sort_keys=True))
    return json.dumps(found, indent=0, sort_keys=True) + "\n"
