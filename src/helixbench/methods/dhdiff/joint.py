"""DH-Diff's own task over many categories: cells, words and a reference to picture and mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from helixbench.diffusion.bank import Bank
from helixbench.errors import UserError
from helixbench.methods.dhdiff.modules import Flow
from helixbench.methods.dhdiff.unet import DHDiffUNet
from helixbench.methods.latent_learner import words
from helixbench.pictures.raw_mask import BLANK, cell_edges

if TYPE_CHECKING:
    from helixbench.methods.dhdiff.method import DHDiffMethod

_RAW, _DETAILED = 0, 1
"""What a control shows; a third kind is a point."""


class JointTask:
    """Training batches from a bank, drawn and encoded on the method's device.

    They are those of `DHDiffMethod.batch`, for thousands of pictures instead of a category's few:
    nothing is kept, and a batch is moved, cut and encoded as one.
    """

    def __init__(self, method: DHDiffMethod, bank: Bank, cells: int):
        """cells: K of the raw masks.

        Raises:
            UserError: for `reference: tight`, which is cut picture by picture.
        """
        if method.config.reference == "tight":
            raise UserError("reference tight: not for pre-training; set background or cells")
        self.method, self.bank = method, bank
        self.good = torch.tensor([defect == "good" for defect in bank.defects])
        edges = cell_edges(bank.size, cells)
        rows = torch.repeat_interleave(torch.arange(cells), torch.tensor(edges).diff())
        self.cell_of = torch.eye(cells)[:, rows].to(method.device)  # (K, S), 1 in the cell's pixels
        method.remember(sorted({text for i in range(len(bank)) for text in self._prompts(i)}))

    def _prompts(self, row: int) -> tuple[str, str]:
        """Prompts of a picture with its defect and without."""
        method, thing, defect = self.method, self.bank.things[row], self.bank.defects[row]
        good = method.text(method.config.prompt_good, thing)
        return good if defect == "good" else method.prompt(thing, defect), good

    @torch.no_grad()
    def batch(self, rng: torch.Generator) -> dict:
        """What `DHDiffMethod.batch` gives, of random pictures of the bank; normals first."""
        method, config = self.method, self.method.config
        n, device = config.optim.per_pass, method.device

        def chance(p: float) -> torch.Tensor:
            return torch.rand(n, generator=rng) < p

        rows = torch.randint(len(self.bank), (n,), generator=rng)
        normal = self.good[rows] | (torch.arange(n) < round(n * config.normal_share))
        dropped = chance(config.prompt_drop)
        has_raw = ~(dropped | chance(config.raw_mask_drop))
        present = ~(normal | dropped | chance(config.control_drop))
        kinds, at = torch.randint(3, (n,), generator=rng), torch.rand(n, generator=rng)

        images, defects = self.bank.draw(rows, normal, rng, device)
        normal = normal.to(device)[:, None, None, None]
        cells = self._cells(defects)
        shown = cells if config.reference == "cells" else 1 - cells
        shown = shown * ~normal if config.reference == "cells" else shown
        references = torch.where(shown > 0, images, BLANK / 255)
        # A normal has no defect to show, but one's cells to cut its reference by (see `batch`).
        masks, cells = defects * ~normal, cells * ~normal
        kinds = kinds.to(device)[:, None, None, None]
        controls = torch.where(kinds == _DETAILED, masks, _points(masks, at.to(device)))
        controls = torch.where(kinds == _RAW, cells, controls)

        colours = [images, masks.expand(-1, 3, -1, -1), references, cells.expand(-1, 3, -1, -1)]
        with torch.autocast(device.type, enabled=False):
            latents = method.base.encode(torch.cat(colours)).chunk(4)
        texts = [self._prompts(row) for row in rows.tolist()]
        chosen = zip(texts, normal.flatten().tolist(), dropped.tolist(), strict=True)
        return {
            **dict(zip(("image", "annotation", "reference", "raw_mask"), latents, strict=True)),
            "prompts": ["" if empty else text[is_normal] for text, is_normal, empty in chosen],
            "words": [words(self.bank.defects[row]) for row in rows.tolist()],
            "mask": masks,
            "has_raw": has_raw,
            "control": controls,
            "present": present,
        }

    def _cells(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (n, 1, S, S) -> all pixels of the cells that they touch, the same shape."""
        touched = (self.cell_of @ masks @ self.cell_of.T > 0).float()
        return self.cell_of.T @ touched @ self.cell_of


def _points(masks: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """A disc around the pixel of each mask (n, 1, S, S) that lies at a share (n,) of its pixels;
    empty for an empty mask.
    """
    side = masks.shape[-1]
    order = masks.flatten(1).cumsum(1)
    pixel = (order > (at[:, None] * order[:, -1:]).floor()).float().argmax(1)
    y, x = (pixel // side)[:, None, None], (pixel % side)[:, None, None]
    along = torch.arange(side, device=masks.device)
    near = (along[:, None] - y) ** 2 + (along - x) ** 2 <= (side / 32) ** 2
    return near[:, None].float() * (order[:, -1] > 0)[:, None, None, None]


class TensorPass(nn.Module):
    """The reference pass and the pass of both streams, of tensors only: what a CUDA graph holds."""

    def __init__(self, unet: DHDiffUNet, names: list[str]):
        """names: of the parts of a Flow that are given, in order."""
        super().__init__()
        self.unet, self.names = unet, names

    def forward(
        self,
        z_image: torch.Tensor,
        z_annotation: torch.Tensor,
        t: torch.Tensor,
        text: torch.Tensor,
        z_reference: torch.Tensor,
        empty: torch.Tensor,
        *given: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DHDiffUNet.forward`; empty: embeddings of the empty prompt (B, L, D)."""
        reference = self.unet.encode_reference(z_reference, t, empty)
        flow = Flow(**dict(zip(self.names, given, strict=True)))
        return self.unet(z_image, z_annotation, t, text, reference, flow)
