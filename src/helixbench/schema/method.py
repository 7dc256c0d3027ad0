"""Settings of a method: found by its `kind`, which names a folder of this package or a module from
elsewhere.

`kind: draem` is the package helixbench.methods.draem, `kind: package.module` any other package:
its module `config` has the settings, its module `method` the method. `kind: package.module:Class`
is a method in one file, whose class attribute `Config` has the settings (docs/extend.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from helixbench.schema.section import Section

if TYPE_CHECKING:
    from helixbench.schema import Config

METHODS = "helixbench.methods"
STAR = r"^[^*]*\*[^*]*$"
STAR_OR_TEMPLATES = r"^(templates|[^*]*\*[^*]*)$"


class Arm(NamedTuple):
    """An arm of Tables VIII and IX: what it changes, its row in each table, and its source."""

    change: dict[str, Any]
    rows: dict[int, str]
    source: str


class MethodSettings(Section):
    """Settings of a method under `train.methods`; a subclass adds its own.

    A method learns if it has a field `optim`. in_paper_run: whether `train.use` of params.yaml
    names it; arms: its ablations there, by key.
    """

    in_paper_run: ClassVar[bool] = False
    arms: ClassVar[Mapping[str, Arm]] = {}

    kind: str = Field(description="which method this key configures")
    label: str = Field(description="name in the tables")

    def conflict(self, config: Config) -> str:
        """Why this method cannot run under the whole configuration; empty: it can."""
        return ""


def known_places(prompt: str) -> str:
    """A prompt's template as it is; ValueError if other words than category and defect stand in
    braces.
    """
    try:
        places = [part[1:] for part in Formatter().parse(prompt) if part[1] is not None]
    except ValueError:
        places = [("", "", None)]
    if any(place not in (("category", "", None), ("defect", "", None)) for place in places):
        raise ValueError("only {category} and {defect} may stand in braces")
    return prompt


@cache
def kinds() -> list[str]:
    """Kinds of the methods of this package: its folders with a `config.py`, sorted."""
    return sorted(
        file.parent.name
        for root in import_module(METHODS).__path__
        for file in Path(root).glob("*/config.py")
    )


def class_of(kind: str, module: str, base: type) -> type:
    """The class that a kind names.

    Args:
        kind: as in params.yaml.
        module: the module of the method's package that has the class, `config` or `method`.
        base: what the class derives from.

    Raises ValueError where it is not there.
    """
    package, _, name = kind.partition(":")
    if not name:
        name = f"{package}.{module}" if "." in package else f"{METHODS}.{package}.{module}"
        found = [
            value
            for value in vars(_imported(kind, name)).values()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == name
        ]
        if len(found) != 1:
            raise ValueError(
                f"{kind}: {name} must define one subclass of {base.__module__}.{base.__name__}, "
                f"not {len(found)}"
            )
        return found[0]
    found = getattr(_imported(kind, package), name, None)
    if found is None:
        raise ValueError(f"{kind} cannot be imported (no {name} in {package}); correct its name")
    return found


def _imported(kind: str, module: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # whatever a file from elsewhere raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{kind} cannot be imported ({reason}); install its package or name its folder in "
            f"PYTHONPATH"
        ) from None


def settings_class(kind: str) -> type[MethodSettings]:
    """The settings of a kind; imports no torch for the methods of this package. ValueError where
    there are none.
    """
    if ":" not in kind:
        return class_of(kind, "config", MethodSettings)
    config = getattr(class_of(kind, "", object), "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodSettings)):
        raise ValueError(
            f"{kind} needs a class attribute Config, a subclass of helixbench.schema.MethodSettings"
        )
    return config


class _ByKind:
    """Validates the settings of a method by those that its `kind` names."""

    def __get_pydantic_core_schema__(self, source, handler):
        def validate(value):
            kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
            if not isinstance(kind, str) or not (set(".:") & set(kind) or kind in kinds()):
                raise _unknown(kind)
            return settings_class(kind).model_validate(value)

        return core_schema.no_info_plain_validator_function(validate)

    def __get_pydantic_json_schema__(self, schema, handler):
        known = {kind: settings_class(kind).__pydantic_core_schema__ for kind in kinds()}
        outside = {
            "type": "object",
            "required": ["kind", "label"],
            "properties": {"kind": {"type": "string", "pattern": "[.:]"}},
        }
        return {
            "anyOf": [
                handler(core_schema.tagged_union_schema(known, discriminator="kind")),
                outside,
            ]
        }


def _unknown(kind: Any) -> ValidationError:
    near = difflib.get_close_matches(str(kind), kinds(), 1)
    about = {"known": ", ".join(kinds()), "near": f" (did you mean {near[0]}?)" if near else ""}
    message = "not a method, which are {known}, or package.module:Class{near}"
    error = PydanticCustomError("unknown_kind", message, about)
    return ValidationError.from_exception_data(
        "method", [InitErrorDetails(type=error, loc=("kind",), input=kind)]
    )


MethodConfig = Annotated[MethodSettings, _ByKind()]
