"""Methods of textual inversion (Gal et al. 2022): a frozen diffusion model and a learned word for
each defect type.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.methods.latent_learner import LatentLearner, draw_rows, words
from helixbench.pictures.transforms import symmetries, to_tensor, transform
from helixbench.provenance import read_object
from helixbench.schema import Optim, Sampling, Symmetries


class TextualInversionSettings(Protocol):
    """Settings that these methods have in common."""

    vectors: int
    prompt: str
    augment: Symmetries
    trainable: str
    optim: Optim


def latent_mask(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """Mask (B, 1, H, W) in {0, 1} at the latents' size: a position is on if any of its pixels is,
    so that none is lost.
    """
    return F.max_pool2d(mask, factor)


MEDIA = (
    "photo",
    "good photo",
    "bright photo",
    "dark photo",
    "cropped photo",
    "close-up photo",
    "rendering",
    "depiction",
)
NOUNS = (
    "a",
    "the",
    "one",
    "my",
    "a clean",
    "a dirty",
    "a small",
    "the large",
    "a nice",
    "the weird",
)


def templates(prompt: str) -> tuple[str, ...]:
    """The prompts to draw from, each with one `*` for the learned word.

    `templates` stands for 80 plain phrases in the manner of textual inversion's list for ImageNet,
    "a photo of a *" to "a depiction of the weird *"; any other prompt is the only one.
    """
    if prompt != "templates":
        return (prompt,)
    return tuple(f"a {medium} of {noun} *" for medium in MEDIA for noun in NOUNS)


def around(base: BaseModel, prompt: str) -> tuple[list[int], list[int]]:
    """Token ids before and after the `*` of a prompt."""
    before, after = (
        base.tokenizer(part).input_ids[1:-1] if part.strip() else [] for part in prompt.split("*")
    )
    return before, after


def embed_vectors(base: BaseModel, prompt: str, vectors: torch.Tensor) -> torch.Tensor:
    """Text embedding (L, D) of a prompt in which vectors (V, D) stand in the place of `*`, with
    gradients to them.
    """
    before, after = around(base, prompt)
    begin, end = base.tokenizer("").input_ids[:2]
    ids = [begin, *before, *[end] * len(vectors), *after, end]
    longest = base.tokenizer.model_max_length
    if len(ids) > longest:
        raise UserError(
            f"prompt {prompt!r}: with {len(vectors)} vectors longer than the text encoder's "
            f"{longest} tokens; shorten it"
        )
    ids += [base.tokenizer.pad_token_id] * (longest - len(ids))
    first = 1 + len(before)

    def replace(module, args, out):
        return torch.cat(
            [out[:, :first], vectors[None].to(out), out[:, first + len(vectors) :]], dim=1
        )

    device = base.text_encoder.device
    hook = base.text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        with torch.autocast(device.type, enabled=False):
            return base.text_encoder(torch.tensor([ids], device=device)).last_hidden_state[0]
    finally:
        hook.remove()


class LearnedWords(nn.Module):
    """`count` vectors a defect type, starting as the embeddings of the words of its name."""

    def __init__(self, base: BaseModel, defects: list[str], count: int):
        super().__init__()
        self.defects = list(defects)
        table = base.text_encoder.get_input_embeddings().weight.detach()
        rows = []
        for defect in self.defects:
            ids = base.tokenizer(words(defect)).input_ids[1:-1]
            rows.append(table[[ids[i % len(ids)] for i in range(count)]])
        self.vectors = nn.Parameter(torch.stack(rows).clone())

    def forward(self, defect: str) -> torch.Tensor:
        """Vectors (count, D) of a defect type."""
        if defect not in self.defects:
            raise UserError(
                f"defect type {defect}: this model was trained on {', '.join(self.defects)} only; "
                f"train again"
            )
        return self.vectors[self.defects.index(defect)]


@dataclass(frozen=True)
class Batch:
    """Training pictures: keys, latents z (B, C, h, w), masks (B, 1, H, W) in {0, 1}, defect types,
    latents of as many normals.
    """

    keys: list[tuple[int, str]]
    z: torch.Tensor
    masks: torch.Tensor
    defects: list[str]
    normals: torch.Tensor | None


class TextualInversion(LatentLearner):
    """What these methods share: frozen base, learned words, modules of their own (`parts`).

    With `trainable: all` the U-Net is trained, too, as a plain diffusion model of normals and
    defects (term `base`).
    """

    config: TextualInversionSettings

    def __init__(
        self,
        config: TextualInversionSettings,
        base: BaseModel,
        sampling: Sampling | None = None,
    ):
        super().__init__(config, base, sampling)
        base.unet.requires_grad_(config.trainable == "all").eval()
        self._module = nn.ModuleDict({**self.parts(), "unet": base.unet})

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The method's own modules, with fresh weights."""

    def vocabularies(self) -> dict[str, int]:
        """Sets of learned words, one word a defect type: name -> vectors of a word."""
        return {"words": self.config.vectors}

    def _learn(self, defects: list[str]) -> None:
        for name, count in self.vocabularies().items():
            self._module[name] = LearnedWords(self.base, defects, count)

    def begin(self, data: Pictures) -> None:
        """A learned word for each defect type of the data, in each vocabulary."""
        self._learn(data.defects)

    def load_own(self, file: Path) -> None:
        """Words, for the defect types of the model's settings, and own modules."""
        settings = file.with_suffix(".json")
        self._learn(read_object(settings, "train again", lambda known: list(known["defects"])))
        super().load_own(file)

    def own(self) -> set[str]:
        """Words and own modules."""
        return {name for name in self.module.state_dict() if not name.startswith("unet.")}

    def settings(self) -> dict[str, Any]:
        """The configuration and the defect types."""
        return {"config": super().settings(), "defects": self._module["words"].defects}

    def prompt(self, category: str, defect: str) -> str:
        """Prompt for the manifest: `<...>` is the learned word, `...` one of several templates."""
        known = templates(self.config.prompt)
        return ("... *" if len(known) > 1 else known[0]).replace("*", f"<{words(defect)}>")

    def draw(self, data: Pictures, rng: torch.Generator) -> Batch:
        """Random defective pictures and, where the U-Net is trained, normals."""
        config = self.config
        names, count = symmetries(config.augment), config.optim.per_pass

        def latents(rows: list[tuple[int, str]]) -> torch.Tensor:
            return self.latents(rows, to_tensor([transform(data.images[i], s) for i, s in rows]))

        chosen = draw_rows(data.defective, names, count, rng)
        masks = to_tensor([transform(data.masks[i], symmetry) for i, symmetry in chosen]).to(
            self.device
        )
        normals = None
        if config.trainable == "all":
            normals = latents(draw_rows(data.normal, names, count, rng))
        defects = [data.samples[i].defect for i, _ in chosen]
        return Batch(chosen, latents(chosen), masks, defects, normals)

    def predict(
        self,
        noisy: list[torch.Tensor],
        texts: list[torch.Tensor],
        t: torch.Tensor,
        batch: Batch,
        noise: torch.Tensor,
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Predicted noise of each noisy latent (B, C, h, w), the first of which is the picture's,
        and the term `base` if it is trained.

        texts: their text embeddings, each (B, L, D). noise: what was added, (len(noisy), B, C, h,
        w), and one more that may be added to normals.
        """
        if batch.normals is not None:
            noisy = [*noisy, self.base.scheduler.add_noise(batch.normals, noise[-1], t)]
            texts = [*texts, self.base.embed([""]).expand_as(texts[0])]
        out = (
            self.base.unet(torch.cat(noisy), t.repeat(len(noisy)), torch.cat(texts))
            .sample.float()
            .chunk(len(noisy))
        )
        if batch.normals is None:
            return list(out), {}
        return list(out[:-1]), {
            "base": (F.mse_loss(out[0], noise[0]) + F.mse_loss(out[-1], noise[-1])) / 2
        }

    def noised(self, z: torch.Tensor, noise: torch.Tensor, t: int) -> torch.Tensor:
        """q(z, t) of clean latents z; t = -1 is the end, without noise."""
        if t < 0:
            return z
        return self.base.scheduler.add_noise(
            z, noise, torch.tensor([t], device=z.device).expand(len(z))
        )
