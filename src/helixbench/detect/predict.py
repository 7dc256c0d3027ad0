"""What a trained detector says of new pictures: maps, scores, verdicts, overlays."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from helixbench.detect import conformal
from helixbench.detect.conformal import Threshold
from helixbench.detect.detector import NETWORK
from helixbench.detect.sheet import Found, write_contact_sheet
from helixbench.detect.trained import Classifier, Localizer
from helixbench.errors import UserError, UserErrors
from helixbench.pictures.files import SUFFIXES, is_picture
from helixbench.pictures.outline import outlined
from helixbench.pictures.raw import read_rgb, resize_rgb, write_png
from helixbench.provenance import sha256, whole_folder, write_json
from helixbench.records import write_csv

log = logging.getLogger(__name__)

FULL = 65535
"""Value of an anomaly map's 1 in its file."""

NORMAL, DEFECTIVE = "normal", "defective"

_SHOWN = 48
"""Pictures on the contact sheet, those of the highest scores."""


@dataclass(frozen=True)
class Prediction:
    """One picture: a row of predictions.csv.

    picture: as it was given; width, height [pixel]; score: in [0, 1]; threshold: a picture above it
    is defective, None where there is none, and no verdict then; defect, certainty: defect type and
    its softmax by the classifier, of pictures that are not normal; map: 16-bit PNG of the picture's
    size, 65535 is 1; overlay: PNG with contours.
    """

    picture: str
    width: int
    height: int
    score: float
    threshold: float | None
    verdict: str
    defect: str
    certainty: float | None
    map: str
    overlay: str


def pictures_of(given: Sequence[Path], out: Path) -> list[Path]:
    """Files as given, and the pictures in and below folders, sorted; each once.

    Hidden files and what lies in `out` are left out, and other files with a warning. Raises
    UserError for a folder without pictures.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir():  # one that is missing is named as unreadable
            found.append(path)
            continue
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file()
            and out.resolve() not in file.resolve().parents
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        pictures = [file for file in files if is_picture(file.name)]
        others = [file for file in files if not is_picture(file.name)]
        if not pictures:
            raise UserError(f"{path}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
        if others:
            log.warning("%s: %d files are no pictures, e.g. %s", path, len(others), others[0].name)
        found += pictures
    return list(dict.fromkeys(found))


def names(pictures: Sequence[Path]) -> list[str]:
    """A name for the files of each: its stem; of several with one, a hash of the path beside it."""
    count = Counter(picture.stem.lower() for picture in pictures)
    return [
        picture.stem
        if count[picture.stem.lower()] == 1
        else f"{picture.stem}_{hashlib.sha256(picture.as_posix().encode()).hexdigest()[:8]}"
        for picture in pictures
    ]


def enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (S, S) float32 at (H, W) `size`, bilinear."""
    picture = Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture)


class _Line:
    """Detector, classifier, threshold, and the folder that their files go to."""

    def __init__(
        self,
        detector: Localizer,
        classifier: Classifier | None,
        folder: Path,
    ):
        self.detector, self.classifier, self.folder = detector, classifier, folder
        threshold = self.threshold = detector.threshold and detector.threshold.value
        self.level = 0.5 if threshold is None else threshold
        for kind in ("maps", "overlays"):
            (folder / kind).mkdir()

    def look(self, path: Path, name: str) -> tuple[Prediction, Found]:
        """Write map and overlay of a picture. UserError for one that cannot be read."""
        image = read_rgb(path)
        small = resize_rgb(image, self.detector.size)
        values, score = self.detector.map_and_score(small)
        verdict, defect, certainty = "", "", None
        if self.threshold is not None:
            verdict = DEFECTIVE if score > self.threshold else NORMAL
        if self.classifier and verdict != NORMAL:
            defect, certainty = self.classifier.defect(resize_rgb(image, self.classifier.size))
        large = enlarged(values, image.shape[:2])
        # A window's average, which the threshold is about, is below the map's peaks.
        level = max(self.level, 0.5 * float(large.max()))
        marked = large > level if verdict != NORMAL else np.zeros(large.shape, bool)
        files = {kind: f"{kind}s/{name}.png" for kind in ("map", "overlay")}
        grey = Image.fromarray(np.rint(FULL * large).astype(np.uint16))
        grey.save(self.folder / files["map"])
        overlay = outlined(image, marked)
        write_png(self.folder / files["overlay"], overlay)
        height, width = image.shape[:2]
        one = (str(path), width, height, score, self.threshold, verdict, defect, certainty)
        title = " ".join(filter(None, [f"{score:.4f}", verdict, defect]))
        return Prediction(*one, **files), Found(score, name, title, overlay, values)


def calibrated(
    localizer: Localizer, normals: Sequence[Path], rate: float | None, out: Path
) -> Localizer:
    """The detector with the threshold of other normal pictures, which trained nothing.

    rate: of false alarms, None for that of the detector's run. Raises UserError for pictures that
    cannot be read, too few for the rate, and where there is no rate.
    """
    rate = rate or (localizer.threshold and localizer.threshold.rate)
    if rate is None:
        raise UserError("predict: --calibrate needs a rate to promise; give --false-alarms 0.05")
    files = pictures_of(normals, out)
    conformal.check(len(files), rate, "give more normals, or a larger --false-alarms")
    size = localizer.size
    scores = {
        str(file): localizer.map_and_score(resize_rgb(read_rgb(file), size))[1]
        for file in tqdm(files, unit="normal", disable=None)
    }
    return replace(localizer, threshold=conformal.threshold(scores, rate))


def run(
    detector: Path,
    given: Sequence[Path],
    out: Path,
    *,
    threshold: float | None = None,
    rate: float | None = None,
    normals: Sequence[Path] = (),
    classifier: Path | None = None,
    strict: bool = False,
) -> list[str]:
    """Score pictures; `out` appears whole, with maps/, overlays/, predictions.csv and .json, and
    contact_sheet.png. Returns a line for each file that cannot be read, and was left out.

    threshold: of the verdict, by hand; rate: of false alarms that it is to promise, instead of that
    of the run; normals: pictures to choose it on, instead of those of the run. Raises UserError for
    a folder that holds no detector, for a rate that cannot be promised, when no picture can be
    read, and, if `strict`, for the first one that cannot.
    """
    localizer = Localizer.read(detector, None if normals else rate)
    if normals:
        localizer = calibrated(localizer, normals, rate, out)
    if threshold is not None:
        localizer = replace(localizer, threshold=Threshold(threshold))
    types = Classifier.read(classifier) if classifier else Classifier.beside(detector)
    pictures = pictures_of(given, out)
    rows, found, bad = [], [], []
    with whole_folder(out) as folder:
        line = _Line(localizer, types, folder)
        bar = tqdm(pictures, unit="picture", disable=None)
        for path, name in zip(bar, names(pictures), strict=True):
            try:
                row, shown = line.look(path, name)
            except UserError as error:
                if strict:
                    raise
                bad.append(str(error))
                continue
            rows.append(row)
            found = sorted([*found, shown.small()], key=lambda one: -one.score)[:_SHOWN]
        if not rows:
            raise UserErrors(bad)
        write_csv(folder / "predictions.csv", rows, Prediction)
        about = {**localizer.facts, "folder": str(detector), "sha256": sha256(detector / NETWORK)}
        promise = localizer.threshold and dataclasses.asdict(localizer.threshold)
        content = {"detector": about, "threshold": promise, "unreadable": bad}
        content["pictures"] = [dataclasses.asdict(row) for row in rows]
        write_json(folder / "predictions.json", content)
        write_contact_sheet(folder / "contact_sheet.png", found)
    _tell(rows, out, localizer.threshold)
    return bad


def _tell(rows: Sequence[Prediction], out: Path, threshold: Threshold | None) -> None:
    alarms = sum(row.verdict == DEFECTIVE for row in rows)
    if threshold is None:
        log.info("%s: %d pictures, no verdicts: the detector has no threshold", out, len(rows))
    elif threshold.rate is None:
        log.info("%s: %d of %d pictures above %.5f", out, alarms, len(rows), threshold.value)
    else:
        text = "%s: %d of %d pictures above %.5f, which promises %g %% false alarms (%d normals)"
        value, rate = threshold.value, 100 * threshold.rate
        log.info(text, out, alarms, len(rows), value, rate, threshold.n)
