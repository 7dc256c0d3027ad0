"""The score maps of figure 3 are the ones that the layers compute with."""

from __future__ import annotations

import json

import pytest
import small
import torch

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.generate import attention as stage
from helixbench.methods.dhdiff.attention import recording, score_maps
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.methods.dhdiff.modules import (
    DomainDecoupledAttention,
    _heads,
    concatenated_attention,
)
from helixbench.methods.dhdiff.unet import DHDiffUNet

PLAIN = {"dda_encoder": 0, "dda_decoder": 0, "ssm_encoder": 0, "ssm_decoder": 0, "merging": False}


def layer_and_tokens():
    unet = small.base().unet
    attention = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    small.randomise(attention)
    width = attention.to_q.in_features
    x, reference = torch.randn(2, 4, 9, width).reshape(8, 9, width), torch.randn(4, 9, width)
    return attention, x, reference


def values(attention, projection, x):
    return _heads(projection(x), attention.heads)


@pytest.mark.parametrize("dda", [False, True])
def test_weights_times_values_are_the_layer(dda):
    """With one head the mean over heads is the head, and the layer's output can be rebuilt from the
    maps."""
    attention, x, reference = layer_and_tokens()
    attention.heads = 1
    attention.scale = attention.to_q.out_features**-0.5
    image, annotation = x.chunk(2)
    with torch.no_grad():
        if dda:
            module = DomainDecoupledAttention(attention)
            small.randomise(module, seed=3)
            maps = score_maps(attention, module, x, reference)
            source = image + module.zeta(reference.transpose(1, 2)).transpose(1, 2)
            own = attention.to_out[0](maps.image_image @ attention.to_v(source)[0])
            other = module.to_out[0](maps.annotation_annotation @ module.to_v(annotation)[0])
            expected = module(attention, x, reference)
            assert maps.leak == (0, 0)
        else:
            maps = score_maps(attention, None, x, reference)
            v_image, v_annotation = attention.to_v(image)[0], attention.to_v(annotation)[0]
            own = attention.to_out[0](
                maps.image_image @ v_image + maps.image_annotation @ v_annotation
            )
            other = attention.to_out[0](
                maps.annotation_image @ v_image + maps.annotation_annotation @ v_annotation
            )
            expected = concatenated_attention(attention, x)
            assert 0 < maps.leak[0] < 1 and 0 < maps.leak[1] < 1
    torch.testing.assert_close(own, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, expected[len(x) // 2], rtol=1e-4, atol=1e-5)


def test_recording_changes_nothing_and_ends():
    net = DHDiffUNet(small.base().unet, small.dhdiff()).eval()
    small.randomise(net.helix)
    z, a, r, text = (
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 5, 32),
    )

    def run(t):
        steps = torch.full((2,), t)
        with torch.no_grad():
            return net(z, a, steps, text, net.encode_reference(r, steps, text))

    before = run(400)
    with recording(net, 500) as record:
        run(800)
        assert record.timestep is None and not record.maps
        during = run(400)
        first = dict(record.maps)
        run(100)
    after = run(400)
    assert all(
        torch.equal(x, y) and torch.equal(x, w)
        for x, y, w in zip(before, during, after, strict=True)
    )
    assert record.timestep == 400 and list(record.maps) == [layer.key for layer in net.layers]
    assert all(record.maps[key] is maps for key, maps in first.items()), (
        "later passes are not recorded"
    )
    crossing = stage.crossing(record)
    for layer in net.layers:
        has_dda = "dda" in net.helix[layer.key.replace(".", "_")]
        assert (crossing[layer.key]["image"] == 0) == has_dda


def test_the_figure_of_two_trained_models(tmp_path):
    data = small.prepared(tmp_path / "disc")
    configs = {"dhdiff": small.dhdiff(), "plain": small.dhdiff(**PLAIN)}
    for key, config in configs.items():
        DHDiffMethod.create(config, small.base(), 0).save(tmp_path / key)
    options = {
        f"train.methods.{key}": json.loads(config.model_dump_json())
        for key, config in configs.items()
    }
    config = Slice({"run.seed": 0, "generate": {"pairs": 2, "sampling": {"steps": 2}}, **options})
    models = {key: tmp_path / key for key in configs}
    stage.run(
        config, models=models, prepared=data, layer="encoder.0.0", out=tmp_path / "figure.png"
    )
    shares = json.loads((tmp_path / "figure.json").read_text())
    assert shares["dhdiff"]["crossing"]["encoder.0.0"] == {"image": 0, "annotation": 0}
    assert 0.3 < shares["plain"]["crossing"]["encoder.0.0"]["image"] < 0.7
    first = (tmp_path / "figure.png").read_bytes()
    stage.run(
        config, models=models, prepared=data, layer="encoder.0.0", out=tmp_path / "figure.png"
    )
    assert (tmp_path / "figure.png").read_bytes() == first and (
        tmp_path / "figure.pdf"
    ).read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="layer encoder.9.9: not one of encoder.0.0"):
        stage.run(
            config, models=models, prepared=data, layer="encoder.9.9", out=tmp_path / "other.png"
        )
