"""STAGE against its own formulas."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import small
import torch
from pydantic import ValidationError

from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.stage.method import StageMethod
from helixbench.methods.stage.modules import MaskGuidanceAdapter, aligned_mask, in_window
from helixbench.methods.textual_inversion import latent_mask
from helixbench.schema import Generate


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pictures:
    return Pictures.load(small.prepared(tmp_path_factory.mktemp("data") / "disc"))


def method(data: Pictures, **changes) -> StageMethod:
    learner = StageMethod.create(small.stage(**changes), small.base(), 0)
    learner.begin(data)
    learner.module.eval()
    return learner


def state(learner: StageMethod, data: Pictures) -> dict:
    plans = make_plan(data, Generate(pairs=1), 0)
    given = conditions(data, plans)
    z = learner.base.encode(given.background)
    return {
        "z_clean": z,
        "mask": latent_mask(given.donor_mask, learner.base.latent_factor),
        "text": learner.embed(given.defects).detach(),
        "generators": [torch.Generator().manual_seed(plan.seed) for plan in plans],
    }


class Shift(torch.nn.Module):
    """An adapter that adds one number to the prediction, and remembers the masks that it was
    given."""

    def __init__(self, value: float):
        super().__init__()
        self.value, self.masks = value, []

    def forward(self, noise, mask):
        self.masks.append(mask)
        return noise + self.value


def watched(learner: StageMethod) -> list[torch.Tensor]:
    """The U-Net predicts zeros; returns the list that its inputs go to."""
    seen = []

    def forward(sample, t, text):
        seen.append(sample)
        return SimpleNamespace(sample=torch.zeros_like(sample))

    learner.base.unet.forward = forward
    return seen


def test_alignment_is_all_ones_at_the_start_and_the_mask_from_200_down():
    m = (torch.rand(3, 1, 8, 8) > 0.7).float()
    assert torch.equal(aligned_mask(m, torch.tensor(1000), 200, 1000), torch.ones_like(m))
    for t in (200, 100, 0):
        assert torch.equal(aligned_mask(m, torch.tensor(t), 200, 1000), m)
    torch.testing.assert_close(
        aligned_mask(m, torch.tensor([600, 200, 1000]), 200, 1000)[0], (m + 0.5 * (1 - m))[0]
    )


def test_windows_hold_their_ends():
    windows = ((700, 800), (300, 400))
    assert [t for t in (299, 300, 400, 401, 699, 700, 800, 801) if in_window(t, windows)] == [
        300,
        400,
        700,
        800,
    ]
    with pytest.raises(ValidationError, match="window"):
        small.stage(windows=((800, 700),))


def test_no_pixel_of_a_mask_is_lost_in_the_latents():
    m = torch.zeros(1, 1, 16, 16)
    m[0, 0, 5, 9] = 1
    assert latent_mask(m, 4).nonzero().tolist() == [[0, 0, 1, 2]]


def test_the_adapter_sees_the_mask_and_has_the_paper_s_layers():
    adapter = MaskGuidanceAdapter(4).eval()
    noise, m = torch.randn(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    assert (adapter(noise, m) - adapter(noise, m + 1)).abs().max() > 1e-4
    convolutions = [layer for layer in adapter.layers if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == [
        (8, 64, 3),
        (64, 256, 3),
        (256, 512, 3),
        (512, 256, 3),
        (256, 64, 3),
        (64, 4, 1),
    ]


def test_the_loss_ignores_what_lies_outside_the_aligned_mask(data):
    """A prediction that is right inside M_t and wrong outside costs nothing at late steps, and the
    anomaly alone costs everywhere."""
    learner, seen = method(data), {}

    class Oracle(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, noise, mask):
            seen[self.name] = mask
            return torch.zeros_like(noise)

    learner._module["image"], learner._module["part"] = Oracle("image"), Oracle("part")
    terms = learner.loss(data, torch.Generator().manual_seed(0))
    assert abs(float(terms["part"]) - 1) < 0.2, (
        "zero as the prediction costs the variance of the noise"
    )
    assert float(terms["image"]) == pytest.approx(float(seen["image"].square().mean()), rel=0.25)
    assert (
        set(seen["part"].unique().tolist()) == {0.0, 1.0} and (seen["image"] >= seen["part"]).all()
    )


def test_the_loss_is_that_of_the_paper(data):
    """|A_image(eps(z_t)) M_t - eps M_t|^2 and |A_part(eps((z m)_t)) - eps'|^2, with noises of their
    own."""
    learner = method(data)
    learner._module["image"], learner._module["part"] = Shift(0.25), Shift(-0.5)
    seen, rng = watched(learner), torch.Generator().manual_seed(0)
    terms = learner.loss(data, torch.Generator().manual_seed(0))
    batch = learner.draw(data, rng)
    noise = torch.randn((3, *batch.z.shape), generator=rng)
    t = torch.randint(1000, (len(batch.z),), generator=rng)
    m = latent_mask(batch.masks, learner.base.latent_factor)
    abar = learner.base.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    whole, part = seen[0].chunk(2)
    torch.testing.assert_close(
        whole, abar.sqrt() * batch.z + (1 - abar).sqrt() * noise[0], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        part, abar.sqrt() * m * batch.z + (1 - abar).sqrt() * noise[1], rtol=1e-4, atol=1e-5
    )
    outside = (m == 0).expand_as(part)
    torch.testing.assert_close(
        part[outside], ((1 - abar).sqrt() * noise[1])[outside], rtol=1e-4, atol=1e-5
    )
    aligned = aligned_mask(m, t, 200, 1000)
    torch.testing.assert_close(terms["image"], ((0.25 - noise[0]) * aligned).square().mean())
    torch.testing.assert_close(terms["part"], (-0.5 - noise[1]).square().mean())
    assert torch.equal(learner._module["image"].masks[0], aligned) and torch.equal(
        learner._module["part"].masks[0], m
    )


@torch.no_grad()
@pytest.mark.parametrize(("t", "leader"), [(599, "image"), (749, "part")])
def test_a_step_in_closed_form(data, t, leader):
    """From two different states: the leader's is denoised with its own adapter, M and background,
    and both go on from the result.

    At t = 599 M lies halfway between m and 1; t = 749 is in a window, where a leads and M is m.
    """
    learner, adapters = method(data, sampling_steps=20), {"image": Shift(0.25), "part": Shift(-0.5)}
    for name, adapter in adapters.items():
        learner._module[name] = adapter
    seen, scheduler, given = watched(learner), learner.scheduler(), state(learner, data)
    z, m = given["z_clean"], given["mask"]
    states = dict(
        zip(
            ("image", "part"),
            torch.randn((2, *z.shape), generator=torch.Generator().manual_seed(7)),
            strict=True,
        )
    )
    copies = [torch.Generator().set_state(g.get_state()) for g in given["generators"]]
    new_x, new_a = learner.step(
        states["image"], states["part"], torch.tensor(t), scheduler, **given
    )
    lead, kept, outside = (
        (states["image"], m + 399 / 800 * (1 - m), z)
        if leader == "image"
        else (states["part"], m, torch.zeros_like(z))
    )
    assert len(seen) == 1 and torch.equal(seen[0], lead)
    assert {name: len(adapter.masks) for name, adapter in adapters.items()} == {
        "image": 0,
        "part": 0,
        leader: 1,
    }
    torch.testing.assert_close(adapters[leader].masks[0], kept)
    drawn = torch.stack([torch.randn(z.shape[1:], generator=g) for g in copies])
    fresh = torch.stack([torch.randn((2, *z.shape[1:]), generator=g) for g in copies])
    abar, before = scheduler.alphas_cumprod[[t, t - 50]]
    beta = 1 - abar / before
    x_0 = (
        kept * (lead - (1 - abar).sqrt() * adapters[leader].value) / abar.sqrt()
        + (1 - kept) * outside
    )
    mean = (
        before.sqrt() * beta / (1 - abar) * x_0
        + (1 - beta).sqrt() * (1 - before) / (1 - abar) * lead
    )
    new = mean + ((1 - before) / (1 - abar) * beta).sqrt() * drawn
    renoised, empty = (
        before.sqrt() * z + (1 - before).sqrt() * fresh[:, 0],
        (1 - before).sqrt() * fresh[:, 1],
    )
    torch.testing.assert_close(new_x, kept * new + (1 - kept) * renoised, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new_a, m * new + (1 - m) * empty, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("t", [99, 399])
def test_outside_the_mask_a_step_gives_the_clean_latent_noised_again(data, t):
    """For M = m: late steps, and steps led by the anomaly-only branch."""
    learner = method(data)
    given, scheduler = state(learner, data), learner.scheduler()
    x = torch.randn_like(given["z_clean"])
    copies = [torch.Generator().set_state(g.get_state()) for g in given["generators"]]
    new_x, new_a = learner.step(x, x, torch.tensor(t), scheduler, **given)
    for i, g in enumerate(copies):
        torch.randn(x.shape[1:], generator=g)  # of the posterior
        fresh = torch.randn((2, *x.shape[1:]), generator=g)
        following = int(scheduler.previous_timestep(torch.tensor(t)))
        alpha = scheduler.alphas_cumprod[following] if following >= 0 else torch.tensor(1.0)
        outside = (given["mask"][i] == 0).expand_as(x[i])
        expected = alpha.sqrt() * given["z_clean"][i] + (1 - alpha).sqrt() * (
            fresh[0] if following >= 0 else 0
        )
        torch.testing.assert_close(new_x[i][outside], expected[outside], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            new_a[i][outside], ((1 - alpha).sqrt() * fresh[1])[outside], rtol=1e-4, atol=1e-5
        )
        assert torch.equal(new_x[i][~outside], new_a[i][~outside])


@torch.no_grad()
def test_a_step_without_a_mask_limit_is_the_ddpm_posterior(data):
    """M = 1 at t = T: x_{t-1} ~ N(mu(x_t, x_0), posterior variance), in closed form."""
    learner = method(data, sampling_steps=1000, mask_end=0, windows=())
    given, scheduler, t = state(learner, data), learner.scheduler(), torch.tensor(999)
    given["mask"] = torch.ones_like(given["mask"])
    x = torch.randn_like(given["z_clean"])
    copies = [torch.Generator().set_state(g.get_state()) for g in given["generators"]]
    new, _ = learner.step(x, x, t, scheduler, **given)
    noise = learner._module["image"](
        learner.base.unet(x, t.expand(2), given["text"]).sample, given["mask"]
    )
    abar, before, beta = (
        scheduler.alphas_cumprod[999],
        scheduler.alphas_cumprod[998],
        scheduler.betas[999],
    )
    x_0 = (x - (1 - abar).sqrt() * noise) / abar.sqrt()
    mean = (
        before.sqrt() * beta / (1 - abar) * x_0 + (1 - beta).sqrt() * (1 - before) / (1 - abar) * x
    )
    drawn = torch.stack([torch.randn(x.shape[1:], generator=g) for g in copies])
    torch.testing.assert_close(
        new, mean + ((1 - before) / (1 - abar) * beta).sqrt() * drawn, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("steps", [7, 10])
def test_the_final_background_is_the_clean_picture_s_and_the_masks_are_the_plan_s(data, steps):
    learner = method(data, sampling_steps=steps)
    plans = make_plan(data, Generate(pairs=2), 0)
    given = conditions(data, plans)
    learner.base.decode = lambda latents: (
        latents
    )  # what an untrained autoencoder makes of it says nothing
    final, masks = learner.sample(
        given, [torch.Generator().manual_seed(plan.seed) for plan in plans]
    )
    assert torch.equal(masks, given.donor_mask)
    inside = latent_mask(masks, learner.base.latent_factor).bool()
    change = (final - learner.base.encode(given.background)).abs().mean(1, keepdim=True)
    assert change[~inside].max() < 1e-5 and change[inside].mean() > 0.1


@torch.no_grad()
def test_what_a_perfect_prediction_names_ends_up_inside_the_mask(data):
    """If the noise always points to one x_0, the pair is that x_0 inside and the clean picture
    outside, through all windows."""
    learner = method(data, sampling_steps=20)
    plans = make_plan(data, Generate(pairs=2), 0)
    given = conditions(data, plans)
    target, abar = learner.base.encode(given.donor), learner.base.scheduler.alphas_cumprod

    def points_to_target(z, t, text):
        a = abar[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(z - a.sqrt() * target) / (1 - a).sqrt())

    class Unchanged(torch.nn.Module):
        def forward(self, noise, mask):
            return noise

    learner.base.unet.forward, learner.base.decode = points_to_target, lambda latents: latents
    learner._module["image"], learner._module["part"] = Unchanged(), Unchanged()
    final, _ = learner.sample(given, [torch.Generator().manual_seed(plan.seed) for plan in plans])
    mask = latent_mask(given.donor_mask, learner.base.latent_factor)
    torch.testing.assert_close(
        final,
        mask * target + (1 - mask) * learner.base.encode(given.background),
        rtol=1e-4,
        atol=1e-4,
    )


def test_learned_words_take_the_place_of_the_star(data):
    learner = method(data)
    words, base = learner.module["words"], learner.base
    assert words.vectors.shape == (2, 4, 32) and words.defects == ["hole", "scratch"]
    before = learner.embed(["hole", "scratch"])
    tokens = base.tokenizer("hole").input_ids
    written = base.embed(["Anomaly hole hole hole hole"])[0]
    assert len(tokens) == 3
    torch.testing.assert_close(
        before[0], written, rtol=1e-4, atol=1e-5
    )  # they start as the word itself, four times
    with torch.no_grad():
        words.vectors[0] += torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    after = learner.embed(["hole", "scratch"])
    assert (after[0] - before[0]).abs().max() > 1e-2 and torch.equal(after[1], before[1])
    assert torch.equal(base.embed(["hole"]), base.embed(["hole"]))
    assert learner.prompt("disc", "hole") == "Anomaly <hole>"
    with pytest.raises(UserError, match="dent: this model was trained on hole, scratch"):
        learner.embed(["dent"])


@pytest.mark.parametrize("trainable", ["adapters", "all"])
def test_what_is_trained(data, trainable):
    learner = method(data, trainable=trainable)
    terms = learner.loss(data, torch.Generator().manual_seed(0))
    sum(terms.values()).backward()
    trained = {
        name.split(".")[0]
        for name, p in learner.module.named_parameters()
        if p.requires_grad and p.grad.abs().max() > 0
    }
    assert trained == {"words", "image", "part"} | ({"unet"} if trainable == "all" else set())
    assert set(terms) == {"image", "part"} | ({"base"} if trainable == "all" else set())


def test_a_model_without_its_settings_is_one_line(tmp_path: Path):
    small.base().save(tmp_path)
    with pytest.raises(UserError, match="stage.json"):
        StageMethod.load(small.stage(), tmp_path, small.sampling())
