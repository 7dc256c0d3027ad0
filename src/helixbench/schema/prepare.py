"""Sections `run` and `prepare`: the run, its data sets and how they are split."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from helixbench.errors import UserError
from helixbench.schema.section import Name, Section, setting, used_only


class Run(Section):
    """What a run is called and the seed that every other seed derives from."""

    name: Name = setting("paper", description="folder under results/ and scratch/", source="ours")
    seed: int = setting(
        0,
        ge=0,
        description="root seed; pair, batch and weight seeds are sha256 derivations of it",
        source="ours",
    )
    threads: int = setting(
        8,
        ge=1,
        description="CPU threads of each job that computes; sums on a CPU, and with them all "
        "that is trained there, differ in their last bits by this number, not by that of the cores",
        source="ours",
    )
    shards: int = setting(
        1,
        ge=1,
        le=1000,
        description="jobs that the pairs of a category are split over; no picture depends on it",
        source="ours",
    )


def _drawn(layout: str) -> tuple[str, ...]:
    """Categories that a layout draws, of any layout that `helixbench.datasets` holds."""
    try:
        return import_module("helixbench.datasets.layout").Layout.named(layout).drawn
    except UserError as error:
        raise ValueError(str(error)) from None


def _known(layout: str) -> str:
    _drawn(layout)
    return layout


def _read(layout: str) -> str:
    if _drawn(layout):
        raise ValueError(f"{layout} is drawn in a layout, it is none itself; name another")
    return layout


AnyLayout = Annotated[str, AfterValidator(_known)]
"""A raw folder as its authors publish it, `folder`: pictures of one's own, or `procedural`."""

RawLayout = Annotated[str, AfterValidator(_read)]
"""Those that pictures can be written in."""


class Procedural(Section):
    """Size of the procedural data set (layout `procedural`)."""

    layout: RawLayout = Field(
        "mvtec_ad", description="raw layout that the pictures are written and read in"
    )
    size: int = Field(96, ge=32, le=1024, description="picture side [pixel]")
    train_good: int = Field(24, ge=2, description="normal pictures for training, per category")
    test_good: int = Field(8, ge=2, description="normal pictures for testing, per category")
    per_defect: int = Field(8, ge=2, description="defective pictures per defect type")


def check_pattern(text: str) -> str:
    """A column or pattern as it is; ValueError when it cannot be one."""
    try:
        if "(" in text and not re.compile(text).groups:
            raise ValueError("has no parentheses around what counts")
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from None
    return text


Word = Annotated[str, Field(min_length=1), AfterValidator(check_pattern)]
"""Column of a manifest, or a regular expression with a group."""


class Dataset(Section):
    """One data set: where its raw pictures are and how they are laid out."""

    layout: AnyLayout = Field(
        description="raw folder layout, as its authors publish it; `folder`: pictures of one's "
        "own; `procedural` is drawn, not read"
    )
    root: str = Field(
        "", description="raw folder holding one folder a category (not used by `procedural`)"
    )
    categories: tuple[Name, ...] = Field(min_length=1, description="categories to run")
    bits: int | None = setting(
        None,
        ge=9,
        le=16,
        description="bits that the camera uses of files of 16 bits, e.g. 12: all pictures are "
        "scaled by this one factor; null: all that the file has",
        source="ours",
    )
    defects: tuple[str, ...] | None = setting(
        None,
        min_length=1,
        description="defect types to use; null: all",
        source="ours",
    )
    without: tuple[str, ...] | None = setting(
        None,
        min_length=1,
        description="defect types to leave out; null: none",
        source="ours",
    )
    group: Word | None = setting(
        None,
        description="what one object is, all of whose pictures stay on one side of the split: a "
        "column of the manifest, or a pattern over paths below the root, with parentheses around "
        "what counts; null: what the layout knows",
        source="ours",
    )
    strata: Word | None = setting(
        None,
        description="what each side has its share of, such as a camera or a lot: as `group`; "
        "null: nothing",
        source="ours",
    )
    generator_list: str | None = setting(
        None,
        description="for prepare.split list: text file of the defective pictures that train the "
        "generator, one a line; {category} in its path is replaced",
        source="ours",
    )
    procedural: Procedural | None = Field(None, description="sizes, only for layout `procedural`")

    def list_of(self, category: str) -> Path | None:
        """File of the pictures that train the generator, where it is listed."""
        named = self.generator_list
        return None if named is None else Path(named.replace("{category}", category))

    @field_validator("root")
    @classmethod
    def _expanded(cls, root: str) -> str:
        """With ~ and $HOME as a shell reads them."""
        found = os.path.expandvars(os.path.expanduser(root))
        if re.search(r"\$\w|\$\{", found):
            raise ValueError("names a variable that is not set")
        return found

    @model_validator(mode="after")
    def _root_or_procedural(self):
        drawn = _drawn(self.layout)
        unknown = sorted(set(self.categories) - set(drawn)) if drawn else []
        if unknown:
            raise ValueError(f"category {unknown[0]} cannot be drawn; there are {', '.join(drawn)}")
        if self.layout == "procedural" and self.procedural is None:
            raise ValueError("layout procedural needs the section `procedural`")
        both = sorted(set(self.defects or ()) & set(self.without or ()))
        if both:
            raise ValueError(f"{both[0]} is in defects and in without; name it in one of them")
        if self.layout != "procedural" and not self.root:
            raise ValueError("needs `root`, the raw folder")
        return self


_MVTEC_AD = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)
_MPDD = ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes")
_VISA = (
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)
_LOCO = ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors")
_PAPER = {
    "MVTec-AD": ("mvtec_ad", _MVTEC_AD, "paper Table I"),
    "MPDD": ("mpdd", _MPDD, "paper Table III"),
    "VisA": ("visa", _VISA, "paper Table VI"),
    "MVTec-LOCO": ("mvtec_loco", _LOCO, "paper Table VII"),
}
"""Data sets of the paper: layout, categories, and the table that has them."""


class Prepare(Section):
    """Working pictures, binary masks, split, raw masks and reference crops."""

    size: int = setting(
        256, ge=32, le=1024, multiple_of=16, description="working side [pixel]", source="paper IV-A"
    )
    split: Literal[
        "half", "third", "list", "literal", "third_anomalydiffusion", "third_dualanodiff"
    ] = setting(
        "half",
        description="half, third: first floor(n/2) or floor(n/3) sorted files of each defect "
        "type train the generator, the rest tests; list: those of generator_list train; "
        "literal: as half, but all test; third_anomalydiffusion, third_dualanodiff: as their "
        "scripts count; these three leak",
        source="paper IV-B: 50 %, readings 19 and 20",
    )
    split_seed: int | None = setting(
        None,
        ge=0,
        description="with half and third: the files are not sorted by name but in a random order "
        "of this seed; null: sorted",
        source="ours",
    )
    calibration: float = setting(
        0.0,
        ge=0,
        lt=1,
        description="share of the normal pictures that train nothing and set the threshold of "
        "detectors (detect.false_alarms); 0: no threshold",
        source="ours: none",
    )
    raw_mask_cells: int = setting(
        5, ge=1, le=32, description="K: raw masks are K x K cells", source="paper III-B"
    )
    use: tuple[Name, ...] | None = setting(
        None,
        description="data sets of this run, by their keys in `datasets`; null: all",
        source="paper IV-A",
        written=tuple(_PAPER),
    )
    datasets: dict[Name, Dataset] = setting(
        min_length=1,
        description="data sets by their published name",
        written={
            name: {"layout": layout, "root": f"data/{layout}", "categories": categories}
            for name, (layout, categories, _) in _PAPER.items()
        },
        source={
            name: {"layout": "paper IV-A", "root": "ours", "categories": table}
            for name, (_, _, table) in _PAPER.items()
        },
    )

    _used = used_only("datasets")

    @model_validator(mode="after")
    def _one_way_to_split(self):
        if self.split_seed is not None and self.split not in ("half", "third"):
            raise ValueError(f"split_seed is for the splits half and third, not {self.split}")
        for name, dataset in self.datasets.items():
            if (self.split == "list") != (dataset.generator_list is not None):
                key = f"datasets.{name}.generator_list"
                raise ValueError(
                    f"split list and {key} need each other; {key} is "
                    f"{dataset.generator_list or 'null'}, split {self.split}"
                )
        return self

    @field_validator("datasets")
    @classmethod
    def _not_raw(cls, datasets):
        if "raw" in datasets:
            raise ValueError("`raw` is taken (folder of drawn pictures); choose another name")
        return datasets
