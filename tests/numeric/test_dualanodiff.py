"""DualAnoDiff against the plain diffusers U-Net and against its own formulas."""

from __future__ import annotations

import numpy as np
import small
import torch
from torch import nn

from helixbench.diffusion.base import build_unet
from helixbench.methods.dualanodiff.method import part_mask, surroundings
from helixbench.methods.dualanodiff.unet import BackgroundCompensation, DualAnoDiffUNet, SelfAttentionInteraction
from helixbench.methods.latents import adapters

B, C, S, L, D = 2, 4, 8, 6, 32


def model(**changes) -> DualAnoDiffUNet:
    torch.manual_seed(0)
    return DualAnoDiffUNet(build_unet(small.scratch().unet, C, S, D), small.dualanodiff(**changes)).eval()


def plain():
    torch.manual_seed(0)
    return build_unet(small.scratch().unet, C, S, D).eval()


def inputs():
    g = torch.Generator().manual_seed(1)
    z = tuple(torch.randn(B, C, S, S, generator=g) for _ in range(3))
    text = tuple(torch.randn(B, L, D, generator=g) for _ in range(2))
    return z[:2], torch.tensor([7, 600]), text, z[2]


def low_rank(unet: DualAnoDiffUNet, branch: str) -> nn.ParameterList:
    return nn.ParameterList([p for name, p in unet.named_parameters() if f".lora_B.{branch}." in name])


@torch.no_grad()
def test_both_branches_start_as_the_plain_unet():
    z, t, text, _ = inputs()
    unet, reference = model(), plain()
    for out, noisy, words in zip(unet(z, t, text), z, text, strict=True):
        torch.testing.assert_close(out, reference(noisy, t, words).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_branch_has_adapters_of_its_own():
    """Without interaction, one branch's adapters change that branch alone, as W + B A does in a plain U-Net."""
    z, t, text, _ = inputs()
    unet = model()
    before = unet(z, t, text)
    small.randomise(low_rank(unet, "part"))
    whole, part = unet(z, t, text)
    torch.testing.assert_close(whole, before[0], rtol=1e-4, atol=1e-5)
    assert (part - before[1]).abs().max() > 1e-2
    merged = plain()
    state, weights = dict(unet.unet.named_parameters()), merged.state_dict()
    for name in [name for name in state if ".lora_A.part." in name]:
        product = state[name.replace("lora_A", "lora_B")] @ state[name]
        weights[name.replace(".lora_A.part", "")].add_(product)
    torch.testing.assert_close(part, merged(z[1], t, text[1]).sample, rtol=1e-3, atol=1e-4)


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
    """Against torch's own attention with the same weights."""
    layer = SelfAttentionInteraction(8)
    small.randomise(layer, 0.5)
    x = torch.randn(2 * B, 5, 8)
    reference = nn.MultiheadAttention(8, 1, batch_first=True)
    reference.in_proj_weight.copy_(torch.cat([layer.to_q.weight, layer.to_k.weight, layer.to_v.weight]))
    reference.in_proj_bias.copy_(torch.cat([layer.to_q.bias, layer.to_k.bias, layer.to_v.bias]))
    reference.out_proj.load_state_dict(layer.to_out.state_dict())
    pair = layer.enter(layer.norm(x)).unflatten(0, (2, B)).permute(1, 2, 0, 3).flatten(0, 1)  # (B N, 2, C)
    out = layer.leave(reference(pair, pair, pair)[0]).unflatten(0, (B, 5)).permute(2, 0, 1, 3).flatten(0, 1)
    torch.testing.assert_close(layer(x), x + out)


@torch.no_grad()
def test_the_interaction_ties_the_branches_of_the_whole_unet():
    z, t, text, _ = inputs()
    unet = model()
    small.randomise(unet.interaction, 0.05)
    before = unet(z, t, text)
    after = unet((z[0], z[1] + 1.0), t, text)
    assert (after[0] - before[0]).abs().max() > 1e-4


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
    torch.testing.assert_close(after[1], before[1], rtol=1e-5, atol=1e-6)  # without interaction the part sees nothing of it


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
        names = [name for name, _ in unet.named_parameters() if ".lora_B." in name and (".to_v." in name or ".to_out." in name)]
        assert len(names) == 2 * 2 * len(unet.interaction)
        gradients = [unet.get_parameter(name).grad for name in names]
        assert all(g is not None and g.abs().max() > 0 for g in gradients), "an adapter is not connected"


def test_masks_are_what_is_not_grey():
    part = torch.full((3, 32, 32), 0.5)
    part[:, 4:20, 4:20] = 0.9
    part[0, 8:12, 8:12] = part[1:, 8:12, 8:12] = 0.5  # a hole
    part[:, 28, 28] = 0.0  # a speck
    part[:, 24:30, 4:10] = 0.55  # below the threshold
    mask = part_mask(part, 0.1)
    assert mask.shape == (1, 32, 32) and mask.sum() == 16 * 16 and mask[0, 10, 10] == 1


def test_surroundings_are_the_picture_without_its_object():
    y, x = np.ogrid[:64, :64]
    disc = np.hypot(y - 32, x - 32) < 20
    picture = torch.from_numpy(np.where(disc, 0.2, 0.9)).float().expand(1, 3, 64, 64)
    out = surroundings(picture)
    assert out[0, 0, 32, 32] == 0.5 and out[0, 0, 2, 2] == picture[0, 0, 2, 2]
    assert ((out[0, 0] == 0.5).numpy() == disc).mean() > 0.95
