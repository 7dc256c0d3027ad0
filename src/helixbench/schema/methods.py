"""Settings of each method under `train.methods`. Numbers in parentheses are readings of
docs/readings.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from helixbench.schema.section import AdversarialOptim, Optim, Section, rising

_STAR = r"^[^*]*\*[^*]*$"
_STAR_OR_TEMPLATES = r"^(templates|[^*]*\*[^*]*)$"


def _known_places(prompt: str) -> str:
    try:
        prompt.format(category="", defect="")
    except (KeyError, IndexError, ValueError):
        raise ValueError("only {category} and {defect} may stand in braces") from None
    return prompt


class DHDiff(Section):
    """Double Helix Diffusion (readings of docs/readings.md in parentheses)."""

    kind: Literal["dhdiff"]
    label: str = Field("DH-Diff", description="name in the tables")
    dda_encoder: int = Field(
        4, ge=0, le=4, description="encoder stages with DDA, from the input side (reading 2)"
    )
    dda_decoder: int = Field(
        2, ge=0, le=4, description="decoder stages with DDA, every other one (reading 2)"
    )
    ssm_encoder: int = Field(4, ge=0, le=4, description="encoder stages with SSM (reading 2)")
    ssm_decoder: int = Field(2, ge=0, le=4, description="decoder stages with SSM (reading 2)")
    streams: Literal["batch", "channels", "canvas"] = Field(
        "batch",
        description="how convolutions see the two streams: as two samples, stacked in one map, or "
        "side by side (reading 3)",
    )
    merging: bool = Field(
        True, description="zero-initialised 1x1 convolution on the concatenated pair (reading 4)"
    )
    annotation_input: Literal["channels", "attention", "none"] = Field(
        "channels",
        description="how the raw mask enters both streams: its latent beside theirs, as keys and "
        "values of DDA, or not (reading 9)",
    )
    raw_mask_drop: float = Field(
        0.1, ge=0, lt=1, description="share of training pairs without their raw mask (reading 9)"
    )
    loss_weighting: Literal["epsilon", "v"] = Field(
        "epsilon",
        description="epsilon: all timesteps alike (paper, Eq. 8); v: by 1 / abar, the squared "
        "error of v, so that large t counts",
    )
    defect_weight: float = Field(
        0.0,
        ge=0,
        description="what the image's noise under the mask weighs more than elsewhere in the loss "
        "(0: paper, Eq. 8)",
    )
    reference: Literal["cells", "tight", "background"] = Field(
        "cells",
        description="cells: only the raw-mask cells kept; tight: their box resized; background: "
        "all but the cells (reading 8)",
    )
    reference_input: Literal["attention", "both"] = Field(
        "attention",
        description="how the reference enters the image stream: by Eq. 4, or also beside z^I by "
        "channels (reading 9)",
    )
    reference_noise: Literal["same", "independent", "none"] = Field(
        "independent",
        description="noise of the reference latent against the image's; the paper's `same` leaks "
        "(reading 7)",
    )
    reference_encoder: Literal["shared", "copy"] = Field(
        "shared",
        description="tau_theta: the U-Net's own encoder path, or a trainable copy of it "
        "(reading 6)",
    )
    eta_kernel: Literal[1, 3] = Field(1, description="kernel of eta over (h, w) (reading 13)")
    renormalise: bool = Field(
        False, description="rows of the modified score maps sum to 1 again (reading 13)"
    )
    control: Literal["tokens", "broadcast"] = Field(
        "tokens",
        description="score map of a graphical mask: on defect words / BOS, or the same on all "
        "tokens (reading 12)",
    )
    control_drop: float = Field(
        0.5, ge=0, le=1, description="share of training pairs without a control map (reading 12)"
    )
    prompt: str = Field(
        "a photo of a {category} with {defect}",
        description="prompt of a defective pair (reading 16)",
    )
    prompt_good: str = Field(
        "a photo of a flawless {category}", description="prompt of a normal (reading 16)"
    )
    prompt_drop: float = Field(
        0.1, ge=0, le=1, description="share of empty prompts, for guidance (reading 16)"
    )
    text_tokens: Literal["prompt", "all"] = Field(
        "all",
        description="text tokens attended to: the text model's all, or as many as the category's "
        "longest prompt has (reading 25)",
    )
    normal_share: float = Field(
        0.25, ge=0, le=1, description="share of normals in a batch (reading 15)"
    )
    augment: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        (), description="random symmetries of a training pair"
    )
    trainable: Literal["attention", "lora", "all"] = Field(
        "attention",
        description="attention and new modules; these and low-rank adapters on convolutions; all "
        "of the U-Net (reading 17)",
    )
    lora_rank: int = Field(
        16,
        ge=1,
        le=256,
        description="rank of the adapters, read only with trainable: lora (reading 17)",
    )
    checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    frozen_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="what frozen convolutions and linear layers are held in while training; bf16 "
        "needs optim.precision bf16",
    )
    offload: bool = Field(
        False,
        description="autoencoder and text encoder visit the GPU only for what is not encoded yet",
    )
    compile: bool = Field(
        False, description="torch.compile of ResNet blocks and feed-forward layers"
    )
    train_noise_offset: float = Field(
        0.0, ge=0, le=1, description="per-channel constant added to the noise (0: paper)"
    )
    optim: Optim

    _places = field_validator("prompt", "prompt_good")(_known_places)

    @model_validator(mode="after")
    def _raw_mask_has_a_way_in(self):
        if self.annotation_input == "attention" and not self.dda_encoder + self.dda_decoder:
            raise ValueError(
                "annotation_input attention needs a layer with DDA: set dda_encoder, dda_decoder "
                "or channels"
            )
        return self

    @model_validator(mode="after")
    def _half_precision_needs_autocast(self):
        if self.frozen_precision == "bf16" and self.optim.precision != "bf16":
            raise ValueError(
                f"frozen_precision bf16 needs optim.precision bf16, not {self.optim.precision}"
            )
        return self


class CropPaste(Section):
    """Crop&Paste (Lin et al., ICME 2021): a real defect cut by its mask, moved, and pasted into a
    normal's foreground.
    """

    kind: Literal["crop_paste"]
    label: str = Field("Crop&Paste", description="name in the tables")
    max_rotation: float = Field(180.0, ge=0, le=180, description="rotation of the cut [degree]")
    scale: tuple[float, float] = Field(
        (0.8, 1.25), description="range of the isotropic scale factor"
    )
    feather: float = Field(1.0, ge=0, description="standard deviation of the soft edge [pixel]")

    @model_validator(mode="after")
    def _scale_is_a_range(self):
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"scale {list(self.scale)} must be two positive numbers, the smaller first"
            )
        return self


class Draem(Section):
    """DRAEM's synthetic defects (Zavrtanik et al., ICCV 2021): a foreign texture behind a mask of
    Perlin noise.
    """

    kind: Literal["draem"]
    label: str = Field(
        "DRAEM synthesis", description="name in the tables; DRAEM there is its own detector"
    )
    textures: str = Field(
        "",
        description="folder of texture pictures (DRAEM: DTD); empty: the category's own normals, "
        "altered",
    )
    max_scale: int = Field(
        5, ge=0, le=8, description="Perlin noise of 2^0 ... 2^max_scale cells a side"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="noise above it is mask")
    opacity: tuple[float, float] = Field((0.2, 1.0), description="range of the texture's opacity")
    rotate_share: float = Field(0.3, ge=0, le=1, description="share of normals that are rotated")
    max_rotation: float = Field(
        90.0, ge=0, le=180, description="rotation of masks and of these normals [degree]"
    )

    _ranges = model_validator(mode="after")(rising(opacity=(0, 1)))


class CutPaste(Section):
    """CutPaste (Li et al., CVPR 2021): a rectangle of a normal pasted elsewhere in it, as patch or
    as scar.
    """

    kind: Literal["cutpaste"]
    label: str = Field(
        "CutPaste synthesis", description="name in the tables; CutPaste there is its own detector"
    )
    area: tuple[float, float] = Field(
        (0.02, 0.15), description="area of a patch [share of the picture]"
    )
    aspect: tuple[float, float] = Field((0.3, 3.3), description="height by width of a patch")
    jitter: float = Field(
        0.1, ge=0, lt=1, description="change of brightness, contrast and saturation"
    )
    scar_share: float = Field(0.5, ge=0, le=1, description="share of scars among the pairs")
    scar_width: tuple[float, float] = Field(
        (2.0, 16.0), description="width of a scar [pixel of 256]"
    )
    scar_length: tuple[float, float] = Field(
        (10.0, 25.0), description="length of a scar [pixel of 256]"
    )
    scar_rotation: float = Field(45.0, ge=0, le=180, description="rotation of a scar [degree]")
    min_overlap: float = Field(
        2 / 3,
        ge=0,
        le=1,
        description="share of the pasted piece that lies on the object; 0: anywhere",
    )

    _ranges = model_validator(mode="after")(
        rising(area=(0, 1), aspect=(0, 100), scar_width=(0, 128), scar_length=(0, 256))
    )


class Nsa(Section):
    """NSA (Schlueter et al., ECCV 2022): resized patches of another normal, blended in by solving
    Poisson's equation.
    """

    kind: Literal["nsa"]
    label: str = Field("NSA", description="name in the tables")
    patches: int = Field(
        3, ge=1, le=16, description="patches at most; each after the first with probability 1/2"
    )
    half_side: tuple[float, float] = Field(
        (0.03, 0.4),
        description="limits of half a patch's side as cut, of all of it as pasted [share of the "
        "side]",
    )
    gamma_scale: float = Field(
        0.05,
        gt=0,
        le=1,
        description="scale of the gamma distribution (shape 2) of half sides above the smallest",
    )
    resize: tuple[float, float] = Field(
        (0.7, 1.3), description="range of the patch's scale factor, drawn from N(1, 0.5)"
    )
    min_object: float = Field(
        0.7, ge=0, le=1, description="share of the patch that shows the source's object"
    )
    min_overlap: float = Field(
        0.25, ge=0, le=1, description="share of that which lies on the destination's object"
    )
    tolerance: float = Field(
        1.0,
        gt=0,
        lt=255,
        description="mean change of a pixel's channels that counts as defect [grey level of 255]",
    )

    _ranges = model_validator(mode="after")(rising(half_side=(0, 0.45), resize=(0, 4)))


class DualAnoDiff(Section):
    """DualAnoDiff (Jin et al., CVPR 2025): whole picture and defective part in two branches;
    deviations: docs/rivals.md.
    """

    kind: Literal["dualanodiff"]
    label: str = Field("DualAnoDiff", description="name in the tables")
    rank: int = Field(
        32, ge=1, description="rank of the two sets of adapters on the U-Net's attention"
    )
    text_rank: int = Field(32, ge=0, description="rank of the text encoder's adapters; 0: none")
    background: bool = Field(False, description="background compensation module")
    background_width: int = Field(320, ge=1, description="hidden width of its MLP")
    prompt: str = Field("a {category} with {defect}", description="prompt of the whole picture")
    prompt_part: str = Field("{defect}", description="prompt of the part")
    prompt_drop: float = Field(0.0, ge=0, le=1, description="share of empty prompts, for guidance")
    augment: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        ("hflip", "vflip"), description="random symmetries of a training pair"
    )
    mask_threshold: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="distance from grey, in [0, 1], beyond which the part is mask",
    )
    saliency: str = Field(
        "",
        description="U2-Net as an ONNX file, which makes the masks; empty: the distance from grey",
    )
    saliency_threshold: float = Field(
        0.5, gt=0, lt=1, description="its output, stretched to [0, 1], above which the part is mask"
    )
    sampling_steps: int | None = Field(
        100, ge=1, le=500, description="denoising steps of a pair; null: those of generate.sampling"
    )
    guidance: float | None = Field(
        2.5, ge=1, description="classifier-free guidance scale; null: that of generate.sampling"
    )
    trainable: Literal["lora", "all"] = Field(
        "lora", description="adapters and new modules, or also all of the U-Net"
    )
    optim: Optim

    _places = field_validator("prompt", "prompt_part")(_known_places)


class Stage(Section):
    """STAGE (arXiv 2509.06693): a defect drawn into a clean picture inside a given mask;
    deviations: docs/rivals.md.
    """

    kind: Literal["stage"]
    label: str = Field("STAGE", description="name in the tables")
    vectors: int = Field(4, ge=1, le=16, description="vectors of the learned word of a defect type")
    prompt: str = Field("Anomaly *", pattern=_STAR, description="prompt; * is the learned word")
    widths: tuple[int, ...] = Field(
        (64, 256, 512, 256, 64), min_length=1, description="channels of the mask guidance adapters"
    )
    mask_end: int = Field(
        200,
        ge=0,
        lt=1000,
        description="time step from which down M_t is the exact mask (alignment)",
    )
    windows: tuple[tuple[int, int], ...] = Field(
        ((700, 800), (300, 400)), description="time steps led by the anomaly-only branch"
    )
    sampling_steps: int = Field(
        1000, ge=1, le=1000, description="DDPM steps of a pair; generate.sampling is not read"
    )
    augment: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        (), description="random symmetries of a training pair"
    )
    trainable: Literal["adapters", "all"] = Field(
        "adapters", description="words and adapters, or also the U-Net, for a scratch base"
    )
    optim: Optim

    @field_validator("windows")
    @classmethod
    def _rising_windows(cls, windows):
        for low, high in windows:
            if not 0 <= low <= high <= 1000:
                raise ValueError(
                    f"window {[low, high]} must be two time steps of 0 to 1000, the smaller first"
                )
        return windows


class AnomalyDiffusion(Section):
    """AnomalyDiffusion (Hu et al., AAAI 2024): a defect drawn into a clean picture; deviations:
    docs/rivals.md.
    """

    kind: Literal["anomalydiffusion"]
    label: str = Field("AnomalyDiffusion", description="name in the tables")
    vectors: int = Field(4, ge=1, le=16, description="vectors of the learned word of a defect type")
    spatial_vectors: int = Field(4, ge=1, le=16, description="vectors that the mask gives")
    prompt: str = Field(
        "templates",
        pattern=_STAR_OR_TEMPLATES,
        description="prompt, where * is the learned word and the mask's vectors; "
        "templates: a random one of 80 plain phrases, which need a text encoder of 77 tokens",
    )
    sampling_steps: int = Field(
        200, ge=1, le=1000, description="DDIM steps of a pair; generate.sampling is not read"
    )
    eta: float = Field(1.0, ge=0, le=1, description="share of fresh noise in a DDIM step")
    reweight: tuple[float, float] | None = Field(
        None,
        description="limits of the attention's weights in the mask, which is then widened at early "
        "steps; null: neither; its authors take 1 and 1.5 for defects of texture or colour only",
    )
    masks: Literal["generated", "plan"] = Field(
        "generated", description="masks drawn by embedding inversion, or the plan's real ones"
    )
    mask_vectors: int = Field(
        16, ge=1, le=64, description="vectors of the word of a defect type's masks"
    )
    mask_prompt: str = Field(
        "templates",
        pattern=_STAR_OR_TEMPLATES,
        description="prompt of the masks, where * is that word; templates: as for prompt",
    )
    mask_sampling_steps: int = Field(100, ge=1, le=1000, description="DDIM steps of a mask")
    mask_guidance: float = Field(
        5.0,
        ge=1,
        description="classifier-free guidance scale of a mask, against the empty prompt",
    )
    mask_threshold: float = Field(
        0.8,
        gt=-1,
        lt=1,
        description="value in [-1, 1] above which a drawn mask is mask",
    )
    augment: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        ("hflip", "vflip"), description="random symmetries of a training pair"
    )
    trainable: Literal["adapters", "all"] = Field(
        "adapters", description="words and encoder, or also the U-Net, for a scratch base"
    )
    optim: Optim

    _ranges = model_validator(mode="after")(rising(reweight=(0, 10)))


class RealNet(Section):
    """RealNet's SDAS (Zhang et al., CVPR 2024): normals sampled with too much noise, blended in;
    deviations: docs/rivals.md.
    """

    kind: Literal["realnet"]
    label: str = Field(
        "RealNet synthesis", description="name in the tables; RealNet there is its own detector"
    )
    prompt: str = Field("a photo of a flawless {category}", description="prompt of the normals")
    sampling_steps: int = Field(
        20, ge=1, le=1000, description="DDPM steps of a source; generate.sampling is not read"
    )
    betas: Literal["linear", "base"] = Field(
        "linear",
        description="noise schedule: DDPM's linear one, or that of the base model",
    )
    strength: tuple[float, float] = Field(
        (0.1, 0.2), description="range of s: each step's variance is 1 + s times DDPM's"
    )
    max_scale: int = Field(
        5, ge=0, le=8, description="Perlin noise of 2^0 ... 2^max_scale cells a side"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="noise above it is mask")
    max_rotation: float = Field(90.0, ge=0, le=180, description="rotation of masks [degree]")
    opacity: tuple[float, float] = Field((0.5, 1.0), description="range of the source's opacity")
    augment: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        (), description="random symmetries of a normal"
    )
    optim: Optim

    _places = field_validator("prompt")(_known_places)

    @model_validator(mode="after")
    def _ranges(self):
        low, high = self.strength
        if not 0 <= low <= high:
            raise ValueError(
                f"strength {[low, high]} must be two numbers from 0 up, the smaller first"
            )
        if not 0 < self.opacity[0] <= self.opacity[1] <= 1:
            raise ValueError(
                f"opacity {list(self.opacity)} must be two numbers above 0 and up to 1, the "
                f"smaller first"
            )
        return self


class DFMGAN(Section):
    """DFMGAN (Duan et al., AAAI 2023): a GAN of normals with a branch for defect and mask;
    deviations: docs/rivals.md.
    """

    kind: Literal["dfmgan"]
    label: str = Field("DFMGAN", description="name in the tables")
    backbone_steps: int = Field(
        93750,
        ge=0,
        description="of optim.steps, those that train the GAN of normals, before all others",
    )
    z: int = Field(512, ge=1, description="latents of a picture, and of a defect")
    w: int = Field(512, ge=1, description="width of a style")
    mapping_layers: int = Field(2, ge=1, description="layers from latents to style")
    channel_base: int = Field(16384, ge=16, description="channels times side of the features")
    channel_max: int = Field(512, ge=1, description="channels at most")
    defect_side: int = Field(
        64,
        ge=8,
        description="side of the features from which on the defect branch adds to them [pixel]",
    )
    match_base: int = Field(4096, ge=16, description="channel_base of the matching discriminator")
    match_max: int = Field(128, ge=1, description="channel_max of the matching discriminator")
    match_weight: float = Field(1.0, ge=0, description="weight of the match of picture and mask")
    seek_weight: float = Field(0.1, ge=0, description="weight of mode seeking")
    r1: float = Field(
        0.0002, ge=0, description="R1 penalty by side squared / batch (StyleGAN2-ADA's rule)"
    )
    path_weight: float = Field(2.0, ge=0, description="weight of path length regularisation")
    style_mixing: float = Field(
        0.9, ge=0, le=1, description="share of batches with two styles a picture"
    )
    ada_target: float = Field(
        0.6,
        ge=0,
        lt=1,
        description="mean sign of the scores of real pictures that augmentation aims at; 0: none",
    )
    ada_kimg: float = Field(
        500, gt=0, description="thousand pictures in which its probability can go from 0 to 1"
    )
    ada_kimg_defect: float = Field(
        100, gt=0, description="the same in the second stage, which goes on from a trained backbone"
    )
    optim: AdversarialOptim
