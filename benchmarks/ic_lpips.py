"""IC-LPIPS of n generated images against the pairwise calls that the public scripts make.

Theirs: one call of the `lpips` package for every (image, anchor) and for every pair of a cluster's
kept images (one shuffle, cap 50). There are too many to wait for, so `--sample` random calls are
timed and extrapolated to all of them; the same calls give the largest difference. Ours: the whole
score, embeddings and matrix products. Smooth random pictures do for both.

    python benchmarks/ic_lpips.py [--images 500] [--anchors 10] [--size 256] [--sample 100]
        [--network auto | --network vgg --untrained] [--memory-gib 4] [--note "..."] [--out
        FILE.csv]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import lpips
import numpy as np
import record
import torch

from helixbench.engine.devices import describe, pick_device
from helixbench.score.ic_lpips import MEMORY_GIB, PairwiseLpips, build_lpips, ic_lpips
from helixbench.weights import LPIPS_ORDER, choose

CAP = 50


def smooth(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random pictures (n, size, size, 3) uint8."""
    coarse = torch.from_numpy(rng.random((n, 3, 8, 8), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (fine.permute(0, 2, 3, 1) * 255).byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--anchors", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--sample", type=int, default=100, help="pairwise calls that are timed")
    parser.add_argument("--network", default="auto")
    parser.add_argument(
        "--untrained", action="store_true", help="time a network whose weights are not here"
    )
    parser.add_argument("--memory-gib", type=float, default=MEMORY_GIB)
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device()
    # as fast as the trained one; the weights of LPIPS itself are the published ones all the same
    if options.untrained:
        network = f"{options.network} (untrained)"
        module = lpips.LPIPS(net=options.network, pnet_rand=True, verbose=False).eval().to(device)
    else:
        network = choose(options.network, LPIPS_ORDER)
        module = build_lpips(network).to(device)
    rng = np.random.default_rng(0)
    anchors = smooth(options.anchors, options.size, rng)
    # each image is a disturbed anchor: clusters of one size, as even generators give
    owner = np.arange(options.images) % options.anchors
    images = (0.7 * anchors[owner] + 0.3 * smooth(options.images, options.size, rng)).astype(
        np.uint8
    )
    pairwise = PairwiseLpips(module, device, memory_gib=options.memory_gib)
    pairwise.embed(images[:2])

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    ic_lpips(images, anchors, pairwise, cap=CAP, shuffles=1)
    ours = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    kept = np.minimum(np.bincount(owner), CAP)
    calls = options.images * options.anchors + int((kept * (kept - 1) // 2).sum())
    pairs = rng.integers(0, options.images, (options.sample, 2))
    as_input = lambda i: (
        torch.from_numpy(images[i]).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    )
    theirs = []
    with torch.no_grad():
        module(as_input(0), as_input(1))
        start = time.perf_counter()
        for i, j in pairs:
            theirs.append(module(as_input(i), as_input(j)).item())
        per_call = (time.perf_counter() - start) / options.sample
    chosen = np.unique(pairs)
    matrix = pairwise.distances(images[chosen])
    mine = [matrix[np.searchsorted(chosen, i), np.searchsorted(chosen, j)] for i, j in pairs]
    result = {
        "name": f"ic_lpips, {options.network}{' untrained' * options.untrained}, "
        f"{options.memory_gib:g} GiB",
        "device": describe(device),
        "network": network,
        "images": options.images,
        "size": options.size,
        "ours_s": round(ours, 3),
        "theirs_s": round(per_call * calls, 1),
        "theirs_calls": calls,
        "theirs_extrapolated_from": options.sample,
        "ratio": round(per_call * calls / ours, 1),
        "memory_limit_gib": options.memory_gib,
        "peak_rss_gib": round(peak / 2**20, 2),
        "rss_before_gib": round(before / 2**20, 2),
        "max_abs_diff": float(np.abs(np.array(mine) - np.array(theirs)).max()),
    }
    print(json.dumps(result))
    if options.out:
        record.write(options.out, result, options.note)


if __name__ == "__main__":
    main()
