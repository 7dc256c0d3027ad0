"""What tables, figures and stages must know about a metric; the metrics themselves stand where they
are computed, in `score/metrics/` and `detect/metrics.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """Facts about a metric.

    key: its name in score files; title: in tables and figures, the key where it is empty; printed:
    its name in the paper's tables and ours, the key where it is empty. digits: decimals shown;
    percent: whether its values are from 0 to 100. table: the table of the paper below which it
    stands as "also measured", 0 for none; a metric that the paper prints stands where it is
    printed. summed: whether the number of a category is the sum over its defect types, not the
    mean.
    """

    key: str
    title: str = ""
    printed: str = ""
    digits: int = 1
    percent: bool = True
    higher_is_better: bool = True
    table: int = 0
    summed: bool = False

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.printed or self.key

    @property
    def heading(self) -> str:
        """Its title, with a word where low is good."""
        return (self.title or self.name) + ("" if self.higher_is_better else " (low is good)")
