"""Curves behind a detector's metrics, thinned for plots: ROC and precision-recall of pictures and
pixels, PRO.
"""

from __future__ import annotations

import numpy as np

from helixbench.metrics import Ranking, region_weights
from helixbench.records import csv_text

POINTS = 200
"""Points kept of a curve, evenly spread along x; its ends are always kept."""

COLUMNS = ("curve", "x", "y")


def curves(
    maps: np.ndarray, masks: np.ndarray, regions: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (x, y), both in [0, 1]; x: false-positive rate or recall, y: true-positive rate,
    precision or mean region overlap.

    maps, masks: (n, H, W) anomaly maps and ground truth; regions: the masks that PRO takes, usually
    `masks` itself; scores, labels: (n,) of the pictures. Both classes must be there.
    """
    found = {}
    pixel = Ranking(maps, masks)
    for name, ranking in (("image", Ranking(scores, labels)), ("pixel", pixel)):
        recall = ranking.true_positives / ranking.positives
        rate = ranking.false_positives / ranking.negatives
        precision = ranking.true_positives / (ranking.true_positives + ranking.false_positives)
        found[f"{name}_roc"] = thin(np.append(0, rate), np.append(0, recall))
        found[f"{name}_pr"] = thin(np.append(0, recall), np.append(precision[0], precision))
    ranking = pixel if regions is masks else Ranking(maps, regions)
    overlap = np.cumsum(region_weights(regions).ravel()[ranking.order])[ranking.ends]
    found["pro"] = thin(
        np.append(0, ranking.false_positives / ranking.negatives), np.append(0, overlap)
    )
    return found


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `points` of a curve with rising x; steep parts keep theirs by the spread of
    y.
    """
    if len(x) <= points:
        return x, y
    along = np.cumsum(np.append(0, np.hypot(np.diff(x), np.diff(y))))
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)).clip(0, len(x) - 1))
    kept = np.unique(np.append(kept, [0, len(x) - 1]))
    return x[kept], y[kept]


def as_csv(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """One row a point."""
    points = [
        (name, f"{a:.5f}", f"{b:.5f}")
        for name, (x, y) in found.items()
        for a, b in zip(x, y, strict=True)
    ]
    return csv_text([COLUMNS, *points])
