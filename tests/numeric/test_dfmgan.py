"""DFMGAN against StyleGAN2's formulas and its own."""

from __future__ import annotations

import math

import pytest
import small
import torch
from torch import nn
from torch.nn import functional as F

from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.dfmgan import augment as ada
from helixbench.methods.dfmgan.method import (
    TERMS,
    DFMGANMethod,
    adapt,
    frozen,
    gradient_penalty,
    mode_seeking,
    path_lengths,
)
from helixbench.methods.dfmgan.networks import (
    Generator,
    Mapping,
    ModulatedConvolution,
    StyledLayer,
    activate,
    down,
    sides,
    up,
    with_deviation,
)
from helixbench.schema import Generate

RNG = torch.Generator


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pictures:
    return Pictures.load(small.prepared(tmp_path_factory.mktemp("data") / "disc"))


def method(data: Pictures, **changes) -> DFMGANMethod:
    learner = DFMGANMethod.create(small.dfmgan(**changes), small.base(), 0)
    learner.begin(data)
    return learner


def draw(learner: DFMGANMethod, data: Pictures, defective: bool, count: int = 2):
    rng = RNG().manual_seed(1)
    labels = torch.ones(count, dtype=torch.long)
    ws = learner.styles("mapping", len(sides(learner.size)), count, rng)
    branch = (
        learner.styles("defect_mapping", len(learner.module["defect"].sides), count, rng, labels)
        if defective
        else None
    )
    return learner.generator(ws, branch, learner.noise(count, RNG().manual_seed(2)))


# ------------------------------------------------------------------------------------------------
# networks


def test_features_halve_down_to_a_few_positions():
    assert (
        sides(256) == [4, 8, 16, 32, 64, 128, 256]
        and sides(96) == [6, 12, 24, 48, 96]
        and sides(144)[0] == 9
    )


def test_a_modulated_convolution_is_one_with_scaled_and_normalised_weights():
    """Against StyleGAN2's equations 1 and 3: each picture with weights of its own, of unit
    length."""
    layer = ModulatedConvolution(5, 7, 3, 6)
    x, w = torch.randn(3, 5, 8, 8), torch.randn(3, 6)
    out = layer(x, w)
    for i, style in enumerate(layer.style(w)):
        weight = layer.weight * layer.gain * style[None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(
            out[i : i + 1], F.conv2d(x[i : i + 1], weight, padding=1), rtol=1e-4, atol=1e-5
        )


def test_resampling_is_by_the_filter_1_3_3_1():
    taps = torch.tensor([1.0, 3, 3, 1])
    kernel = (taps[:, None] * taps / 64)[None, None]
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(
        down(x)[..., 1:-1, 1:-1], F.conv2d(x, kernel, stride=2, padding=1)[..., 1:-1, 1:-1]
    )
    torch.testing.assert_close(
        up(x)[..., 2:-2, 2:-2],
        4 * F.conv_transpose2d(x, kernel, stride=2, padding=1)[..., 2:-2, 2:-2],
    )


def test_deviation_over_groups_is_one_more_channel():
    x = torch.randn(8, 3, 4, 4)
    out = with_deviation(x)
    assert out.shape == (8, 4, 4, 4) and torch.equal(out[:, :3], x)
    group = x[[0, 2, 4, 6]]
    assert float(out[0, 3, 0, 0]) == pytest.approx(
        float((group.var(0, correction=0) + 1e-8).sqrt().mean()), rel=1e-4
    )
    assert torch.equal(out[0, 3], out[2, 3]) and with_deviation(x[:1])[0, 3].max() < 1e-3


def test_a_style_knows_its_latent_s_direction_and_its_label():
    mapping, z, labels = Mapping(8, 6, 2, classes=3), torch.randn(2, 8), torch.tensor([1, 2])
    torch.testing.assert_close(mapping(3 * z, labels), mapping(z, labels), rtol=1e-3, atol=1e-4)
    assert (mapping(z, labels) - mapping(z, labels.flip(0))).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------
# defect branch


@torch.no_grad()
def test_an_empty_mask_is_the_plain_normal_and_a_full_one_is_not(data):
    learner = method(data)
    bias = learner.module["defect"].mask.bias
    plain, none = draw(learner, data, defective=False)
    bias.fill_(-100)
    same, mask = draw(learner, data, defective=True)
    assert none is None and mask.shape == (2, 1, 32, 32) and mask.max() < 0
    learner_noise = (same - plain).abs().max()
    assert learner_noise < 1e-4, (
        "noise has no strength yet, so that the branch can only add inside of its mask"
    )
    bias.fill_(100)
    assert (draw(learner, data, defective=True)[0] - plain).abs().max() > 1e-2


@torch.no_grad()
def test_features_change_inside_the_mask_only(data):
    """A mask over the left half leaves the right half's pictures alone, but for what convolutions
    carry across its edge."""
    learner = method(data)
    plain, _ = draw(learner, data, defective=False)

    class Half(nn.Module):
        def forward(self, x, w):
            mask = torch.full_like(x[:, :1], -1.0)
            mask[..., : x.shape[-1] // 2] = 1
            return mask

    learner.module["defect"].mask = Half()
    change = (draw(learner, data, defective=True)[0] - plain).abs().amax((0, 1, 2))
    assert change[:12].min() > 1e-3 and change[24:].max() < 1e-4


@torch.no_grad()
def test_samples_have_the_same_noise_and_training_does_not(data):
    """Each layer adds strength times its own constant noise, whatever the pair's seed is."""
    learner = method(data)
    layers = {n: m for n, m in learner.module.named_modules() if isinstance(m, StyledLayer)}
    for layer in layers.values():
        layer.strength.fill_(0.5)
    given = conditions(data, make_plan(data, Generate(pairs=2), 0))
    generators = [RNG().manual_seed(seed) for seed in range(len(given))]
    seen = {}

    def keep(layer, args, out):
        seen[next(name for name, known in layers.items() if known is layer)] = args, out

    for layer in layers.values():
        layer.register_forward_hook(keep)
    learner.sample(given, generators)
    assert seen.keys() == layers.keys()
    for name, ((x, w, _), out) in seen.items():
        layer = layers[name]
        plain = layer.convolution(x, w) + layer.bias[:, None, None]
        side = x.shape[-1]
        assert layer.constant_noise.shape == (side, side)
        expected = activate(plain + 0.5 * layer.constant_noise)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    ws = learner.styles("mapping", len(sides(learner.size)), 2, RNG().manual_seed(1))
    noises = [learner.noise(2, RNG().manual_seed(seed)) for seed in (0, 1)]
    pictures = [learner.generator(ws, None, noise)[0] for noise in noises]
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------
# losses


def test_each_stage_trains_its_own_networks(data):
    learner = method(data, backbone_steps=5)
    for step, expected in (
        (0, {"mapping", "backbone", "real"}),
        (5, {"defect_mapping", "defect", "real", "match"}),
    ):
        learner.module.zero_grad(set_to_none=True)
        learner.schedule(step)
        terms = learner.loss(data, RNG().manual_seed(0))
        assert tuple(terms) == TERMS
        sum(terms.values()).backward()
        got = {
            name.split(".")[0]
            for name, p in learner.module.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        assert got == expected
        assert all(p.requires_grad for p in learner.module.parameters()), (
            "a checkpoint must hold all of them"
        )


def test_no_term_pushes_the_network_that_it_is_not_for(data):
    learner = method(data, backbone_steps=0)
    terms = learner.loss(data, RNG().manual_seed(0))
    for name, own in {
        "generator": "defect",
        "match": "defect",
        "seek": "defect",
        "discriminator": "real",
        "match_discriminator": "match",
    }.items():
        learner.module.zero_grad(set_to_none=True)
        terms[name].backward(retain_graph=True)
        moved = {
            key.split(".")[0]
            for key, p in learner.module.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        assert moved <= {own, f"{own}_mapping"} and own in moved, name


def test_a_discriminator_that_does_not_know_costs_log_2_a_term(data):
    learner = method(data, backbone_steps=0)
    for net in ("real", "match"):
        nn.init.zeros_(learner.module[net].out.weight)
        nn.init.zeros_(learner.module[net].out.bias)
    with torch.no_grad():
        terms = learner.loss(data, RNG().manual_seed(0))
    for name, times in {
        "generator": 1,
        "match": 1,
        "discriminator": 2,
        "match_discriminator": 2,
    }.items():
        assert float(terms[name]) == pytest.approx(times * math.log(2), rel=1e-5)
    assert terms["r1"] == terms["path"] == 0, "without gradients there is nothing to regularise"


@torch.no_grad()
def test_the_matching_discriminator_sees_pictures_with_their_masks(data, monkeypatch):
    """Reals with masks of -1 and 1, fakes with tanh(10 m)."""
    learner, made, shown, forward = method(data, backbone_steps=0), [], [], Generator.forward
    monkeypatch.setattr(
        Generator, "forward", lambda *given: made.append(forward(*given)) or made[-1]
    )
    learner.module["match"].register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    learner.loss(data, RNG().manual_seed(0))
    reals, masks, _ = learner.draw(data, True, RNG().manual_seed(0))
    assert set(masks.unique().tolist()) == {-1.0, 1.0}
    fakes, logits = made[0]
    drawn = torch.cat([fakes, torch.tanh(10 * logits)], dim=1)
    for given, expected in zip(
        shown, (drawn, torch.cat([reals, masks], dim=1), drawn), strict=True
    ):
        torch.testing.assert_close(given, expected)


def test_reals_are_of_their_label_and_stage(data):
    learner = method(data, optim=small.dfmgan().optim.model_copy(update={"batch": 32}))
    pictures, masks, labels = learner.draw(data, True, RNG().manual_seed(0))
    assert (
        set(labels.tolist()) == {1, 2} and (masks.amax((1, 2, 3)) == 1).all() and masks.min() == -1
    )
    bright = (pictures * (masks > 0)).sum(
        (1, 2, 3)
    ) > 0  # small.prepared: holes are bright, scratches dark
    assert torch.equal(bright, labels == 1)
    pictures, masks, labels = learner.draw(data, False, RNG().manual_seed(0))
    assert labels.max() == 0 and masks.max() == -1 and -1 <= pictures.min() and pictures.max() <= 1


def test_gradient_penalty_of_a_linear_score_is_its_squared_length():
    weight = torch.randn(3, 4, 4)
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    torch.testing.assert_close(
        gradient_penalty((x * weight).sum((1, 2, 3)), x), weight.square().sum()
    )


def test_path_lengths_of_a_linear_generator_are_those_of_its_matrix():
    matrix, ws = (
        torch.randn(2, 3, 5, 4),
        torch.randn(6, 2, 5, requires_grad=True),
    )  # levels, channels, W, positions
    pictures = torch.einsum("lcwp,blw->bcp", matrix, ws)[..., None]
    direction = torch.randn(6, 3, 4, 1)
    expected = (
        torch.einsum("lcwp,bcp->blw", matrix, direction[..., 0]).square().sum(2).mean(1).sqrt()
    )
    torch.testing.assert_close(path_lengths(pictures, ws, direction), expected)


def test_regularisation_is_rare_and_as_strong_as_if_it_were_not(data):
    learner = method(data, backbone_steps=100)
    with_r1 = [
        float(learner.loss(data, RNG().manual_seed(seed))["r1"].detach()) for seed in range(48)
    ]
    drawn = [value for value in with_r1 if value]
    assert 0 < len(drawn) < 12
    shown = learner.draw(data, False, RNG().manual_seed(0))[0].requires_grad_()
    each = (
        learner.r1_weight
        / 2
        * float(
            gradient_penalty(learner.module["real"](shown, torch.zeros(4, dtype=torch.long)), shown)
        )
    )
    assert sum(drawn) / len(drawn) == pytest.approx(16 * each, rel=0.5)


def test_mode_seeking_is_distance_of_styles_by_distance_of_masks():
    a, b = torch.zeros(2, 3), torch.full((2, 3), 0.5)
    assert float(
        mode_seeking(a, b, torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.25))
    ) == pytest.approx(2, rel=1e-3)


def test_frozen_networks_take_no_gradient_and_are_free_again():
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with frozen(other):
        out = other(layer(torch.randn(3, 2)))
    out.sum().backward()
    assert (
        layer.weight.grad is not None and other.weight.grad is None and other.weight.requires_grad
    )


# ------------------------------------------------------------------------------------------------
# augmentation


def test_no_chance_no_change_and_a_sure_one_changes_every_picture():
    x = torch.rand(6, 3, 16, 16)
    assert torch.equal(ada.augment(x, 0.0, RNG().manual_seed(0)), x)
    assert ((ada.augment(x, 1.0, RNG().manual_seed(0)) - x).abs().amax((1, 2, 3)) > 1e-2).all()
    few = ada.augment(
        torch.rand(200, 3, 8, 8, generator=RNG().manual_seed(1)), 0.02, RNG().manual_seed(0)
    )
    same = (few == torch.rand(200, 3, 8, 8, generator=RNG().manual_seed(1))).flatten(1).all(1) | (
        (few - torch.rand(200, 3, 8, 8, generator=RNG().manual_seed(1))).abs().flatten(1).amax(1)
        < 1e-4
    )
    assert 0.6 < same.float().mean() < 0.95


def test_a_map_of_positions_is_what_it_says():
    x = torch.rand(2, 3, 8, 8)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, -1, -1)
    flip, turn = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]), torch.tensor([[0.0, -1, 0], [1, 0, 0]])
    torch.testing.assert_close(ada.moved(x, identity), x)
    torch.testing.assert_close(
        ada.moved(x, flip.expand(2, -1, -1)), x.flip(-1), rtol=1e-4, atol=1e-5
    )
    turned = ada.moved(x, turn.expand(2, -1, -1))
    assert any(torch.allclose(turned, torch.rot90(x, k, (2, 3)), atol=1e-5) for k in (1, 3))


def test_hue_and_saturation_keep_the_grey_of_a_colour():
    class Only(ada._Draws):
        """Only the changes whose turn it is happen."""

        def happens(self, p=None):
            self.turn = getattr(self, "turn", -1) + 1
            return torch.full(
                (self.count,), self.turn in (3, 4)
            )  # brightness, contrast, luma, hue, saturation

    x = torch.rand(4, 3, 6, 6)
    out = ada.recoloured(x, ada.colour(Only(4, 0.5, RNG().manual_seed(0))))
    torch.testing.assert_close(out.mean(1), x.mean(1), rtol=1e-4, atol=1e-5)
    assert (out - x).abs().max() > 1e-2


def test_augmentation_grows_while_real_pictures_are_recognised():
    chance = torch.tensor(0.5)
    adapt(chance, torch.ones(8), 0.6, 0.01)
    assert float(chance) == pytest.approx(0.51)
    adapt(chance, torch.tensor([1.0, -1, 1, -1]), 0.6, 0.01)
    assert float(chance) == pytest.approx(0.5)
    adapt(torch.zeros(()), -torch.ones(4), 0.6, 0.01)


# ------------------------------------------------------------------------------------------------
# rest


def test_pictures_without_the_defect_s_side_are_one_line(data):
    with pytest.raises(UserError, match="defect_side 64"):
        method(data, defect_side=64)


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="even"):
        small.dfmgan(optim={**small.dfmgan().optim.model_dump(), "batch": 3})
