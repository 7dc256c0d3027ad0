"""AnomalyDiffusion (Hu et al., AAAI 2024) as a method: a defect drawn into a clean picture;
docs/rivals.md lists the deviations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import isqrt

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.nn import functional as F

from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.diffusion.sampler import draw_noise, guided
from helixbench.engine.devices import autocast
from helixbench.methods.anomalydiffusion.config import AnomalyDiffusion
from helixbench.methods.latent_learner import transformer_blocks
from helixbench.methods.method import Conditions
from helixbench.methods.textual_inversion import (
    TextualInversion,
    around,
    embed_vectors,
    latent_mask,
    templates,
)
from helixbench.pictures.transforms import clean_mask
from helixbench.schema import Sampling


class SpatialEncoder(nn.Module):
    """Vectors that say where the mask is: convolutions of stride 2, 4 x 4 means, one linear layer
    that starts at zero.
    """

    def __init__(self, count: int, width: int, widths: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((1, *widths)):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.vectors = nn.Linear(widths[-1] * 16, count * width)
        nn.init.zeros_(self.vectors.weight)
        nn.init.zeros_(self.vectors.bias)
        self.count = count

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (B, 1, H, W) in {0, 1} -> vectors (B, count, D)."""
        return self.vectors(self.features(masks)).unflatten(1, (self.count, -1))


class AnomalyDiffusionMethod(TextualInversion):
    """A learned word for the look of a defect type, vectors from the mask for its place, and
    another word for its masks.
    """

    name = "anomalydiffusion"
    config: AnomalyDiffusion

    def __init__(self, config: AnomalyDiffusion, base: BaseModel, sampling: Sampling | None = None):
        super().__init__(config, base, sampling)
        self.attention = Reweighting(config.vectors + config.spatial_vectors)
        for _, block in transformer_blocks(base.unet):
            block.attn2.set_processor(self.attention)

    def parts(self) -> dict[str, nn.Module]:
        """The spatial encoder."""
        return {
            "place": SpatialEncoder(
                self.config.spatial_vectors, self.base.text_encoder.config.hidden_size
            )
        }

    def vocabularies(self) -> dict[str, int]:
        """Words of the look and, unless the plan gives the masks, of the masks."""
        masks = {"mask_words": self.config.mask_vectors} if self.config.masks == "generated" else {}
        return super().vocabularies() | masks

    def describe(self) -> str:
        """Steps, prompts, where the masks are from, and the limits of the attention's weights."""
        config = self.config
        masks = "real masks moved by the plan"
        if config.masks == "generated":
            masks = (
                f"masks by embedding inversion, {config.mask_sampling_steps} steps, "
                f"guidance {config.mask_guidance:g}, above {config.mask_threshold:g}"
            )
        parts = [f"ddim {config.sampling_steps} steps", f"eta {config.eta:g}"]
        if (count := len(templates(config.prompt))) > 1:
            parts.append(f"{count} prompt templates")
        parts.append(masks)
        if config.reweight:
            low, high = config.reweight
            parts.append(f"attention x {low:g} to {high:g} in widened masks")
        return ", ".join(parts)

    def embed(
        self,
        defects: list[str],
        masks: torch.Tensor,
        prompts: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Text embeddings (n, L, D) of word and place, one pair at a time.

        Args:
            defects: n defect types.
            masks: (n, 1, H, W) in {0, 1}.
            prompts: n prompts with one `*` each; by default the first of the templates.
        """
        prompts = prompts or [templates(self.config.prompt)[0]] * len(defects)
        with torch.autocast(self.device.type, enabled=False):
            places = torch.cat([self._module["place"](mask[None]) for mask in masks])
        look = self._module["words"]
        rows = zip(prompts, defects, places, strict=True)
        texts = [embed_vectors(self.base, p, torch.cat([look(d), place])) for p, d, place in rows]
        return torch.stack(texts)

    def embed_masks(self, defects: list[str], prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Text embeddings (n, L, D) of the words of the masks, one prompt at a time.

        Args:
            defects: n defect types.
            prompts: n prompts with one `*` each; by default the first of the templates.
        """
        word = self._module["mask_words"]
        prompts = prompts or [templates(self.config.mask_prompt)[0]] * len(defects)
        rows = list(zip(prompts, defects, strict=True))
        known = {row: embed_vectors(self.base, row[0], word(row[1])) for row in sorted(set(rows))}
        return torch.stack([known[row] for row in rows])

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Squared error of the predicted noise: of pictures inside the mask, and of the masks as
        pictures of their own.
        """
        batch = self.draw(data, rng)
        mask = latent_mask(batch.masks, self.base.latent_factor)
        generated = self.config.masks == "generated"
        noise = torch.randn((3 if generated else 2, *batch.z.shape), generator=rng).to(self.device)
        scheduler = self.base.scheduler
        t = torch.randint(scheduler.config.num_train_timesteps, (len(mask),), generator=rng).to(
            self.device
        )
        rngs = [rng] * len(mask)
        looks = draw_prompts(self.config.prompt, rngs)
        shapes = draw_prompts(self.config.mask_prompt, rngs)
        latents, texts = [batch.z], [self.embed(batch.defects, batch.masks, looks)]
        if generated:
            latents.append(
                self.latents(
                    [(*key, "mask") for key in batch.keys], batch.masks.expand(-1, 3, -1, -1)
                )
            )
            texts.append(self.embed_masks(batch.defects, shapes))
        noisy = [scheduler.add_noise(z, e, t) for z, e in zip(latents, noise, strict=False)]
        predicted, terms = self.predict(noisy, texts, t, batch, noise)
        own = {"defect": F.mse_loss(predicted[0] * mask, noise[0] * mask)}
        return own | ({"mask": F.mse_loss(predicted[1], noise[1])} if generated else {}) | terms

    # ---------------------------------------------------------------------------------------------
    # sampling

    def scheduler(self, steps: int) -> DDIMScheduler:
        """The base's noise schedule with this number of steps."""
        scheduler = DDIMScheduler.from_config(
            self.base.scheduler.config,
            clip_sample=False,
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(steps)
        return scheduler

    @torch.no_grad()
    def draw_masks(
        self, defects: list[str], side: int, generators: list[torch.Generator]
    ) -> torch.Tensor:
        """Masks (n, 1, side, side) in {0, 1}, on the CPU; may be empty.

        They are pictures of the masks' words, drawn with classifier-free guidance against the empty
        prompt, with specks dropped.

        Args:
            defects: n defect types.
            side: side of the masks [pixel].
            generators: CPU generators of the pairs.
        """
        base, config = self.base, self.config
        scheduler = self.scheduler(config.mask_sampling_steps)
        shape = (base.vae.config.latent_channels, *[side // base.latent_factor] * 2)
        text = self.embed_masks(defects, draw_prompts(config.mask_prompt, generators))
        texts = {True: text, False: base.embed([""]).expand_as(text)}
        x = draw_noise(generators, shape).to(self.device)
        for t in scheduler.timesteps:
            steps = t.to(self.device).expand(len(x))

            def predict(conditional: bool, x: torch.Tensor = x, steps: torch.Tensor = steps):
                return base.unet(x, steps, texts[conditional]).sample.float()

            fresh = draw_noise(generators, shape).to(self.device)
            noise = guided(predict, config.mask_guidance)
            x = scheduler.step(noise, t, x, eta=config.eta, variance_noise=fresh).prev_sample
        # The public code has its threshold on the decoder's scale, [-1, 1].
        values = base.decode(x).cpu().float().mean(1).numpy() * 2 - 1
        masks = [torch.from_numpy(clean_mask(value > config.mask_threshold)) for value in values]
        return torch.stack(masks)[:, None].float()

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample.

        Before each step from t, the latents outside the mask become those of the clean picture,
        noised to t. The output of the last step stays as it is, as in the public code.
        """
        config, base = self.config, self.base
        with autocast(self.device, config.optim.precision):
            if config.masks == "generated":
                side = conditions.background.shape[-1]
                pixels = self.draw_masks(conditions.defects, side, generators)
            else:
                pixels = conditions.donor_mask.clone()
            masks = pixels.to(self.device)
            z_clean = base.encode(conditions.background)
            mask = latent_mask(masks, base.latent_factor)
            prompts = draw_prompts(config.prompt, generators)
            text = self.embed(conditions.defects, masks, prompts)
            first = [1 + len(around(base, prompt)[0]) for prompt in prompts]
            scheduler = self.scheduler(config.sampling_steps)
            x, x_0 = draw_noise(generators, z_clean.shape[1:]).to(self.device), None
            for t in scheduler.timesteps:
                area, weights = mask, torch.ones_like(mask)
                if config.reweight:
                    area = widened(mask, int(t))
                    if x_0 is not None:
                        weights = attention_weights(x_0, z_clean, area, config.reweight)
                fresh = draw_noise(generators, (2, *x.shape[1:])).to(self.device)
                x = area * x + (1 - area) * self.noised(z_clean, fresh[:, 0], int(t))
                with self.attention.by(weights, first):
                    steps = t.to(self.device).expand(len(x))
                    noise = base.unet(x, steps, text).sample.float()
                step = scheduler.step(noise, t, x, eta=config.eta, variance_noise=fresh[:, 1])
                x, x_0 = step.prev_sample, step.pred_original_sample
            images = base.decode(x).cpu().float()
        return images, pixels


def draw_prompts(prompt: str, generators: Sequence[torch.Generator]) -> list[str]:
    """A random one of the prompt's templates for each (CPU) generator."""
    known = templates(prompt)
    return [known[int(torch.randint(len(known), (), generator=g))] for g in generators]


def widened(mask: torch.Tensor, t: int) -> torch.Tensor:
    """The mask (n, 1, h, w) in {0, 1} dilated by a square, wide at early steps (public code).

    The square's radius is floor(8 (t + 100) / 1000) positions of 32: 8 at t = 999, none below 25.

    Args:
        mask: at the latents' size.
        t: time step of 1000.
    """
    radius = int((t + 100) * 8 * mask.shape[-1] // 32_000)
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def attention_weights(
    x_0: torch.Tensor, z_clean: torch.Tensor, mask: torch.Tensor, limits: tuple[float, float]
) -> torch.Tensor:
    """Weights (n, 1, h, w) of positions where the defect shows less than elsewhere in the mask; 1
    outside of it.

    In proportion to 1 / |x_0 - z_clean|^2 with mean 1 over the mask, then clipped to `limits`.

    Args:
        x_0: predicted latents (n, C, h, w).
        z_clean: latents of the clean picture (n, C, h, w).
        mask: (n, 1, h, w) in {0, 1}.
        limits: smallest and largest weight.
    """
    difference = (mask * (x_0 - z_clean)).square().mean(1, keepdim=True)
    inverse = torch.where(difference > 0, 1 / difference, 0.0)
    total = inverse.sum((-2, -1), keepdim=True)
    weights = (mask.sum((-2, -1), keepdim=True) * inverse / total).clamp(*limits)
    return torch.where((mask > 0) & (total > 0), weights, 1.0)


class Reweighting(AttnProcessor2_0):
    """diffusers cross-attention; the scores of `count` learned tokens get a weight per position."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count
        self.first: torch.Tensor | None = None
        self.weights: torch.Tensor | None = None

    @contextmanager
    def by(self, weights: torch.Tensor, first: Sequence[int]) -> Iterator[None]:
        """Apply these weights meanwhile, resized to each layer.

        Args:
            weights: factors (n, 1, h, w).
            first: index of the first learned token of each of the n texts.
        """
        self.weights = None if bool((weights == 1).all()) else weights
        self.first = torch.tensor(first, device=weights.device)[:, None]
        try:
            yield
        finally:
            self.weights = self.first = None

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **more
    ):
        """See diffusers' AttnProcessor2_0."""
        if self.weights is None:
            given = (attn, hidden_states, encoder_hidden_states, attention_mask)
            return super().__call__(*given, **more)
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        q, k = heads(attn.to_q(hidden_states)), heads(attn.to_k(encoder_hidden_states))
        v = heads(attn.to_v(encoder_hidden_states))
        size = (isqrt(hidden_states.shape[1]),) * 2
        weights = F.interpolate(self.weights, size, mode="bilinear", antialias=True)
        weights = weights.flatten(2)[..., None]  # (n, 1, N, 1)
        scores = (q @ k.transpose(-1, -2) * attn.scale).float()
        token = torch.arange(scores.shape[-1], device=scores.device)
        learned = (token >= self.first) & (token < self.first + self.count)  # (n, L)
        scores = torch.where(learned[:, None, None], scores * weights, scores)
        out = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)
