"""The mask quality gate: which generated masks are drawn again, by limits that real masks keep."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from helixbench.schema import Gate


@dataclass(frozen=True)
class Limits:
    """Limits of one defect type.

    min_area, max_area: share of the picture, in [0, 1]; max_border: longest run along a picture
    side, share of the side, in [0, 1]; real_masks: how many real masks they were learned from, 0
    for the configured limits.
    """

    min_area: float
    max_area: float
    max_border: float
    real_masks: int = 0


def longest_run(line: np.ndarray) -> int:
    """Length of the longest run of True in a 1-D bool array."""
    runs = (sum(1 for _ in group) for value, group in groupby(line.tolist()) if value)
    return max(runs, default=0)


def border(mask: np.ndarray) -> float:
    """Longest run of a (H, W) bool mask along a picture side, as a share of the side, in [0, 1]."""
    sides = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return max(longest_run(side) / len(side) for side in sides)


def learn(masks: Iterable[np.ndarray], gate: Gate) -> Limits:
    """Configured limits, widened to what real (H, W) bool masks of a defect type show.

    They are never stricter than the configured ones, and `margin` times wider than the real masks,
    since generated masks are not to be copies of the few that there are. Empty masks show nothing.
    With `limits: fixed` the configured limits are taken as they are.
    """
    shown = [mask for mask in masks if mask.any()] if gate.limits == "learned" else []
    if not shown:
        return Limits(gate.min_area, gate.max_area, gate.max_border)
    areas = [float(mask.mean()) for mask in shown]
    return Limits(
        min_area=min(gate.min_area, min(areas) / gate.margin),
        max_area=max(gate.max_area, min(1.0, max(areas) * gate.margin)),
        max_border=max(gate.max_border, min(1.0, max(map(border, shown)) * gate.margin)),
        real_masks=len(shown),
    )


def learn_all(masks: Mapping[str, Iterable[np.ndarray]], gate: Gate) -> dict[str, Limits]:
    """Limits by defect type."""
    return {defect: learn(own, gate) for defect, own in masks.items()}


def as_record(limits: Mapping[str, Limits]) -> dict[str, dict[str, float]]:
    """What a manifest.json says of limits by defect type, rounded to six digits."""
    rounded = lambda values: {k: round(v, 6) for k, v in values.items()}
    return {defect: rounded(dataclasses.asdict(own)) for defect, own in limits.items()}


def verdict(mask: np.ndarray, limits: Limits | Gate) -> str:
    """`ok`, or why a (H, W) bool mask fails: `empty`, `small`, `large`, `border`.

    An empty mask fails whatever the limits are; `border` is a long run along a picture side.
    """
    area = float(mask.mean())
    if area == 0:
        return "empty"
    if area < limits.min_area:
        return "small"
    if area > limits.max_area:
        return "large"
    if border(mask) > limits.max_border:
        return "border"
    return "ok"


def reasons(verdicts: Iterable[str]) -> str:
    """E.g. `border 3, small 1`, the most frequent first; empty when all are ok."""
    counted = Counter(one for one in verdicts if one != "ok")
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {n}" for name, n in ordered)


@dataclass(frozen=True)
class Refusals:
    """How many real masks of each defect type there are, and how many the gate would refuse."""

    masks: dict[str, int]
    learned: dict[str, int]
    fixed: dict[str, int]

    @classmethod
    def count(cls, masks: Mapping[str, Sequence[np.ndarray]], gate: Gate) -> Refusals:
        """Of real (H, W) bool masks by defect type."""
        configured = gate.model_copy(update={"limits": "fixed"})
        widened = learn_all(masks, gate.model_copy(update={"limits": "learned"}))

        def refused(limits: Limits | Gate, own: Sequence[np.ndarray]) -> int:
            return sum(verdict(mask, limits) != "ok" for mask in own)

        return cls(
            masks={defect: len(own) for defect, own in masks.items()},
            learned={defect: refused(widened[defect], own) for defect, own in masks.items()},
            fixed={defect: refused(configured, own) for defect, own in masks.items()},
        )

    def line(self) -> str:
        """One line for people."""
        total = sum(self.masks.values())
        share = 100 * sum(self.learned.values()) / total
        text = f"gate: limits learned from {total} real masks refuse {share:.0f} % of them"
        some = [(n, self.masks[defect], defect) for defect, n in self.fixed.items() if n]
        named = [f"{n} of {every} of {defect}" for n, every, defect in some]
        return f"{text}; the fixed ones would refuse {', '.join(named) or 'none, too'}"
