"""The base model: a diffusers-format folder, downloaded or built small, random and in the workflow.

`unet/ vae/ text_encoder/ tokenizer/ scheduler/`, safetensors only. One loading path serves both
kinds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from helixbench.diffusion.declared import check_numbers, check_weights
from helixbench.errors import UserError
from helixbench.provenance import read_object, write_json
from helixbench.records import derive_seed
from helixbench.schema import Scratch, TextEncoder, Unet

transformers_logging.disable_progress_bar()

Autoencoders = AutoencoderKL | AutoencoderDC
AUTOENCODERS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderDC)}
"""By the class name that a diffusers folder gives."""

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_WORDS = (
    "a an the photo picture of with without and on in flawless good normal defective broken large "
    "small scratch hole "
    "bend bent stain missing part crack cut contamination color colour spot dent glue poke "
    "squeeze fold print thread "
    "metal rust scratches oil surface left right top bottom center object texture"
)


@dataclass
class BaseModel:
    """A loaded base model; `train()` and device moves are the caller's.

    `unet` predicts noise for whoever calls it, also where the network was trained to predict the
    velocity v (Salimans and Ho, 2022): `prediction` is what the network itself gives, and what its
    folder says. `folder`: where it was loaded from.
    """

    unet: UNet2DConditionModel
    vae: Autoencoders
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerFast
    scheduler: DDPMScheduler
    prediction: str = "epsilon"
    folder: Path | None = None

    def __post_init__(self):
        if self.prediction == "v_prediction":
            give_noise(self.unet, self.scheduler.alphas_cumprod)

    @classmethod
    def load(cls, folder: Path) -> BaseModel:
        """Load a diffusers folder with `from_pretrained`, offline; UserError naming the part that
        is missing.
        """
        for part in PARTS:
            if not (folder / part).is_dir():
                raise UserError(
                    f"{folder / part}: no such folder; put a diffusers-format Stable Diffusion "
                    f"1.x model into {folder}"
                )
        try:
            return cls._load(folder)
        except UserError:
            raise
        except Exception as error:  # whatever a damaged or foreign configuration makes them raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder}: not a whole diffusers-format model with safetensors weights "
                f"({reason}); fetch or train it again"
            ) from None

    @classmethod
    def _load(cls, folder: Path) -> BaseModel:
        offline = {"local_files_only": True}
        for part in PARTS:
            check_numbers(folder / part)
        unet, vae = UNet2DConditionModel, _autoencoder(folder / "vae")
        for part, kind in (("unet", unet), ("vae", vae)):
            config = kind.load_config(folder / part, **offline)
            check_weights(folder / part, partial(kind.from_config, config))
        text = CLIPTextConfig.from_pretrained(folder / "text_encoder", **offline)
        check_weights(folder / "text_encoder", lambda: CLIPTextModel(text))
        # Any SD scheduler (PNDM, DDIM) describes the same noise; training needs it as DDPM.
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", **offline)
        prediction = scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the scheduler says prediction_type {prediction}; epsilon and v_prediction can "
                f"be used"
            )
        return cls(
            unet=unet.from_pretrained(folder / "unet", use_safetensors=True, **offline).float(),
            vae=vae.from_pretrained(folder / "vae", use_safetensors=True, **offline),
            text_encoder=CLIPTextModel.from_pretrained(
                folder / "text_encoder", use_safetensors=True, **offline
            ).float(),
            tokenizer=AutoTokenizer.from_pretrained(
                folder / "tokenizer", trust_remote_code=False, **offline
            ),
            scheduler=DDPMScheduler.from_config(scheduler.config, prediction_type="epsilon"),
            prediction=prediction,
            folder=folder,
        )

    def read_unet(self, folder: Path) -> None:
        """Take the weights of a folder's `unet`, which has this one's shape."""
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        try:
            self.unet.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file}: not the weights of this U-Net ({reason})") from None

    def save(self, folder: Path) -> None:
        """Write all parts and their index in diffusers format."""
        for part in PARTS:
            self.save_part(part, folder)
        self.save_index(folder)

    def save_index(self, folder: Path) -> None:
        """Write model_index.json, by which diffusers and `train.pretrained.path` know a model."""
        kinds = {part: type(getattr(self, part)) for part in PARTS}
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": diffusers.__version__,
            **{
                part: [kind.__module__.split(".")[0], kind.__name__] for part, kind in kinds.items()
            },
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        }
        write_json(folder / "model_index.json", index)

    def save_part(self, part: str, folder: Path) -> None:
        """Write one of PARTS in diffusers format."""
        if part == "scheduler":
            DDPMScheduler.from_config(
                self.scheduler.config, prediction_type=self.prediction
            ).save_pretrained(folder / part)
        else:
            getattr(self, part).save_pretrained(folder / part)

    def modules(self) -> list[nn.Module]:
        """The parts with weights."""
        return [self.unet, self.vae, self.text_encoder]

    def to(self, device: torch.device) -> BaseModel:
        """Move all weights."""
        for module in self.modules():
            module.to(device)
        return self

    def half(self) -> BaseModel:
        """Half precision for the networks, as files of half the size; a computed autoencoder keeps
        its own.
        """
        self.unet.half()
        self.text_encoder.half()
        return self

    def tokens(self, prompts: list[str]) -> torch.Tensor:
        """Token ids (B, L), padded to the model's length as Stable Diffusion does."""
        length = self.tokenizer.model_max_length
        return torch.tensor(
            self.tokenizer(
                prompts, padding="max_length", truncation=True, max_length=length
            ).input_ids
        )

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Text embeddings T (B, L, D) of prompts, on the text encoder's device, in its own
        precision.
        """
        with torch.autocast(self.text_encoder.device.type, enabled=False):
            return self.text_encoder(
                self.tokens(prompts).to(self.text_encoder.device)
            ).last_hidden_state

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> scaled latents (B, C, H/f, W/f): the posterior mean."""
        code = self.vae.encode(pictures.to(self.vae.device) * 2 - 1)
        latents = code.latent if isinstance(self.vae, AutoencoderDC) else code.latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> (B, 3, H, W) in [0, 1]."""
        return (
            self.vae.decode(latents / self.vae.config.scaling_factor).sample.float() / 2 + 0.5
        ).clamp(0, 1)

    @property
    def latent_factor(self) -> int:
        """Pixels per latent position, along one side."""
        if isinstance(self.vae, AutoencoderDC):
            return self.vae.spatial_compression_ratio
        return 2 ** (len(self.vae.config.block_out_channels) - 1)


def _autoencoder(folder: Path) -> type[Autoencoders]:
    """The class of the autoencoder in a diffusers folder."""
    name = read_object(folder / "config.json", "fetch or train it again").get("_class_name")
    if name not in AUTOENCODERS:
        raise ValueError(f"the autoencoder is a {name}; {' and '.join(AUTOENCODERS)} can be used")
    return AUTOENCODERS[name]


def give_noise(unet: UNet2DConditionModel, alphas_cumprod: torch.Tensor) -> None:
    """Make a U-Net that predicts v give noise: eps = sqrt(abar) v + sqrt(1 - abar) z, abar at each
    sample's timestep.

    At large t the latent is nearly all noise, and predicting noise needs it copied to a percent.
    That part is in the formula here, so that a network trained from scratch learns the picture's
    layout sooner.
    """
    known: dict[torch.device, torch.Tensor] = {}

    def convert(
        module: nn.Module, args: tuple, kwargs: dict, out: UNet2DConditionOutput
    ) -> UNet2DConditionOutput:
        z, t = args[0].float(), torch.as_tensor(args[1])
        if z.device not in known:  # once: a CUDA graph cannot hold the copy
            known[z.device] = alphas_cumprod.to(z.device)
        abar = known[z.device][t.to(z.device)].reshape(-1, 1, 1, 1)
        return UNet2DConditionOutput(
            sample=abar.sqrt() * out.sample.float() + (1 - abar).sqrt() * z
        )

    unet.register_forward_hook(convert, with_kwargs=True)


# ------------------------------------------------------------------------------------------------
# building from scratch


def words_of(texts: Iterable[str]) -> list[str]:
    """Lower-case words and numbers, underscores apart, sorted and unique."""
    return sorted({word for text in texts for word in re.findall(r"[^\W_]+", text.lower())})


def build_tokenizer(texts: Iterable[str], config: TextEncoder) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over common defect words and the data set's own; unknown words share one
    token.
    """
    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate(special + words_of([_WORDS, *texts]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace("_", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=config.max_tokens,
    )


def build_text_encoder(tokenizer: PreTrainedTokenizerFast, config: TextEncoder) -> CLIPTextModel:
    """Small CLIP text model with random weights for the tokens of a tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def build_unet(
    config: Unet, latent_channels: int, latent_size: int, text_width: int
) -> UNet2DConditionModel:
    """U-Net with attention in all four down and up blocks and none between them (reading 2)."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * 4,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D",) * 4,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=text_width,
        # diffusers' argument of this name is the number of heads
        attention_head_dim=tuple(max(1, width // config.head_dim) for width in config.channels),
        norm_num_groups=math.gcd(32, *config.channels),
    )


def build_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise: scaled-linear beta 0.00085 to 0.012, T = 1000, noise prediction
    (reading 1).
    """
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
    )


def build(
    config: Scratch, vae: Autoencoders, size: int, texts: Iterable[str], seed: int
) -> BaseModel:
    """A whole small base model for pictures of `size` x `size` pixels: an autoencoder, and U-Net
    and text encoder of seeded random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "base"))
        tokenizer = build_tokenizer(texts, config.text_encoder)
        return BaseModel(
            unet=build_unet(
                config.unet,
                vae.config.latent_channels,
                size // config.autoencoder.factor,
                config.text_encoder.width,
            ),
            vae=vae,
            text_encoder=build_text_encoder(tokenizer, config.text_encoder),
            tokenizer=tokenizer,
            scheduler=build_scheduler(),
            prediction=config.unet.prediction,
        )
