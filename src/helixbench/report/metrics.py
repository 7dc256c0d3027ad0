"""All metrics by the names that tables give them: the catalogue, gathered from where they are
computed.
"""

from __future__ import annotations

from functools import cache

from helixbench.catalogue import Metric
from helixbench.detect import metrics as of_detectors
from helixbench.score import metrics as of_pairs


@cache
def catalogue() -> dict[str, Metric]:
    """Metric by its name in tables; ValueError where two share one."""
    metrics = [*of_pairs.catalogue(), *of_detectors.METRICS]
    found = {metric.name: metric for metric in metrics}
    if len(found) != len(metrics):
        raise ValueError("two metrics have one name")
    return found


@cache
def by_key() -> dict[str, Metric]:
    """Metric by its name in score files."""
    return {metric.key: metric for metric in catalogue().values()}


def about(name: str) -> Metric:
    """The facts of a metric; of an unknown one its name alone."""
    return catalogue().get(name) or Metric(name)


def also_measured(number: int) -> tuple[str, ...]:
    """Metrics that a table of the paper does not print and that stand below it."""
    return tuple(name for name, metric in catalogue().items() if metric.table == number)
