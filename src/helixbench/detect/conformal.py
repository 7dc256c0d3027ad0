"""The threshold that keeps its promise: split-conformal, from scores of normal pictures that
trained nothing.

Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005; the distribution given the
calibration pictures: Vovk, Conditional validity of inductive conformal predictors, 2012.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helixbench.errors import UserError
from helixbench.provenance import check_recorded, read_object, write_json

FILE = "threshold.json"
DIGITS = 5
"""Decimals of a threshold, rounded up: a score whose last bits another machine gives otherwise is
on the same side of it."""


@dataclass(frozen=True)
class Threshold:
    """A score above which a picture is called defective.

    value: in [0, 1]; rate: share of normal pictures that may be above it, in (0, 1), and n: normal
    pictures that it was chosen on; both None for a threshold given by hand.
    """

    value: float
    rate: float | None = None
    n: int | None = None


def smallest_rate(n: int) -> float:
    """The smallest rate of false alarms that n calibration pictures can promise."""
    return 1 / (n + 1)


def needed(rate: float) -> int:
    """How many calibration pictures it takes to promise a rate in (0, 1)."""
    return math.ceil(1 / rate - 1 - 1e-9)


def check(n: int, rate: float, advice: str) -> None:
    """UserError, ending in `advice`, where n pictures cannot promise the rate."""
    if n < needed(rate):
        least = math.ceil(1000 * smallest_rate(n)) / 1000
        raise UserError(
            f"with {n} normals for calibration no rate of false alarms below {100 * least:.1f} % "
            f"can be promised, not {100 * rate:g} %, which takes {needed(rate)}; {advice}"
        )


def threshold(scores: Mapping[str, float], rate: float, advice: str = "") -> Threshold:
    """The k-th smallest of n scores, k = ceil((n + 1) (1 - rate)).

    A new normal picture, exchangeable with these, is above it with probability at most `rate`. Over
    the draw of the calibration pictures the share of false alarms is Beta(n + 1 - k, k), and their
    number among m new ones beta-binomial. UserError, ending in `advice`, for a rate that n pictures
    cannot promise.
    """
    n = len(scores)
    check(n, rate, advice)
    above = math.floor((n + 1) * rate + 1e-9)
    score = sorted(scores.values())[n - above]
    return Threshold(math.ceil(score * 10**DIGITS) / 10**DIGITS, rate, n)


def write(folder: Path, found: Threshold, scores: Mapping[str, float]) -> None:
    """threshold.json: the threshold, its promise, and the scores that it was chosen on."""
    n = len(scores)
    promise = {"threshold": found.value, "false_alarms": found.rate, "n": n}
    write_json(
        folder / FILE, {**promise, "smallest_rate": smallest_rate(n), "scores": dict(scores)}
    )


def read(folder: Path, rate: float | None = None) -> Threshold | None:
    """The threshold of a detector's folder, None where it has none; that of another `rate` where
    one is given. UserError for a rate that cannot be promised, and for an altered file.
    """
    file = folder / FILE
    if not file.is_file():
        if rate is None:
            return None
        raise UserError(
            f"{folder}: no {FILE}, as its run kept no normals for calibration; set "
            f"prepare.calibration and run again, or give a --threshold"
        )
    check_recorded(file, folder / "manifest.json")
    scores, usual = read_object(
        file,
        "run detect again",
        lambda made: (
            {str(name): float(score) for name, score in made["scores"].items()},
            float(made["false_alarms"]),
        ),
    )
    return threshold(scores, rate or usual, "give a larger --false-alarms")
