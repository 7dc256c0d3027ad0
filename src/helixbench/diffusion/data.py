"""A category's prepared pictures in memory, and the symmetries that training and plans apply to
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch

from helixbench.errors import UserError
from helixbench.prepare.pictures import read_mask, read_rgb
from helixbench.records import Sample, inside, parse_cells, read_csv


def symmetries(allowed: Sequence[str]) -> list[str]:
    """All combinations of the allowed generators, e.g. ('hflip', 'rot90') -> ['', 'hflip', 'rot90',
    'hflip+rot90'].
    """
    choices = [("", name) for name in ("hflip", "vflip", "rot90") if name in allowed]
    return (
        ["+".join(filter(None, combination)) for combination in product(*choices)]
        if choices
        else [""]
    )


def transform(array: np.ndarray, symmetry: str) -> np.ndarray:
    """Apply 'hflip+vflip+rot90' (any subset) to (H, W, ...) pictures."""
    for name in filter(None, symmetry.split("+")):
        array = {"hflip": lambda a: a[:, ::-1], "vflip": lambda a: a[::-1], "rot90": np.rot90}[
            name
        ](array)
    return np.ascontiguousarray(array)


def shift(array: np.ndarray, dy: int, dx: int, fill: int = 0) -> np.ndarray:
    """Move (H, W, ...) by whole pixels; what leaves is lost, what enters is `fill`."""
    out = np.full_like(array, fill)
    height, width = array.shape[:2]
    source = array[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
    out[max(0, dy) : max(0, dy) + source.shape[0], max(0, dx) : max(0, dx) + source.shape[1]] = (
        source
    )
    return out


def to_tensor(pictures: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """uint8 (n, H, W, 3) or bool (n, H, W) -> float (n, 3 or 1, H, W) in [0, 1]."""
    array = np.stack(list(pictures))
    if array.ndim == 3:
        return torch.from_numpy(array)[:, None].float()
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


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
        samples = [
            s
            for s in read_csv(prepared / "samples.csv", Sample)
            if s.role == "normal" or s.defect_trains
        ]
        if not any(s.role == "normal" for s in samples) or not any(
            s.defect_trains for s in samples
        ):
            raise UserError(
                f"{prepared / 'samples.csv'}: needs normals and defective pictures; run prepare "
                f"again"
            )
        images = np.stack([read_rgb(inside(prepared, s.image)) for s in samples])
        empty = np.zeros(images.shape[1:3], bool)
        masks = np.stack(
            [read_mask(inside(prepared, s.mask)) if s.mask else empty for s in samples]
        )
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
        self, batch: int, mask_share: float, rng: torch.Generator, part_share: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pictures and masks (B, 3, S, S) in [0, 1], each in one of the eight symmetries of
        the square.

        First masks, then defects alone on mid-grey, then pictures, half of them defective ones,
        which are few and hold what matters. Second: where in them the defect is, (B, 1, S, S) in
        {0, 1}; empty for a mask that is the picture itself.
        """
        masks = round(batch * mask_share)
        parts = masks + round(batch * part_share)
        all_symmetries = symmetries(("hflip", "vflip", "rot90"))
        out, defects = [], []
        for position in range(batch):
            defective = position < parts or position % 2 == 0
            pool = self.defective if defective else self.normal
            i = pool[int(torch.randint(len(pool), (), generator=rng))]
            name = all_symmetries[int(torch.randint(len(all_symmetries), (), generator=rng))]
            picture, mask = self.images[i], self.masks[i][..., None]
            if position < masks:
                picture = np.repeat(mask * np.uint8(255), 3, axis=2)
            elif position < parts:
                picture = np.where(mask, picture, np.uint8(127))
            out.append(transform(picture, name))
            defects.append(transform(self.masks[i], name) & (position >= masks))
        return to_tensor(out), to_tensor(defects)
