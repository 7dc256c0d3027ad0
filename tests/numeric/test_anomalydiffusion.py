"""AnomalyDiffusion against its own formulas."""

from __future__ import annotations

import pytest
import small
import torch

from helixbench.diffusion.data import Pictures
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.anomalydiffusion import AnomalyDiffusionMethod, SpatialEncoder
from helixbench.methods.inversion import latent_mask
from helixbench.schema import Generate


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
    other_place, other_word = learner.embed(["hole"], masks[1:])[0], learner.embed(["scratch"], masks[:1])[0]
    torch.testing.assert_close(other_place, text[1])
    assert (text[0] - text[1]).abs().max() > 1e-2 and (text[0] - other_word).abs().max() > 1e-2
    torch.testing.assert_close(text[0, 0], other_word[0])  # BOS comes before both


def test_the_loss_is_the_error_inside_the_mask(data):
    """A prediction of zero costs the squared noise inside the mask, as a mean over all positions."""
    learner = method(data, optim=small.optim(batch=64))
    learner.base.unet.conv_out.requires_grad_(False)
    torch.nn.init.zeros_(learner.base.unet.conv_out.weight)
    torch.nn.init.zeros_(learner.base.unet.conv_out.bias)
    loss = float(learner.loss(data, torch.Generator().manual_seed(0))["defect"].detach())
    area = float(latent_mask(learner.draw(data, torch.Generator().manual_seed(0)).masks, 4).mean())
    assert loss == pytest.approx(area, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_outside_the_mask_is_the_clean_picture_and_masks_are_the_plan_s(data, eta):
    learner = method(data, eta=eta)
    plans = make_plan(data, Generate(pairs=2), 0)
    given = conditions(data, plans)
    learner.base.decode = lambda latents: latents
    final, masks = learner.sample(given, [torch.Generator().manual_seed(plan.seed) for plan in plans])
    assert torch.equal(masks, given.donor_mask)
    inside = latent_mask(masks, 4).bool()
    change = (final - learner.base.encode(given.background)).abs().mean(1, keepdim=True)
    assert change[~inside].max() < 1e-5 and change[inside].mean() > 0.1


@pytest.mark.parametrize("trainable", ["adapters", "all"])
def test_what_is_trained(data, trainable):
    learner = method(data, trainable=trainable)
    terms = learner.loss(data, torch.Generator().manual_seed(0))
    sum(terms.values()).backward()
    trained = {name.split(".")[0] for name, p in learner.module.named_parameters() if p.requires_grad and p.grad.abs().max() > 0}
    assert trained == {"words", "place"} | ({"unet"} if trainable == "all" else set())
