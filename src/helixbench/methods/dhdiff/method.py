"""DH-Diff as a method: its training batch, loss (Eq. 8) and sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helixbench.diffusion.bank import Bank
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.diffusion.sampler import (
    denoise,
    draw_noise,
    guidance_at,
    guided,
    sampling_scheduler,
)
from helixbench.engine.devices import autocast, on_device
from helixbench.engine.graphs import graphed
from helixbench.errors import UserError
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.joint import JointTask, TensorPass
from helixbench.methods.dhdiff.modules import Flow
from helixbench.methods.dhdiff.streams import widen
from helixbench.methods.dhdiff.unet import DHDiffUNet
from helixbench.methods.latent_learner import LatentLearner, words
from helixbench.methods.method import Conditions, JointLoss
from helixbench.pictures.raw_mask import cells_to_mask, reference_crop
from helixbench.pictures.transforms import clean_mask, symmetries, to_tensor, transform
from helixbench.provenance import write_json
from helixbench.records import parse_cells
from helixbench.schema import Sampling

RAW_MASK_WAYS = {"channels": "by channels", "attention": "by attention", "none": "not given"}
"""How a protocol tells `annotation_input`."""
_TEXTS = 256
"""Prompts that are encoded together where there are thousands."""


class DHDiffMethod(LatentLearner):
    """Joint generation of image and annotation in one U-Net."""

    name = "dhdiff"
    config: DHDiff

    def __init__(self, config: DHDiff, base: BaseModel, sampling: Sampling | None = None):
        super().__init__(config, base, sampling)
        if (
            config.streams == "channels"
            and base.unet.config.in_channels == base.vae.config.latent_channels
        ):
            widen(base.unet)
        self.unet = self._module = DHDiffUNet(base.unet, config)
        self.text_length = 0
        self._texts: dict[str, torch.Tensor] = {}
        self._rows: dict[tuple[str, str], torch.Tensor] = {}
        self._replays, self._graph = False, None

    def trainable_(self) -> None:
        """New modules, which start at zero or as copies, and what `trainable` says; only the inner
        half of low-rank adapters is random.
        """
        self.unet.trainable_()

    @classmethod
    def create(cls, config: DHDiff, base: BaseModel, seed: int) -> Self:
        """Untrained on its category: on the plain base, or as pre-trained on the joint task."""
        if config.start == "base":
            return super().create(config, base, seed)
        folder = None if base.folder is None else base.folder / cls.name
        if folder is None or not folder.is_dir():
            raise UserError(
                f"{base.folder}: this base brings no DH-Diff that was trained on the joint task; "
                f"set `start: base`, or train one with train.joint.methods"
            )
        base.read_unet(folder)
        method = super().create(config, base, seed)
        method.unet.load_helix(folder / f"{cls.name}.safetensors")
        return method

    def joint_loss(self, bank: Bank, cells: int) -> JointLoss:
        """Eq. 8 for random pictures of a bank."""
        task = JointTask(self, bank, cells)
        one_pass = self.config.optim.accumulate == 1
        self._replays = one_pass and self.config.annotation_input != "attention"
        return lambda rng: self.errors(task.batch(rng), rng)

    def save_start(self, folder: Path) -> None:
        """The U-Net and the new modules, in half precision."""
        self.unet.fuse_adapters()
        self.unet.half()
        self.base.save_part("unet", folder)
        self.unet.save_helix(folder / f"{self.name}.safetensors")
        write_json(folder / f"{self.name}.json", self.settings())

    @classmethod
    def load(cls, config: DHDiff, folder: Path, sampling: Sampling) -> Self:
        """Trained, from the folder that `save` wrote."""
        method = super().load(config, folder, sampling)
        if config.compile:
            method.unet.compile_parts()
        return method

    def load_own(self, file: Path) -> None:
        """New modules, and how many text tokens the model sees."""
        facts = self.unet.load_helix(file)
        if "text_length" not in facts:
            raise UserError(
                f"{file.parent}: trained by an earlier version of helixbench, which looked at "
                f"other text tokens; train again"
            )
        self.text_length = facts["text_length"]

    def save(self, folder: Path) -> None:
        """A diffusers-format folder, in which adapters are part of the weights,
        dhdiff.safetensors (new modules) and dhdiff.json (configuration).
        """
        self.unet.fuse_adapters()
        super().save(folder)

    def save_own(self, file: Path) -> None:
        """New modules, and how many text tokens the model sees."""
        self.unet.save_helix(file, {"text_length": self.text_length})

    def begin(self, data: Pictures) -> None:
        """Fix how many text tokens the model sees: one number for all batches, since it may change
        their rounding.
        """
        category = data.samples[0].category
        prompts = [self.prompt(category, defect) for defect in data.defects]
        self.text_length = self._longest([*prompts, self.text(self.config.prompt_good, category)])

    def to(self, device: torch.device) -> Self:
        """Move all weights; with `offload` the autoencoder and the text encoder stay while
        training.
        """
        if not self._visiting:
            self.base.to(device)
        self.unet.to(device)
        return self

    @property
    def _visiting(self) -> bool:
        return self.config.offload and self.sampling is None

    @contextmanager
    def present(self, part: nn.Module) -> Iterator[None]:
        """Has a part on the device of the U-Net meanwhile; with `offload` it goes again."""
        if self._visiting:
            part.to(self.device)
        try:
            yield
        finally:
            if self._visiting:
                part.to("cpu")

    @property
    def takes_raw_mask(self) -> bool:
        """Whether it is an input of the streams (reading 9)."""
        return self.config.annotation_input != "none"

    @property
    def draws_into_background(self) -> bool:
        """With the rest of a normal as its reference (reading 8)."""
        return self.config.reference == "background"

    def describe(self) -> str:
        """Sampler, steps, guidance and the readings that matter most."""
        s, c = self.sampling, self.config
        text = f"{s.sampler} {s.steps} steps, guidance {s.guidance:g}"
        low, high = s.guidance_interval
        text += f" within {low:g}-{high:g} T" if (low, high) != (0, 1) else ""
        text += f", raw mask {RAW_MASK_WAYS[c.annotation_input]}"
        text += (
            f", reference {c.reference}{' also by channels' if c.reference_input == 'both' else ''}"
        )
        text += f", reference noise {c.reference_noise}"
        text += (
            ", from the prediction"
            if (c.reference_noise, s.reference_noise) == ("same", "predicted")
            else ""
        )
        text += ", pre-trained on the joint task" if c.start == "joint" else ""
        text += f", from the noised reference at {s.strength:g}" if s.start == "reference" else ""
        return text + (f", {s.control} mask as control" if s.control != "none" else "")

    # ---------------------------------------------------------------------------------------------
    # conditions

    def prompt(self, category: str, defect: str) -> str:
        """Prompt of a defective pair (reading 16)."""
        return self.text(self.config.prompt, category, defect)

    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Text embeddings (n, L, D); each prompt is encoded once.

        L: as many tokens as the longest prompt of the category has, or of these when it is longer
        (reading 25).
        """
        missing = set(prompts) - self._texts.keys()
        if missing:
            with self.present(self.base.text_encoder):
                self._texts |= {
                    prompt: self.base.embed([prompt])[0].to(self.device) for prompt in missing
                }
        return torch.stack([self._texts[prompt] for prompt in prompts])[:, : self._longest(prompts)]

    def remember(self, prompts: list[str]) -> None:
        """Encode thousands of prompts at once, and fix how many text tokens the model sees."""
        self.text_length = self._longest(prompts)
        for first in range(0, len(prompts), _TEXTS):
            some = prompts[first : first + _TEXTS]
            self._texts |= dict(zip(some, self.base.embed(some).to(self.device), strict=True))

    def _longest(self, prompts: list[str]) -> int:
        """Tokens of the longest prompt of the category or of these; all that the text model has
        where these are asked for.
        """
        most = self.base.tokenizer.model_max_length
        if self.config.text_tokens == "all":
            return most
        return min(
            most,
            max(
                [
                    self.text_length,
                    *(len(ids) for ids in self.base.tokenizer(list(set(prompts))).input_ids),
                ]
            ),
        )

    def inputs(
        self,
        reference: torch.Tensor,
        raw: torch.Tensor | None,
        t: torch.Tensor,
        has_raw: torch.Tensor,
    ) -> Flow:
        """A pass's inputs beside z^I and z^A (reading 9).

        reference: its latent (n, C, h, w) without noise; raw: latent of the raw mask, or None; t:
        timesteps (n,); has_raw: (n,) in {0, 1}.
        """
        flow = Flow(reference_latent=reference if self.config.reference_input == "both" else None)
        if raw is None or self.config.annotation_input == "none":
            return flow
        flow.has_raw = has_raw.float().to(self.device)
        if self.config.annotation_input == "channels":
            flow.raw_latent = raw
        else:
            flow.raw_features = self.unet.encode_reference(raw, t, self.embed([""] * len(raw)))
        return flow

    def flow(
        self,
        control: torch.Tensor | None,
        present: torch.Tensor | None,
        prompts: list[str],
        words: list[str],
        flow: Flow | None = None,
    ) -> Flow:
        """One pass with its control: graphical masks (n, 1, H, W) in {0, 1}, where present, tied to
        the words' tokens.

        S^O has weight on the tokens of the defect's words inside the mask and on BOS outside
        (reading 12). `flow`: what else the pass is given, which stays.
        """
        flow = flow or Flow()
        if control is None:
            return flow
        length = self._longest(prompts)
        rows = [self._pointed_at(text, word) for text, word in zip(prompts, words, strict=True)]
        inside, outside = torch.stack(rows)[..., :length].unbind(1)
        to = self.device
        return replace(
            flow,
            control=control.to(to),
            has_control=present.float().to(to),
            inside=inside.to(to),
            outside=outside.to(to),
        )

    def _pointed_at(self, prompt: str, word: str) -> torch.Tensor:
        """Rows of S^O over all text tokens, inside and outside the graphical mask: (2, L)."""
        key = (prompt, word)
        if key not in self._rows:
            ids = self.base.tokens([prompt])[0].tolist()
            rows = torch.zeros(2, len(ids))
            if self.config.control == "broadcast":
                rows[0] = 1.0
            else:
                # Without the words in it (an empty prompt) a prompt has nothing that S^O could
                # point at.
                wanted = self.base.tokenizer(" " + word).input_ids[1:-1]
                chosen = _positions(ids, wanted) or [0]
                rows[0, chosen] = 1 / len(chosen)
                rows[1, 0] = 1.0
            self._rows[key] = rows
        return self._rows[key]

    def reference(self, image: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Reference picture (H, W, 3) uint8 of the configured kind (reading 8)."""
        return reference_crop(image, cells, self.config.reference)

    # ---------------------------------------------------------------------------------------------
    # training

    def batch(self, data: Pictures, rng: torch.Generator) -> dict:
        """Draw a training batch: latents of image, annotation, reference and raw mask, prompts,
        masks, control maps.
        """
        size, config = self.config.optim.per_pass, self.config
        pick = lambda n: int(torch.randint(n, (), generator=rng))
        chance = lambda p: bool(torch.rand((), generator=rng) < p)
        names = symmetries(config.augment)
        normals = round(size * config.normal_share)
        rows = {"image": [], "annotation": [], "reference": [], "raw_mask": []}
        keys = {name: [] for name in rows}
        prompts, named, masks, has_raw, controls, present = [], [], [], [], [], []
        for position in range(size):
            normal = position < normals
            pool = data.normal if normal else data.defective
            i, symmetry = pool[pick(len(pool))], names[pick(len(names))]
            sample = data.samples[i]
            image, mask = transform(data.images[i], symmetry), transform(data.masks[i], symmetry)
            # A normal has no defect to show; as an in-painting task it borrows some defect's raw
            # mask, always the same one, so that its reference is encoded once.
            donor = data.defective[i % len(data.defective)] if normal else i
            k, chosen = parse_cells(data.samples[donor].raw_mask)
            cells = transform(cells_to_mask(k, chosen, data.size), symmetry)
            blank = normal and config.reference != "background"
            reference = np.full_like(image, 128) if blank else self.reference(image, cells)
            rows["image"].append(image)
            rows["annotation"].append(mask)
            rows["reference"].append(reference)
            # What the cells of a normal hold is nothing, also where its reference is cut by another
            # one's.
            rows["raw_mask"].append(np.zeros_like(cells) if normal else cells)
            keys["image"].append((i, symmetry, "image"))
            keys["annotation"].append(("empty",) if normal else (i, symmetry, "annotation"))
            keys["reference"].append(("blank",) if blank else (i, symmetry, "reference"))
            keys["raw_mask"].append(("empty",) if normal else (i, symmetry, "raw_mask"))
            text = (
                self.text(config.prompt_good, sample.category)
                if normal
                else self.prompt(sample.category, sample.defect)
            )
            dropped = chance(config.prompt_drop)
            prompts.append("" if dropped else text)
            named.append(words(sample.defect))
            masks.append(mask)
            # Guidance tells apart what the defect's prompt and cells add: both are dropped at once,
            # or the cells alone.
            has_raw.append(not (dropped or chance(config.raw_mask_drop)))
            present.append(not (normal or dropped or chance(config.control_drop)))
            kind = ("raw", "detailed", "point")[pick(3)]
            controls.append(
                cells if kind == "raw" else mask if kind == "detailed" else _point(mask, rng)
            )
        out = {name: self.latents(keys[name], rows[name]) for name in rows}
        return out | {
            "prompts": prompts,
            "words": named,
            "mask": to_tensor(masks),
            "has_raw": torch.tensor(has_raw),
            "control": to_tensor(controls),
            "present": torch.tensor(present),
        }

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Eq. 8 for a batch of the category."""
        return self.errors(self.batch(data, rng), rng)

    def errors(self, batch: dict, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Eq. 8: squared error of the noise predicted for the joint latent, one term per domain.

        `loss_weighting: v` divides it by abar, which makes it the squared error of v (Salimans and
        Ho, 2022). `defect_weight` w: the image's error at a position counts 1 + w times the share
        of mask there, over the mean.
        """
        z0, a0, r0 = batch["image"], batch["annotation"], batch["reference"]
        scheduler = self.base.scheduler
        shape = (3, *z0.shape)
        own = on_device(rng, self.device)
        noise = torch.randn(shape, generator=own, device=self.device)
        if self.config.train_noise_offset:
            noise = noise + self.config.train_noise_offset * torch.randn(
                (*shape[:3], 1, 1), generator=own, device=self.device
            )
        t = torch.randint(scheduler.config.num_train_timesteps, (len(z0),), generator=rng).to(
            self.device
        )
        z_reference = self.noised_reference(r0, noise[0], noise[2], t)
        inputs = self.inputs(r0, batch["raw_mask"], t, batch["has_raw"])
        flow = self.flow(
            batch["control"], batch["present"], batch["prompts"], batch["words"], inputs
        )
        z_i, z_a = scheduler.add_noise(z0, noise[0], t), scheduler.add_noise(a0, noise[1], t)
        empty, text = self.embed([""] * len(t)), self.embed(batch["prompts"])
        given = {k: x for k, x in vars(flow).items() if isinstance(x, torch.Tensor)}
        inputs = (z_i, z_a, t, text, z_reference, empty, *given.values())
        if self._replays and self._graph is None:
            self._graph = graphed(TensorPass(self.unet, list(given)), inputs)
        if self._graph is not None:
            predicted = self._graph(*inputs)
        else:
            reference = self.unet.encode_reference(z_reference, t, empty)
            predicted = self.unet(z_i, z_a, t, text, reference, flow)
        image, annotation = (
            (p.float() - e).square() for p, e in zip(predicted, noise[:2], strict=True)
        )
        if self.config.loss_weighting == "v":
            abar = scheduler.alphas_cumprod.to(self.device)[t][:, None, None, None]
            image, annotation = image / abar, annotation / abar
        if self.config.defect_weight:
            weight = 1 + self.config.defect_weight * F.adaptive_avg_pool2d(
                batch["mask"], z0.shape[-2:]
            ).to(self.device)
            image = image * (weight / weight.mean())
        return {"image": image.mean(), "annotation": annotation.mean()}

    def noised_reference(
        self, latents: torch.Tensor, same: torch.Tensor, independent: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """z_R(t): the image's own noise added (paper III-C), noise of its own, or none (reading
        7).
        """
        if self.config.reference_noise == "none":
            return latents
        noise = same if self.config.reference_noise == "same" else independent
        return self.base.scheduler.add_noise(latents, noise, t)

    # ---------------------------------------------------------------------------------------------
    # sampling

    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample."""
        pictures = (
            conditions.background if self.config.reference == "background" else conditions.donor
        )
        arrays = (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        prompts = [self.prompt(conditions.category, defect) for defect in conditions.defects]
        named = [words(defect) for defect in conditions.defects]
        return self.make(
            list(arrays), conditions.raw_mask, prompts, named, conditions.control, generators
        )

    @torch.no_grad()
    def make(
        self,
        pictures: list[np.ndarray],
        raw_mask: torch.Tensor | None,
        prompts: list[str],
        words: list[str],
        control: torch.Tensor | None,
        generators: list[torch.Generator],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per prompt: images (n, 3, H, W) in [0, 1] and masks (n, 1, H, W) in {0, 1}, on
        the CPU.

        Args:
            pictures: n pictures (H, W, 3) uint8 that the reference is cut from (reading 8).
            raw_mask: cells of the defect (n, 1, H, W) in {0, 1}; None: not given.
            prompts: n texts.
            words: the defect's words in each, which the control points at (reading 12).
            control: graphical masks (n, 1, H, W) in {0, 1}, or None.
            generators: one CPU generator a pair.
        """
        n, sampling, base = len(prompts), self.sampling, self.base
        has_raw = torch.full((n,), raw_mask is not None)
        if raw_mask is None:
            raw_mask = torch.zeros(n, 1, *pictures[0].shape[:2])
        cells = raw_mask[:, 0].numpy() > 0.5
        coarse = base.encode(raw_mask.expand(-1, 3, -1, -1))
        references = to_tensor(
            [self.reference(image, mask) for image, mask in zip(pictures, cells, strict=True)]
        )
        r0 = base.encode(references)
        channels, height, width = r0.shape[1:]
        noise = draw_noise(generators, (3, channels, height, width)).to(self.device)
        texts = {True: self.embed(prompts), False: self.embed([""] * n)}
        scheduler = sampling_scheduler(base.scheduler, sampling)
        # At sampling the true noise is unknown: the initial noise, or the last prediction, stands
        # in for it (reading 7).
        stand_in = noise[:, 0]

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal stand_in
            steps = t.to(self.device).expand(n)
            z_reference = self.noised_reference(r0, stand_in, noise[:, 2], steps)
            reference = self.unet.encode_reference(z_reference, steps, texts[False])

            def branch(conditional: bool) -> torch.Tensor:
                # The unconditional branch knows neither the defect's name nor where it is.
                flow = self.inputs(r0, coarse if conditional else None, steps, has_raw)
                if conditional:
                    flow = self.flow(control, torch.ones(n), prompts, words, flow)
                out = self.unet(*x.chunk(2, dim=1), steps, texts[conditional], reference, flow)
                return torch.cat(out, dim=1).float()

            predicted = guided(
                branch, guidance_at(int(t), base.scheduler.config.num_train_timesteps, sampling)
            )
            if sampling.reference_noise == "predicted":
                stand_in = predicted.chunk(2, dim=1)[0]
            return predicted

        start = None
        if sampling.start == "reference":
            start = torch.cat([r0, coarse], dim=1)
        with autocast(self.device, self.config.optim.precision):
            latents = denoise(
                predict, noise[:, :2].flatten(1, 2), scheduler, start, sampling.strength
            )
            images, annotations = (
                base.decode(part).cpu().float() for part in latents.chunk(2, dim=1)
            )
        masks = annotations.mean(1) > 0.5  # reading 10
        return images, torch.from_numpy(np.stack([clean_mask(mask.numpy()) for mask in masks]))[
            :, None
        ].float()


def disc(shape: tuple[int, int], y: int, x: int) -> np.ndarray:
    """What a point is as a control map: a (H, W) bool disc of 1/32 of the height around a pixel."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= (shape[0] / 32) ** 2


def _positions(ids: list[int], wanted: list[int]) -> list[int]:
    """Where the token sequence `wanted` stands in `ids`; empty when it does not."""
    for start in range(len(ids) - len(wanted) + 1):
        if wanted and ids[start : start + len(wanted)] == wanted:
            return list(range(start, start + len(wanted)))
    return []


def _point(mask: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """A point in the mask as a control map; empty for an empty mask."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros_like(mask)
    i = int(torch.randint(len(rows), (), generator=rng))
    return disc(mask.shape, rows[i], columns[i])
