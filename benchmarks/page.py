"""What the page's gallery and gate cost: CPU seconds against pairs on disk and pairs shown.

One drawn category, and rows of one method that all name the same picture and mask, so that any
number of pairs is made at once. The cost is to follow what is shown; each pair on disk costs the
reading of its row. `shown` are tiles of the page, --shown the limit that they are spread over.

    python benchmarks/page.py [--pairs 1000 10000 100000] [--shown 60 600] [--note "..."]
        [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from record import write

from helixbench.config import Slice
from helixbench.datasets.procedural.render import draw
from helixbench.prepare import stage
from helixbench.records import Pair, write_csv
from helixbench.report.page import gallery, gate_counts
from helixbench.report.run_folder import RunFolder
from helixbench.schema import Procedural

SIDE = 64


def made(results: Path) -> RunFolder:
    """A run with a prepared category, and a method without pairs."""
    drawn = Procedural(size=SIDE, train_good=4, test_good=2, per_defect=2, layout="mvtec_ad")
    draw(results / "raw", "Data", "tile", drawn, seed=0)
    values = {"prepare.size": SIDE, "prepare.split": "half", "prepare.raw_mask_cells": 5}
    out = results / "prepare/Data/tile"
    stage.run("Data", "tile", Slice(values), layout="mvtec_ad", raw=results / "raw", out=out)
    config = {
        "train.methods": {"copy": SimpleNamespace(label="copy")},
        "prepare.datasets": {"Data": SimpleNamespace(categories=("tile",))},
        "detect": SimpleNamespace(localization=SimpleNamespace(seeds=(0,)), comparators={}),
    }
    return RunFolder(results, config)


def put(folder: Path, n: int) -> None:
    """A manifest of n pairs of one picture."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / "image.png")
    Image.fromarray(np.eye(SIDE, dtype=np.uint8) * 255).save(folder / "mask.png")
    empty = {field.name: "" for field in dataclasses.fields(Pair)}
    known = {"category": "tile", "dataset": "Data", "defect": "hole", "method": "copy"}
    files = {"image": "image.png", "mask": "mask.png", "gate": "ok"}
    numbers = {"seed": 0, "shift_y": 0, "redraws": 0, "mask_area": 0.1}
    values = {**empty, **known, **files, **numbers}
    values = {key: values[key] for key in empty}
    write_csv(folder / "manifest.csv", [Pair(**values | {"index": i}) for i in range(n)], Pair)


def main() -> None:
    """Print each cost, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--shown", type=int, nargs="+", default=[60, 600])
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {"name": "page", "device": "1 CPU core"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = made(Path(temporary))
        for n in options.pairs:
            put(Path(temporary) / "generate/copy/Data/tile", n)
            for shown in options.shown:
                start = time.process_time()
                tiles = gallery(folder, shown)
                gate_counts(folder)
                seconds = round(time.process_time() - start, 2)
                print(f"{n:>8} pairs on disk, {len(tiles):>6} shown: {seconds} s of CPU")
                result[f"{n}_pairs_{len(tiles)}_shown_cpu_s"] = seconds
    if options.out:
        write(options.out, result, options.note)


if __name__ == "__main__":
    main()
