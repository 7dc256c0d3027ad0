"""How far masks follow the raw masks that their method was given, in percent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from helixbench.catalogue import Metric
from helixbench.pictures.raw_mask import cells_to_mask
from helixbench.protocol import Protocol
from helixbench.records import Pair, Sample, parse_cells
from helixbench.score.case import Case, Number

SHARE = Metric("mask_in_cells", "mask in cells", table=1)
IOU = Metric("mask_cells_iou", "IoU of mask and cells", table=1)
REAL_IOU = Metric("mask_cells_iou_real", "IoU of mask and cells of real pictures")
METRICS = (SHARE, IOU, REAL_IOU)


def mask_in_cells(masks: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each mask that is not empty, its share in the cells of its raw mask and its IoU with them.

    masks, cells: (n, H, W) bool -> two arrays (m,) in [0, 1]. A mask that is clipped or copied from
    its cells has a share of 1, so the IoU tells it from one that was refined: real masks fill a
    part of their cells.
    """
    kept = masks.any((1, 2))
    masks, cells = masks[kept], cells[kept]
    both = (masks & cells).sum((1, 2))
    return both / masks.sum((1, 2)), both / (masks | cells).sum((1, 2))


def measure(case: Case) -> list[Number]:
    """Means over the pairs, beside the IoU of the real masks that the generator saw; nothing for a
    method that was given no raw masks.
    """
    if not case.follows_cells:
        return []
    masks = case.pairs.masks
    share, iou = mask_in_cells(masks, _cells(case.pair_rows, masks.shape))
    rows = [(SHARE, share, {}), (IOU, iou, {})]
    if case.seen.any():  # the share of real masks is 100 by definition
        seen = [sample for sample in case.real_rows if sample.defect_trains]
        real_masks = case.anchors.masks
        _, real_iou = mask_in_cells(real_masks, _cells(seen, real_masks.shape))
        rows.append((REAL_IOU, real_iou, {"of": "real"}))
    k = parse_cells(case.pair_rows[0].raw_mask)[0]
    return [
        Number(
            metric,
            100 * float(values.mean()),
            None,
            len(values),
            Protocol((SHARE if metric is SHARE else IOU).key, {"cells": k, **facts}),
        )
        for metric, values, facts in rows
        if len(values)
    ]


def _cells(rows: Sequence[Pair] | Sequence[Sample], shape: tuple[int, ...]) -> np.ndarray:
    """Raw masks of manifest rows as (n, H, W) bool."""
    return np.stack([cells_to_mask(*parse_cells(row.raw_mask), shape[-2:]) for row in rows])
