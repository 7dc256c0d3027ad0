"""Stage `generate`: planned pairs in the MVTec layout, with seeds, redraws and hashes in manifest.csv."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from helixbench import provenance
from helixbench.config import Slice, digest
from helixbench.devices import describe, pick_device
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.generate.gate import verdict
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.method import Learner, Method
from helixbench.methods.registry import method_class
from helixbench.records import Pair, Plan, derive_seed, write_csv
from helixbench.schema import Generate

log = logging.getLogger(__name__)


def _write_png(path: Path, array: np.ndarray) -> str:
    """Atomic PNG of uint8 (H, W[, 3]); returns its sha256."""
    provenance.write_atomic(path, lambda temporary: Image.fromarray(array).save(temporary, compress_level=4))
    return provenance.sha256(path)


class _Journal:
    """Pairs that are done, so that a killed run goes on: one JSON line each, valid for one configuration and data."""

    def __init__(self, path: Path, identity: str, out: Path):
        self.path, self.done = path, {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines and lines[0] == identity:
            for line in lines[1:]:
                try:
                    pair = Pair(**json.loads(line))
                except (ValueError, TypeError):
                    break  # cut off by a kill in mid-write
                files = ((out / pair.image, pair.sha256), (out / pair.mask, pair.mask_sha256))
                if all(file.is_file() and provenance.sha256(file) == digest for file, digest in files):
                    self.done[pair.defect, pair.index] = pair
        provenance.write_text(path, "\n".join([identity, *(self._line(pair) for pair in self.done.values())]) + "\n")

    @staticmethod
    def _line(pair: Pair) -> str:
        return json.dumps(dataclasses.asdict(pair), sort_keys=True)

    def add(self, pairs: list[Pair]) -> None:
        self.done |= {(pair.defect, pair.index): pair for pair in pairs}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.writelines(self._line(pair) + "\n" for pair in pairs)
            handle.flush()
            os.fsync(handle.fileno())


def _sample(method: Method, data: Pictures, batch: list[tuple[Plan, int]], config: Generate) -> tuple[np.ndarray, np.ndarray]:
    """One batch of (plan, attempt) -> uint8 (n, H, W, 3) and bool (n, H, W).

    A network always gets a whole batch, the last one filled up with copies: matrix products of another size may round
    differently, and a resumed run has other remainders than an unbroken one.
    """
    wanted = len(batch)
    if isinstance(method, Learner):
        batch = batch + batch[:1] * (config.batch - wanted)
    plans = [plan for plan, _ in batch]
    # Attempt 0 is seeded by the pair's own seed; a redraw by one derived from it.
    seeds = [plan.seed if attempt == 0 else derive_seed(plan.seed, "redraw", attempt) for plan, attempt in batch]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images, masks = method.sample(conditions(data, plans, config.sampling.control), generators)
    images = (images[:wanted].clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return images.numpy(), masks[:wanted, 0].numpy() > 0.5


def load_method(name: str, config: Slice, model: Path | None) -> Method:
    """A method ready to sample: trained from `model` when it learns."""
    options, sampling = config[f"train.methods.{name}"], config["generate"].sampling
    kind = method_class(options.kind)
    if not issubclass(kind, Learner):
        return kind(options, sampling)
    if model is None:
        raise UserError(f"{name}: needs --model, the folder written by train")
    return kind.load(options, model, sampling).to(pick_device())


def _write(kept: list[tuple[Plan, int, str, np.ndarray, np.ndarray]], method: str, prompts: dict[str, str], out: Path) -> list[Pair]:
    """Write the pictures of (plan, attempt, gate verdict, image, mask); returns their records."""
    pairs = []
    for plan, attempt, gate, image, mask in kept:
        image_file = f"{plan.category}/test/{plan.defect}/{plan.index:03d}.png"
        mask_file = f"{plan.category}/ground_truth/{plan.defect}/{plan.index:03d}_mask.png"
        pairs.append(
            Pair(
                index=plan.index,
                dataset=plan.dataset,
                category=plan.category,
                defect=plan.defect,
                method=method,
                image=image_file,
                mask=mask_file,
                seed=plan.seed,
                donor=plan.donor,
                background=plan.background,
                raw_mask=plan.raw_mask,
                prompt=prompts[plan.defect],
                gate=gate,
                redraws=attempt,
                mask_area=round(float(mask.mean()), 6),
                sha256=_write_png(out / image_file, image),
                mask_sha256=_write_png(out / mask_file, mask.astype(np.uint8) * 255),
            )
        )
    return pairs


def _make(method: str, generator: Method, data: Pictures, plans: list[Plan], options: Generate, journal: _Journal, out: Path) -> int:
    """Draw, gate and write every planned pair that the journal lacks; returns how many drawings it took.

    One batch is written while the next one is drawn.
    """
    started = time.monotonic()
    done = dict(journal.done)
    category, made = plans[0].category, len(done)
    prompts = {defect: generator.prompt(category, defect) for defect in data.defects}
    name = f"{method} {category}"
    log.info("%s: %d of %d pairs to make on %s", name, len(plans) - made, len(plans), describe(pick_device()))
    bar = tqdm(total=len(plans), initial=made, desc=name, disable=None if sys.stderr.isatty() else True)
    drawn, logged = 0, time.monotonic()
    with ThreadPoolExecutor(1) as writer:
        writing = None
        # Attempt by attempt, in batches that depend on the plan and on earlier verdicts only: a resumed run draws each pair
        # at the same place among the same neighbours as an unbroken one, since rounding may depend on both.
        asked = plans
        for attempt in range(options.gate.redraws + 1):
            again = []
            for first in range(0, len(asked), options.batch):
                batch = asked[first : first + options.batch]
                missing = [plan for plan in batch if (plan.defect, plan.index) not in done]
                failed = {plan for plan in batch if plan not in missing and done[plan.defect, plan.index].redraws > attempt}
                if missing:
                    images, masks = _sample(generator, data, [(plan, attempt) for plan in batch], options)
                    drawn += len(missing)
                    kept = []
                    for plan, image, mask in zip(batch, images, masks, strict=True):
                        gate = verdict(mask, options.gate)
                        if plan in missing and gate != "ok" and attempt < options.gate.redraws:
                            failed.add(plan)
                        elif plan in missing:
                            kept.append((plan, attempt, gate, image, mask))
                    if writing:
                        writing.result()  # a full disk stops the stage here
                    writing = writer.submit(lambda kept=kept: journal.add(_write(kept, method, prompts, out)))
                    made += len(kept)
                    bar.update(len(kept))
                    if bar.disable and (time.monotonic() - logged > 15 or made == len(plans)):
                        log.info("%s: %d/%d pairs, %.2f s a drawing", name, made, len(plans), (time.monotonic() - started) / drawn)
                        logged = time.monotonic()
                again += [plan for plan in batch if plan in failed]
            asked = again
        if writing:
            writing.result()
    bar.close()
    return drawn


def run(method: str, dataset: str, category: str, config: Slice, *, prepared: Path, model: Path | None, state: Path, out: Path) -> None:
    """Make all pairs of one category; writes pictures, manifest.json and, last, manifest.csv."""
    options: Generate = config["generate"]
    generator = load_method(method, config, model)
    data = Pictures.load(prepared)
    plans = make_plan(data, options, config["run.seed"])
    identity = digest([config.digest, data.digest(), provenance.outputs(model / "manifest.json") if model else {}])
    (out / "manifest.csv").unlink(missing_ok=True)
    facts = {"method": method, "settings": generator.describe(), "device": describe(pick_device())}
    with provenance.manifest(out / "manifest.json", "generate", config, **facts) as record:
        journal = _Journal(state / "journal.jsonl", identity, out)
        done = {out / name for pair in journal.done.values() for name in (pair.image, pair.mask)}
        for file in (out / category).rglob("*.png"):
            if file not in done:
                file.unlink()
        record["drawn_now"] = _make(method, generator, data, plans, options, journal, out)
        pairs = [journal.done[plan.defect, plan.index] for plan in plans]
        record["gate"] = dict(Counter(pair.gate for pair in pairs))
        record["redraws"] = sum(pair.redraws for pair in pairs)
        log.info("%s %s: gate %s, %d redraws", method, category, record["gate"], record["redraws"])
    write_csv(out / "manifest.csv", pairs, Pair)
    shutil.rmtree(state)
