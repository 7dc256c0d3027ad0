"""IC-LPIPS of the defects alone: pairs and anchors cropped around their masks."""

from __future__ import annotations

from helixbench.catalogue import Metric
from helixbench.score.case import Case, Number, Pictures
from helixbench.score.metrics.ic_lpips import score

METRIC = Metric("ic_lpips_defect", "IC-LPIPS of the defects", digits=2, percent=False, table=1)
METRICS = (METRIC,)


def measure(case: Case) -> list[Number]:
    """The score; nothing where no anchor has a mask, or `score.ic_lpips.defect` is off."""
    from helixbench.score.ic_lpips import defect_crops

    if not case.config.ic_lpips.defect or not case.anchors.masks.any():
        return []
    pairs, anchors = (
        Pictures(defect_crops(pictures.images, pictures.masks), pictures.masks)
        for pictures in (case.pairs, case.anchors)
    )
    return score(METRIC, case, pairs, anchors, crop="defect")[0]
