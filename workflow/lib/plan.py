"""Which files a configuration asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product

from helixbench.datasets.layout import Layout
from helixbench.report.published import all_datasets_shown
from helixbench.schema import Config

ROMAN = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII", 9: "IX"}
GRIDS = {"MPDD": 6, "VisA": 7, "MVTec-LOCO": 8}
"""The paper's figure of each data set; all others are drawn as MVTec AD is, in figure 5."""


def one_of(names: Iterable[str]) -> str:
    """Regular expression that matches exactly these names, and nothing when there are none."""
    return "|".join(sorted(map(re.escape, set(names)))) or "(?!)"


class Plan:
    """Methods, categories and seeds of a run, and the files that they make.

    The methods take the patterns of the rules' outputs, as {dataset}/{category}, and fill them.
    """

    def __init__(self, config: Config, published: str, run: str):
        self.config, self.run = config, run
        self.datasets = config.prepare.datasets
        self.methods = list(config.train.methods)
        self.everything = config.train.everything  # with the arms of Tables VIII and IX
        self.arms = {number: list(config.train.rows(number).values()) for number in (8, 9)}
        self.learning = [name for name, m in self.everything.items() if hasattr(m, "optim")]
        self.learners = [name for name in self.methods if name in self.learning]
        self.comparators = config.detect.comparators or {}
        self.seeds = config.detect.localization.seeds
        joint = config.train.joint
        self.joins_own = bool(joint and joint.own)
        self.categories = [(name, c) for name, d in self.datasets.items() for c in d.categories]
        self.shown = all_datasets_shown(published, self.datasets)  # by table

    def each(
        self, pattern: str, datasets: Collection[str] | None = None, **values: Iterable
    ) -> list[str]:
        """The pattern filled for every category of these data sets, or of all, and every value of
        each other wildcard.
        """
        return [
            pattern.format(
                dataset=dataset, category=category, **dict(zip(values, chosen, strict=True))
            )
            for chosen in product(*values.values())
            for dataset, category in self.categories
            if datasets is None or dataset in datasets
        ]

    def wanted(self, pattern: str, methods: list[str], **values: Iterable) -> list[str]:
        """The pattern for these methods and every category, and for the arms of Tables VIII and IX
        where the run has the table and the table the data set.
        """
        files = self.each(pattern, method=methods, **values)
        for number, arms in self.arms.items():
            if number in self.config.report.tables:
                files += self.each(pattern, self.shown[number], method=arms, **values)
        return list(dict.fromkeys(files))

    def classification(self, pattern: str) -> list[str]:
        """Of the classifiers, where Table II shows the data set."""
        section = self.config.detect.classification
        if not section:
            return []
        return self.each(pattern, self.shown[2], method=self.methods, seed=section.seeds)

    def segmentation(self, pattern: str) -> list[str]:
        """Of the segmenters, where Table II shows the data set."""
        section = self.config.detect.segmentation
        if not section:
            return []
        return self.each(
            pattern,
            self.shown[2],
            architecture=section.networks,
            method=self.methods,
            seed=section.seeds,
        )

    def comparison(self, pattern: str, datasets: Collection[str] | None = None) -> list[str]:
        """Of the detectors that learn from normals alone, in these data sets or all."""
        return [
            path
            for key, entry in self.comparators.items()
            for path in self.each(pattern, datasets, comparator=[key], seed=entry.seeds)
        ]

    def table_scores(self, number: int, scores: Mapping[str, str]) -> list[str]:
        """Score files of a table; scores: pattern by rule (score, detect, compare, classify,
        segment).
        """
        shown = self.shown[number]
        if number == 1:
            return self.each(scores["score"], shown, method=self.methods)
        methods = self.arms.get(number, self.methods)
        files = self.each(scores["detect"], shown, method=methods, seed=self.seeds)
        if number == 2:
            files += self.classification(scores["classify"])
            files += self.segmentation(scores["segment"])
        if number in (4, 5, 6, 7):
            files += self.comparison(scores["compare"], shown)
        return files

    def jobs(self, done: Mapping[str, str], base: str | list[str] | Callable) -> list[str]:
        """The file by which each job of a whole run is known.

        done: pattern by rule (prepare, train, gather, score, detect, compare, classify, segment).
        base: files of the base models; a function where the run makes none.
        """
        if callable(base) or not self.learners:
            base = []
        elif isinstance(base, str):
            base = [base]
        return [
            *base,
            *self.each(done["prepare"]),
            *self.wanted(done["train"], self.learners),
            *self.wanted(done["gather"], self.methods),
            *self.each(done["score"], method=self.methods),
            *self.wanted(done["detect"], self.methods, seed=self.seeds),
            *self.comparison(done["compare"]),
            *self.classification(done["classify"]),
            *self.segmentation(done["segment"]),
        ]

    def all_scores(self, scores: Mapping[str, str]) -> list[str]:
        """Score files of all methods, without the arms of the ablations; scores: as above."""
        return [
            *self.each(scores["score"], method=self.methods),
            *self.each(scores["detect"], method=self.methods, seed=self.seeds),
            *self.comparison(scores["compare"]),
            *self.classification(scores["classify"]),
            *self.segmentation(scores["segment"]),
        ]

    def plots(self) -> list[str]:
        """Names of the plots."""
        per_dataset = [f"{kind}_{name}" for name in self.datasets for kind in ("detector", "masks")]
        return ["overview", "training", "cost", *per_dataset]

    def grid_datasets(self, figure: int) -> list[str]:
        """Data sets of a picture grid."""
        if figure == 9:
            return list(self.shown[8]) if self.arms[8] else []
        return [name for name in self.datasets if GRIDS.get(name, 5) == figure]

    def dda_and_plain(self) -> list[str]:
        """The two DH-Diffs of Figure 3: the rows of Table VIII with both modules and with none;
        empty without them.
        """
        rows = self.config.train.rows(8)
        arms = [
            arm
            for words in ("DDA=yes SSM=yes", "DDA=no SSM=no")
            for row, arm in rows.items()
            if words in row
        ]
        return arms if len(arms) == 2 else []

    def first_dhdiff(self) -> list[str]:
        """The DH-Diff of Figure 1, the first method of that kind; empty without one."""
        kinds = {key: getattr(m, "kind", "") for key, m in self.config.train.methods.items()}
        return [key for key, kind in kinds.items() if kind == "dhdiff"][:1]

    def raw_root(self, wildcards) -> str:
        """Folder that holds one raw folder per category."""
        dataset = self.datasets[wildcards.dataset]
        drawn = f"{self.run}/prepare/raw/{wildcards.dataset}"
        return drawn if Layout.named(dataset.layout).drawn else dataset.root

    def raw_layout(self, wildcards) -> str:
        """Layout of the raw folder, also of one that is drawn."""
        dataset = self.datasets[wildcards.dataset]
        return dataset.procedural.layout if Layout.named(dataset.layout).drawn else dataset.layout
