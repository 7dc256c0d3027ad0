"""Pictures of many categories with words for them, from which a joint base learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from helixbench.config import digest
from helixbench.pictures.transforms import symmetries

ARRAYS = ("images", "normals", "masks")
_SYMMETRIES = symmetries(("hflip", "vflip", "rot90"))
"""The eight of the square."""


@dataclass
class Bank:
    """Pictures of many categories: defective, the same without the defect, masks, and words.

    images, normals: uint8 (n, S, S, 3); masks: bool (n, S, S), empty where there is no defect;
    things, defects: n words each, `good` for no defect. identity: changes when any of it does.
    """

    images: np.ndarray
    normals: np.ndarray
    masks: np.ndarray
    things: Sequence[str]
    defects: Sequence[str]
    identity: str
    _known: dict[torch.device, list[torch.Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.images.shape[1]

    def draw(
        self, rows: torch.Tensor, normal: torch.Tensor, rng: torch.Generator, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (n, 3, S, S) in [0, 1] of the rows (n,), where `normal` those without the
        defect, and masks (n, 1, S, S) in {0, 1} of the defects; each in one of the eight symmetries
        of the square.
        """
        images, normals, masks = self._tensors(device)
        take, without = rows.to(device), normal.to(device)[:, None, None, None]
        images = torch.where(without, normals[take], images[take]).permute(0, 3, 1, 2).float() / 255
        both = torch.cat([images, masks[take][:, None].float()], dim=1)
        turns = torch.randint(len(_SYMMETRIES), (len(rows),), generator=rng)
        for number, symmetry in enumerate(_SYMMETRIES):
            chosen = torch.nonzero(turns == number).flatten().to(device)
            if symmetry and len(chosen):
                both[chosen] = _transform(both[chosen], symmetry)
        return both[:, :3], both[:, 3:]

    def _tensors(self, device: torch.device) -> list[torch.Tensor]:
        """The arrays on a device, where they stay: 7 S^2 bytes a row."""
        if device not in self._known:
            self._known[device] = [torch.from_numpy(getattr(self, k)).to(device) for k in ARRAYS]
        return self._known[device]

    def __add__(self, other: Bank) -> Bank:
        arrays = [np.concatenate([getattr(self, k), getattr(other, k)]) for k in ARRAYS]
        words = [*self.things, *other.things], [*self.defects, *other.defects]
        return Bank(*arrays, *words, digest([self.identity, other.identity]))

    def texts(self) -> list[str]:
        """All prompts of its pictures and masks."""
        known = sorted(set(zip(self.things, self.defects, strict=True)))
        things = sorted(set(self.things))
        return [
            *(prompt(thing, "good") for thing in things),
            *(prompt(thing, defect) for thing, defect in known if defect != "good"),
            *(mask_prompt(thing, defect) for thing, defect in known if defect != "good"),
        ]


def prompt(thing: str, defect: str) -> str:
    """`a photo of a <thing>`, of a defective one `a photo of a <thing> with <defect>`."""
    text = f"a photo of a {thing}"
    return (text if defect == "good" else f"{text} with {defect}").replace("_", " ")


def mask_prompt(thing: str, defect: str) -> str:
    """`a mask of <defect> on a <thing>`: a mask as a picture."""
    return f"a mask of {defect} on a {thing}".replace("_", " ")


def _transform(x: torch.Tensor, symmetry: str) -> torch.Tensor:
    """As `pictures.transforms.transform`, of (n, C, S, S)."""
    for name in symmetry.split("+"):
        if name == "rot90":
            x = x.rot90(1, (-2, -1))
        else:
            x = x.flip({"hflip": -1, "vflip": -2}[name])
    return x
