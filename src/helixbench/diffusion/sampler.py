"""Sampling that every diffusion method shares: schedulers from diffusers, classifier-free guidance,
noise per pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from helixbench.schema import Sampling


def sampling_scheduler(base: DDPMScheduler, sampling: Sampling):
    """Scheduler of the configured kind with the base model's noise schedule and its timesteps set.

    Trailing timesteps: the first is T - 1, the only one at which pure noise is what the model has
    seen. With the `leading` ones that Stable Diffusion's folder asks for, few steps would start at
    t = 950 and shift the mean.
    """
    kind = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}[sampling.sampler]
    special = (
        {"clip_sample": False, "set_alpha_to_one": True}
        if sampling.sampler == "ddim"
        else {"algorithm_type": "dpmsolver++"}
    )
    scheduler = kind.from_config(base.config, timestep_spacing="trailing", **special)
    scheduler.set_timesteps(sampling.steps)
    return scheduler


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal (n, *shape): row i from generator i alone."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def guided(predict: Callable[[bool], torch.Tensor], scale: float) -> torch.Tensor:
    """Classifier-free guidance: eps_uncond + scale (eps_cond - eps_uncond);
    `predict(conditional)`.
    """
    conditional = predict(True)
    if scale == 1:
        return conditional
    unconditional = predict(False)
    return unconditional + scale * (conditional - unconditional)


def guidance_at(t: int, timesteps: int, sampling: Sampling) -> float:
    """Guidance scale at timestep t of T: 1 (off) outside of the interval (Kynkaanniemi et al.,
    2024).
    """
    low, high = sampling.guidance_interval
    return sampling.guidance if low <= t / (timesteps - 1) <= high else 1.0


@torch.no_grad()
def denoise(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    scheduler,
    start: torch.Tensor | None = None,
    strength: float = 1.0,
) -> torch.Tensor:
    """Run the reverse process from x_T = `noise`, or from `start` noised to `strength` of the steps
    (SDEdit).

    predict(x, t): noise prediction for latents x (n, C, h, w) at timestep t (scalar tensor).
    """
    timesteps = scheduler.timesteps
    x = noise * scheduler.init_noise_sigma
    if start is not None and strength < 1:
        skipped = len(timesteps) - max(1, round(len(timesteps) * strength))
        timesteps = timesteps[skipped:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        x = scheduler.add_noise(start, noise, timesteps[:1].expand(len(noise)))
    for t in timesteps:
        x = scheduler.step(predict(x, t), t, x, return_dict=False)[0]
    return x
