"""Image-mask agreement in percent (score/alignment.py), beside its floor, the pairs with one
another's masks, and its ceiling, the real pictures that the generator saw.
"""

from __future__ import annotations

from helixbench.catalogue import Metric
from helixbench.protocol import Protocol
from helixbench.score.case import Case, Number

METRIC = Metric("mask_agreement", "image-mask agreement", table=1)
SHUFFLED = Metric("mask_agreement_shuffled", "image-mask agreement, masks shuffled")
REAL = Metric("mask_agreement_real", "image-mask agreement of real pictures")
METRICS = (METRIC, SHUFFLED, REAL)


def measure(case: Case) -> list[Number]:
    """Means over the pairs; nothing where there are no normals to compare with."""
    agreement, config = case.instruments.agreement, case.config.mask_agreement
    if agreement is None:
        return []
    protocol = Protocol(
        METRIC.key,
        {
            "neighbours": config.neighbours,
            "size": min(config.size, case.size),
            "shift": config.shift,
        },
    )
    pairs = agreement(case.pairs.images, case.pairs.masks)
    rows = [(METRIC, pairs.own, {}), (SHUFFLED, pairs.shuffled, {"masks": "next"})]
    if case.anchors.masks.any():
        real = agreement(case.anchors.images, case.anchors.masks)
        rows.append((REAL, real.own, {"of": "real"}))
    return [
        Number(metric, 100 * float(values.mean()), None, len(values), protocol.having(**facts))
        for metric, values, facts in rows
    ]
