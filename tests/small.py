"""Small models and data that several tests build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helixbench.diffusion import base as base_model
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.methods.anomalydiffusion.config import AnomalyDiffusion
from helixbench.methods.crop_paste.config import CropPaste
from helixbench.methods.dfmgan.config import DFMGAN
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dualanodiff.config import DualAnoDiff
from helixbench.methods.realnet.config import RealNet
from helixbench.methods.stage.config import Stage
from helixbench.pictures.raw_mask import raw_mask_cells
from helixbench.records import Sample, format_cells, write_csv
from helixbench.schema import (
    AdversarialOptim,
    Autoencoder,
    Optim,
    Sampling,
    Scratch,
    TextEncoder,
    Unet,
)

SIZE = 32


def optim(**changes) -> Optim:
    return Optim(**{"steps": 4, "batch": 4, "lr": 1e-3, "precision": "fp32", **changes})


def scratch(**changes) -> Scratch:
    values = {
        "autoencoder": Autoencoder(channels=(16, 16, 16), optim=optim()),
        "text_encoder": TextEncoder(width=32, layers=1, heads=2, max_tokens=12),
        "unet": Unet(channels=(16, 16, 32, 32), head_dim=8),
    }
    return Scratch(**(values | changes))


def base(seed: int = 0) -> BaseModel:
    return base_model.build(scratch(), SIZE, ["disc", "scratch", "hole"], seed)


def scale_latents(model: BaseModel, data: Pictures) -> BaseModel:
    """The model, with its random autoencoder's latents scaled to unit variance, as a trained one's
    are."""
    pictures, _ = data.autoencoder_batch(16, 0.25, torch.Generator().manual_seed(0))
    scale = model.vae.config.scaling_factor / float(model.encode(pictures).std())
    model.vae.register_to_config(scaling_factor=scale)
    return model


def dhdiff(**changes) -> DHDiff:
    return DHDiff(
        **{
            "kind": "dhdiff",
            "trainable": "all",
            "text_tokens": "prompt",
            "optim": optim(),
            **changes,
        }
    )


def dualanodiff(**changes) -> DualAnoDiff:
    return DualAnoDiff(
        **{
            "kind": "dualanodiff",
            "sampling_steps": None,
            "guidance": None,
            "rank": 2,
            "text_rank": 2,
            "background_width": 8,
            "optim": optim(),
            **changes,
        }
    )


def stage(**changes) -> Stage:
    return Stage(
        **{
            "kind": "stage",
            "widths": (16, 32, 16),
            "sampling_steps": 10,
            "optim": optim(),
            **changes,
        }
    )


def anomalydiffusion(**changes) -> AnomalyDiffusion:
    values = {
        "kind": "anomalydiffusion",
        "sampling_steps": 6,
        "mask_sampling_steps": 4,
        "mask_vectors": 3,
        "optim": optim(),
    }
    values |= {"prompt": "*", "mask_prompt": "*"}  # the small text encoder reads 12 tokens
    return AnomalyDiffusion(**{**values, **changes})


def realnet(**changes) -> RealNet:
    return RealNet(**{"kind": "realnet", "sampling_steps": 6, "optim": optim(), **changes})


def dfmgan(**changes) -> DFMGAN:
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
    return DFMGAN(**{"kind": "dfmgan", "backbone_steps": 2, **sizes, "optim": steps, **changes})


def crop_paste(**changes) -> CropPaste:
    return CropPaste(kind="crop_paste", **changes)


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
