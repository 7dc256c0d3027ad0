"""Stage `joint`: one base over many categories, from pictures and masks with words for them.

Pictures are drawn or prepared, the autoencoder is computed, all entries are encoded once, and the
U-Net and the text encoder are trained together. Each step resumes where it was stopped.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helixbench import provenance
from helixbench.config import Slice, digest
from helixbench.diffusion import base as base_model
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.bpe import train_tokenizer
from helixbench.diffusion.linear import Components, linear_autoencoder
from helixbench.engine import checkpoint
from helixbench.engine.devices import describe, pick_device
from helixbench.engine.loop import fit
from helixbench.errors import UserError
from helixbench.pictures.transforms import symmetries, to_tensor, transform
from helixbench.records import derive_seed
from helixbench.schema.joint import Joint
from helixbench.train.bank import Bank, drawn, mask_prompt, own, prompt

log = logging.getLogger(__name__)

ATTRIBUTION = "attribution.tsv"
_CHUNK = 64
_SYMMETRIES = symmetries(("hflip", "vflip", "rot90"))
"""The eight of the square."""
_PICTURE, _NORMAL, _MASK = 0, 1, 2
_KINDS = torch.tensor([_PICTURE] * 5 + [_NORMAL] + [_MASK] * 2)
"""What eight entries in a row show: five pictures as they are, one without its defect, two masks
as pictures."""


def entries(
    bank: Bank, first: int, last: int, seed: int
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Entries first to last - 1: pictures (n, 3, S, S) in [0, 1], prompts, and where in them the
    defect is, (n, 1, S, S) in {0, 1}; empty for a mask that is the picture itself.
    """
    which = torch.arange(first, last)
    rows, rounds = which % len(bank), which // len(bank)
    kinds = _KINDS[(which + rounds) % len(_KINDS)]
    good = torch.tensor([bank.defects[row] == "good" for row in rows.tolist()])
    kinds = torch.where(good, _PICTURE, kinds)
    rng = torch.Generator().manual_seed(derive_seed(seed, "entries", first))
    pictures, defects, words = [], [], []
    for row, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
        thing, defect, mask = bank.things[row], bank.defects[row], bank.masks[row]
        symmetry = _SYMMETRIES[int(torch.randint(8, (), generator=rng))]
        if kind == _MASK:
            picture, text = _as_picture(mask), mask_prompt(thing, defect)
        elif kind == _NORMAL:
            picture, text = bank.normals[row], prompt(thing, "good")
        else:
            picture, text = bank.images[row], prompt(thing, defect)
        pictures.append(transform(picture, symmetry))
        defects.append(transform(mask & (kind == _PICTURE), symmetry))
        words.append(text)
    return to_tensor(pictures), words, to_tensor(defects)


def _as_picture(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)


def components(bank: Bank, options: Joint, seed: int) -> Components:
    """Principal components of patches of random pictures and masks of the bank, defects weighing
    more.
    """
    settings = options.autoencoder

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = torch.Generator().manual_seed(derive_seed(seed, "components"))
        for start in range(0, settings.pictures, _CHUNK):
            rows = torch.randint(
                len(bank), (min(_CHUNK, settings.pictures - start),), generator=rng
            ).tolist()
            masks = round(len(rows) * settings.mask_share)
            pictures, defects = [], []
            for position, row in enumerate(rows):
                symmetry = _SYMMETRIES[int(torch.randint(8, (), generator=rng))]
                mask = bank.masks[row]
                picture = _as_picture(mask) if position < masks else bank.images[row]
                pictures.append(transform(picture, symmetry))
                defects.append(transform(mask & (position >= masks), symmetry))
            weights = 1 + settings.defect_weight * to_tensor(defects)
            yield to_tensor(pictures) * 2 - 1, weights

    return Components(batches(), settings.factor)


@torch.no_grad()
def encoded(
    bank: Bank, base: BaseModel, n: int, seed: int, file: Path, identity: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first n entries, encoded once and kept in a file: latents (n, C, h, w) float16, share
    of defect at each of their positions (n, 1, h, w), and token ids (n, L).

    identity: of all that they are made from; a file of another one is made again.
    """
    if file.is_file():
        tensors, facts = checkpoint.load_tensors(file)
        if facts.get("identity") == identity:
            return tensors["latents"], tensors["weights"], tensors["tokens"]
    parts = []
    for first in range(0, n, _CHUNK):
        pictures, words, defects = entries(bank, first, min(n, first + _CHUNK), seed)
        latents = base.encode(pictures)
        weights = F.adaptive_avg_pool2d(defects, latents.shape[-2:])
        parts.append((latents.half().cpu(), weights.half(), base.tokens(words)))
    # Laid out as they are when they are read again: convolutions round by the layout.
    latents, weights, tokens = (torch.cat(x).contiguous() for x in zip(*parts, strict=True))
    tensors = {"latents": latents, "weights": weights, "tokens": tokens}
    checkpoint.save_tensors(file, tensors, {"identity": identity})
    return latents, weights, tokens


def min_snr_weight(alphas_cumprod: torch.Tensor, gamma: float | None) -> torch.Tensor:
    """Weight by timestep (T,) of the squared error of v: min(SNR, gamma) / (SNR + 1), scaled to a
    mean of 1 (Hang et al., ICCV 2023, for v); all 1 without gamma.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if gamma is None:
        return torch.ones_like(snr)
    weight = snr.clamp(max=gamma) / (snr + 1)
    return weight / weight.mean()


def train(
    bank: Bank,
    base: BaseModel,
    options: Joint,
    *,
    seed: int,
    state: Path,
    config_digest: str,
    device: torch.device,
) -> dict:
    """Train the U-Net and the text encoder of `base` in place; the facts of their training.

    The loss is the squared error of v, by timestep (min-SNR) and by position (the defect) weighted.
    """
    file = state / "latents.safetensors"
    parts = encoded(bank, base, options.entries, seed, file, config_digest)
    known = [x.to(device) for x in parts]
    empty = base.tokens([""])[0].to(device)
    abar = base.scheduler.alphas_cumprod.to(device)
    by_time = min_snr_weight(abar, options.min_snr)
    both = nn.ModuleDict({"unet": base.unet, "text_encoder": base.text_encoder}).to(device).train()
    batch = options.optim.per_pass

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(options.entries, (batch,), generator=rng).to(device)
        dropped = (torch.rand(batch, generator=rng) < options.prompt_drop).to(device)
        t = torch.randint(len(abar), (batch,), generator=rng).to(device)
        z0, weight, words = (x[chosen] for x in known)
        z0, weight = z0.float(), 1 + options.defect_weight * weight.float()
        words = torch.where(dropped[:, None], empty, words)
        eps = torch.randn(z0.shape, generator=rng).to(device)
        a = abar[t].reshape(-1, 1, 1, 1)
        zt = a.sqrt() * z0 + (1 - a).sqrt() * eps
        text = both["text_encoder"](words).last_hidden_state
        noise = both["unet"](zt, t, text).sample.float()
        # v = (eps - sqrt(1 - abar) z_t) / sqrt(abar): errors of v are those of noise, over abar
        error = (noise - eps).square() / a * (weight / weight.mean((2, 3), keepdim=True))
        return (error.mean((1, 2, 3)) * by_time[t]).mean()

    facts = fit(
        both,
        loss,
        options.optim,
        seed=seed,
        state_dir=state,
        config_digest=config_digest,
        device=device,
        name="joint base",
        limit_s=None if options.hours is None else options.hours * 3600,
    )
    both.eval()
    return facts


def build(options: Joint, bank: Bank, seed: int) -> BaseModel:
    """A base with the autoencoder of this bank's components and a tokenizer of its words; U-Net and
    text encoder have seeded random weights.
    """
    vae = linear_autoencoder(
        components(bank, options, seed),
        options.autoencoder.latent_channels,
        options.autoencoder.whitening,
    )
    tokenizer = train_tokenizer(bank.texts(), options.vocabulary, options.text_encoder.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "joint"))
        return BaseModel(
            unet=base_model.build_unet(
                options.unet,
                vae.config.latent_channels,
                bank.size // options.autoencoder.factor,
                options.text_encoder.width,
            ),
            vae=vae,
            text_encoder=base_model.build_text_encoder(tokenizer, options.text_encoder),
            tokenizer=tokenizer,
            scheduler=base_model.build_scheduler(),
            prediction=options.unet.prediction,
        )


def card(options: Joint, facts: dict, folder: Path) -> str:
    """A model card for the base in a folder: what it is, what it has learned from, what made it."""
    training, learned, attributed = facts["training"], [], (folder / ATTRIBUTION).is_file()
    if options.drawn:
        learned.append(f"{options.drawn:,} drawn pictures with defects, masks and words")
    if options.photos:
        named = f" ({ATTRIBUTION} names files and authors)" if attributed else ""
        learned.append(f"textures on half of them{named}")
    if options.own:
        learned.append("normals and defects of the run's own categories")
    else:
        learned.append("nothing of the data sets that methods are judged on")
    # Whose pictures they are says what may be done with the weights.
    free = not options.own and (attributed or not options.photos)
    return f"""# A small base model for defects

A latent diffusion model in diffusers' format, made by HelixBench for pictures of about
{options.size} x {options.size} pixels. Prompts: `a photo of a <thing> with <defect>`,
`a mask of <defect> on a <thing>`. Its autoencoder is computed (principal components of patches),
its U-Net predicts v.

- Learned from: {"; ".join(learned)}.
- Made by: `helixbench joint`, commit {facts["commit"]}, {facts["device"]},
  {training["steps"]:,} steps of {options.optim.batch} in {training["train_s"] / 3600:.1f} hours.
- Autoencoder: {options.autoencoder.latent_channels} channels, factor {options.autoencoder.factor},
  {facts["psnr_db"]} dB on pictures and masks of the same kind.
- Meant for: the start of a training on a few real defects. On its own it draws textures and stains,
  and few objects.
- Licence: {"Apache-2.0" if free else "as that of the pictures it has learned from"}.
"""


def run(
    config: Slice,
    *,
    prepared: Sequence[Path],
    state: Path,
    out: Path,
    jobs: int = 1,
) -> None:
    """Train a joint base and save it in half precision as a diffusers folder with manifest.json.

    prepared: the categories' folders, for `own`. state: drawn pictures, latents and resume
    state, which stay, so that the training can go on; jobs: processes that draw.
    """
    options: Joint = config["train.joint"]
    provenance.claim(state)
    provenance.claim(out)
    device, seed = pick_device(), derive_seed(config["run.seed"], "joint")
    about = {"device": describe(device)}
    with (
        provenance.alone(state, out),
        provenance.manifest(out / "manifest.json", "joint", config, **about) as facts,
    ):
        bank = _bank(options, prepared, state, config["run.seed"], jobs)
        base = build(options, bank, seed).to(device)
        # Neither when it stops nor where the textures lie changes what is learned.
        values = options.model_dump(mode="json", exclude={"hours", "photos"})
        facts["training"] = train(
            bank,
            base,
            options,
            seed=seed,
            state=state,
            config_digest=digest([values, bank.identity]),
            device=device,
        )
        pictures, _, _ = entries(bank, 0, min(len(bank), 64), seed)
        errors = (base.decode(base.encode(pictures)).cpu() - pictures).square().flatten(1).mean(1)
        facts["psnr_db"] = round(float(-10 * errors.clamp(min=1e-10).mean().log10()), 2)
        base.to(torch.device("cpu")).half().save(out)
        (out / ATTRIBUTION).unlink(missing_ok=True)
        if options.photos and (Path(options.photos) / ATTRIBUTION).is_file():
            shutil.copyfile(Path(options.photos) / ATTRIBUTION, out / ATTRIBUTION)
        provenance.write_text(out / "README.md", card(options, facts, out))
        shutil.copyfile(state / "stats.jsonl", out / "stats.jsonl")
        known = ("manifest.json", "stats.jsonl", provenance.MARK)
        facts["files"] = provenance.sha256_tree(out, exclude=known)


def _bank(options: Joint, prepared: Sequence[Path], state: Path, seed: int, jobs: int) -> Bank:
    """All pictures that a base learns from; UserError for another size, or more than entries."""
    banks = [own(prepared)] if options.own else []
    if banks and banks[0].size != options.size:
        raise UserError(
            f"train.joint.size {options.size}: the prepared pictures have {banks[0].size} pixels; "
            f"set one of the two"
        )
    if options.drawn:
        photos = Path(options.photos) if options.photos else None
        banks.append(drawn(state / "drawn", options.drawn, options.size, photos, seed, jobs))
    bank = banks[0] if len(banks) == 1 else banks[0] + banks[1]
    if options.entries < len(bank):
        raise UserError(
            f"train.joint.entries {options.entries}: there are {len(bank)} pictures, and the last "
            f"would never be seen; set at least so many"
        )
    return bank
