"""Stage `train` of the methods that learn."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import torch

from helixbench import provenance
from helixbench.config import Slice, digest
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.engine.devices import describe, pick_device
from helixbench.engine.distributed import Team
from helixbench.engine.loop import fit
from helixbench.errors import UserError
from helixbench.methods.method import Learner, method_class
from helixbench.records import derive_seed

log = logging.getLogger(__name__)


def run(
    method: str,
    dataset: str,
    category: str,
    config: Slice,
    *,
    prepared: Path,
    base: Path | None,
    state: Path,
    out: Path,
) -> None:
    """Train one method on one category; writes the model folder `out`, stats.jsonl and, last,
    manifest.json.
    """
    options = config[f"train.methods.{method}"]
    kind = method_class(options.kind)
    if not issubclass(kind, Learner):
        raise UserError(f"{method}: does not learn; nothing to train")
    if base is None:
        raise UserError(f"{method}: needs --base, a diffusers-format folder")
    team, device = Team.current(), pick_device()
    seed = derive_seed(config["run.seed"], dataset, category, method)
    about = {"device": describe(device), "method": method, "processes": team.size}
    with (
        provenance.stage_run(out, state, "train", config, **about)
        if team.leads
        else nullcontext({}) as facts
    ):
        data = Pictures.load(prepared)
        learner = kind.create(options, BaseModel.load(base), seed)
        learner.begin(data)
        learner.to(device)
        trained = sum(p.numel() for p in learner.module.parameters() if p.requires_grad)
        log.info(
            "%s %s: %.1f M trained weights, %d defective and %d normal pictures",
            method,
            category,
            trained / 1e6,
            len(data.defective),
            len(data.normal),
        )

        def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
            learner.schedule(step)
            return learner.loss(data, rng)

        facts["training"] = fit(
            learner.module,
            loss,
            options.optim,
            seed=seed,
            state_dir=state,
            config_digest=digest([config.digest, data.digest(), _base_identity(base)]),
            device=device,
            name=f"{method} {category}",
            validate=lambda rng: learner.loss(data, rng),
        )
        if not team.leads:
            return
        learner.save(out)
        about = {
            "dataset": dataset,
            "category": category,
            "defects": data.defects,
            "size": data.size,
            "raw_mask_cells": data.cells,
        }
        provenance.write_json(out / "trained_on.json", about)
        facts["trained_weights"] = trained


def _base_identity(base: Path) -> dict[str, str]:
    """Hashes of the files of a base, trained here or downloaded."""
    manifest = base / "manifest.json"
    if manifest.is_file():
        return provenance.outputs(manifest)
    return provenance.sha256_tree(base)
