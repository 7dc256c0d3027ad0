"""RealNet's SDAS (CVPR 2024) as a method: unlikely normals, drawn with too much noise;
docs/rivals.md lists the deviations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.diffusion.sampler import draw_noise
from helixbench.engine.devices import autocast
from helixbench.methods.latent_learner import LatentLearner, draw_rows
from helixbench.methods.method import Conditions
from helixbench.methods.perlin import perlin_mask
from helixbench.methods.realnet.config import RealNet
from helixbench.methods.synthetic import TRIES, Draws, array, object_of, seen
from helixbench.pictures.transforms import symmetries, to_tensor, transform
from helixbench.schema import Sampling


class RealNetMethod(LatentLearner):
    """A diffusion model of normals alone, sampled with a perturbed variance; its samples show
    through a Perlin mask.

    The plan's defect type has no part in it: each type gets pairs of the same kind.
    """

    name = "realnet"
    config: RealNet

    def __init__(self, config: RealNet, base: BaseModel, sampling: Sampling | None = None):
        super().__init__(config, base, sampling)
        self._module = base.unet
        changes = {}
        if config.betas == "linear":
            # DDPM's, as in RealNet's code: 0.0001 to 0.02 for 1,000 time steps.
            total = base.scheduler.config.num_train_timesteps
            changes = {"beta_schedule": "linear", "beta_start": 0.1 / total, "beta_end": 20 / total}
        self.diffusion = DDPMScheduler.from_config(base.scheduler.config, **changes)

    def save(self, folder: Path) -> None:
        """A diffusers-format folder with the noise schedule of training, and realnet.json."""
        super().save(folder)
        self.diffusion.save_pretrained(folder / "scheduler")

    def describe(self) -> str:
        """Steps, noise schedule and strength."""
        config, (low, high) = self.config, self.config.strength
        steps = f"ddpm {config.sampling_steps} steps, {config.betas} betas"
        strength = f"variance 1 + s with s from {low:g} to {high:g}"
        return f"{steps}, {strength}, Perlin masks on the object"

    def prompt(self, category: str, defect: str) -> str:
        """Prompt of the normals, which is all that the model knows."""
        return self.text(self.config.prompt, category)

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Squared error of the predicted noise on normals."""
        size, names = self.config.optim.per_pass, symmetries(self.config.augment)
        rows = draw_rows(data.normal, names, size, rng)
        z = self.latents(rows, to_tensor([transform(data.images[i], s) for i, s in rows]))
        noise, scheduler = torch.randn(z.shape, generator=rng).to(z.device), self.diffusion
        t = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=rng).to(z.device)
        text = self.base.embed([self.prompt(data.samples[0].category, "")]).expand(size, -1, -1)
        predicted = self.base.unet(scheduler.add_noise(z, noise, t), t, text).sample
        return {"normal": F.mse_loss(predicted.float(), noise)}

    # ---------------------------------------------------------------------------------------------
    # sampling

    def scheduler(self) -> DDPMScheduler:
        """The noise schedule of training with the configured number of steps."""
        changes = {"clip_sample": False, "timestep_spacing": "trailing"}
        scheduler = DDPMScheduler.from_config(self.diffusion.config, **changes)
        scheduler.set_timesteps(self.config.sampling_steps)
        return scheduler

    @torch.no_grad()
    def sources(
        self, category: str, size: tuple[int, int], generators: list[torch.Generator]
    ) -> torch.Tensor:
        """Unlikely normals (n, 3, H, W) in [0, 1], on the CPU: each with its own strength s, and
        all steps with variance 1 + s.
        """
        n, base, scheduler = len(generators), self.base, self.scheduler()
        low, high = self.config.strength
        device = base.unet.device
        strength = (
            low + (high - low) * torch.stack([torch.rand(1, 1, 1, generator=g) for g in generators])
        ).to(device)
        x = draw_noise(
            generators,
            (base.unet.config.in_channels, *(side // base.latent_factor for side in size)),
        ).to(device)
        text = base.embed([self.prompt(category, "")]).expand(n, -1, -1)
        with autocast(device, self.config.optim.precision):
            for t in scheduler.timesteps:
                predicted = base.unet(x, t.to(device).expand(n), text).sample.float()
                before = int(scheduler.previous_timestep(t))
                fresh = (
                    draw_noise(generators, x.shape[1:]).to(device)
                    if before >= 0
                    else torch.zeros_like(x)
                )
                alpha = scheduler.alphas_cumprod
                x = perturbed_step(
                    x,
                    predicted,
                    fresh,
                    float(alpha[t]),
                    float(alpha[before]) if before >= 0 else 1.0,
                    strength,
                )
            return base.decode(x).cpu().float()

    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample."""
        sources = self.sources(
            conditions.category, tuple(conditions.background.shape[-2:]), generators
        )
        pairs = [
            self.blend(array(conditions.background, i), array(sources, i), Draws(g))
            for i, g in enumerate(generators)
        ]
        images = (
            torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).float()
        )
        return images, torch.from_numpy(np.stack([mask for _, mask in pairs]))[:, None].float()

    def blend(
        self, normal: np.ndarray, source: np.ndarray, rng: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """The source (H, W, 3) seen through a Perlin mask on the normal's object, and that mask (H,
        W) bool.
        """
        config, place = self.config, object_of(normal)
        for _ in range(TRIES):
            mask = (
                perlin_mask(
                    normal.shape[:2], config.max_scale, config.threshold, config.max_rotation, rng
                )
                & place
            )
            alpha = rng.uniform(*config.opacity) * mask[..., None]
            image = (normal * (1 - alpha) + source * alpha).astype(np.float32)
            mask = seen(normal, image, mask)
            if mask.any():
                return image, mask
        return normal, np.zeros(normal.shape[:2], bool)


def perturbed_step(
    x: torch.Tensor,
    predicted: torch.Tensor,
    fresh: torch.Tensor,
    alpha: float,
    before: float,
    strength: torch.Tensor | float,
) -> torch.Tensor:
    """x_{t-1} ~ N(mu, (1 + s) sigma^2): the reverse step of DDPM with its variance enlarged
    (RealNet, eq. 3).

    Args:
        x: noisy latents (n, C, h, w) at t.
        predicted: their predicted noise.
        fresh: standard normal noise.
        alpha: cumulated alpha of t.
        before: cumulated alpha of the next time step; 1 at the end, where sigma is 0.
        strength: s, one number or (n, 1, 1, 1); 0 gives normals.
    """
    beta = 1 - alpha / before
    x_0 = (x - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
    mean = (
        before**0.5 * beta / (1 - alpha) * x_0 + (1 - beta) ** 0.5 * (1 - before) / (1 - alpha) * x
    )
    return mean + ((1 + strength) * (1 - before) / (1 - alpha) * beta) ** 0.5 * fresh
