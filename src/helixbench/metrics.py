"""Detection metrics, exact: every distinct score is a threshold, no binning.

One descending sort of the scores (`Ranking`) serves every metric. AUROC and average precision equal
scikit-learn's; PRO is the per-region overlap of Bergmann et al. (CVPR 2020), integrated over the
false-positive rate as in MVTec's evaluation code. All values are in [0, 1]; a metric that is not
defined raises ValueError, none is ever NaN.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_EIGHT = np.ones((3, 3), int)
"""Regions are 8-connected."""


class Ranking:
    """Scores sorted once, highest first, with the labels in that order and the last position of
    each distinct score.

    scores: any shape, finite; labels: the same shape, bool (True: anomalous).
    Raises ValueError for differing shapes, no scores, or scores that are not finite.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray):
        scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
        if scores.shape != labels.shape:
            raise ValueError(f"scores have shape {scores.shape}, labels {labels.shape}")
        if not scores.size:
            raise ValueError("no scores")
        if not np.isfinite(scores).all():
            raise ValueError("scores are not finite")
        flat = scores.ravel()
        self.order = np.argsort(flat)[::-1]  # order within ties is never looked at
        self.scores = flat[self.order]
        self.ends = np.append(np.flatnonzero(self.scores[1:] != self.scores[:-1]), flat.size - 1)
        true = np.cumsum(labels.ravel()[self.order])[self.ends]
        self.true_positives = true.astype(np.float64)
        self.false_positives = self.ends + 1.0 - true
        self.positives, self.negatives = int(true[-1]), int(flat.size - true[-1])

    def need(self, positives: bool = False, negatives: bool = False) -> None:
        """ValueError unless the asked classes are present."""
        if positives and not self.positives:
            raise ValueError("nothing is labelled anomalous")
        if negatives and not self.negatives:
            raise ValueError("nothing is labelled normal")

    def auroc(self) -> float:
        """Area under the ROC curve; ties count one half."""
        self.need(positives=True, negatives=True)
        tpr = np.append(0, self.true_positives / self.positives)
        fpr = np.append(0, self.false_positives / self.negatives)
        return float(np.trapezoid(tpr, fpr))

    def average_precision(self) -> float:
        """Sum of precision times recall gained, over thresholds; no interpolation."""
        self.need(positives=True)
        precision = self.true_positives / (self.true_positives + self.false_positives)
        gained = np.diff(self.true_positives, prepend=0) / self.positives
        return float(np.sum(precision * gained))

    def f1_max(self) -> float:
        """Largest F1 over all thresholds."""
        self.need(positives=True)
        return float(
            np.max(
                2
                * self.true_positives
                / (self.true_positives + self.false_positives + self.positives)
            )
        )

    def pro(
        self,
        masks: np.ndarray,
        limit: float = 0.3,
        thresholds: int | None = None,
    ) -> float:
        """Per-region overlap of the masks (n, H, W) that are the labels; see `pro`."""
        self.need(negatives=True)
        weights = region_weights(masks)
        if thresholds is not None:
            return area_up_to(*self._sampled(weights, thresholds), limit)
        overlap = np.append(0, np.cumsum(weights.ravel()[self.order], dtype=np.float64)[self.ends])
        fpr = np.append(0, self.false_positives / self.negatives)
        return area_up_to(fpr, overlap, limit)

    def _sampled(self, weights: np.ndarray, thresholds: int) -> tuple[np.ndarray, np.ndarray]:
        """False-positive rates, rising from 0 to 1, and mean overlaps at thresholds of equal ranks.

        weights: see `region_weights`. The thresholds are scores of normal pixels, with the lowest
        and the highest; what lies above one is found. The rate is that of the rank: of normal
        pixels with one score some count as above it.
        """
        falling = weights.ravel()[self.order]
        normal = self.scores[falling == 0]
        ranks = np.linspace(0, normal.size - 1, thresholds, dtype=int)[::-1]  # the highest first
        above = self.scores.size - np.searchsorted(
            self.scores[::-1],
            normal[::-1][ranks],
            side="right",
        )
        overlap = np.append(0, np.cumsum(falling))[above]
        return np.append(1 - (ranks + 1) / normal.size, 1), np.append(overlap, 1)


def region_weights(masks: np.ndarray) -> np.ndarray:
    """Masks (n, H, W) bool -> float64 (n, H, W): what each pixel adds to the mean overlap over all
    regions, sum 1.

    Raises ValueError when no mask has a region.
    """
    masks = np.asarray(masks).astype(bool)
    if masks.ndim != 3:
        raise ValueError(f"masks have shape {masks.shape}, not (n, H, W)")
    weights = np.zeros(masks.shape)
    regions = 0
    for weight, mask in zip(weights, masks, strict=True):
        labels, count = ndimage.label(mask, _EIGHT)
        sizes = np.bincount(labels.ravel())
        weight[mask] = 1 / sizes[labels[mask]]
        regions += count
    if not regions:
        raise ValueError("nothing is labelled anomalous")
    return weights / regions


def area_up_to(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Trapezoid area under (x, y), x rising from 0 to 1, up to x = limit (y interpolated there),
    divided by limit.
    """
    if not 0 < limit <= 1:
        raise ValueError(f"limit is {limit}, not in (0, 1]")
    inside = int(np.searchsorted(x, limit, side="right"))
    x_cut, y_cut = x[:inside], y[:inside]
    if inside < len(x) and x_cut[-1] < limit:
        share = (limit - x_cut[-1]) / (x[inside] - x_cut[-1])
        x_cut, y_cut = (
            np.append(x_cut, limit),
            np.append(y_cut, y_cut[-1] + share * (y[inside] - y_cut[-1])),
        )
    return float(np.trapezoid(y_cut, x_cut) / limit)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve, equal to scikit-learn's roc_auc_score. Any equal shapes; ValueError
    for one class.
    """
    return Ranking(scores, labels).auroc()


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision, equal to scikit-learn's average_precision_score. ValueError when nothing
    is anomalous.
    """
    return Ranking(scores, labels).average_precision()


def f1_max(scores: np.ndarray, labels: np.ndarray) -> float:
    """Largest F1 over all distinct thresholds. ValueError when nothing is anomalous."""
    return Ranking(scores, labels).f1_max()


def pro(
    scores: np.ndarray,
    masks: np.ndarray,
    limit: float = 0.3,
    thresholds: int | None = None,
) -> float:
    """Area under mean per-region overlap against pixel false-positive rate up to `limit`, divided
    by `limit`.

    scores, masks: (n, H, W); regions are 8-connected components of each mask and weigh the same
    whatever their size; false positives are counted over all normal pixels of all pictures.
    ValueError when there is no region or no normal pixel.

    thresholds: None: every distinct score. A number: that many scores of normal pixels, at equal
    distances of rank, with straight lines between their points, as the evaluation code of MVTec
    3D-AD has it. AnomalyDiffusion's `au_pro_util.py` takes 100 of them. The curve then starts with
    what lies above every normal pixel, at rate 0, and goes straight to a rate of about 0.01: 1.2 to
    1.4 percent less than exact on smooth maps, whose curve rises steeply there.
    """
    return Ranking(scores, masks).pro(masks, limit, thresholds)


def confusion_metrics(predicted: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """IoU and accuracy of predicted masks, both bool of one shape, over all their pixels together;
    each in [0, 1].

    iou: of the anomalous class; miou: mean with that of the normal class; pixel_accuracy: share of
    all pixels; class_accuracy: mean of the shares found of either class (mAcc of the segmentation
    toolboxes). ValueError unless both classes are there.
    """
    predicted, masks = np.asarray(predicted).astype(bool), np.asarray(masks).astype(bool)
    if predicted.shape != masks.shape:
        raise ValueError(f"predictions have shape {predicted.shape}, masks {masks.shape}")
    if not masks.any() or masks.all():
        raise ValueError("nothing is labelled " + ("normal" if masks.any() else "anomalous"))
    hit, correct = int((predicted & masks).sum()), int((~predicted & ~masks).sum())
    wrong = masks.size - hit - correct
    iou, iou_normal = hit / (hit + wrong), correct / (correct + wrong)
    found, kept = hit / int(masks.sum()), correct / int((~masks).sum())
    return {
        "miou": (iou + iou_normal) / 2,
        "iou": iou,
        "pixel_accuracy": (hit + correct) / masks.size,
        "class_accuracy": (found + kept) / 2,
    }
