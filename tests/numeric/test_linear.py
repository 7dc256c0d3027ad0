"""The computed autoencoder against principal components by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC

from helixbench.diffusion.linear import Components, linear_autoencoder


def pictures(n: int = 12, side: int = 32, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand((n, 3, side // 4, side // 4), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse * 2 - 1, size=(side, side), mode="bicubic")


def flat(x: torch.Tensor, factor: int) -> np.ndarray:
    """Patches as rows, in some order of their values; written out without the code under test."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // factor, factor, w // factor, factor)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * factor**2).double().numpy()


def through(vae: AutoencoderDC, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(vae.encode(x).latent).sample


@pytest.mark.parametrize("factor, kept", [(2, 5), (4, 16), (8, 40)])
def test_it_gives_back_the_first_principal_components_of_each_patch(factor, kept):
    x = pictures()
    weights = 1 + 4 * (x[:, :1] > 0.5).float()
    vae = linear_autoencoder(
        Components([(x[:6], weights[:6]), (x[6:], weights[6:])], factor), kept, 0.5
    )
    assert vae.spatial_compression_ratio == factor

    rows = flat(x, factor)
    weight = flat(weights, factor).mean(1)[:, None]
    mean = (weight * rows).sum(0) / weight.sum()
    _, _, directions = np.linalg.svd(np.sqrt(weight) * (rows - mean), full_matrices=False)
    project = directions[:kept].T @ directions[:kept]
    other = pictures(seed=1)
    expected = (flat(other, factor) - mean) @ project + mean
    np.testing.assert_allclose(flat(through(vae, other), factor), expected, atol=2e-4)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_latents_have_unit_variance_together_and_alone_when_whitened(whitening):
    x = pictures(40)
    components = Components([(x, torch.ones(40, 1, 32, 32))], 4)
    with torch.no_grad():
        z = linear_autoencoder(components, 8, whitening).encode(x).latent
    assert z.mean((0, 2, 3)).abs().max() < 1e-4
    deviations = z.std((0, 2, 3))
    assert z.std() == pytest.approx(1, abs=1e-3)
    ratio = (components.deviations[0] / components.deviations[7]) ** (1 - whitening)
    assert deviations[0] / deviations[7] == pytest.approx(float(ratio), rel=1e-3)


def test_all_components_lose_nothing_and_more_do_not_exist():
    x = pictures()
    components = Components([(x, torch.ones(12, 1, 32, 32))], 2)
    full = through(linear_autoencoder(components, 12, 1.0), x)
    assert (full - x).abs().max() < 1e-3
    with pytest.raises(ValueError, match="13 latent channels of patches of 12 values"):
        linear_autoencoder(components, 13, 1.0)


def test_the_same_components_give_the_same_file():
    components = Components([(pictures(), torch.ones(12, 1, 32, 32))], 4)
    torch.manual_seed(0)
    first = linear_autoencoder(components, 8, 0.5).state_dict()
    torch.manual_seed(1)
    second = linear_autoencoder(components, 8, 0.5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
