"""What a run cost: time, memory, disk."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from helixbench.pictures.lettering import figure_text
from helixbench.records import csv_text
from helixbench.report.plots.style import COLOURS, TITLE, TWO_COLUMNS, axes_grid, legend
from helixbench.report.run_folder import BASE_LABEL, STAGES, Job, RunFolder

SHARED = "shared"
"""Label of the bar of the data and the base model."""

CSV_COLUMNS = (
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


def draw(folder: RunFolder, jobs: list[Job]) -> Figure:
    """Hours by stage, largest memory of a job, and disk, a bar per method; the data and the base
    model are shared.
    """
    by_label: dict[str, list[Job]] = {SHARED: [], **{x: [] for x in folder.labels.values()}}
    for job in jobs:
        label = SHARED if job.method in ("", BASE_LABEL) else job.method
        by_label.setdefault(label, []).append(job)
    for label in by_label.keys() - {SHARED, *folder.labels.values()}:
        del by_label[label]  # comparators have no pairs, and no bar
    labels, rows = list(by_label), range(len(by_label))
    figure, axes = axes_grid(1, 3, TWO_COLUMNS, 0.9 + 0.22 * len(labels), sharey=True)
    hours, memory, disk = axes[0]
    seconds = {
        stage: np.array(
            [
                sum(job.facts["cost"]["wall_s"] for job in own if job.stage == stage)
                for own in by_label.values()
            ]
        )
        for stage in STAGES
    }
    unit, per = ("hours", 3600) if sum(seconds.values()).max() > 5400 else ("minutes", 60)
    left, handles = np.zeros(len(labels)), {}
    for i, stage in enumerate(STAGES):
        values = seconds[stage] / per
        handles[stage] = hours.barh(rows, values, left=left, color=COLOURS[i], height=0.7)
        left += values
    peaks = [
        max((job.facts["cost"]["peak_rss_mib"] for job in own), default=0) / 1024
        for own in by_label.values()
    ]
    sizes = [sum(job.bytes for job in own) / 2**30 for own in by_label.values()]
    memory.barh(rows, peaks, color="#777777", height=0.7)
    disk.barh(rows, sizes, color="#777777", height=0.7)
    hours.set_title(f"{unit}, all jobs", **TITLE)
    memory.set_title("largest job [GiB]", **TITLE)
    disk.set_title("disk [GiB]", **TITLE)
    hours.set_yticks(rows, list(map(figure_text, labels)), fontsize=7)
    hours.set_ylim(len(labels) - 0.4, -0.6)
    legend(figure, handles)
    return figure


def as_csv(jobs: list[Job]) -> str:
    """One row per job: stage, method, data set, category, seed, seconds, peak memory [MiB], bytes,
    device.
    """
    rows: list[tuple] = [CSV_COLUMNS]
    for job in jobs:
        spent, seed = job.facts["cost"], "" if job.seed is None else job.seed
        what = (job.stage, job.method, job.dataset, job.category, seed)
        rows.append(
            (*what, spent["wall_s"], spent["peak_rss_mib"], job.bytes, job.facts.get("device", ""))
        )
    return csv_text(rows)
