"""The held-out real pictures, and what any detector's anomaly maps are worth on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helixbench.detect import curves, data, localization
from helixbench.detect.sheet import write_sheet
from helixbench.errors import UserError
from helixbench.pictures.prepared import bilinear_masks
from helixbench.provenance import write_text
from helixbench.records import ALL, GOOD, Sample

_SHOWN = 3
"""Test pictures of each defect type on the sheet."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures (n, H, W, 3) uint8; masks (n, H, W) bool for pixel metrics, and those whose
    regions PRO takes.
    """

    samples: list[Sample]
    images: np.ndarray
    masks: np.ndarray
    regions: np.ndarray
    ground_truth: str

    @classmethod
    def read(cls, prepared: Path, samples: Sequence[Sample], ground_truth: str) -> HeldOut:
        """The test part of a prepared category; ground_truth: `exact` or `full_value`, as in the
        schema.
        """
        tests, images, masks = data.test_set(prepared, samples)
        if ground_truth == "exact":
            return cls(tests, images, masks, masks, ground_truth)
        grey = bilinear_masks(prepared, tests, images.shape[1:3])
        return cls(tests, images, grey == 255, grey > 0, ground_truth)

    def measure(
        self,
        maps: np.ndarray,
        scores: np.ndarray,
        pro_limit: float,
        pro_thresholds: int | None = None,
    ) -> dict[str, tuple[int, dict[str, float]]]:
        """Pictures and metrics by defect type: each against good, and `all` over all test pictures.

        maps: (n, H, W), scores: (n,), higher is more anomalous; the others as in the schema. Raises
        UserError for values that are not finite, and where no pixel is left of a defect type.
        """
        defects = np.array([s.defect for s in self.samples])
        found = {}
        for defect in (*sorted(set(defects) - {GOOD}), ALL):
            chosen = (
                np.ones(len(defects), bool)
                if defect == ALL
                else (defects == GOOD) | (defects == defect)
            )
            masks = self.masks[chosen]
            regions = masks if self.regions is self.masks else self.regions[chosen]
            try:
                metrics = localization.evaluate(
                    maps[chosen],
                    masks,
                    regions,
                    scores[chosen],
                    defects[chosen] != GOOD,
                    pro_limit,
                    pro_thresholds,
                )
            except ValueError as error:
                hint = (
                    ""
                    if self.ground_truth == "exact"
                    else "; set detect.localization.ground_truth: exact"
                )
                raise UserError(
                    f"test pictures of {defect}: the metrics are not defined, {error}{hint}"
                ) from None
            found[defect] = (int(chosen.sum()), metrics)
        return found

    def write(
        self,
        out: Path,
        maps: np.ndarray,
        scores: np.ndarray,
        display: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """out/predictions.png, the first pictures of each defect type, and out/curves.csv; display:
        values of the colour scale's ends.
        """
        indices: dict[str, list[int]] = {}
        for i, sample in enumerate(self.samples):
            indices.setdefault(sample.defect, []).append(i)
        shown = [i for group in indices.values() for i in group[:_SHOWN]]
        titles = [
            f"{self.samples[i].defect} {self.samples[i].id}  score {scores[i]:.3f}" for i in shown
        ]
        low, high = display
        heat = ((maps[shown] - low) / max(high - low, 1e-12)).clip(0, 1)
        write_sheet(out / "predictions.png", self.images[shown], self.masks[shown], heat, titles)
        defective = np.array([sample.defect != GOOD for sample in self.samples])
        write_text(
            out / "curves.csv",
            curves.as_csv(curves.curves(maps, self.masks, self.regions, scores, defective)),
        )
