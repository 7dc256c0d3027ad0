"""One detector trained and tested: what localization, classification and segmentation have in
common.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helixbench.config import Slice, digest
from helixbench.engine import checkpoint
from helixbench.engine.devices import describe as describe_device
from helixbench.engine.loop import fit
from helixbench.pictures.prepared import pair_settings, read_split
from helixbench.provenance import manifest, write_text
from helixbench.records import ALL, LEAKING, Score, write_csv
from helixbench.schema import Localization

log = logging.getLogger(__name__)

Found = Mapping[str, tuple[int, Mapping[str, float]]]
"""Defect type (and `all`) -> number of pictures, metric -> value."""


@dataclass(frozen=True)
class Job:
    """Which detector, and its folders. state: resume state; out: gets scores.csv, stats.jsonl and,
    last, manifest.json.
    """

    method: str
    dataset: str
    category: str
    seed: int
    prepared: Path
    pairs: Path
    state: Path
    out: Path


class BestOnTest:
    """The predictions of the step whose test metrics have the largest sum; the first of equal ones.
    The trainer's validate(rng).

    Kept beside the resume state, as whole files of one configuration: what a killed run has seen
    counts, and the steps that the resumed one repeats give the same again.
    """

    def __init__(
        self,
        predict: Callable[[], np.ndarray],
        measure: Callable[[np.ndarray], Found],
        chosen_by: tuple[str, ...],
        file: Path,
    ):
        self.predict, self.measure, self.chosen_by, self.file = predict, measure, chosen_by, file
        self.total, self.predictions, self.digest = -np.inf, None, ""

    def resume(self, config_digest: str) -> None:
        """Go on from what an earlier run of the same configuration has seen."""
        self.digest = config_digest
        if self.file.is_file():
            tensors, facts = checkpoint.load_tensors(self.file)
            if facts.get("config_digest") == config_digest:
                self.total, self.predictions = facts["total"], tensors["predictions"].numpy()

    def __call__(self, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Metrics over all test pictures, in percent."""
        predictions = self.predict()
        metrics = self.measure(predictions)[ALL][1]
        total = sum(metrics[name] for name in self.chosen_by)
        if total > self.total:
            self.total, self.predictions = total, predictions
            facts = {"config_digest": self.digest, "total": total}
            checkpoint.save_tensors(
                self.file, {"predictions": torch.from_numpy(predictions)}, facts
            )
        return {name: torch.tensor(value) for name, value in metrics.items()}


def run(
    name: str,
    job: Job,
    config: Slice,
    section,
    *,
    model: nn.Module,
    loss: Callable,
    seed: int,
    pictures_digest: str,
    device: torch.device,
    predict: Callable[[], np.ndarray],
    measure: Callable[[np.ndarray], Found],
    chosen_by: tuple[str, ...],
    protocol: Callable[[str], str],
    facts: Mapping[str, object],
    finish: Callable[[dict[str, np.ndarray]], None] = lambda predictions: None,
) -> None:
    """Train `model` by `loss`, take its predictions on the test pictures, measure them, write
    everything.

    section: the detector's own configuration (`optim`, `checkpoints`). predict(): predictions of
    the model as it is; measure(predictions): metrics; protocol(checkpoint): text of a score row;
    facts: for the manifest; finish(checkpoint -> predictions): whatever else is to be written
    before the manifest is.
    """
    rule, split_sha256 = read_split(job.prepared)
    who = {"method": job.method, "dataset": job.dataset, "category": job.category, "seed": job.seed}
    with manifest(
        job.out / "manifest.json",
        "detect",
        config,
        detector=name,
        **who,
        device=describe_device(device),
    ) as record:
        config_digest = digest([section.model_dump(mode="json"), pictures_digest])
        best = None
        if "best_on_test" in section.checkpoints:
            best = BestOnTest(predict, measure, chosen_by, job.state / "best_on_test.safetensors")
            best.resume(digest([config_digest, seed]))
        optim = section.optim if best else section.optim.model_copy(update={"validate_every": 0})
        record["training"] = fit(
            model,
            loss,
            optim,
            seed=seed,
            state_dir=job.state,
            config_digest=config_digest,
            device=device,
            name=name,
            validate=best,
        )
        predictions = {"last": predict()}
        if best:
            predictions["best_on_test"] = best.predictions
        rows: list[Score] = []
        for kept in section.checkpoints:
            found = measure(predictions[kept])
            text = protocol(kept) + pair_settings(job.pairs)
            rows += score_rows(
                found,
                **who,
                split=rule,
                split_sha256=split_sha256,
                protocol=text,
                config_digest=config.digest,
            )
            texts = "  ".join(f"{metric} {value:.1f}" for metric, value in found[ALL][1].items())
            log.info(
                "%s %s %s/%s, %s: %s", name, job.method, job.dataset, job.category, kept, texts
            )
        write_csv(job.out / "scores.csv", rows, Score)
        finish({kept: predictions[kept] for kept in section.checkpoints})
        write_text(job.out / "stats.jsonl", (job.state / "stats.jsonl").read_text(encoding="utf-8"))
        record.update(facts)
        record["split"] = {"rule": rule, "sha256": split_sha256}
    shutil.rmtree(job.state)


def score_rows(found: Found, **facts: object) -> list[Score]:
    """One row a defect type and metric; facts: the other fields of a Score."""
    return [
        Score(**facts, defect=defect, metric=metric, value=value, std=None, n=n)
        for defect, (n, metrics) in found.items()
        for metric, value in metrics.items()
    ]


_SAID_ELSEWHERE = {
    "kind",
    "label",
    "seeds",
    "checkpoints",
    "optim",
    "ground_truth",
    "pro_limit",
    "pro_thresholds",
}
_SAID_OF_OPTIM = {"steps", "batch", "ema", "validate_every", "save_every_s", "log_every_s"}


def settings_text(section, said: Collection[str] = ()) -> str:
    """Protocol text of every value that changes a number and stands nowhere else in it, e.g. `, lr
    0.0001, max_pairs 100`.

    Those without a default always, the others where they differ from it. said: fields that the
    caller's text names.
    """
    optim = getattr(section, "optim", None)
    values = [
        *_departures(section, {*_SAID_ELSEWHERE, *said}),
        *(_departures(optim, _SAID_OF_OPTIM) if optim else ()),
    ]
    return "".join(f", {name} {_plain(value)}" for name, value in values)


def _departures(section, said: Collection[str]) -> Iterator[tuple[str, object]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name not in said and (field.is_required() or value != field.default):
            yield name, value


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def truth_text(ground_truth: str, pro_limit: float, pro_thresholds: int | None) -> str:
    """Protocol text of how pictures with known defects are read, nothing where it is as usual."""
    text = (
        ", ground truth resized bilinearly, full-value pixels"
        if ground_truth == "full_value"
        else ""
    )
    if pro_limit != Localization.model_fields["pro_limit"].default:
        text += f", PRO to {pro_limit}"
    return text + (f", PRO from {pro_thresholds} thresholds" if pro_thresholds else "")


def kept_text(checkpoint_name: str, optim) -> str:
    """Protocol text of a checkpoint and of its training, e.g. `last checkpoint, 1000 steps x 8`."""
    kept = "last checkpoint"
    if checkpoint_name == "best_on_test":
        kept = (
            f"best_on_test checkpoint (chosen by the test pictures, every "
            f"{optim.validate_every} steps)"
        )
    ema = f", EMA {optim.ema:g}" if optim.ema and checkpoint_name == "last" else ""
    return f"{kept}, {optim.steps} steps x {optim.batch}{ema}"


def trained_text(split: str, checkpoint_name: str, optim) -> str:
    """Protocol text of a detector that learns from pairs: its split, which pairs, which weights."""
    return f"{split_text(split)}, pairs past the gate, {kept_text(checkpoint_name, optim)}"


def split_text(split: str) -> str:
    """Protocol text of a split; a leaking one says so."""
    return f"{split} split" + (
        " (leaking: its test holds pictures of the generator)" if split in LEAKING else ""
    )
