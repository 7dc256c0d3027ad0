"""DFMGAN as a method: a GAN of normals, then a branch that adds a defect and its mask;
docs/rivals.md lists the deviations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.diffusion.sampler import draw_noise
from helixbench.engine import checkpoint
from helixbench.engine.devices import autocast
from helixbench.errors import UserError
from helixbench.methods.dfmgan.augment import augment
from helixbench.methods.dfmgan.config import DFMGAN
from helixbench.methods.dfmgan.networks import (
    Backbone,
    Defect,
    Discriminator,
    Generator,
    Mapping,
    Noise,
    sides,
)
from helixbench.methods.method import Conditions, Learner, load_exactly
from helixbench.pictures.transforms import clean_mask, to_tensor
from helixbench.provenance import read_object, write_json
from helixbench.records import derive_seed
from helixbench.schema import Sampling

LAZY = {"r1": 16, "path": 4}
"""Steps between two regularisations in StyleGAN2; here the inverse of their probability in a
step."""

TERMS = (
    "generator",
    "discriminator",
    "r1",
    "path",
    "match",
    "match_discriminator",
    "match_r1",
    "seek",
)
SHARPNESS = 10.0
"""Of tanh, which makes a mask's logits what a real mask is, -1 or 1."""


class DFMGANMethod(Learner):
    """First a StyleGAN2 of normals, then its frozen backbone with a defect branch and a second,
    matching discriminator.

    One optimiser moves all networks in one step; each term of the loss sees the networks that it is
    not for as constants.
    """

    def __init__(self, config: DFMGAN, sampling: Sampling | None = None, seed: int = 0):
        self.config, self.sampling, self.seed, self.step = config, sampling, seed, 0
        self.defects: list[str] = []
        self.size = 0
        self._module = nn.ModuleDict()

    @classmethod
    def create(cls, config: DFMGAN, base: BaseModel, seed: int) -> DFMGANMethod:
        """The networks come with `begin`, when size and defect types are known; the base has no
        part in them.
        """
        return cls(config, seed=seed)

    def begin(self, data: Pictures) -> None:
        """Seeded networks for the data's size and defect types."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "dfmgan"))
            self._build(data.size, data.defects)
            config, classes = self.config, len(data.defects) + 1
            real = Discriminator(
                data.size, 3, channels(config.channel_base, config.channel_max), classes
            )
            match = Discriminator(
                data.size, 4, channels(config.match_base, config.match_max), classes
            )
        self._module.update({"real": real, "match": match})
        # Probability of an augmentation, and running mean of the path lengths.
        self._module.register_buffer("augmentation", torch.zeros(()))
        self._module.register_buffer("path_length", torch.zeros(()))

    def _build(self, size: int, defects: list[str]) -> None:
        config, widths = self.config, channels(self.config.channel_base, self.config.channel_max)
        if not sides(size)[0] < config.defect_side <= size:
            raise UserError(
                f"defect_side {config.defect_side}: pictures of {size} have features of sides "
                f"{sides(size)}; choose one but the first"
            )
        self.size, self.defects = size, list(defects)
        self._module["mapping"] = Mapping(config.z, config.w, config.mapping_layers)
        self._module["backbone"] = Backbone(size, widths, config.w)
        self._module["defect_mapping"] = Mapping(
            config.z, config.w, config.mapping_layers, len(defects) + 1
        )
        self._module["defect"] = Defect(size, widths, config.w, config.defect_side)

    @classmethod
    def load(cls, config: DFMGAN, folder: Path, sampling: Sampling) -> DFMGANMethod:
        """Trained, from the folder that `save` wrote; without discriminators."""
        method, file = cls(config, sampling), folder / "dfmgan.json"
        size, defects = read_object(
            file, "train again", lambda known: (int(known["size"]), list(known["defects"]))
        )
        method._build(size, defects)
        file = folder / "dfmgan.safetensors"
        load_exactly(method.module, set(method.module.state_dict()), file)
        method.module.eval().requires_grad_(False)
        return method

    def save(self, folder: Path) -> None:
        """dfmgan.safetensors (mappings, backbone, defect branch) and dfmgan.json (configuration,
        size, defect types).
        """
        kept = ("mapping.", "backbone.", "defect_mapping.", "defect.")
        tensors = {name: t for name, t in self.module.state_dict().items() if name.startswith(kept)}
        checkpoint.save_tensors(folder / "dfmgan.safetensors", tensors)
        settings = {
            "config": json.loads(self.config.model_dump_json()),
            "size": self.size,
            "defects": self.defects,
        }
        write_json(folder / "dfmgan.json", settings)

    @property
    def module(self) -> nn.Module:
        """All networks."""
        return self._module

    def to(self, device: torch.device) -> DFMGANMethod:
        """Move all weights."""
        self._module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self._module["backbone"].constant.device

    def describe(self) -> str:
        """What was trained for how long, and what the mask is."""
        config, optim = self.config, self.config.optim
        steps = f"backbone {config.backbone_steps} of {optim.steps} steps x {optim.batch}"
        return f"{steps}, mask from features of side {config.defect_side}, constant noise"

    def schedule(self, step: int) -> None:
        """The first `backbone_steps` train the GAN of normals."""
        self.step = step

    # ---------------------------------------------------------------------------------------------
    # training

    def draw(
        self, data: Pictures, defective: bool, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Real pictures (B, 3, S, S) and masks (B, 1, S, S) in [-1, 1], and their labels (B,): 0 is
        a normal.
        """
        pick = lambda pool: pool[int(torch.randint(len(pool), (), generator=rng))]
        rows, labels = [], []
        for _ in range(self.config.optim.per_pass):
            label = 1 + pick(range(len(data.defects))) if defective else 0
            kind = data.defects[label - 1]
            rows.append(
                pick(
                    [i for i in data.defective if data.samples[i].defect == kind]
                    if defective
                    else data.normal
                )
            )
            labels.append(label)
        pictures, masks = (
            to_tensor([data.images[i] for i in rows]),
            to_tensor([data.masks[i] for i in rows]),
        )
        return (
            (pictures * 2 - 1).to(self.device),
            (masks * 2 - 1).to(self.device),
            torch.tensor(labels).to(self.device),
        )

    def noise(self, count: int, rng: torch.Generator) -> Noise:
        """Noise of the layers of `count` pictures."""
        return lambda side: torch.randn((count, 1, side, side), generator=rng).to(self.device)

    def styles(
        self,
        mapping: str,
        levels: int,
        count: int,
        rng: torch.Generator,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Styles (count, levels, W); of two latents, changing at a random level, in a share of
        `style_mixing` of the batches.
        """
        z = torch.randn((2, count, self.config.z), generator=rng).to(self.device)
        mixed = bool(torch.rand((), generator=rng) < self.config.style_mixing) and levels > 1
        level = int(torch.randint(1, max(2, levels), (), generator=rng))
        first = self._module[mapping](z[0], labels)[:, None].expand(
            -1, level if mixed else levels, -1
        )
        if not mixed:
            return first
        return torch.cat(
            [first, self._module[mapping](z[1], labels)[:, None].expand(-1, levels - level, -1)],
            dim=1,
        )

    @property
    def generator(self) -> Generator:
        """Backbone and defect branch together."""
        return Generator(self._module["backbone"], self._module["defect"])

    def loss(self, data: Pictures, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Non-saturating GAN losses of generator and discriminators with lazy regularisation; terms
        of the other stage are 0.
        """
        nets, config, defective = self._module, self.config, self.step >= self.config.backbone_steps
        reals, masks, labels = self.draw(data, defective, rng)
        n, training = len(reals), torch.is_grad_enabled()
        due = {
            name: training and bool(torch.rand((), generator=rng) < 1 / every)
            for name, every in LAZY.items()
        }
        terms = dict.fromkeys(TERMS, torch.zeros((), device=self.device))
        chance = float(nets.augmentation) if config.ada_target else 0.0
        backbone = [nets["mapping"], nets["backbone"]]
        with frozen(
            nets["real"],
            nets["match"],
            *(backbone if defective else [nets["defect_mapping"], nets["defect"]]),
        ):
            ws = self.styles("mapping", len(sides(self.size)), n, rng)
            branch = (
                self.styles("defect_mapping", len(nets["defect"].sides), n, rng, labels)
                if defective
                else None
            )
            fakes, logits = self.generator(ws, branch, self.noise(n, rng))
            terms["generator"] = F.softplus(
                -nets["real"](augment(fakes, chance, rng), labels)
            ).mean()
            if defective:
                drawn = torch.tanh(SHARPNESS * logits)
                terms["match"] = (
                    config.match_weight
                    * F.softplus(-nets["match"](torch.cat([fakes, drawn], 1), labels)).mean()
                )
                # The same normals with the styles of other defects of the batch.
                half = n // 2
                _, other = self.generator(ws[:half], branch[half : 2 * half], self.noise(half, rng))
                seek = mode_seeking(
                    branch[:half],
                    branch[half : 2 * half],
                    drawn[:half],
                    torch.tanh(SHARPNESS * other),
                )
                terms["seek"] = config.seek_weight * seek
            if due["path"]:
                few = max(1, n // 2)
                terms["path"] = LAZY["path"] * self.path_penalty(
                    ws[:few], None if branch is None else branch[:few], rng
                )
        # What follows is for the discriminators: the generator's pictures are data.
        fakes = fakes.detach()
        shown = augment(reals, chance, rng).requires_grad_(due["r1"])
        scores = nets["real"](shown, labels)
        terms["discriminator"] = (
            F.softplus(nets["real"](augment(fakes, chance, rng), labels)) + F.softplus(-scores)
        ).mean()
        if due["r1"]:
            terms["r1"] = LAZY["r1"] * self.r1_weight / 2 * gradient_penalty(scores, shown)
        if defective:
            pairs = torch.cat([reals, masks], 1).requires_grad_(due["r1"])
            matched = nets["match"](pairs, labels)
            mismatched = nets["match"](torch.cat([fakes, drawn.detach()], 1), labels)
            terms["match_discriminator"] = (F.softplus(mismatched) + F.softplus(-matched)).mean()
            if due["r1"]:
                terms["match_r1"] = (
                    LAZY["r1"] * self.r1_weight / 2 * gradient_penalty(matched, pairs)
                )
        if training and config.ada_target:
            kimg = config.ada_kimg_defect if defective else config.ada_kimg
            adapt(nets.augmentation, scores, config.ada_target, n / (1000 * kimg))
        return terms

    @property
    def r1_weight(self) -> float:
        """Gamma, by StyleGAN2-ADA's rule for a side and a batch."""
        return self.config.r1 * self.size**2 / self.config.optim.batch

    def path_penalty(
        self, ws: torch.Tensor, branch: torch.Tensor | None, rng: torch.Generator
    ) -> torch.Tensor:
        """Path length regularisation: how much a picture changes with its styles shall be the same
        for all; moves the mean.
        """
        ws = ws if ws.requires_grad else ws.detach().requires_grad_()
        pictures, _ = self.generator(ws, branch, self.noise(len(ws), rng))
        direction = torch.randn(pictures.shape, generator=rng).to(pictures) / self.size
        lengths = path_lengths(pictures, ws, direction)
        running = self._module.path_length
        running.lerp_(lengths.detach().mean(), 0.01)
        return self.config.path_weight * (lengths - running).square().mean()

    # ---------------------------------------------------------------------------------------------
    # sampling

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair per condition; see Method.sample.

        Of the conditions it reads the defect types alone. The layers' noise is constant, as where
        DFMGAN's code generates: pairs differ by their latents.
        """
        for defect in conditions.defects:
            if defect not in self.defects:
                raise UserError(
                    f"defect type {defect}: this model was trained on {', '.join(self.defects)} "
                    f"only; train again"
                )
        nets, device = self._module, self.device
        labels = torch.tensor([1 + self.defects.index(defect) for defect in conditions.defects]).to(
            device
        )
        z = draw_noise(generators, (2, self.config.z)).to(device)
        with autocast(device, self.config.optim.precision):
            ws = nets["mapping"](z[:, 0])[:, None].expand(-1, len(sides(self.size)), -1)
            branch = nets["defect_mapping"](z[:, 1], labels)[:, None].expand(
                -1, len(nets["defect"].sides), -1
            )
            images, logits = self.generator(ws, branch, None)
        masks = torch.stack(
            [torch.from_numpy(clean_mask(m)) for m in (logits[:, 0] >= 0).cpu().numpy()]
        )
        return (images.float() / 2 + 0.5).clamp(0, 1).cpu(), masks[:, None].float()


def channels(base: int, most: int):
    """Channels of features by their side."""
    return lambda side: min(max(1, base // side), most)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """What is computed meanwhile sees the parameters of these modules as constants."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def gradient_penalty(scores: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """R1 (Mescheder et al. 2018): mean squared norm of the gradient of the scores (B,) by their
    inputs (B, C, S, S).
    """
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_lengths(pictures: torch.Tensor, ws: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """|J^T y| (B,): Jacobian of the pictures by the styles (B, levels, W), root mean square over
    levels.
    """
    (gradient,) = torch.autograd.grad((pictures * direction).sum(), ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def mode_seeking(
    w_1: torch.Tensor, w_2: torch.Tensor, mask_1: torch.Tensor, mask_2: torch.Tensor
) -> torch.Tensor:
    """How far two defects' styles are apart by how far their masks are: small if other styles give
    other masks.
    """
    return (w_1 - w_2).abs().mean() / ((mask_1 - mask_2).abs().mean() + 1e-5)


@torch.no_grad()
def adapt(chance: torch.Tensor, scores: torch.Tensor, target: float, rate: float) -> None:
    """ADA: more augmentation while the discriminator calls more real pictures real than `target`
    (mean sign), else less.
    """
    chance.add_(math.copysign(rate, float(scores.sign().mean()) - target)).clamp_(0, 1)
