"""A category's prepared pictures in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from helixbench.errors import UserError
from helixbench.pictures.prepared import read_samples, sample_images, sample_masks
from helixbench.pictures.transforms import symmetries, to_tensor, transform
from helixbench.records import Sample, parse_cells


@dataclass
class Pictures:
    """The pictures that generators may see: normals and the generator half of the defective ones.

    images: uint8 (n, S, S, 3); masks: bool (n, S, S), empty for normals; samples: their records, in
    order.
    """

    samples: list[Sample]
    images: np.ndarray
    masks: np.ndarray
    cells: int

    @classmethod
    def load(cls, prepared: Path) -> Pictures:
        """Read a folder written by `prepare`; the test half is never opened."""
        samples = [s for s in read_samples(prepared) if s.role == "normal" or s.defect_trains]
        if not any(s.role == "normal" for s in samples) or not any(
            s.defect_trains for s in samples
        ):
            raise UserError(
                f"{prepared / 'samples.csv'}: needs normals and defective pictures; run prepare "
                f"again"
            )
        images = sample_images(prepared, samples)
        masks = sample_masks(prepared, samples, images.shape[1:3])
        cells = next(parse_cells(s.raw_mask)[0] for s in samples if s.raw_mask)
        return cls(samples, images, masks, cells)

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.images.shape[1]

    @cached_property
    def normal(self) -> list[int]:
        """Indices of the normals."""
        return [i for i, s in enumerate(self.samples) if s.role == "normal"]

    @cached_property
    def normals(self) -> np.ndarray:
        """The normals, uint8 (N, S, S, 3)."""
        return self.images[self.normal]

    @cached_property
    def defective(self) -> list[int]:
        """Indices of the generator half."""
        return [i for i, s in enumerate(self.samples) if s.defect_trains]

    @cached_property
    def defects(self) -> list[str]:
        """Defect types, sorted."""
        return sorted({self.samples[i].defect for i in self.defective})

    @cached_property
    def defect_masks(self) -> dict[str, list[np.ndarray]]:
        """Masks of the generator half by defect type, bool (S, S) each."""
        found = {name: [] for name in self.defects}
        for i in self.defective:
            found[self.samples[i].defect].append(self.masks[i])
        return found

    @cached_property
    def index(self) -> dict[str, int]:
        """Sample id -> index."""
        return {s.id: i for i, s in enumerate(self.samples)}

    def digest(self) -> str:
        """Hash of everything in here; resume state of other data is not gone on with."""
        content = hashlib.sha256(repr(self.samples).encode())
        for array in (self.images, self.masks):
            content.update(repr(array.shape).encode() + array.tobytes())
        return content.hexdigest()

    def autoencoder_batch(
        self, batch: int, mask_share: float, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pictures and masks (B, 3, S, S) in [0, 1], each in one of the eight symmetries of
        the square.

        First masks, then pictures, half of them defective ones, which are few and hold what
        matters. Second: where in them the defect is, (B, 1, S, S) in {0, 1}; empty for a mask that
        is the picture itself.
        """
        masks = round(batch * mask_share)
        all_symmetries = symmetries(("hflip", "vflip", "rot90"))
        out, defects = [], []
        for position in range(batch):
            pool = self.defective if position < masks or position % 2 == 0 else self.normal
            i = pool[int(torch.randint(len(pool), (), generator=rng))]
            name = all_symmetries[int(torch.randint(len(all_symmetries), (), generator=rng))]
            picture = self.images[i]
            if position < masks:
                picture = np.repeat(self.masks[i][..., None] * np.uint8(255), 3, axis=2)
            out.append(transform(picture, name))
            defects.append(transform(self.masks[i], name) & (position >= masks))
        return to_tensor(out), to_tensor(defects)
