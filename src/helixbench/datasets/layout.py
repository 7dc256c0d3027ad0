"""What a raw layout is, which layouts there are, and what is true of all of them.

Imports neither numpy nor Pillow: the workflow checks its data sets whenever it is parsed.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import ClassVar

from helixbench import datasets
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.pictures.files import SUFFIXES, escapes, is_picture
from helixbench.records import ALL, RawSample

_JUNK = frozenset({"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found"})
"""Folders that file servers and archivers leave behind."""

_TURNS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Classes of characters that turn the direction of the text after them."""


def unicode_name(name: str) -> str:
    """A name in one form of Unicode (NFC): macOS and Linux write an umlaut in two ways."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> bool:
    """Whether a line of text can hold a name: no control character, no half of a character."""
    return not any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in _TURNS
        for character in name
    )


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones and junk; empty when it is missing."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in _JUNK
    )


def pictures_below(folder: Path) -> int:
    """How many pictures there are directly in a folder; nothing is opened."""
    return sum(is_picture(path.name) for path in folder.iterdir())


def pictures_in(folder: Path, problems: Problems | None = None) -> dict[str, Path]:
    """Stem in NFC -> picture, sorted by file name; empty when the folder is missing. Of two with
    one stem, the first.

    What is in the folder and not read, other files and folders of pictures, is odd.
    """
    problems, found = problems or Problems(), {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            inner = 0 if path.name.startswith(".") or path.name in _JUNK else pictures_below(path)
            if inner:
                problems.odd.append(
                    f"{path}: a folder of {inner} picture{'s' * (inner > 1)}, not read; move them "
                    f"to {folder}"
                )
        elif not is_picture(path.name):
            if path.is_file() and not path.name.startswith("."):
                problems.odd.append(f"{path}: not read; pictures end in {_suffixes()}")
        elif not (path.is_file() or path.is_symlink()):
            problems.add(f"{path}: neither a file nor a folder; remove it")
        else:  # who opens a link that leads nowhere says so
            stem = unicode_name(path.stem)
            if stem in found:
                problems.add(f"{path}: same name as {found[stem].name}; keep one of the two")
            found.setdefault(stem, path)
    return found


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))


def none_found(folder: Path, wanted: str) -> str:
    """A line about a folder without pictures: what is there instead, and what to do."""
    there = list(folder.iterdir()) if folder.is_dir() else []
    nested = [path for path in folders_in(folder) if pictures_below(path)]
    if nested:
        return (
            f"{folder}: no pictures; there are some one level below, in {nested[0].name}: move "
            f"them up"
        )
    kinds = Counter(path.suffix for path in there if path.is_file() and path.suffix)
    usual = [suffix for suffix in kinds if suffix.lower() in (".gif", ".heic", ".avif", ".jp2")]
    if usual:
        most = max(usual, key=lambda suffix: kinds[suffix])
        return (
            f"{folder}: no pictures that can be read; {kinds[most]} files {most} are there: "
            f"convert them to PNG"
        )
    return f"{folder}: no pictures; {wanted} ({_suffixes()})"


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
    masks = sorted(sample.mask.iterdir()) if sample.mask.is_dir() else [sample.mask]
    return [sample.image, *masks]


def refused(name: str) -> str:
    """Why a defect type cannot be called so; empty: it can."""
    if not printable(name):
        return "name with a line break, another control character or broken UTF-8"
    if name == ALL:
        return f"`{ALL}` is what the tables call all defect types together"
    return ""


def check_names(samples: Sequence[RawSample], root: Path, problems: Problems) -> None:
    """Defect types, and all files below the root, have names that can be used; a problem
    otherwise.
    """
    folders = {sample.defect: sample.image.parent for sample in samples}
    for defect, folder in sorted(folders.items()):
        if printable(defect) and (why := refused(defect)):
            problems.add(f"{folder}: {why}; rename the defect type")
    for file in (file for sample in samples for file in _files(sample)):
        if not printable(str(file.relative_to(root.absolute()))):
            odd = "file" if printable(str(file.parent)) else "folder"
            problems.add(
                f"{str(file)!r}: name with a line break, another control character or broken "
                f"UTF-8; rename the {odd}"
            )


def _check_links(samples: Sequence[RawSample], root: Path, problems: Problems) -> None:
    """All files lie below the root; a problem otherwise."""
    home = os.path.realpath(root)
    files = (file for sample in samples for file in _files(sample))
    outside = [(file, target) for file in files if (target := escapes(file, home))]
    if outside:
        (file, target), more = outside[0], len(outside) - 1
        others = f" (and {more} more)" if more else ""
        problems.add(f"{file}: links to {target}, outside of {home}; copy the file there{others}")


class Layout:
    """How data sets are laid out: where a category's pictures are, and which mask belongs to which.

    A subclass in a module of this package is found by its `name`; it is listed nowhere. It gives
    `name`, `title` and `samples`, and changes of the rest what is different. Objects have no state.
    """

    name: ClassVar[str] = ""
    """What `prepare.datasets.<data set>.layout` says; a class without one is no layout itself."""

    title: ClassVar[str] = ""
    """The data set in a sentence: "download <title> and unpack it"."""

    published: ClassVar[str] = ""
    """What its authors call the data set in tables; empty: data are called like their folder."""

    marks: ClassVar[tuple[str, ...]] = ("*",)
    """Patterns; a folder that holds a matching name is a category."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Folders of a category without which nothing can be read, such as train/good."""

    drawn: ClassVar[tuple[str, ...]] = ()
    """Categories that the workflow draws, if it does: they are never missing."""

    # What a layout of one's own gives or changes.

    def samples(
        self, root: Path, dataset: str, category: str, problems: Problems
    ) -> list[RawSample]:
        """Every picture of a category that `require` has found, in any order, with absolute paths.

        What must be repaired goes to `problems.add`, which raises UserError unless it collects;
        what is not read goes to `problems.odd`. `mask` is None where a defect's mask is missing.
        """
        raise NotImplementedError

    def require(self, root: Path, category: str, key: str) -> None:
        """UserError when a category is not there; `key` is the configuration key of its root."""
        folder = root / category
        for wanted in (folder, *(folder / name for name in self.needs)):
            if not wanted.is_dir():
                there = "/".join(("<category>", *self.needs[:1]))
                raise UserError(
                    f"{wanted}: no such folder; download {self.title} and unpack it so that "
                    f"{root}/{there} exists, or set {key}"
                )

    def listed(self, root: Path, problems: Problems) -> list[str] | None:
        """Categories of a root that a file lists; None: they are the folders that have a mark."""
        return None

    def shared_files(self, root: Path, category: str) -> list[Path]:
        """Files outside of a category's folder, or no pictures, that decide what the category is,
        such as a list of its split.
        """
        return []

    # What is the same for all of them.

    @classmethod
    def every(cls) -> dict[str, Layout]:
        """All layouts by their names, sorted."""
        _import_all()
        kinds, found = [Layout], {}
        for kind in kinds:
            kinds += kind.__subclasses__()
            if "name" in vars(kind) and kind.name:
                found[kind.name] = kind()
        return dict(sorted(found.items()))

    @classmethod
    def named(cls, name: str) -> Layout:
        """The layout of that name; UserError when there is none."""
        known = cls.every()
        if name not in known:
            raise UserError(f"{name}: no such raw layout; known: {', '.join(known)}")
        return known[name]

    @_readable()
    def read(
        self, root: Path, dataset: str, category: str, problems: Problems | None = None
    ) -> list[RawSample]:
        """Every picture of a category, sorted by subset, defect and path.

        Raises UserError, one line naming the file or folder, when the folders do not hold what the
        layout promises, or when a link leads out of the root. With collecting `problems` it goes
        on, and `mask` is None where a defect's mask is missing.
        """
        problems, root = problems or Problems(), Path(root)
        here, home = os.path.realpath(root / category), os.path.realpath(root)
        if os.path.commonpath([here, home]) != home:
            raise UserError(
                f"{root / category}: links to {here}, outside of {home}; make that folder's parent "
                f"the root"
            )
        try:
            self.require(root, category, f"prepare.datasets.{dataset}.root")
        except UserError as error:
            problems.add(str(error))
            return []
        samples = self.samples(root, dataset, category, problems)
        _check_links(samples, root, problems)
        check_names(samples, root, problems)
        return sorted(samples, key=lambda s: (s.subset, s.defect, str(s.image)))

    @_readable()
    def check(self, root: Path, categories: Iterable[str], dataset: str = "<data set>") -> None:
        """UserError naming the first missing folder and what to do; opens no picture. Drawn data
        cannot be missing.
        """
        for category in () if self.drawn else categories:
            try:
                self.require(Path(root), category, f"prepare.datasets.{dataset}.root")
            except UserError as error:
                if str(root)[:1] in ("~", "$"):
                    raise UserError(f"{error} (write ~ and $ out: they are not replaced)") from None
                raise

    @_readable()
    def categories(
        self, root: Path, problems: Problems | None = None
    ) -> tuple[list[str], list[Path]]:
        """Category folders of a root, `.` when the root is itself one, and folders that are none.

        Raises UserError when there is no category.
        """
        root = Path(root)
        if not root.is_dir():
            raise UserError(
                f"{root}: no such folder; give the folder that holds one folder a category"
            )
        inner, found = folders_in(root), self.listed(root, problems or Problems())
        if found is None:
            # Where anything marks a category, the root itself is not asked.
            asked = self.marks != ("*",) and self._is_category(root)
            found = ["."] if asked else [path.name for path in inner if self._is_category(path)]
        if not found:
            raise UserError(
                f"{root}: no category in the layout {self.name}; give the folder that holds one "
                f"folder a category, or another layout"
            )
        return found, [path for path in inner if path.name not in found and "." not in found]

    def _is_category(self, folder: Path) -> bool:
        return any(fnmatch(name, mark) for name in os.listdir(folder) for mark in self.marks)


@cache
def _import_all() -> None:
    """Import what may define a layout: every module directly in this package."""
    for module in pkgutil.iter_modules(datasets.__path__):
        importlib.import_module(f"{datasets.__name__}.{module.name}")
