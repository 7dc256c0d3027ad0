"""What a metric of pairs is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from helixbench.catalogue import Metric
from helixbench.protocol import Protocol
from helixbench.records import Pair, Sample
from helixbench.schema import ScoreSection

if TYPE_CHECKING:
    from helixbench.score.inception import Features
    from helixbench.score.instruments import Instruments


@dataclass(frozen=True)
class Pictures:
    """Pictures (n, H, W, 3) uint8 with masks (n, H, W) bool."""

    images: np.ndarray
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: np.ndarray) -> Pictures:
        return Pictures(self.images[chosen], self.masks[chosen])


@dataclass(eq=False)
class Case:
    """The pairs of one defect type beside its real pictures.

    pairs, real: pictures in the order of their manifest rows, `pair_rows` and `real_rows`.
    follows_cells: whether the method was given the raw masks that the pair rows name. split: rule
    of the split; seed: of this category; config: section `score`; instruments: networks and normal
    pictures, loaded once per category.
    """

    pair_rows: Sequence[Pair]
    pairs: Pictures
    real_rows: Sequence[Sample]
    real: Pictures
    follows_cells: bool
    split: str
    seed: int
    config: ScoreSection
    instruments: Instruments

    @property
    def size(self) -> int:
        """Height of the pictures [pixel]."""
        return self.pairs.images.shape[1]

    @property
    def seen(self) -> np.ndarray:
        """Which real pictures the generator saw, (n,) bool."""
        return np.array([sample.defect_trains for sample in self.real_rows], bool)

    @cached_property
    def anchors(self) -> Pictures:
        """The real pictures that the generator saw."""
        return self.real[self.seen]

    @cached_property
    def features(self) -> Features:
        """Logits and pooled features of the pairs, by the network of the Inception Score."""
        return self.instruments.inception.features(self.pairs.images)

    @cached_property
    def real_features(self) -> Features:
        """The same of all real pictures."""
        return self.instruments.inception.features(self.real.images)


@dataclass(frozen=True)
class Number:
    """A metric of one defect type before it becomes a score row.

    n: pictures behind it; protocol: without the split and the settings of the pairs, which the
    stage adds; scores: its repetitions over seeded shuffles, if it has any.
    """

    metric: Metric
    value: float
    std: float | None
    n: int
    protocol: Protocol
    scores: tuple[float, ...] = ()
