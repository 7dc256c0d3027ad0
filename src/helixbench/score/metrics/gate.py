"""What the mask gate still refuses, and how often it asked for another draw."""

from __future__ import annotations

from helixbench.catalogue import Metric
from helixbench.protocol import Protocol
from helixbench.score.case import Case, Number

FAILED = Metric("gate_failed", digits=0, percent=False, higher_is_better=False, summed=True)
REDRAWS = Metric("redraws", digits=0, percent=False, higher_is_better=False, summed=True)
METRICS = (FAILED, REDRAWS)


def measure(case: Case) -> list[Number]:
    """Two counts."""
    pairs = case.pair_rows
    counts = {
        FAILED: sum(pair.gate != "ok" for pair in pairs),
        REDRAWS: sum(pair.redraws for pair in pairs),
    }
    return [
        Number(metric, count, None, len(pairs), Protocol(metric.key))
        for metric, count in counts.items()
    ]
