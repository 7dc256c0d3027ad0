"""DH-Diff outside of the workflow, in the manner of a diffusers pipeline.

>>> pipeline = DHDiffPipeline.from_pretrained("results/bottle/train/dhdiff/MVTec-AD/bottle")   #
doctest: +SKIP
>>> pairs = pipeline(                                                                          #
doctest: +SKIP
...     "a photo of a bottle with broken_large", reference=Image.open("good.png"),
raw_mask="5x5:1,2", num_pairs=4
... )
>>> pairs.images[0].save("pair.png"), pairs.masks[0].save("pair_mask.png")                     #
doctest: +SKIP
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from helixbench import provenance
from helixbench.engine.devices import pick_device
from helixbench.errors import UserError
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.method import DHDiffMethod, disc
from helixbench.pictures.raw import resize_rgb
from helixbench.pictures.raw_mask import BLANK, cells_to_mask, raw_mask_cells
from helixbench.records import derive_seed, parse_cells
from helixbench.schema import Sampling


@dataclass
class DHDiffOutput:
    """images: n RGB pictures; masks: n pictures of mode L, 0 and 255; seeds: of each pair."""

    images: list[Image.Image] = field(default_factory=list)
    masks: list[Image.Image] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


class DHDiffPipeline:
    """A trained DH-Diff that makes pairs from a prompt, a reference, a raw mask and a drawn
    control.
    """

    def __init__(self, method: DHDiffMethod, trained_on: dict):
        self.method, self.trained_on = method, trained_on
        self.size: int = trained_on["size"]

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: torch.device | str | None = None
    ) -> DHDiffPipeline:
        """Load a folder written by `helixbench train`; device: a GPU when there is one. UserError
        for another folder.
        """
        folder = Path(path)
        for name in ("dhdiff.json", "dhdiff.safetensors", "trained_on.json"):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder}: no {name}; give the folder of a trained DH-Diff, "
                    f"results/<run>/train/<method>/<data set>/<category>"
                )
        provenance.outputs(folder / "manifest.json")
        config = provenance.read_object(
            folder / "dhdiff.json",
            "not of this version of helixbench; train again",
            DHDiff.model_validate,
        )
        method = DHDiffMethod.load(config, folder, Sampling())
        method.to(pick_device() if device is None else torch.device(device))
        return cls(method, provenance.read_object(folder / "trained_on.json", "train again"))

    def to(self, device: torch.device | str) -> DHDiffPipeline:
        """Move all weights."""
        self.method.to(torch.device(device))
        return self

    def __call__(
        self,
        prompt: str | None = None,
        *,
        reference: Image.Image | np.ndarray | None = None,
        raw_mask: str | np.ndarray | None = None,
        control: Image.Image | np.ndarray | None = None,
        points: list[tuple[float, float]] | None = None,
        defect: str | None = None,
        num_pairs: int = 1,
        seed: int = 0,
        batch: int = 8,
        **sampling,
    ) -> DHDiffOutput:
        """Make `num_pairs` pairs of the trained size.

        Args:
            prompt: text; by default the training prompt with `defect`.
            reference: picture of any size, RGB or (H, W, 3) uint8: a normal where the model's
                reference is `background`, otherwise a real defect, of which the cells of the raw
                mask are shown; none leaves the reference blank.
            raw_mask: the cells of the defect, "5x5:1,7" (row-major from 0) or a (H, W) mask whose
                cells are taken; none leaves the place to the model.
            control: graphical mask, drawn bright on dark, of any size: a mask, a sketch (closed
                outlines are filled) or anything between.
            points: (x, y) as shares of the sides; joined with `control`.
            defect: the words that the control points at; by default those of the prompt. Instead of
                a prompt: the defect type to name in the training prompt.
            num_pairs: how many; pair i of one seed is the same whatever `num_pairs` and, up to
                rounding, `batch` are.
            seed: root seed of the pairs.
            batch: pairs sampled together.
            sampling: fields of `Sampling`: sampler, steps, guidance, guidance_interval, start,
                strength ...

        Raises UserError for a raw mask, a prompt or an option that cannot be used, and for whatever
        this model, as it was trained, cannot follow.
        """
        drawn = control is not None or bool(points)
        self._refuse_what_cannot_act(
            prompt, defect, reference is not None, raw_mask is not None, drawn, sampling
        )
        self.method.sampling = _sampling(sampling)
        prompt, words = self._text(prompt, defect)
        picture = (
            np.full((self.size, self.size, 3), BLANK, np.uint8)
            if reference is None
            else _rgb(reference, self.size)
        )
        cells = self._cells(raw_mask)
        drawn = self._control(control, points)
        out = DHDiffOutput(seeds=[derive_seed(seed, "pair", i) for i in range(num_pairs)])
        for first in range(0, num_pairs, batch):
            seeds = out.seeds[first : first + batch]
            n = len(seeds)
            images, masks = self.method.make(
                [picture] * n,
                None if cells is None else torch.from_numpy(cells).float().expand(n, 1, -1, -1),
                [prompt] * n,
                [words] * n,
                None if drawn is None else torch.from_numpy(drawn).float().expand(n, 1, -1, -1),
                [torch.Generator().manual_seed(one) for one in seeds],
            )
            pictures = (
                (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            )
            out.images += [Image.fromarray(array) for array in pictures]
            out.masks += [
                Image.fromarray(mask)
                for mask in (masks[:, 0].numpy() > 0.5).astype(np.uint8) * np.uint8(255)
            ]
        return out

    def _refuse_what_cannot_act(
        self,
        prompt: str | None,
        defect: str | None,
        reference: bool,
        raw_mask: bool,
        drawn: bool,
        sampling: dict,
    ) -> None:
        """UserError for what is given and would change nothing, or is missing where the rest needs
        it.
        """
        config, options = self.method.config, _sampling(sampling)
        if config.reference == "background" and not (reference and raw_mask):
            raise UserError(
                "this model paints into a normal picture (reference background): give a reference "
                "and a raw mask"
            )
        if reference and not raw_mask:
            raise UserError(
                "the raw mask says which cells of the reference are shown: give a raw mask, or no "
                "reference"
            )
        looks = (
            config.dda_encoder + config.dda_decoder > 0
            or config.reference_input == "both"
            or options.start == "reference"
        )
        if reference and not looks:
            raise UserError(
                "this model has no DDA layer, which alone looks at a reference: give none"
            )
        if (
            raw_mask
            and not reference
            and config.annotation_input == "none"
            and options.start != "reference"
        ):
            raise UserError(
                "this model was trained with annotation_input none: without a reference a raw "
                "mask has no effect"
            )
        if drawn and not config.ssm_encoder + config.ssm_decoder:
            raise UserError(
                "this model has no SSM layer, which alone looks at a control: give neither "
                "control nor points"
            )
        if drawn and config.control_drop == 1:
            raise UserError(
                "this model was trained without a control (control_drop 1): give neither control "
                "nor points"
            )
        if prompt is not None and defect is not None and not drawn:
            raise UserError(
                "beside a prompt, a defect says what the control is about: give a control or "
                "points, or no defect"
            )
        if prompt is not None and config.prompt_drop == 1:
            raise UserError(
                "this model was trained without prompts (prompt_drop 1): name a defect instead"
            )
        if "strength" in sampling and options.start == "noise":
            raise UserError("strength is read with start: reference only")
        if sampling.get("reference_noise") == "predicted" and config.reference_noise != "same":
            raise UserError(
                f"reference_noise predicted needs a model trained with `same`, not "
                f"{config.reference_noise}"
            )

    def _text(self, prompt: str | None, defect: str | None) -> tuple[str, str]:
        """The prompt, and the defect's words in it."""
        known = ", ".join(self.trained_on["defects"])
        if prompt is None:
            if defect is None:
                raise UserError(f"give a prompt or a defect; this model knows {known}")
            return self.method.prompt(self.trained_on["category"], defect), defect.replace("_", " ")
        prompt = prompt.replace("_", " ")
        if defect is None:
            template = re.escape(self.method.config.prompt)
            for name in ("category", "defect"):
                template = template.replace(re.escape("{" + name + "}"), f"(?P<{name}>.+)", 1)
            match = re.fullmatch(template, prompt)
            named = [
                name.replace("_", " ")
                for name in self.trained_on["defects"]
                if name.replace("_", " ") in prompt
            ]
            defect = (
                match["defect"]
                if match and "defect" in match.groupdict()
                else max(named, key=len, default="")
            )
        return prompt, defect.replace("_", " ")

    def _cells(self, raw_mask: str | np.ndarray | None) -> np.ndarray | None:
        """(S, S) bool of the raw mask's cells, or None; UserError for cells that the model does not
        have, or none at all.
        """
        k = self.trained_on["raw_mask_cells"]
        if raw_mask is None:
            return None
        if isinstance(raw_mask, str):
            found, cells = parse_cells(raw_mask)
            if found != k:
                raise UserError(f"raw mask {raw_mask!r}: this model was trained with {k}x{k} cells")
        else:
            cells = raw_mask_cells(np.asarray(raw_mask) > 0, k)
        if not cells:
            raise UserError("raw mask: marks nothing; mark where the defect is to be")
        return cells_to_mask(k, cells, self.size)

    def _control(
        self, control: Image.Image | np.ndarray | None, points: list[tuple[float, float]] | None
    ) -> np.ndarray | None:
        """(S, S) bool of what was drawn, or None."""
        if control is None and not points:
            return None
        drawn = np.zeros((self.size, self.size), bool)
        if control is not None:
            drawn |= read_drawing(control, self.size)
        for x, y in points or ():
            if not (0 <= x <= 1 and 0 <= y <= 1):
                raise UserError(
                    f"point {x:g},{y:g}: x and y are shares of the sides, between 0 and 1"
                )
            drawn |= disc(drawn.shape, round(y * (self.size - 1)), round(x * (self.size - 1)))
        if not drawn.any():
            raise UserError("control: draws nothing; draw bright on dark where the defect is to be")
        return drawn


def _sampling(options: dict) -> Sampling:
    """Validated options of sampling; UserError naming the first that is wrong."""
    try:
        return Sampling(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def read_drawing(drawing: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """A drawing, bright on dark, as (size, size) bool: thin strokes survive, closed outlines are
    filled.
    """
    picture = Image.fromarray(drawing) if isinstance(drawing, np.ndarray) else drawing
    bright = np.asarray(picture.convert("L")) > 127
    # The share of bright pixels under each new one: a stroke thinner than a pixel is still one.
    shares = np.asarray(
        Image.fromarray(bright.astype(np.float32), mode="F").resize(
            (size, size), Image.Resampling.BOX
        )
    )
    return ndimage.binary_fill_holes(shares > 0.15)


def _rgb(picture: Image.Image | np.ndarray, size: int) -> np.ndarray:
    array = np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture
    return resize_rgb(array, size)
