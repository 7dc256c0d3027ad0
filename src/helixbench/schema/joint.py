"""Section `train.joint`: one base over many categories, from which categories are fine-tuned."""

from __future__ import annotations

from pydantic import Field, SerializeAsAny, model_validator

from helixbench.schema.base import Autoencoder, TextEncoder, Unet
from helixbench.schema.method import MethodConfig
from helixbench.schema.section import Name, Optim, Section


class Joint(Section):
    """A base that is trained on pictures and masks of many categories with words for them: of a
    drawn world, of the run's own data sets, or of both.
    """

    start: str | None = Field(
        None,
        description="folder of a base that the training goes on from, a joint one or Stable "
        "Diffusion, with its own autoencoder and tokenizer; null: a new small one",
    )
    size: int = Field(
        64, ge=32, le=1024, multiple_of=32, description="side of the pictures [pixel]"
    )
    drawn: int = Field(
        40_000, ge=0, description="pictures of the drawn world (datasets/world); 0: none"
    )
    photos: str | None = Field(
        None,
        description="folder of square textures that half of the drawn pictures show, as written by "
        "`helixbench fetch textures`; null: all is drawn",
    )
    own: bool = Field(
        False,
        description="also the normals and the generator's defects of all data sets of the run",
    )
    vocabulary: int = Field(2048, ge=300, description="tokens of the byte-level BPE tokenizer")
    autoencoder: Autoencoder = Autoencoder()
    text_encoder: TextEncoder = TextEncoder(width=128, max_tokens=24)
    unet: Unet = Unet(prediction="v_prediction")
    defect_weight: float = Field(
        4.0, ge=0, description="more weight of the loss where the defect is"
    )
    prompt_drop: float = Field(0.1, ge=0, lt=1, description="share of empty prompts")
    min_snr: float | None = Field(
        5.0,
        gt=0,
        description="gamma of the min-SNR weighting (Hang et al., ICCV 2023); null: none",
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="hours of each training [h] after which the base is written, also before the "
        "last step; with more hours the training goes on; null: all steps",
    )
    optim: Optim
    methods: dict[Name, SerializeAsAny[MethodConfig]] = Field(
        {},
        description="methods that then learn their own task from the same pictures, for "
        "`start: joint`, by keys of your choice",
    )
    raw_mask_cells: int = Field(5, ge=1, le=32, description="K: their raw masks are K x K cells")

    @model_validator(mode="after")
    def _learns_from_something(self):
        if not (self.drawn or self.own):
            raise ValueError("drawn: 0 and own: false leave no pictures to learn from")
        if self.photos and not self.drawn:
            raise ValueError("photos are shown by drawn pictures; set drawn, or photos: null")
        return self
