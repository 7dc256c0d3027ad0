"""The mask quality gate: which generated masks are drawn again."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from helixbench.schema import Gate


def longest_run(line: np.ndarray) -> int:
    """Length of the longest run of True in a 1-D bool array."""
    return max((sum(1 for _ in group) for value, group in groupby(line.tolist()) if value), default=0)


def verdict(mask: np.ndarray, gate: Gate) -> str:
    """`ok`, or why a (H, W) bool mask fails: `empty`, `small`, `large`, `border` (a long run along a picture side)."""
    area = float(mask.mean())
    if area == 0:
        return "empty"
    if area < gate.min_area:
        return "small"
    if area > gate.max_area:
        return "large"
    sides = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    if max(longest_run(side) / len(side) for side in sides) > gate.max_border:
        return "border"
    return "ok"
