"""How far each condition guides a trained DH-Diff: what exchanging it between pairs does to the noise prediction."""

from __future__ import annotations

import torch

from helixbench.diffusion.data import Pictures, to_tensor
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.prepare.raw_mask import cells_to_mask
from helixbench.records import parse_cells

CONDITIONS = ("raw_mask", "control", "prompt", "reference")


@torch.no_grad()
def guidance(method: DHDiffMethod, data: Pictures, *, at: float = 0.5, pairs: int = 16, seed: int = 0) -> dict[str, tuple[float, float]]:
    """RMS of the change over RMS of the prediction, of image and annotation stream, by condition.

    Real defective pictures, noised to `at` of T, are denoised once with their own conditions and once with one of them
    taken from another picture: of another defect type for the prompt, of other cells for the rest. `control` is the
    picture's mask as graphical mask, which only these two passes are given. A condition that the model does not take
    has no entry.

    Args:
        method: trained, on its device.
        data: prepared pictures of its category.
        at: timestep as a share of T.
        pairs: pictures at most, drawn from the generator half.
        seed: of their choice and of the noise.
    """
    rng = torch.Generator().manual_seed(seed)
    chosen = [data.defective[i] for i in torch.randperm(len(data.defective), generator=rng)[:pairs].tolist()]
    others = {name: [_other(data, i, by_type=name == "prompt") for i in chosen] for name in CONDITIONS}
    base, config = method.base, method.config
    t = torch.full((len(chosen),), round(at * base.scheduler.config.num_train_timesteps), device=method.device)
    z0 = base.encode(to_tensor([data.images[i] for i in chosen]))
    a0 = base.encode(_masks(data, chosen).expand(-1, 3, -1, -1))
    noise = torch.randn((3, *z0.shape), generator=rng).to(method.device)
    z, a = (base.scheduler.add_noise(x, e, t) for x, e in zip((z0, a0), noise[:2], strict=True))
    present = torch.ones(len(chosen))

    def predict(given: dict[str, list[int]], control: bool) -> torch.Tensor:
        """Noise of both streams (2, n, C, h, w), each condition read off the pictures that `given` names."""
        samples = [data.samples[i] for i in given["prompt"]]
        prompts = [method.prompt(sample.category, sample.defect) for sample in samples]
        words = [sample.defect.replace("_", " ") for sample in samples]
        # The reference is cut by its own picture's cells, so that the raw mask acts by its own way only.
        crops = [method.reference(data.images[i], _cells(data, i)) for i in given["reference"]]
        clean = base.encode(to_tensor(crops))
        latent = method.noised_reference(clean, noise[0], noise[2], t)
        reference = method.unet.encode_reference(latent, t, method.embed([""] * len(chosen)))
        coarse = base.encode(to_tensor([_cells(data, i) for i in given["raw_mask"]]).expand(-1, 3, -1, -1))
        flow = method.inputs(clean, coarse, t, present)
        if control:
            flow = method.flow(_masks(data, given["control"]), present, prompts, words, flow)
        return torch.stack(method.unet(z, a, t, method.embed(prompts), reference, flow))

    own = {name: chosen for name in CONDITIONS}
    plain = {control: predict(own, control) for control in (False, True)}
    found = {}
    for name in CONDITIONS:
        if name == "raw_mask" and config.annotation_input == "none":
            continue
        control = name == "control"
        change = predict(own | {name: others[name]}, control) - plain[control]
        moved = change.flatten(1).square().mean(1).sqrt() / plain[control].flatten(1).square().mean(1).sqrt()
        found[name] = (float(moved[0]), float(moved[1]))
    return found


def _cells(data: Pictures, i: int):
    return cells_to_mask(*parse_cells(data.samples[i].raw_mask), data.size)


def _masks(data: Pictures, chosen: list[int]) -> torch.Tensor:
    return to_tensor([data.masks[i] for i in chosen])


def _other(data: Pictures, i: int, by_type: bool) -> int:
    """The next picture of another defect type, or of other cells; the picture itself where there is none."""
    what = (lambda j: data.samples[j].defect) if by_type else (lambda j: data.samples[j].raw_mask)
    start = data.defective.index(i)
    order = data.defective[start + 1 :] + data.defective[:start]
    return next((j for j in order if what(j) != what(i)), i)
