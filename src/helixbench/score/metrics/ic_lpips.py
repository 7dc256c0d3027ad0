"""IC-LPIPS against the real pictures that the generator saw, and how many of them no pair, or a
single one, is nearest to.
"""

from __future__ import annotations

import logging
from importlib.metadata import version

import numpy as np

from helixbench.catalogue import Metric
from helixbench.protocol import Protocol
from helixbench.score.case import Case, Number, Pictures
from helixbench.weights import LITE0

log = logging.getLogger(__name__)

METRIC = Metric("ic_lpips", "IC-LPIPS", printed="IC-LPIPS", digits=2, percent=False)
EMPTY = Metric("ic_lpips_empty_clusters", digits=0, percent=False, summed=True)
SINGLE = Metric("ic_lpips_single_clusters", digits=0, percent=False, summed=True)
METRICS = (METRIC, EMPTY, SINGLE)


def measure(case: Case) -> list[Number]:
    """The score, mean and standard deviation over shuffles, and the counts of its clusters."""
    found, counts = score(METRIC, case, case.pairs, case.anchors)
    return [*found, *counts]


def score(
    metric: Metric,
    case: Case,
    pairs: Pictures,
    anchors: Pictures,
    /,
    *,
    network: str | None = None,
    cap: int | None = None,
    zero: bool = False,
    **facts: str,
) -> tuple[list[Number], list[Number]]:
    """IC-LPIPS of some pictures against some anchors, and the numbers of its empty clusters and
    of those with a single picture. Nothing where no two pictures share an anchor: what no distance
    was measured for has none.

    network, cap: in place of the configured ones; zero: whether clusters without a pair count 0;
    facts: what else the protocol is to say.
    """
    from helixbench.score import networks
    from helixbench.score.ic_lpips import ic_lpips

    config = case.config.ic_lpips
    network, cap = network or case.instruments.lpips_network, cap or config.cap
    result = ic_lpips(
        pairs.images,
        anchors.images,
        case.instruments.lpips(network),
        cap=cap,
        shuffles=config.shuffles,
        seed=case.seed,
    )
    library = "timm" if network == LITE0 else "lpips"
    protocol = Protocol(
        "ic_lpips",
        {
            "library": f"{library} {version(library)}",
            **networks.facts(network),
            "anchors": "generator",
            "cap": cap,
            "shuffles": config.shuffles,
            "size": case.size,
            # of the pairs that were asked for: some may show nothing to score
            "n": len(case.pairs),
            **({"zero": True} if zero else {}),
            **facts,
        },
    )
    scores, n = result.with_zeros if zero else result.scores, len(pairs)
    counts = [
        Number(EMPTY, result.empty_clusters, None, n, protocol.having(counts="empty")),
        Number(SINGLE, result.single_clusters, None, n, protocol.having(counts="single")),
    ]
    unseen = result.empty_clusters + result.single_clusters == result.clusters
    if len(pairs) and unseen and not zero:  # of no picture at all, 0 is what the method has earned
        log.warning("%s is left out: no two pictures share an anchor", metric.key)
        return [], counts
    mean, std = float(np.mean(scores)), float(np.std(scores))
    return [Number(metric, mean, std, n, protocol, scores)], counts
