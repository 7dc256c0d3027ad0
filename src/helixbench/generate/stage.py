"""Stage `generate`: planned pairs in the MVTec layout, with seeds, redraws and hashes in
manifest.csv; whole, or split over jobs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from helixbench import provenance
from helixbench.config import Slice, digest
from helixbench.diffusion.data import Pictures
from helixbench.engine.devices import describe, pick_device
from helixbench.errors import UserError
from helixbench.generate import gather
from helixbench.generate.composite import composite
from helixbench.generate.gather import Block
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.method import Learner, Method, method_class
from helixbench.pictures import mask_gate
from helixbench.pictures.mask_gate import Limits
from helixbench.records import Pair, Plan, derive_seed
from helixbench.schema import Generate

log = logging.getLogger(__name__)


def _write_png(path: Path, array: np.ndarray) -> str:
    """Atomic PNG of uint8 (H, W[, 3]); returns its sha256."""
    provenance.write_atomic(
        path, lambda temporary: Image.fromarray(array).save(temporary, compress_level=4)
    )
    return provenance.sha256(path)


def _sample(
    method: Method, data: Pictures, asked: list[Plan], attempt: int, config: Generate
) -> tuple[np.ndarray, np.ndarray]:
    """One attempt at some plans -> uint8 (n, H, W, 3) and bool (n, H, W)."""
    # Attempt 0 is seeded by the pair's own seed; a redraw by one derived from it.
    seeds = [
        plan.seed if attempt == 0 else derive_seed(plan.seed, "redraw", attempt) for plan in asked
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    given = conditions(data, asked, config.sampling.control)
    images, masks = method.sample(given, generators)
    if config.composite and method.draws_into_background:
        images = composite(images, given.background, masks, config.composite)
    images = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return images.numpy(), masks[:, 0].numpy() > 0.5


Kept = tuple[Plan, int, str, np.ndarray, np.ndarray]
"""Plan, attempt, gate verdict, image, mask."""


def _draw(
    method: Method,
    data: Pictures,
    block: list[Plan],
    config: Generate,
    limits: Mapping[str, Limits],
) -> tuple[list[Kept], int]:
    """Draw a block until each pair passes the gate or was drawn again often enough; also how many
    drawings it took.

    limits: of the gate, by defect type.

    Rounding may depend on the place and the neighbours in a batch. Here both depend on the plan and
    on verdicts inside the block only, so that its bytes are the same in every shard and in a
    resumed run.
    """
    kept, asked, drawn = [], block, 0
    for attempt in range(config.gate.redraws + 1):
        images, masks = _sample(method, data, asked, attempt, config)
        drawn += len(asked)
        again = []
        for plan, image, mask in zip(asked, images, masks, strict=True):
            judged = mask_gate.verdict(mask, limits[plan.defect])
            if judged == "ok" or attempt == config.gate.redraws:
                kept.append((plan, attempt, judged, image, mask))
            else:
                again.append(plan)
        asked = again
        if not asked:
            break
    return sorted(kept, key=lambda one: block.index(one[0])), drawn


def _settings(method: Method, options: Generate) -> str:
    """What changes the pairs, for the protocol of every score."""
    text = method.describe()
    if options.composite and method.draws_into_background:
        text += f", the normal from {options.composite:g} of the height around the mask on"
    return text


def load_method(name: str, config: Slice, model: Path | None) -> Method:
    """A method ready to sample: trained from `model` when it learns."""
    options, sampling = config[f"train.methods.{name}"], config["generate"].sampling
    kind = method_class(options.kind)
    if not issubclass(kind, Learner):
        return kind(options, sampling)
    if model is None:
        raise UserError(f"{name}: needs --model, the folder written by train")
    return kind.load(options, model, sampling).to(pick_device())


def _write(kept: list[Kept], method: str, prompts: dict[str, str], out: Path) -> list[Pair]:
    """Write the pictures; returns their records."""
    pairs = []
    for plan, attempt, judged, image, mask in kept:
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
                gate=judged,
                redraws=attempt,
                mask_area=round(float(mask.mean()), 6),
                sha256=_write_png(out / image_file, image),
                mask_sha256=_write_png(out / mask_file, mask.astype(np.uint8) * 255),
            )
        )
    return pairs


def parse_part(text: str) -> tuple[int, int]:
    """'2/3' -> (2, 3), the second of three shards; UserError for anything else."""
    part, _, of = text.partition("/")
    if not (part.isdecimal() and of.isdecimal() and 1 <= int(part) <= int(of)):
        raise UserError(f"--part {text}: write K/N with K from 1 to N, e.g. 2/3")
    return int(part), int(of)


def _finished(file: Path, identity: str, number: int, blocks: int, out: Path) -> Block | None:
    """The block that an earlier run drew, if it is of this configuration and its pictures are as
    they were.
    """
    try:
        block = Block.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    known = (block.identity, block.number, block.blocks) == (identity, number, blocks)
    return block if known and not block.damaged(out) else None


def run_part(
    method: str,
    config: Slice,
    *,
    prepared: Path,
    model: Path | None,
    state: Path,
    out: Path,
    record: Path,
    part: tuple[int, int] = (1, 1),
) -> None:
    """Draw, gate and write one part of the pairs of a category; `record` gets a line a block, last.

    The plan is cut into blocks of `generate.batch` pairs; part k of n is every n-th block from the
    k-th on. Every finished block leaves a file in `state`, which all parts share: a resumed run
    goes on from there, also with another number of parts.
    """
    clock = provenance.Cost()
    options: Generate = config["generate"]
    generator = load_method(method, config, model)
    data = Pictures.load(prepared)
    plans = make_plan(data, options, config["run.seed"])
    blocks = [plans[first : first + options.batch] for first in range(0, len(plans), options.batch)]
    identity = digest(
        [config.digest, data.digest(), provenance.outputs(model / "manifest.json") if model else {}]
    )
    provenance.claim(state)
    provenance.claim(out)
    gather.withdraw_manifest(out)

    mine = range(part[0] - 1, len(blocks), part[1])
    files = {number: state / f"block{number:05d}.json" for number in mine}
    done = {
        number: block
        for number in mine
        if (block := _finished(files[number], identity, number, len(blocks), out))
    }
    wanted, made = (
        sum(len(blocks[number]) for number in mine),
        sum(len(block.pairs) for block in done.values()),
    )
    category, device = plans[0].category, describe(pick_device())
    prompts = {defect: generator.prompt(category, defect) for defect in data.defects}
    limits = mask_gate.learn_all(data.defect_masks, options.gate)
    name = f"{method} {category}" + (f" {part[0]}/{part[1]}" if part[1] > 1 else "")
    log.info("%s: %d of %d pairs to make on %s", name, wanted - made, wanted, device)

    def finish(number: int, kept: list[Kept], drawn: int, cost: dict[str, float]) -> Block:
        pairs = _write(kept, method, prompts, out)
        about = (
            _settings(generator, options),
            generator.takes_raw_mask,
            mask_gate.as_record(limits),
            device,
        )
        block = Block(identity, number, len(blocks), *about, cost, drawn, pairs)
        provenance.write_text(files[number], block.line())
        return block

    bar = tqdm(total=wanted, initial=made, desc=name, disable=None if sys.stderr.isatty() else True)
    started = logged = time.monotonic()
    fresh = 0
    own = provenance.alone(state / f"part{part[0]}of{part[1]}")
    with own, ThreadPoolExecutor(1) as writer:  # a block is written while the next one is drawn
        writing = None
        for number in mine:
            if number in done:
                continue
            kept, drawn = _draw(generator, data, blocks[number], options, limits)
            if writing:
                block = writing.result()  # a full disk stops the stage here
                done[block.number] = block
            cost, clock = clock.as_dict(), provenance.Cost()
            writing = writer.submit(finish, number, kept, drawn, cost)
            made, fresh = made + len(kept), fresh + drawn
            bar.update(len(kept))
            if bar.disable and (time.monotonic() - logged > 15 or made == wanted):
                log.info(
                    "%s: %d/%d pairs, %.2f s a drawing",
                    name,
                    made,
                    wanted,
                    (time.monotonic() - started) / fresh,
                )
                logged = time.monotonic()
        if writing:
            block = writing.result()
            done[block.number] = block
    bar.close()
    provenance.write_text(record, "".join(done[number].line() for number in mine))


def run(
    method: str,
    dataset: str,
    category: str,
    config: Slice,
    *,
    prepared: Path,
    model: Path | None,
    state: Path,
    out: Path,
) -> None:
    """Make all pairs of one category in this process; writes pictures, manifest.json and, last,
    manifest.csv.
    """
    record = state / "pairs.jsonl"
    run_part(method, config, prepared=prepared, model=model, state=state, out=out, record=record)
    gather.run(method, category, config, records=[record], state=state, out=out)
