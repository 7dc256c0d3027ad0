"""DualAnoDiff against the plain diffusers U-Net and against its own formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small
import torch
from torch import nn

from helixbench.diffusion.base import build_unet
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.dualanodiff.method import DualAnoDiffMethod, part_mask, surroundings
from helixbench.methods.dualanodiff.unet import (
    BackgroundCompensation,
    DualAnoDiffUNet,
    SelfAttentionInteraction,
)
from helixbench.methods.latent_learner import adapters, transformer_blocks
from helixbench.methods.saliency import Saliency
from helixbench.pictures.transforms import to_tensor, transform
from helixbench.schema import Generate

B, C, S, L, D = 2, 4, 8, 6, 32


def model(**changes) -> DualAnoDiffUNet:
    torch.manual_seed(0)
    return DualAnoDiffUNet(
        build_unet(small.scratch().unet, C, S, D), small.dualanodiff(**changes)
    ).eval()


def plain():
    torch.manual_seed(0)
    return build_unet(small.scratch().unet, C, S, D).eval()


def merged(unet: DualAnoDiffUNet, branch: str):
    """The plain U-Net with one branch's adapters added to its weights: W + B A."""
    out = plain()
    state, weights = dict(unet.unet.named_parameters()), out.state_dict()
    for name in [name for name in state if f".lora_A.{branch}." in name]:
        product = state[name.replace("lora_A", "lora_B")] @ state[name]
        weights[name.replace(f".lora_A.{branch}", "")].add_(product)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pictures:
    return Pictures.load(small.prepared(tmp_path_factory.mktemp("data") / "disc"))


def learner(**changes) -> DualAnoDiffMethod:
    return DualAnoDiffMethod.create(small.dualanodiff(**changes), small.base(), 0)


def watched(method: DualAnoDiffMethod) -> list[tuple]:
    """The U-Net predicts zeros; returns the list that its arguments go to: noisy latents, t, text,
    background."""
    seen = []
    method.unet.forward = lambda *given: (
        seen.append(given) or tuple(torch.zeros_like(z) for z in given[0])
    )
    return seen


def inputs():
    g = torch.Generator().manual_seed(1)
    z = tuple(torch.randn(B, C, S, S, generator=g) for _ in range(3))
    text = tuple(torch.randn(B, L, D, generator=g) for _ in range(2))
    return z[:2], torch.tensor([7, 600]), text, z[2]


def low_rank(unet: DualAnoDiffUNet, branch: str) -> nn.ParameterList:
    return nn.ParameterList(
        [p for name, p in unet.named_parameters() if f".lora_B.{branch}." in name]
    )


@torch.no_grad()
def test_both_branches_start_as_the_plain_unet():
    z, t, text, _ = inputs()
    unet, reference = model(), plain()
    for out, noisy, words in zip(unet(z, t, text), z, text, strict=True):
        torch.testing.assert_close(out, reference(noisy, t, words).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_branch_has_adapters_of_its_own():
    """Without interaction, one branch's adapters change that branch alone, as W + B A does in a
    plain U-Net."""
    z, t, text, _ = inputs()
    unet = model()
    before = unet(z, t, text)
    small.randomise(low_rank(unet, "part"))
    whole, part = unet(z, t, text)
    torch.testing.assert_close(whole, before[0], rtol=1e-4, atol=1e-5)
    assert (part - before[1]).abs().max() > 1e-2
    torch.testing.assert_close(
        part, merged(unet, "part")(z[1], t, text[1]).sample, rtol=1e-3, atol=1e-4
    )


@torch.no_grad()
def test_the_interaction_mixes_the_branches_at_one_position_only():
    layer = SelfAttentionInteraction(8)
    x = torch.randn(2 * B, 5, 8)
    assert torch.equal(layer(x), x), "it starts as no change"
    small.randomise(layer, 0.5)
    moved = x.clone()
    moved[B, 3] += torch.randn(8)  # part of the first pair, position 3
    changed = (layer(moved) - layer(x)).abs().amax(-1) > 1e-6
    assert changed[0, 3] and changed[B, 3] and changed.sum() == 2


@torch.no_grad()
def test_the_interaction_is_single_head_attention_of_the_pair():
    """Against torch's own attention with the same weights, between an input layer and residual."""
    layer = SelfAttentionInteraction(8)
    small.randomise(layer, 0.5)
    x = torch.randn(2 * B, 5, 8)
    reference = nn.MultiheadAttention(8, 1, batch_first=True)
    reference.in_proj_weight.copy_(
        torch.cat([layer.to_q.weight, layer.to_k.weight, layer.to_v.weight])
    )
    reference.in_proj_bias.copy_(torch.cat([layer.to_q.bias, layer.to_k.bias, layer.to_v.bias]))
    reference.out_proj.load_state_dict(layer.to_out.state_dict())
    pair = (
        layer.enter(layer.norm(x)).unflatten(0, (2, B)).permute(1, 2, 0, 3).flatten(0, 1)
    )  # (B N, 2, C)
    out = reference(pair, pair, pair)[0].unflatten(0, (B, 5)).permute(2, 0, 1, 3).flatten(0, 1)
    torch.testing.assert_close(layer(x), x + out)


@torch.no_grad()
def test_the_interaction_has_five_linear_layers_and_a_small_epsilon():
    layer = SelfAttentionInteraction(8)
    assert sum(isinstance(module, nn.Linear) for module in layer.modules()) == 5
    x = 1e-3 * torch.randn(2 * B, 5, 8)  # its variance is that of the usual epsilon of 1e-5 or less
    variance = x.var(-1, correction=0, keepdim=True)
    expected = (x - x.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()
    torch.testing.assert_close(layer.norm(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_interaction_ties_the_branches_of_the_whole_unet():
    z, t, text, _ = inputs()
    unet = model()
    small.randomise(unet.interaction, 0.05)
    before = unet(z, t, text)
    after = unet((z[0], z[1] + 1.0), t, text)
    assert (after[0] - before[0]).abs().max() > 1e-4


@torch.no_grad()
def test_every_attention_layer_has_an_interaction_that_matters():
    z, t, text, _ = inputs()
    unet = model()
    assert list(unet.interaction) == [
        f"{name}_{layer}"
        for name, _ in transformer_blocks(unet.unet)
        for layer in ("attn1", "attn2")
    ]
    before = torch.cat(unet(z, t, text))
    for key, layer in unet.interaction.items():
        torch.nn.init.normal_(layer.to_out.weight)
        assert (torch.cat(unet(z, t, text)) - before).abs().max() > 1e-4, key
        torch.nn.init.zeros_(layer.to_out.weight)


@torch.no_grad()
def test_the_background_is_seen_with_the_adapters_of_the_whole_and_without_interaction():
    """What it gives to each self-attention is what enters that layer of the plain U-Net with these
    adapters added."""
    z, t, text, background = inputs()
    unet, entering = model(background=True), {}
    for seed, branch in enumerate(("whole", "part")):
        small.randomise(low_rank(unet, branch), seed=seed)
    small.randomise(unet.interaction, 0.05)
    reference = merged(unet, "whole")
    for name, block in transformer_blocks(reference):
        block.attn1.register_forward_pre_hook(
            lambda _, given, key=f"{name}_attn1": entering.update({key: given[0]})
        )
    reference(background, t, text[0])
    unet(z, t, text, background)
    assert unet.features.keys() == entering.keys()
    for key, feature in unet.features.items():
        torch.testing.assert_close(feature, entering[key], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_background_scalar_of_zero_changes_nothing_and_another_one_does():
    z, t, text, background = inputs()
    unet = model(background=True)
    for without, given in zip(unet(z, t, text), unet(z, t, text, background), strict=True):
        torch.testing.assert_close(given, without, rtol=1e-5, atol=1e-6)
    for layer in unet.compensation.values():
        layer.a.fill_(0.5)
    before, after = unet(z, t, text), unet(z, t, text, background)
    assert (after[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(
        after[1], before[1], rtol=1e-5, atol=1e-6
    )  # without interaction the part sees nothing of it


def test_the_background_s_formula():
    layer = BackgroundCompensation(6, 4)
    layer.a.data.fill_(0.3)
    x, background = torch.randn(2 * B, 5, 6), torch.randn(B, 5, 6)
    out = layer(x, background)
    torch.testing.assert_close(out[:B], 0.7 * x[:B] + 0.3 * layer.mlp[1](layer.mlp[0](background)))
    assert torch.equal(out[B:], x[B:])


def test_what_is_trained():
    for trainable in ("lora", "all"):
        unet = model(trainable=trainable).trainable_()
        trained = {name for name, p in unet.named_parameters() if p.requires_grad}
        assert ("unet.conv_in.weight" in trained) == (trainable == "all")
        assert {f"unet.{name}" for name in adapters(unet.unet)} <= trained
        assert any(name.startswith("interaction") for name in trained)
        z, t, text, _ = inputs()
        sum(out.sum() for out in unet(z, t, text)).backward()
        # queries and keys of the innermost self-attention, which has one position, have no say
        names = [
            name
            for name, _ in unet.named_parameters()
            if ".lora_B." in name and (".to_v." in name or ".to_out." in name)
        ]
        assert len(names) == 2 * 2 * len(unet.interaction)
        gradients = [unet.get_parameter(name).grad for name in names]
        assert all(g is not None and g.abs().max() > 0 for g in gradients), (
            "an adapter is not connected"
        )


def test_the_adapters_of_the_text_encoder_are_trained(data):
    method = learner()
    sum(method.loss(data, torch.Generator().manual_seed(0)).values()).backward()
    gradients = {
        name: p.grad
        for name, p in method.base.text_encoder.named_parameters()
        if ".lora_B." in name
    }
    assert len(gradients) == 4
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())


@torch.no_grad()
def test_each_branch_learns_from_its_own_picture_noise_and_words(data):
    """Whole picture, the same in grey outside the mask, and the background: one t, three noises,
    two prompts."""
    method = learner(
        background=True, prompt="photo of a {category} with {defect}", prompt_part="a {defect}"
    )
    seen, asked, latents = watched(method), [], method.latents
    method.latents = lambda rows, pictures: asked.append(rows) or latents(rows, pictures)
    terms = method.loss(data, torch.Generator().manual_seed(0))
    ((noisy, t, text, background),) = seen
    chosen = [(i, symmetry) for i, symmetry, _ in asked[0]]
    whole = to_tensor([transform(data.images[i], symmetry) for i, symmetry in chosen])
    masks = to_tensor([transform(data.masks[i], symmetry) for i, symmetry in chosen])
    clean = [whole, torch.where(masks > 0, whole, torch.tensor(0.5)), surroundings(whole)]
    abar = method.base.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    z_clean = [method.base.encode(picture) for picture in clean]
    z_clean[2] = z_clean[2] / method.base.vae.config.scaling_factor  # that one is not scaled
    pairs = zip((*noisy, background), z_clean, strict=True)
    noise = [(z - abar.sqrt() * latent) / (1 - abar).sqrt() for z, latent in pairs]
    assert all(e.std() == pytest.approx(1, abs=0.1) for e in noise)
    assert (
        torch.corrcoef(torch.stack([e.flatten() for e in noise])).fill_diagonal_(0).abs().max()
        < 0.2
    ), "noises of their own"
    for name, e in zip(("image", "part"), noise, strict=False):
        # The sum of the terms is the mean over the branches.
        assert float(terms[name]) == pytest.approx(float(e.square().mean()) / 2, rel=1e-3)
    defects = [data.samples[i].defect for i, _ in chosen]
    for given, pattern in zip(text, ("photo of a disc with {}", "a {}"), strict=True):
        torch.testing.assert_close(
            given, method.base.embed([pattern.format(defect) for defect in defects])
        )


def test_each_branch_is_drawn_from_its_own_noise_and_words(data):
    method = learner()
    method.sampling = small.sampling(steps=2, guidance=2.0)
    seen, plans = watched(method), make_plan(data, Generate(pairs=1), 0)
    given = conditions(data, plans)
    method.sample(given, [torch.Generator().manual_seed(plan.seed) for plan in plans])
    assert len(seen) == 4, "two steps, each with words and without"
    whole, part = seen[0][0]
    assert torch.corrcoef(torch.stack([whole.flatten(), part.flatten()]))[0, 1].abs() < 0.2
    for (_, _, text, _), worded in zip(seen, (True, False) * 2, strict=True):
        for branch, pattern in zip(text, ("a disc with {}", "{}"), strict=True):
            prompts = [pattern.format(defect) if worded else "" for defect in given.defects]
            torch.testing.assert_close(branch, method.base.embed(prompts))


@pytest.fixture
def one_thread():
    """Normalisation makes a blank picture's rounding visible, and rounding depends on the
    threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_guidance_compares_with_the_encoding_of_zeros(data, one_thread):
    """Backgrounds: the picture without its object, and 0 in [-1, 1]; noised, but not scaled."""
    method = learner(background=True)
    method.sampling = small.sampling(steps=2, guidance=2.0)
    seen, plans = watched(method), make_plan(data, Generate(pairs=1), 0)
    given = conditions(data, plans)
    method.sample(given, [torch.Generator().manual_seed(plan.seed) for plan in plans])
    shape = (4, *seen[0][3].shape[1:])
    rngs = [torch.Generator().manual_seed(plan.seed) for plan in plans]
    noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs])
    zeros = torch.full_like(given.background, 0.5)
    base = method.base
    for number, (_, t, _, background) in enumerate(seen):
        conditional = number % 2 == 0
        clean = surroundings(given.background) if conditional else zeros
        abar = base.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        latents = base.encode(clean) / base.vae.config.scaling_factor
        fresh = noise[:, 2 if conditional else 3]
        expected = abar.sqrt() * latents + (1 - abar).sqrt() * fresh
        torch.testing.assert_close(background, expected, rtol=1e-4, atol=1e-4)


def test_masks_are_what_is_not_grey():
    part = torch.full((3, 32, 32), 0.5)
    part[:, 4:20, 4:20] = 0.9
    part[0, 8:12, 8:12] = part[1:, 8:12, 8:12] = 0.5  # a hole
    part[:, 28, 28] = 0.0  # a speck
    part[:, 24:30, 4:10] = 0.55  # below the threshold
    mask = part_mask(part, 0.1)
    assert mask.shape == (1, 32, 32) and mask.sum() == 16 * 16 and mask[0, 10, 10] == 1


def network(folder: Path) -> Path:
    """An ONNX network with U2-Net's input: the mean of the channels."""
    mean = onnx.helper.make_node("ReduceMean", ["in", "axes"], ["out"], keepdims=1)
    shapes = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, c, 320, 320])
        for name, c in (("in", 3), ("out", 1))
    ]
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])
    graph = onnx.helper.make_graph([mean], "mean", shapes[:1], shapes[1:], [axes])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def test_masks_are_what_stands_out_where_there_is_a_network(tmp_path):
    part = torch.full((3, 32, 32), 0.5)
    part[:, 4:20, 4:20] = 0.9
    part[:, 24:30, 4:10] = 0.58  # stands out by a fifth, and differs from grey by less than 0.1
    saliency = Saliency(network(tmp_path))(part)
    assert (
        saliency.shape == (1, 32, 32)
        and saliency.min() == 0
        and saliency.max() == pytest.approx(1, abs=1e-3)
    )
    assert float(saliency[0, 27, 7]) == pytest.approx(0.2, abs=0.02)
    config = small.dualanodiff(saliency=str(tmp_path / "net.onnx"))
    method = DualAnoDiffMethod(config, small.base(), small.sampling())
    mask = method.mask(part)
    assert mask.sum() == 16 * 16 and mask[0, 4:20, 4:20].all()
    assert "net.onnx" in method.describe() and "grey" not in method.describe()
    assert not method.mask(torch.full((3, 32, 32), 0.5)).any(), "a part without a defect"
    plain = DualAnoDiffMethod(small.dualanodiff(), small.base(), small.sampling())
    assert plain.mask(part)[0, 27, 7] == 0 and "grey by 0.1" in plain.describe()


def test_what_u2net_is_shown_is_as_it_was_trained(tmp_path):
    """By the brightest value, then ImageNet's means and deviations."""
    net, seen = Saliency(network(tmp_path)), {}

    class Session:
        def run(self, names, given):
            seen.update(given)
            return [given["in"][:, :1]]

    net.session = Session()
    net(torch.full((3, 16, 16), 0.4))
    expected = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(seen["in"].mean((0, 2, 3)), expected, rtol=1e-4)


def test_no_network_or_a_broken_one_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Saliency(tmp_path / "u2net.onnx")
    (tmp_path / "u2net.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable ONNX network"):
        Saliency(tmp_path / "u2net.onnx")


def test_surroundings_are_the_picture_without_its_object():
    y, x = np.ogrid[:64, :64]
    disc = np.hypot(y - 32, x - 32) < 20
    picture = torch.from_numpy(np.where(disc, 0.2, 0.9)).float().expand(1, 3, 64, 64)
    out = surroundings(picture)
    assert out[0, 0, 32, 32] == 0 and out[0, 0, 2, 2] == picture[0, 0, 2, 2]
    assert ((out[0, 0] == 0).numpy() == disc).mean() > 0.95
