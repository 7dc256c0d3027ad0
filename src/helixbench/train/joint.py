"""Stage `joint`: one base over many categories, from pictures and masks with words for them.

Pictures are drawn or prepared, the autoencoder is computed, and the
U-Net and the text encoder are trained together; then methods may learn their own task from the same
pictures. Each step resumes where it was stopped.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

from helixbench import provenance
from helixbench.config import Slice, digest
from helixbench.diffusion import base as base_model
from helixbench.diffusion.bank import Bank, mask_prompt, prompt
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.bpe import train_tokenizer
from helixbench.diffusion.linear import Components, linear_autoencoder
from helixbench.engine.devices import describe, on_device, pick_device
from helixbench.engine.graphs import graphed
from helixbench.engine.loop import fit
from helixbench.errors import UserError
from helixbench.methods.method import Learner, method_class
from helixbench.records import derive_seed
from helixbench.schema.joint import Joint
from helixbench.train.bank import drawn, own

log = logging.getLogger(__name__)

ATTRIBUTION = "attribution.tsv"
FREE = "Apache-2.0"
"""Licence of weights that have seen free pictures only."""
_CHUNK = 64
_TEXTS = 256
_PICTURE, _NORMAL, _MASK = 0, 1, 2
_KINDS = torch.tensor([_PICTURE] * 5 + [_NORMAL] + [_MASK] * 2)
"""What a row of the bank is shown as, one of these at random: the picture as it is, without its
defect, or its mask as a picture."""


class Task:
    """Random pictures and masks of a bank, with words for them."""

    def __init__(self, bank: Bank, base: BaseModel, device: torch.device):
        self.bank, self.device = bank, device
        self.good = torch.tensor([defect == "good" for defect in bank.defects])
        texts = ["", *bank.texts()]
        number = {text: i for i, text in enumerate(texts)}
        shown = (
            (prompt(thing, defect), prompt(thing, "good"), mask_prompt(thing, defect))
            for thing, defect in zip(bank.things, bank.defects, strict=True)
        )
        # A good picture has no mask to be shown.
        self.text = torch.tensor([[number.get(text, 0) for text in row] for row in shown])
        self.tokens = torch.cat(
            [base.tokens(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)]
        ).to(device)

    def pictures(
        self, n: int, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures (n, 3, S, S) in [0, 1], their texts' numbers (n,), and where in them the defect
        is, (n, 1, S, S) in {0, 1}; empty for a mask that is the picture itself.
        """
        rows = torch.randint(len(self.bank), (n,), generator=rng)
        kinds = _KINDS[torch.randint(len(_KINDS), (n,), generator=rng)]
        kinds = torch.where(self.good[rows], _PICTURE, kinds)
        images, masks = self.bank.draw(rows, kinds == _NORMAL, rng, self.device)
        kind = kinds.to(self.device)[:, None, None, None]
        images = torch.where(kind == _MASK, masks, images)
        return images, self.text[rows, kinds], masks * (kind == _PICTURE)


def components(bank: Bank, options: Joint, seed: int) -> Components:
    """Principal components of patches of random pictures and masks of the bank, defects weighing
    more.
    """
    settings = options.autoencoder

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = torch.Generator().manual_seed(derive_seed(seed, "components"))
        for start in range(0, settings.pictures, _CHUNK):
            n = min(_CHUNK, settings.pictures - start)
            rows = torch.randint(len(bank), (n,), generator=rng)
            images, masks = bank.draw(rows, torch.zeros(n, dtype=bool), rng, torch.device("cpu"))
            as_picture = (torch.arange(n) < round(n * settings.mask_share))[:, None, None, None]
            weights = 1 + settings.defect_weight * masks * ~as_picture
            yield torch.where(as_picture, masks, images) * 2 - 1, weights

    return Components(batches(), settings.factor)


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
    task = Task(bank, base, device)
    abar = base.scheduler.alphas_cumprod.to(device)
    by_time = min_snr_weight(abar, options.min_snr)
    both = nn.ModuleDict({"unet": base.unet, "text_encoder": base.text_encoder}).to(device).train()
    batch = options.optim.per_pass
    predict = _Noise(base.unet)
    capture = options.optim.accumulate == 1

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        nonlocal predict, capture
        pictures, texts, defects = task.pictures(batch, rng)
        dropped = torch.rand(batch, generator=rng) < options.prompt_drop
        words = task.tokens[torch.where(dropped, 0, texts).to(device)]
        t = torch.randint(len(abar), (batch,), generator=rng).to(device)
        with torch.autocast(device.type, enabled=False):
            z0 = base.encode(pictures)
        share = F.adaptive_avg_pool2d(defects, z0.shape[-2:])
        weight = 1 + options.defect_weight * share
        eps = torch.randn(z0.shape, generator=on_device(rng, device), device=device)
        a = abar[t].reshape(-1, 1, 1, 1)
        zt = a.sqrt() * z0 + (1 - a).sqrt() * eps
        text = both["text_encoder"](words).last_hidden_state
        if capture:
            predict, capture = graphed(predict, (zt, t, text)), False
        noise = predict(zt, t, text)
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


class _Noise(nn.Module):
    """The U-Net's noise prediction as a plain tensor."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet

    def forward(self, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w), timesteps (B,), text (B, L, D) -> noise (B, C, h, w)."""
        return self.unet(z, t, text).sample.float()


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
    learned, attributed = [], (folder / ATTRIBUTION).is_file()
    if options.drawn:
        learned.append(f"{options.drawn:,} drawn pictures with defects, masks and words")
    if options.photos:
        named = f" ({ATTRIBUTION} names files and authors)" if attributed else ""
        learned.append(f"textures on half of them{named}")
    if options.own:
        learned.append("normals and defects of the run's own categories")
    if options.start:
        learned.append("what the base that it went on from had learned from")
    elif not options.own:
        learned.append("nothing of the data sets that methods are judged on")
    made = [*facts.get("before", []), facts]
    trainings = "\n".join(
        f"  - {what}: {done['steps']:,} steps in {done['train_s'] / 60:.1f} minutes of "
        f"{one['device']}, commit {one['commit']}"
        for one in made
        for what, done in [("the base", one["training"]), *one.get("starts", {}).items()]
    )
    return f"""# A small base model for defects

A latent diffusion model in diffusers' format, made by HelixBench for pictures of about
{options.size} x {options.size} pixels. Prompts: `a photo of a <thing> with <defect>`,
`a mask of <defect> on a <thing>`.

- Learned from: {"; ".join(learned)}.
- Made by `helixbench joint`:
{trainings}
- Autoencoder: {facts["psnr_db"]} dB on pictures and masks of the same kind.
- Meant for: the start of a training on a few real defects. On its own it draws textures and stains,
  and few objects.
- Licence: {facts["licence"]}.
"""


def licence(options: Joint, before: Sequence[dict]) -> str:
    """What may be done with the weights: whose pictures they have seen says it."""
    if options.start and (not before or before[-1].get("licence") != FREE):
        return "as that of the base that it went on from"
    attributed = options.photos and (Path(options.photos) / ATTRIBUTION).is_file()
    if options.own or (options.photos and not attributed):
        return "as that of the pictures it has learned from"
    return FREE


def run(
    config: Slice,
    *,
    prepared: Sequence[Path],
    state: Path,
    out: Path,
    jobs: int = 1,
) -> None:
    """Train a joint base and save it in half precision as a diffusers folder with manifest.json.

    prepared: the categories' folders, for `own`. state: drawn pictures and resume state, which
    stay, so that the training can go on; jobs: processes that draw.
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
        if options.start:
            base, identity = BaseModel.load(Path(options.start)), _identity(Path(options.start))
            facts["before"] = _before(Path(options.start))
        else:
            base, identity = build(options, bank, seed), ""
        base.to(device)
        # Neither when it stops nor where folders lie changes what is learned.
        unused = {"hours", "photos", "start", "methods", "raw_mask_cells"}
        values = options.model_dump(mode="json", exclude=unused)
        facts["training"] = train(
            bank,
            base,
            options,
            seed=seed,
            state=state,
            config_digest=digest([values, bank.identity, identity]),
            device=device,
        )
        rng = torch.Generator().manual_seed(derive_seed(seed, "check"))
        pictures, _, _ = Task(bank, base, device).pictures(_CHUNK, rng)
        errors = (base.decode(base.encode(pictures)) - pictures).square().flatten(1).mean(1)
        facts["psnr_db"] = round(float(-10 * errors.clamp(min=1e-10).mean().log10()), 2)
        base.to(torch.device("cpu")).half().save(out)
        facts["starts"] = {
            key: _start(
                key, options, bank, seed=seed, state=state / "methods" / key, out=out, device=device
            )
            for key in options.methods
        }
        (out / ATTRIBUTION).unlink(missing_ok=True)
        if options.photos and (Path(options.photos) / ATTRIBUTION).is_file():
            shutil.copyfile(Path(options.photos) / ATTRIBUTION, out / ATTRIBUTION)
        facts["licence"] = licence(options, facts.get("before", []))
        provenance.write_text(out / "README.md", card(options, facts, out))
        shutil.copyfile(state / "stats.jsonl", out / "stats.jsonl")
        known = ("manifest.json", "stats.jsonl", provenance.MARK)
        facts["files"] = provenance.sha256_tree(out, exclude=known)


def _start(
    key: str, options: Joint, bank: Bank, *, seed: int, state: Path, out: Path, device: torch.device
) -> dict:
    """Train a method on its own task, from the base in `out`, where it is saved, too; the facts of
    its training.
    """
    settings = options.methods[key]
    kind = method_class(settings.kind)
    if not issubclass(kind, Learner):
        raise UserError(f"train.joint.methods.{key}: does not learn; leave it out")
    base = BaseModel.load(out)
    if options.start and settings.model_dump().get("start") == "joint":
        base.folder = Path(options.start)
    learner = kind.create(settings, base, seed).to(device)
    loss = learner.joint_loss(bank, options.raw_mask_cells)
    about = [settings.model_dump(mode="json"), options.raw_mask_cells, bank.identity]
    files = [_identity(out), _identity(base.folder / settings.kind)]
    facts = fit(
        learner.module,
        lambda step, rng: loss(rng),
        settings.optim,
        seed=seed,
        state_dir=state,
        config_digest=digest([about, files]),
        device=device,
        name=f"joint {key}",
        limit_s=None if options.hours is None else options.hours * 3600,
    )
    learner.to(torch.device("cpu")).save_start(out / settings.kind)
    shutil.copyfile(state / "stats.jsonl", out / settings.kind / "stats.jsonl")
    return facts


def _identity(folder: Path) -> dict[str, str]:
    """Hashes of the weights in a base's folder; none where there is no folder."""
    return {
        str(file.relative_to(folder)): provenance.sha256(file)
        for file in sorted(folder.rglob("*.safetensors"))
    }


def _before(folder: Path) -> list[dict]:
    """What is known of the trainings of a base that another one goes on from."""
    file = folder / "manifest.json"
    if not file.is_file():
        return []
    known = provenance.read_object(file, "name another base")
    if known.get("stage") != "joint":
        return []
    kept = ("commit", "device", "training", "starts", "licence")
    return [*known.get("before", []), {key: known[key] for key in kept if key in known}]


def _bank(options: Joint, prepared: Sequence[Path], state: Path, seed: int, jobs: int) -> Bank:
    """All pictures that a base learns from; UserError for another size."""
    banks = [own(prepared)] if options.own else []
    if banks and banks[0].size != options.size:
        raise UserError(
            f"train.joint.size {options.size}: the prepared pictures have {banks[0].size} pixels; "
            f"set one of the two"
        )
    if options.drawn:
        photos = Path(options.photos) if options.photos else None
        banks.append(drawn(state / "drawn", options.drawn, options.size, photos, seed, jobs))
    return banks[0] if len(banks) == 1 else banks[0] + banks[1]
