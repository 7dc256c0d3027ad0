"""Does the distance on EfficientNet-Lite0 rank pairs of real pictures as LPIPS on SqueezeNet does?
Spearman's correlation over all pairs of 34 pictures of a category, 95 % interval by resampling
pictures.

python benchmarks/perceptual.py ../shared/data [--size 96] [--out results/measured/perceptual.csv]

The folder holds mvtec_ad/, mpdd/ and magnetic_tile/; SqueezeNet's weights are needed, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import record
import torch
from scipy.stats import spearmanr

from helixbench.engine.devices import describe
from helixbench.pictures.raw import read_rgb, resize_rgb
from helixbench.score.ic_lpips import PairwiseLpips, build_lpips
from helixbench.weights import LITE0

PICTURES = 34
CATEGORIES = {
    "bottle": ("mvtec_ad/bottle", "*/*/*.png"),
    "metal_plate": ("mpdd/metal_plate", "*/*/*.png"),
    "magnetic_tile": ("magnetic_tile", "*/Imgs/*.jpg"),
}
CPU = torch.device("cpu")


def pictures(folder: Path, pattern: str, size: int) -> np.ndarray:
    """A seeded choice of a category's pictures, (n, size, size, 3) uint8."""
    files = sorted(file for file in folder.glob(pattern) if "ground_truth" not in file.parts)
    chosen = np.random.default_rng(0).choice(len(files), PICTURES, replace=False)
    return np.stack([resize_rgb(read_rgb(files[i]), size) for i in chosen])


def correlation(one: np.ndarray, other: np.ndarray, rows: np.ndarray) -> float:
    """Spearman's correlation of two matrices of distances over pairs of different pictures."""
    a, b = (np.minimum.outer(rows, rows), np.maximum.outer(rows, rows))
    chosen = np.triu(a != b, 1)
    return spearmanr(one[a, b][chosen], other[a, b][chosen]).statistic


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    networks = [PairwiseLpips(build_lpips(network), CPU) for network in (LITE0, "squeeze")]
    for category, (folder, pattern) in CATEGORIES.items():
        images = pictures(options.data / folder, pattern, options.size)
        found = [network.distances(images) for network in networks]
        rng = np.random.default_rng(0)
        again = [correlation(*found, rng.integers(0, PICTURES, PICTURES)) for _ in range(500)]
        low, high = np.percentile(again, [2.5, 97.5])
        row = {
            "name": f"perceptual, {category}",
            "device": describe(CPU),
            "pairs": PICTURES * (PICTURES - 1) // 2,
            "size": options.size,
            "spearman": round(correlation(*found, np.arange(PICTURES)), 3),
            "low": round(low, 3),
            "high": round(high, 3),
        }
        print(row, flush=True)
        if options.out:
            record.write(options.out, row)


if __name__ == "__main__":
    main()
