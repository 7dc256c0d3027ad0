"""AnomalyDiffusion (Hu et al., AAAI 2024) as a method: a defect drawn into a clean picture; docs/rivals.md lists the deviations."""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.nn import functional as F

from helixbench.devices import autocast
from helixbench.diffusion.data import Pictures
from helixbench.diffusion.sampler import draw_noise
from helixbench.methods.inversion import InversionMethod, embed_vectors, latent_mask
from helixbench.methods.method import Conditions


class SpatialEncoder(nn.Module):
    """Vectors that say where the mask is: convolutions of stride 2, 4 x 4 means, one linear layer that starts at zero."""

    def __init__(self, count: int, width: int, widths: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((1, *widths)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.vectors = nn.Linear(widths[-1] * 16, count * width)
        nn.init.zeros_(self.vectors.weight)
        nn.init.zeros_(self.vectors.bias)
        self.count = count

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (B, 1, H, W) in {0, 1} -> vectors (B, count, D)."""
        return self.vectors(self.features(masks)).unflatten(1, (self.count, -1))


class AnomalyDiffusionMethod(InversionMethod):
    """A learned word for the look of a defect type, and vectors from the mask for its place."""

    name = "anomalydiffusion"

    def parts(self) -> dict[str, nn.Module]:
        """The spatial encoder."""
        return {"place": SpatialEncoder(self.config.spatial_vectors, self.base.text_encoder.config.hidden_size)}

    def describe(self) -> str:
        """Steps and where the masks are from."""
        return f"ddim {self.config.sampling_steps} steps, eta {self.config.eta:g}, real masks moved by the plan"

    def embed(self, defects: list[str], masks: torch.Tensor) -> torch.Tensor:
        """Text embeddings (n, L, D) of word and place, one pair at a time."""
        with torch.autocast(self.device.type, enabled=False):
            places = torch.cat([self._module["place"](mask[None]) for mask in masks])
        look = self._module["words"]
        return torch.stack(
            [embed_vectors(self.base, self.config.prompt, torch.cat([look(d), place])) for d, place in zip(defects, places, strict=True)]
        )

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Squared error of the predicted noise inside the mask."""
        batch = self.draw(data, rng)
        mask = latent_mask(batch.masks, self.base.latent_factor)
        noise = torch.randn((2, *batch.z.shape), generator=rng).to(self.device)
        scheduler = self.base.scheduler
        t = torch.randint(scheduler.config.num_train_timesteps, (len(mask),), generator=rng).to(self.device)
        noisy = [scheduler.add_noise(batch.z, noise[0], t)]
        predicted, terms = self.predict(noisy, self.embed(batch.defects, batch.masks), t, batch, noise)
        return {"defect": F.mse_loss(predicted[0] * mask, noise[0] * mask)} | terms

    def scheduler(self) -> DDIMScheduler:
        """The base's noise schedule with the configured number of steps."""
        scheduler = DDIMScheduler.from_config(
            self.base.scheduler.config, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(self.config.sampling_steps)
        return scheduler

    @torch.no_grad()
    def sample(self, conditions: Conditions, generators: list[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample. The masks are the plan's own.

        After each step the latents outside the mask are those of the clean picture, noised to the next time step.
        """
        masks = conditions.donor_mask.to(self.device)
        z_clean, mask = self.base.encode(conditions.background), latent_mask(masks, self.base.latent_factor)
        text, scheduler = self.embed(conditions.defects, masks), self.scheduler()
        following = [*scheduler.timesteps[1:].tolist(), -1]
        x = draw_noise(generators, z_clean.shape[1:]).to(self.device)
        with autocast(self.device, self.config.optim.precision):
            for t, after in zip(scheduler.timesteps, following, strict=True):
                predicted = self.base.unet(x, t.to(self.device).expand(len(x)), text).sample.float()
                fresh = draw_noise(generators, (2, *x.shape[1:])).to(self.device)
                x = scheduler.step(predicted, t, x, eta=self.config.eta, variance_noise=fresh[:, 0]).prev_sample
                x = mask * x + (1 - mask) * self.noised(z_clean, fresh[:, 1], after)
            images = self.base.decode(x).cpu().float()
        return images, conditions.donor_mask.clone()
