"""A detector of one category: trained, tested on held-out real pictures, its scores written.

`Detector` is the frame of all. `PairDetector` learns from generated pairs by the shared training
loop; comparators (comparators.py) learn from normals alone.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from helixbench.config import Slice, digest
from helixbench.engine import checkpoint
from helixbench.engine.devices import describe, pick_device
from helixbench.engine.loop import fit
from helixbench.errors import UserError
from helixbench.pictures.prepared import (
    calibration_share,
    load_pairs,
    pair_images,
    pair_masks,
    pair_settings,
    read_samples,
    read_split,
    sample_images,
)
from helixbench.protocol import Protocol
from helixbench.provenance import stage_run
from helixbench.records import ALL, Pair, Score, derive_seed, write_csv
from helixbench.schema.section import Optim, Section

log = logging.getLogger(__name__)

NETWORK = "network.safetensors"
"""File of the trained network and of the facts that it is built again by."""

Metrics = Mapping[str, tuple[int, Mapping[str, float]]]
"""Defect type (and `all`) -> number of pictures, metric -> value in percent."""

Predictions = TypeVar("Predictions")
"""What a detector says of the n test pictures."""


@dataclass(frozen=True)
class Job:
    """What is trained and tested, and its folders.

    method: whose pairs, or which comparator; seed: which repetition; prepared: folder written by
    `prepare`; pairs: folder written by `generate`, None for a comparator; state: resume state;
    out: gets scores.csv, stats.jsonl and, last, manifest.json.
    """

    method: str
    dataset: str
    category: str
    seed: int
    prepared: Path
    pairs: Path | None
    state: Path
    out: Path


class Detector(ABC, Generic[Predictions]):
    """One detector. A subclass reads its pictures in `__init__`, and there sets `size`, the side of
    the pictures [pixel], and `pictures`, their numbers for the manifest.

    section: its own configuration; seeded_by: what its seed is derived from beside data set,
    category and repetition. The method is not among it, so that methods are compared on equal
    weights and draws.
    """

    kind: ClassVar[str]
    """Name of its protocol, and of itself unless `name` says more."""

    size: int
    pictures: dict[str, int]

    def __init__(self, job: Job, config: Slice, section: Section, *seeded_by: str):
        self.job, self.config, self.section = job, config, section
        self.name = self.kind
        self.split, self.split_sha256 = read_split(job.prepared)
        self.samples = read_samples(job.prepared)
        self.device = pick_device()
        self.seed = derive_seed(config["run.seed"], *seeded_by, job.dataset, job.category, job.seed)

    @abstractmethod
    def train(self) -> dict[str, float]:
        """Train, resuming from job.state; facts for the manifest, among them `steps`."""

    @abstractmethod
    def predict(self) -> Predictions:
        """Predictions of the network as it is, for the n test pictures."""

    @abstractmethod
    def measure(self, predictions: Predictions) -> Metrics:
        """What the predictions are worth. Raises UserError where a metric is not defined."""

    def measure_checkpoint(self, checkpoint_name: str, predictions: Predictions) -> Metrics:
        """The same, with what only the kept network is measured by."""
        return self.measure(predictions)

    def protocol(self, checkpoint_name: str) -> Protocol:
        """How its numbers are measured: everything that makes them incomparable with others."""
        share = calibration_share(self.job.prepared)
        calibration = {"calibration": share} if share else {}
        return Protocol(self.kind, {"split": self.split, "size": self.size, **calibration})

    def predictions(self) -> dict[str, Predictions]:
        """Predictions by name of the checkpoint, those that are drawn first."""
        return {"last": self.predict()}

    def write(self, predictions: Predictions) -> None:
        """Write whatever else shows the predictions of the first checkpoint."""

    def keep(self) -> None:
        """Write what `predict` needs into job.out; nothing where it does not take the detector."""

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the pictures."""
        split = {"rule": self.split, "sha256": self.split_sha256}
        return {"pictures": self.pictures, "split": split}

    @property
    def title(self) -> str:
        """What the messages call it."""
        return f"{self.name} {self.job.method} {self.job.dataset}/{self.job.category}"

    def run(self) -> None:
        """Train and test; write out/{scores.csv,stats.jsonl} and, last, out/manifest.json.

        A run that was killed resumes from its state and gives the same scores.
        """
        job = self.job
        about = {"method": job.method, "dataset": job.dataset, "category": job.category}
        about |= {"seed": job.seed, "detector": self.name, "device": describe(self.device)}
        with stage_run(job.out, job.state, "detect", self.config, **about) as facts:
            facts["training"] = self.train()
            predictions = self.predictions()
            rows = [row for name in predictions for row in self._scores(name, predictions[name])]
            write_csv(job.out / "scores.csv", rows, Score)
            self.write(next(iter(predictions.values())))
            self.keep()
            facts.update(self.facts())

    def _scores(self, checkpoint_name: str, predictions: Predictions) -> list[Score]:
        """One row per defect type and metric."""
        metrics, job = self.measure_checkpoint(checkpoint_name, predictions), self.job
        if ALL in metrics:
            texts = "  ".join(f"{metric} {value:.1f}" for metric, value in metrics[ALL][1].items())
            log.info("%s, %s: %s", self.title, checkpoint_name, texts)
        same = {
            "dataset": job.dataset,
            "category": job.category,
            "method": job.method,
            "seed": job.seed,
            "split": self.split,
            "split_sha256": self.split_sha256,
            "protocol": self.protocol(checkpoint_name).cell(),
            "config_digest": self.config.digest,
        }
        return [
            Score(**same, defect=defect, metric=metric, value=value, std=None, n=n)
            for defect, (n, values) in metrics.items()
            for metric, value in values.items()
        ]

    def read_normals(self) -> np.ndarray:
        """Normal pictures to train on, (n, H, W, 3) uint8; UserError when there are none."""
        normals = [sample for sample in self.samples if sample.role == "normal"]
        if not normals:
            raise UserError(
                f"{self.job.prepared / 'samples.csv'}: no picture has role normal; the detector "
                f"needs some"
            )
        return sample_images(self.job.prepared, normals)


def settings(section: Section, *left_out: str) -> dict[str, Any]:
    """Facts of a protocol: the values of a section that have no default or differ from it."""
    values = {name: getattr(section, name) for name in type(section).model_fields}
    return {
        name: values[name]
        for name, field in type(section).model_fields.items()
        if name not in left_out and (field.is_required() or values[name] != field.default)
    }


class PairDetector(Detector[np.ndarray]):
    """A detector that learns from generated pairs: those past the mask gate, the others are counted
    in the manifest. Its predictions are an array whose first axis are the n test pictures.
    """

    chosen_by: ClassVar[tuple[str, ...]]
    """Metrics whose sum over all test pictures chooses `best_on_test`."""

    network: nn.Module

    def __init__(self, job: Job, config: Slice, section: Section, *seeded_by: str):
        super().__init__(job, config, section, *seeded_by)
        self.pairs, self.refused = usable(load_pairs(job.pairs), section.max_pairs)
        self.best: BestOnTest | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The untrained network, its first weights drawn from the seed."""

    @abstractmethod
    def loss(self, step: int, rng: torch.Generator) -> torch.Tensor:
        """Loss of `network` on the batch that `rng` draws, a scalar; see `engine.loop.fit`."""

    @abstractmethod
    def data_digest(self) -> str:
        """sha256 of all that is trained on: a resume state belongs to it."""

    @property
    def optim(self) -> Optim:
        """Of the training as a whole."""
        return self.section.optim

    def train(self) -> dict[str, float]:
        """Train the network by the shared loop."""
        self.network = self.build().to(self.device).train()
        identity, optim = (
            digest([self.section.model_dump(mode="json"), self.data_digest()]),
            self.optim,
        )
        if "best_on_test" in self.section.checkpoints:
            self.best = BestOnTest(self, digest([identity, self.seed]))
        else:
            optim = optim.model_copy(update={"validate_every": 0})
        return fit(
            self.network,
            self.loss,
            optim,
            seed=self.seed,
            state_dir=self.job.state,
            config_digest=identity,
            device=self.device,
            name=self.name,
            validate=self.best,
        )

    def predictions(self) -> dict[str, np.ndarray]:
        """Predictions by checkpoint, in the order of the configuration."""
        best = self.best
        return {
            name: best.predictions if best and name == "best_on_test" else self.predict()
            for name in self.section.checkpoints
        }

    def protocol(self, checkpoint_name: str) -> Protocol:
        """With the facts of the pairs, of the checkpoint and of its training."""
        optim, facts = self.section.optim, {"gated": True, "checkpoint": checkpoint_name}
        if checkpoint_name == "best_on_test":
            facts["validate_every"] = optim.validate_every
        elif optim.ema:
            facts["ema"] = optim.ema
        if text := pair_settings(self.job.pairs):
            facts["pairs"] = text
        facts |= settings(self.section, "optim", "checkpoints", "seeds")
        facts |= settings(optim, "ema", "validate_every", "save_every_s", "log_every_s")
        return super().protocol(checkpoint_name).having(**facts)

    def facts(self) -> dict[str, Any]:
        """What the manifest says of pictures and pairs."""
        pairs = {
            defect: {"used": len(used), "left_out_by_gate": self.refused[defect]}
            for defect, used in self.pairs.items()
        }
        return {**super().facts(), "pairs": pairs}

    def read_pairs(self, size: tuple[int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Defect type -> images (m, H, W, 3) uint8 and masks (m, H, W) bool, types without a pair
        left out.

        size: (H, W) of the real pictures; UserError for pairs of another one.
        """
        folder, arrays = self.job.pairs, {}
        for defect, used in self.pairs.items():
            if not used:
                continue
            arrays[defect] = pair_images(folder, used), pair_masks(folder, used)
            for height, width in (array.shape[1:3] for array in arrays[defect]):
                if (height, width) != size:
                    raise UserError(
                        f"{folder}: pairs of {defect} are {width}x{height}, the normals "
                        f"{size[1]}x{size[0]}; generate again"
                    )
        return arrays

    def keep_network(self, **facts: Any) -> None:
        """Write the network as it is now (`last`) to out/network.safetensors.

        facts: what building it again needs, JSON values.
        """
        job, about = self.job, {"kind": self.kind, "size": self.size}
        about |= {name: getattr(job, name) for name in ("method", "dataset", "category", "seed")}
        about["protocol"] = dict(self.protocol("last").facts)
        checkpoint.save_tensors(job.out / NETWORK, self.network.state_dict(), about | facts)


def usable(
    pairs: Sequence[Pair], limit: int | None
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """Pairs to train on by defect type, and how many of each the mask gate left out.

    Those past the gate, in order of their index, at most `limit` of each type; None: all.
    """
    used, refused = {}, {}
    for defect in sorted({pair.defect for pair in pairs}):
        of_type = sorted((p for p in pairs if p.defect == defect), key=lambda pair: pair.index)
        passed = [pair for pair in of_type if pair.gate == "ok"]
        used[defect], refused[defect] = passed[:limit], len(of_type) - len(passed)
    return used, refused


class BestOnTest:
    """The predictions of the step whose test metrics have the largest sum; the first of equal ones.
    The `validate` of the shared loop.

    Kept beside the resume state, as whole files of one configuration: what a killed run has seen
    counts, and the steps that the resumed one repeats give the same again.
    """

    def __init__(self, detector: PairDetector, config_digest: str):
        self.detector, self.digest = detector, config_digest
        self.file = detector.job.state / "best_on_test.safetensors"
        self.total, self.predictions = -np.inf, None
        if self.file.is_file():
            tensors, facts = checkpoint.load_tensors(self.file)
            if facts.get("config_digest") == config_digest:
                self.total, self.predictions = facts["total"], tensors["predictions"].numpy()

    def __call__(self, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Metrics over all test pictures, in percent."""
        predictions = self.detector.predict()
        metrics = self.detector.measure(predictions)[ALL][1]
        total = sum(metrics[name] for name in self.detector.chosen_by)
        if total > self.total:
            self.total, self.predictions = total, predictions
            facts = {"config_digest": self.digest, "total": total}
            tensors = {"predictions": torch.from_numpy(predictions)}
            checkpoint.save_tensors(self.file, tensors, facts)
        return {name: torch.tensor(value) for name, value in metrics.items()}
