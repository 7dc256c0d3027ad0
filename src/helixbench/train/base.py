"""Stage `base`: a base that is built from scratch, and its autoencoder computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from helixbench import provenance
from helixbench.config import Slice
from helixbench.diffusion.base import build
from helixbench.diffusion.data import Pictures
from helixbench.diffusion.linear import Components, linear_autoencoder
from helixbench.records import derive_seed
from helixbench.schema import Autoencoder, Scratch

log = logging.getLogger(__name__)

_BATCH = 50


def components(data: Pictures, options: Autoencoder, seed: int) -> Components:
    """Principal components of the patches of random pictures and masks, defects weighing more."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = torch.Generator().manual_seed(derive_seed(seed, "components"))
        for start in range(0, options.pictures, _BATCH):
            batch = min(_BATCH, options.pictures - start)
            pictures, defects = data.autoencoder_batch(batch, options.mask_share, rng)
            yield pictures * 2 - 1, 1 + options.defect_weight * defects

    return Components(batches(), options.factor)


def run(dataset: str, category: str, config: Slice, *, prepared: Path, out: Path) -> None:
    """Stage `base`: compute the scratch base's autoencoder from the generator's pictures and masks,
    and save all parts.

    The manifest tells the autoencoder's PSNR [dB] on pictures and masks that are drawn anew.
    """
    scratch: Scratch = config["train.scratch"]
    options, seed = scratch.autoencoder, derive_seed(config["run.seed"], dataset, category)
    with provenance.manifest(out / "manifest.json", "base", config, device="cpu") as facts:
        data = Pictures.load(prepared)
        vae = linear_autoencoder(
            components(data, options, seed), options.latent_channels, options.whitening
        )
        base = build(scratch, vae, data.size, [category, *data.defects], seed)
        rng = torch.Generator().manual_seed(derive_seed(seed, "check"))
        pictures, _ = data.autoencoder_batch(32, options.mask_share, rng)
        errors = (base.decode(base.encode(pictures)) - pictures).square().flatten(1).mean(1)
        facts["psnr_db"] = round(float(-10 * errors.clamp(min=1e-10).mean().log10()), 2)
        log.info("autoencoder %s: PSNR %.1f dB", category, facts["psnr_db"])
        base.save(out)
        facts["files"] = provenance.sha256_tree(out, exclude=("manifest.json",))
