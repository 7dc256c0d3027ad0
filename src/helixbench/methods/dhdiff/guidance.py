"""Looking into a trained DH-Diff: what its conditions move, and how well it knows the latents at
each timestep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from helixbench.diffusion.data import Pictures
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.methods.dhdiff.modules import Merging, SemanticScoreMapModification
from helixbench.pictures.raw_mask import cells_to_mask
from helixbench.pictures.transforms import to_tensor
from helixbench.records import parse_cells

CONDITIONS = ("raw_mask", "control", "prompt", "reference")


class Probe:
    """Real defective pictures of the generator half, noised to one timestep, to be denoised once.

    Args:
        method: trained, on its device.
        data: prepared pictures of its category.
        at: timestep as a share of T.
        pairs: pictures at most.
        seed: of their choice and of the noise.
    """

    def __init__(
        self, method: DHDiffMethod, data: Pictures, at: float, pairs: int = 16, seed: int = 0
    ):
        self.method, self.data = method, data
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data.defective), generator=rng)[:pairs].tolist()
        self.chosen = [data.defective[i] for i in order]
        base = method.base
        steps = base.scheduler.config.num_train_timesteps
        self.t = torch.full((len(order),), round(at * (steps - 1)), device=method.device)
        pictures = to_tensor([data.images[i] for i in self.chosen])
        self.x0 = torch.stack(
            [base.encode(pictures), base.encode(self._as_pictures(self._masks(self.chosen)))]
        )
        self.noise = torch.randn((3, *self.x0.shape[1:]), generator=rng).to(method.device)
        self.z = torch.stack(
            [
                base.scheduler.add_noise(x, e, self.t)
                for x, e in zip(self.x0, self.noise[:2], strict=True)
            ]
        )

    @staticmethod
    def _as_pictures(masks: torch.Tensor) -> torch.Tensor:
        return masks.expand(-1, 3, -1, -1)

    def _masks(self, pictures: list[int]) -> torch.Tensor:
        return to_tensor([self.data.masks[i] for i in pictures])

    def _cells(self, i: int) -> np.ndarray:
        return cells_to_mask(*parse_cells(self.data.samples[i].raw_mask), self.data.size)

    def __call__(self, drawn: bool = False, **others: list[int]) -> torch.Tensor:
        """Noise predicted for both streams, (2, n, C, h, w).

        drawn: give the pictures' masks as graphical masks, too; others: a condition's name ->
        pictures to read it off instead of their own.
        """
        method, data = self.method, self.data
        given = {name: self.chosen for name in CONDITIONS} | others
        samples = [data.samples[i] for i in given["prompt"]]
        prompts = [method.prompt(sample.category, sample.defect) for sample in samples]
        words = [sample.defect.replace("_", " ") for sample in samples]
        # A reference is cut by its own picture's cells, so that an exchanged raw mask acts by its
        # own way only.
        crops = [method.reference(data.images[i], self._cells(i)) for i in given["reference"]]
        clean = method.base.encode(to_tensor(crops))
        noised = method.noised_reference(clean, self.noise[0], self.noise[2], self.t)
        reference = method.unet.encode_reference(noised, self.t, method.embed([""] * len(crops)))
        cells = to_tensor([self._cells(i) for i in given["raw_mask"]])
        present = torch.ones(len(cells))
        flow = method.inputs(clean, method.base.encode(self._as_pictures(cells)), self.t, present)
        if drawn:
            flow = method.flow(self._masks(given["control"]), present, prompts, words, flow)
        return torch.stack(
            method.unet(*self.z, self.t, method.embed(prompts), reference, flow)
        ).float()

    def other(self, name: str) -> list[int]:
        """For each picture the next one that a condition differs in: the defect type for `prompt`,
        else the cells.

        The picture itself where there is none.
        """
        samples, defective = self.data.samples, self.data.defective
        key = (lambda i: samples[i].defect) if name == "prompt" else (lambda i: samples[i].raw_mask)
        found = []
        for i in self.chosen:
            place = defective.index(i)
            following = defective[place + 1 :] + defective[:place]
            found.append(next((j for j in following if key(j) != key(i)), i))
        return found


@torch.no_grad()
def guidance(
    method: DHDiffMethod, data: Pictures, *, at: float = 0.5, pairs: int = 16, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """RMS of the change over RMS of the noise prediction, of image and annotation stream, by
    condition.

    Each picture is denoised with its own conditions, and with one of them taken from another
    picture. `control` is its mask as graphical mask, which only these two passes are given. The raw
    mask of a model that does not take it has no entry. Arguments as of `Probe`.
    """
    probe = Probe(method, data, at, pairs, seed)
    plain = {drawn: probe(drawn) for drawn in (False, True)}
    found = {}
    for name in CONDITIONS:
        if name == "raw_mask" and not method.takes_raw_mask:
            continue
        own = plain[name == "control"]
        change = probe(name == "control", **{name: probe.other(name)}) - own
        image, annotation = (_rms(c) / _rms(o) for c, o in zip(change, own, strict=True))
        found[name] = image, annotation
    return found


@torch.no_grad()
def x0_error(
    method: DHDiffMethod, data: Pictures, at: float, *, pairs: int = 16, seed: int = 0
) -> tuple[float, float]:
    """Mean squared error of the clean latents that the noise prediction implies, of image and
    annotation stream.

    Latents have unit variance, so that 1 is what their mean alone would give. Arguments as of
    `Probe`.
    """
    probe = Probe(method, data, at, pairs, seed)
    abar = float(method.base.scheduler.alphas_cumprod[int(probe.t[0])])
    error = (probe() - probe.noise[:2]).square().flatten(1).mean(1) * (1 - abar) / abar
    return float(error[0]), float(error[1])


@torch.no_grad()
def coupling(
    method: DHDiffMethod, data: Pictures, *, at: float = 0.5, pairs: int = 16, seed: int = 0
) -> dict[tuple[str, str], tuple[float, float]]:
    """What each stream hears of the other, layer by layer: (layer key, module) -> image and
    annotation stream.

    The number is the RMS of the change over the RMS of the noise prediction when that layer's
    merging or SSM is cut between the streams. Cut, merging keeps what it gives a stream of itself,
    and SSM mixes a stream's score map with itself. Arguments as of `Probe`.
    """
    probe = Probe(method, data, at, pairs, seed)
    plain, found = probe(), {}
    for layer in method.unet.layers:
        modules = method.unet.helix[layer.key.replace(".", "_")]
        for name, cut in (("merging", _cut_merging), ("ssm", _cut_ssm)):
            if name in modules:
                with cut(modules[name]):
                    change = probe() - plain
                image, annotation = (_rms(c) / _rms(o) for c, o in zip(change, plain, strict=True))
                found[layer.key, name] = image, annotation
    return found


@contextmanager
def _cut_merging(merging: Merging) -> Iterator[None]:
    """Without the weights from one stream to the other."""
    weight = merging.conv.weight
    kept, half = weight.clone(), len(weight) // 2
    weight[:half, half:] = 0
    weight[half:, :half] = 0
    try:
        yield
    finally:
        weight.copy_(kept)


@contextmanager
def _cut_ssm(ssm: SemanticScoreMapModification) -> Iterator[None]:
    """Each stream's map in both places."""
    real = ssm.modify
    ssm.modify = lambda s_i, s_a, flow: (real(s_i, s_i, flow)[0], real(s_a, s_a, flow)[1])
    try:
        yield
    finally:
        del ssm.modify


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())
