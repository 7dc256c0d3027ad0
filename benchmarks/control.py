"""Does the defect follow the drawing? IoU of generated masks with the control mask, with the control given and without.

Same plan, seeds, references and raw masks on both sides; the control is the real mask that the plan moved (detailed), or its
raw mask. The picture shows, for some pairs: control, pair with control, pair without (mask outlined).

    python benchmarks/control.py --overlay config/bottle.yaml [--method dhdiff] [--pairs 20] [--picture control.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helixbench import config
from helixbench.devices import describe, pick_device
from helixbench.diffusion.data import Pictures
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.prepare.sheet import outline


def iou(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean intersection over union of (n, 1, H, W) masks in {0, 1}; two empty masks agree."""
    both, either = (one * other).flatten(1).sum(1), ((one + other) > 0).flatten(1).sum(1)
    return float(torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both)).mean())


def shown(image: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Picture (H, W, 3) uint8 with the outline of its mask."""
    picture = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().copy()
    picture[outline(mask[0].numpy() > 0.5)] = (255, 32, 32)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--overlay", type=Path, default=Path("config/bottle.yaml"))
    parser.add_argument("--method", default="dhdiff")
    parser.add_argument("--control", choices=("detailed", "raw"), default="detailed")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    settings = config.load("params.yaml", options.overlay)
    (dataset, prepared), *_ = settings.prepare.datasets.items()
    category, run = prepared.categories[0], Path("results") / settings.run.name
    data = Pictures.load(run / "prepare" / dataset / category)
    folder = run / "train" / options.method / dataset / category
    method = DHDiffMethod.load(settings.train.methods[options.method], folder, settings.generate.sampling).to(pick_device())
    per_type = -(-options.pairs // len(data.defects))
    plans = make_plan(data, settings.generate.model_copy(update={"pairs": per_type}), settings.run.seed)
    given = conditions(data, plans, options.control)
    made = {}
    for name, control in (("with", given.control), ("without", None)):
        free = conditions(data, plans) if control is None else given
        made[name] = method.sample(free, [torch.Generator().manual_seed(plan.seed) for plan in plans])
    result = {"name": "control", "device": describe(pick_device()), "pairs": len(plans), "control": options.control}
    result |= {f"iou_{name}": round(iou(masks, given.control), 4) for name, (_, masks) in made.items()}
    print(json.dumps(result))
    if options.picture:
        columns = []
        for i in range(0, len(plans), max(1, len(plans) // 12)):
            control = np.repeat(given.control[i, 0].numpy()[..., None].astype(np.uint8) * 255, 3, axis=2)
            columns.append(np.concatenate([control, *(shown(images[i], masks[i]) for images, masks in made.values())]))
        Image.fromarray(np.concatenate(columns, axis=1)).save(options.picture)


if __name__ == "__main__":
    main()
