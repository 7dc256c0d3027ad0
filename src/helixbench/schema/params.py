"""`params.yaml` as the schema has it: every value with its description and its source."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from helixbench.schema import Ablation, Comparator, Config, Dataset
from helixbench.schema.method import kinds, settings_class
from helixbench.schema.section import Section

WIDTH = 100
SCHEMA = "workflow/schemas/params.schema.json"
HEAD = f"""\
# yaml-language-server: $schema={SCHEMA}
#
# The configuration of the DH-Diff paper (arXiv 2509.12787v1). `helixbench config write` writes this
# file from the schema (src/helixbench/schema, src/helixbench/methods/*/config.py): change a value
# there, or for a run in an overlay (config/*.yaml, given with --configfile).
#
# A comment says what a key means and, after the bar, where its value is from: a section of the
# paper; our reading of what the paper leaves open, by its number in docs/readings.md; the paper or
# code of another method; or "ours". What a key means is said once, where it first stands.
"""


class Entry(NamedTuple):
    """A section of a dictionary: its schema, what its values and their sources are where these are
    not the schema's own, and what there is to say of it.
    """

    model: type[Section]
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    about: str


def params_yaml() -> str:
    """The text of params.yaml."""
    said: set[tuple[str, str]] = set()
    lines = [HEAD.rstrip()]
    for name, field in Config.model_fields.items():
        # Methods that are added to the repository have a section, and no part in the paper run.
        used = [kind for kind, entry in _methods().items() if entry.model.in_paper_run]
        given = {"use": used} if name == "train" else {}
        lines += ["", f"{name}:", *_section(Entry(field.annotation, given, {}, ""), 1, said)]
    return "\n".join(lines) + "\n"


def _section(entry: Entry, depth: int, said: set[tuple[str, str]]) -> Iterator[str]:
    """Lines of a section at this depth; said: keys and descriptions that were written before."""
    indent = "  " * depth
    for name, field in entry.model.model_fields.items():
        value = entry.values.get(name, _written(field))
        source = entry.sources.get(name, (field.json_schema_extra or {}).get("source", ""))
        if name in _ENTRIES:
            yield f"{indent}{name}:"
            for key, inner in _ENTRIES[name](value, source).items():
                yield from _comment(inner.about, depth + 1)
                yield f"{indent}  {key}:"
                yield from _section(inner, depth + 2, said)
        elif inner := _model(field.annotation):
            if value is not None:  # an overlay adds a section that the paper run does not have
                yield f"{indent}{name}:"
                yield from _section(Entry(inner, value, source or {}, ""), depth + 1, said)
        else:
            description = field.description or ""
            if (name, description) in said:
                description = ""
            said.add((name, description))
            yield from _line(name, value, description, source, depth)


def _written(field: FieldInfo) -> Any:
    """The value of a field in params.yaml; of a section, the values that it is given by key."""
    if field.examples:
        return field.examples[0]
    default = {} if field.default is PydanticUndefined else field.default
    return default.model_dump(exclude_unset=True) if isinstance(default, Section) else default


def _model(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    members = get_args(annotation) or (annotation,)
    found = [m for m in members if isinstance(m, type) and issubclass(m, Section)]
    return found[0] if found else None


def _line(name: str, value: Any, description: str, source: str, depth: int) -> Iterator[str]:
    """A key with its value, its comment behind it or, where that is too long, above it."""
    indent = "  " * depth
    comment = " | ".join(filter(None, [description, source]))
    text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10**9)
    text = text.removesuffix("...\n").rstrip()  # the end of a document that is one scalar
    lines = textwrap.wrap(
        f"{name}: {text}",
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    behind = f"{lines[0]}  # {comment}"
    if comment and len(lines) == 1 and len(behind) <= WIDTH:
        yield behind
    else:
        yield from _comment(comment, depth)
        yield from lines


def _comment(text: str, depth: int) -> list[str]:
    """A comment of its own, in lines that fit."""
    start = f"{'  ' * depth}# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start)


def _plain(value: Any) -> Any:
    """Tuples as lists, all through."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


# -------------------------------------------------------------------------------------------------
# the dictionaries of sections


def _about(model: type[Section]) -> str:
    return " ".join(inspect.getdoc(model).split())


def _datasets(values: Mapping, sources: Mapping) -> dict[str, Entry]:
    return {name: Entry(Dataset, value, sources[name], "") for name, value in values.items()}


def _methods(*_: Any) -> dict[str, Entry]:
    """The method with ablations first, then those that learn nothing, then the others."""
    found = {kind: settings_class(kind) for kind in kinds()}
    order = sorted(
        found, key=lambda kind: (not found[kind].arms, "optim" in found[kind].model_fields, kind)
    )
    return {kind: Entry(found[kind], {"kind": kind}, {}, _about(found[kind])) for kind in order}


def _ablations(*_: Any) -> dict[str, Entry]:
    return {
        key: Entry(Ablation, {"of": kind, "change": arm.change, "rows": arm.rows}, {}, arm.source)
        for kind in kinds()
        for key, arm in settings_class(kind).arms.items()
    }


def _comparators(*_: Any) -> dict[str, Entry]:
    union = get_args(Comparator)[0]
    found = {get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(union)}
    return {
        model.key or kind: Entry(model, {"kind": kind}, {}, _about(model))
        for kind, model in found.items()
    }


_ENTRIES = {
    "datasets": _datasets,
    "methods": _methods,
    "ablations": _ablations,
    "comparators": _comparators,
}
