"""The held-out real pictures, and what any detector's anomaly maps are worth on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helixbench.detect import curves
from helixbench.detect.sheet import write_sheet
from helixbench.errors import UserError
from helixbench.metrics import Ranking
from helixbench.pictures.prepared import bilinear_masks, sample_images, sample_masks
from helixbench.provenance import write_text
from helixbench.records import ALL, GOOD, Sample

_SHOWN = 3
"""Test pictures of each defect type on the sheet."""


@dataclass(frozen=True)
class Reading:
    """How the true masks are read and PRO is taken, with the schema's defaults.

    ground_truth: `exact` or `full_value`; pro_limit: false-positive rate up to which PRO is
    integrated, in (0, 1]; pro_thresholds: how many it takes, None: all.
    """

    ground_truth: str = "exact"
    pro_limit: float = 0.3
    pro_thresholds: int | None = None

    def facts(self) -> dict[str, Any]:
        """Facts of a protocol: what differs from the defaults."""
        values, usual = dataclasses.asdict(self), dataclasses.asdict(Reading())
        return {name: value for name, value in values.items() if value != usual[name]}


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures: good ones first, then by defect type.

    images: (n, H, W, 3) uint8; masks: (n, H, W) bool, anomalous pixels; regions: (n, H, W) bool,
    the masks whose regions PRO takes, `masks` itself where the ground truth is exact.
    """

    samples: list[Sample]
    images: np.ndarray
    masks: np.ndarray
    regions: np.ndarray
    reading: Reading

    @classmethod
    def read(
        cls, prepared: Path, samples: Sequence[Sample], reading: Reading = Reading()
    ) -> HeldOut:
        """The test part of a prepared category. UserError without a good or a defective picture,
        and for a defective one without a mask.
        """
        tests = sorted(
            (s for s in samples if s.tests), key=lambda s: (s.defect != GOOD, s.defect, s.id)
        )
        for kind, is_good in (("normal", True), ("defective", False)):
            if not any((s.defect == GOOD) == is_good for s in tests):
                raise UserError(
                    f"{prepared / 'samples.csv'}: no {kind} picture has role test; metrics need "
                    f"both"
                )
        images = sample_images(prepared, tests)
        masks = sample_masks(prepared, tests, images.shape[1:3])
        for sample, mask in zip(tests, masks, strict=True):
            if sample.defect != GOOD and not mask.any():
                raise UserError(
                    f"{prepared / (sample.mask or sample.image)}: a defective test picture without "
                    f"a mask; give it one"
                )
        if reading.ground_truth == "exact":
            return cls(tests, images, masks, masks, reading)
        grey = bilinear_masks(prepared, tests, images.shape[1:3])
        return cls(tests, images, grey == 255, grey > 0, reading)

    @property
    def defects(self) -> np.ndarray:
        """Defect type of each picture, (n,) str."""
        return np.array([sample.defect for sample in self.samples])

    def measure(
        self, maps: np.ndarray, scores: np.ndarray
    ) -> dict[str, tuple[int, dict[str, float]]]:
        """Pictures and metrics in percent by defect type: each against good, and `all` over all
        test pictures.

        maps: (n, H, W), scores: (n,), any range, higher is more anomalous. Raises UserError for
        values that are not finite, and where no pixel is left of a defect type.
        """
        defects, metrics = self.defects, {}
        for defect in (*sorted(set(defects) - {GOOD}), ALL):
            chosen = (defects == GOOD) | (defects == defect) | (defect == ALL)
            try:
                metrics[defect] = int(chosen.sum()), self._evaluate(chosen, maps, scores)
            except ValueError as error:
                exact = self.reading.ground_truth == "exact"
                hint = "" if exact else "; set detect.localization.ground_truth: exact"
                raise UserError(
                    f"test pictures of {defect}: the metrics are not defined, {error}{hint}"
                ) from None
        return metrics

    def _evaluate(
        self, chosen: np.ndarray, maps: np.ndarray, scores: np.ndarray
    ) -> dict[str, float]:
        """Metrics in percent over the chosen pictures, (n,) bool. Raises ValueError where one is
        not defined.
        """
        masks, maps = self.masks[chosen], maps[chosen]
        image, pixel = Ranking(scores[chosen], self.defects[chosen] != GOOD), Ranking(maps, masks)
        regions, overlap = masks, pixel
        if self.regions is not self.masks:
            regions = self.regions[chosen]
            overlap = Ranking(maps, regions)
        reading = self.reading
        values = {
            "image_auroc": image.auroc(),
            "image_ap": image.average_precision(),
            "pixel_auroc": pixel.auroc(),
            "pixel_ap": pixel.average_precision(),
            "pro": overlap.pro(regions, reading.pro_limit, reading.pro_thresholds),
            "f1_max": pixel.f1_max(),
        }
        return {name: 100 * value for name, value in values.items()}

    def write(
        self,
        out: Path,
        maps: np.ndarray,
        scores: np.ndarray,
        display: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Write out/predictions.png, the first pictures of each defect type, and out/curves.csv.

        maps, scores: as `measure` takes them; display: values at the colour scale's ends.
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
        defective = self.defects != GOOD
        write_text(
            out / "curves.csv",
            curves.as_csv(curves.curves(maps, self.masks, self.regions, scores, defective)),
        )
