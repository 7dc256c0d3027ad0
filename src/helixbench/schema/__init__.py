"""The one schema of `params.yaml`.

Sections are named like the stages. Every model is frozen and forbids unknown keys, so that a typo
stops a run before any job. "Paper" is the DH-Diff paper; "reading N" is the numbered list in
docs/readings.md of what the paper leaves open.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from helixbench.schema.base import Autoencoder, Pretrained, Scratch, TextEncoder, Unet
from helixbench.schema.comparators import (
    Cfa,
    Cflow,
    Comparator,
    DraemDetector,
    EfficientAd,
    PaDiM,
    PatchCore,
    ReverseDistillation,
    SuperSimpleNet,
)
from helixbench.schema.detect import (
    Checkpoints,
    Classification,
    Detect,
    Localization,
    Segmentation,
    SegmentationEncoder,
)
from helixbench.schema.generate import Gate, Generate, Sampling
from helixbench.schema.method import MethodConfig, MethodSettings
from helixbench.schema.prepare import Dataset, Prepare, Procedural, Run
from helixbench.schema.score import IcLpips, InceptionScore, Kid, MaskAgreement, ScoreSection
from helixbench.schema.section import (
    NAME,
    AdversarialOptim,
    Name,
    Optim,
    Section,
    Symmetries,
    rising,
    setting,
    values,
)
from helixbench.schema.train import Ablation, Train


class Report(Section):
    """Tables and figures."""

    tables: tuple[Literal[1, 2, 3, 4, 5, 6, 7, 8, 9], ...] = setting(
        (1, 2, 3, 4, 5, 6, 7, 8, 9),
        description="paper tables to render",
        source="paper Tables I to IX",
    )
    grid_columns: int = setting(
        6,
        ge=1,
        le=32,
        description="pictures per row of the generation grid",
        source="paper Figure 5: columns not counted; ours",
    )
    gallery: int = setting(
        2000, ge=0, description="pairs on the HTML page at most, about 5 kB each", source="ours"
    )


class Config(Section):
    """The whole of params.yaml."""

    run: Run = Run()
    prepare: Prepare
    train: Train
    generate: Generate = Generate()
    score: ScoreSection = ScoreSection()
    detect: Detect
    report: Report = Report()

    @model_validator(mode="after")
    def _whole_cells_for_the_segmenters(self):
        if self.detect.segmentation and self.prepare.size % 32:
            raise ValueError(
                f"prepare.size {self.prepare.size} must be a multiple of 32, as "
                f"detect.segmentation has 5 levels"
            )
        return self

    @model_validator(mode="after")
    def _labels_differ(self):
        labels = [
            entry.label
            for entry in [*self.train.methods.values(), *self.detect.comparators.values()]
        ]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"train.methods, detect.comparators: two methods have one label among {labels}; "
                f"numbers of two methods never share a column"
            )
        return self

    @model_validator(mode="after")
    def _each_can_run(self):
        shown = {arm for table in self.report.tables for arm in self.train.rows(table).values()}
        arms = {key: arm for key, arm in self.train.arms.items() if key in shown}
        for key, entry in {**self.train.methods, **arms}.items():
            if conflict := entry.conflict(self):
                raise ValueError(f"train.methods.{key}: {conflict}")
        for key, entry in self.detect.comparators.items():
            if conflict := entry.conflict(self):
                raise ValueError(f"detect.comparators.{key}: {conflict}")
        return self

    @model_validator(mode="after")
    def _keys_differ(self):
        for key in self.detect.comparators:
            if key in self.train.everything:
                raise ValueError(f"detect.comparators.{key}: a method has this key; choose another")
        return self
