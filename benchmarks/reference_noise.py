"""Reading 7 measured: what a model's loss owes to noise that the reference shares with the picture.

For each DH-Diff of a run (config/readings.yaml trains one for each setting): the loss of the image
stream on the training defects, with fixed samples and noise, by range of the timestep. `train`: the
reference is noised as in training. `sample`: as at sampling, where the picture's noise is unknown
and another one stands in for it. A model that reads its target off the reference has a low loss in
the first column and a high one in the second.

    python benchmarks/reference_noise.py results/readings [--draws 8]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.nn import functional as F

from helixbench.diffusion.data import Pictures
from helixbench.engine.devices import describe, pick_device
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.schema import Sampling

RANGES = ((0, 250), (250, 500), (500, 750), (750, 1000))


@torch.no_grad()
def losses(
    method: DHDiffMethod, data: Pictures, low: int, high: int, draws: int
) -> tuple[float, float]:
    """Mean squared error of the image stream's noise at t in [low, high): with the training's
    reference, and the sampler's."""
    found = []
    for draw in range(draws):
        rng = torch.Generator().manual_seed(1000 * low + draw)
        batch = method.batch(data, rng)
        z0, a0, r0 = batch["image"], batch["annotation"], batch["reference"]
        noise = torch.randn((4, *z0.shape), generator=rng).to(method.device)
        t = torch.randint(low, high, (len(z0),), generator=rng).to(method.device)
        noisy = [
            method.base.scheduler.add_noise(z, e, t) for z, e in ((z0, noise[0]), (a0, noise[1]))
        ]
        texts, nothing = method.embed(batch["prompts"]), method.embed([""] * len(t))
        row = []
        for shared in (noise[0], noise[3]):
            z_reference = method.noised_reference(r0, shared, noise[2], t)
            reference = method.unet.encode_reference(z_reference, t, nothing)
            row.append(float(F.mse_loss(method.unet(*noisy, t, texts, reference)[0], noise[0])))
        found.append(row)
    return tuple(torch.tensor(found).mean(0).tolist())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    for file in sorted(options.run.glob("train/*/*/*/dhdiff.json")):
        dataset, category = file.parts[-3:-1]
        values = json.loads(file.read_text()) | {
            "prompt_drop": 0.0,
            "control_drop": 1.0,
            "normal_share": 0.0,
        }
        method = DHDiffMethod.load(DHDiff.model_validate(values), file.parent, Sampling()).to(
            pick_device()
        )
        data = Pictures.load(options.run / "prepare" / dataset / category)
        result = {
            "name": "reference_noise",
            "device": describe(pick_device()),
            "method": file.parts[-4],
        }
        for low, high in RANGES:
            train, sample = losses(method, data, low, high, options.draws)
            result |= {
                f"train_{low}_{high}": round(train, 4),
                f"sample_{low}_{high}": round(sample, 4),
            }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
