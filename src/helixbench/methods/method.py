"""The interface of a method: a class with a typed config and two verbs, `loss` and `sample`.

Data, batching, resume, seeds, logging and writing are outside it. A method is a folder here with
its settings, `config.py`, and one subclass of Method, `method.py`; or either from outside this
package, as `kind` says (docs/extend.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from helixbench.diffusion.data import Pictures
from helixbench.engine import checkpoint
from helixbench.errors import UserError
from helixbench.schema import MethodSettings, Sampling
from helixbench.schema.method import class_of, settings_class

if (
    TYPE_CHECKING
):  # it loads diffusers and transformers, seconds that a method without a model need not wait
    from helixbench.diffusion.bank import Bank
    from helixbench.diffusion.base import BaseModel


@dataclass(frozen=True)
class Conditions:
    """What the plan gives a method for a batch of n pairs.

    category: its name; defects: n defect types; background: normal pictures (n, 3, H, W) in [0, 1];
    donor, donor_mask: real defective pictures (n, 3, H, W) in [0, 1] and their masks (n, 1, H, W)
    in {0, 1}, moved by the plan; raw_mask: the cells that the donor's mask touches (n, 1, H, W) in
    {0, 1}; control: graphical mask (n, 1, H, W) in {0, 1} or None; normals: all normals of the
    category, uint8 (N, H, W, 3), for methods that take texture from them.
    """

    category: str
    defects: list[str]
    background: torch.Tensor
    donor: torch.Tensor
    donor_mask: torch.Tensor
    raw_mask: torch.Tensor
    control: torch.Tensor | None = None
    normals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.defects)


class Method(ABC):
    """A generator of image+mask pairs."""

    config: MethodSettings

    @property
    def takes_raw_mask(self) -> bool:
        """Whether the raw mask of `Conditions` guides the pairs: then it is scored how far masks
        follow it.
        """
        return False

    @property
    def draws_into_background(self) -> bool:
        """Whether a pair shows the normal of `Conditions` outside of its defect, or tries to:
        then it can be laid into that normal (generate.composite).
        """
        return False

    @abstractmethod
    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make one pair per condition: images (n, 3, H, W) in [0, 1] and masks (n, 1, H, W) in {0,
        1}, on the CPU.

        Pure in its arguments: all randomness of pair i comes from CPU generator i, so that neither
        the batch nor the shard that a pair is made in changes it.
        """

    def describe(self) -> str:
        """Settings that change the pairs, for the protocol of every score; empty when the name says
        it all.
        """
        return ""

    def prompt(self, category: str, defect: str) -> str:
        """Text given to the model, for the manifest; empty for methods without text."""
        return ""


JointLoss = Callable[[torch.Generator], dict[str, torch.Tensor]]
"""Loss terms of one step, to be summed, drawn by a CPU generator."""


class Learner(Method):
    """A method that trains on one category before it samples."""

    @classmethod
    @abstractmethod
    def create(cls, config: MethodSettings, base: BaseModel, seed: int) -> Learner:
        """Untrained, on a loaded base model."""

    def begin(self, data: Pictures) -> None:  # noqa: B027
        """Look at the training data once, after `create` and before the first step: for weights
        that depend on it.
        """

    @classmethod
    @abstractmethod
    def load(cls, config: MethodSettings, folder: Path, sampling: Sampling) -> Learner:
        """Trained, ready to sample."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """All weights that training moves; frozen ones have requires_grad off."""

    @abstractmethod
    def to(self, device: torch.device) -> Learner:
        """Move all weights."""

    def joint_loss(self, bank: Bank, cells: int) -> JointLoss:
        """Its task on pictures of many categories, for a start of its own (train.joint.methods).

        cells: K of the raw masks. Raises UserError where the method has none.
        """
        raise UserError(f"{type(self).__name__}: has no joint task; leave it out of train.joint")

    def save_start(self, folder: Path) -> None:
        """Write what `joint_loss` has trained, which `create` reads again."""
        raise NotImplementedError

    def schedule(self, step: int) -> None:  # noqa: B027
        """Told the step, from 0, before its loss: for methods that train in stages."""

    @abstractmethod
    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Loss terms of one step, to be summed; the batch is drawn from `data` with `rng` (CPU)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained model: a diffusers-format folder plus the method's own safetensors."""


def load_exactly(module: nn.Module, wanted: set[str], file: Path) -> None:
    """Load the `wanted` names of a module's state, and no others, from a method's own safetensors
    file; UserError when it holds others or other shapes.
    """
    state, tensors = module.state_dict(), checkpoint.load_tensors(file)[0]
    if tensors.keys() != wanted or any(tensors[name].shape != state[name].shape for name in wanted):
        raise UserError(f"{file}: trained with other settings of this method; train again")
    module.load_state_dict(tensors, strict=False)


def method_class(kind: str) -> type[Method]:
    """The method that a kind names, imported only now; UserError where there is none."""
    try:
        settings_class(kind)
        found = class_of(kind, "method", Method)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not issubclass(found, Method):
        raise UserError(f"{kind}: not a subclass of helixbench.methods.method.Method")
    return found
