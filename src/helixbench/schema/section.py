"""What every section of `params.yaml` has in common."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticUndefined

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$"
Name = Annotated[str, Field(pattern=NAME)]
Symmetries = tuple[Literal["hflip", "vflip", "rot90"], ...]


class Section(BaseModel):
    """A group of values: not to be changed, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def setting(
    default: Any = PydanticUndefined, *, source: Any = "", written: Any = None, **about: Any
) -> Any:
    """Pydantic's Field with the source of its value in params.yaml.

    Args:
        default: as Field's; without one the key is needed.
        source: section of the paper, "reading N" of docs/readings.md, whose code or paper, or
            "ours"; of a section, by key.
        written: the value in params.yaml, where it is not the default.
        **about: description and limits, as Field's.
    """
    extra = {"source": source} if source else None
    examples = None if written is None else [written]
    return Field(default, examples=examples, json_schema_extra=extra, **about)


def values(**given: tuple[Any, str]) -> Any:
    """A section that is needed: its values in params.yaml and their sources, by key; all others
    are the section's own.
    """
    return setting(
        written={key: value for key, (value, _) in given.items()},
        source={key: source for key, (_, source) in given.items()},
    )


def rising(**limits: tuple[float, float]):
    """Check of a model: each named pair (low, high) rises within its limits, the lower of which is
    no value itself.
    """

    def check(model):
        for name, (low, high) in limits.items():
            pair = getattr(model, name)
            if pair is None:  # a range that is switched off
                continue
            if not low < pair[0] <= pair[1] <= high:
                raise ValueError(
                    f"{name} {list(pair)} must be two numbers above {low} and up to {high}, the "
                    f"smaller first"
                )
        return model

    return check


def used_only(entries: str, *parts: str):
    """Check of a section before its values are: leaves out the entries that `use` does not name,
    so that what a run does not use is not checked, and brings the others into the order of `use`.

    parts: fields of the section that `use` names, too; without their name they are None.
    """

    def choose(values):
        if not isinstance(values, Mapping) or values.get("use") is None:
            return values
        known, used = values.get(entries) or {}, values["use"]
        if not isinstance(known, Mapping) or not isinstance(used, list | tuple):
            return values  # wrong types, which are reported as such
        there = [*(part for part in parts if values.get(part) is not None), *known]
        for name in used:
            if name not in there:
                near = difflib.get_close_matches(str(name), map(str, there), 1)
                raise ValueError(
                    f"use names {name!r}, which is not in {entries} ({', '.join(map(str, there))})"
                    + (f"; did you mean {near[0]}?" if near else "")
                )
        unused = dict.fromkeys(part for part in parts if part not in used)
        return {**values, **unused, entries: {name: known[name] for name in used if name in known}}

    return model_validator(mode="before")(choose)


class Optim(Section):
    """What the shared trainer needs to know."""

    steps: int = setting(ge=1, description="optimiser steps")
    batch: int = setting(ge=1, description="samples per step")
    accumulate: int = setting(
        1,
        ge=1,
        description="passes a step, each with batch / accumulate samples, to save memory",
        source="ours",
    )
    lr: float = setting(gt=0, le=1, description="learning rate")
    warmup: int = setting(0, ge=0, description="steps of linear warm-up", source="ours")
    decay: Literal["constant", "cosine", "multistep"] = setting(
        "constant",
        description="after warm-up; multistep: x0.2 at 80 % and at 90 % of the steps",
        source="ours",
    )
    weight_decay: float = setting(
        0.0,
        ge=0,
        description="decoupled weight decay; 0 makes AdamW the paper's Adam",
        source="ours",
    )
    adam: Literal["fp32", "8bit"] = setting(
        "fp32",
        description="moments of Adam; 8bit: blockwise quantised, a quarter of the memory",
        source="ours",
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.999), description="decays of Adam's two moments", source="ours"
    )
    grad_clip: float | None = setting(
        1.0, gt=0, description="gradient-norm clip; null: none", source="ours"
    )
    ema: float = setting(
        0.0, ge=0, lt=1, description="decay of the averaged weights; 0: no average", source="ours"
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto",
        description="autocast type; auto: bf16 where the device computes it natively, else fp32",
        source="ours",
    )
    save_every_s: float = setting(
        300, gt=0, description="seconds between resume checkpoints [s]", source="ours"
    )
    log_every_s: float = setting(
        15, gt=0, description="seconds between status lines [s]", source="ours"
    )
    validate_every: int = setting(
        0,
        ge=0,
        description="steps between validation losses, on fixed samples and noise; 0: never",
        source="ours",
    )

    @property
    def per_pass(self) -> int:
        """Samples of one pass."""
        return self.batch // self.accumulate

    @model_validator(mode="after")
    def _decays(self):
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must be two numbers from 0 to below 1")
        return self

    @model_validator(mode="after")
    def _whole_passes(self):
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} must divide batch {self.batch}")
        return self


class AdversarialOptim(Optim):
    """What the shared trainer needs to know of a GAN."""

    betas: tuple[float, float] = setting(
        (0.0, 0.99), description="decays of Adam's two moments", source="StyleGAN2-ADA"
    )

    @model_validator(mode="after")
    def _halves(self):
        if self.per_pass % 2:
            raise ValueError(
                f"batch {self.batch} in {self.accumulate} passes: halves of a pass are compared, "
                f"so that it must be even"
            )
        return self
