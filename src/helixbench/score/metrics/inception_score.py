"""Inception Score (Salimans et al., 2016) through torch-fidelity."""

from __future__ import annotations

import logging
from importlib.metadata import version

from helixbench.catalogue import Metric
from helixbench.protocol import Protocol
from helixbench.score.case import Case, Number

log = logging.getLogger(__name__)

METRIC = Metric("inception_score", "IS", printed="IS", digits=2, percent=False)
METRICS = (METRIC,)


def measure(case: Case) -> list[Number]:
    """Mean and standard deviation over splits of the pairs; nothing of a single one, which has the
    least score whatever it shows.
    """
    if len(case.pairs) < 2:
        log.warning("the Inception Score is left out: it needs two pictures")
        return []
    from helixbench.score import networks

    scorer, asked = case.instruments.inception, case.config.inception_score.splits
    value, std, used = scorer.inception_score(case.features, asked)
    protocol = Protocol(
        METRIC.key,
        {
            "library": f"torch-fidelity {version('torch-fidelity')}",
            **networks.facts(scorer.network),
            "splits": used,
            **({} if used == asked else {"splits_asked": asked}),
            "size": case.size,
            "n": len(case.pairs),
        },
    )
    return [Number(METRIC, value, std, len(case.pairs), protocol)]
