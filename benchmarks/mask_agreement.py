"""The image-mask agreement where its order is known: own masks, the same moved, another picture's
(the table of docs/scores.md).

python benchmarks/mask_agreement.py data/mvtec_ad [--out results/measured/mask_agreement.csv]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import record
import torch

from helixbench.datasets.layout import Layout
from helixbench.datasets.procedural import render
from helixbench.engine.devices import describe
from helixbench.pictures.raw import read_mask, read_rgb, resize_mask, resize_rgb
from helixbench.schema import Procedural
from helixbench.score.alignment import MaskAgreement

SIZE = 96
DRAWN = Procedural(size=SIZE, train_good=16, test_good=2, per_defect=6)


def pictures(root: Path, category: str, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals, and `each` defective pictures of every type with their masks."""
    samples = Layout.named("mvtec_ad").read(root, "any", category)
    read = lambda sample: resize_rgb(read_rgb(sample.image), SIZE)
    by_type: dict[str, list] = {}
    for sample in samples:
        if sample.mask:
            by_type.setdefault(sample.defect, []).append(sample)
    chosen = [sample for defect in sorted(by_type) for sample in by_type[defect][:each]]
    masks = [resize_mask(read_mask(sample.mask), SIZE) for sample in chosen]
    return (
        np.stack([read(s) for s in samples if s.subset == "train"]),
        np.stack([read(s) for s in chosen]),
        np.stack(masks),
    )


def measure(
    what: str, normals: np.ndarray, images: np.ndarray, masks: np.ndarray
) -> dict[str, object]:
    agreement = MaskAgreement(normals, torch.device("cpu"), size=SIZE)
    own = agreement(images, masks)
    moved = agreement(images, np.roll(masks, (SIZE // 16, SIZE // 16), (1, 2))).own
    values = {
        "own masks": own.own,
        "moved by a sixteenth": moved,
        "another picture's": own.shuffled,
    }
    means = {name: round(100 * float(value.mean()), 1) for name, value in values.items()}
    return {
        "name": f"mask_agreement, {what}",
        "device": describe(torch.device("cpu")),
        "pictures": len(images),
        **means,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mvtec_ad", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [measure("MVTec AD bottle", *pictures(options.mvtec_ad, "bottle", 8))]
    with TemporaryDirectory() as folder:
        for category in ("disc", "weave", "plate"):
            render.draw(Path(folder), "D", category, DRAWN, 3)
            rows.append(measure(f"drawn {category}", *pictures(Path(folder), category, 6)))
    for row in rows:
        print(row)
        if options.out:
            record.write(options.out, row)


if __name__ == "__main__":
    main()
