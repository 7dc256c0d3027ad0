"""The base model under `train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from helixbench.schema.section import Section, setting


class Autoencoder(Section):
    """Autoencoder of the scratch base: the principal components of patches, computed from the
    pictures and masks that the generator sees (diffusion/linear.py).
    """

    factor: Literal[2, 4, 8] = Field(
        4, description="side of a patch [pixel], by which latents are smaller than pictures"
    )
    latent_channels: int = Field(
        8,
        ge=1,
        description="latent channels: components kept, of 3 factor^2; more keep more detail, and "
        "are more to learn",
    )
    whitening: float = Field(
        0.5, ge=0, le=1, description="0 leaves the components their variances, 1 makes all equal"
    )
    pictures: int = Field(
        1000, ge=1, description="random pictures and masks from which the components are computed"
    )
    mask_share: float = Field(0.25, ge=0, le=0.5, description="share of masks among them")
    defect_weight: float = Field(
        4.0, ge=0, description="what a defective pixel weighs more than others in the squared error"
    )

    @model_validator(mode="after")
    def _no_more_than_there_are(self):
        if self.latent_channels > 3 * self.factor**2:
            raise ValueError(
                f"latent_channels {self.latent_channels}: patches of {self.factor} x {self.factor} "
                f"pixels have {3 * self.factor**2} components"
            )
        return self


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
    """A diffusers-format base model built small from here: a computed autoencoder, and a U-Net and
    a text encoder of random weights.
    """

    autoencoder: Autoencoder = Autoencoder()
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
