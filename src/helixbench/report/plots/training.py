"""Training curves: loss against step."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from helixbench.pictures.lettering import figure_text
from helixbench.report.plots.style import COLOURS, TITLE, TWO_COLUMNS, axes_grid
from helixbench.report.run_folder import Job, RunFolder


def draw(folder: RunFolder, jobs: list[Job]) -> Figure:
    """Loss against step, a panel per model, a line per category; dashed: the loss on fixed samples
    and noise.
    """
    by_model: dict[str, list[Job]] = {}
    for job in jobs:
        if job.stage == "train":
            by_model.setdefault(job.method, []).append(job)
        elif (
            job.stage == "detect"
            and job.method in folder.labels.values()
            and job.seed == folder.seeds[0]
        ):
            by_model.setdefault("detectors", []).append(job)
    columns = min(3, len(by_model))
    rows = math.ceil(len(by_model) / columns)
    figure, axes = axes_grid(rows, columns, TWO_COLUMNS, 0.5 + 1.9 * rows)
    for ax, (model, members) in zip(axes.flat, by_model.items(), strict=False):
        for i, job in enumerate(members):
            lines = folder.curve_of_training(job)
            colour = COLOURS[i % len(COLOURS)]
            # What a detector is validated on is test metrics, not a loss.
            for prefix, style in (("", "-"), ("val_", "--"))[: 1 if job.stage == "detect" else 2]:
                x, y = _loss(lines, prefix)
                ax.plot(
                    x,
                    y,
                    color=colour,
                    linestyle=style,
                    linewidth=0.9,
                    alpha=1 if len(members) < 10 else 0.5,
                )
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_title(figure_text(model), **TITLE)
    for ax in list(axes.flat)[len(by_model) :]:
        ax.set_visible(False)
    figure.supxlabel(
        "step (solid: loss of training; dashed: on fixed samples and noise)", fontsize=7
    )
    figure.supylabel("loss", fontsize=7)
    return figure


_NO_LOSS = {
    "step",
    "lr",
    "grad_norm",
    "steps_per_s",
    "images_per_s",
    "peak_rss_mib",
    "peak_gpu_mib",
}


def _loss(lines: list[dict[str, float]], prefix: str) -> tuple[list[float], list[float]]:
    """Steps and sums of the loss terms whose names begin with `prefix`."""
    x, y = [], []
    for line in lines:
        terms = [
            v for k, v in line.items() if k not in _NO_LOSS and k.startswith("val_") == bool(prefix)
        ]
        if terms:
            x.append(line["step"])
            y.append(sum(terms))
    return x, y
