"""AnomalyDiffusion against its own formulas."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import small
import torch
from diffusers.models.attention_processor import Attention

from helixbench.diffusion import base as base_model
from helixbench.diffusion.data import Pictures
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.anomalydiffusion import method as anomalydiffusion
from helixbench.methods.anomalydiffusion.config import AnomalyDiffusion
from helixbench.methods.anomalydiffusion.method import (
    AnomalyDiffusionMethod,
    Reweighting,
    SpatialEncoder,
    attention_weights,
    widened,
)
from helixbench.methods.textual_inversion import embed_vectors, latent_mask, templates
from helixbench.schema import Generate, TextEncoder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pictures:
    return Pictures.load(small.prepared(tmp_path_factory.mktemp("data") / "disc"))


def method(data: Pictures, **changes) -> AnomalyDiffusionMethod:
    learner = AnomalyDiffusionMethod.create(small.anomalydiffusion(**changes), small.base(), 0)
    learner.begin(data)
    return learner


def test_the_encoder_tells_places_apart_once_trained():
    encoder, masks = SpatialEncoder(4, 32), torch.zeros(2, 1, 32, 32)
    masks[0, 0, 4:8, 4:8] = masks[1, 0, 20:24, 20:24] = 1
    assert torch.equal(encoder(masks), torch.zeros(2, 4, 32)), "it starts as nothing"
    small.randomise(encoder.vectors)
    out = encoder(masks)
    assert (out[0] - out[1]).abs().max() > 1e-2
    torch.testing.assert_close(encoder(masks[1:])[0], out[1], rtol=1e-3, atol=1e-4)


def test_word_and_place_are_both_in_the_text(data):
    learner = method(data)
    small.randomise(learner.module["place"].vectors)
    masks = (torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    text = learner.embed(["hole", "hole"], masks)
    other_place, other_word = (
        learner.embed(["hole"], masks[1:])[0],
        learner.embed(["scratch"], masks[:1])[0],
    )
    torch.testing.assert_close(other_place, text[1])
    assert (text[0] - text[1]).abs().max() > 1e-2 and (text[0] - other_word).abs().max() > 1e-2
    torch.testing.assert_close(text[0, 0], other_word[0])  # BOS comes before both


def test_the_loss_is_the_error_inside_the_mask(data):
    """A prediction of zero costs the squared noise inside the mask, as a mean over all
    positions."""
    learner = method(data, optim=small.optim(batch=64))
    learner.base.unet.conv_out.requires_grad_(False)
    torch.nn.init.zeros_(learner.base.unet.conv_out.weight)
    torch.nn.init.zeros_(learner.base.unet.conv_out.bias)
    loss = float(learner.loss(data, torch.Generator().manual_seed(0))["defect"].detach())
    area = float(latent_mask(learner.draw(data, torch.Generator().manual_seed(0)).masks, 4).mean())
    assert loss == pytest.approx(area, rel=0.1)


def watched(learner: AnomalyDiffusionMethod, value: float = 0.0) -> list[tuple]:
    """The U-Net predicts one number; returns the list that (latents, t, text) go to."""
    seen = []

    def forward(x, t, text):
        seen.append((x, int(t[0]), text))
        return SimpleNamespace(sample=torch.full_like(x, value))

    learner.base.unet.forward = forward
    return seen


def noised(learner, z: torch.Tensor, fresh: torch.Tensor, t: int) -> torch.Tensor:
    """q(z, t), written out."""
    alpha = learner.base.scheduler.alphas_cumprod[t]
    return alpha.sqrt() * z + (1 - alpha).sqrt() * fresh


@torch.no_grad()
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_clean_picture_is_put_in_before_each_step_and_not_after_the_last(data, eta):
    """Outside the mask the U-Net sees q(z, t); what leaves its last step is not mended."""
    learner = method(data, eta=eta, masks="plan", sampling_steps=5)
    plans = make_plan(data, Generate(pairs=2), 0)
    given = conditions(data, plans)
    learner.base.decode, seen = lambda latents: latents, watched(learner)
    final, masks = learner.sample(
        given, [torch.Generator().manual_seed(plan.seed) for plan in plans]
    )
    assert torch.equal(masks, given.donor_mask)
    z = learner.base.encode(given.background)
    outside = (latent_mask(masks, 4) == 0).expand_as(z)
    rngs = [torch.Generator().manual_seed(plan.seed) for plan in plans]
    for rng in rngs:
        torch.randint(1, (), generator=rng)  # the prompt
        torch.randn(z.shape[1:], generator=rng)  # x_T
    assert [t for _, t, _ in seen] == [999, 799, 599, 399, 199]
    for x, t, _ in seen:
        fresh = torch.stack([torch.randn((2, *z.shape[1:]), generator=rng) for rng in rngs])
        clean = noised(learner, z, fresh[:, 0], t)
        torch.testing.assert_close(x[outside], clean[outside], rtol=1e-4, atol=1e-5)
    # With a prediction of zeros, the last step's output is x / sqrt(alpha_t), everywhere.
    x, t, _ = seen[-1]
    expected = x / learner.base.scheduler.alphas_cumprod[t].sqrt()
    torch.testing.assert_close(final, expected, rtol=1e-4, atol=1e-5)
    assert (final - z)[outside].abs().max() > 1e-2


@torch.no_grad()
def test_masks_are_pictures_of_their_own_word(data):
    """What the model draws for the masks' word, beyond the threshold, is the mask; the other word
    has no say in it."""
    learner, asked = method(data, mask_guidance=1.0), []
    drawing = torch.zeros(1, 3, 32, 32)
    drawing[:, :, 4:16, 8:20] = 0.91  # 0.82 of the decoder's [-1, 1], of which 0.8 is the limit
    drawing[:, :, 18:30, 2:14] = 0.89
    drawing[:, 0, 20:30, 20:30] = 1  # bright in one of three channels
    drawing[:, :, 25, 2] = 1  # a speck
    learner.base.decode = lambda latents: drawing.expand(len(latents), -1, -1, -1)
    real = learner.base.unet.forward
    learner.base.unet.forward = lambda x, t, text: asked.append(text) or real(x, t, text)
    rng = [torch.Generator().manual_seed(i) for i in range(2)]
    masks = learner.draw_masks(["hole", "scratch"], 32, rng)
    assert masks.shape == (2, 1, 32, 32) and torch.equal(
        masks,
        (drawing.amin(1, keepdim=True) > 0.9).float().expand(2, -1, -1, -1) * block(4, 16, 8, 20),
    )
    assert len(asked) == 4 and all(
        torch.equal(text, learner.embed_masks(["hole", "scratch"])) for text in asked
    )
    before = asked[0].clone()
    learner.module["words"].vectors.add_(torch.randn(4, 32))
    assert torch.equal(learner.embed_masks(["hole", "scratch"]), before)
    learner.module["mask_words"].vectors[0].add_(torch.randn(3, 32))
    after = learner.embed_masks(["hole", "scratch"])
    assert (after[0] - before[0]).abs().max() > 1e-3 and torch.equal(after[1], before[1])


def block(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., top:bottom, left:right] = 1
    return mask


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_masks_are_drawn_with_guidance_against_the_empty_prompt(data, guidance):
    """eps = u + 5 (c - u) in each step of DDIM, written out; 5 is the default."""
    changes = {} if guidance == 5 else {"mask_guidance": guidance}
    learner, base = method(data, eta=0.0, **changes), small.base()
    text, empty = learner.embed_masks(["hole"]), base.embed([""])
    learner.base.decode = lambda latents: decoded.append(latents) or latents[:, :3]
    seen, decoded, values = [], [], {True: 0.3, False: 0.1}

    def forward(x, t, given):
        seen.append((int(t[0]), given))
        return SimpleNamespace(sample=torch.full_like(x, values[torch.equal(given, text)]))

    learner.base.unet.forward = forward
    learner.draw_masks(["hole"], 32, [torch.Generator().manual_seed(0)])
    calls = 2 if guidance > 1 else 1
    assert len(seen) == 4 * calls
    for number, (_, given) in enumerate(seen):
        conditional = number % calls == 0
        torch.testing.assert_close(given, text if conditional else empty)
    rng = torch.Generator().manual_seed(0)
    torch.randint(1, (), generator=rng)  # the prompt
    x, alpha = torch.randn((1, 4, 8, 8), generator=rng), base.scheduler.alphas_cumprod
    noise = 0.1 + guidance * (0.3 - 0.1)
    times = [t for t, _ in seen[::calls]]
    for t, after in zip(times, [*times[1:], None], strict=True):
        before = torch.tensor(1.0) if after is None else alpha[after]
        x_0 = (x - (1 - alpha[t]).sqrt() * noise) / alpha[t].sqrt()
        x = before.sqrt() * x_0 + (1 - before).sqrt() * noise
    torch.testing.assert_close(decoded[0], x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_generated_mask_is_where_the_picture_is_new(data):
    learner = method(data)
    plans = make_plan(data, Generate(pairs=1), 0)
    given = conditions(data, plans)
    drawn = block(8, 20, 12, 24).expand(2, -1, -1, -1)
    learner.draw_masks = lambda defects, side, generators: drawn
    learner.base.decode = lambda latents: latents

    def draw(picture: torch.Tensor) -> torch.Tensor:
        seen = watched(learner)
        rngs = [torch.Generator().manual_seed(plan.seed) for plan in plans]
        assert torch.equal(learner.sample(replace(given, background=picture), rngs)[1], drawn)
        return torch.stack([x for x, _, _ in seen])

    inside = (latent_mask(drawn, 4) > 0).expand(2, 4, 8, 8)
    change = (draw(given.background) - draw(1 - given.background)).abs()
    assert change[:, inside].max() == 0 and change[-1][~inside].mean() > 0.01


def test_templates_are_80_phrases_with_one_star():
    known = templates("templates")
    assert len(set(known)) == 80 and all(phrase.count("*") == 1 for phrase in known)
    assert "a photo of a *" in known and templates("Anomaly *") == ("Anomaly *",)
    assert AnomalyDiffusion.model_fields["prompt"].default == "templates"
    assert AnomalyDiffusion.model_fields["mask_prompt"].default == "templates"


def test_every_pair_and_every_picture_has_a_template_of_its_own(data, monkeypatch):
    base = base_model.build(small.scratch(text_encoder=long_text()), 32, ["hole", "scratch"], 0)
    options = small.anomalydiffusion(prompt="templates", mask_prompt="templates")
    learner, asked = AnomalyDiffusionMethod.create(options, base, 0), []
    learner.begin(data)

    def embed(base, prompt, vectors):
        asked.append(prompt)
        return embed_vectors(base, prompt, vectors)

    monkeypatch.setattr(anomalydiffusion, "embed_vectors", embed)
    learner.loss(data, torch.Generator().manual_seed(0))
    assert len(asked) == 8 and len(set(asked)) > 4, "of four pictures and their masks"
    asked.clear()
    plans = make_plan(data, Generate(pairs=4), 0)
    given = conditions(data, plans)
    for seed in range(2):
        learner.sample(given, [torch.Generator().manual_seed(seed + i) for i in range(8)])
    assert set(asked) <= set(templates("templates")) and len(set(asked)) > 8
    assert "80 prompt templates" in learner.describe()
    assert learner.prompt("disc", "hole") == "... <hole>"


def long_text() -> TextEncoder:
    return TextEncoder(width=32, layers=1, heads=2, max_tokens=24)


@pytest.mark.parametrize(("t", "radius"), [(999, 8), (525, 5), (150, 2), (25, 1), (24, 0)])
def test_masks_are_widened_by_a_square_at_early_steps(t, radius):
    """By floor(8 (t + 100) / 1000) positions of 32, in proportion for other sizes."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[0, 0, 12, 20] = 1
    wide = widened(mask, t)
    assert wide[0, 0, 12 - radius : 13 + radius, 20 - radius : 21 + radius].all()
    assert wide.sum() == (2 * radius + 1) ** 2
    small_mask = torch.zeros(1, 1, 8, 8)
    small_mask[0, 0, 4, 4] = 1
    assert widened(small_mask, t).sum() == (2 * (2 * (t > 900) + (400 < t < 900)) + 1) ** 2


def test_weights_favour_what_does_not_show_yet():
    """In closed form: in proportion to 1 / difference^2 with mean 1 over the mask, clipped; 1
    elsewhere."""
    z, x_0, mask = torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[0, 0, 0] = 1
    x_0[0, :, 0] = torch.tensor([1.0, 2.0, 2.0, 2.0])
    weights = attention_weights(x_0, z, mask, (0.1, 10.0))
    expected = 4 * torch.tensor([1.0, 0.25, 0.25, 0.25]) / 1.75
    torch.testing.assert_close(weights[0, 0, 0], expected)
    assert (weights[0, 0, 1:] == 1).all() and (weights[1] == 1).all(), (
        "no mask, or no difference: nothing to weigh"
    )
    assert attention_weights(x_0, z, mask, (1.0, 1.5))[0, 0, 0].tolist() == [1.5, 1.0, 1.0, 1.0]


@torch.no_grad()
def test_weights_multiply_the_scores_of_the_learned_tokens_only():
    """Against attention written out, and weights of one against diffusers' own.

    The learned tokens start at another place in each text, as the prompts differ.
    """
    layer = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
    x, text = torch.randn(2, 16, 8), torch.randn(2, 5, 6)
    plain, ours = layer(x, text), Reweighting(2)
    layer.set_processor(ours)
    torch.testing.assert_close(layer(x, text), plain)
    with ours.by(torch.ones(2, 1, 4, 4), [1, 3]):
        torch.testing.assert_close(layer(x, text), plain)
    weights = 1 + torch.rand(2, 1, 4, 4)
    heads = lambda y: y.view(2, -1, 2, 4).transpose(1, 2)
    scores = heads(layer.to_q(x)) @ heads(layer.to_k(text)).transpose(-1, -2) / 2
    factor = torch.ones(2, 1, 16, 5)
    for i, first in enumerate((1, 3)):
        factor[i, ..., first : first + 2] = weights[i].flatten(1)[..., None]
    out = (scores * factor).softmax(-1) @ heads(layer.to_v(text))
    out = out.transpose(1, 2).reshape(2, 16, 8)
    with ours.by(weights, [1, 3]):
        torch.testing.assert_close(layer(x, text), layer.to_out[0](out), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x, text), plain)


@torch.no_grad()
def test_reweighting_and_widening_are_one_switch_that_is_off(data, monkeypatch):
    plans = make_plan(data, Generate(pairs=1), 0)
    given, widths = conditions(data, plans), []
    wide = lambda mask, t: widths.append(t) or widened(mask, t)
    monkeypatch.setattr(anomalydiffusion, "widened", wide)

    def draw(**changes):
        learner = method(data, masks="plan", **changes)
        small.randomise(learner.base.unet, 0.1)
        learner.base.decode = lambda latents: latents
        rngs = [torch.Generator().manual_seed(plan.seed) for plan in plans]
        return learner.sample(given, rngs)[0], learner.describe()

    plain, text = draw()
    assert not widths and "attention" not in text
    other, text = draw(reweight=(1.0, 1.5))
    assert len(widths) == 6 and widths[0] == 999 and "attention x 1 to 1.5 in widened masks" in text
    assert (other - plain).abs().max() > 1e-4
    assert torch.equal(draw(reweight=None)[0], plain)


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
    assert trained == {"words", "mask_words", "place"} | ({"unet"} if trainable == "all" else set())
