"""The one training loop: autoencoders, generators and detectors all go through it.

Nothing random lives in the loop. The batch and the noise of step k come from a generator seeded by
(seed, k), so a resumed run repeats the unbroken one, bit for bit on a CPU.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from helixbench.engine import checkpoint
from helixbench.engine.devices import autocast
from helixbench.engine.distributed import Team
from helixbench.errors import UserError
from helixbench.provenance import versions
from helixbench.records import derive_seed
from helixbench.schema import AdversarialOptim, Optim

log = logging.getLogger(__name__)


def learning_rate(step: int, optim: Optim) -> float:
    """Learning rate of step k (0-based): linear warm-up, then constant, half-cosine to 0, or x0.2
    at 80 % and 90 %.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    if optim.decay == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.decay == "multistep":
        return optim.lr * 0.2 ** ((step >= 0.8 * optim.steps) + (step >= 0.9 * optim.steps))
    return optim.lr


def adam(parameters: list[nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """AdamW, with its two moments in float32 or quantised to 8 bit (bitsandbytes)."""
    more = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    if isinstance(optim, AdversarialOptim):
        more["betas"] = optim.betas
    if optim.adam == "8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise UserError(
                "adam: 8bit needs the package bitsandbytes; install it, or set adam: fp32"
            ) from None
        return AdamW8bit(parameters, **more)
    return torch.optim.AdamW(parameters, **more)


def before(path: Path) -> Path:
    """The state that `path` took the place of."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


class _State:
    """Weights, optimiser, average and step of one run, as one file."""

    def __init__(self, module: nn.Module, optim: Optim):
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = adam(self.parameters, optim)
        # Running statistics belong to the weights they were taken with, so they are averaged, too.
        self.averaged = self.parameters + [b for b in module.buffers() if b.is_floating_point()]
        self.ema = [tensor.detach().clone() for tensor in self.averaged] if optim.ema else []
        self.step, self.seconds = 0, 0.0

    def _trained(self) -> dict[str, torch.Tensor]:
        """Trainable parameters and all buffers (running statistics); frozen weights are not
        state.
        """
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        return {**trained, **dict(self.module.named_buffers())}

    def save(self, path: Path, facts: dict) -> None:
        """Write the state; the one before it stays beside it."""
        tensors = {f"weights/{name}": t for name, t in self._trained().items()}
        tensors |= {f"ema/{i}": t for i, t in enumerate(self.ema)}
        tensors |= {
            f"optimizer/{k}": t for k, t in checkpoint.optimizer_tensors(self.optimizer).items()
        }
        fresh = path.with_name(f"{path.stem}.next{path.suffix}")
        checkpoint.save_tensors(
            fresh, tensors, {**facts, "step": self.step, "seconds": self.seconds}
        )
        if path.is_file():  # only now: while a state is written there are two whole ones
            os.replace(path, before(path))
        os.replace(fresh, path)

    def resume(self, path: Path, facts: dict) -> None:
        """Go on from the last state that is whole; without one from the start. UserError when all
        there are is damaged.
        """
        damage = []
        for file in filter(Path.is_file, (path, before(path))):
            try:
                self._load(file, facts)
                if damage:
                    path.unlink()  # the next state must not push the good one out for it
                return
            except UserError as error:
                log.warning("%s", error)
                damage.append(error)
        if damage:
            raise damage[0]

    def _load(self, path: Path, facts: dict) -> None:
        tensors, found = checkpoint.load_tensors(path)
        if {key: found.get(key) for key in facts} != facts:
            log.info("%s belongs to another configuration; starting anew", path)
            return
        part = lambda prefix: {
            k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)
        }
        with torch.no_grad():
            own = self._trained()
            for name, tensor in part("weights/").items():
                own[name].copy_(tensor)
            for i, tensor in part("ema/").items():
                self.ema[int(i)].copy_(tensor)
        checkpoint.restore_optimizer(self.optimizer, part("optimizer/"))
        self.step, self.seconds = found["step"], found["seconds"]

    def average(self, decay: float) -> None:
        decay = min(decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [tensor.detach() for tensor in self.averaged], 1 - decay)


def fit(
    module: nn.Module,
    loss: Callable[[int, torch.Generator], torch.Tensor | dict[str, torch.Tensor]],
    optim: Optim,
    *,
    seed: int,
    state_dir: Path,
    config_digest: str,
    device: torch.device,
    name: str,
    validate: Callable[[torch.Generator], dict[str, torch.Tensor]] | None = None,
) -> dict[str, float]:
    """Train `module` in place until `optim.steps`, resuming from `state_dir`; the averaged weights
    are left in it.

    loss(step, rng): scalar of one pass of that step, or a dictionary of scalars to be summed (each
    is logged). rng is a CPU generator seeded by (seed, name, step, pass); all randomness must come
    from it. A step's gradient is the mean of its `optim.accumulate` passes. validate(rng): loss
    terms, taken every `optim.validate_every` steps with the same rng and logged as `val_<term>`.
    Writes `state_dir/state.safetensors` (resume, atomic, with its hash; `state.before.safetensors`
    is the one before, gone on from where that is damaged) and `state_dir/stats.jsonl` (step, loss,
    lr, grad_norm, steps/s, images/s, peak memory [MiB]). The processes of a team share the passes
    of each step; the first one writes and validates. Raises UserError with the step when the loss
    or its gradient is not finite; the last checkpoint is kept. Returns facts for the stage's
    manifest: steps, the step gone on from, and training seconds over all attempts.
    """
    team = Team.current()
    if optim.accumulate % team.size:
        raise UserError(
            f"{name}: {team.size} processes share the passes of a step; set optim.accumulate to a "
            f"multiple of {team.size}"
        )
    state_dir.mkdir(parents=True, exist_ok=True)
    file = state_dir / "state.safetensors"
    state = _State(module, optim)
    # Weights trained by other code are not gone on with.
    facts = {
        "config_digest": config_digest,
        "seed": seed,
        "name": name,
        "versions": versions(("torch", "diffusers")),
    }
    state.resume(file, facts)
    first, begun = state.step, time.monotonic() - state.seconds
    journal = _Journal(state_dir / "stats.jsonl", name, first) if team.leads else None
    if first:
        log.info("%s: resuming at step %d of %d", name, first, optim.steps)
    saved = logged = time.monotonic()
    logged_step, sums = first, {}
    bar = tqdm(
        total=optim.steps,
        initial=first,
        desc=name,
        disable=not (team.leads and sys.stderr.isatty()),
    )
    for step in range(first, optim.steps):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, optim)
        state.optimizer.zero_grad(set_to_none=True)
        own: dict[str, torch.Tensor] = {}
        for index in range(team.rank, optim.accumulate, team.size):
            rng = torch.Generator().manual_seed(
                derive_seed(seed, name, "step", step, *([index] if index else []))
            )
            with autocast(device, optim.precision):
                terms = _terms(loss(step, rng))
            total = sum(terms.values()) / optim.accumulate
            if not torch.isfinite(total):
                raise UserError(
                    f"{name}: the loss is {total.item()} at step {step}; last good checkpoint: "
                    f"{file}"
                )
            total.backward()
            for key, value in terms.items():
                own[key] = own.get(key, 0.0) + value.detach() / optim.accumulate
        team.add_gradients(state.parameters)
        team.average_buffers(module)
        for key, value in team.add(own).items():
            sums[key] = sums.get(key, 0.0) + value
        norm = nn.utils.clip_grad_norm_(
            state.parameters, math.inf if optim.grad_clip is None else optim.grad_clip
        )
        if not torch.isfinite(norm):
            raise UserError(
                f"{name}: the gradient is {norm.item()} at step {step}; last good checkpoint: "
                f"{file}"
            )
        state.optimizer.step()
        state.step = step + 1
        if state.ema:
            state.average(optim.ema)
        bar.update()
        last = state.step == optim.steps
        if journal is None:
            continue
        if validate and optim.validate_every and (last or state.step % optim.validate_every == 0):
            with torch.no_grad(), _evaluating(module), autocast(device, optim.precision):
                held = _terms(
                    validate(torch.Generator().manual_seed(derive_seed(seed, name, "validate")))
                )
            journal.write(
                {
                    "step": state.step,
                    **{f"val_{key}": round(float(value), 6) for key, value in held.items()},
                }
            )
        now = time.monotonic()
        if now - logged >= optim.log_every_s or last or state.step == first + 1:
            count = state.step - logged_step
            row = {
                "step": state.step,
                **{key: round(float(value) / count, 6) for key, value in sums.items()},
                "lr": learning_rate(step, optim),
                "grad_norm": round(float(norm), 5),
                "steps_per_s": round(count / max(now - logged, 1e-9), 4),
                "images_per_s": round(count * optim.batch / max(now - logged, 1e-9), 2),
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
            if device.type == "cuda":
                row["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
            journal.write(row)
            if bar.disable:
                left = (optim.steps - state.step) / max(row["steps_per_s"], 1e-9)
                text = "  ".join(f"{key} {row[key]:.4f}" for key in sums)
                log.info(
                    "%s %d/%d  %s  %.2f steps/s  %d s left",
                    name,
                    state.step,
                    optim.steps,
                    text,
                    row["steps_per_s"],
                    left,
                )
            logged, logged_step, sums = now, state.step, {}
        if now - saved >= optim.save_every_s or last:
            state.seconds = now - begun
            state.save(file, facts)
            saved = now
    bar.close()
    if state.ema:
        with torch.no_grad():
            for tensor, averaged in zip(state.averaged, state.ema, strict=True):
                tensor.copy_(averaged)
    return {"steps": optim.steps, "resumed_at": first, "train_s": round(state.seconds, 1)}


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, then each part's own mode again: a validation loss must leave running
    statistics alone.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _terms(loss: torch.Tensor | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return loss if isinstance(loss, dict) else {"loss": loss}


class _Journal:
    """stats.jsonl, and TensorBoard where HELIXBENCH_TENSORBOARD names a folder: looking on must not
    change a digest.
    """

    def __init__(self, path: Path, name: str, step: int):
        self.path, self.board = path, None
        self._truncate(step)
        folder = os.environ.get("HELIXBENCH_TENSORBOARD")
        if folder:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    "HELIXBENCH_TENSORBOARD is set, but tensorboard is not installed; install it, "
                    "or unset it"
                ) from None
            run = "_".join([name.replace(" ", "_"), path.parent.parent.name])
            self.board = SummaryWriter(Path(folder) / run, purge_step=step + 1 if step else None)

    def write(self, row: dict[str, float]) -> None:
        """Add what was measured at row["step"]."""
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        if self.board:
            for key in row.keys() - {"step"}:
                self.board.add_scalar(key, row[key], row["step"])
            self.board.flush()

    def _truncate(self, step: int) -> None:
        """Drop lines past the checkpoint that training resumes from, so that no step is told
        twice.
        """
        if self.path.is_file():
            lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if line]
            kept = [line for line in lines if _step_of(line) <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(temporary, self.path)


def _step_of(line: str) -> float:
    """Step of a line of stats.jsonl; infinity for one that a kill cut off."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
