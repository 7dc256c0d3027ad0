"""The paper's tables: published, recomputed and measured numbers side by side, never mixed.

Published: as printed. Recomputed: mean of the printed rows, since some printed averages are not.
Measured: ours, one column per protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.provenance import write_text
from helixbench.records import csv_text
from helixbench.report import published_only, render
from helixbench.report.layout import Categories, build, build_arms, coverage, place_rows
from helixbench.report.measured import Measured, collect, labels
from helixbench.report.metrics import also_measured
from helixbench.report.published import AVERAGE, ROMAN, WHOLE, Published, datasets_shown, read
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
ARMS = (8, 9)
"""Tables whose rows are ablations."""
KINDS = {"logical_anomalies": "logical", "structural_anomalies": "structural"}
"""Defect types that have rows of their own where a table of the paper has them,
`logical/<category>`."""

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


def run(number: int, config: Slice, *, published: Path, scores: list[Path], out: Path) -> None:
    """Write table_<number>.csv, .tex, .md and .html (a fragment for the page) into the folder
    `out`.

    published: folder of the printed tables. scores: score files of this run (any stage, seed and
    metric; what the table does not show is left out). Raises UserError for a table not rendered
    yet, unreadable files, and numbers that contradict each other.
    """
    if number not in TITLES:
        raise UserError(f"table {number}: not one of {', '.join(map(str, TITLES))}")
    table = read(published, number)
    shown = datasets_shown(published, number, config["prepare.datasets"])
    split_up = {
        name: KINDS for name in shown if any("/" in category for category in table.categories(name))
    }
    entries = [entry for entry in collect(scores, config, split_up) if entry.dataset in shown]
    entries = [whole for entry in entries if (whole := _as_printed(entry, table))]
    if number in ARMS:
        entries = _as_rows(entries, labels(config), config["train.ablations"], number)
    also = also_measured(number)
    wanted = table.metrics + also
    measured = [entry for entry in entries if entry.metric in wanted]
    configured = {
        name: dataset.categories
        for name, dataset in config["prepare.datasets"].items()
        if name in shown
    }
    lay_out = build_arms if number in ARMS else build
    blocks = [lay_out(table, measured, table.metrics, configured)]
    also = tuple(metric for metric in also if any(entry.metric == metric for entry in measured))
    if also:
        blocks.append(build(table, measured, also, configured))
    title = f"Table {ROMAN[number]}: {TITLES[number]}"
    remarks = list(
        filter(None, (render.restored(table.restored), published_only.remark(table.methods)))
    )
    out = Path(out)
    write_text(out / f"table_{number}.csv", long_form(table, measured, wanted, configured))
    write_text(out / f"table_{number}.md", render.markdown(title, blocks, remarks))
    write_text(out / f"table_{number}.html", render.html(title, blocks, remarks))
    write_text(out / f"table_{number}.tex", render.latex(f"tab:{number}", title, blocks, remarks))


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
    rows = []
    for key, arm in ablations.items():
        if number in arm.rows:
            label = named[key if arm.change else arm.of]
            own = [entry for entry in entries if entry.label == label]
            rows += [replace(entry, label=arm.rows[number]) for entry in own]
    return rows


def long_form(
    table: Published,
    measured: list[Measured],
    metrics: tuple[str, ...],
    configured: Categories,
) -> str:
    """CSV text, one number per row; a measured number stands beside the printed one of its name."""
    by_cell: dict[tuple, list[Measured]] = {}
    for entry in measured:
        key = (entry.dataset, entry.category, entry.label, entry.metric)
        by_cell.setdefault(key, []).append(entry)
    methods = dict.fromkeys([*table.methods, *(entry.label for entry in measured)])
    lines: list[tuple] = [COLUMNS]
    for dataset, category in place_rows(table, measured, configured):
        for method in methods:
            for metric in metrics:
                cell = (dataset, category, method, metric)
                printed = table.cells.get(cell)
                mean = (
                    table.recomputed.get((dataset, method, metric)) if category == AVERAGE else None
                )
                left = (
                    printed.text if printed else "",
                    "" if mean is None else f"{mean:.3f}",
                )
                right = []
                for entry in by_cell.get(cell, []):
                    about = f"; {coverage(entry, table)}" if entry.covers else ""
                    right.append((f"{entry.mean:.6g}", entry.description + about))
                if printed and not right:
                    right = [("", "")]
                lines += [(ROMAN[table.number], *cell, *left, *pair) for pair in right]
    return csv_text(lines)
