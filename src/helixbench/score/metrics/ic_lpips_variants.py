"""IC-LPIPS as others compute it (`score.ic_lpips.variants`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from helixbench.catalogue import Metric
from helixbench.records import Sample
from helixbench.score.case import Case, Number
from helixbench.score.metrics.ic_lpips import score
from helixbench.weights import weights_file

log = logging.getLogger(__name__)


class Variant(NamedTuple):
    """network: replaced by the configured one where its weights are not here; zero: whether
    clusters without a pair count 0.
    """

    metric: Metric
    network: str
    cap: int
    anchors: Literal["generator", "all", "third"]
    zero: bool = False


def _metric(key: str, title: str, table: int = 1) -> Metric:
    return Metric(f"ic_lpips_{key}", title, digits=2, percent=False, table=table)


VARIANTS = {
    "anomalydiffusion": Variant(
        _metric("anomalydiffusion", "IC-LPIPS as AnomalyDiffusion"), "vgg", 50, "third"
    ),
    "seas": Variant(_metric("seas", "IC-LPIPS as SeaS"), "vgg", 140, "generator"),
    "dfmgan": Variant(_metric("dfmgan", "IC-LPIPS as DFMGAN"), "alex", 200, "all"),
    "dfmgan_zero": Variant(
        _metric("dfmgan_zero", "IC-LPIPS as DFMGAN, 0 without a pair", 0), "alex", 200, "all", True
    ),
}
METRICS = tuple(variant.metric for variant in VARIANTS.values())


def first_third(samples: Sequence[Sample]) -> np.ndarray:
    """Which of a defect type's real pictures are the first floor(n/3) by file name, (n,) bool.

    AnomalyDiffusion and DualAnoDiff take them as anchors. The split does not change them.
    """
    order = sorted(range(len(samples)), key=lambda i: (samples[i].source, samples[i].id))
    chosen = np.zeros(len(samples), bool)
    chosen[order[: len(samples) // 3]] = True
    return chosen


def measure(case: Case) -> list[Number]:
    """The scores of the variants asked for, without those that have no anchor."""
    numbers = []
    for name in case.config.ic_lpips.variants:
        metric, network, cap, which, zero = VARIANTS[name]
        if not weights_file(network).is_file():
            network = case.instruments.lpips_network
        if which == "generator":
            anchors = case.anchors
        else:
            anchors = case.real if which == "all" else case.real[first_third(case.real_rows)]
        if not len(anchors):
            log.warning("%s is left out: no real picture for an anchor", metric.key)
            continue
        how = {"network": network, "cap": cap, "zero": zero, "anchors": which}
        numbers += score(metric, case, case.pairs, anchors, **how)[0]
    return numbers
