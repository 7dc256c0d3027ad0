"""Our own numbers: score files gathered over seeds, one entry per protocol."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.protocol import Protocol
from helixbench.records import ALL, Score
from helixbench.report.metrics import by_key
from helixbench.report.protocol import words
from helixbench.report.published import AVERAGE
from helixbench.report.run_folder import read_scores


@dataclass(frozen=True)
class Measured:
    """One measured number. `values`: per seed; `shuffles`: std over scoring shuffles when there is
    but one seed.

    covers: number of categories behind an average, 0 for a category.
    """

    dataset: str
    category: str
    label: str
    metric: str
    protocol: Protocol
    values: dict[int, float] = field(hash=False)
    shuffles: float | None = None
    covers: int = 0

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; of one seed, the scorer's own over shuffles; None
        without either.
        """
        if len(self.values) > 1:
            return (
                statistics.stdev(self.values.values())
                if all(map(math.isfinite, self.values.values()))
                else None
            )
        return self.shuffles

    @property
    def description(self) -> str:
        """Protocol, number of seeds and spread, as the CSV carries them."""
        n = len(self.values)
        text = f"{words(self.protocol)}; {n} seed{'s' * (n > 1)}"
        if self.std is not None:
            text += f", std {self.std:.4g}" + (" over shuffles" if n == 1 else "")
        return text


def labels(config: Slice) -> dict[str, str]:
    """Key of a method, comparator or arm -> name in the tables, an arm's being its key; UserError
    when two have one name.
    """
    arms = config["train.ablations"] if "train.ablations" in config else {}
    comparators = (config["detect.comparators"] if "detect.comparators" in config else None) or {}
    named = {
        key: entry.label for key, entry in [*config["train.methods"].items(), *comparators.items()]
    }
    owners: dict[str, str] = {}
    for key, label in named.items():
        if label in owners:
            raise UserError(
                f"label of {key}: {label!r} is {owners[label]}'s, too; numbers of two methods "
                f"never share a column"
            )
        owners[label] = key
    return {**named, **{key: key for key, arm in arms.items() if arm.change}}


def _row_protocol(file: Path, row: Score) -> Protocol:
    try:
        return _protocol(row.protocol, row.split)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


@cache
def _protocol(cell: str, split: str) -> Protocol:
    """The protocol of a score row, with its split."""
    protocol = Protocol.parse(cell)
    return protocol.having(split=split) if protocol.get("split") is None else protocol


def collect(
    files: Iterable[Path], config: Slice, split_up: Mapping[str, Mapping[str, str]] | None = None
) -> list[Measured]:
    """Category scores of all files, grouped over seeds, in the order of the configuration; averages
    follow.

    split_up: data set -> {defect type: kind}, for data sets whose rows are `<kind>/<category>` and
    come from these defect types instead. An average exists only where every configured row of a
    data set is measured under the same protocol.
    """
    split_up = split_up or {}
    named = labels(config)
    datasets = config["prepare.datasets"]
    found: dict[tuple, Measured] = {}
    for file in files:
        for row in read_scores(Path(file)):
            kinds = split_up.get(row.dataset, {ALL: ""})
            if row.defect not in kinds:
                continue
            if row.method not in named:
                raise UserError(
                    f"{file}: {row.method!r} is no method or comparator of this run; give its "
                    f"score files only"
                )
            if row.dataset not in datasets or row.category not in datasets[row.dataset].categories:
                raise UserError(
                    f"{file}: {row.dataset}/{row.category} is not in prepare.datasets; give score "
                    f"files of this run only"
                )
            name = f"{kinds[row.defect]}/{row.category}".removeprefix("/")
            metric = by_key().get(row.metric)
            key = (
                row.dataset,
                name,
                named[row.method],
                metric.name if metric else row.metric,
                _row_protocol(file, row),
            )
            entry = found.setdefault(key, Measured(*key, values={}, shuffles=row.std))
            known = entry.values.setdefault(row.seed, row.value)
            if known != row.value and not (math.isnan(known) and math.isnan(row.value)):
                what = f"{row.metric} of {row.method} on {row.category}, seed {row.seed}"
                raise UserError(
                    f"{file}: {what} is {row.value}, but {known} in an earlier row; give each "
                    f"score once"
                )
    order = [
        (d, f"{kind}/{c}".removeprefix("/"))
        for d in datasets
        for kind in split_up.get(d, {ALL: ""}).values()
        for c in datasets[d].categories
    ]
    entries = sorted(
        found.values(),
        key=lambda e: (order.index((e.dataset, e.category)), list(named.values()).index(e.label)),
    )
    groups: dict[tuple, list[Measured]] = {}
    for entry in entries:
        groups.setdefault((entry.dataset, entry.label, entry.metric, entry.protocol), []).append(
            entry
        )
    complete = [
        group for key, group in groups.items() if len(group) == sum(d == key[0] for d, _ in order)
    ]
    return entries + [_average(group) for group in complete]


def _average(group: list[Measured]) -> Measured:
    """Mean over categories, seed by seed where all have the same seeds."""
    seeds = group[0].values.keys()
    if all(entry.values.keys() == seeds for entry in group):
        values = {seed: statistics.fmean(entry.values[seed] for entry in group) for seed in seeds}
    else:
        values = {0: statistics.fmean(entry.mean for entry in group)}
    shuffles = group[0].shuffles if len(group) == 1 else None
    return dataclasses.replace(
        group[0], category=AVERAGE, values=values, shuffles=shuffles, covers=len(group)
    )
