"""An autoencoder that is not trained but computed: the principal components of patches.

Latents of a patch of f x f pixels are its first principal components, and decoding puts them
together again: of all linear maps of that size, the one with the least squared error. At the sizes
where a few pictures and minutes are all there is, no trained autoencoder came near it
(docs/measured.md).

The container is diffusers' `AutoencoderDC`, whose pixel-unshuffling shortcuts carry the linear map
while its residual blocks give 0, so that everything that reads diffusers models reads it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import AutoencoderDC
from torch import nn
from torch.nn import functional as F

_LARGE = 1000.0
"""Value of the decoder's constant channels: beside it, the last layer's normalisation does not
depend on the picture."""


class Components:
    """Principal components of patches, from weighted pictures.

    factor: side of a patch [pixel], a power of two; mean: (3 f^2,); directions: (3 f^2, 3 f^2),
    one column per component; deviations: (3 f^2,), standard deviation along each, falling.
    """

    def __init__(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], factor: int):
        """batches: pictures (B, 3, H, W) in [-1, 1], weights of their pixels (B, 1, H, W)."""
        n = 3 * factor**2
        total, first = torch.zeros((), dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        second = torch.zeros(n, n, dtype=torch.float64)
        for pictures, weights in batches:
            x = patches(pictures, factor).double()
            w = F.avg_pool2d(weights, factor).permute(0, 2, 3, 1).reshape(-1, 1).double()
            total, first = total + w.sum(), first + (w * x).sum(0)
            second = second + (w * x).T @ x
        mean = (first / total).round(decimals=9)
        # Sums differ in their last bits by the number of threads: they are cut off.
        covariance = second / total - mean.outer(mean)
        values, vectors = torch.linalg.eigh(covariance.round(decimals=9))
        self.factor = factor
        self.mean, self.directions = mean.float(), vectors.flip(1).float()
        self.deviations = values.flip(0).clamp(min=1e-12).sqrt().float()


def patches(pictures: torch.Tensor, factor: int) -> torch.Tensor:
    """Patches (B h w, 3 f^2) of pictures (B, 3, H, W), in the order of two-fold unshuffling."""
    side = factor
    while side > 1:
        pictures, side = F.pixel_unshuffle(pictures, 2), side // 2
    return pictures.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def linear_autoencoder(
    components: Components, latent_channels: int, whitening: float
) -> AutoencoderDC:
    """The autoencoder whose latents are the first components.

    whitening: 0 leaves the components their variances, 1 makes all equal; together they have unit
    variance in any case, so that `scaling_factor` is 1.

    Raises:
        ValueError: more latent channels than values in a patch.
    """
    n = len(components.mean)
    if latent_channels > n:
        raise ValueError(f"{latent_channels} latent channels of patches of {n} values")
    levels = components.factor.bit_length() - 1
    inner = tuple(4 ** (level + 1) for level in range(1, levels + 1))  # 3 channels become 4 x 4^l
    outer = tuple(2 * channels for channels in inner)  # positive and negative part, and constants
    vae = AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_out_channels=(inner[0], *inner),
        decoder_block_out_channels=(outer[0], *outer),
        encoder_layers_per_block=(0, *(1,) * levels),
        decoder_layers_per_block=(0, *(1,) * levels),
        encoder_qkv_multiscales=((),) * (levels + 1),
        decoder_qkv_multiscales=((),) * (levels + 1),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )
    for parameter in vae.parameters():  # whatever is not set below adds nothing
        nn.init.zeros_(parameter)

    # latents: z = W (x - mean), with W of unit overall variance
    kept = components.deviations[:latent_channels]
    scales = kept ** (1 - whitening)
    scales = scales / scales.square().mean().sqrt() / kept
    project = (components.directions[:, :latent_channels] * scales).T  # (L, n)
    rebuild = components.directions[:, :latent_channels] / scales  # (n, L)

    encoder, decoder = vae.encoder, vae.decoder
    for i in range(3):
        encoder.conv_in.conv.weight[i, i, 1, 1] = 1
    encoder.conv_out.weight[:, :n, 1, 1] = project
    encoder.conv_out.bias.copy_(-project @ components.mean)

    # x = x+ - x-: the last layer's ReLU lets both parts pass, which three blocks of channels hold
    decoder.conv_in.weight[:n, :, 1, 1] = rebuild
    decoder.conv_in.weight[n : 2 * n, :, 1, 1] = -rebuild
    decoder.conv_in.bias.fill_(_LARGE)
    decoder.conv_in.bias[: 2 * n] = torch.cat([components.mean, -components.mean])
    decoder.norm_out.weight[:24] = _LARGE * (8 / 32) ** 0.5
    for i in range(12):
        decoder.conv_out.conv.weight[i, i, 1, 1] = 1
        decoder.conv_out.conv.weight[i, 12 + i, 1, 1] = -1
    return vae.eval()
