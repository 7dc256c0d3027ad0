"""How a number was measured, as data: numbers of different protocols never share a column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from helixbench.errors import UserError

Fact = str | int | float | bool | None | tuple["Fact", ...] | Mapping[str, "Fact"]


def _plain(value: Any) -> Any:
    """Tuples and mappings as JSON gives them back, so that equal facts are equal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


@dataclass(frozen=True)
class Protocol:
    """Name of the measurement and its facts: network, weights, split, counts, checkpoint rule,
    settings of the pairs. Equality is that of all facts; `report/` makes words of them.

    name: `localization`, `inception_score`, ...; facts: JSON values by name, in any order.
    """

    name: str
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "facts", dict(sorted(_plain(self.facts).items())))

    def __hash__(self) -> int:
        return hash(self.cell())

    def cell(self) -> str:
        """Canonical JSON, one cell of a CSV file: `{"facts": {...}, "name": "..."}`."""
        content = {"name": self.name, "facts": self.facts}
        return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def parse(cls, cell: str) -> Protocol:
        """The protocol that `cell` wrote; UserError for any other text."""
        try:
            content = json.loads(cell)
            return cls(str(content["name"]), dict(content["facts"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"protocol {cell[:80]!r}: not one that HelixBench wrote ({error}); score again"
            ) from None

    def get(self, fact: str, default: Fact = None) -> Fact:
        """One fact, or `default`."""
        return self.facts.get(fact, default)

    def having(self, **facts: Fact) -> Protocol:
        """The same with these facts in addition or instead."""
        return Protocol(self.name, {**self.facts, **facts})

    def without(self, *facts: str) -> Protocol:
        """The same without these facts: what may be ranked against each other although they
        differ, such as the settings of the pairs.
        """
        return Protocol(self.name, {k: v for k, v in self.facts.items() if k not in facts})

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of `cell`."""
        return hashlib.sha256(self.cell().encode()).hexdigest()[:16]
