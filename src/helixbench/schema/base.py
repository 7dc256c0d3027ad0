"""The base model under `train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from helixbench.schema.section import Optim, Section, setting


class Autoencoder(Section):
    """AutoencoderKL of the scratch base, trained on the pictures and the masks."""

    channels: tuple[int, ...] = Field(
        (64, 128, 128), min_length=1, description="per level; n levels shrink by 2^(n-1)"
    )
    layers: int = Field(1, ge=1, description="ResNet layers a level")
    latent_channels: int = Field(4, ge=1, le=32, description="latent channels")
    kl_weight: float = Field(1e-6, ge=0, description="weight of the KL term")
    mask_share: float = Field(0.25, ge=0, le=0.5, description="share of masks in a batch")
    part_share: float = Field(
        0.0,
        ge=0,
        le=0.25,
        description="share of defects alone on mid-grey in a batch, as DualAnoDiff's part shows "
        "them",
    )
    defect_weight: float = Field(
        0.0,
        ge=0,
        description="what a defective pixel weighs more than others in the reconstruction",
    )
    optim: Optim


class TextEncoder(Section):
    """Small CLIP text model of the scratch base."""

    width: int = Field(64, ge=8, multiple_of=8, description="hidden size")
    layers: int = Field(2, ge=1, description="transformer layers")
    heads: int = Field(4, ge=1, description="attention heads; divide the width")
    max_tokens: int = Field(16, ge=4, le=77, description="tokens of a prompt, BOS and EOS included")

    @model_validator(mode="after")
    def _whole_heads(self):
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        return self


class Unet(Section):
    """U-Net of the scratch base: attention in all four down and all four up blocks (reading 2)."""

    channels: tuple[int, int, int, int] = Field(
        (64, 128, 192, 192), description="per level, multiples of 32"
    )
    layers: int = Field(1, ge=1, description="ResNet + attention layers a block")
    head_dim: int = Field(32, ge=4, description="channels of one attention head")
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "epsilon",
        description="what the network gives: noise as Stable Diffusion's, or v, turned into noise "
        "for all methods",
    )


class Scratch(Section):
    """A diffusers-format base model built small and random from here; only its autoencoder is
    trained as a base.
    """

    autoencoder: Autoencoder
    text_encoder: TextEncoder = TextEncoder()
    unet: Unet = Unet()


class Pretrained(Section):
    """A downloaded diffusers-format folder."""

    path: str = setting(
        "models/stable-diffusion-v1-5",
        description="folder with unet/ vae/ text_encoder/ tokenizer/ scheduler/",
        source="ours",
    )
    repository: str = setting(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="hub repository that `fetch_base` reads",
        source="ours",
    )
    revision: str = setting(
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        pattern=r"^[0-9a-f]{40}$",
        description="commit of the repository, in full",
        source="ours",
    )
