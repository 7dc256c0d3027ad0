"""Tables laid out: columns, rows, footnotes and ranks, before they become Markdown, HTML or
LaTeX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from helixbench.protocol import Protocol
from helixbench.report.measured import Measured
from helixbench.report.metrics import about
from helixbench.report.protocol import substitute, words
from helixbench.report.published import AVERAGE, REMARKS, WHOLE, Published

Categories = dict[str, tuple[str, ...]]
"""Configured categories by data set."""


@dataclass(frozen=True)
class Column:
    """One column: kind is `published` or `measured`; a measured one has one protocol."""

    kind: str
    label: str
    metric: str
    protocol: Protocol | None = None
    mark: str = ""

    @property
    def contest(self) -> tuple[str, str, Protocol | None]:
        """What may be ranked against this column: its kind, metric and protocol but for how the
        pairs were made.
        """
        return self.kind, self.metric, self.protocol and self.protocol.without("pairs")

    @property
    def substitute(self) -> str:
        """What is not the paper's about the network behind it; else empty."""
        return substitute(self.protocol) if self.protocol else ""


@dataclass(frozen=True)
class Cell:
    """Text of a cell, the number as shown (None: no number), its rank among its kind (1 best,
    2 second, 0 neither), marks of its footnotes.
    """

    text: str
    value: float | None = None
    rank: int = 0
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A category, an average (`average` is True), or with `cells` None the heading of a data
    set.
    """

    name: str
    cells: tuple[Cell | None, ...] | None
    average: bool = False


@dataclass
class Block:
    """What the renderers get: columns, rows, footnotes by mark (letters: protocols; numbers:
    remarks).

    head: what a row is.
    """

    metrics: tuple[str, ...]
    columns: list[Column]
    head: str = "category"
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str, letters: bool = False) -> str:
        """The mark of a footnote, made on first use."""
        for mark, known in self.notes.items():
            if known == text:
                return mark
        n = sum(mark.isalpha() == letters for mark in self.notes)
        new = ("" if n < 26 else chr(96 + n // 26)) + chr(97 + n % 26) if letters else str(n + 1)
        self.notes[new] = text
        return new


def place_rows(
    table: Published, measured: list[Measured], configured: Categories
) -> list[tuple[str, str]]:
    """(data set, category) of all rows: the paper's first, then ours; the average closes each data
    set.
    """
    ours = {(entry.dataset, entry.category) for entry in measured}
    rows = []
    for dataset in dict.fromkeys([*table.datasets, *configured]):
        printed = table.categories(dataset)
        extra = [
            c for c in configured.get(dataset, ()) if c not in printed and (dataset, c) in ours
        ]
        rows += [(dataset, category) for category in (*printed, *extra)]
        if (dataset, AVERAGE) in ours or any(key[:2] == (dataset, AVERAGE) for key in table.cells):
            rows.append((dataset, AVERAGE))
    return rows


def coverage(entry: Measured, table: Published) -> str:
    """What a measured average is the mean of."""
    paper = len(table.categories(entry.dataset))
    if paper and entry.category != WHOLE:
        return f"mean of {entry.covers} of the paper's {paper} categories"
    return f"mean of {entry.covers} categor{'y' if entry.covers == 1 else 'ies'}"


def build(
    table: Published,
    measured: list[Measured],
    metrics: tuple[str, ...],
    configured: Categories,
) -> Block:
    """Lay out columns and rows: published methods in the paper's order, then ours."""
    measured = [entry for entry in measured if entry.metric in metrics]
    printed = {key[2:] for key in table.cells}
    block = Block(metrics, [])
    for method in table.methods:
        for metric in (k for k in metrics if (method, k) in printed):
            mark = block.mark(REMARKS[method]) if method in REMARKS else ""
            block.columns.append(Column("published", method, metric, mark=mark))
    protocols = dict.fromkeys((e.label, e.metric, e.protocol) for e in measured)
    for label in dict.fromkeys(entry.label for entry in measured):
        for metric in metrics:
            for protocol in (key[2] for key in protocols if key[:2] == (label, metric)):
                mark = block.mark(words(protocol), letters=True)
                block.columns.append(Column("measured", label, metric, protocol, mark))
    by_cell = {(e.dataset, e.category, e.label, e.metric, e.protocol): e for e in measured}
    heading = None
    for dataset, category in place_rows(table, measured, configured):
        cells = []
        for column in block.columns:
            key = (dataset, category, column.label, column.metric)
            entry = by_cell.get((*key, column.protocol))
            cells.append(
                _printed_cell(block, table, *key)
                if column.kind == "published"
                else _measured_cell(block, table, entry)
            )
        if all(cell is None for cell in cells):
            continue
        if heading != dataset:
            block.rows.append(Row(heading := dataset, None))
        contests = [column.contest for column in block.columns]
        block.rows.append(Row(category, tuple(ranked(cells, contests)), category == AVERAGE))
    return block


def build_arms(
    table: Published,
    measured: list[Measured],
    metrics: tuple[str, ...],
    configured: Categories,
) -> Block:
    """Lay out an ablation: a row per arm, a column for the printed average and for each of ours."""
    averages = [entry for entry in measured if entry.category == AVERAGE]
    block = Block(metrics, [], head="arm")
    arms = sorted({*table.methods, *(entry.label for entry in averages)})
    filled: list[list[Cell | None]] = []
    for dataset in dict.fromkeys([*table.datasets, *configured]):
        for metric in metrics:
            printed = [_printed_cell(block, table, dataset, AVERAGE, arm, metric) for arm in arms]
            if any(printed):
                block.columns.append(Column("published", dataset, metric))
                filled.append(printed)
            ours = [e for e in averages if (e.dataset, e.metric) == (dataset, metric)]
            for protocol in dict.fromkeys(entry.protocol for entry in ours):
                mark = block.mark(words(protocol), letters=True)
                block.columns.append(Column("measured", dataset, metric, protocol, mark))
                by_arm = {e.label: e for e in ours if e.protocol == protocol}
                filled.append([_measured_cell(block, table, by_arm.get(arm)) for arm in arms])
    # Ranks go down a column here: the arms are the contestants.
    filled = [
        ranked(cells, [column.contest] * len(cells))
        for column, cells in zip(block.columns, filled, strict=True)
    ]
    block.rows = [Row(arm, tuple(cells[i] for cells in filled)) for i, arm in enumerate(arms)]
    return block


def _measured_cell(block: Block, table: Published, entry: Measured | None) -> Cell | None:
    if entry is None:
        return None
    digits = about(entry.metric).digits
    known = math.isfinite(entry.mean)
    text = f"{entry.mean:.{digits}f}" if known else "n/a"
    if entry.std is not None and math.isfinite(entry.std):
        text += f" ± {entry.std:.{digits}f}"
    marks = (block.mark(coverage(entry, table)),) if entry.covers else ()
    return Cell(text, round(entry.mean, digits) if known else None, marks=marks)


def _printed_cell(
    block: Block, table: Published, dataset: str, category: str, method: str, metric: str
) -> Cell | None:
    printed = table.cells.get((dataset, category, method, metric))
    if printed is None:
        return None
    digits = about(metric).digits
    remarks = []
    if category == AVERAGE and table.mismatch(dataset, method, metric):
        mean = table.recomputed[dataset, method, metric]
        remarks.append(
            f"printed {printed.text}, but the mean of the printed rows is {mean:.{digits + 1}f}"
        )
    if printed.note:
        remarks.append(printed.note)
    name = f"{method}, {category}, {about(metric).heading}"
    short = len(printed.text.partition(".")[2]) < digits
    return Cell(
        f"{printed.value:.{digits}f}" if short else printed.text,
        printed.value,
        marks=(block.mark(f"{name}: {'; '.join(remarks)}"),) if remarks else (),
    )


def ranked(
    cells: Sequence[Cell | None], contests: Sequence[tuple[str, str, Protocol | None]]
) -> list[Cell | None]:
    """Cells with their ranks among those of the same contest (kind, metric, protocol), by the
    values as shown; equal ones share a rank, and one alone has none.
    """
    values: dict[tuple, list[float]] = {}
    for cell, contest in zip(cells, contests, strict=True):
        if cell is not None and cell.value is not None:
            values.setdefault(contest, []).append(cell.value)
    result = []
    for cell, contest in zip(cells, contests, strict=True):
        against = values.get(contest, [])
        if cell is not None and cell.value is not None and len(against) > 1:
            best_first = sorted(set(against), reverse=about(contest[1]).higher_is_better)
            place = best_first.index(cell.value) + 1
            cell = replace(cell, rank=place if place <= 2 else 0)
        result.append(cell)
    return result
