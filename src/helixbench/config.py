"""The one schema of `params.yaml`: load, overlay, slice, digest.

Sections are named like the stages. Every model is frozen and forbids unknown keys, so that a typo stops a run
before any job. "Paper" is the DH-Diff paper; "reading N" is the numbered list in docs/readings.md of what the
paper leaves open.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_core import to_jsonable_python

from helixbench.errors import UserError

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
Name = Annotated[str, Field(pattern=NAME)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# --------------------------------------------------------------------------------------------------- run, prepare


class Run(_Section):
    """What a run is called and the seed that every other seed derives from."""

    name: Name = Field("paper", description="folder under results/ and scratch/")
    seed: int = Field(0, ge=0, description="root seed; pair, batch and weight seeds are sha256 derivations of it")


class Procedural(_Section):
    """Size of the procedural data set (layout `procedural`)."""

    size: int = Field(96, ge=32, le=1024, description="picture side [pixel]")
    train_good: int = Field(24, ge=2, description="normal pictures for training, per category")
    test_good: int = Field(8, ge=2, description="normal pictures for testing, per category")
    per_defect: int = Field(8, ge=2, description="defective pictures per defect type")


class Dataset(_Section):
    """One data set: where its raw pictures are and how they are laid out."""

    layout: Literal["mvtec_ad", "procedural"] = Field(description="raw folder layout; `procedural` is drawn, not read")
    root: str = Field("", description="raw folder holding one folder a category (not used by `procedural`)")
    categories: tuple[Name, ...] = Field(min_length=1, description="categories to run")
    procedural: Procedural | None = Field(None, description="sizes, only for layout `procedural`")

    @model_validator(mode="after")
    def _root_or_procedural(self):
        if self.layout == "procedural" and self.procedural is None:
            raise ValueError("layout procedural needs the section `procedural`")
        if self.layout != "procedural" and not self.root:
            raise ValueError("needs `root`, the raw folder")
        return self


class Prepare(_Section):
    """Working pictures, binary masks, split, raw masks and reference crops."""

    size: int = Field(256, ge=32, le=1024, multiple_of=16, description="working side [pixel] (paper IV-A)")
    split: Literal["half"] = Field(
        "half", description="half: first floor(n/2) sorted files of each defect type train the generator (reading 19)"
    )
    raw_mask_cells: int = Field(5, ge=1, le=32, description="K: raw masks are K x K cells (paper III-B)")
    datasets: dict[Name, Dataset] = Field(min_length=1, description="data sets by their published name")

    @field_validator("datasets")
    @classmethod
    def _not_raw(cls, datasets):
        if "raw" in datasets:
            raise ValueError("`raw` is taken (folder of drawn pictures); choose another name")
        return datasets


# ---------------------------------------------------------------------------------------------------------- train


class Optim(_Section):
    """What the shared trainer needs to know."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch: int = Field(ge=1, description="samples a step (paper IV-B: 32)")
    lr: float = Field(gt=0, le=1, description="learning rate (paper IV-B: 1e-4)")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    decay: Literal["constant", "cosine", "multistep"] = Field(
        "constant", description="after warm-up; multistep: x0.2 at 80 % and at 90 % of the steps"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay; 0 makes AdamW the paper's Adam")
    grad_clip: float = Field(1.0, gt=0, description="gradient-norm clip")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0: no average")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast type; auto: bf16 where the device computes it natively, else fp32"
    )
    save_every_s: float = Field(300, gt=0, description="seconds between resume checkpoints [s]")
    log_every_s: float = Field(15, gt=0, description="seconds between status lines [s]")


class Autoencoder(_Section):
    """AutoencoderKL of the scratch base, trained on the pictures and the masks."""

    channels: tuple[int, ...] = Field((64, 128, 128), min_length=1, description="per level; n levels shrink by 2^(n-1)")
    layers: int = Field(1, ge=1, description="ResNet layers a level")
    latent_channels: int = Field(4, ge=1, le=32, description="latent channels")
    kl_weight: float = Field(1e-6, ge=0, description="weight of the KL term")
    mask_share: float = Field(0.25, ge=0, lt=1, description="share of masks in a batch")
    optim: Optim


class TextEncoder(_Section):
    """Small CLIP text model of the scratch base."""

    width: int = Field(64, ge=8, multiple_of=8, description="hidden size")
    layers: int = Field(2, ge=1, description="transformer layers")
    heads: int = Field(4, ge=1, description="attention heads")
    max_tokens: int = Field(16, ge=4, le=77, description="tokens of a prompt, BOS and EOS included")


class Unet(_Section):
    """U-Net of the scratch base: attention in all four down and all four up blocks (reading 2)."""

    channels: tuple[int, int, int, int] = Field((64, 128, 192, 192), description="per level, multiples of 32")
    layers: int = Field(1, ge=1, description="ResNet + attention layers a block")
    head_dim: int = Field(32, ge=4, description="channels of one attention head")


class Scratch(_Section):
    """A diffusers-format base model built small and random from here; only its autoencoder is trained as a base."""

    autoencoder: Autoencoder
    text_encoder: TextEncoder = TextEncoder()
    unet: Unet = Unet()


class Pretrained(_Section):
    """A downloaded diffusers-format folder."""

    path: str = Field("models/stable-diffusion-v1-5", description="folder with unet/ vae/ text_encoder/ tokenizer/ scheduler/")


class DHDiff(_Section):
    """Double Helix Diffusion (METHODS readings in parentheses)."""

    kind: Literal["dhdiff"]
    label: str = Field("DH-Diff", description="name in the tables")
    dda_encoder: int = Field(4, ge=0, le=4, description="encoder stages with DDA, from the input side (reading 2)")
    dda_decoder: int = Field(2, ge=0, le=4, description="decoder stages with DDA, every other one (reading 2)")
    ssm_encoder: int = Field(4, ge=0, le=4, description="encoder stages with SSM (reading 2)")
    ssm_decoder: int = Field(2, ge=0, le=4, description="decoder stages with SSM (reading 2)")
    merging: bool = Field(True, description="zero-initialised 1x1 convolution on the concatenated pair (reading 4)")
    reference: Literal["cells", "tight", "background"] = Field(
        "cells", description="cells: only the raw-mask cells kept; tight: their box resized; background: all but the cells (reading 8)"
    )
    reference_noise: Literal["same", "independent", "none"] = Field(
        "same", description="noise of the reference latent against the image's (paper III-C, reading 7)"
    )
    eta_kernel: Literal[1, 3] = Field(1, description="kernel of eta over (h, w) (reading 13)")
    renormalise: bool = Field(False, description="rows of the modified score maps sum to 1 again (reading 13)")
    control: Literal["tokens", "broadcast"] = Field(
        "tokens", description="score map of a graphical mask: on defect words / BOS, or the same on all tokens (reading 12)"
    )
    control_drop: float = Field(0.5, ge=0, le=1, description="share of training pairs without a control map (reading 12)")
    prompt: str = Field("a photo of a {category} with {defect}", description="prompt of a defective pair (reading 16)")
    prompt_good: str = Field("a photo of a flawless {category}", description="prompt of a normal (reading 16)")
    prompt_drop: float = Field(0.1, ge=0, le=1, description="share of empty prompts, for guidance (reading 16)")
    normal_share: float = Field(0.25, ge=0, le=1, description="share of normals in a batch (reading 15)")
    augment: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field((), description="random symmetries of a training pair")
    trainable: Literal["attention", "all"] = Field("attention", description="attention and new modules, or all of the U-Net (reading 17)")
    train_noise_offset: float = Field(0.0, ge=0, le=1, description="per-channel constant added to the noise (0: paper)")
    optim: Optim


class CropPaste(_Section):
    """Crop&Paste (Lin et al., ICME 2021): a real defect cut by its mask, moved, and pasted into a normal's foreground."""

    kind: Literal["crop_paste"]
    label: str = Field("Crop&Paste", description="name in the tables")
    max_rotation: float = Field(180.0, ge=0, le=180, description="rotation of the cut [degree]")
    scale: tuple[float, float] = Field((0.8, 1.25), description="range of the isotropic scale factor")
    feather: float = Field(1.0, ge=0, description="standard deviation of the soft edge [pixel]")


MethodConfig = Annotated[DHDiff | CropPaste, Field(discriminator="kind")]


class Train(_Section):
    """The base model and the methods that grow on it."""

    base: Literal["stable-diffusion-v1-5", "scratch"] = Field("stable-diffusion-v1-5", description="base model (reading 1)")
    pretrained: Pretrained = Pretrained()
    scratch: Scratch | None = Field(None, description="needed by `base: scratch`")
    methods: dict[Name, MethodConfig] = Field(min_length=1, description="methods by key; ablations are further keys")

    @field_validator("methods")
    @classmethod
    def _not_base(cls, methods):
        if "base" in methods:
            raise ValueError("`base` is taken (the base model); choose another name")
        return methods

    @model_validator(mode="after")
    def _scratch_given(self):
        if self.base == "scratch" and self.scratch is None:
            raise ValueError("base scratch needs the section `scratch`")
        return self


# ------------------------------------------------------------------------------------------------ generate .. report


class Gate(_Section):
    """When a generated mask is redrawn (counted in the manifest)."""

    min_area: float = Field(0.0005, ge=0, le=1, description="smallest mask [share of the picture]")
    max_area: float = Field(0.6, gt=0, le=1, description="largest mask [share of the picture]")
    max_border: float = Field(1 / 3, gt=0, le=1, description="longest run on a picture side [share of the side]")
    redraws: int = Field(3, ge=0, le=20, description="further tries before the last one is kept and flagged")


class Sampling(_Section):
    """How a diffusion method is sampled (the paper prints nothing of it)."""

    sampler: Literal["ddim", "dpmsolver++"] = Field("ddim", description="diffusers scheduler (reading 18)")
    steps: int = Field(50, ge=1, le=1000, description="denoising steps (reading 18)")
    guidance: float = Field(2.5, ge=1, description="classifier-free guidance scale; 1: off (reading 18)")
    start: Literal["noise", "reference"] = Field("noise", description="pure noise, or the noised reference and raw mask (reading 9)")
    strength: float = Field(0.8, gt=0, le=1, description="share of the steps run, for start: reference (reading 9)")
    control: Literal["none", "raw", "detailed"] = Field("none", description="graphical mask given to every pair by the plan (reading 12)")


class Generate(_Section):
    """The pairs to make."""

    pairs: int = Field(1000, ge=1, description="pairs per defect type (paper IV-D, reading 22)")
    batch: int = Field(32, ge=1, description="pairs sampled together; does not change them")
    max_shift: int = Field(1, ge=0, le=32, description="largest move of a raw mask by the plan [cell]")
    symmetries: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field((), description="symmetries the plan may apply to a raw mask")
    gate: Gate = Gate()
    sampling: Sampling = Sampling()


class InceptionScore(_Section):
    """Inception Score through torch-fidelity."""

    network: Literal["auto", "inception-v3", "squeezenet1_1", "random"] = Field(
        "inception-v3", description="classifier; auto: the first of these whose weights are on this machine"
    )
    splits: int = Field(10, ge=1, description="splits of the score (reading 23)")


class IcLpips(_Section):
    """Intra-cluster LPIPS."""

    network: Literal["auto", "vgg", "alex", "squeeze", "random"] = Field("vgg", description="LPIPS backbone; auto as above, then squeeze")
    cap: int = Field(50, ge=2, description="images kept per cluster")
    shuffles: int = Field(5, ge=1, description="seeded shuffles; mean and std are reported")


class ScoreSection(_Section):
    """How generated pairs are scored."""

    inception_score: InceptionScore = InceptionScore()
    ic_lpips: IcLpips = IcLpips()
    batch: int = Field(32, ge=1, description="images through a network at once")


class Localization(_Section):
    """U-Net trained on pairs and normals, tested on held-out real pictures."""

    encoder: str = Field("vgg13_bn", description="segmentation-models-pytorch encoder, no pretrained weights")
    decoder_channels: tuple[int, ...] = Field((512, 256, 128, 64, 64), description="decoder widths, deepest first")
    normal_share: float = Field(0.5, ge=0, lt=1, description="share of normals in a batch")
    max_pairs: int = Field(500, ge=1, description="pairs used per defect type")
    focal_gamma: float = Field(2.0, ge=0, description="gamma of the focal loss")
    score_window: int = Field(21, ge=1, description="side of the averaging window of the image score [pixel] (reading 21)")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="training seeds; tables give mean and std")
    pro_limit: float = Field(0.3, gt=0, le=1, description="false-positive rate up to which PRO is integrated")
    optim: Optim


class Detect(_Section):
    """Downstream detectors."""

    localization: Localization


class Report(_Section):
    """Tables and figures."""

    tables: tuple[Literal[1, 2, 4], ...] = Field((1, 2, 4), description="paper tables to render")
    grid_columns: int = Field(6, ge=1, le=32, description="pictures per row of the generation grid")


class Config(_Section):
    """The whole of params.yaml."""

    run: Run = Run()
    prepare: Prepare
    train: Train
    generate: Generate = Generate()
    score: ScoreSection = ScoreSection()
    detect: Detect
    report: Report = Report()


# ------------------------------------------------------------------------------------------------------- functions


def _overlay(below: Any, above: Any) -> Any:
    """Dictionaries merge, everything else replaces: the rule of Snakemake's --configfile."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        return {**below, **{key: _overlay(below.get(key), value) for key, value in above.items()}}
    return above


def _unwrap(annotation: Any) -> Any:
    """A schema type without its constraints and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _unwrap(members[0])
    return annotation


def _walk(root: Any, location: Iterable) -> tuple[list[str], Any]:
    """Follow pydantic's location of an error: the key as the user wrote it, and the schema type there.

    Pydantic names the tag of a discriminated union (`kind`) as a step of its own, which is no key of the file.
    """
    parts, node = [], _unwrap(root)
    for part in location:
        if get_origin(node) in (Union, UnionType):
            tagged = [m for m in get_args(node) if "kind" in getattr(m, "model_fields", {})]
            node = next((m for m in tagged if part in get_args(m.model_fields["kind"].annotation)), None)
            continue
        if part == "[key]" or str(part).startswith("function-"):
            continue
        parts.append(str(part))
        fields = getattr(node, "model_fields", {})
        if part in fields:
            node = _unwrap(fields[part].annotation)
        else:
            node = _unwrap(get_args(node)[1]) if get_origin(node) is dict else None
    return parts, node


def _one_line(error: ValidationError, source: str, root: Any) -> str:
    lines = []
    for item in error.errors():
        location = item["loc"]
        key = ".".join(_walk(root, location)[0] + (["kind"] if item["type"].startswith("union_tag") else []))
        if item["type"] == "extra_forbidden":
            known = getattr(_walk(root, location[:-1])[1], "model_fields", {})
            near = difflib.get_close_matches(str(location[-1]), known, 1)
            lines.append(f"{key}: no such key" + (f" (did you mean {near[0]}?)" if near else ""))
        else:
            value = item.get("input")
            shown = f", not {value!r}" if not isinstance(value, Mapping) and item["type"] != "missing" else ""
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return f"{source}: " + "; ".join(lines)


def _without_removed(values: Mapping) -> dict:
    """A null data set or method is taken out: the one thing that merging dictionaries cannot say."""
    values = dict(values)
    for section, key in (("prepare", "datasets"), ("train", "methods")):
        entries = values[section].get(key) if isinstance(values.get(section), Mapping) else None
        if isinstance(entries, Mapping):
            kept = {name: entry for name, entry in entries.items() if entry is not None}
            values[section] = {**values[section], key: kept}
    return values


def validate(values: Mapping, source: str = "params.yaml") -> Config:
    """Parsed YAML in, configuration out; UserError with every wrong key's full name.

    A null under `prepare.datasets` or `train.methods` removes that entry, so that an overlay can drop what it merges with.
    """
    try:
        return Config.model_validate(_without_removed(values))
    except ValidationError as error:
        raise UserError(_one_line(error, source, Config)) from None


def load(path: str | Path = "params.yaml", *overlays: str | Path) -> Config:
    """Read params.yaml and overlays; later files win, dictionaries merge, lists replace."""
    values: Any = {}
    for file in (path, *overlays):
        try:
            values = _overlay(values, yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {})
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; give a readable YAML file") from None
        except yaml.YAMLError as error:
            raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    return validate(values, " + ".join(str(file) for file in (path, *overlays)))


def lookup(config: Config, key: str) -> Any:
    """The value at a dotted key such as `train.methods.dhdiff`."""
    node: Any = config
    for part in key.split("."):
        node = node[part] if isinstance(node, Mapping) else getattr(node, part)
    return node


def slice_config(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """Exactly the values at `keys`, as plain JSON: what one stage may read."""
    return {key: to_jsonable_python(lookup(config, key)) for key in sorted(keys)}


def digest(values: Any) -> str:
    """sha256 of canonical JSON, first 16 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _type_at(key: str) -> TypeAdapter:
    """The schema type at a dotted key; dictionary levels take any name."""
    annotation: Any = Config
    for part in key.split("."):
        node = _unwrap(annotation)
        if part in getattr(node, "model_fields", {}):
            annotation = node.model_fields[part].rebuild_annotation()
        elif get_origin(node) is dict:
            annotation = get_args(node)[1]
        else:
            raise KeyError(key)
    return TypeAdapter(annotation)


class Slice(Mapping):
    """The part of a configuration that one job declared; any other key raises KeyError.

    `slice["train.base"]` is typed and validated as in `Config`.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = dict(values)

    @classmethod
    def load(cls, path: str | Path) -> Slice:
        """Read a file written by the workflow's `config_slice`."""
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a configuration slice ({error}); let Snakemake write it") from None

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        try:
            return _type_at(key).validate_python(value)
        except ValidationError as error:
            raise UserError(_one_line(error, f"configuration slice, {key}", _type_at(key)._type)) from None

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def digest(self) -> str:
        """Digest of all values of the slice."""
        return digest(self._values)


def json_schema() -> dict[str, Any]:
    """JSON schema of params.yaml, as kept in workflow/schemas/."""
    return Config.model_json_schema()
