"""STAGE as a method: a defect drawn into a clean picture inside a given mask; docs/rivals.md lists
the deviations.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional as F

from helixbench.diffusion.data import Pictures
from helixbench.diffusion.sampler import draw_noise
from helixbench.engine.devices import autocast
from helixbench.methods.method import Conditions
from helixbench.methods.stage.config import Stage
from helixbench.methods.stage.modules import MaskGuidanceAdapter, aligned_mask, in_window
from helixbench.methods.textual_inversion import TextualInversion, embed_vectors, latent_mask


class StageMethod(TextualInversion):
    """Frozen latent diffusion, a learned word for each defect type, and two mask guidance
    adapters.
    """

    name = "stage"
    config: Stage

    def parts(self) -> dict[str, nn.Module]:
        """Adapters of the whole picture and of the anomaly alone."""
        channels = self.base.vae.config.latent_channels
        return {
            part: MaskGuidanceAdapter(channels, self.config.widths) for part in ("image", "part")
        }

    def describe(self) -> str:
        """Steps, windows and where the masks are from."""
        windows = ", ".join(f"{high}-{low}" for low, high in self.config.windows)
        return (
            f"ddpm {self.config.sampling_steps} steps, graded in t {windows or 'nowhere'}, "
            f"real masks moved by the plan"
        )

    def embed(self, defects: list[str]) -> torch.Tensor:
        """Text embeddings (n, L, D), one prompt at a time."""
        known = {
            defect: embed_vectors(self.base, self.config.prompt, self._module["words"](defect))
            for defect in sorted(set(defects))
        }
        return torch.stack([known[defect] for defect in defects])

    def aligned(self, mask: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """M_t of explicit mask alignment."""
        return aligned_mask(
            mask, t, self.config.mask_end, self.base.scheduler.config.num_train_timesteps
        )

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Squared errors of the refined noise: whole picture inside M_t, anomaly alone
        everywhere.
        """
        batch = self.draw(data, rng)
        mask = latent_mask(batch.masks, self.base.latent_factor)
        noise = torch.randn((3, *batch.z.shape), generator=rng).to(self.device)
        scheduler = self.base.scheduler
        t = torch.randint(scheduler.config.num_train_timesteps, (len(mask),), generator=rng).to(
            self.device
        )
        noisy = [
            scheduler.add_noise(batch.z, noise[0], t),
            scheduler.add_noise(batch.z * mask, noise[1], t),
        ]
        predicted, terms = self.predict(noisy, [self.embed(batch.defects)] * 2, t, batch, noise)
        aligned = self.aligned(mask, t)
        whole = self._module["image"](predicted[0], aligned).float()
        part = self._module["part"](predicted[1], mask).float()
        return {
            "image": F.mse_loss(whole * aligned, noise[0] * aligned),
            "part": F.mse_loss(part, noise[1]),
        } | terms

    # ---------------------------------------------------------------------------------------------
    # sampling

    def scheduler(self) -> DDPMScheduler:
        """The base's noise schedule with the configured number of steps; it is given x_0, which
        STAGE blends before.
        """
        scheduler = DDPMScheduler.from_config(
            self.base.scheduler.config,
            prediction_type="sample",
            clip_sample=False,
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(self.config.sampling_steps)
        return scheduler

    @property
    def draws_into_background(self) -> bool:
        """A clean picture is what stays outside of the mask (anomaly inference)."""
        return True

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
        # The leading branch: its state, what it may change, and what stands outside of that
        # (anomaly inference).
        state, kept, outside = (
            (a, mask, torch.zeros_like(a)) if part else (x, self.aligned(mask, steps), z_clean)
        )
        predicted = self.base.unet(state, steps, text).sample.float()
        noise = self._module["part" if part else "image"](predicted, kept).float()
        alpha = scheduler.alphas_cumprod[t].to(x.device)
        x_0 = (state - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        x_0 = kept * x_0 + (1 - kept) * outside
        new = scheduler.step(x_0, t, state, generator=generators).prev_sample
        fresh = draw_noise(generators, (2, *x.shape[1:])).to(x.device)
        following = int(scheduler.previous_timestep(t))
        renoised = self.noised(z_clean, fresh[:, 0], following)
        empty = self.noised(torch.zeros_like(a), fresh[:, 1], following)
        return kept * new + (1 - kept) * renoised, mask * new + (1 - mask) * empty
