"""Pairs outside of the workflow: one prompt, reference, raw mask and control, given by hand."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from helixbench import provenance
from helixbench.errors import UserError
from helixbench.methods.dhdiff.pipeline import DHDiffPipeline, read_drawing
from helixbench.pictures import mask_gate
from helixbench.pictures.outline import outlined
from helixbench.pictures.prepared import read_samples
from helixbench.pictures.raw import read_mask, read_rgb, resize_rgb, write_png
from helixbench.provenance import whole_folder
from helixbench.records import inside
from helixbench.schema import Gate

log = logging.getLogger(__name__)


def parse_point(text: str) -> tuple[float, float]:
    """'0.3,0.7' -> (0.3, 0.7); UserError for anything else."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"point {text!r}: write x,y as shares of the sides, e.g. 0.3,0.7") from None
    return x, y


def run(
    *,
    model: Path,
    out: Path,
    number: int,
    seed: int,
    prompt: str | None,
    defect: str | None,
    reference: Path | None,
    raw_mask: str | None,
    control: Path | None,
    points: Sequence[str],
    options: dict,
    prepared: Path | None = None,
) -> None:
    """Write 000.png, 000_mask.png ..., overview.png and manifest.json into the new folder `out`,
    which appears whole.

    raw_mask: "5x5:1,7" or the file of a mask. prepared: folder written by `prepare`; the limits of
    the mask gate, which flags masks and redraws none, are then learned from its real masks. Raises
    UserError for bad input, before anything is written.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise UserError(f"{out}: is there already; name a new folder")
    if number < 1:
        raise UserError(f"-n {number}: make at least one pair")
    picture = None if reference is None else read_rgb(reference)
    drawing = None if control is None else read_rgb(control)
    cells = (
        raw_mask
        if raw_mask is None or re.match(r"\d+x\d+:", raw_mask)
        else read_mask(Path(raw_mask))
    )
    limits = _limits(prepared, defect)
    pipeline = DHDiffPipeline.from_pretrained(model)
    pairs = pipeline(
        prompt,
        defect=defect,
        reference=picture,
        raw_mask=cells,
        control=drawing,
        points=[parse_point(point) for point in points],
        num_pairs=number,
        seed=seed,
        **options,
    )
    images, masks = (
        [np.asarray(image) for image in pairs.images],
        [np.asarray(mask) > 0 for mask in pairs.masks],
    )
    given = {
        "prompt": prompt,
        "defect": defect,
        "raw_mask": raw_mask,
        "points": list(points),
        "seed": seed,
        "options": options,
    }
    sources = {
        name: None if file is None else provenance.sha256(file)
        for name, file in (("reference", reference), ("control", control))
    }
    settings = {
        "settings": pipeline.method.describe(),
        "trained_on": pipeline.trained_on,
        "gate_limits": mask_gate.as_record({defect or "any": limits}),
    }
    shown = [] if picture is None else [resize_rgb(picture, pipeline.size)]
    shown += [] if drawing is None else [_grey(read_drawing(drawing, pipeline.size))]
    rows = []
    with whole_folder(out) as folder:
        for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
            names = f"{i:03d}.png", f"{i:03d}_mask.png"
            write_png(folder / names[0], image)
            write_png(folder / names[1], mask)
            hashes = [provenance.sha256(folder / name) for name in names]
            judged, area = mask_gate.verdict(mask, limits), round(float(mask.mean()), 6)
            facts = {"seed": pairs.seeds[i], "gate": judged, "mask_area": area}
            rows.append(
                {
                    "image": names[0],
                    "mask": names[1],
                    **facts,
                    "sha256": hashes[0],
                    "mask_sha256": hashes[1],
                }
            )
        write_png(folder / "overview.png", overview(shown, images, masks))
        provenance.write_json(
            folder / "manifest.json",
            {**given, **sources, **settings, "pairs": rows, "versions": provenance.versions()},
        )
    bad = mask_gate.reasons(row["gate"] for row in rows)
    log.info("%d pairs in %s; masks that the gate would refuse: %s", number, out, bad or "none")


def _limits(prepared: Path | None, defect: str | None) -> mask_gate.Limits:
    """Of the mask gate: of one defect type, or of all if none is named; default without masks."""
    if prepared is None:
        return mask_gate.learn([], Gate())
    samples = [s for s in read_samples(prepared) if s.defect_trains]
    wanted = {s.defect for s in samples} if defect is None else {defect, defect.replace(" ", "_")}
    own = [s for s in samples if s.defect in wanted]
    return mask_gate.learn((read_mask(inside(prepared, s.mask)) for s in own), Gate())


def _grey(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)


def overview(
    given: Sequence[np.ndarray], images: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> np.ndarray:
    """One column for each pair: picture with the outline of its mask, below it the mask; what was
    given stands left.
    """
    columns = [np.concatenate([picture, np.full_like(picture, 255)]) for picture in given]
    for image, mask in zip(images, masks, strict=True):
        columns.append(np.concatenate([outlined(image, mask), _grey(mask)]))
    array = np.concatenate(columns, axis=1)
    factor = max(1, 128 // images[0].shape[1])
    return np.asarray(
        Image.fromarray(array).resize(
            (array.shape[1] * factor, array.shape[0] * factor), Image.Resampling.NEAREST
        )
    )
