"""Plots about a run: results at a glance, training curves, cost, detector curves, masks. PNG and
PDF of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from helixbench.config import Slice
from helixbench.provenance import write_text
from helixbench.report.measured import collect
from helixbench.report.plots import cost, detectors, masks, overview, training
from helixbench.report.plots.style import save
from helixbench.report.run_folder import RunFolder


def run(config: Slice, *, results: Path, scores: list[Path], published: Path, out: Path) -> None:
    """Write overview, training, cost, detector_<data set> and masks_<data set> as .png and .pdf
    into `out`.

    Beside them cost.csv, and for `dvc plots` the curves <kind>_<data set>.csv.
    """
    folder = RunFolder(results, config)
    jobs = list(folder.jobs())
    entries = collect(scores, config)
    drawn: dict[str, Callable[[], Figure]] = {
        "overview": partial(overview.draw, folder, entries, published),
        "training": partial(training.draw, folder, jobs),
        "cost": partial(cost.draw, folder, jobs),
    }
    for dataset in folder.datasets:
        drawn[f"detector_{dataset}"] = partial(detectors.draw, folder, dataset)
        drawn[f"masks_{dataset}"] = partial(masks.draw, folder, dataset)
    for name, draw in drawn.items():
        figure = draw()
        for suffix in ("png", "pdf"):
            save(figure, Path(out) / f"{name}.{suffix}")
    write_text(Path(out) / "cost.csv", cost.as_csv(jobs))
    for dataset in folder.datasets:
        for kind in detectors.KINDS:
            text = detectors.as_csv(folder, dataset, kind)
            write_text(Path(out) / f"{kind}_{dataset}.csv", text)
