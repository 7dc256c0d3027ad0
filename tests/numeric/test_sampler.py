"""Samplers on a distribution whose noise prediction is known exactly."""

from __future__ import annotations

import pytest
import small
import torch

from helixbench.diffusion.base import build_scheduler
from helixbench.diffusion.sampler import denoise, draw_noise, guided, sampling_scheduler

C = 1.5


def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Noise prediction when every x_0 is the constant C: (x - sqrt(a) C) / sqrt(1 - a)."""
    a = build_scheduler().alphas_cumprod[t]
    return (x - a.sqrt() * C) / (1 - a).sqrt()


@pytest.mark.parametrize("steps", [2, 20, 50])
@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_samples_are_the_distribution_s(sampler, steps, strength):
    scheduler = sampling_scheduler(build_scheduler(), small.sampling(sampler=sampler, steps=steps))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    out = denoise(exact, noise, scheduler, torch.zeros_like(noise), strength)
    torch.testing.assert_close(out, torch.full_like(out, C), rtol=0, atol=2e-3)


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_pure_noise_enters_at_the_last_timestep(sampler):
    for steps in (2, 12, 50, 500):
        assert (
            sampling_scheduler(
                build_scheduler(), small.sampling(sampler=sampler, steps=steps)
            ).timesteps[0]
            == 999
        )


def test_guidance():
    answers = {True: torch.tensor(3.0), False: torch.tensor(1.0)}
    assert guided(answers.__getitem__, 1) == 3 and guided(answers.__getitem__, 2.5) == 6


def test_noise_of_a_pair_comes_from_its_own_generator():
    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = draw_noise(generators((1, 2, 3)), (4, 8, 8))
    assert torch.equal(together[1], draw_noise(generators((2,)), (4, 8, 8))[0])
    assert abs(float(together.std()) - 1) < 0.1
