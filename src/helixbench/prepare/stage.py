"""The stage `prepare` of one category."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from helixbench.config import Slice
from helixbench.datasets.layout import Layout
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.pictures.mask_gate import Refusals
from helixbench.pictures.prepared import bilinear_file
from helixbench.pictures.raw import (
    bilinear_mask,
    content_hash,
    read_defect_mask,
    read_mask,
    read_rgb,
    resize_mask,
    resize_rgb,
    write_png,
)
from helixbench.pictures.raw_mask import cells_to_mask, raw_mask_cells, reference_crop
from helixbench.prepare.progress import Progress
from helixbench.prepare.sheet import Shown, draw_sheet
from helixbench.prepare.split import check_leaks, roles, split_record, told_apart
from helixbench.provenance import MARK, manifest, sha256, sha256_tree, whole_folder, write_json
from helixbench.records import (
    GOOD,
    LEAKING,
    RawSample,
    Sample,
    format_cells,
    parse_cells,
    write_csv,
)
from helixbench.schema import Gate

SHOWN = 3
"""Pictures of a role that the sheet shows."""


def sample_ids(raw: Sequence[RawSample], root: Path) -> list[str]:
    """E.g. `test_broken_large_003`: unique in a category, and stable at any size.

    Pictures of one defect type in several folders may share a name; these are called by their path
    below the root.
    """
    short = [f"{s.subset}_{s.defect}_{s.image.stem}" for s in raw]
    count = Counter(short)
    path = lambda s: s.image.relative_to(root).as_posix().replace("/", "_")
    ids = [
        fitting(name if count[name] == 1 else f"{s.subset}_{s.defect}_{path(s)}")
        for s, name in zip(raw, short, strict=True)
    ]
    again = next((name for name, count in Counter(ids).items() if count > 1), None)
    if again:
        raise UserError(
            f"{root}: two pictures get the same id {again}; rename one of them, or its folder"
        )
    return ids


def fitting(name: str, most: int = 180) -> str:
    """A name that a file can have with a few more letters: of more than `most` bytes, the first,
    and a hash of all.
    """
    if len(name.encode()) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[:most].decode(errors='ignore')}_{digest}"


def prepare_one(
    raw: RawSample, name: str, role: str, root: Path, folder: Path, size: int, k: int
) -> tuple[Sample, str]:
    """Write the working files of one picture below `folder`; returns its record and the hash of its
    pixels.
    """
    image = read_rgb(raw.image)
    content = content_hash(image)
    mask = None if raw.mask is None else read_defect_mask(raw, image.shape[:2])
    image = resize_rgb(image, size)
    sample = Sample(
        id=name,
        dataset=raw.dataset,
        category=raw.category,
        defect=raw.defect,
        role=role,
        image=f"images/{name}.png",
        mask="",
        raw_mask="",
        reference_cells="",
        reference_tight="",
        source=raw.image.relative_to(root).as_posix(),
        sha256=sha256(raw.image),
    )
    write_png(folder / sample.image, image)
    if mask is None:
        return sample, content
    grey = bilinear_mask(mask, size)
    mask = resize_mask(mask, size)
    numbers = raw_mask_cells(mask, k)
    sample = replace(
        sample,
        mask=f"masks/{name}.png",
        raw_mask=format_cells(k, numbers),
        reference_cells=f"references/{name}_cells.png",
        reference_tight=f"references/{name}_tight.png",
    )
    cells = cells_to_mask(k, numbers, size)
    write_png(folder / sample.mask, mask)
    write_png(folder / bilinear_file(sample.mask), grey)
    write_png(folder / sample.reference_cells, reference_crop(image, cells, "cells"))
    write_png(folder / sample.reference_tight, reference_crop(image, cells, "tight"))
    return sample, content


def _generator_masks(folder: Path, samples: Sequence[Sample]) -> dict[str, list[np.ndarray]]:
    """Working masks (S, S) bool of the pictures that train the generator, by defect type."""
    masks: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        if sample.defect_trains:
            masks.setdefault(sample.defect, []).append(read_mask(folder / sample.mask))
    return dict(sorted(masks.items()))


def _shown(folder: Path, sample: Sample) -> Shown:
    image = read_rgb(folder / sample.image)
    if not sample.mask:
        return Shown(sample.id, image)
    k, cells = parse_cells(sample.raw_mask)
    references = tuple(
        read_rgb(folder / name) for name in (sample.reference_cells, sample.reference_tight)
    )
    return Shown(
        f"{sample.role} {Path(sample.source).stem}",
        image,
        read_mask(folder / sample.mask),
        k,
        cells,
        references,
    )


def _sheet(folder: Path, samples: list[Sample]) -> None:
    groups = []
    for defect in [GOOD, *sorted({s.defect for s in samples} - {GOOD})]:
        chosen = [
            [s for s in samples if s.defect == defect and s.role == role][:SHOWN]
            for role in ("normal", "generator", "both", "test")
        ]
        groups.append((defect, [_shown(folder, sample) for sample in sum(chosen, [])]))
    draw_sheet(folder / "sheet.png", f"{samples[0].dataset} / {samples[0].category}", groups)


def run(dataset: str, category: str, config: Slice, *, layout: str, raw: Path, out: Path) -> None:
    """Prepare one category from the raw folder `raw` into `out`, which appears whole or not at all.

    Writes images/ (8-bit RGB), masks/ (0 and 255, and resized bilinearly beside), references/,
    samples.csv, split.json, sheet.png and, last, manifest.json, which counts the real masks that
    the mask gate would refuse by its default settings. Reads the keys `prepare.size`,
    `prepare.split` and `prepare.raw_mask_cells`. Raises UserError for bad raw data, for a defect
    type that cannot be split, and for a test picture that is also in training.
    """
    size, rule, k = (
        config["prepare.size"],
        config["prepare.split"],
        config["prepare.raw_mask_cells"],
    )
    made, read = Path(out).resolve(), (Path(raw) / category).resolve()
    if made.is_relative_to(read) or read.is_relative_to(made):
        raise UserError(f"{out}: holds the raw pictures, or lies among them; give another folder")
    root, problems = Path(raw).absolute(), Problems()
    raw_samples = Layout.named(layout).read(Path(raw), dataset, category, problems)
    ids, parts = sample_ids(raw_samples, root), roles(raw_samples, rule)
    problems.odd += told_apart(raw_samples, parts)
    progress = Progress(f"{dataset} {category}", len(raw_samples))
    with (
        whole_folder(out) as folder,
        manifest(
            folder / "manifest.json", "prepare", config, dataset=dataset, category=category
        ) as record,
    ):
        for name in ("images", "masks", "references"):
            (folder / name).mkdir()
        prepared = []
        for one in zip(raw_samples, ids, parts, strict=True):
            prepared.append(prepare_one(*one, root, folder, size, k))
            progress.step()
        record["distinct_pictures"] = check_leaks(
            (str(Path(raw) / sample.source), sample.role, content) for sample, content in prepared
        )
        samples = sorted((sample for sample, _ in prepared), key=lambda s: s.id)
        split = split_record(
            rule, k, dataset, category, ((s.id, s.defect, s.role) for s in samples)
        )
        refusals = Refusals.count(_generator_masks(folder, samples), Gate())
        write_csv(folder / "samples.csv", samples, Sample)
        write_json(folder / "split.json", split)
        _sheet(folder, samples)
        record["split_sha256"] = split["sha256"]
        record["roles"] = {
            "normal": parts.count("normal"),
            "generator": sum(s.defect_trains for s in samples),
            "test": sum(s.tests for s in samples),
        }
        if rule in LEAKING:
            record["leaking"] = parts.count("both")  # these count twice above
        record["defects"] = sorted(split["defects"])
        record["gate"] = dataclasses.asdict(refusals)
        record["odd"] = problems.odd
        record["files"] = sha256_tree(folder, exclude=("manifest.json", MARK))
    progress.done([*problems.odd, refusals.line()])
