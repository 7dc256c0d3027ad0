"""Does the threshold keep its promise? A trained detector, a pool of normal pictures that trained
nothing, and random splits of it into calibration and test.

    python benchmarks/false_alarms.py DETECTOR NORMALS... [--calibration 60] [--rates 0.02 0.05 0.1]
        [--splits 200] [--note "..."] [--out results/measured/false_alarms.csv]

DETECTOR: a folder written by `detect`; NORMALS: pictures, or folders of pictures. The mean rate is
to be at most the promised one, and the number of false alarms beta-binomial.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import record
from scipy import stats

from helixbench.detect import conformal
from helixbench.detect.predict import pictures_of
from helixbench.detect.trained import Localizer
from helixbench.engine.devices import describe, pick_device
from helixbench.pictures.raw import read_rgb, resize_rgb


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("detector", type=Path)
    parser.add_argument("normals", type=Path, nargs="+")
    parser.add_argument("--calibration", type=int, default=60)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    localizer = Localizer.read(options.detector)
    files = pictures_of(options.normals, options.detector)
    small = (resize_rgb(read_rgb(file), localizer.size) for file in files)
    scores = np.array([localizer.map_and_score(image)[1] for image in small])
    n, m, rng = options.calibration, len(scores) - options.calibration, np.random.default_rng(0)
    for rate in options.rates:
        counts = np.zeros(options.splits, int)
        for i in range(options.splits):
            order = rng.permutation(scores)
            found = conformal.threshold({str(j): s for j, s in enumerate(order[:n])}, rate)
            counts[i] = (order[n:] > found.value).sum()
        above = math.floor((n + 1) * rate + 1e-9)
        expected = stats.betabinom(m, above, n + 1 - above)
        # A count's place in its distribution, ties broken at random, is uniform.
        place = expected.cdf(counts - 1) + expected.pmf(counts) * rng.random(options.splits)
        result = {
            "name": f"promised {rate:g}",
            "device": describe(pick_device()),
            "normals": len(scores),
            "calibration": n,
            "splits": options.splits,
            "mean_rate": round(counts.mean() / m, 5),
            "mean_rate_error": round(expected.std() / m / math.sqrt(options.splits), 5),
            "expected_mean_rate": round(expected.mean() / m, 5),
            "std_rate": round(counts.std(ddof=1) / m, 5),
            "expected_std_rate": round(expected.std() / m, 5),
            "beta_binomial_p": round(stats.kstest(place, "uniform").pvalue, 4),
        }
        print(", ".join(f"{name} {value}" for name, value in result.items()))
        if options.out:
            record.write(options.out, result, options.note)


if __name__ == "__main__":
    main()
