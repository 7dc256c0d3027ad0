"""Small models and data that several tests build."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from PIL import Image

from helixbench.config import Slice
from helixbench.diffusion import base as base_model
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.linear import Components, linear_autoencoder
from helixbench.generate import stage as generate_stage
from helixbench.pictures.raw_mask import raw_mask_cells
from helixbench.records import Pair, Sample, format_cells, read_csv, write_csv
from helixbench.schema import (
    AdversarialOptim,
    Autoencoder,
    Gate,
    Generate,
    MethodSettings,
    Optim,
    Sampling,
    Scratch,
    TextEncoder,
    Unet,
)
from helixbench.schema.method import settings_class
from helixbench.train import stage as train_stage

SIZE = 32


def optim(**changes) -> Optim:
    return Optim(**{"steps": 4, "batch": 4, "lr": 1e-3, "precision": "fp32", **changes})


def scratch(**changes) -> Scratch:
    values = {
        "autoencoder": Autoencoder(latent_channels=4, pictures=20),
        "text_encoder": TextEncoder(width=32, layers=1, heads=2, max_tokens=12),
        "unet": Unet(channels=(16, 16, 32, 32), head_dim=8),
    }
    return Scratch(**(values | changes))


def autoencoder(latent_channels: int = 4) -> AutoencoderDC:
    """Principal components of patches of noise that is smooth, and of its steps."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand((32, 3, SIZE // 8, SIZE // 8), generator=rng) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    weights = torch.ones(len(pictures), 1, SIZE, SIZE)
    return linear_autoencoder(Components([(pictures, weights)], 4), latent_channels, 1.0)


def base(seed: int = 0, settings: Scratch | None = None) -> BaseModel:
    words = ["disc", "scratch", "hole"]
    return base_model.build(settings or scratch(), autoencoder(), SIZE, words, seed)


def method(kind: str, **values) -> MethodSettings:
    """Settings of a method, whose folder is looked for only now."""
    return settings_class(kind)(**{"kind": kind, **values})


def learner(kind: str, **values) -> MethodSettings:
    """The same with a few steps."""
    return method(kind, **{"optim": optim(), **values})


def dhdiff(**changes) -> MethodSettings:
    return learner("dhdiff", **{"trainable": "all", "text_tokens": "prompt", **changes})


def dualanodiff(**changes) -> MethodSettings:
    sizes = {"rank": 2, "text_rank": 2, "background_width": 8}
    return learner("dualanodiff", **{"sampling_steps": None, "guidance": None, **sizes, **changes})


def stage(**changes) -> MethodSettings:
    return learner("stage", **{"widths": (16, 32, 16), "sampling_steps": 10, **changes})


def anomalydiffusion(**changes) -> MethodSettings:
    steps = {"sampling_steps": 6, "mask_sampling_steps": 4, "mask_vectors": 3}
    prompts = {"prompt": "*", "mask_prompt": "*"}  # the small text encoder reads 12 tokens
    return learner("anomalydiffusion", **{**steps, **prompts, **changes})


def realnet(**changes) -> MethodSettings:
    return learner("realnet", **{"sampling_steps": 6, **changes})


def dfmgan(**changes) -> MethodSettings:
    sizes = {
        "z": 16,
        "w": 16,
        "channel_base": 256,
        "channel_max": 16,
        "match_base": 128,
        "match_max": 8,
        "defect_side": 16,
    }
    steps = AdversarialOptim(**{**optim().model_dump(), "lr": 2.5e-3, "grad_clip": None})
    return method("dfmgan", **{"backbone_steps": 2, **sizes, "optim": steps, **changes})


def crop_paste(**changes) -> MethodSettings:
    return method("crop_paste", **changes)


def sampling(**changes) -> Sampling:
    return Sampling(**{"steps": 2, **changes})


def randomise(module: torch.nn.Module, scale: float = 0.2, seed: int = 0) -> None:
    """Give zero-initialised weights a value, so that what they do can be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def prepared(
    folder: Path,
    normals: int = 4,
    defective: int = 4,
    defects: tuple[str, ...] = ("hole", "scratch"),
    size: int = SIZE,
) -> Path:
    """A folder as `prepare` writes it: grey noise pictures, a bright square as the defect."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    samples = []

    def add(defect: str, role: str, number: int) -> None:
        name = f"{role}_{defect}_{number:03d}"
        image = rng.normal(110, 8, (size, size, 3)).clip(0, 255).astype(np.uint8)
        mask = np.zeros((size, size), bool)
        if defect != "good":
            y, x = rng.integers(4, size - 12, 2)
            mask[y : y + 6, x : x + 8] = True
            image[mask] = 240 if defect == "hole" else 10
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"masks/{name}.png")
        Image.fromarray(image).save(folder / f"images/{name}.png")
        samples.append(
            Sample(
                id=name,
                dataset="Data",
                category="disc",
                defect=defect,
                role=role,
                image=f"images/{name}.png",
                mask=f"masks/{name}.png" if mask.any() else "",
                raw_mask=format_cells(5, raw_mask_cells(mask, 5)) if mask.any() else "",
                reference_cells="",
                reference_tight="",
                source=name,
                sha256="",
            )
        )

    for number in range(normals):
        add("good", "normal", number)
        add("good", "test", number)
    for defect in defects:
        for number in range(defective):
            add(defect, "generator", number)
            add(defect, "test", number)
    write_csv(folder / "samples.csv", sorted(samples, key=lambda s: s.id), Sample)
    return folder


def train_and_generate(options: MethodSettings, folder: Path) -> tuple[Path, list[Pair]]:
    """A method that learns, from its settings to two pairs of each of two defect types: the folder
    of its model, and the rows of the pairs' manifest.
    """
    key, section = options.kind, Generate(pairs=2, sampling=sampling(), gate=Gate(min_area=0.0))
    plain = {"generate": section, f"train.methods.{key}": options}
    config = Slice(
        {"run.seed": 0}
        | {name: json.loads(value.model_dump_json()) for name, value in plain.items()}
    )
    data, model, out = prepared(folder / "disc"), folder / "model", folder / "pairs"
    base().save(folder / "base")
    given = {"prepared": data, "state": folder / "state"}
    one = (key, "Data", "disc", config)
    train_stage.run(*one, base=folder / "base", out=model, **given)
    generate_stage.run(*one, model=model, out=out, **given)
    return model, read_csv(out / "manifest.csv", Pair)
