"""Stage `train base`: the autoencoder of a base that is built from scratch."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from helixbench import provenance
from helixbench.config import Slice, digest
from helixbench.diffusion.base import build
from helixbench.diffusion.data import Pictures
from helixbench.engine.devices import describe, pick_device
from helixbench.engine.loop import fit
from helixbench.records import derive_seed
from helixbench.schema import Scratch

log = logging.getLogger(__name__)


def autoencoder_loss(
    vae: AutoencoderKL,
    pictures: torch.Tensor,
    weight: torch.Tensor,
    noise: torch.Tensor,
    kl_weight: float,
) -> dict[str, torch.Tensor]:
    """Reconstruction (L1 of pixels and of their gradients) + weighted KL, for pictures (B, 3, H, W)
    in [-1, 1].

    weight: of each pixel, (B, 1, H, W). The gradient term keeps edges, which a mask consists of,
    sharp without a perceptual network.
    """
    posterior = vae.encode(pictures).latent_dist
    out = vae.decode(posterior.mean + posterior.std * noise).sample
    difference = (out - pictures).float()
    along = (difference.diff(dim=-1).abs() * weight[..., 1:]).mean()
    across = (difference.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return {
        "pixel": (difference.abs() * weight).mean(),
        "edge": along + across,
        "kl": kl_weight * posterior.kl().mean(),
    }


def run(
    dataset: str, category: str, config: Slice, *, prepared: Path, state: Path, out: Path
) -> None:
    """Stage `train base`: build the scratch base, train its autoencoder on the generator's pictures
    and masks, save.
    """
    scratch: Scratch = config["train.scratch"]
    seed = derive_seed(config["run.seed"], dataset, category)
    device = pick_device()
    with provenance.stage_run(out, state, "train_base", config, device=describe(device)) as facts:
        data = Pictures.load(prepared)
        texts = [category, *data.defects]
        base = build(scratch, data.size, texts, seed)
        vae = base.vae.to(device).train()
        options = scratch.autoencoder
        factor = base.latent_factor
        shape = (
            options.optim.per_pass,
            options.latent_channels,
            data.size // factor,
            data.size // factor,
        )

        def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
            pictures, defects = data.autoencoder_batch(
                options.optim.per_pass, options.mask_share, rng, options.part_share
            )
            noise = torch.randn(shape, generator=rng)
            weight = 1 + options.defect_weight * defects.to(device)
            return autoencoder_loss(
                vae, pictures.to(device) * 2 - 1, weight, noise.to(device), options.kl_weight
            )

        name, identity = f"autoencoder {category}", digest([config.digest, data.digest()])
        facts["training"] = fit(
            vae,
            loss,
            options.optim,
            seed=seed,
            state_dir=state,
            config_digest=identity,
            device=device,
            name=name,
        )
        vae.eval()
        with torch.no_grad():
            rng = torch.Generator().manual_seed(derive_seed(seed, "latent scale"))
            pictures = data.autoencoder_batch(32, options.mask_share, rng, options.part_share)[
                0
            ].to(device)
            latents = vae.encode(pictures * 2 - 1).latent_dist.mode()
            errors = (vae.decode(latents).sample / 2 + 0.5 - pictures).square().flatten(1).mean(1)
        # Unit variance over pictures and masks, as Stable Diffusion's 0.18215 does for its own
        # latents.
        vae.register_to_config(scaling_factor=1.0 / float(latents.std()))
        facts["psnr_db"] = round(float(-10 * errors.mean().log10()), 2)
        facts["scaling_factor"] = vae.config.scaling_factor
        log.info("autoencoder %s: PSNR %.1f dB", category, facts["psnr_db"])
        base.to(torch.device("cpu")).save(out)
