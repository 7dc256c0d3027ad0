"""The paper's tables as CSV: printed numbers, their row means, and what is odd about them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from helixbench.errors import UserError

ROMAN = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII", 9: "IX"}
AVERAGE = "average"
"""Category name of the row that holds the printed averages, and of our averages."""

WHOLE = "all"
"""Category name of a row about a whole data set (Table V)."""

REMARKS = {
    "AnomalyDiffusion": "AnomalyDiffusion: its authors filtered their released pairs by hand "
    "(README of its code) and saved pictures and masks as JPEG; this run chooses none by hand",
}
"""What a reader must know about all published numbers of a method (docs/rivals.md)."""

_COLUMNS = (
    "table",
    "dataset",
    "category",
    "method",
    "metric",
    "value",
    "certainty",
    "transcription",
    "note",
)
_RESTORED = ("restored by column mean", "restored by order")
"""How a row that the source text scrambled was put in order; other rows: `row`, `average`, empty
where it is not told."""


@dataclass(frozen=True)
class Printed:
    """One printed number.

    text: as printed; certainty: of its transcription, empty where it is not told; transcription:
    see `_RESTORED`; note: what a reader must know about the number, else empty.
    """

    dataset: str
    category: str
    method: str
    metric: str
    text: str
    certainty: str
    transcription: str
    note: str

    @property
    def value(self) -> float:
        """The number itself."""
        return float(self.text)


@dataclass(frozen=True)
class Published:
    """A table of the paper in its own row and column order.

    `cells` maps (dataset, category, method, metric) to a number; `recomputed` maps (dataset,
    method, metric) to the mean of the printed rows and exists where the paper prints an average.
    """

    number: int
    cells: dict[tuple[str, str, str, str], Printed]
    recomputed: dict[tuple[str, str, str], float]
    restored: tuple[str, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Data sets in order."""
        return tuple(dict.fromkeys(key[0] for key in self.cells))

    def categories(self, dataset: str) -> tuple[str, ...]:
        """Categories of a data set in order, without the average row."""
        return tuple(
            dict.fromkeys(key[1] for key in self.cells if key[0] == dataset and key[1] != AVERAGE)
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in column order."""
        return tuple(dict.fromkeys(key[2] for key in self.cells))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics in column order."""
        return tuple(dict.fromkeys(key[3] for key in self.cells))

    def mismatch(self, dataset: str, method: str, metric: str) -> bool:
        """True when the printed average is not the mean of the printed rows, rounded either way."""
        printed = self.cells.get((dataset, AVERAGE, method, metric))
        mean = self.recomputed.get((dataset, method, metric))
        if printed is None or mean is None:
            return False
        digits = max(_decimals(cell.text) for cell in self.cells.values() if cell.metric == metric)
        return abs(printed.value - mean) > 0.5 * 10**-digits + 1e-9


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def read(folder: Path, number: int) -> Published:
    """Read resources/published/table_<number>.csv; UserError naming the file when it is not one."""
    path = Path(folder) / f"table_{number}.csv"
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        if not rows or any(set(row) != set(_COLUMNS) for row in rows):
            raise ValueError(f"columns must be {','.join(_COLUMNS)}")
        printed = [Printed(*(row[name] for name in _COLUMNS[1:])) for row in rows]
        rest: dict[tuple[str, str, str], list[float]] = {}
        for cell in printed:
            value = cell.value
            if cell.category != AVERAGE:
                rest.setdefault((cell.dataset, cell.method, cell.metric), []).append(value)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a published table ({error}); restore resources/published"
        ) from None
    cells = {(cell.dataset, cell.category, cell.method, cell.metric): cell for cell in printed}
    averaged = [(d, m, k) for d, c, m, k in cells if c == AVERAGE]
    restored = dict.fromkeys(c.category for c in printed if c.transcription in _RESTORED)
    return Published(
        number, cells, {key: fmean(rest[key]) for key in averaged if key in rest}, tuple(restored)
    )


def all_datasets_shown(folder: Path, configured: Iterable[str]) -> dict[int, tuple[str, ...]]:
    """The configured data sets that belong into each table: the paper's own there, and those that
    it has in no table.
    """
    printed = {n: set(read(folder, n).datasets) for n in ROMAN}
    known, configured = set().union(*printed.values()), tuple(configured)
    return {
        n: tuple(name for name in configured if name in own or name not in known)
        for n, own in printed.items()
    }


def datasets_shown(folder: Path, number: int, configured: Iterable[str]) -> tuple[str, ...]:
    """The configured data sets that belong into one table."""
    return all_datasets_shown(folder, configured)[number]
