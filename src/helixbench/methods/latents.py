"""What the latent-diffusion rivals share: latents encoded once, adapters, and saving a base that
carries adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from helixbench.diffusion.base import PARTS, BaseModel
from helixbench.engine import checkpoint
from helixbench.errors import UserError


class LatentMemory:
    """Latents of training pictures by key: encoded once, kept on the CPU."""

    def __init__(self, base: BaseModel):
        self.base = base
        self._known: dict[tuple, torch.Tensor] = {}

    def __call__(self, keys: Sequence[tuple], pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """Pictures (3, H, W) in [0, 1] by their keys -> latents (B, C, h, w) on the autoencoder's
        device.
        """
        device = self.base.vae.device
        for key, picture in zip(keys, pictures, strict=True):
            if key not in self._known:
                # One at a time: a latent must not depend on what else a resumed run has not encoded
                # yet.
                with torch.autocast(device.type, enabled=False):
                    self._known[key] = self.base.encode(picture[None])[0].cpu()
        return torch.stack([self._known[key] for key in keys]).to(device)


def words(name: str) -> str:
    """A folder's name as text of a prompt."""
    return name.replace("_", " ")


def transformer_blocks(unet: UNet2DConditionModel) -> Iterator[tuple[str, BasicTransformerBlock]]:
    """All transformer blocks with their names, dots as underscores (a module's name must not hold
    dots).
    """
    for name, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock):
            yield name.replace(".", "_"), module


def add_low_rank(module: nn.Module, name: str, rank: int, targets: list[str]) -> None:
    """Inject low-rank adapters (Hu et al. 2021) into linear layers, which are frozen by it; no
    change of the output yet.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two sets are wanted
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), module, name
        )


def adapters(module: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' part of a module's state."""
    return {name: tensor for name, tensor in module.state_dict().items() if ".lora_" in name}


def save_base(base: BaseModel, folder: Path) -> None:
    """Write the base in diffusers format as if it had no adapters, so that everything else can load
    it.
    """
    for part in PARTS:
        module = getattr(base, part)
        if not (isinstance(module, nn.Module) and adapters(module)):
            base.save_part(part, folder)
        else:
            plain = (
                module.from_config(module.config) if part == "unet" else type(module)(module.config)
            )
            state = {
                name.replace(".base_layer", ""): t
                for name, t in module.state_dict().items()
                if ".lora_" not in name
            }
            plain.load_state_dict(state)
            plain.save_pretrained(folder / part)


def load_exactly(
    module: nn.Module, tensors: dict[str, torch.Tensor], wanted: set[str], file: Path
) -> None:
    """Load exactly the `wanted` names of a module's state; UserError when the file holds others or
    other shapes.
    """
    state = module.state_dict()
    if tensors.keys() != wanted or any(tensors[name].shape != state[name].shape for name in wanted):
        raise UserError(f"{file}: trained with other settings of this method; train again")
    module.load_state_dict(tensors, strict=False)


def read(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a method's own safetensors file."""
    return checkpoint.load_tensors(file)[0]
