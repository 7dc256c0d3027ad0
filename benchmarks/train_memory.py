"""Memory of a DH-Diff training step at the size of Stable Diffusion 1.5, 256 pixels: by batch, and
for each preset.

On a GPU: what the allocator held at most, in real steps with random weights. Without one: the same
two steps with tensors that have shapes and no data; every storage is counted while it lives, so
that weights, gradients, Adam's moments, activations and what recomputation needs are in it; the
allocator's fragments and the libraries' workspaces (about 1 GiB) are not. Both include the frozen
autoencoder and text encoder. `theirs_gib`: the plain diffusers U-Net on the two streams, all of its
attention trained.

    python benchmarks/train_memory.py [--batches 1 8 32] [--presets config/gpu_8gb.yaml ...]
"""

from __future__ import annotations

import argparse
import json
import weakref
from contextlib import ExitStack
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel

from helixbench import config
from helixbench.engine.devices import describe, pick_device
from helixbench.engine.loop import adam
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.unet import DHDiffUNet

GIB = 2**30
TOKENS = 16


class Shapes(FakeTensorMode):
    """Tensors with a shape and no data; a copied module's are of the same mode."""

    def __deepcopy__(self, memo):
        return self


class Peak(TorchDispatchMode):
    """Bytes of the storages that operators make, counted while they live."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self.add, out)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.drop, storage.nbytes())

    def drop(self, size: int) -> None:
        self.live -= size


def stable_diffusion() -> tuple[UNet2DConditionModel, list[torch.nn.Module]]:
    """The U-Net of Stable Diffusion 1.5, and its frozen companions; random weights."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
    )
    unet = UNet2DConditionModel(sample_size=32, cross_attention_dim=768, attention_head_dim=8)
    return unet, [vae, text]


def measure(method: DHDiff, device: torch.device, ours: bool = True) -> dict:
    """Peak [GiB] over two steps of `method.optim`, and counts of weights [million]."""
    fake = device.type == "cpu"
    with ExitStack() as stack:
        if fake:
            stack.enter_context(Shapes())
        else:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        plain, frozen = stable_diffusion()
        for part in () if fake else (plain, *(() if method.offload else frozen)):
            part.to(device)
        before = sum(p.numel() for p in plain.parameters())
        if ours:
            net = DHDiffUNet(plain, method).trainable_()
        else:
            net = plain.requires_grad_(False)
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(".attn1." in name or ".attn2." in name)
        frozen = [] if ours and method.offload else frozen
        held = [net, *(part.requires_grad_(False) for part in frozen)]
        trained = [p for p in net.parameters() if p.requires_grad]
        # Quantising needs data: without it the moments are counted by hand, a byte each and the
        # quantisation's constants.
        by_hand = fake and method.optim.adam == "8bit"
        optimizer = adam(
            trained, method.optim.model_copy(update={"adam": "fp32"}) if by_hand else method.optim
        )
        peak = stack.enter_context(Peak()) if fake else None
        for _ in range(2):
            for _ in range(min(2, method.optim.accumulate)):  # a third is like the second
                one_pass(net, method.optim.per_pass, device, ours)
            if not by_hand:
                optimizer.step()
            optimizer.zero_grad()
        if fake:
            weights = sum(
                t.numel() * t.element_size()
                for part in held
                for t in (*part.parameters(), *part.buffers())
            )
            moments = sum(2 * p.numel() * (1 + 4 / 256) for p in trained) if by_hand else 0
            total = weights + peak.peak + moments
        else:
            total = torch.cuda.max_memory_allocated(device)
        added = sum(p.numel() for p in net.parameters()) - before
    return {
        "gib": round(total / GIB, 2),
        "added_m": round(added / 1e6, 1),
        "trained_m": round(sum(p.numel() for p in trained) / 1e6, 1),
    }


def one_pass(net: torch.nn.Module, batch: int, device: torch.device, ours: bool) -> None:
    """Forward and backward of one pass."""
    z, a, r = (torch.randn(batch, 4, 32, 32, device=device) for _ in range(3))
    t = torch.randint(1000, (batch,), device=device)
    text = torch.randn(batch, TOKENS, 768, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        if ours:
            image, annotation = net(z, a, t, text, net.encode_reference(r, t, text))
        else:
            image, annotation = net(
                torch.cat([z, a]), torch.cat([t, t]), torch.cat([text, text])
            ).sample.chunk(2)
        loss = image.float().square().mean() + annotation.float().square().mean()
    loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument(
        "--presets", type=Path, nargs="*", default=sorted(Path("config").glob("gpu_*.yaml"))
    )
    options = parser.parse_args()
    device = pick_device()
    where = describe(device) if device.type == "cuda" else "none: counted without data"
    paper = config.load("params.yaml").train.methods["dhdiff"]
    for batch in options.batches:
        method = paper.model_copy(
            update={"optim": paper.optim.model_copy(update={"batch": batch, "accumulate": 1})}
        )
        result = {
            "name": "train_memory",
            "device": where,
            "batch": batch,
            **measure(method, device),
        }
        result["theirs_gib"] = measure(method, device, ours=False)["gib"]
        print(
            json.dumps(result | {"ratio": round(result["gib"] / result["theirs_gib"], 3)}),
            flush=True,
        )
    for preset in options.presets:
        method = config.load("params.yaml", str(preset)).train.methods["dhdiff"]
        about = {
            "per_pass": method.optim.per_pass,
            "checkpointing": method.checkpointing,
            "adam": method.optim.adam,
        }
        print(
            json.dumps(
                {
                    "name": "train_memory",
                    "device": where,
                    "preset": preset.stem,
                    **about,
                    **measure(method, device),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
