"""RealNet's SDAS against diffusers' DDPM and its own formulas."""

from __future__ import annotations

import numpy as np
import pytest
import small
import torch
from diffusers import DDPMScheduler
from pydantic import ValidationError

from helixbench.diffusion.base import build_scheduler
from helixbench.diffusion.data import Pictures
from helixbench.methods.realnet import method as realnet
from helixbench.methods.realnet.method import RealNetMethod, perturbed_step
from helixbench.methods.synthetic import Draws


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pictures:
    return Pictures.load(small.prepared(tmp_path_factory.mktemp("data") / "disc"))


def method(**changes) -> RealNetMethod:
    return RealNetMethod.create(small.realnet(**changes), small.base(), 0)


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


@pytest.mark.parametrize("steps", [20, 1000])
def test_without_strength_a_step_is_that_of_diffusers(steps):
    scheduler = DDPMScheduler.from_config(build_scheduler().config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x, predicted = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    alpha = scheduler.alphas_cumprod
    for t in scheduler.timesteps[[0, steps // 2, -2]]:
        reference = scheduler.step(
            predicted, t, x, generator=torch.Generator().manual_seed(0)
        ).prev_sample
        fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        ours = perturbed_step(
            x, predicted, fresh, float(alpha[t]), float(alpha[scheduler.previous_timestep(t)]), 0.0
        )
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)


def test_the_strength_enlarges_the_variance_and_leaves_the_mean():
    x, predicted, fresh = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    step = lambda noise, s: perturbed_step(x, predicted, noise, 0.4, 0.6, s)
    mean = step(torch.zeros_like(fresh), 0.0)
    torch.testing.assert_close(step(torch.zeros_like(fresh), 0.3), mean)
    s = torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    torch.testing.assert_close(
        step(fresh, s) - mean, (1 + s).sqrt() * (step(fresh, 0.0) - mean), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        perturbed_step(x, predicted, fresh, 0.4, 1.0, s), (x - 0.6**0.5 * predicted) / 0.4**0.5
    )


def test_a_perfect_model_gives_its_normal_at_any_strength():
    """A model that always points to one x_0 gives that x_0, whatever s: the last step has no noise
    of its own."""
    learner = method(strength=(0.2, 0.2), sampling_steps=20)
    target = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    alpha = learner.diffusion.alphas_cumprod

    class Out:
        def __init__(self, sample):
            self.sample = sample

    def points(z, t, text):
        a = alpha[t].view(-1, 1, 1, 1)
        return Out((z - a.sqrt() * target) / (1 - a).sqrt())

    learner.base.unet.forward, learner.base.decode = points, lambda latents: latents
    torch.testing.assert_close(
        learner.sources("disc", (32, 32), generators(2)),
        target.expand(2, -1, -1, -1),
        rtol=1e-3,
        atol=1e-3,
    )


def test_each_source_has_a_strength_of_its_own_in_all_steps(monkeypatch):
    seen = []
    monkeypatch.setattr(
        realnet, "perturbed_step", lambda *given: seen.append(given[-1]) or perturbed_step(*given)
    )
    method(strength=(0.1, 0.9)).sources("disc", (32, 32), generators(3))
    assert len(seen) == 6 and all(torch.equal(strength, seen[0]) for strength in seen)
    assert seen[0].shape == (3, 1, 1, 1) and len(seen[0].unique()) == 3
    assert 0.1 <= seen[0].min() and seen[0].max() <= 0.9 and seen[0].max() > 0.3


def test_a_source_depends_on_the_strength():
    def sources(strength: float) -> torch.Tensor:
        learner = method(strength=(strength, strength))
        learner.base.decode = lambda latents: latents
        return learner.sources("disc", (32, 32), generators(2))

    assert torch.equal(sources(0.0), sources(0.0))
    assert (sources(0.5) - sources(0.0)).abs().mean() > 0.1


def inputs_of(unet: torch.nn.Module) -> list[tuple]:
    """The list that the U-Net's arguments go to."""
    seen = []
    unet.register_forward_pre_hook(lambda _, given: seen.append(given))
    return seen


def test_training_and_sampling_have_linear_betas(data, tmp_path):
    """0.0001 to 0.02 in 1,000 steps; `betas: base` is the base model's, and the folder tells."""
    linear = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    base = build_scheduler().alphas_cumprod
    for betas, alpha in ((None, linear), ("base", base)):
        changes = {} if betas is None else {"betas": betas}
        learner = method(optim=small.optim(batch=32), **changes)
        learner.latents = lambda rows, pictures: torch.zeros(len(rows), 4, 8, 8)
        seen = inputs_of(learner.base.unet)
        learner.loss(data, torch.Generator().manual_seed(0))
        x, t = seen[0][:2]
        variance = x.square().mean((1, 2, 3))
        torch.testing.assert_close(variance, 1 - alpha[t], rtol=0.35, atol=0)
        torch.testing.assert_close(learner.scheduler().alphas_cumprod, alpha)
        learner.save(tmp_path / str(betas))
        again = RealNetMethod.load(learner.config, tmp_path / str(betas), small.sampling())
        torch.testing.assert_close(again.diffusion.alphas_cumprod, alpha)
        assert f"{learner.config.betas} betas" in learner.describe()


def test_the_loss_sees_normals_only(data):
    learner, asked = method(optim=small.optim(batch=16)), []
    real = learner.latents
    learner.latents = lambda rows, pictures: asked.extend(rows) or real(rows, pictures)
    terms = learner.loss(data, torch.Generator().manual_seed(0))
    assert set(terms) == {"normal"} and {i for i, _ in asked} <= set(data.normal)
    torch.nn.init.zeros_(learner.base.unet.conv_out.weight)
    torch.nn.init.zeros_(learner.base.unet.conv_out.bias)
    assert float(
        learner.loss(data, torch.Generator().manual_seed(0))["normal"].detach()
    ) == pytest.approx(1, abs=0.1)


def test_a_pair_is_the_normal_outside_and_a_mixture_inside_the_mask():
    y, x = np.ogrid[:64, :64]
    disc = np.hypot(y - 32, x - 32) < 24
    normal = np.where(disc[..., None], 0.3, 0.9).repeat(3, -1).astype(np.float32)
    source = np.zeros_like(normal)
    for seed in range(6):
        image, mask = method().blend(normal, source, Draws(torch.Generator().manual_seed(seed)))
        assert mask.any() and not mask[~disc].any(), "off the object"
        share = 1 - image[mask] / normal[mask]
        assert 0.5 <= share.min() and share.max() <= 1 and np.ptp(share) < 1e-5, (
            "one opacity a pair"
        )
        assert np.array_equal(image[~mask], normal[~mask])


def test_nothing_to_see_is_an_empty_mask_for_the_gate_to_refuse():
    normal = np.full((32, 32, 3), 0.5, np.float32)
    assert not method().blend(normal, normal, Draws(torch.Generator().manual_seed(0)))[1].any()


@pytest.mark.parametrize(
    "wrong", [{"strength": (0.2, 0.1)}, {"strength": (-0.1, 0.1)}, {"opacity": (0.0, 1.0)}]
)
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        small.realnet(**wrong)
