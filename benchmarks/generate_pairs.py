"""Making DH-Diff pairs against the floor of two plain pictures: sampling with the same plain
diffusers U-Net.

Floor of a step: the passes on image + annotation latents (2B) that classifier-free guidance needs,
with the prompt padded as diffusers pads it; no reference, no new modules. Both sides run in one
process, in turns; the medians are compared. Scratch size on a CPU, Stable Diffusion 1.5's size on a
GPU (random weights do for speed). `s_per_pair` is the whole of `sample` at the full number of
steps: text, reference, sampling, decoding, masks.

    python benchmarks/generate_pairs.py [--batch 8] [--repeats 5] [--steps 20]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from helixbench import config
from helixbench.diffusion.base import build
from helixbench.diffusion.sampler import guided
from helixbench.engine.devices import autocast, describe, pick_device
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.methods.method import Conditions
from helixbench.schema import Optim, Sampling


def clock(function, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    device, b = pick_device(), options.batch
    torch.manual_seed(0)
    bottle = config.load("params.yaml", "config/bottle.yaml")
    size = 256 if device.type == "cuda" else bottle.prepare.size
    base = build(bottle.train.scratch, size, ["bottle", "broken large"], 0)
    if device.type == "cuda":  # the text model stays small: it runs once
        width = base.text_encoder.config.hidden_size
        base.unet = UNet2DConditionModel(
            sample_size=size // 8, cross_attention_dim=width, attention_head_dim=8
        )
        base.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    plain = copy.deepcopy(base.unet).to(device).eval()
    method = DHDiff(kind="dhdiff", optim=Optim(steps=1, batch=b, lr=1e-4))
    ours = DHDiffMethod(method, base, Sampling(sampler="dpmsolver++", steps=options.steps)).to(
        device
    )
    ours.unet.eval()
    shape = (
        b,
        base.vae.config.latent_channels,
        size // base.latent_factor,
        size // base.latent_factor,
    )
    z, a, r = (torch.randn(shape, device=device) for _ in range(3))
    t = torch.full((b,), 500, device=device)
    texts = {
        True: ours.embed(["a photo of a bottle with broken large"] * b),
        False: ours.embed([""] * b),
    }

    @torch.no_grad()
    def our_step() -> None:
        with autocast(device, "auto"):
            reference = ours.unet.encode_reference(r, t, texts[False])
            guided(
                lambda conditional: torch.cat(
                    ours.unet(z, a, t, texts[conditional], reference), dim=1
                ),
                2.5,
            )

    padded = {
        True: base.embed(["a photo of a bottle with broken large"] * b),
        False: base.embed([""] * b),
    }  # as diffusers does

    @torch.no_grad()
    def floor_step() -> None:
        def branch(conditional: bool) -> torch.Tensor:
            text = padded[conditional]
            return plain(torch.cat([z, a]), torch.cat([t, t]), torch.cat([text, text])).sample

        with autocast(device, "auto"):
            guided(branch, 2.5)

    picture = torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(b, 1, size, size)
    mask[..., : size // 5, : size // 5] = 1
    conditions = Conditions("bottle", ["broken_large"] * b, picture, picture, mask, mask)

    def pairs() -> None:
        ours.sample(conditions, [torch.Generator().manual_seed(i) for i in range(b)])

    with torch.no_grad():  # the two are the same function at DH-Diff's zero start on equal streams
        difference = float(
            (ours.unet(z, z, t, texts[True])[0] - plain(z, t, texts[True]).sample).abs().max()
        )
    our_step(), floor_step(), pairs()
    times = np.array(
        [(clock(our_step, device), clock(floor_step, device)) for _ in range(options.repeats)]
    )
    mine, floor = (statistics.median(column) for column in times.T)
    result = {
        "name": "generate_pairs",
        "device": describe(device),
        "batch": b,
        "ours_s": round(mine, 4),
        "theirs_s": round(floor, 4),
    }
    result |= {
        "ratio": round(mine / floor, 3),
        "max_abs_diff": difference,
        "size": size,
        "steps": options.steps,
    }
    result["s_per_pair"] = round(min(clock(pairs, device) for _ in range(2)) / b, 4)
    if device.type == "cuda":
        result["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
    print(json.dumps(result))


if __name__ == "__main__":
    main()
