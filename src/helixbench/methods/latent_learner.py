"""What methods share that learn on a latent diffusion model: the base and its latents, the words of
a prompt, and a folder with what the method adds.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from helixbench.diffusion.base import PARTS, BaseModel
from helixbench.engine import checkpoint
from helixbench.methods.method import Learner, load_exactly
from helixbench.pictures.transforms import to_tensor
from helixbench.provenance import write_json
from helixbench.records import derive_seed
from helixbench.schema import MethodSettings, Sampling


class LatentLearner(Learner):
    """A learner on a base model whose autoencoder and text encoder are frozen.

    A subclass sets `name`, after which the files of its own are called, and makes `self._module`
    from the base in `__init__`. It may say in `own` what it adds to the base.
    """

    name: ClassVar[str]
    config: MethodSettings
    _module: nn.Module

    def __init__(self, config: MethodSettings, base: BaseModel, sampling: Sampling | None = None):
        self.config, self.base, self.sampling = config, base, sampling
        base.vae.requires_grad_(False).eval()
        base.text_encoder.requires_grad_(False).eval()
        self._known: dict[tuple, torch.Tensor] = {}

    @classmethod
    def create(cls, config: MethodSettings, base: BaseModel, seed: int) -> Self:
        """Untrained, on a loaded base, with seeded new weights."""
        with _seeded(seed, cls.name):
            learner = cls(config, base)
        with _seeded(seed, "adapters"):
            learner.trainable_()
        return learner

    def trainable_(self) -> None:  # noqa: B027
        """Say what training moves; may add seeded adapters."""

    # ---------------------------------------------------------------------------------------------
    # the folder

    def own(self) -> set[str]:
        """Names in the state of `module` that the base does not have."""
        return set()

    def settings(self) -> dict[str, Any]:
        """What `<name>.json` holds: the configuration."""
        return json.loads(self.config.model_dump_json())

    def save(self, folder: Path) -> None:
        """A diffusers-format folder of the base, <name>.safetensors with what the method adds, if
        it adds anything, and <name>.json.
        """
        save_base(self.base, folder)
        self.save_own(folder / f"{self.name}.safetensors")
        write_json(folder / f"{self.name}.json", self.settings())

    def save_own(self, file: Path) -> None:
        """Write the weights that the base does not have."""
        state = self.module.state_dict()
        if names := sorted(self.own()):
            checkpoint.save_tensors(file, {name: state[name] for name in names})

    def load_own(self, file: Path) -> None:
        """Read them back."""
        if names := self.own():
            load_exactly(self.module, names, file)

    @classmethod
    def load(cls, config: MethodSettings, folder: Path, sampling: Sampling) -> Self:
        """Trained, from the folder that `save` wrote."""
        learner = cls(config, BaseModel.load(folder), sampling)
        learner.load_own(folder / f"{cls.name}.safetensors")
        learner.module.eval().requires_grad_(False)
        return learner

    # ---------------------------------------------------------------------------------------------
    # weights and where they are

    @property
    def module(self) -> nn.Module:
        """The U-Net and what the method adds."""
        return self._module

    def to(self, device: torch.device) -> Self:
        """Move all weights."""
        self.base.to(device)
        self.module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.base.unet.device

    def present(self, part: nn.Module) -> AbstractContextManager:
        """Has a part of the base on `device` meanwhile; it is there to stay, unless a subclass
        says otherwise.
        """
        return nullcontext()

    # ---------------------------------------------------------------------------------------------
    # pictures and words

    def latents(
        self, keys: Sequence[tuple], pictures: Sequence[np.ndarray | torch.Tensor]
    ) -> torch.Tensor:
        """Latents (B, C, h, w) of training pictures, encoded once and kept on the CPU.

        Args:
            keys: one for each picture; the same picture by the same key.
            pictures: (H, W, 3) uint8, masks (H, W) bool, which become three channels of 0 and 1
                (reading 10), or tensors (3, H, W) in [0, 1].
        """
        new = {k: p for k, p in zip(keys, pictures, strict=True) if k not in self._known}
        if new:
            with torch.autocast(self.device.type, enabled=False), self.present(self.base.vae):
                # One at a time: a latent must not depend on what else a resumed run has not
                # encoded yet.
                for key, picture in new.items():
                    self._known[key] = self.base.encode(_one(picture))[0].cpu()
        return torch.stack([self._known[key] for key in keys]).to(self.device)

    @staticmethod
    def text(template: str, category: str, defect: str = "") -> str:
        """A prompt's template with the words of category and defect type."""
        return template.format(category=words(category), defect=words(defect))


@contextmanager
def _seeded(seed: int, *names: str) -> Iterator[None]:
    """Torch's random numbers meanwhile derived from seed and names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *names))
        yield


def _one(picture: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A batch (1, 3, H, W) in [0, 1] of one picture."""
    if isinstance(picture, torch.Tensor):
        return picture[None]
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None] * np.uint8(255), 3, axis=2)
    return to_tensor([picture])


def words(name: str) -> str:
    """A folder's name as text of a prompt."""
    return name.replace("_", " ")


def draw_rows(
    pool: Sequence[int], symmetries: Sequence[str], count: int, rng: torch.Generator
) -> list[tuple[int, str]]:
    """`count` random pictures, by index, each with a random symmetry."""

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=rng))

    return [(pool[pick(len(pool))], symmetries[pick(len(symmetries))]) for _ in range(count)]


# -------------------------------------------------------------------------------------------------
# adapters


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
    base.save_index(folder)
