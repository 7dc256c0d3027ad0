"""Which pictures of a data set a run uses, and how its settings say who trains the generator."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helixbench.config import Slice
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.prepare import split
from helixbench.records import GOOD, RawSample


@dataclass(frozen=True)
class Selection:
    """Settings of `prepare` and of one data set in it, see there.

    group, strata: a column of a manifest, or a pattern with parentheses over the path below the
    root. listed: file of names of pictures, `{category}` in its path is replaced.
    """

    rule: str = "half"
    seed: int | None = None
    group: str | None = None
    strata: str | None = None
    defects: tuple[str, ...] | None = None
    without: tuple[str, ...] | None = None
    listed: str | None = None

    @classmethod
    def of(cls, config: Slice, dataset: str) -> Selection:
        """Of a slice; what it does not hold is as by default."""
        own = lambda key: config.get(f"prepare.datasets.{dataset}.{key}")
        named = {key: own(key) for key in ("group", "strata", "defects", "without")}
        seed, rule = config.get("prepare.split_seed"), config["prepare.split"]
        return cls(rule, seed, **named, listed=own("generator_list"))

    def chosen(
        self, samples: Sequence[RawSample], root: Path, problems: Problems
    ) -> list[RawSample]:
        """Normals, and defects of the chosen types, with their groups and strata.

        A column that nobody has is a problem; types and patterns that match nothing are odd.
        """
        there = {s.defect for s in samples} - {GOOD}
        for name in sorted({*(self.defects or ()), *(self.without or ())} - there):
            problems.odd.append(f"{samples[0].category}: has no defect type {name} to choose")
        kept = self._types(there)
        if there and not kept:
            problems.add(
                f"{root}: {samples[0].category}: none of its defect types "
                f"({', '.join(sorted(there))}) is chosen; change defects or without"
            )
        samples = [s for s in samples if s.defect == GOOD or s.defect in kept]
        for field, what in (("group", self.group), ("stratum", self.strata)):
            if what is not None:
                words = _words(what, samples, root, problems)
                pairs = zip(samples, words, strict=True)
                samples = [replace(s, **{field: word}) for s, word in pairs]
        return samples

    def _types(self, there: set[str]) -> set[str]:
        wanted = there if self.defects is None else there & set(self.defects)
        return wanted - set(self.without or ())

    def roles(self, samples: Sequence[RawSample], root: Path, problems: Problems) -> list[str]:
        """Role of each chosen picture, see `split.roles`."""
        listed = None
        if self.listed is not None:
            file = Path(self.listed.replace("{category}", samples[0].category))
            listed = _listed(file, samples, root, problems)
        return split.roles(samples, self.rule, problems, order=self._order(root), listed=listed)

    def _order(self, root: Path):
        """What pictures and groups are sorted by."""
        if self.seed is None:
            return str
        return lambda text: hashlib.sha256(
            f"{self.seed}/{text.removeprefix(f'{root}/')}".encode()
        ).hexdigest()

    def label(self, there: set[str]) -> str:
        """The rule with all that makes it another split, for protocols and split.json; there:
        defect types before the choice.
        """
        gone = sorted(there - self._types(there))
        parts = [
            self.rule,
            "" if self.seed is None else f"seed {self.seed}",
            "grouped" if self.group else "",
            "stratified" if self.strata else "",
            f"without {' and '.join(gone)}" if gone else "",
        ]
        return ", ".join(filter(None, parts))


def _words(what: str, samples: Sequence[RawSample], root: Path, problems: Problems) -> list[str]:
    """The word of each picture: its cell of the column, or what the pattern's parentheses hold."""
    if "(" not in what:
        if not any(what in s.columns for s in samples):
            problems.add(
                f"{root}: no manifest with a column {what}; add it, or write a pattern over the "
                f"paths with parentheses around what counts"
            )
        return [s.columns.get(what, "") for s in samples]
    found = [re.search(what, s.image.relative_to(root).as_posix()) for s in samples]
    missed = [s.image for s, match in zip(samples, found, strict=True) if not match]
    if missed:
        problems.odd.append(
            f"{samples[0].category}: {what} matches {len(samples) - len(missed)} of "
            f"{len(samples)} paths, and not, e.g., {missed[0]}"
        )
    return ["-".join(filter(None, match.groups())) if match else "" for match in found]


def _listed(file: Path, samples: Sequence[RawSample], root: Path, problems: Problems) -> set[Path]:
    """Defective pictures that a file names, one a line: by any last part of the path, with or
    without its suffix.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"{file}: {reason}; give a text file, one picture a line") from None
    known: dict[str, list[RawSample]] = defaultdict(list)
    for sample in samples:
        parts = sample.image.relative_to(root).parts
        for i in range(len(parts)):
            for last in {parts[-1], sample.image.stem}:
                known["/".join((*parts[i:-1], last))].append(sample)
    found = set()
    for number, line in enumerate(lines, 1):
        name, where = line.strip(), f"{file}: line {number}"
        own = known.get(name, [])
        if not name or name.startswith("#"):
            continue
        if len(own) != 1:
            what = f"{len(own)} pictures are called" if own else "no picture is called"
            problems.add(f"{where}: {what} {name}; write its path below {root}")
        elif own[0].defect == GOOD:
            problems.add(f"{where}: {name} is normal; list defective pictures")
        else:
            found.add(own[0].image)
    return found
