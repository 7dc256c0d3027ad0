"""DualAnoDiff as a method: whole picture and defective part, generated together; docs/rivals.md
lists the deviations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.diffusion.sampler import denoise, draw_noise, guided, sampling_scheduler
from helixbench.engine.devices import autocast
from helixbench.methods.dualanodiff.config import DualAnoDiff
from helixbench.methods.dualanodiff.unet import DualAnoDiffUNet
from helixbench.methods.latent_learner import (
    LatentLearner,
    adapters,
    add_low_rank,
    draw_rows,
)
from helixbench.methods.method import Conditions
from helixbench.methods.saliency import Saliency
from helixbench.pictures.foreground import foreground
from helixbench.pictures.transforms import clean_mask, symmetries, to_tensor, transform
from helixbench.schema import Sampling

GREY = 0.5
"""What surrounds the part, and the background without guidance: 0 in [-1, 1]."""


class DualAnoDiffMethod(LatentLearner):
    """Two branches over one U-Net: the mask is what stands out in the part's picture, by U2-Net or
    by its distance from grey.
    """

    name = "dualanodiff"
    config: DualAnoDiff

    def __init__(self, config: DualAnoDiff, base: BaseModel, sampling: Sampling | None = None):
        super().__init__(config, base, sampling)
        own = {"steps": config.sampling_steps, "guidance": config.guidance}
        self.sampling = sampling and sampling.model_copy(
            update={name: value for name, value in own.items() if value is not None}
        )
        if config.text_rank:
            add_low_rank(
                base.text_encoder,
                "text",
                config.text_rank,
                ["q_proj", "k_proj", "v_proj", "out_proj"],
            )
        self.unet = DualAnoDiffUNet(base.unet, config)
        self._module = nn.ModuleDict({"unet": self.unet, "text": base.text_encoder})
        self.saliency = Saliency(config.saliency) if config.saliency else None

    def trainable_(self) -> None:
        """Adapters and new modules, and by `trainable` all of the U-Net."""
        self.unet.trainable_()

    def own(self) -> set[str]:
        """Adapters of both branches and of the text encoder, and new modules."""
        return {f"unet.{name}" for name in self.unet.own()} | {
            f"text.{name}" for name in adapters(self.base.text_encoder)
        }

    def describe(self) -> str:
        """Sampler, steps, guidance, and what the mask is made from."""
        s, config = self.sampling, self.config
        mask = f"part beyond grey by {config.mask_threshold:g}"
        if config.saliency:
            mask = (
                f"saliency ({Path(config.saliency).name}) of the part above "
                f"{config.saliency_threshold:g}"
            )
        text = f"{s.sampler} {s.steps} steps, guidance {s.guidance:g}, mask: {mask}"
        if config.background:
            text += ", background compensation (object black, latents unscaled)"
        return text

    def prompt(self, category: str, defect: str) -> str:
        """Prompt of the whole picture."""
        return self.text(self.config.prompt, category, defect)

    def prompts(self, category: str, defects: list[str]) -> tuple[list[str], list[str]]:
        """Prompts of both branches; the part's is a piece of the whole's."""
        parts = [self.text(self.config.prompt_part, category, defect) for defect in defects]
        return [self.prompt(category, defect) for defect in defects], parts

    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Text embeddings (n, L, D), one prompt at a time, so that no neighbour in a batch can
        change one by rounding.
        """
        encoder = self.base.text_encoder
        with torch.autocast(self.device.type, enabled=False):
            known = {
                p: encoder(self.base.tokens([p]).to(self.device)).last_hidden_state[0]
                for p in sorted(set(prompts))
            }
        return torch.stack([known[prompt] for prompt in prompts])

    # ---------------------------------------------------------------------------------------------
    # training

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Half the squared error of the predicted noise per branch; t is shared, noise is not.

        The sum of both terms is the mean over the two branches, as in DualAnoDiff's code.
        """
        config, size = self.config, self.config.optim.per_pass
        rows = draw_rows(data.defective, symmetries(config.augment), size, rng)
        whole = to_tensor([transform(data.images[i], symmetry) for i, symmetry in rows])
        masks = to_tensor([transform(data.masks[i], symmetry) for i, symmetry in rows])
        kinds = {"image": whole, "part": GREY + (whole - GREY) * masks}
        if config.background:
            kinds["background"] = surroundings(whole)
        latents = {
            kind: self.latents([(*row, kind) for row in rows], pictures)
            for kind, pictures in kinds.items()
        }
        samples = [data.samples[i] for i, _ in rows]
        texts = self.prompts(samples[0].category, [sample.defect for sample in samples])
        dropped = [bool(torch.rand((), generator=rng) < config.prompt_drop) for _ in rows]
        text = tuple(
            self.embed(["" if drop else p for p, drop in zip(prompts, dropped, strict=True)])
            for prompts in texts
        )
        noise = torch.randn((3, *latents["image"].shape), generator=rng).to(self.device)
        scheduler = self.base.scheduler
        t = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=rng).to(
            self.device
        )
        z = tuple(
            scheduler.add_noise(latents[kind], noise[i], t)
            for i, kind in enumerate(("image", "part"))
        )
        background = None
        if config.background:
            background = scheduler.add_noise(self.unscaled(latents["background"]), noise[2], t)
        predicted = self.unet(z, t, text, background)
        branches = zip(("image", "part"), predicted, noise[:2], strict=True)
        return {name: F.mse_loss(p.float(), e) / 2 for name, p, e in branches}

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, C, h, w) as the autoencoder gives them: DualAnoDiff scales no background."""
        return latents / self.base.vae.config.scaling_factor

    # ---------------------------------------------------------------------------------------------
    # sampling

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample."""
        n, sampling, base = len(conditions), self.sampling, self.base
        side = [length // base.latent_factor for length in conditions.background.shape[-2:]]
        # Of the image, the part, the background, and the background without guidance.
        noise = draw_noise(generators, (4, base.unet.config.in_channels, *side)).to(self.device)
        prompts = self.prompts(conditions.category, conditions.defects)
        texts = {True: tuple(map(self.embed, prompts)), False: (self.embed([""] * n),) * 2}
        backgrounds: dict[bool, torch.Tensor] = {}
        if self.config.background:
            # Without guidance, zeros in [-1, 1] take the place of the background.
            pictures = conditions.background
            given = {True: surroundings(pictures), False: torch.full_like(pictures[:1], GREY)}
            latents = {key: self.unscaled(base.encode(picture)) for key, picture in given.items()}
            backgrounds = {key: z.expand(n, -1, -1, -1) for key, z in latents.items()}
        scheduler = sampling_scheduler(base.scheduler, sampling)

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            steps = t.to(self.device).expand(n)

            def branches(conditional: bool) -> torch.Tensor:
                noised = None
                if backgrounds:
                    fresh = noise[:, 2 if conditional else 3]
                    noised = base.scheduler.add_noise(backgrounds[conditional], fresh, steps)
                out = self.unet(x.chunk(2, dim=1), steps, texts[conditional], noised)
                return torch.cat(out, dim=1).float()

            return guided(branches, sampling.guidance)

        with autocast(self.device, self.config.optim.precision):
            latents = denoise(predict, noise[:, :2].flatten(1, 2), scheduler)
            images, parts = (base.decode(z).cpu().float() for z in latents.chunk(2, dim=1))
        return images, torch.stack([self.mask(part) for part in parts])

    def mask(self, part: torch.Tensor) -> torch.Tensor:
        """Mask (1, H, W) in {0, 1} of a part's picture (3, H, W) in [0, 1]."""
        if self.saliency is None:
            return part_mask(part, self.config.mask_threshold)
        salient = self.saliency(part)[0].numpy() > self.config.saliency_threshold
        return torch.from_numpy(clean_mask(salient))[None].float()


def part_mask(part: torch.Tensor, threshold: float) -> torch.Tensor:
    """Mask (1, H, W) in {0, 1} of a part's picture (3, H, W) in [0, 1]: what differs from grey,
    holes filled, specks dropped.
    """
    mask = (part - GREY).abs().amax(0).numpy() > threshold
    return torch.from_numpy(ndimage.binary_fill_holes(clean_mask(mask)))[None].float()


def surroundings(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, H, W) in [0, 1] with the object made black."""
    arrays = (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    objects = torch.from_numpy(np.stack([foreground(array) for array in arrays]))[:, None]
    return torch.where(objects, torch.tensor(0.0), pictures)
