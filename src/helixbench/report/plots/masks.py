"""Masks, real against generated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from helixbench.errors import UserError
from helixbench.pictures.files import FORMATS
from helixbench.pictures.lettering import figure_text
from helixbench.records import inside
from helixbench.report.plots.style import TWO_COLUMNS, look
from helixbench.report.run_folder import RunFolder


def draw(folder: RunFolder, dataset: str) -> Figure:
    """Masks of real defects against generated ones: their areas, and where in the picture they lie
    on average.
    """
    shown: dict[str, tuple[list[float], np.ndarray]] = {"real": _real_masks(folder, dataset)}
    shown |= {label: _made_masks(folder, key, dataset) for key, label in folder.labels.items()}
    columns = min(6, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(
        figsize=(TWO_COLUMNS, 2.2 + 1.35 * rows), facecolor="white", layout="constrained"
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.0, 1.3 * rows))
    ax = upper.subplots()
    ax.tick_params(labelsize=7, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    for i, (name, (areas, _)) in enumerate(shown.items()):
        if areas:
            line = (
                {"color": "black", "linestyle": "-", "linewidth": 2.0}
                if name == "real"
                else look(i - 1)
            )
            ax.step(
                sorted(areas),
                np.arange(1, len(areas) + 1) / len(areas),
                where="post",
                label=f"{figure_text(name)} ({len(areas)})",
                **line,
            )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("mask area [% of the picture]", fontsize=7)
    ax.set_ylabel("share of masks at most so large", fontsize=7)
    ax.set_ylim(0, 1.02)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(fontsize=6, frameon=False, ncols=2)
    axes = lower.subplots(rows, columns, squeeze=False)
    top = max((mean.max() for _, mean in shown.values()), default=1) or 1
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, (_, mean)) in zip(axes.flat, shown.items(), strict=False):
        ax.imshow(mean, cmap="magma", vmin=0, vmax=top)
        ax.set_title(figure_text(name), fontsize=7)
    lower.supxlabel(f"mean mask: black is 0, the lightest is {top:.2f}", fontsize=7)
    return figure


_SIDE = 64


def _mean_mask(paths: list[Path]) -> np.ndarray:
    total = np.zeros((_SIDE, _SIDE))
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as picture:
                total += (
                    np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX))
                    / 255
                )
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read as a picture ({error}); run its stage again"
            ) from None
    return total / max(1, len(paths))


def _area(path: Path) -> float:
    with Image.open(path, formats=FORMATS) as picture:
        return float((np.asarray(picture.convert("L")) > 127).mean())


def _real_masks(folder: RunFolder, dataset: str) -> tuple[list[float], np.ndarray]:
    paths = []
    for d, c in folder.places(dataset):
        root, samples = folder.prepared(d, c)
        paths += [
            inside(root, sample.mask) for sample in samples if sample.defect_trains and sample.mask
        ]
    return [_area(path) for path in paths], _mean_mask(paths)


def _made_masks(folder: RunFolder, key: str, dataset: str) -> tuple[list[float], np.ndarray]:
    areas, paths = [], []
    for d, c in folder.places(dataset):
        root, pairs = folder.pairs(key, d, c)
        good = [pair for pair in pairs if pair.gate == "ok"]
        areas += [pair.mask_area for pair in good]
        paths += [inside(root, pair.mask) for pair in good[:: max(1, len(good) // 200)]]
    return areas, _mean_mask(paths)
