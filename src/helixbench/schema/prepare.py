"""Sections `run` and `prepare`: the run, its data sets and how they are split."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from helixbench.errors import UserError
from helixbench.schema.section import Name, Section


class Run(Section):
    """What a run is called and the seed that every other seed derives from."""

    name: Name = Field("paper", description="folder under results/ and scratch/")
    seed: int = Field(
        0, ge=0, description="root seed; pair, batch and weight seeds are sha256 derivations of it"
    )
    shards: int = Field(
        1,
        ge=1,
        le=1000,
        description="jobs that the pairs of a category are split over; no picture depends on it",
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
    procedural: Procedural | None = Field(None, description="sizes, only for layout `procedural`")

    @model_validator(mode="after")
    def _root_or_procedural(self):
        drawn = _drawn(self.layout)
        unknown = sorted(set(self.categories) - set(drawn)) if drawn else []
        if unknown:
            raise ValueError(f"category {unknown[0]} cannot be drawn; there are {', '.join(drawn)}")
        if self.layout == "procedural" and self.procedural is None:
            raise ValueError("layout procedural needs the section `procedural`")
        if self.layout != "procedural" and not self.root:
            raise ValueError("needs `root`, the raw folder")
        return self


class Prepare(Section):
    """Working pictures, binary masks, split, raw masks and reference crops."""

    size: int = Field(
        256, ge=32, le=1024, multiple_of=16, description="working side [pixel] (paper IV-A)"
    )
    split: Literal["half", "third", "literal", "third_anomalydiffusion", "third_dualanodiff"] = (
        Field(
            "half",
            description="half, third: first floor(n/2) or floor(n/3) sorted files of each defect "
            "type train the generator, the rest tests; "
            "literal: as half, but all test; third_anomalydiffusion, third_dualanodiff: as their "
            "scripts count; these three leak "
            "(readings 19 and 20)",
        )
    )
    raw_mask_cells: int = Field(
        5, ge=1, le=32, description="K: raw masks are K x K cells (paper III-B)"
    )
    use: tuple[Name, ...] = Field(
        (), description="data sets of this run, by their keys in `datasets`; empty: all"
    )
    datasets: dict[Name, Dataset] = Field(
        min_length=1, description="data sets by their published name"
    )

    @model_validator(mode="before")
    @classmethod
    def _used_only(cls, values):
        """Leave out the data sets that this run does not use: params.yaml knows all of the
        paper's.
        """
        if (
            isinstance(values, dict)
            and values.get("use")
            and isinstance(values.get("datasets"), dict)
        ):
            known = values["datasets"]
            for name in values["use"]:
                if name not in known:
                    raise ValueError(
                        f"use names {name!r}, which is not in datasets "
                        f"({', '.join(map(str, known))})"
                    )
            return {**values, "datasets": {name: known[name] for name in values["use"]}}
        return values

    @field_validator("datasets")
    @classmethod
    def _not_raw(cls, datasets):
        if "raw" in datasets:
            raise ValueError("`raw` is taken (folder of drawn pictures); choose another name")
        return datasets
