"""Curves of the detectors: ROC of pictures, precision-recall of pixels, PRO."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from helixbench.records import csv_text
from helixbench.report.plots.style import TITLE, TWO_COLUMNS, axes_grid, legend, look
from helixbench.report.run_folder import RunFolder

KINDS = {
    "image_roc": ("image ROC", 1.0, "false-positive rate", "true-positive rate"),
    "pixel_pr": ("pixel precision-recall", 1.0, "recall", "precision"),
    "pro": ("PRO", 0.3, "false-positive rate", "overlap of regions"),
}
"""Curves shown: title, end of the x axis, names of the axes."""


def mean_curves(
    folder: RunFolder, dataset: str, kind: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Method -> mean of a curve over categories and seeds, on common points along x."""
    along = np.linspace(0, KINDS[kind][1], 201)
    means = {}
    for key, label in folder.labels.items():
        found = [
            folder.curves(key, d, c, seed)[kind]
            for d, c in folder.places(dataset)
            for seed in folder.seeds
        ]
        means[label] = np.mean([np.interp(along, *np.array(one).T) for one in found], axis=0)
    return along, means


def as_csv(folder: RunFolder, dataset: str, kind: str) -> str:
    """mean_curves with a column per method, as `dvc plots` takes them."""
    along, means = mean_curves(folder, dataset, kind)
    points = ([f"{value:.4f}" for value in row] for row in zip(along, *means.values(), strict=True))
    return csv_text([[KINDS[kind][2], *means], *points])


def draw(folder: RunFolder, dataset: str) -> Figure:
    """ROC of pictures, precision-recall of pixels and PRO, a line per method: the mean over
    categories and seeds.
    """
    figure, axes = axes_grid(1, 3, TWO_COLUMNS, 2.75)
    handles = {}
    for ax, (kind, (title, limit, x, y)) in zip(axes[0], KINDS.items(), strict=True):
        along, means = mean_curves(folder, dataset, kind)
        for i, (label, mean) in enumerate(means.items()):
            (handles[label],) = ax.plot(along, mean, **look(i))
        ax.set(xlim=(0, limit), ylim=(0, 1.02))
        ax.set_title(title, **TITLE)
        ax.set_xlabel(x, fontsize=7)
        ax.set_ylabel(y, fontsize=7)
    legend(figure, handles)
    return figure
