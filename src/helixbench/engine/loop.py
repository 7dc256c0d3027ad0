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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from helixbench.engine import checkpoint
from helixbench.engine.devices import autocast
from helixbench.engine.distributed import Team
from helixbench.errors import UserError
from helixbench.provenance import versions
from helixbench.records import derive_seed
from helixbench.schema import Optim

log = logging.getLogger(__name__)

Loss = Callable[[int, torch.Generator], torch.Tensor | dict[str, torch.Tensor]]
"""loss(step, rng): see `fit`."""


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
    settings = {"lr": optim.lr, "betas": optim.betas, "weight_decay": optim.weight_decay}
    if optim.adam == "8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise UserError(
                "adam: 8bit needs the package bitsandbytes; install it, or set adam: fp32"
            ) from None
        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


class _State:
    """Weights, optimiser, average and step of one run, as one file.

    facts: what a state must agree in to be resumed. The previous file stays beside the latest, and
    is used when that one is corrupt.
    """

    def __init__(self, module: nn.Module, optim: Optim, file: Path, facts: dict[str, Any]):
        self.module, self.file, self.facts = module, file, facts
        self.previous = file.with_name(f"{file.stem}.before{file.suffix}")
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = adam(self.parameters, optim)
        # Running statistics belong to the weights they were taken with: both are averaged.
        self.averaged = self.parameters + [b for b in module.buffers() if b.is_floating_point()]
        self.ema = [tensor.detach().clone() for tensor in self.averaged] if optim.ema else []
        self.step, self.seconds = 0, 0.0

    def _trained(self) -> dict[str, torch.Tensor]:
        """Trainable parameters and all buffers (running statistics); frozen weights are not
        state.
        """
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        return {**trained, **dict(self.module.named_buffers())}

    def save(self) -> None:
        """Write the state."""
        moments = checkpoint.optimizer_tensors(self.optimizer)
        tensors = {
            **{f"weights/{name}": tensor for name, tensor in self._trained().items()},
            **{f"ema/{i}": tensor for i, tensor in enumerate(self.ema)},
            **{f"optimizer/{key}": tensor for key, tensor in moments.items()},
        }
        latest = self.file.with_name(f"{self.file.stem}.next{self.file.suffix}")
        progress = {"step": self.step, "seconds": self.seconds}
        checkpoint.save_tensors(latest, tensors, {**self.facts, **progress})
        if self.file.is_file():  # only now: two whole states exist while a third is written
            os.replace(self.file, self.previous)
        os.replace(latest, self.file)

    def resume(self) -> None:
        """Load the last state that is whole; nothing where there is none. UserError when every
        state there is corrupt.
        """
        errors = []
        for file in filter(Path.is_file, (self.file, self.previous)):
            try:
                self._load(file)
                if errors:
                    self.file.unlink()  # or the next save would replace the good one by it
                return
            except UserError as error:
                log.warning("%s", error)
                errors.append(error)
        if errors:
            raise errors[0]

    def _load(self, file: Path) -> None:
        tensors, written = checkpoint.load_tensors(file)
        if {key: written.get(key) for key in self.facts} != self.facts:
            log.info("%s belongs to another configuration; starting anew", file)
            return
        parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "ema": {}, "optimizer": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        trained = self._trained()
        with torch.no_grad():
            for name, tensor in parts["weights"].items():
                trained[name].copy_(tensor)
            for i, tensor in parts["ema"].items():
                self.ema[int(i)].copy_(tensor)
        checkpoint.restore_optimizer(self.optimizer, parts["optimizer"])
        self.step, self.seconds = written["step"], written["seconds"]

    def update_average(self, decay: float) -> None:
        """Exponential moving average; early steps weigh less, so that the start is forgotten."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [tensor.detach() for tensor in self.averaged], 1 - decay)

    @torch.no_grad()
    def leave_average(self) -> None:
        """The averaged weights become the module's."""
        for tensor, average in zip(self.averaged, self.ema, strict=True):
            tensor.copy_(average)


def fit(
    module: nn.Module,
    loss: Loss,
    optim: Optim,
    *,
    seed: int,
    state_dir: Path,
    config_digest: str,
    device: torch.device,
    name: str,
    validate: Callable[[torch.Generator], dict[str, torch.Tensor]] | None = None,
    limit_s: float | None = None,
) -> dict[str, float]:
    """Train `module` in place until `optim.steps`, resuming from `state_dir`; the averaged weights
    are left in it.

    loss(step, rng): scalar of one pass of that step, or a dictionary of scalars to be summed (each
    is logged). rng is a CPU generator seeded by (seed, name, step, pass); all randomness must come
    from it. A step's gradient is the mean of its `optim.accumulate` passes. validate(rng): loss
    terms, taken every `optim.validate_every` steps with the same rng and logged as `val_<term>`.
    Writes `state_dir/state.safetensors` (resume, atomic, with its hash; `state.before.safetensors`
    is the previous checkpoint, used when the latest is corrupt) and `state_dir/stats.jsonl` (step,
    loss, lr, grad_norm, steps/s, images/s, peak memory [MiB]). The processes of a team share the
    passes of each step; the first one writes and validates. limit_s: seconds of training over all
    attempts after which it ends before its last step, with one process. Raises UserError with the
    step when the loss or its gradient is not finite; the last checkpoint is kept. Returns facts for
    the stage's manifest: steps, the step resumed at, and training seconds over all attempts.
    """
    team = Team.current()
    if optim.accumulate % team.size:
        raise UserError(
            f"{name}: {team.size} processes share the passes of a step; set optim.accumulate to a "
            f"multiple of {team.size}"
        )
    state_dir.mkdir(parents=True, exist_ok=True)
    # Other versions of these packages draw or compute differently: their states are not resumed.
    facts = {"config_digest": config_digest, "seed": seed, "name": name}
    facts["versions"] = versions(("torch", "diffusers"))
    if device.type == "cpu":  # sums on another number of threads are other sums
        facts["threads"] = torch.get_num_threads()
    state = _State(module, optim, state_dir / "state.safetensors", facts)
    state.resume()
    first, started = state.step, time.monotonic() - state.seconds
    if first:
        log.info("%s: resuming at step %d of %d", name, first, optim.steps)
    passes = _Passes(loss, optim, seed, name, device, team, state.file)
    progress = _Progress(name, optim, first, device, state_dir) if team.leads else None
    saved, limit_s = time.monotonic(), math.inf if limit_s is None else limit_s
    for step in range(first, optim.steps):
        if state.seconds >= limit_s:  # as of the last save
            break
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, optim)
        state.optimizer.zero_grad(set_to_none=True)
        terms = passes.backward(step)
        team.add_gradients(state.parameters)
        team.average_buffers(module)
        clip = math.inf if optim.grad_clip is None else optim.grad_clip
        norm = nn.utils.clip_grad_norm_(state.parameters, clip)
        passes.check("gradient", norm, step)
        state.optimizer.step()
        state.step = step + 1
        if state.ema:
            state.update_average(optim.ema)
        if progress is None:  # the first process of a team validates, logs and saves for all
            continue
        last = state.step == optim.steps
        if validate and optim.validate_every and (last or state.step % optim.validate_every == 0):
            progress.validated(state.step, passes.validation(module, validate))
        progress.trained(state.step, terms, norm)
        now = time.monotonic()
        if last or now - saved >= optim.save_every_s or now - started >= limit_s:
            state.seconds = time.monotonic() - started
            state.save()
            saved = time.monotonic()
    if progress:
        progress.bar.close()
    if state.ema:
        state.leave_average()
    return {"steps": state.step, "resumed_at": first, "train_s": round(state.seconds, 1)}


@dataclass(frozen=True)
class _Passes:
    """The passes of each step that this process of the team computes."""

    loss: Loss
    optim: Optim
    seed: int
    name: str
    device: torch.device
    team: Team
    file: Path

    def backward(self, step: int) -> dict[str, torch.Tensor]:
        """Add a step's gradients up in the weights; the mean of each loss term over all passes."""
        means: dict[str, torch.Tensor] = {}
        for index in range(self.team.rank, self.optim.accumulate, self.team.size):
            # The first pass has the seed of a step of one pass, without a number: its draws do not
            # depend on `accumulate`, and runs from before there were passes can be repeated.
            number = [index] if index else []
            rng = _generator(self.seed, self.name, "step", step, *number)
            with autocast(self.device, self.optim.precision):
                terms = _terms(self.loss(step, rng))
            total = sum(terms.values()) / self.optim.accumulate
            self.check("loss", total, step)
            total.backward()
            for key, value in terms.items():
                means[key] = means.get(key, 0.0) + value.detach() / self.optim.accumulate
        return self.team.add(means)

    def validation(self, module: nn.Module, validate: Callable) -> dict[str, torch.Tensor]:
        """Terms of the validation loss, on the same draws every time."""
        rng = _generator(self.seed, self.name, "validate")
        with torch.no_grad(), _evaluating(module), autocast(self.device, self.optim.precision):
            return _terms(validate(rng))

    def check(self, what: str, value: torch.Tensor, step: int) -> None:
        """UserError for a value that is not finite."""
        if not torch.isfinite(value):
            raise UserError(
                f"{self.name}: the {what} is {value.item()} at step {step}; last good checkpoint: "
                f"{self.file}"
            )


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


def _terms(loss: torch.Tensor | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return loss if isinstance(loss, dict) else {"loss": loss}


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


class _Progress:
    """What a training reports: rows of stats.jsonl, each the mean since the last one, status lines,
    and a bar on a terminal.
    """

    def __init__(self, name: str, optim: Optim, first: int, device: torch.device, state_dir: Path):
        self.name, self.optim, self.first, self.device = name, optim, first, device
        self.journal = _Journal(state_dir / "stats.jsonl", name, first)
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=optim.steps, initial=first, desc=name, disable=not terminal)
        self.sums: dict[str, torch.Tensor] = {}
        self.logged_at, self.logged_step = time.monotonic(), first

    def validated(self, step: int, terms: dict[str, torch.Tensor]) -> None:
        """A row of validation losses."""
        values = {f"val_{key}": round(float(value), 6) for key, value in terms.items()}
        self.journal.write({"step": step, **values})

    def trained(self, step: int, terms: dict[str, torch.Tensor], norm: torch.Tensor) -> None:
        """Count a step; a row after the first step, every `log_every_s` seconds and after the last.

        terms: scalars; norm: of the gradient before clipping, a scalar.
        """
        self.bar.update()
        for key, value in terms.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        now = time.monotonic()
        due = now - self.logged_at >= self.optim.log_every_s
        if not (due or step == self.optim.steps or step == self.first + 1):
            return
        row = self._row(step, norm, max(now - self.logged_at, 1e-9))
        self.journal.write(row)
        if self.bar.disable:
            self._log(row)
        self.sums, self.logged_at, self.logged_step = {}, now, step

    def _row(self, step: int, norm: torch.Tensor, seconds: float) -> dict[str, float]:
        count = step - self.logged_step
        row = {
            "step": step,
            **{key: round(float(value) / count, 6) for key, value in self.sums.items()},
            "lr": learning_rate(step - 1, self.optim),
            "grad_norm": round(float(norm), 5),
            "steps_per_s": round(count / seconds, 4),
            "images_per_s": round(count * self.optim.batch / seconds, 2),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        if self.device.type == "cuda":
            row["peak_gpu_mib"] = torch.cuda.max_memory_allocated(self.device) // 2**20
        return row

    def _log(self, row: dict[str, float]) -> None:
        step, speed, steps = row["step"], row["steps_per_s"], self.optim.steps
        terms = "  ".join(f"{key} {row[key]:.4f}" for key in self.sums)
        left = (steps - step) / max(speed, 1e-9)
        text = "%s %d/%d  %s  %.2f steps/s  %d s left"
        log.info(text, self.name, step, steps, terms, speed, left)


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
