"""The paper's tables: published, recomputed and measured numbers side by side, never mixed.

Published: as printed. Recomputed: mean of the printed rows, since some printed averages are not.
Measured: ours, one column a protocol.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.provenance import write_text
from helixbench.report import published_only, render
from helixbench.report.measured import Measured, collect, labels
from helixbench.report.published import (
    AVERAGE,
    REMARKS,
    ROMAN,
    WHOLE,
    Published,
    datasets_shown,
    read,
)
from helixbench.schema import Ablation

COLUMNS = (
    "table",
    "dataset",
    "category",
    "method",
    "metric",
    "published",
    "recomputed",
    "measured",
    "protocol",
)
METRICS = {
    1: ("IS", "IC-LPIPS"),
    2: ("image_auroc", "pixel_auroc"),
    3: ("image_auroc", "pixel_auroc"),
    4: ("pixel_auroc", "pixel_ap"),
    5: ("image_auroc", "pixel_auroc"),
    6: ("image_auroc",),
    7: ("image_auroc",),
    8: ("pixel_ap",),
    9: ("pixel_ap",),
}
ARMS = (8, 9)
"""Tables whose rows are ablations."""
KINDS = {"logical_anomalies": "logical", "structural_anomalies": "structural"}
"""Defect types that have rows of their own where a table of the paper has them,
`logical/<category>`."""
ALSO = {
    1: (
        "kid",
        "ic_lpips_defect",
        "ic_lpips_anomalydiffusion",
        "ic_lpips_seas",
        "ic_lpips_dfmgan",
        "mask_agreement",
        "mask_in_cells",
        "mask_cells_iou",
    ),
    2: ("accuracy", "miou", "iou", "pixel_accuracy", "class_accuracy"),
    4: ("image_ap", "pro", "f1_max"),
}
"""Metrics that the paper does not print, where they are measured."""
LOW_IS_GOOD = ("kid",)

TITLES = {
    1: "Quality and diversity of generated pairs",
    2: "Detection and localization by a U-Net trained on generated pairs",
    3: "Detection and localization by a U-Net trained on generated pairs, MPDD",
    4: "Localization against anomaly detectors",
    5: "Detection and localization against anomaly detectors, MPDD",
    6: "Detection against anomaly detectors, VisA",
    7: "Detection against anomaly detectors, MVTec LOCO AD",
    8: "Ablation of the modules, localization",
    9: "Ablation of where the modules sit, localization",
}
NAMES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "image_ap": "image AP",
    "pro": "PRO",
    "f1_max": "pixel F1-max",
    "kid": "KID (low is good)",
    "ic_lpips_defect": "IC-LPIPS of the defects",
    "ic_lpips_anomalydiffusion": "IC-LPIPS as AnomalyDiffusion",
    "ic_lpips_seas": "IC-LPIPS as SeaS",
    "ic_lpips_dfmgan": "IC-LPIPS as DFMGAN",
    "mask_agreement": "image-mask agreement",
    "mask_in_cells": "mask in cells",
    "mask_cells_iou": "IoU of mask and cells",
    "accuracy": "classification accuracy",
    "miou": "segmentation mIoU",
    "iou": "segmentation IoU of defects",
    "pixel_accuracy": "segmentation pixel accuracy",
    "class_accuracy": "segmentation class accuracy",
}
DIGITS = {
    "IS": 2,
    "IC-LPIPS": 2,
    "ic_lpips_defect": 2,
    "ic_lpips_anomalydiffusion": 2,
    "ic_lpips_seas": 2,
    "ic_lpips_dfmgan": 2,
    "kid": 4,
}
"""Decimals of a metric; 1 for the others, which are in percent."""


@dataclass(frozen=True)
class Column:
    """One column: kind is `published` or `measured`; a measured one has one protocol."""

    kind: str
    label: str
    metric: str
    protocol: str = ""
    substitute: str = ""
    mark: str = ""

    @property
    def contest(self) -> tuple[str, str, str]:
        """What may be ranked against this column: its kind, metric and protocol but for how the
        pairs were made.
        """
        return self.kind, self.metric, re.sub(r"; pairs: [^;]*", "", self.protocol)


@dataclass(frozen=True)
class Cell:
    """Text of a cell, its rank among its kind (1 best, 2 second, 0 neither), marks of its
    footnotes.
    """

    text: str
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


def run(number: int, config: Slice, *, published: Path, scores: list[Path], out: Path) -> None:
    """Write table_<number>.csv, .tex, .md and .html (a fragment for the page) into the folder
    `out`.

    published: folder of the printed tables. scores: score files of this run (any stage, seed and
    metric; what the table does not show is left out). Raises UserError for a table not rendered
    yet, unreadable files, and numbers that contradict each other.
    """
    if number not in METRICS:
        raise UserError(f"table {number}: not one of {', '.join(map(str, METRICS))}")
    table = read(published, number)
    shown = datasets_shown(published, number, config["prepare.datasets"])
    split_up = {
        name: KINDS for name in shown if any("/" in category for category in table.categories(name))
    }
    entries = [entry for entry in collect(scores, config, split_up) if entry.dataset in shown]
    entries = [whole for entry in entries if (whole := _as_printed(entry, table))]
    if number in ARMS:
        entries = _as_rows(entries, labels(config), config["train.ablations"], number)
    wanted = METRICS[number] + ALSO.get(number, ())
    measured = [entry for entry in entries if entry.metric in wanted]
    configured = {
        name: dataset.categories
        for name, dataset in config["prepare.datasets"].items()
        if name in shown
    }
    blocks = [
        (build_arms if number in ARMS else build)(table, measured, METRICS[number], configured)
    ]
    also = tuple(
        metric
        for metric in ALSO.get(number, ())
        if any(entry.metric == metric for entry in measured)
    )
    if also:
        blocks.append(build(table, measured, also, configured))
    title = f"Table {ROMAN[number]}: {TITLES[number]}"
    remarks = list(
        filter(None, (render.restored(table.restored), published_only.remark(table.methods)))
    )
    out = Path(out)
    write_text(out / f"table_{number}.csv", long_form(table, measured, wanted, configured))
    write_text(out / f"table_{number}.md", render.markdown(title, blocks, NAMES, remarks))
    write_text(out / f"table_{number}.html", render.html(title, blocks, NAMES, remarks))
    write_text(
        out / f"table_{number}.tex", render.latex(f"tab:{number}", title, blocks, NAMES, remarks)
    )


def _as_printed(entry: Measured, table: Published) -> Measured | None:
    """The entry under the paper's name of its row: Table V has one row for the whole of a data set,
    `all`.
    """
    if table.categories(entry.dataset) != (WHOLE,):
        return entry
    return replace(entry, category=WHOLE) if entry.category == AVERAGE else None


def _as_rows(
    entries: list[Measured], named: dict[str, str], ablations: Mapping[str, Ablation], number: int
) -> list[Measured]:
    """Entries named after their rows of Table VIII or IX; what stands in no row is left out."""
    found = []
    for key, arm in ablations.items():
        if number in arm.rows:
            own = [
                entry for entry in entries if entry.label == named[key if arm.change else arm.of]
            ]
            found += [replace(entry, label=arm.rows[number]) for entry in own]
    return found


def _rows(
    table: Published, measured: list[Measured], configured: dict[str, tuple[str, ...]]
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


def _coverage(entry: Measured, table: Published) -> str:
    """What a measured average is the mean of."""
    paper = len(table.categories(entry.dataset))
    if paper and entry.category != WHOLE:
        return f"mean of {entry.covers} of the paper's {paper} categories"
    return f"mean of {entry.covers} categor{'y' if entry.covers == 1 else 'ies'}"


def long_form(
    table: Published,
    measured: list[Measured],
    metrics: tuple[str, ...],
    configured: dict[str, tuple[str, ...]],
) -> str:
    """CSV text, one number a row; a measured number stands beside the printed one of its name."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    by_cell: dict[tuple, list[Measured]] = {}
    for entry in measured:
        by_cell.setdefault((entry.dataset, entry.category, entry.label, entry.metric), []).append(
            entry
        )
    methods = dict.fromkeys([*table.methods, *(entry.label for entry in measured)])
    for dataset, category in _rows(table, measured, configured):
        for method in methods:
            for metric in metrics:
                printed = table.cells.get((dataset, category, method, metric))
                mean = (
                    table.recomputed.get((dataset, method, metric)) if category == AVERAGE else None
                )
                left = [printed.text if printed else "", "" if mean is None else f"{mean:.3f}"]
                ours = by_cell.get((dataset, category, method, metric), [])
                texts = [
                    e.description + (f"; {_coverage(e, table)}" if e.covers else "") for e in ours
                ]
                right = [[f"{e.mean:.6g}", text] for e, text in zip(ours, texts, strict=True)] or (
                    [["", ""]] if printed else []
                )
                writer.writerows(
                    [ROMAN[table.number], dataset, category, method, metric, *left, *pair]
                    for pair in right
                )
    return buffer.getvalue()


def build(
    table: Published,
    measured: list[Measured],
    metrics: tuple[str, ...],
    configured: dict[str, tuple[str, ...]],
) -> Block:
    """Lay out columns and rows: published methods in the paper's order, then ours."""
    measured = [entry for entry in measured if entry.metric in metrics]
    printed = {key[2:] for key in table.cells}
    block = Block(metrics, [])
    for method in table.methods:
        for metric in (k for k in metrics if (method, k) in printed):
            mark = block.mark(REMARKS[method]) if method in REMARKS else ""
            block.columns.append(Column("published", method, metric, mark=mark))
    protocols = {(e.label, e.metric, e.protocol): e for e in measured}
    for label in dict.fromkeys(entry.label for entry in measured):
        for metric in metrics:
            for entry in (e for key, e in protocols.items() if key[:2] == (label, metric)):
                mark = block.mark(entry.protocol, letters=True)
                block.columns.append(
                    Column("measured", label, metric, entry.protocol, entry.substitute, mark)
                )
    by_cell = {(e.dataset, e.category, e.label, e.metric, e.protocol): e for e in measured}
    heading = None
    for dataset, category in _rows(table, measured, configured):
        cells = [
            _cell(block, table, column, dataset, category, by_cell) for column in block.columns
        ]
        if all(cell is None for cell in cells):
            continue
        if heading != dataset:
            block.rows.append(Row(heading := dataset, None))
        block.rows.append(Row(category, tuple(_ranked(block.columns, cells)), category == AVERAGE))
    return block


def build_arms(
    table: Published,
    measured: list[Measured],
    metrics: tuple[str, ...],
    configured: dict[str, tuple[str, ...]],
) -> Block:
    """Lay out an ablation: a row an arm, a column the printed average and each average of ours."""
    averages = [entry for entry in measured if entry.category == AVERAGE]
    places = [(dataset, AVERAGE) for dataset in dict.fromkeys([*table.datasets, *configured])]
    block = Block(metrics, [], head="arm")
    cells: list[dict[str, Cell]] = []
    for dataset, category in places:
        for metric in metrics:
            printed = {
                m: table.cells[key]
                for m in table.methods
                if (key := (dataset, category, m, metric)) in table.cells
            }
            if printed:
                block.columns.append(column := Column("published", dataset, metric))
                by_cell = {}
                cells.append(
                    {
                        m: _cell(block, table, replace(column, label=m), dataset, category, by_cell)
                        for m in printed
                    }
                )
            for protocol in dict.fromkeys(
                e.protocol for e in averages if (e.dataset, e.metric) == (dataset, metric)
            ):
                ours = {
                    e.label: e
                    for e in averages
                    if (e.dataset, e.metric, e.protocol) == (dataset, metric, protocol)
                }
                mark = block.mark(protocol, letters=True)
                block.columns.append(
                    column := Column("measured", dataset, metric, protocol, mark=mark)
                )
                by_cell = {(dataset, category, e.label, metric, protocol): e for e in ours.values()}
                cells.append(
                    {
                        m: _cell(block, table, replace(column, label=m), dataset, category, by_cell)
                        for m in ours
                    }
                )
    arms = dict.fromkeys([*table.methods, *(entry.label for entry in averages)])
    # Ranks go down a column here: the arms are the contestants.
    for column in cells:
        places = sorted(
            {float(cell.text.split(" ")[0]) for cell in column.values() if cell.text != "n/a"},
            reverse=True,
        )[:2]
        for arm, cell in column.items():
            value = None if cell.text == "n/a" else float(cell.text.split(" ")[0])
            if len(column) > 1 and value in places:
                column[arm] = replace(cell, rank=places.index(value) + 1)
    block.rows = [Row(arm, tuple(column.get(arm) for column in cells)) for arm in sorted(arms)]
    return block


def _cell(
    block: Block, table: Published, column: Column, dataset: str, category: str, by_cell: dict
) -> Cell | None:
    digits = DIGITS.get(column.metric, 1)
    if column.kind == "measured":
        entry = by_cell.get((dataset, category, column.label, column.metric, column.protocol))
        if entry is None:
            return None
        text = f"{entry.mean:.{digits}f}" if math.isfinite(entry.mean) else "n/a"
        if entry.std is not None and math.isfinite(entry.std):
            text += f" ± {entry.std:.{digits}f}"
        return Cell(text, marks=(block.mark(_coverage(entry, table)),) if entry.covers else ())
    printed = table.cells.get((dataset, category, column.label, column.metric))
    if printed is None:
        return None
    remarks = []
    if category == AVERAGE and table.mismatch(dataset, column.label, column.metric):
        mean = table.recomputed[dataset, column.label, column.metric]
        remarks.append(
            f"printed {printed.text}, but the mean of the printed rows is {mean:.{digits + 1}f}"
        )
    if printed.note:
        remarks.append(printed.note)
    name = f"{column.label}, {category}, {NAMES.get(column.metric, column.metric)}"
    text = (
        f"{printed.value:.{digits}f}"
        if len(printed.text.partition(".")[2]) < digits
        else printed.text
    )
    return Cell(text, marks=(block.mark(f"{name}: {'; '.join(remarks)}"),) if remarks else ())


def _ranked(columns: list[Column], cells: list[Cell | None]) -> list[Cell | None]:
    """Best and second best as displayed, among the columns of one contest; ties share a rank."""
    groups: dict[tuple, list[float]] = {}
    for column, cell in zip(columns, cells, strict=True):
        if cell is not None and cell.text != "n/a":
            groups.setdefault(column.contest, []).append(float(cell.text.split(" ")[0]))
    ranked = []
    for column, cell in zip(columns, cells, strict=True):
        values = groups.get(column.contest, [])
        if cell is not None and cell.text != "n/a" and len(values) > 1:
            places = sorted(set(values), reverse=column.metric not in LOW_IS_GOOD)
            place = places.index(float(cell.text.split(" ")[0])) + 1
            cell = Cell(cell.text, place if place <= 2 else 0, cell.marks)
        ranked.append(cell)
    return ranked
