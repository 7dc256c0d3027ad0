"""Kernel Inception Distance (Binkowski et al., 2018) of the pairs to all real pictures of the
defect type, through torch-fidelity.
"""

from __future__ import annotations

import logging
from importlib.metadata import version

from helixbench.catalogue import Metric
from helixbench.protocol import Protocol
from helixbench.score.case import Case, Number

log = logging.getLogger(__name__)

METRIC = Metric("kid", "KID", digits=4, percent=False, higher_is_better=False, table=1)
METRICS = (METRIC,)


def measure(case: Case) -> list[Number]:
    """Mean and standard deviation over subsets; nothing where a side has fewer than two."""
    from helixbench.score import networks

    if min(len(case.pairs), len(case.real)) < 2:
        log.warning("KID is left out: it needs two pictures on either side")
        return []
    scorer, config = case.instruments.inception, case.config.kid
    value, std, _ = scorer.kid(
        case.features, case.real_features, config.subsets, config.subset_size
    )
    # The number of real pictures, and so the size of the subsets, differs from type to type: they
    # are no facts of the protocol.
    protocol = Protocol(
        METRIC.key,
        {
            "library": f"torch-fidelity {version('torch-fidelity')}",
            **networks.facts(scorer.network),
            "reference": "all",
            "subsets": config.subsets,
            "subset_size": config.subset_size,
            "size": case.size,
            "n": len(case.pairs),
        },
    )
    return [Number(METRIC, value, std, len(case.pairs), protocol)]
