"""What all plots share: colours, sizes, axes, legend.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; lines differ in
dashes, too. Widths are a column or two of a two-column paper.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from helixbench.pictures.lettering import figure_text
from helixbench.provenance import write_atomic

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999933",
    "#882255",
    "#44AA99",
    "#661100",
)
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (8, 2, 1, 2)),
    (0, (2, 1)),
)
COLUMN, TWO_COLUMNS = 3.5, 7.16
"""Inches."""
DPI = 200
TITLE = {"fontsize": 8}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or PDF, without dates in it, so that equal runs give equal files."""
    facts = (
        {"Software": None}
        if path.suffix == ".png"
        else {"CreationDate": None, "Creator": None, "Producer": None}
    )
    write_atomic(
        path,
        lambda temporary: figure.savefig(
            temporary, dpi=DPI, format=path.suffix[1:], metadata=facts
        ),
    )


def axes_grid(
    rows: int, columns: int, width: float, height: float, **more
) -> tuple[Figure, np.ndarray]:
    """A figure of that size [inch] and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    for ax in axes.flat:
        ax.tick_params(labelsize=7, length=2)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.set_axisbelow(True)
    return figure, axes


def look(i: int) -> dict:
    """Colour and dashes of line i."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "linewidth": 1.2,
    }


def legend(figure: Figure, handles: dict[str, object]) -> None:
    """One legend below all axes, by label."""
    if handles:
        figure.legend(
            handles.values(),
            map(figure_text, handles),
            loc="outside lower center",
            ncols=min(4, len(handles)),
            fontsize=7,
            frameon=False,
        )
