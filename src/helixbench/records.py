"""The nouns that flow between the rooms, and the CSV manifests that carry them.

Paths in a manifest are relative to the manifest's own folder and stay inside it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from helixbench.errors import UserError
from helixbench.provenance import check_regular, write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LEAKING = ("literal", "third_anomalydiffusion", "third_dualanodiff")
"""Splits by which a picture may be trained on and tested: each to compare with numbers that were
made that way."""

GOOD = "good"
"""Defect name of a normal picture, as in the MVTec layout."""

ALL = "all"
"""Defect name of a score over all defect types of a category."""


@dataclass(frozen=True)
class RawSample:
    """A picture as its authors publish it, before anything is decided about it.

    `subset` is the authors' own train/test; `image` and `mask` are absolute paths, `mask` is None
    for normals. `group`: pictures of one object share it, and a split leaves them together; empty:
    not known.
    """

    dataset: str
    category: str
    defect: str
    subset: str
    image: Path
    mask: Path | None
    group: str = ""


@dataclass(frozen=True)
class Sample:
    """A prepared picture: one row of prepare/<dataset>/<category>/samples.csv.

    role: `normal` (trains generators and detectors), `generator` (defective, trains generators),
    `test` (held out), `both` (generator and test: only in a split that leaks). image: 8-bit RGB
    PNG; mask: 8-bit PNG of 0 and 255, empty string for normals; raw_mask: e.g. `5x5:1,7` (row-major
    cells holding anomaly, K x K), empty for normals; reference_cells / reference_tight: crops by
    the raw mask (cells kept in place on mid-grey / their bounding box resized), empty for normals;
    sha256: of the raw picture file.
    """

    id: str
    dataset: str
    category: str
    defect: str
    role: str
    image: str
    mask: str
    raw_mask: str
    reference_cells: str
    reference_tight: str
    source: str
    sha256: str

    @property
    def defect_trains(self) -> bool:
        """Whether it is a defective picture that generators see."""
        return self.role in ("generator", "both")

    @property
    def tests(self) -> bool:
        """Whether detectors are tested on it."""
        return self.role in ("test", "both")


@dataclass(frozen=True)
class Plan:
    """What pair i of a defect type is asked to be; a pure function of the root seed and the
    prepared data.

    seed: decimal of the first 8 bytes of sha256("{seed}/{dataset}/{category}/{defect}/{i}"). donor:
    id of the real defect (generator half) whose raw mask, reference and detailed mask are used,
    moved by `symmetry` (subset of hflip, vflip, rot90 joined by +) and then by (shift_y, shift_x)
    cells. background: id of the normal picture.
    """

    index: int
    dataset: str
    category: str
    defect: str
    seed: int
    donor: str
    background: str
    symmetry: str
    shift_y: int
    shift_x: int
    raw_mask: str


@dataclass(frozen=True)
class Pair:
    """A generated pair: one row of generate/<method>/<dataset>/<category>/manifest.csv.

    image/mask: PNG in the MVTec layout; gate: `ok`, or the reason for which the last redraw still
    fails (`empty`, `small`, `large`, `border`); redraws: how often the pair was drawn again;
    mask_area: share of the picture.
    """

    index: int
    dataset: str
    category: str
    defect: str
    method: str
    image: str
    mask: str
    seed: int
    donor: str
    background: str
    raw_mask: str
    prompt: str
    gate: str
    redraws: int
    mask_area: float
    sha256: str
    mask_sha256: str


@dataclass(frozen=True)
class Score:
    """One measured number and the protocol it belongs to; numbers of different protocols never
    share a column.

    metric: inception_score, ic_lpips, ... or image_auroc, pixel_auroc, pixel_ap, pro, f1_max, ...;
    AUROC-like values are in percent, as the paper prints them. defect: a defect type, or `all` for
    the category. n: images scored. protocol: cell of a Protocol (network and weights, split, cap,
    checkpoint rule, ...), to which the seed does not belong. seed: of the detector training or the
    scoring shuffle. std: over shuffles, empty where there is none.
    """

    dataset: str
    category: str
    defect: str
    method: str
    metric: str
    value: float
    std: float | None
    n: int
    seed: int
    split: str
    split_sha256: str
    protocol: str
    config_digest: str


Row = TypeVar("Row", bound="DataclassInstance")
"""Any record type above, and those of a stage's own manifests."""


def write_csv(path: Path, rows: Iterable[Row], kind: type[Row]) -> None:
    """Write rows of one record type, atomically, header first; None becomes an empty cell."""
    names = [field.name for field in dataclasses.fields(kind)]
    write_text(path, csv_text([names, *([getattr(row, name) for name in names] for row in rows)]))


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells, the header first, as the text of a CSV file; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_rows(
    path: Path, columns: Iterable[str], advice: str = "make the file again"
) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a CSV file in UTF-8, with or without a BOM; absent cells
    are empty.

    Raises UserError, ending in `advice`, when the file is unreadable or lacks one of the columns.
    """
    try:
        check_regular(path)
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, restval="")
            names = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            twice = [name for name in names if name and names.count(name) > 1]
            if twice:
                raise UserError(f"{path}: column {twice[0]} stands twice; {advice}")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                there = ", ".join(reader.fieldnames or ()) or "none"
                raise UserError(
                    f"{path}: column {missing[0]} is missing (there are: {there}); {advice}"
                )
            rows = []
            for row in reader:
                if any(cell.strip() for cell in row.pop(None, ())):
                    raise UserError(
                        f"{path}: row {reader.line_num}: more cells than columns; put a cell that "
                        f"holds a comma in quotes"
                    )
                rows.append((reader.line_num, row))
            return rows
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error}); {advice}") from None


@cache
def _converters(kind: type) -> dict[str, Callable[[str], Any]]:
    """Field of a record type -> what makes its value of a cell."""
    return {name: _converter(hint) for name, hint in get_type_hints(kind).items()}


def _converter(hint: Any) -> Callable[[str], Any]:
    if type(None) not in get_args(hint):
        return hint
    (base,) = (arm for arm in get_args(hint) if arm is not type(None))
    return lambda text: None if text == "" else base(text)


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """Read what write_csv wrote; UserError naming the file when it is missing or a column is
    wrong.
    """
    converters = _converters(kind)
    rows = read_rows(path, converters)
    try:
        return [
            kind(**{name: convert(row[name]) for name, convert in converters.items()})
            for _, row in rows
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the file again") from None


def inside(folder: Path, relative: str) -> Path:
    """Absolute path of a manifest entry; UserError when it leaves the manifest's folder."""
    if "\0" in relative:
        raise UserError(f"{relative!r}: no name of a file, in {folder}; make its manifest again")
    path = (folder / relative).resolve()
    if Path(relative).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise UserError(
            f"{relative}: leaves {folder}; paths in a manifest must stay inside its folder"
        )
    return path


def derive_seed(*parts: object) -> int:
    """63-bit seed: first 8 bytes of sha256("a/b/c"), top bit cleared (never Python's salted
    hash).
    """
    return (
        int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
    )


def format_cells(k: int, cells: Iterable[int]) -> str:
    """(5, [1, 7]) -> '5x5:1,7'; cells are row-major."""
    return f"{k}x{k}:" + ",".join(str(cell) for cell in sorted(cells))


def parse_cells(text: str) -> tuple[int, tuple[int, ...]]:
    """'5x5:1,7' -> (5, (1, 7)); UserError for anything else or a cell outside the grid."""
    try:
        grid, _, cells = text.partition(":")
        rows, columns = (int(part) for part in grid.split("x"))
        numbers = tuple(sorted({int(cell) for cell in cells.split(",") if cell}))
        if rows != columns or rows < 1 or any(not 0 <= cell < rows * rows for cell in numbers):
            raise ValueError
    except ValueError:
        raise UserError(
            f"raw mask {text!r}: write KxK:cell,cell with cells from 0 to K*K-1, e.g. 5x5:1,7"
        ) from None
    return rows, numbers
