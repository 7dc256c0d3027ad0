"""Configuration: load params.yaml and overlays, validate, cut the slice that one job may read,
digest.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from helixbench.errors import UserError
from helixbench.provenance import read_object
from helixbench.schema import Config
from helixbench.schema.method import MethodSettings, settings_class
from helixbench.schema.section import NAME


def overlay(below: Any, above: Any) -> Any:
    """Dictionaries merge, everything else replaces: the rule of Snakemake's --configfile."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        return {**below, **{key: overlay(below.get(key), value) for key, value in above.items()}}
    return above


def _unwrap(annotation: Any) -> Any:
    """A schema type without its constraints and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _unwrap(members[0])
    return annotation


def _walk(root: Any, values: Any, location: Iterable) -> tuple[list[str], Any]:
    """Follow pydantic's location of an error: the key as the user wrote it, and the schema type
    there.

    Pydantic names the member of a union (its `kind`, or its type) as a step of its own, which is
    no key of the file.
    """
    parts, node = [], _node(root, values)
    for part in location:
        if get_origin(node) in (Union, UnionType):
            tagged = (m for m in get_args(node) if "kind" in getattr(m, "model_fields", {}))
            named = (m for m in tagged if part in get_args(m.model_fields["kind"].annotation))
            node = next(named, None)
            continue
        if part == "[key]" or str(part).startswith("function-"):
            continue
        parts.append(str(part))
        values = values.get(part) if isinstance(values, Mapping) else None
        fields = getattr(node, "model_fields", {})
        if part in fields:
            node = _node(fields[part].annotation, values)
        else:
            node = _node(get_args(node)[1], values) if get_origin(node) is dict else None
    return parts, node


def _node(annotation: Any, values: Any) -> Any:
    """The schema type of these values."""
    node = _unwrap(annotation)
    if node is MethodSettings and isinstance(values, Mapping):
        with suppress(ValueError):  # an unknown kind, which is reported as such
            return settings_class(values.get("kind", ""))
    return node


def _problem(item: Mapping) -> str:
    """What is wrong with a value, and what to write instead."""
    given = item.get("input")
    if item["type"] == "string_type" and isinstance(given, bool | int | float | date):
        kind = {bool: "a truth value", date: "a date"}.get(type(given), "a number")
        return f"needs quotes: YAML reads it as {kind}, {given}"
    if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] == NAME:
        return (
            f"letters, digits, _ and - are allowed, the first a letter or digit, 100 at most, not "
            f"{given!r}"
        )
    if item["type"] == "tuple_type" and isinstance(given, str):
        return f"a list is needed: [{given}]"
    problem = item["msg"].removeprefix("Value error, ")
    if not isinstance(given, Mapping) and item["type"] != "missing":
        problem += f", not {given!r}"
    return problem


def _one_line(error: ValidationError, source: str, root: Any, values: Any) -> str:
    lines, items = [], error.errors()
    for item in items:
        location = item["loc"]
        # A list of wrong entries is too short, too, which says nothing.
        if item["type"] == "too_short" and any(
            other["loc"][: len(location)] == location and other is not item for other in items
        ):
            continue
        parts, _ = _walk(root, values, location)
        if item["type"].startswith("union_tag"):
            parts.append("kind")
        if item["type"] == "extra_forbidden":
            section = _walk(root, values, location[:-1])[1]
            near = difflib.get_close_matches(parts[-1], getattr(section, "model_fields", {}), 1)
            problem = "no such key" + (f" (did you mean {near[0]}?)" if near else "")
        else:
            problem = _problem(item)
        # An error of the whole configuration has no key of its own, and names those it is about.
        lines.append(": ".join(filter(None, [".".join(parts), problem])))
    return f"{source}: " + "; ".join(lines)


def validate(values: Mapping, source: str = "params.yaml") -> Config:
    """Parsed YAML in, configuration out; UserError with every wrong key's full name.

    What `prepare.use`, `train.use` and `detect.use` do not name is left out before it is checked.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error, source, Config, values)) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: YAML would drop the first without a word."""

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def read_yaml(file: str | Path) -> Any:
    """What a YAML file holds; UserError naming it where it is unreadable or says a thing twice."""
    try:
        return _Loader(Path(file).read_text(encoding="utf-8")).get_single_data()  # as safe_load
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a readable YAML file") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deep; see params.yaml") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no such date, a number too long
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None


def load(path: str | Path = "params.yaml", *overlays: str | Path) -> Config:
    """Read params.yaml and overlays; later files win, dictionaries merge, lists replace."""
    values: Any = {}
    for file in (path, *overlays):
        values = overlay(values, read_yaml(file) or {})
        if not isinstance(values, Mapping):
            raise UserError(f"{file}: not a YAML mapping of sections; see params.yaml")
    return validate(values, " + ".join(str(file) for file in (path, *overlays)))


def lookup(config: Config, key: str) -> Any:
    """The value at a dotted key; `train.methods.<name>` is also the configuration of an ablation's
    arm.
    """
    node: Any = config
    parts = key.split(".")
    if parts[:2] == ["train", "methods"] and parts[2:3] and parts[2] in config.train.arms:
        node, parts = config.train.arms, parts[2:]
    for part in parts:
        node = node[part] if isinstance(node, Mapping) else getattr(node, part)
    return node


def slice_config(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """Exactly the values at `keys`, as plain JSON: what one stage may read."""
    return {key: to_jsonable_python(lookup(config, key)) for key in sorted(keys)}


def digest(values: Any) -> str:
    """sha256 of canonical JSON, first 16 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _type_at(key: str) -> TypeAdapter:
    """The schema type at a dotted key; dictionary levels take any name."""
    annotation: Any = Config
    for part in key.split("."):
        node = _unwrap(annotation)
        if part in getattr(node, "model_fields", {}):
            annotation = node.model_fields[part].rebuild_annotation()
        elif get_origin(node) is dict:
            annotation = get_args(node)[1]
        else:
            raise KeyError(key)
    return TypeAdapter(annotation)


class UndeclaredKey(UserError, KeyError):
    """A job asked for a key that it did not declare, or that does not exist."""


class Slice(Mapping):
    """The part of a configuration that one job declared; any other key raises KeyError.

    `slice["train.base"]` is typed and validated as in `Config`.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = dict(values)

    @classmethod
    def load(cls, path: str | Path) -> Slice:
        """Read a file written by the workflow's `config_slice`."""
        return cls(read_object(Path(path), "not a configuration slice; let Snakemake write it"))

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise UndeclaredKey(
                f"{key}: not in the configuration slice of this job; it holds "
                f"{', '.join(self._values)}"
            )
        value = self._values[key]
        try:
            return _type_at(key).validate_python(value)
        except ValidationError as error:
            raise UserError(
                _one_line(error, f"configuration slice, {key}", _type_at(key)._type, value)
            ) from None

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def digest(self) -> str:
        """Digest of all values of the slice."""
        return digest(self._values)


def json_schema() -> dict[str, Any]:
    """JSON schema of params.yaml, as kept in workflow/schemas/."""
    return Config.model_json_schema()
