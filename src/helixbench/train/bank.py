"""Pictures of many categories, as the training of a joint base reads them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from helixbench.config import digest
from helixbench.datasets.world.world import World
from helixbench.diffusion.bank import ARRAYS, Bank
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.pictures.files import FORMATS, is_picture
from helixbench.provenance import sha256

log = logging.getLogger(__name__)

_CHUNK = 500
_GOOD = 0.03
"""Share of drawn pictures without a defect: every other one is there without it anyway."""


def own(prepared: Sequence[Path]) -> Bank:
    """The normals and the generator's defects of prepared categories.

    A defective picture has no twin without the defect: normals stand in for it, in turn.

    Raises:
        UserError: categories of different sizes.
    """
    banks = []
    for folder in prepared:
        data = Pictures.load(folder)
        defects = [s.defect if s.defect_trains else "good" for s in data.samples]
        normal = np.array(data.normal)[np.arange(len(data.samples)) % len(data.normal)]
        normal[data.normal] = data.normal
        banks.append(
            Bank(
                data.images,
                data.images[normal],
                data.masks,
                [s.category for s in data.samples],
                defects,
                data.digest(),
            )
        )
        if data.size != banks[0].size:
            raise UserError(
                f"{folder}: pictures of {data.size} pixels, and others of {banks[0].size}; a joint "
                "base has one size"
            )
    first, *others = banks
    return sum(others, first)


def textures(folder: Path) -> np.ndarray:
    """Square pictures of one size, uint8 (n, H, H, 3), in the order of their names.

    Raises:
        UserError: no pictures, or one of another size.
    """
    files = _pictures_in(folder)
    if not files:
        raise UserError(f"{folder}: no pictures; write them with `helixbench fetch textures`")
    pictures = []
    for file in files:
        with Image.open(file, formats=FORMATS) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
        if pictures[-1].shape != (len(pictures[0]),) * 2 + (3,):
            raise UserError(f"{file}: not square, or not of the others' size; cut it alike")
    return np.stack(pictures)


def _pictures_in(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in there if is_picture(file.name) and file.is_file())


def drawn(folder: Path, n: int, size: int, photos: Path | None, seed: int, jobs: int = 1) -> Bank:
    """Pictures of the drawn world, kept in a folder of their own; a killed drawing goes on where it
    stopped, and another world takes the place of the one that is there.

    jobs: processes. The pictures do not depend on them.
    """
    shown = [(file.name, sha256(file)) for file in _pictures_in(photos)] if photos else []
    identity = digest([n, size, seed, shown])
    if not (folder / identity).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / identity).touch()
    if photos is not None and not (folder / "photos.npy").is_file():
        np.save(folder / "photos.part.npy", textures(photos))
        (folder / "photos.part.npy").replace(folder / "photos.npy")
    shapes = {"images": (n, size, size, 3), "normals": (n, size, size, 3), "masks": (n, size, size)}
    if not all((folder / f"{k}.npy").is_file() for k in ARRAYS):
        for k, shape in shapes.items():
            kind = bool if k == "masks" else np.uint8
            np.lib.format.open_memmap(folder / f"{k}.npy", "w+", kind, shape).flush()
    known = {}
    for file in folder.glob("words_*.json"):
        known[int(file.stem.partition("_")[2])] = json.loads(file.read_text(encoding="utf-8"))
    left = [first for first in range(0, n, _CHUNK) if first not in known]
    log.info("drawn world: %d of %d pictures to draw", min(n, len(left) * _CHUNK), n)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        tasks = [pool.submit(_draw, folder, first, min(n, first + _CHUNK), seed) for first in left]
        for first, task in zip(left, tasks, strict=True):
            known[first] = task.result()
    ordered = [pair for first in sorted(known) for pair in known[first]]
    arrays = [np.load(folder / f"{k}.npy", mmap_mode="c") for k in ARRAYS]
    words = [thing for thing, _ in ordered], [defect for _, defect in ordered]
    return Bank(*arrays, *words, identity)


def _draw(folder: Path, first: int, last: int, seed: int) -> list[tuple[str, str]]:
    """Draw one chunk into the arrays; its words, which are also written, last."""
    images, normals, masks = (np.load(folder / f"{k}.npy", mmap_mode="r+") for k in ARRAYS)
    photos = folder / "photos.npy"
    world = World(
        images.shape[1], np.load(photos, mmap_mode="r") if photos.is_file() else None, good=_GOOD
    )
    words = []
    for i in range(first, last):
        picture = world.sample(seed + i)
        images[i], normals[i], masks[i] = picture.image, picture.normal, picture.mask
        words.append((picture.object, picture.defect))
    for array in (images, normals, masks):
        array.flush()
    part = folder / f"words_{first}.part"
    part.write_text(json.dumps(words), encoding="utf-8")
    part.rename(folder / f"words_{first}.json")
    return words
