"""Detection metrics of n test pictures against scikit-learn, torchmetrics and anomalib, exact on
all sides (no binning).

One call each of pixel AUROC, pixel AP and F1-max, on the CPU as the stage runs them; `theirs_s` is
the fastest of the packages. anomalib's area under the precision-recall curve is a trapezoid's and
not compared by value. Of PRO anomalib has the only one: `pro_s`, `pro_anomalib_s`, and
`pro_abs_diff` (its sums are float32). `peak_mib`: most that our metrics held beyond the inputs.

    python benchmarks/detection_metrics.py [--pictures 100] [--size 256] [--repeats 3] [--note
    "..."] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import record
import torch
from anomalib.metrics.aupr import _AUPR
from anomalib.metrics.aupro import _AUPRO
from anomalib.metrics.auroc import _AUROC
from anomalib.metrics.f1_score import _F1Max
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_precision_recall_curve,
)

from helixbench.engine.devices import describe
from helixbench.metrics import Ranking


def pictures(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps (n, size, size) float32 in [0, 1] and masks, a third of them empty; regions of many
    sizes."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.normal(size=(n, size, size)).astype(np.float32), (0, 9, 9))
    masks = field > 2.3 * field.std()
    masks[: n // 3] = False
    maps = 1 / (1 + np.exp(-(3 * masks + rng.normal(size=masks.shape).astype(np.float32))))
    return maps.astype(np.float32), masks


def ours(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    ranking = Ranking(maps, masks)
    return [ranking.auroc(), ranking.average_precision(), ranking.f1_max()]


def largest_f1(precision: np.ndarray, recall: np.ndarray) -> float:
    return float(np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def scikit_learn(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    x, y = maps.ravel(), masks.ravel()
    return [
        roc_auc_score(y, x),
        average_precision_score(y, x),
        largest_f1(*precision_recall_curve(y, x)[:2]),
    ]


def torchmetrics(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    x, y = torch.from_numpy(maps).ravel(), torch.from_numpy(masks).ravel().long()
    precision, recall, _ = binary_precision_recall_curve(x, y)
    return [
        float(binary_auroc(x, y)),
        float(binary_average_precision(x, y)),
        largest_f1(precision.numpy(), recall.numpy()),
    ]


def anomalib(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    values = [_found(metric, maps, masks) for metric in (_AUROC(), _AUPR(), _F1Max())]
    return [values[0], float("nan"), values[2]]


def anomalib_pro(maps: np.ndarray, masks: np.ndarray) -> float:
    return _found(_AUPRO(fpr_limit=0.3), maps, masks)


def _found(metric, maps: np.ndarray, masks: np.ndarray) -> float:
    metric.update(torch.from_numpy(maps), torch.from_numpy(masks).long())
    return float(metric.compute())


def best(function, *arguments, repeats: int) -> tuple[float, object]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times), value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    maps, masks = pictures(options.pictures, options.size)
    mine_s, mine = best(ours, maps, masks, repeats=options.repeats)
    rivals = {
        f.__name__: best(f, maps, masks, repeats=options.repeats)
        for f in (scikit_learn, torchmetrics, anomalib)
    }
    fastest = min(seconds for seconds, _ in rivals.values())
    ranking = Ranking(maps, masks)
    pro_s, pro = best(ranking.pro, masks, 0.3, repeats=options.repeats)
    their_pro_s, their_pro = best(anomalib_pro, maps, masks, repeats=options.repeats)
    del ranking
    tracemalloc.start()
    Ranking(maps, masks).pro(masks, 0.3)
    peak = tracemalloc.get_traced_memory()[1]
    result = {
        "name": "detection_metrics",
        "device": describe(torch.device("cpu")),
        "pictures": options.pictures,
        "size": options.size,
        "ours_s": round(mine_s, 3),
        "theirs_s": round(fastest, 3),
        **{f"{name}_s": round(seconds, 3) for name, (seconds, _) in rivals.items()},
        "ratio": round(fastest / mine_s, 2),
        "max_abs_diff": float(
            np.nanmax(
                [
                    abs(a - b)
                    for _, values in rivals.values()
                    for a, b in zip(mine, values, strict=True)
                ]
            )
        ),
        "pro_s": round(pro_s, 3),
        "pro_anomalib_s": round(their_pro_s, 3),
        "pro": round(pro, 4),
        "pro_abs_diff": abs(pro - their_pro),
        "peak_mib": round(peak / 2**20),
        "input_mib": round((maps.nbytes + masks.nbytes) / 2**20),
    }
    print(json.dumps(result))
    if options.out:
        record.write(options.out, result, options.note)


if __name__ == "__main__":
    main()
