"""Results at a glance."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helixbench.pictures.lettering import figure_text
from helixbench.report.measured import Measured
from helixbench.report.metrics import about
from helixbench.report.plots.style import COLOURS, TITLE, TWO_COLUMNS, axes_grid
from helixbench.report.published import AVERAGE, ROMAN, WHOLE, Published, read
from helixbench.report.run_folder import RunFolder

SHOWN = ("IS", "IC-LPIPS", "image_auroc", "pixel_ap", "pro")
"""Metrics by their names in tables."""


def draw(folder: RunFolder, entries: list[Measured], published: Path) -> Figure:
    """The mean of every data set, a bar per method with its spread; a diamond where the paper
    prints a number.
    """
    names, labels = list(folder.datasets), list(folder.labels.values())
    height = 0.75 + len(names) * (0.35 + 0.19 * len(labels))
    figure, axes = axes_grid(len(names), len(SHOWN), TWO_COLUMNS, height, sharey=True)
    tables = [read(published, number) for number in ROMAN]
    printed_anywhere = False
    for row, dataset in zip(axes, names, strict=True):
        for ax, metric in zip(row, SHOWN, strict=True):
            means = {
                e.label: e
                for e in entries
                if (e.dataset, e.metric, e.category) == (dataset, metric, AVERAGE)
            }
            for i, label in enumerate(labels):
                if label in means and math.isfinite(means[label].mean):
                    _bar(ax, i, means[label])
                printed = _printed(tables, dataset, label, metric)
                if printed is not None:
                    _diamond(ax, i, printed)
                    printed_anywhere = True
            if about(metric).percent:
                ax.set_xlim(0, 119)
                ax.set_xticks([0, 50, 100])
            else:
                ax.margins(x=0.25)
        row[0].set_yticks(range(len(labels)), list(map(figure_text, labels)), fontsize=7)
        row[0].set_ylim(len(labels) - 0.4, -0.6)
        row[0].set_ylabel(dataset, **TITLE)
    for ax, metric in zip(axes[0], SHOWN, strict=True):
        ax.set_title(about(metric).heading, **TITLE)
    note = (
        "bars: measured, mean over the categories (whiskers: standard deviation over seeds or "
        "shuffles)"
    )
    figure.supxlabel(
        note + ("; diamonds: printed in the paper" if printed_anywhere else ""), fontsize=7
    )
    return figure


def _bar(ax: Axes, y: int, entry: Measured) -> None:
    ax.barh(
        y,
        entry.mean,
        xerr=entry.std,
        height=0.7,
        color=COLOURS[y % len(COLOURS)],
        error_kw={"linewidth": 0.8},
    )
    ax.annotate(
        f"{entry.mean:.{about(entry.metric).digits}f}",
        (entry.mean + (entry.std or 0), y),
        (2, 0),
        textcoords="offset points",
        va="center",
        fontsize=6,
    )


def _diamond(ax: Axes, y: int, value: float) -> None:
    ax.plot(
        value,
        y,
        marker="D",
        markersize=4,
        markerfacecolor="white",
        markeredgecolor="black",
        linestyle="none",
    )


def _printed(tables: list[Published], dataset: str, label: str, metric: str) -> float | None:
    """The average that the first table to print one gives."""
    for table in tables:
        for category in (AVERAGE, WHOLE):
            cell = table.cells.get((dataset, category, label, metric))
            if cell is not None:
                return cell.value
    return None
