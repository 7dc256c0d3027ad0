"""Figure 3: what a query in the defect attends to, in a model with DDA and in one without, on one
planned pair.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from helixbench.config import Slice
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.generate.plan import conditions, make_plan
from helixbench.generate.stage import load_method
from helixbench.methods.dhdiff.attention import Record, ScoreMaps, recording
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.pictures.lettering import figure_text
from helixbench.provenance import write_atomic, write_json

NAMES = {
    "image_image": "image to image",
    "image_annotation": "image to annotation",
    "annotation_image": "annotation to image",
    "annotation_annotation": "annotation to annotation",
}
SHARE = 0.5
"""Of the timesteps: in the middle of the sampling, when the layout is there and details are not."""


def run(config: Slice, *, models: dict[str, Path], prepared: Path, layer: str, out: Path) -> None:
    """Write the figure to `out` (.png), next to it as .pdf, and the shares of attention by layer as
    .json.

    models: method key of train.methods -> folder of the trained DH-Diff. layer: key of the layer
    shown, e.g. encoder.1.0. Raises UserError for a method that is no DH-Diff, and for a layer that
    is not there.
    """
    data = Pictures.load(prepared)
    plan = make_plan(data, config["generate"], config["run.seed"])[:1]
    rows, shares = [], {}
    for key, folder in models.items():
        method = load_method(key, config, folder)
        if not isinstance(method, DHDiffMethod):
            raise UserError(f"{key}: not a DH-Diff; figure 3 shows its attention")
        steps = method.base.scheduler.config.num_train_timesteps
        with recording(method.unet, round(SHARE * steps)) as record:
            generators = [torch.Generator().manual_seed(plan[0].seed)]
            image, mask = method.sample(
                conditions(data, plan, config["generate"].sampling.control), generators
            )
        if layer not in record.maps:
            raise UserError(f"layer {layer}: not one of {', '.join(record.maps)}")
        rows.append(
            (key, image[0].permute(1, 2, 0).numpy(), mask[0, 0].numpy() > 0.5, record.maps[layer])
        )
        shares[key] = {"timestep": record.timestep, "crossing": crossing(record)}
    for suffix in ("png", "pdf"):
        facts = (
            {"Software": None}
            if suffix == "png"
            else {"CreationDate": None, "Creator": None, "Producer": None}
        )
        figure = draw(rows, layer, plan[0].defect)
        write_atomic(
            out.with_suffix(f".{suffix}"),
            lambda path, s=suffix, f=figure, m=facts: f.savefig(
                path, dpi=200, format=s, metadata=m
            ),
        )
    write_json(out.with_suffix(".json"), shares)


def crossing(record: Record) -> dict[str, dict[str, float]]:
    """By layer: share of attention that image queries give to annotation keys, and the other way
    round.
    """
    return {
        key: dict(zip(("image", "annotation"), (round(x, 4) for x in maps.leak), strict=True))
        for key, maps in record.maps.items()
    }


def query_of(mask: np.ndarray, side: tuple[int, int]) -> int:
    """Position of the layer's grid (h, w) that holds most of the defect; the middle for an empty
    mask.
    """
    h, w = side
    if not mask.any():
        return (h // 2) * w + w // 2
    rows, columns = np.nonzero(mask)
    counts = np.zeros(side)
    np.add.at(counts, (rows * h // mask.shape[0], columns * w // mask.shape[1]), 1)
    return int(counts.argmax())


def draw(
    rows: list[tuple[str, np.ndarray, np.ndarray, ScoreMaps]], layer: str, defect: str
) -> Figure:
    """A row a model: the pair with the query's place, then what the query of each domain gives to
    the keys of each domain.
    """
    figure = Figure(figsize=(7.16, 0.5 + 1.5 * len(rows)), facecolor="white", layout="constrained")
    axes = figure.subplots(len(rows), 5, squeeze=False)
    for row, (key, image, mask, maps) in zip(axes, rows, strict=True):
        n = len(maps.image_image)
        aspect = image.shape[0] / image.shape[1]
        h = round((n * aspect) ** 0.5)
        query = query_of(mask, (h, n // h))
        y, x = divmod(query, n // h)
        row[0].imshow(image.clip(0, 1))
        if mask.any():
            row[0].contour(mask, levels=[0.5], colors="#ff2020", linewidths=0.8)
        row[0].plot(
            (x + 0.5) * image.shape[1] / (n // h),
            (y + 0.5) * image.shape[0] / h,
            marker="+",
            color="#00e0ff",
            markersize=9,
        )
        row[0].set_ylabel(figure_text(key), fontsize=8)
        found = {
            name: getattr(maps, name)[query].float().cpu().reshape(h, n // h).numpy()
            for name in NAMES
        }
        top = max(one.max() for one in found.values())
        for ax, (name, one) in zip(row[1:], found.items(), strict=True):
            ax.imshow(one, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
            ax.set_title(f"{NAMES[name]}\n{100 * one.sum():.0f} %", fontsize=7)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
    figure.supxlabel(
        f"self-attention of the query + at layer {layer}, in the middle of sampling a "
        f"{defect.replace('_', ' ')}",
        fontsize=7,
    )
    return figure
