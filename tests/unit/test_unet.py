"""The localization U-Net against the facts of DRAEM's segmentation network."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helixbench.detect.unet import UNet


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_it_has_the_convolutions_and_parameters_of_draem():
    """Each is 3 x 3, with a bias; all but the last are normalised, which adds two numbers a
    channel."""
    model = UNet(64)
    down = [64, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512]
    # after each enlargement one convolution, then two on it and the level's features side by side
    enlarged = [(512, 512), (512, 256), (256, 128), (128, 64), (64, 64)]
    joined = [(1024, 512), (768, 256), (384, 128), (192, 64), (128, 64)]
    channels = list(pairwise([3, *down])) + [(64, 2)]
    for (into, out), (beside, _) in zip(enlarged, joined, strict=True):
        channels += [(into, out), (beside, out), (out, out)]
    found = convolutions(model)
    assert len(found) == 28
    shapes = sorted((conv.in_channels, conv.out_channels) for conv in found)
    assert shapes == sorted(channels)
    assert all(conv.kernel_size == (3, 3) and conv.padding == (1, 1) for conv in found)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    normalised = sum(out for _, out in channels) - 2
    by_hand = sum(9 * into * out + out for into, out in channels) + 2 * normalised
    assert numbers == by_hand == 28_372_418


@torch.no_grad()
def test_first_weights_are_drawn_as_draems():
    torch.manual_seed(0)
    model = UNet(32)
    weights = torch.cat([conv.weight.flatten() for conv in convolutions(model)])
    assert weights.mean().abs() < 1e-4 and weights.std() == pytest.approx(0.02, rel=5e-3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    scales = torch.cat([norm.weight for norm in norms])
    assert len(norms) == 27 and scales.mean() == pytest.approx(1, abs=2e-3)
    assert scales.std() == pytest.approx(0.02, rel=0.1)
    assert all(not norm.bias.any() for norm in norms)


def plainly(model, x):
    """The network once more, level by level as DRAEM's figure shows it."""
    one = model.down[0](x)
    two = model.down[1](F.max_pool2d(one, 2))
    three = model.down[2](F.max_pool2d(two, 2))
    four = model.down[3](F.max_pool2d(three, 2))
    five = model.down[4](F.max_pool2d(four, 2))
    x = model.down[5](F.max_pool2d(five, 2))
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    for i, features in enumerate((five, four, three, two, one)):
        x = model.join[i](torch.cat([model.up[i](enlarge(x)), features], 1))
    return model.last(x)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_features_of_each_level_join_after_the_enlargement(size):
    torch.manual_seed(1)
    model, x = UNet(4), torch.rand(2, 3, size, size)
    with torch.no_grad():  # normalised by the batch: weights of 0.02 alone let nothing through
        found, expected = model(x), plainly(model, x)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 48), (80, 112), (33, 63)])
def test_sides_need_not_be_multiples_of_32(size):
    model = UNet(4)
    out = model(torch.rand(2, 3, *size))
    assert out.shape == (2, 2, *size)
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
