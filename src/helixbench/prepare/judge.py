"""Folders from elsewhere as the stages score and detect read them: somebody else's pairs, real
pictures without a split.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from helixbench import provenance
from helixbench.datasets.layout import check_names, pictures_in
from helixbench.datasets.mvtec_ad import MVTecAD
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.pictures import mask_gate
from helixbench.pictures.raw import (
    content_hash,
    read_mask,
    read_rgb,
    resize_mask,
    resize_rgb,
    write_png,
)
from helixbench.prepare.split import check_leaks, split_record
from helixbench.prepare.stage import prepare_one, sample_ids
from helixbench.records import GOOD, Pair, RawSample, Sample, write_csv
from helixbench.schema import Gate

log = logging.getLogger(__name__)

DATASET = "outside"
RULE = "given"
"""Name of the split in the protocols: the folders are what is given, nothing is split."""

CELLS = 5


def _folder(path: Path) -> Path:
    """The folder that holds test/, itself or its only folder (as `generate` writes it)."""
    if (path / "test").is_dir():
        return path
    inner = [folder for folder in path.glob("*/test") if folder.is_dir()] if path.is_dir() else []
    if len(inner) > 1:
        names = ", ".join(sorted(folder.parent.name for folder in inner))
        raise UserError(f"{path}: several categories in it ({names}); give the folder of one")
    if not inner:
        raise UserError(
            f"{path}: no folder test/ in it; give a folder in the layout of MVTec AD "
            f"(test/<defect>, ground_truth/<defect>)"
        )
    return inner[0].parent


def _defective(folder: Path, category: str) -> list[RawSample]:
    """Pictures of <folder>/test/<defect> with their masks; a line for what is not read."""
    problems = Problems()
    found = MVTecAD().defective(_folder(folder), DATASET, category, problems)
    check_names(found, _folder(folder), problems)
    for line in problems.odd:
        log.info("%s", line)
    return found


def _good(subset: str, category: str, found: dict[str, Path]) -> list[RawSample]:
    return [
        RawSample(DATASET, category, GOOD, subset, image.absolute(), None)
        for image in found.values()
    ]


def _normals(folder: Path, category: str, required: bool) -> list[RawSample]:
    """Normals of <folder>/train/good, or lying in the folder itself; UserError without any, where
    they are required.
    """
    found = pictures_in(folder / "train" / GOOD) or pictures_in(folder)
    if required and not found:
        raise UserError(
            f"{folder}: no normal pictures, neither in train/good nor in the folder itself; give "
            f"the folder of some"
        )
    return _good("train", category, found)


class Outside:
    """Temporary folders `prepared` and `pairs`, filled from folders in the MVTec layout at one
    working size.

    Every picture is read before anything is computed. Raises UserError for what is missing or
    unreadable, and for a picture that is both trained on and tested on.
    """

    def __init__(
        self, root: Path, size: int, category: str, settings: Gate, bits: int | None = None
    ):
        self.prepared, self.pairs, self.size, self.category = (
            root / "prepared",
            root / "pairs",
            size,
            category,
        )
        self.settings, self.bits = settings, bits
        self.samples: list[Sample] = []
        self.contents: list[tuple[str, str, str]] = []
        for name in ("images", "masks", "references"):
            (self.prepared / name).mkdir(parents=True)

    def add(self, raws: list[RawSample], role: str) -> None:
        """Prepare real pictures in one role."""
        root = Path("/")  # the pictures lie anywhere
        for raw, sample_id in zip(raws, sample_ids(raws, root), strict=True):
            sample, content = prepare_one(
                raw, sample_id, role, root, self.prepared, self.size, CELLS, self.bits
            )
            self.samples.append(sample)
            self.contents.append((str(raw.image), role, content))

    def _limits(self) -> dict[str, mask_gate.Limits]:
        """Of the mask gate, by the defect types of the real pictures that were added."""
        masks: dict[str, list] = {}
        for sample in self.samples:
            if sample.mask:
                mask = read_mask(self.prepared / sample.mask)
                masks.setdefault(sample.defect, []).append(mask)
        return mask_gate.learn_all(masks, self.settings)

    def add_pairs(self, folder: Path, name: str, consequence: str) -> list[str]:
        """Copy generated pairs, judged by the mask gate as ours are; nothing is drawn again.

        The gate's limits are learned from the real masks added before; a line says how many pairs
        it refuses and why. consequence: what becomes of these, for that line. Returns the defect
        types.
        """
        rows, counts, limits = [], {}, self._limits()
        configured = mask_gate.learn([], self.settings)
        for raw in sorted(
            _defective(folder, self.category),
            key=lambda s: (s.defect, s.image.name),
        ):
            image = read_rgb(raw.image, self.bits)
            mask = read_mask(raw.mask, image.shape[:2])
            self.contents.append((str(raw.image), "generator", content_hash(image)))
            mask = resize_mask(mask, self.size)
            index = counts.setdefault(raw.defect, 0)
            counts[raw.defect] += 1
            files = [f"{kind}/{raw.defect}/{index:05d}.png" for kind in ("images", "masks")]
            for file, array in zip(files, (resize_rgb(image, self.size), mask), strict=True):
                (self.pairs / file).parent.mkdir(parents=True, exist_ok=True)
                write_png(self.pairs / file, array)
            rows.append(
                Pair(
                    index=index,
                    dataset=DATASET,
                    category=self.category,
                    defect=raw.defect,
                    method=name,
                    image=files[0],
                    mask=files[1],
                    seed=0,
                    donor="",
                    background="",
                    raw_mask="",
                    prompt="",
                    gate=mask_gate.verdict(mask, limits.get(raw.defect, configured)),
                    redraws=0,
                    mask_area=float(mask.mean()),
                    sha256=provenance.sha256(self.pairs / files[0]),
                    mask_sha256=provenance.sha256(self.pairs / files[1]),
                )
            )
        write_csv(self.pairs / "manifest.csv", rows, Pair)
        for defect in counts:
            own = limits.get(defect, configured)
            learned = f"learned from {own.real_masks} real masks"
            log.info(
                "%s %s: gate: area %.2g to %.2g of the picture, border run to %.2g of a side (%s)",
                *(name, defect, own.min_area, own.max_area, own.max_border),
                learned if own.real_masks else "as configured",
            )
        refused = mask_gate.reasons(row.gate for row in rows)
        number = sum(row.gate != "ok" for row in rows)
        text = f": {refused}; {consequence}" if refused else ""
        log.info("%s: the mask gate refuses %d of %d pairs%s", name, number, len(rows), text)
        return list(counts)

    def close(self) -> None:
        """Check for pictures on both sides; write samples.csv and split.json."""
        check_leaks(self.contents)
        members = [(s.id, s.defect, s.role) for s in self.samples]
        write_csv(self.prepared / "samples.csv", self.samples, Sample)
        provenance.write_json(
            self.prepared / "split.json", split_record(RULE, CELLS, DATASET, self.category, members)
        )


@contextmanager
def to_score(
    pairs: Path,
    real: Path,
    *,
    name: str,
    size: int,
    settings: Gate | None = None,
    normals: Path | None = None,
    bits: int | None = None,
) -> Iterator[Outside]:
    """Pairs, and real defects as anchors; normals of `normals`, otherwise of real/train/good where
    there are some.

    settings: of the mask gate, whose limits are learned from the anchors. bits: what the camera
    uses of files of 16 bits; None: all.
    """
    with TemporaryDirectory() as temporary:
        outside = Outside(
            Path(temporary), size, _folder(real).resolve().name, settings or Gate(), bits
        )
        outside.add(_defective(real, outside.category), "generator")
        good = _normals(normals or _folder(real), outside.category, required=normals is not None)
        outside.add(good, "normal")
        known = {sample.defect for sample in outside.samples} - {GOOD}
        for defect in outside.add_pairs(pairs, name, "they are scored all the same"):
            if defect not in known:
                raise UserError(
                    f"{pairs}: no picture of {defect} in {real} ({', '.join(sorted(known))}); "
                    f"name defect types as there, or leave it out"
                )
        outside.close()
        yield outside


@contextmanager
def to_detect(
    pairs: Path,
    normals: Path,
    test: Path,
    *,
    name: str,
    size: int,
    settings: Gate | None = None,
    bits: int | None = None,
) -> Iterator[Outside]:
    """Pairs and normals to train on, test/good and test/<defect> of `test` to test on.

    settings: of the mask gate, whose limits are learned from the test masks, the only real ones.
    bits: what the camera uses of files of 16 bits; None: all.
    """
    with TemporaryDirectory() as temporary:
        outside = Outside(
            Path(temporary), size, _folder(test).resolve().name, settings or Gate(), bits
        )
        good = pictures_in(_folder(test) / "test" / GOOD)
        if not good:
            raise UserError(
                f"{_folder(test) / 'test' / GOOD}: no pictures; put normal pictures there, "
                f"metrics need both"
            )
        outside.add(
            [
                *_good("test", outside.category, good),
                *_defective(test, outside.category),
            ],
            "test",
        )
        outside.add(_normals(normals, outside.category, required=True), "normal")
        outside.add_pairs(pairs, name, "they are not trained on")
        outside.close()
        yield outside
