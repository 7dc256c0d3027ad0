"""DH-Diff against the plain diffusers U-Net and against its own equations."""

from __future__ import annotations

import copy

import pytest
import small
import torch

from helixbench.diffusion.base import build_unet
from helixbench.errors import UserError
from helixbench.methods.dhdiff.modules import Flow, SemanticScoreMapModification
from helixbench.methods.dhdiff.streams import Streams, widen
from helixbench.methods.dhdiff.unet import DHDiffUNet, chosen_stages

B, C, S, L, D = 2, 4, 8, 6, 32


def unet(seed: int = 0):
    torch.manual_seed(seed)
    return build_unet(small.scratch().unet, C, S, D).eval()


def inputs(seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    z = [torch.randn(B, C, S, S, generator=g) for _ in range(3)]
    return *z, torch.tensor([7, 600]), torch.randn(B, L, D, generator=g)


def run(model: DHDiffUNet, z, a, t, text, r, flow: Flow | None = None):
    """With a reference, encoded under an empty prompt."""
    return model(z, a, t, text, model.encode_reference(r, t, torch.zeros_like(text)), flow)


def control(present=(1.0, 1.0)) -> Flow:
    g = torch.Generator().manual_seed(3)
    inside, outside = torch.zeros(B, L), torch.zeros(B, L)
    inside[:, 3:5], outside[:, 0] = 0.5, 1.0
    mask = (torch.rand(B, 1, 32, 32, generator=g) > 0.5).float()
    return Flow(control=mask, has_control=torch.tensor(present), inside=inside, outside=outside)


@torch.no_grad()
def test_equals_the_plain_unet_on_equal_streams():
    """Everything new at its zero start, no reference: with z^I = z^A, mu of the two maps is the map
    (readings 4, 13)."""
    plain, model = unet(), DHDiffUNet(unet(), small.dhdiff())
    z, _, _, t, text = inputs()
    expected = plain(z, t, text).sample
    for out in model(z, z, t, text):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_equals_the_plain_unet_on_each_stream_with_dda_everywhere_and_no_ssm():
    """DDA in every layer decouples the streams completely; without SSM nothing else connects them
    at the start."""
    config = small.dhdiff(dda_encoder=4, dda_decoder=4, ssm_encoder=0, ssm_decoder=0)
    plain, model = unet(), DHDiffUNet(unet(), config)
    z, a, _, t, text = inputs()
    image, annotation = model(z, a, t, text)
    torch.testing.assert_close(image, plain(z, t, text).sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(annotation, plain(a, t, text).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_zero_initialised_zeta_ignores_the_reference():
    model = DHDiffUNet(unet(), small.dhdiff())
    z, a, r, t, text = inputs()
    for without, with_reference in zip(
        model(z, a, t, text), run(model, z, a, t, text, r), strict=True
    ):
        torch.testing.assert_close(with_reference, without, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_reference_moves_the_image_once_zeta_is_trained():
    model = DHDiffUNet(unet(), small.dhdiff())
    for modules in model.helix.values():
        if "dda" in modules:
            small.randomise(modules["dda"].zeta)
    z, a, r, t, text = inputs()
    assert (run(model, z, a, t, text, r)[0] - model(z, a, t, text)[0]).abs().max() > 1e-3


def test_a_copied_reference_encoder_is_its_own():
    """Reading 6's alternative: starts as the shared one, is trained apart from it, and is saved
    with the model."""
    shared, copied = (
        DHDiffUNet(unet(), small.dhdiff(reference_encoder=kind)).trainable_()
        for kind in ("shared", "copy")
    )
    for model in (shared, copied):
        for modules in model.helix.values():
            if "dda" in modules:
                small.randomise(modules["dda"].zeta)
    z, a, r, t, text = inputs()
    torch.testing.assert_close(run(copied, z, a, t, text, r)[0], run(shared, z, a, t, text, r)[0])
    run(copied, z, a, t, text, r)[0].sum().backward()
    assert copied.tau.down_blocks[0].resnets[0].conv1.weight.grad.abs().max() > 0
    with torch.no_grad():
        copied.tau.conv_in.weight.mul_(2)
        moved = run(copied, z, a, t, text, r)[0]
        assert (moved - run(shared, z, a, t, text, r)[0]).abs().max() > 1e-4
        assert torch.equal(copied.unet.conv_in.weight, shared.unet.conv_in.weight)


def test_a_copied_reference_encoder_comes_back(tmp_path):
    model = DHDiffUNet(unet(), small.dhdiff(reference_encoder="copy"))
    small.randomise(model, 0.02)
    save(model, tmp_path)
    again = DHDiffUNet(unet(), small.dhdiff(reference_encoder="copy"))
    again.load_helix(tmp_path / "dhdiff.safetensors")
    assert all(
        torch.equal(x, y)
        for x, y in zip(model.tau.parameters(), again.tau.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="reference_encoder"):
        DHDiffUNet(unet(), small.dhdiff()).load_helix(tmp_path / "dhdiff.safetensors")


def save(model: DHDiffUNet, folder) -> None:
    """The U-Net's part of what the method saves."""
    model.fuse_adapters()
    model.unet.save_pretrained(folder / "unet")
    model.save_helix(folder / "dhdiff.safetensors")


def with_raw_mask(model: DHDiffUNet, latent, t, text, present=(1.0, 1.0)) -> Flow:
    """A pass that is given raw masks, as the method gives them (reading 9)."""
    if model.config.annotation_input == "channels":
        return Flow(raw_latent=latent, has_raw=torch.tensor(present))
    return Flow(
        raw_features=model.encode_reference(latent, t, torch.zeros_like(text)),
        has_raw=torch.tensor(present),
    )


@pytest.mark.parametrize("way", ["channels", "attention"])
@pytest.mark.parametrize("kind", ["batch", "canvas", "channels"])
@torch.no_grad()
def test_the_raw_mask_guides_both_streams_once_its_zero_layers_are_trained(kind, way):
    """Reading 9. Before that it changes nothing, and without merging and SSM each stream hears it
    by itself."""
    apart = {"merging": False, "ssm_encoder": 0, "ssm_decoder": 0, "dda_decoder": 4}
    model = DHDiffUNet(
        wide() if kind == "channels" else unet(),
        small.dhdiff(streams=kind, annotation_input=way, **apart),
    )
    z, a, raw, t, text = inputs()
    without = model(z, a, t, text)
    for out, same in zip(
        without, model(z, a, t, text, flow=with_raw_mask(model, raw, t, text)), strict=True
    ):
        torch.testing.assert_close(same, out, rtol=1e-5, atol=1e-6)
    if way == "channels":
        small.randomise(model.inputs)
    else:
        for modules in model.helix.values():
            small.randomise(modules["dda"].zeta_raw)
    moved = model(z, a, t, text, flow=with_raw_mask(model, raw, t, text, (1.0, 0.0)))
    for out, same in zip(moved, without, strict=True):
        assert (out[0] - same[0]).abs().max() > 1e-3
        torch.testing.assert_close(out[1], same[1], rtol=1e-4, atol=1e-5)  # the pair that has none


@torch.no_grad()
def test_the_raw_mask_by_channels_is_a_wider_first_convolution():
    """Each stream's first convolution over [z, raw mask], its new columns zero at the start."""
    model = DHDiffUNet(unet(), small.dhdiff())
    small.randomise(model.inputs)
    z, a, raw, _, _ = inputs()
    model.flow, zeta = Flow(raw_latent=raw, has_raw=torch.ones(B)), model.inputs.zeta
    out = model.unet.conv_in(torch.cat([z, a]))
    for got, latent, own in zip(
        out.chunk(2), (z, a), (zeta["raw_image"], zeta["raw_annotation"]), strict=True
    ):
        kernel = torch.cat([model.unet.conv_in.weight, own.weight], dim=1)
        bias = model.unet.conv_in.bias + own.bias
        expected = torch.nn.functional.conv2d(
            torch.cat([latent, raw], dim=1), kernel, bias, padding=1
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(zeta["raw_image"].weight, zeta["raw_annotation"].weight)


@torch.no_grad()
def test_the_reference_by_channels_enters_the_image_stream_alone():
    model = DHDiffUNet(unet(), small.dhdiff(reference_input="both"))
    small.randomise(model.inputs)
    z, a, r, _, _ = inputs()
    plain = model.unet.conv_in(torch.cat([z, a]))
    model.flow = Flow(reference_latent=r)
    image, annotation = (model.unet.conv_in(torch.cat([z, a])) - plain).chunk(2)
    zeta = model.inputs.zeta["reference"]
    torch.testing.assert_close(
        image,
        torch.nn.functional.conv2d(r, zeta.weight, zeta.bias, padding=1),
        rtol=1e-4,
        atol=1e-5,
    )
    assert annotation.abs().max() == 0


@torch.no_grad()
def test_keys_and_values_of_both_streams_read_the_raw_mask():
    """Eq. 4 and 5 with zeta(F^M) beside F^I and F^A, queries without it (reading 9,
    `attention`)."""
    attention, dda = first_dda(DHDiffUNet(unet(), small.dhdiff(annotation_input="attention")))
    small.randomise(dda, 0.1)
    g = torch.Generator().manual_seed(6)
    image, annotation, reference, raw = (torch.randn(1, 10, 16, generator=g) for _ in range(4))
    zeta = {name: layer.weight[..., 0] for name, layer in dda.zeta_raw.items()}
    of_image = (
        image
        + reference @ dda.zeta.weight[..., 0].T
        + dda.zeta.bias
        + raw @ zeta["image"].T
        + dda.zeta_raw["image"].bias
    )
    of_annotation = annotation + raw @ zeta["annotation"].T + dda.zeta_raw["annotation"].bias
    heads = attention.heads

    def written_out(q, k, v):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return ((q @ k.mT / (16 / heads) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    f_i = attention.to_out[0](
        written_out(attention.to_q(image), attention.to_k(of_image), attention.to_v(of_image))
    )
    f_a = dda.to_out[0](
        written_out(dda.to_q(annotation), dda.to_k(of_annotation), dda.to_v(of_annotation))
    )
    out = dda(attention, torch.cat([image, annotation]), reference, raw, torch.ones(1))
    torch.testing.assert_close(out, torch.cat([f_i, f_a]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["channels", "attention"])
def test_the_way_in_of_the_raw_mask_is_trained_and_comes_back(tmp_path, way):
    model = DHDiffUNet(
        unet(), small.dhdiff(annotation_input=way, trainable="attention")
    ).trainable_()
    ways = {
        name: p for name, p in model.named_parameters() if "zeta.raw" in name or "zeta_raw" in name
    }
    assert ways and all(p.requires_grad for p in ways.values())
    small.randomise(model, 0.02)
    save(model, tmp_path)
    again = DHDiffUNet(unet(), small.dhdiff(annotation_input=way))
    again.load_helix(tmp_path / "dhdiff.safetensors")
    assert all(torch.equal(p, dict(again.named_parameters())[name]) for name, p in ways.items())
    with pytest.raises(UserError, match="annotation_input"):
        DHDiffUNet(unet(), small.dhdiff(annotation_input="none")).load_helix(
            tmp_path / "dhdiff.safetensors"
        )


def first_dda(model: DHDiffUNet):
    layer = model.layers[0]
    return layer.block.attn1, model.helix[layer.key.replace(".", "_")]["dda"]


def test_no_feature_entanglement_in_dda():
    """Each domain's output and gradients see that domain only; the image also sees the reference
    (Eq. 4 and 5)."""
    attention, dda = first_dda(DHDiffUNet(unet(), small.dhdiff()))
    small.randomise(dda.zeta)
    g = torch.Generator().manual_seed(5)
    x = torch.randn(2 * B, S * S, 16, generator=g, requires_grad=True)
    reference = torch.randn(B, S * S, 16, generator=g, requires_grad=True)
    out = dda(attention, x, reference)
    moved = x.detach().clone()
    moved[B:] += torch.randn(B, S * S, 16, generator=g)
    assert torch.equal(dda(attention, moved, reference)[:B], out[:B])
    image_x, image_r = torch.autograd.grad(out[:B].sum(), (x, reference), retain_graph=True)
    assert image_x[B:].abs().max() == 0 and image_x[:B].abs().max() > 0 and image_r.abs().max() > 0
    annotation_x, annotation_r = torch.autograd.grad(
        out[B:].sum(), (x, reference), allow_unused=True
    )
    assert annotation_x[:B].abs().max() == 0 and annotation_x[B:].abs().max() > 0
    assert annotation_r is None or annotation_r.abs().max() == 0


def test_concatenated_attention_does_entangle():
    """The baseline arm (Eq. 1-3) is what DDA is there to avoid; the test above could fail."""
    model = DHDiffUNet(unet(), small.dhdiff(dda_encoder=0))
    attention = model.layers[0].block.attn1
    x = torch.randn(2 * B, S * S, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention(x)[:B].sum(), x)
    assert gradient[B:].abs().max() > 0


@torch.no_grad()
def test_dda_is_equation_4_and_5_written_out():
    attention, dda = first_dda(DHDiffUNet(unet(), small.dhdiff()))
    small.randomise(dda, 0.1)
    g = torch.Generator().manual_seed(6)
    image, annotation, reference = (torch.randn(1, 10, 16, generator=g) for _ in range(3))
    heads, d = attention.heads, 16 // attention.heads

    def written_out(q, k, v):
        out = []
        for i in range(heads):
            part = slice(i * d, (i + 1) * d)
            scores = (q[0][:, part] @ k[0][:, part].T) / d**0.5
            out.append(scores.softmax(-1) @ v[0][:, part])
        return torch.cat(out, -1)[None]

    source = image + reference @ dda.zeta.weight[..., 0].T + dda.zeta.bias
    f_i = attention.to_out[0](
        written_out(attention.to_q(image), attention.to_k(source), attention.to_v(source))
    )
    f_a = dda.to_out[0](
        written_out(dda.to_q(annotation), dda.to_k(annotation), dda.to_v(annotation))
    )
    out = dda(attention, torch.cat([image, annotation]), reference)
    torch.testing.assert_close(out, torch.cat([f_i, f_a]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("flow", [Flow(), control()], ids=["no control", "control"])
@torch.no_grad()
def test_ssm_starts_as_the_mean_of_the_maps(kernel, flow):
    attention = unet().down_blocks[0].attentions[0].transformer_blocks[0].attn2
    ssm = SemanticScoreMapModification(attention, kernel, False)
    maps = torch.rand(2, B, attention.heads, S * S, L).softmax(-1)
    s_i, s_a = ssm.modify(maps[0], maps[1], flow)
    expected = (
        maps.mean(0)
        if flow.control is None
        else (maps.sum(0) + flow.control_map(S * S, maps.dtype)[:, None]) / 3
    )
    torch.testing.assert_close(s_i, expected)
    torch.testing.assert_close(s_a, expected)
    torch.testing.assert_close(s_i.sum(-1), torch.ones_like(s_i.sum(-1)))


@torch.no_grad()
def test_ssm_is_equation_6_and_7_written_out():
    attention = unet().down_blocks[0].attentions[0].transformer_blocks[0].attn2
    ssm = SemanticScoreMapModification(attention, 1, False)
    small.randomise(ssm)
    g = torch.Generator().manual_seed(8)
    x, text, flow = (
        torch.randn(2 * B, S * S, 16, generator=g),
        torch.randn(B, L, D, generator=g),
        control((1.0, 0.0)),
    )
    heads, d = attention.heads, 16 // attention.heads
    q, k, v = attention.to_q(x), attention.to_k(text), attention.to_v(text)
    out = torch.zeros(2 * B, S * S, 16)
    for b in range(B):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            s_i, s_a = (
                (q[b + domain * B][:, part] @ k[b][:, part].T / d**0.5).softmax(-1)
                for domain in (0, 1)
            )
            s_o = flow.control_map(S * S, x.dtype)[b]
            mu = (s_i + s_a + s_o) / 3 if b == 0 else (s_i + s_a) / 2
            weight = ssm.eta.weight[2 * h : 2 * h + 2, :, 0, 0]  # (2 outputs, 3 maps)
            for domain in (0, 1):
                eta = weight[domain, 0] * s_i + weight[domain, 1] * s_a + weight[domain, 2] * s_o
                out[b + domain * B, :, part] = (eta + mu) @ v[b][:, part]
    got = ssm(attention, x, text, flow)
    torch.testing.assert_close(got, attention.to_out[0](out), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_control_map_rows_are_stochastic_and_follow_the_mask():
    flow = control((1.0, 0.0))
    rows = flow.control_map(S * S, torch.float32)
    torch.testing.assert_close(rows[0].sum(-1), torch.ones(S * S))
    assert rows[1].abs().max() == 0
    share = torch.nn.functional.interpolate(flow.control, (S, S), mode="area")[0].flatten()
    torch.testing.assert_close(rows[0, :, 3], 0.5 * share)
    torch.testing.assert_close(rows[0, :, 0], 1 - share)


@torch.no_grad()
def test_renormalised_rows_sum_to_one():
    attention = unet().down_blocks[0].attentions[0].transformer_blocks[0].attn2
    ssm = SemanticScoreMapModification(attention, 1, True)
    ssm.eta.weight.fill_(0.1)
    maps = torch.rand(2, B, attention.heads, S * S, L).softmax(-1)
    torch.testing.assert_close(
        ssm.modify(maps[0], maps[1], Flow())[1].sum(-1), torch.ones(B, attention.heads, S * S)
    )


@torch.no_grad()
def test_merging_connects_the_domains():
    model = DHDiffUNet(
        unet(), small.dhdiff(dda_encoder=4, dda_decoder=4, ssm_encoder=0, ssm_decoder=0)
    )
    z, a, _, t, text = inputs()
    before = model(z, a, t, text)[0]
    assert torch.equal(model(z, a + 1, t, text)[0], before)
    for modules in model.helix.values():
        small.randomise(modules["merging"], 0.05)
    assert not torch.allclose(model(z, a + 1, t, text)[0], model(z, a, t, text)[0], atol=1e-3)


def wide(seed: int = 0):
    model = unet(seed)
    widen(model)
    return model


@torch.no_grad()
def test_canvas_without_modules_is_the_plain_unet_on_the_canvas():
    """Reading 3 C: concatenated tokens of both halves are all tokens of the canvas (Eq. 1-3)."""
    bare = small.dhdiff(
        streams="canvas", dda_encoder=0, dda_decoder=0, ssm_encoder=0, ssm_decoder=0
    )
    z, a, _, t, text = inputs()
    image, annotation = DHDiffUNet(unet(), bare)(z, a, t, text)
    expected = unet()(torch.cat([z, a], dim=3), t, text).sample
    torch.testing.assert_close(
        torch.cat([image, annotation], dim=3), expected, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_channels_at_their_start_are_the_plain_widened_unet():
    """Reading 3 B: equal streams in each block, so all new modules at their start change
    nothing."""
    z, a, r, t, text = inputs()
    image, annotation = run(DHDiffUNet(wide(), small.dhdiff(streams="channels")), z, a, t, text, r)
    expected = wide()(torch.cat([z, a], dim=1), t, text).sample
    torch.testing.assert_close(
        torch.cat([image, annotation], dim=1), expected, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_a_widened_unet_sees_equal_latents_as_the_plain_one_does():
    z, _, _, t, text = inputs()
    model = wide()
    model.conv_in.weight.div_(2**0.5)  # two equal latents add up; independent ones add in variance
    for half in model(torch.cat([z, z], dim=1), t, text).sample.chunk(2, dim=1):
        torch.testing.assert_close(half, unet()(z, t, text).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (8, 16)], ids=str)
@pytest.mark.parametrize("kind", ["batch", "canvas", "channels"])
def test_streams_join_what_they_parted(kind, shape):
    h, w = shape
    streams, flow = Streams(kind), Flow(aspect=h / w)
    tokens = torch.randn(
        *{"batch": (2 * B, h * w), "canvas": (B, 2 * h * w), "channels": (B, h * w)}[kind], C
    )
    pair = streams.part(tokens, flow)
    assert pair.shape == (2 * B, h * w, C)
    torch.testing.assert_close(streams.join(pair, flow), tokens)
    if kind == "canvas":
        left, right = tokens.unflatten(1, (h, 2 * w)).split(w, dim=2)
        assert torch.equal(pair, torch.cat([left, right]).flatten(1, 2))


@pytest.mark.parametrize("kind", ["canvas", "channels"])
def test_every_layout_hears_reference_control_and_both_streams(kind):
    model = DHDiffUNet(wide() if kind == "channels" else unet(), small.dhdiff(streams=kind))
    small.randomise(model.helix, 0.1)
    z, a, r, t, text = (x.requires_grad_() if x.is_floating_point() else x for x in inputs())
    image, annotation = run(model, z, a, t, text, r, control())
    for out in (image, annotation):
        assert out.shape == z.shape
        for gradient in torch.autograd.grad(out.square().sum(), (z, a, r, text), retain_graph=True):
            assert gradient.abs().max() > 0
    without = run(model, z, a, t, text, r)[0]
    assert (image - without).abs().max() > 1e-4


@pytest.mark.parametrize("encoder", ["shared", "copy"])
def test_checkpointing_changes_memory_not_gradients(encoder):
    gradients = {}
    for checkpointing in (False, True):
        config = small.dhdiff(checkpointing=checkpointing, reference_encoder=encoder)
        model = DHDiffUNet(unet(), config).trainable_().train()
        small.randomise(model.helix, 0.1)
        z, a, r, t, text = inputs()
        image, annotation = run(model, z, a, t, text, r, control())
        (image.square().mean() + annotation.square().mean()).backward()
        gradients[checkpointing] = {
            name: p.grad for name, p in model.named_parameters() if p.grad is not None
        }
    assert gradients[True].keys() == gradients[False].keys()
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, msg=name)


def test_low_rank_adapters_train_convolutions_and_end_in_plain_weights(tmp_path):
    """Reading 17: frozen convolutions, adapters that start at zero, and a saved U-Net without
    any."""
    from diffusers import UNet2DConditionModel

    config = small.dhdiff(trainable="lora", lora_rank=2)
    model = DHDiffUNet(unet(), config).trainable_()
    trained = {name for name, p in model.unet.named_parameters() if p.requires_grad}
    assert any("conv1.lora_A" in name for name in trained) and any(
        "conv_in.lora_B" in name for name in trained
    )
    assert all("lora_" in name or ".attn1." in name or ".attn2." in name for name in trained)
    z, a, r, t, text = inputs()
    before = run(DHDiffUNet(unet(), config), z, a, t, text, r)
    for one, other in zip(run(model, z, a, t, text, r), before, strict=True):
        torch.testing.assert_close(one, other)
    small.randomise(
        torch.nn.ModuleList(
            [m for name, m in model.unet.named_modules() if name.endswith("lora_B")]
        ),
        0.05,
    )
    moved = run(model, z, a, t, text, r)
    assert (moved[0] - before[0]).abs().max() > 1e-3
    save(model, tmp_path)
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert set(plain.state_dict()) == set(unet().state_dict())
    again = DHDiffUNet(plain, config)
    again.load_helix(tmp_path / "dhdiff.safetensors")
    for one, other in zip(run(again, z, a, t, text, r), moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


ARMS = {
    "paper": ((4, 2, 4, 2), "0123", "13", "0123", "13"),
    "VIII.1": ((0, 0, 0, 0), "", "", "", ""),
    "VIII.2": ((4, 2, 0, 0), "0123", "13", "", ""),
    "VIII.3": ((0, 0, 4, 2), "", "", "0123", "13"),
    "IX.1": ((4, 0, 4, 0), "0123", "", "0123", ""),
    "IX.2": ((2, 0, 2, 0), "02", "", "02", ""),
    "IX.3": ((2, 2, 2, 2), "02", "13", "02", "13"),
    "IX.4 as printed": ((4, 4, 2, 2), "0123", "0123", "02", "13"),
}


@pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)
def test_which_layers_carry_which_module(arm):
    (dda_e, dda_d, ssm_e, ssm_d), *expected = arm
    config = small.dhdiff(
        dda_encoder=dda_e, dda_decoder=dda_d, ssm_encoder=ssm_e, ssm_decoder=ssm_d
    )
    model = DHDiffUNet(unet(), config)
    found = {(name, part): set() for name in ("dda", "ssm") for part in ("encoder", "decoder")}
    for layer in model.layers:
        for name in ("dda", "ssm"):
            if name in model.helix[layer.key.replace(".", "_")]:
                found[name, layer.part].add(layer.stage)
    order = (("dda", "encoder"), ("dda", "decoder"), ("ssm", "encoder"), ("ssm", "decoder"))
    assert [found[key] for key in order] == [{int(c) for c in stages} for stages in expected]


def test_stable_diffusion_has_its_mid_block_as_fourth_encoder_stage():
    """Reading 2, on a small U-Net with Stable Diffusion's block types."""
    from diffusers import UNet2DConditionModel

    sd = UNet2DConditionModel(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        cross_attention_dim=D,
        attention_head_dim=4,
    )
    model = DHDiffUNet(sd, small.dhdiff())
    assert {x.key for x in model.layers if x.stage == 3 and x.part == "encoder"} == {
        "encoder.mid.0"
    }
    assert "dda" in model.helix["encoder_mid_0"] and "encoder.mid.0" in model.read
    assert {x.stage for x in model.layers if x.part == "decoder"} == {0, 1, 2}
    assert chosen_stages("decoder", 3, 2) == {0, 2}
    z = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        image, annotation = run(model, z, z, torch.tensor([5]), torch.randn(1, L, D), z)
    assert image.shape == annotation.shape == z.shape and torch.isfinite(image).all()


def test_plain_unet_is_untouched_by_saving(tmp_path):
    """The folder's unet/ is a plain diffusers U-Net; the rest is in dhdiff.safetensors, and both
    come back."""
    from diffusers import UNet2DConditionModel

    model = DHDiffUNet(unet(), small.dhdiff())
    small.randomise(model.helix, 0.05)
    save(model, tmp_path)
    again = DHDiffUNet(UNet2DConditionModel.from_pretrained(tmp_path / "unet"), small.dhdiff())
    again.load_helix(tmp_path / "dhdiff.safetensors")
    assert set(UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()) == set(
        unet().state_dict()
    )
    z, a, r, t, text = inputs()
    with torch.no_grad():
        for one, other in zip(
            run(model, z, a, t, text, r, control()),
            run(again, z, a, t, text, r, copy.deepcopy(control())),
            strict=True,
        ):
            assert torch.equal(one, other)
