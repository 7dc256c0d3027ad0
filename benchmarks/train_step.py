"""A DH-Diff training step against its floor: the passes of the same plain diffusers U-Net that it
cannot do without.

Floor: forward and backward of image stream + annotation stream (one plain U-Net pass on 2B
latents), and of the part of the U-Net that the reference needs (the down blocks on B latents). Both
sides run in one process, in turns, and the medians are compared. Scratch size on a CPU, Stable
Diffusion 1.5's size on a GPU (random weights do for speed).

    python benchmarks/train_step.py [--batch 8] [--repeats 5] [--compile]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time

import torch
from diffusers import UNet2DConditionModel

from helixbench import config
from helixbench.diffusion.base import build_unet
from helixbench.engine.devices import autocast, describe, pick_device
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.unet import DHDiffUNet
from helixbench.schema import Optim


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
    parser.add_argument(
        "--compile", action="store_true", help="ours with `compile: true`; the floor stays plain"
    )
    options = parser.parse_args()
    device, b = pick_device(), options.batch
    torch.manual_seed(0)
    if device.type == "cuda":
        size, tokens, width = 32, 77, 768
        plain = UNet2DConditionModel(
            sample_size=size, cross_attention_dim=width, attention_head_dim=8
        )
    else:
        bottle = config.load("params.yaml", "config/bottle.yaml")
        scratch = bottle.train.scratch
        size, tokens, width = (
            bottle.prepare.size // 4,
            scratch.text_encoder.max_tokens,
            scratch.text_encoder.width,
        )
        plain = build_unet(scratch.unet, scratch.autoencoder.latent_channels, size, width)
    method = DHDiff(
        kind="dhdiff",
        trainable="all",
        compile=options.compile,
        optim=Optim(steps=1, batch=b, lr=1e-4),
    )
    ours = DHDiffUNet(copy.deepcopy(plain), method).trainable_().to(device)
    plain = plain.to(device)
    channels = plain.config.in_channels
    z, a, r = (torch.randn(b, channels, size, size, device=device) for _ in range(3))
    t = torch.randint(1000, (b,), device=device)
    text = torch.randn(b, tokens, width, device=device)

    def our_step() -> None:
        with autocast(device, "auto"):
            image, annotation = ours(z, a, t, text, ours.encode_reference(r, t, text))
            loss = image.float().square().mean() + annotation.float().square().mean()
        loss.backward()

    def floor_step() -> None:
        with autocast(device, "auto"):
            out = plain(torch.cat([z, a]), torch.cat([t, t]), torch.cat([text, text])).sample
            embedding = plain.time_embedding(plain.time_proj(t))
            hidden = plain.conv_in(r)
            for down in plain.down_blocks:
                extra = (
                    {"encoder_hidden_states": text}
                    if getattr(down, "has_cross_attention", False)
                    else {}
                )
                hidden, _ = down(hidden_states=hidden, temb=embedding, **extra)
            loss = out.float().square().mean() + hidden.float().square().mean()
        loss.backward()

    with torch.no_grad():  # the two are the same function at DH-Diff's zero start on equal streams
        difference = float((ours(z, z, t, text)[0] - plain(z, t, text).sample).abs().max())
    our_step(), floor_step()
    times = [(clock(our_step, device), clock(floor_step, device)) for _ in range(options.repeats)]
    mine, floor = (statistics.median(column) for column in zip(*times, strict=True))
    result = {
        "name": "train_step",
        "device": describe(device),
        "batch": b,
        "compile": options.compile,
        "ours_s": round(mine, 4),
        "theirs_s": round(floor, 4),
    }
    print(json.dumps(result | {"ratio": round(mine / floor, 3), "max_abs_diff": difference}))


if __name__ == "__main__":
    main()
