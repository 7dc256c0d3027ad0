"""Figure 1: pairs of one DH-Diff under point, detailed and raw-mask control beside each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from helixbench.config import Slice
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.methods.dhdiff.pipeline import DHDiffPipeline
from helixbench.pictures.lettering import figure_text
from helixbench.pictures.outline import outlined
from helixbench.pictures.raw_mask import cells_to_mask
from helixbench.provenance import write_atomic, write_json
from helixbench.records import derive_seed, parse_cells

CONTROLS = ("point", "detailed mask", "raw mask")
ROWS = 4
"""Most defect types that the figure shows."""

Shown = tuple[str, np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]
"""Defect type, reference (S, S, 3) uint8, of each control: drawing, picture, mask (S, S)."""


def middle_of(mask: np.ndarray) -> tuple[int, int]:
    """Row and column of the pixel of a (H, W) bool mask that is nearest to the mask's mean."""
    places = np.argwhere(mask)
    nearest = ((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()
    return int(places[nearest][0]), int(places[nearest][1])


def run(config: Slice, *, model: Path, prepared: Path, out: Path) -> None:
    """Write the figure to `out` (.png), next to it as .pdf, and what was given as .json.

    model: folder of a trained DH-Diff. One real defect of the generator's half of each type gives
    all three controls: a point in it, its mask, its cells. Its cells are the raw mask of all three
    pairs, and the noise is the same, so that rows differ in nothing but the control. Reads the keys
    `generate` and `run.seed`. Raises UserError for a folder that is no DH-Diff.
    """
    data = Pictures.load(prepared)
    pipeline = DHDiffPipeline.from_pretrained(model)
    if pipeline.size != data.size:
        raise UserError(f"{model}: trained at {pipeline.size} pixel, {prepared} has {data.size}")
    options = config["generate"].sampling
    unread = {"control"} | ({"strength"} if options.start == "noise" else set())
    sampling = options.model_dump(exclude=unread)
    rows, given = [], []
    for defect in data.defects[:ROWS]:
        own = [i for i in data.defective if data.samples[i].defect == defect]
        donor = own[len(own) // 2]
        sample, mask = data.samples[donor], data.masks[donor]
        paints = pipeline.method.config.reference == "background"
        reference = data.images[data.normal[0] if paints else donor]
        y, x = middle_of(mask)
        point = (x / (data.size - 1), y / (data.size - 1))
        drawings = {
            "point": {"points": [point]},
            "detailed mask": {"control": _drawing(mask)},
            "raw mask": {
                "control": _drawing(cells_to_mask(*parse_cells(sample.raw_mask), data.size))
            },
        }
        pairs = []
        for name in CONTROLS:
            made = pipeline(
                defect=defect,
                reference=reference,
                raw_mask=sample.raw_mask,
                seed=derive_seed(config["run.seed"], "figure 1", defect),
                **drawings[name],
                **sampling,
            )
            drawn = drawings[name].get("control", _cross(mask.shape, y, x))
            pairs.append((drawn, np.asarray(made.images[0]), np.asarray(made.masks[0]) > 0))
        rows.append((defect, reference, pairs))
        given.append(
            {"defect": defect, "donor": sample.id, "raw_mask": sample.raw_mask, "point": point}
        )
    for suffix in ("png", "pdf"):
        facts = {
            "png": {"Software": None},
            "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
        }[suffix]
        figure = draw(rows)
        write_atomic(
            out.with_suffix(f".{suffix}"),
            lambda path, s=suffix, f=figure, m=facts: f.savefig(
                path, dpi=200, format=s, metadata=m
            ),
        )
    write_json(out.with_suffix(".json"), {"rows": given, "settings": pipeline.method.describe()})


def _drawing(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool as a drawing, uint8 0 and 255."""
    return mask.astype(np.uint8) * np.uint8(255)


def _cross(shape: tuple[int, int], y: int, x: int) -> np.ndarray:
    """A point as a cross that can be seen: uint8 (H, W)."""
    shown, arm = np.zeros(shape, np.uint8), max(1, shape[0] // 16)
    shown[max(0, y - arm) : y + arm + 1, x] = 255
    shown[y, max(0, x - arm) : x + arm + 1] = 255
    return shown


def draw(rows: list[Shown]) -> Figure:
    """A row a defect type: the reference, then of each control the drawing, the picture, its
    mask.
    """
    figure = Figure(figsize=(7.16, 0.5 + 0.75 * len(rows)), facecolor="white", layout="constrained")
    axes = figure.subplots(len(rows), 1 + 3 * len(CONTROLS), squeeze=False)
    for line, (defect, reference, pairs) in zip(axes, rows, strict=True):
        tiles = [reference]
        for drawing, image, mask in pairs:
            tiles += [drawing, outlined(image, mask), _drawing(mask)]
        for ax, tile in zip(line, tiles, strict=True):
            ax.imshow(tile, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(figure_text(defect.replace("_", " ")), fontsize=6)
    axes[0][0].set_title("reference", fontsize=6)
    for number, name in enumerate(CONTROLS):
        for place, title in enumerate((name, "picture", "mask")):
            axes[0][1 + 3 * number + place].set_title(title, fontsize=6)
    return figure
