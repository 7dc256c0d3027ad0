"""STAGE as a method: a defect drawn into a clean picture inside a given mask; docs/rivals.md lists the deviations."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional as F

from helixbench import checkpoint
from helixbench.devices import autocast
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures, symmetries, to_tensor, transform
from helixbench.diffusion.sampler import draw_noise
from helixbench.errors import UserError
from helixbench.methods.inversion import LearnedWords
from helixbench.methods.latents import LatentMemory, load_exactly, read, words
from helixbench.methods.method import Conditions, Learner
from helixbench.methods.stage.modules import MaskGuidanceAdapter, aligned_mask, in_window, latent_mask
from helixbench.provenance import write_json
from helixbench.records import derive_seed
from helixbench.schema import Sampling, Stage


class StageMethod(Learner):
    """Frozen latent diffusion, a learned word for each defect type, and two mask guidance adapters."""

    def __init__(self, config: Stage, base: BaseModel, sampling: Sampling | None = None):
        self.config, self.base, self.sampling = config, base, sampling
        for part in base.modules():
            part.requires_grad_(False).eval()
        base.unet.requires_grad_(config.trainable == "all")
        channels = base.vae.config.latent_channels
        self._module = nn.ModuleDict(
            {"image": MaskGuidanceAdapter(channels, config.widths), "part": MaskGuidanceAdapter(channels, config.widths), "unet": base.unet}
        )
        self._latents = LatentMemory(base)

    @classmethod
    def create(cls, config: Stage, base: BaseModel, seed: int) -> StageMethod:
        """Untrained, with seeded adapters; the words come with `begin`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "stage"))
            return cls(config, base)

    def begin(self, data: Pictures) -> None:
        """A learned word for each defect type of the data."""
        self._module["words"] = LearnedWords(self.base, data.defects, self.config.vectors)

    @classmethod
    def load(cls, config: Stage, folder: Path, sampling: Sampling) -> StageMethod:
        """Trained, from the folder that `save` wrote."""
        method, file = cls(config, BaseModel.load(folder), sampling), folder / "stage.json"
        try:
            defects = json.loads(file.read_text(encoding="utf-8"))["defects"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{file}: not the settings of a trained STAGE model; train again") from None
        method._module["words"] = LearnedWords(method.base, defects, config.vectors)
        file = folder / "stage.safetensors"
        load_exactly(method.module, read(file), method._own(), file)
        method.module.eval().requires_grad_(False)
        return method

    def _own(self) -> set[str]:
        return {name for name in self.module.state_dict() if not name.startswith("unet.")}

    def save(self, folder: Path) -> None:
        """A diffusers-format folder, stage.safetensors (words, adapters) and stage.json (configuration, defect types)."""
        self.base.save(folder)
        own, state = self._own(), self.module.state_dict()
        checkpoint.save_tensors(folder / "stage.safetensors", {name: state[name] for name in sorted(own)})
        write_json(folder / "stage.json", {"config": json.loads(self.config.model_dump_json()), "defects": self._module["words"].defects})

    @property
    def module(self) -> nn.Module:
        """Adapters, words, and the U-Net, which is frozen unless `trainable: all`."""
        return self._module

    def to(self, device: torch.device) -> StageMethod:
        """Move all weights."""
        self.base.to(device)
        self.module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.base.unet.device

    def describe(self) -> str:
        """Steps, windows and where the masks are from."""
        windows = ", ".join(f"{high}-{low}" for low, high in self.config.windows)
        return f"ddpm {self.config.sampling_steps} steps, graded in t {windows or 'nowhere'}, real masks moved by the plan"

    def prompt(self, category: str, defect: str) -> str:
        """Prompt for the manifest: `<...>` is the learned word."""
        return self.config.prompt.replace("*", f"<{words(defect)}>")

    def embed(self, defects: list[str]) -> torch.Tensor:
        """Text embeddings (n, L, D), one prompt at a time."""
        known = {defect: self._module["words"].embed(self.base, self.config.prompt, defect) for defect in sorted(set(defects))}
        return torch.stack([known[defect] for defect in defects])

    def aligned(self, mask: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """M_t of explicit mask alignment."""
        return aligned_mask(mask, t, self.config.mask_end, self.base.scheduler.config.num_train_timesteps)

    # -------------------------------------------------------------------------------------------------- training

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Squared errors of the refined noise: whole picture inside M_t, anomaly alone everywhere.

        With `trainable: all` a third term trains the U-Net as a plain diffusion model of normals and defects.
        """
        config, base, size = self.config, self.base, self.config.optim.per_pass
        pick = lambda n: int(torch.randint(n, (), generator=rng))  # noqa: E731
        names = symmetries(config.augment)
        rows = [(data.defective[pick(len(data.defective))], names[pick(len(names))]) for _ in range(size)]
        clean = [(data.normal[pick(len(data.normal))], names[pick(len(names))]) for _ in range(size)]
        pictures = to_tensor([transform(data.images[i], symmetry) for i, symmetry in rows])
        mask = to_tensor([transform(data.masks[i], symmetry) for i, symmetry in rows]).to(self.device)
        mask = latent_mask(mask, base.latent_factor)
        z = self._latents(rows, pictures)
        noise = torch.randn((3, *z.shape), generator=rng).to(self.device)
        scheduler = base.scheduler
        t = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=rng).to(self.device)
        text = self.embed([data.samples[i].defect for i, _ in rows])
        noisy, texts = [scheduler.add_noise(z, noise[0], t), scheduler.add_noise(z * mask, noise[1], t)], [text, text]
        if config.trainable == "all":
            normals = self._latents(clean, to_tensor([transform(data.images[i], symmetry) for i, symmetry in clean]))
            noisy.append(scheduler.add_noise(normals, noise[2], t))
            texts.append(base.embed([""]).expand_as(text))
        predicted = base.unet(torch.cat(noisy), t.repeat(len(noisy)), torch.cat(texts)).sample.float().chunk(len(noisy))
        aligned = self.aligned(mask, t)
        whole = self._module["image"](predicted[0], aligned).float()
        part = self._module["part"](predicted[1], mask).float()
        terms = {"image": F.mse_loss(whole * aligned, noise[0] * aligned), "part": F.mse_loss(part, noise[1])}
        if config.trainable == "all":
            terms["base"] = (F.mse_loss(predicted[0], noise[0]) + F.mse_loss(predicted[2], noise[2])) / 2
        return terms

    # -------------------------------------------------------------------------------------------------- sampling

    def scheduler(self) -> DDPMScheduler:
        """The base's noise schedule with the configured number of steps; it is given x_0, which STAGE blends before."""
        scheduler = DDPMScheduler.from_config(
            self.base.scheduler.config, prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(self.config.sampling_steps)
        return scheduler

    @torch.no_grad()
    def sample(self, conditions: Conditions, generators: list[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample. The masks are the plan's own."""
        z_clean = self.base.encode(conditions.background)
        mask = latent_mask(conditions.donor_mask.to(self.device), self.base.latent_factor)
        text, scheduler = self.embed(conditions.defects), self.scheduler()
        x = draw_noise(generators, z_clean.shape[1:]).to(self.device)
        a = x
        with autocast(self.device, self.config.optim.precision):
            for t in scheduler.timesteps:
                x, a = self.step(x, a, t, scheduler, z_clean, mask, text, generators)
            images = self.base.decode(x).cpu().float()
        return images, conditions.donor_mask.clone()

    def step(
        self,
        x: torch.Tensor,
        a: torch.Tensor,
        t: torch.Tensor,
        scheduler: DDPMScheduler,
        z_clean: torch.Tensor,
        mask: torch.Tensor,
        text: torch.Tensor,
        generators: list[torch.Generator],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of graded diffusion from t to the next time step.

        Args:
            x: noisy latents of the picture (n, C, h, w).
            a: those of the anomaly alone, on a zero background.
            t: time step.
            scheduler: see `scheduler`.
            z_clean: latents of the clean picture.
            mask: m (n, 1, h, w) in {0, 1}.
            text: text embeddings (n, L, D).
            generators: CPU generators of the pairs.
        """
        steps = t.to(x.device).expand(len(x))
        part = in_window(int(t), self.config.windows)
        # The leading branch: its state, what it may change, and what stands outside of that (anomaly inference).
        state, kept, outside = (a, mask, torch.zeros_like(a)) if part else (x, self.aligned(mask, steps), z_clean)
        predicted = self.base.unet(state, steps, text).sample.float()
        noise = self._module["part" if part else "image"](predicted, kept).float()
        alpha = scheduler.alphas_cumprod[t].to(x.device)
        x_0 = (state - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        x_0 = kept * x_0 + (1 - kept) * outside
        new = scheduler.step(x_0, t, state, generator=generators).prev_sample
        fresh = draw_noise(generators, (2, *x.shape[1:])).to(x.device)
        following = int(scheduler.previous_timestep(t))
        renoised = self._noised(z_clean, fresh[:, 0], following)
        empty = self._noised(torch.zeros_like(a), fresh[:, 1], following)
        return kept * new + (1 - kept) * renoised, mask * new + (1 - mask) * empty

    def _noised(self, z: torch.Tensor, noise: torch.Tensor, t: int) -> torch.Tensor:
        """q(z, t); t = -1 is the end, without noise."""
        if t < 0:
            return z
        return self.base.scheduler.add_noise(z, noise, torch.tensor([t], device=z.device).expand(len(z)))
