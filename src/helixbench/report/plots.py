"""Plots about a run: results at a glance, training curves, cost, detector curves, masks. PNG and
PDF of each.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; lines differ in
dashes, too. Widths are a column or two of a two-column paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.provenance import write_atomic, write_text
from helixbench.records import csv_text, inside
from helixbench.report.folder import STAGES, Folder, Job
from helixbench.report.measured import Measured, collect
from helixbench.report.published import AVERAGE, WHOLE, read

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
_DPI = 200
_STYLE = {"fontsize": 8}
OVERVIEW = (
    ("IS", 1, "IS"),
    ("IC-LPIPS", 1, "IC-LPIPS"),
    ("image_auroc", 2, "image AUROC"),
    ("pixel_ap", 4, "pixel AP"),
    ("pro", 0, "PRO"),
)
"""Metric, the table that prints it (0: none), its name."""


def run(config: Slice, *, results: Path, scores: list[Path], published: Path, out: Path) -> None:
    """Write overview, training, cost, detector_<data set> and masks_<data set> as .png and .pdf
    into `out`.

    Beside them cost.csv, and for `dvc plots` the curves <kind>_<data set>.csv.
    """
    folder = Folder(results, config)
    jobs = list(folder.jobs())
    entries = collect(scores, config)
    drawn: dict[str, Callable[[], Figure]] = {
        "overview": lambda: overview(folder, entries, published),
        "training": lambda: training(folder, jobs),
        "cost": lambda: cost(folder, jobs),
    }
    for dataset in folder.datasets:
        drawn[f"detector_{dataset}"] = lambda dataset=dataset: detectors(folder, dataset)
        drawn[f"masks_{dataset}"] = lambda dataset=dataset: masks(folder, dataset)
    for name, draw in drawn.items():
        figure = draw()
        for suffix in ("png", "pdf"):
            _save(figure, Path(out) / f"{name}.{suffix}")
    write_text(Path(out) / "cost.csv", cost_csv(jobs))
    for dataset in folder.datasets:
        for kind in KINDS:
            write_text(Path(out) / f"{kind}_{dataset}.csv", curves_csv(folder, dataset, kind))


def _save(figure: Figure, path: Path) -> None:
    # Without dates in them equal runs give equal files.
    facts = (
        {"Software": None}
        if path.suffix == ".png"
        else {"CreationDate": None, "Creator": None, "Producer": None}
    )
    write_atomic(
        path,
        lambda temporary: figure.savefig(
            temporary, dpi=_DPI, format=path.suffix[1:], metadata=facts
        ),
    )


def _figure(
    rows: int, columns: int, width: float, height: float, **more
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    for ax in axes.flat:
        ax.tick_params(labelsize=7, length=2)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.set_axisbelow(True)
    return figure, axes


def _look(i: int) -> dict:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "linewidth": 1.2,
    }


def _legend(figure: Figure, handles: dict[str, object]) -> None:
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(4, len(handles)),
            fontsize=7,
            frameon=False,
        )


# ------------------------------------------------------------------------------------------------
# overview


def overview(folder: Folder, entries: list[Measured], published: Path) -> Figure:
    """The mean of every data set, a bar a method with its spread; a diamond where the paper prints
    a number.
    """
    names, labels = list(folder.datasets), list(folder.labels.values())
    height = 0.75 + len(names) * (0.35 + 0.19 * len(labels))
    figure, axes = _figure(len(names), len(OVERVIEW), TWO_COLUMNS, height, sharey=True)
    tables = {number: read(published, number) for number in range(1, 10)}
    printed_anywhere = False
    for r, (row, dataset) in enumerate(zip(axes, names, strict=True)):
        for ax, (metric, number, title) in zip(row, OVERVIEW, strict=True):
            found = {
                e.label: e
                for e in entries
                if (e.dataset, e.metric, e.category) == (dataset, metric, AVERAGE)
            }
            for i, label in enumerate(labels):
                if label in found and math.isfinite(found[label].mean):
                    entry = found[label]
                    ax.barh(
                        i,
                        entry.mean,
                        xerr=entry.std,
                        height=0.7,
                        color=COLOURS[i % len(COLOURS)],
                        error_kw={"linewidth": 0.8},
                    )
                    end = entry.mean + (entry.std or 0)
                    ax.annotate(
                        _short(entry.mean, metric),
                        (end, i),
                        (2, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=6,
                    )
                printed = _printed(tables, dataset, label, metric) if number else None
                if printed is not None:
                    ax.plot(
                        printed,
                        i,
                        marker="D",
                        markersize=4,
                        markerfacecolor="white",
                        markeredgecolor="black",
                        linestyle="none",
                    )
                    printed_anywhere = True
            if metric not in ("IS", "IC-LPIPS"):
                ax.set_xlim(0, 119)
                ax.set_xticks([0, 50, 100])
            else:
                ax.margins(x=0.25)
            if r == 0:
                ax.set_title(title, **_STYLE)
        row[0].set_yticks(range(len(labels)), labels, fontsize=7)
        row[0].set_ylim(len(labels) - 0.4, -0.6)
        row[0].set_ylabel(dataset, **_STYLE)
    note = (
        "bars: measured, mean over the categories (whiskers: standard deviation over seeds or "
        "shuffles)"
    )
    figure.supxlabel(
        note + ("; diamonds: printed in the paper" if printed_anywhere else ""), fontsize=7
    )
    return figure


def _printed(tables: dict, dataset: str, label: str, metric: str) -> float | None:
    for table in tables.values():
        for category in (AVERAGE, WHOLE):
            cell = table.cells.get((dataset, category, label, metric))
            if cell is not None:
                return cell.value
    return None


def _short(value: float, metric: str) -> str:
    return f"{value:.2f}" if metric in ("IS", "IC-LPIPS") else f"{value:.1f}"


# ------------------------------------------------------------------------------------------------
# training


def training(folder: Folder, jobs: list[Job]) -> Figure:
    """Loss against step, a panel a model, a line a category; dashed: the loss on fixed samples and
    noise.
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
    figure, axes = _figure(rows, columns, TWO_COLUMNS, 0.5 + 1.9 * rows)
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
        ax.set_title(model, **_STYLE)
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


# ------------------------------------------------------------------------------------------------
# cost


def cost(folder: Folder, jobs: list[Job]) -> Figure:
    """Hours by stage, largest memory of a job, and disk, a bar a method; the data and the base
    model are shared.
    """
    labels = ["shared", *folder.labels.values()]
    of = lambda job: "shared" if job.method in ("", "base model") else job.method
    figure, axes = _figure(1, 3, TWO_COLUMNS, 0.9 + 0.22 * len(labels), sharey=True)
    hours, memory, disk = axes[0]
    left = np.zeros(len(labels))
    total = {
        stage: np.array([_sum(jobs, stage, of, label) for label in labels]) for stage in STAGES
    }
    unit, per = ("hours", 3600) if sum(total.values()).max() > 5400 else ("minutes", 60)
    handles = {}
    for i, stage in enumerate(STAGES):
        values = total[stage] / per
        handles[stage] = hours.barh(
            range(len(labels)), values, left=left, color=COLOURS[i], height=0.7
        )
        left += values
    peak = [
        max((job.facts["cost"]["peak_rss_mib"] for job in jobs if of(job) == label), default=0)
        / 1024
        for label in labels
    ]
    memory.barh(range(len(labels)), peak, color="#777777", height=0.7)
    disk.barh(
        range(len(labels)),
        [sum(j.bytes for j in jobs if of(j) == label) / 2**30 for label in labels],
        color="#777777",
        height=0.7,
    )
    for ax, title in (
        (hours, f"{unit}, all jobs"),
        (memory, "largest job [GiB]"),
        (disk, "disk [GiB]"),
    ):
        ax.set_title(title, **_STYLE)
    hours.set_yticks(range(len(labels)), labels, fontsize=7)
    hours.set_ylim(len(labels) - 0.4, -0.6)
    _legend(figure, handles)
    return figure


def _sum(jobs: list[Job], stage: str, of: Callable[[Job], str], label: str) -> float:
    return sum(
        job.facts["cost"]["wall_s"] for job in jobs if job.stage == stage and of(job) == label
    )


def cost_csv(jobs: list[Job]) -> str:
    """One row a job: stage, method, data set, category, seed, seconds, peak memory [MiB], bytes,
    device.
    """
    rows = [
        (
            "stage",
            "method",
            "dataset",
            "category",
            "seed",
            "wall_s",
            "peak_rss_mib",
            "bytes",
            "device",
        )
    ]
    for job in jobs:
        spent, seed = job.facts["cost"], "" if job.seed is None else job.seed
        what = (job.stage, job.method, job.dataset, job.category, seed)
        rows.append(
            (*what, spent["wall_s"], spent["peak_rss_mib"], job.bytes, job.facts.get("device", ""))
        )
    return csv_text(rows)


# ------------------------------------------------------------------------------------------------
# detectors


KINDS = {
    "image_roc": ("image ROC", 1.0, "false-positive rate", "true-positive rate"),
    "pixel_pr": ("pixel precision-recall", 1.0, "recall", "precision"),
    "pro": ("PRO", 0.3, "false-positive rate", "overlap of regions"),
}
"""Curves shown: title, end of the x axis, names of the axes."""


def mean_curves(
    folder: Folder, dataset: str, kind: str
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


def curves_csv(folder: Folder, dataset: str, kind: str) -> str:
    """mean_curves with a column a method, as `dvc plots` takes them."""
    along, means = mean_curves(folder, dataset, kind)
    points = ([f"{value:.4f}" for value in row] for row in zip(along, *means.values(), strict=True))
    return csv_text([[KINDS[kind][2], *means], *points])


def detectors(folder: Folder, dataset: str) -> Figure:
    """ROC of pictures, precision-recall of pixels and PRO, a line a method: the mean over
    categories and seeds.
    """
    figure, axes = _figure(1, 3, TWO_COLUMNS, 2.75)
    handles = {}
    for ax, (kind, (title, limit, x, y)) in zip(axes[0], KINDS.items(), strict=True):
        along, means = mean_curves(folder, dataset, kind)
        for i, (label, mean) in enumerate(means.items()):
            (handles[label],) = ax.plot(along, mean, **_look(i))
        ax.set(xlim=(0, limit), ylim=(0, 1.02))
        ax.set_title(title, **_STYLE)
        ax.set_xlabel(x, fontsize=7)
        ax.set_ylabel(y, fontsize=7)
    _legend(figure, handles)
    return figure


# ------------------------------------------------------------------------------------------------
# masks


def masks(folder: Folder, dataset: str) -> Figure:
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
            look = (
                {"color": "black", "linestyle": "-", "linewidth": 2.0}
                if name == "real"
                else _look(i - 1)
            )
            ax.step(
                sorted(areas),
                np.arange(1, len(areas) + 1) / len(areas),
                where="post",
                label=f"{name} ({len(areas)})",
                **look,
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
        ax.set_title(name, fontsize=7)
    lower.supxlabel(f"mean mask: black is 0, the lightest is {top:.2f}", fontsize=7)
    return figure


_SIDE = 64


def _mean_mask(paths: list[Path]) -> np.ndarray:
    total = np.zeros((_SIDE, _SIDE))
    for path in paths:
        try:
            with Image.open(path) as picture:
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
    with Image.open(path) as picture:
        return float((np.asarray(picture.convert("L")) > 127).mean())


def _real_masks(folder: Folder, dataset: str) -> tuple[list[float], np.ndarray]:
    paths = []
    for d, c in folder.places(dataset):
        root, samples = folder.prepared(d, c)
        paths += [
            inside(root, sample.mask) for sample in samples if sample.defect_trains and sample.mask
        ]
    return [_area(path) for path in paths], _mean_mask(paths)


def _made_masks(folder: Folder, key: str, dataset: str) -> tuple[list[float], np.ndarray]:
    areas, paths = [], []
    for d, c in folder.places(dataset):
        root, pairs = folder.pairs(key, d, c)
        good = [pair for pair in pairs if pair.gate == "ok"]
        areas += [pair.mask_area for pair in good]
        paths += [inside(root, pair.mask) for pair in good[:: max(1, len(good) // 200)]]
    return areas, _mean_mask(paths)
