"""`summary.json`: the averages of a run for `dvc metrics`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from helixbench.config import Slice
from helixbench.provenance import write_json
from helixbench.report.measured import collect
from helixbench.report.published import AVERAGE


def run(config: Slice, *, scores: Iterable[Path], out: Path) -> None:
    """Write data set -> method -> metric -> mean over categories and seeds; several protocols of
    one metric are told apart.

    Only complete averages are in it. Undefined numbers are left out: JSON has none.
    """
    entries = [
        entry
        for entry in collect(scores, config)
        if entry.category == AVERAGE and math.isfinite(entry.mean)
    ]
    count: dict[tuple, int] = {}
    tree: dict = {}
    for entry in entries:
        key = (entry.dataset, entry.label, entry.metric)
        count[key] = count.get(key, 0) + 1
        name = entry.metric if count[key] == 1 else f"{entry.metric} ({count[key]})"
        tree.setdefault(entry.dataset, {}).setdefault(entry.label, {})[name] = round(entry.mean, 6)
    write_json(out, tree)
