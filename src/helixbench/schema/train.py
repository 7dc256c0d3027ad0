"""Section `train`: base model, methods, ablations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from helixbench.schema.base import Pretrained, Scratch
from helixbench.schema.joint import Joint
from helixbench.schema.method import MethodConfig
from helixbench.schema.section import Name, Section, setting, used_only

EMBEDDED = str(Path(__file__).parents[1] / "embedded")
"""Folder of the base that the package brings."""


class Ablation(Section):
    """An arm of Tables VIII and IX: a method with something changed, trained and tested for these
    tables only.
    """

    of: Name = Field(description="key of the method under train.methods")
    change: dict[str, Any] = Field(
        description="values that differ, by key; none: the method itself stands in the rows"
    )
    rows: dict[Annotated[int, Field(ge=8, le=9)], str] = Field(
        min_length=1, description="table number: name of its row there"
    )


class Train(Section):
    """The base model and the methods that grow on it."""

    base: Literal["stable-diffusion-v1-5", "scratch", "joint", "embedded"] = setting(
        "stable-diffusion-v1-5",
        description="base model: downloaded; built small for each category, of random weights; "
        "small, trained over many categories; or such a one that the package brings",
        source="paper II-C and IV-E, without a version: reading 1",
    )
    pretrained: Pretrained = Pretrained()
    scratch: Scratch | None = Field(None, description="needed by `base: scratch`")
    joint: Joint | None = Field(None, description="needed by `base: joint`")
    use: tuple[Name, ...] | None = setting(
        None,
        description="methods of this run, by their keys in `methods`; null: all",
        source="ours",
    )
    methods: dict[Name, SerializeAsAny[MethodConfig]] = Field(
        min_length=1, description="methods by key"
    )
    ablations: dict[Name, Ablation] = Field(
        {}, description="arms by key; those of methods that are not used are left out"
    )

    _used = used_only("methods")

    @property
    def base_folder(self) -> str:
        """Folder of a base that no rule makes."""
        return EMBEDDED if self.base == "embedded" else self.pretrained.path

    @cached_property
    def arms(self) -> dict[str, Any]:
        """Configuration of each ablation that changes something; its label is its key."""
        changed = {key: ablation for key, ablation in self.ablations.items() if ablation.change}
        values = {
            key: self.methods[arm.of].model_dump() | arm.change | {"label": key}
            for key, arm in changed.items()
        }
        return {
            key: type(self.methods[changed[key].of]).model_validate(v) for key, v in values.items()
        }

    @property
    def everything(self) -> dict[str, Any]:
        """Methods and arms by key."""
        return {**self.methods, **self.arms}

    def rows(self, table: int) -> dict[str, str]:
        """Rows of Table VIII or IX: name -> key of the method or arm that stands there."""
        return {
            arm.rows[table]: key if arm.change else arm.of
            for key, arm in self.ablations.items()
            if table in arm.rows
        }

    @model_validator(mode="before")
    @classmethod
    def _arms_of_what_is_used(cls, values):
        """Arms go with their method; runs before the methods that are not used are left out."""
        if not isinstance(values, Mapping) or not isinstance(values.get("use"), list | tuple):
            return values
        known, arms = values.get("methods"), values.get("ablations")
        if not isinstance(known, Mapping) or not isinstance(arms, Mapping):
            return values
        unused = known.keys() - set(values["use"])
        kept = {
            key: arm
            for key, arm in arms.items()
            if not (isinstance(arm, Mapping) and arm.get("of") in unused)
        }
        return {**values, "ablations": kept}

    @model_validator(mode="after")
    def _arms_are_methods(self):
        for key, ablation in self.ablations.items():
            if key in self.methods:
                raise ValueError(f"ablations.{key}: a method has that name; choose another one")
            if ablation.of not in self.methods:
                raise ValueError(
                    f"ablations.{key}.of: no method {ablation.of!r} under train.methods"
                )
        try:
            _ = self.arms
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(
                f"ablations: {'.'.join(map(str, first['loc']))}: {first['msg']}, not "
                f"{first['input']!r}"
            ) from None
        return self

    @field_validator("methods", "ablations")
    @classmethod
    def _not_base(cls, methods):
        if "base" in methods:
            raise ValueError("`base` is taken (the base model); choose another name")
        return methods

    @model_validator(mode="after")
    def _base_given(self):
        learns = any(hasattr(method, "optim") for method in self.methods.values())
        if self.base in ("scratch", "joint") and getattr(self, self.base) is None and learns:
            raise ValueError(f"base {self.base} needs the section `{self.base}`")
        return self
