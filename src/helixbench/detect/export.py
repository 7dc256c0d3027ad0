"""A trained detector as ONNX and OpenVINO, checked against torch on real pictures, with a model
card.
"""

from __future__ import annotations

import logging
import platform
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from helixbench import __version__
from helixbench.detect.detector import NETWORK
from helixbench.detect.predict import pictures_of
from helixbench.detect.trained import Localizer
from helixbench.errors import UserError
from helixbench.pictures.raw import read_rgb, resize_rgb
from helixbench.protocol import Protocol
from helixbench.provenance import check_recorded, sha256, whole_folder, write_json, write_text
from helixbench.records import Score, read_csv

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of a map's value between torch and an exported network."""

OPSET = 17

EXAMPLE = Path(__file__).parent / "example" / "verdict.py"  # no module: it runs alone
"""A script that is given away with the detector, and imported by nothing."""

LICENCES = {
    "MVTec-AD": "CC BY-NC-SA 4.0",
    "MVTec-LOCO": "CC BY-NC-SA 4.0",
    "MPDD": "CC BY-NC-SA 4.0",
}
"""Of the pictures of published data sets, by the names that they have in params.yaml."""

Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Picture (1, S, S, 3) uint8 -> map (1, S, S), score (1,)."""


class Exported(nn.Module):
    """What is exported: picture (1, S, S, 3) uint8 RGB -> anomaly map (1, S, S) float32 in [0, 1],
    score (1,). Scaling and the averaged window are in it.
    """

    def __init__(self, network: nn.Module, window: int):
        super().__init__()
        self.network, self.window = network, window

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map and score."""
        logits = self.network(picture.permute(0, 3, 1, 2).float() / 255)
        maps = logits.softmax(1)[:, 1]
        averaged = F.avg_pool2d(maps[:, None], self.window, stride=1, padding=self.window // 2)
        return maps, averaged.amax((1, 2, 3))


@dataclass
class Check:
    """How far an exported network is from torch, over the pictures seen so far."""

    name: str
    runs: Runner
    pictures: int = 0
    largest: float = 0.0
    largest_score: float = 0.0
    other_verdicts: int = 0

    def see(self, image: np.ndarray, values: np.ndarray, score: float, above: float) -> None:
        """image: (S, S, 3) uint8; values, score: torch's; above: the threshold."""
        maps, scores = self.runs(np.ascontiguousarray(image[None]))
        self.pictures += 1
        self.largest = max(self.largest, float(np.abs(maps[0] - values).max()))
        self.largest_score = max(self.largest_score, abs(float(scores[0]) - score))
        self.other_verdicts += (float(scores[0]) > above) != (score > above)

    def done(self) -> None:
        """UserError where it is not the same detector."""
        if not self.largest <= TOLERANCE or self.other_verdicts:
            raise UserError(
                f"{self.name}: maps differ from torch's by up to {self.largest:.2g} (at most "
                f"{TOLERANCE:g}) and {self.other_verdicts} of {self.pictures} verdicts; nothing is "
                f"exported. Try other versions of torch and of the runtime"
            )

    def text(self) -> str:
        """For the model card."""
        return (
            f"{self.name}: maps differ by at most {self.largest:.1e}, scores by "
            f"{self.largest_score:.1e}, no verdict"
        )


def _needs(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"export: needs {package}; install it: pip install {package}")


def _onnx(module: Exported, size: int, file: Path) -> Runner:
    """Write detector.onnx; what runs it."""
    import onnxruntime

    example = (torch.zeros(1, size, size, 3, dtype=torch.uint8),)
    with warnings.catch_warnings():
        # The exporter by torch.export needs onnxscript and gives the same network.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            str(file),
            input_names=["picture"],
            output_names=["map", "score"],
            opset_version=OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda picture: tuple(session.run(None, {"picture": picture}))


def _openvino(onnx: Path) -> Runner:
    """Write detector.xml and detector.bin beside an ONNX file; what runs them."""
    import openvino

    file = onnx.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)
    # Without this hint some CPUs compute in half precision.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", exact)

    def runs(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = compiled({"picture": picture})
        return found["map"], found["score"]

    return runs


def run(
    detector: Path,
    given: Sequence[Path],
    out: Path,
    *,
    openvino: bool = False,
    licence: str | None = None,
) -> None:
    """Write detector.onnx, detector.json, verdict.py and the model card README.md into `out`, and
    for `openvino` detector.xml and detector.bin; whole or not at all.

    given: real pictures, on which maps and verdicts are compared with torch's; licence: of the
    pictures that the detector learned from. Raises UserError for a folder without a detector, for a
    missing package, for pictures that cannot be read, for data whose licence is not known, and
    where an exported network differs.
    """
    localizer = Localizer.read(detector)
    data = localizer.facts["dataset"]
    licence = licence or LICENCES.get(data)
    if not licence:
        raise UserError(
            f"export: under which licence are the pictures of {data}? It stands on the model card; "
            f"give it by --licence, e.g. --licence 'CC BY 4.0' or --licence 'our own pictures'"
        )
    for package in ("onnxruntime", *(["openvino"] if openvino else [])):
        _needs(package)
    threshold = localizer.threshold
    files = pictures_of(given, out)
    module = Exported(localizer.network.cpu(), localizer.facts["score_window"])
    module = module.to(memory_format=torch.contiguous_format).eval()
    with whole_folder(out) as folder:
        onnx = folder / "detector.onnx"
        checks = [Check("ONNX Runtime", _onnx(module, localizer.size, onnx))]
        if openvino:
            checks.append(Check("OpenVINO", _openvino(onnx)))
        for file in tqdm(files, unit="picture", disable=None):
            small = resize_rgb(read_rgb(file), localizer.size)
            values, score = localizer.map_and_score(small)
            for check in checks:
                check.see(small, values, score, threshold.value if threshold else 2.0)
        for check in checks:
            check.done()
            log.info("%s, on %d pictures", check.text(), len(files))
        facts: dict[str, Any] = {"size": localizer.size, "threshold": None}
        if threshold:
            facts["threshold"] = threshold.value
            facts |= {"false_alarms": threshold.rate, "calibration": threshold.n}
        facts |= {"score_window": localizer.facts["score_window"], "licence_of_data": licence}
        facts["network_sha256"] = sha256(detector / NETWORK)
        write_json(folder / "detector.json", facts)
        shutil.copyfile(EXAMPLE, folder / EXAMPLE.name)
        write_text(folder / "README.md", _card(detector, localizer, licence, checks))


def _card(detector: Path, localizer: Localizer, licence: str, checks: Sequence[Check]) -> str:
    """The model card, as Markdown."""
    facts, threshold, size = localizer.facts, localizer.threshold, localizer.size
    protocol = [f"- {name}: {value}" for name, value in facts["protocol"].items()]
    promise = "None: the run kept no normal pictures for it. There are scores, and no verdicts."
    if threshold:
        promise = (
            f"A score above {threshold.value} is defective. It was chosen on {threshold.n} normal "
            f"pictures that trained nothing, so that at most {100 * threshold.rate:g} % of normal "
            f"pictures like them are called defective, in the mean over such choices."
        )
    sale = " A detector trained on them is not for commercial use." if "NC" in licence else ""
    versions = f"torch {torch.__version__}, onnxruntime {metadata.version('onnxruntime')}"
    return "\n".join(
        [
            f"# Detector of defects: {facts['dataset']} {facts['category']}",
            "",
            f"A U-Net of width {facts['width']}, trained by HelixBench {__version__} on normal "
            f"pictures and on defects made by {facts['method']} (seed {facts['seed']}).",
            "",
            "## Data",
            "",
            f"Pictures of {facts['dataset']}, {facts['category']}. Licence: {licence}.{sale}",
            "",
            "## Use",
            "",
            f"Input `picture`: (1, {size}, {size}, 3) uint8, RGB. A picture is made upright "
            f"(EXIF), converted to 8-bit RGB and resized to {size} x {size} with Pillow's Lanczos, "
            f"whatever its shape. Outputs: `map` (1, {size}, {size}) in [0, 1], and `score` (1,), "
            f"the largest average of a window of {facts['score_window']} pixels. `verdict.py` is "
            f"an example.",
            "",
            "## Threshold",
            "",
            promise,
            "",
            "## Measured on held-out pictures, in percent",
            "",
            *_scores(detector),
            "",
            "## Protocol",
            "",
            *protocol,
            "",
            "## Check of the export",
            "",
            f"On {checks[0].pictures} pictures, against torch:",
            "",
            *(f"- {check.text()}" for check in checks),
            "",
            f"Made with {versions}, Python {platform.python_version()}.",
            "",
        ]
    )


def _scores(detector: Path) -> list[str]:
    """A table of the scores of the checkpoint that was kept, by defect type."""
    file = detector / "scores.csv"
    check_recorded(file, detector / "manifest.json")
    rows = [
        row
        for row in read_csv(file, Score)
        if Protocol.parse(row.protocol).get("checkpoint") == "last"
    ]
    metrics = list(dict.fromkeys(row.metric for row in rows))
    values = {(row.defect, row.metric): f"{row.value:.1f}" for row in rows}
    lines = [f"| defect | {' | '.join(metrics)} |", "|---|" + "---:|" * len(metrics)]
    for defect in dict.fromkeys(row.defect for row in rows):
        cells = " | ".join(values.get((defect, metric), "") for metric in metrics)
        lines.append(f"| {defect} | {cells} |")
    return lines
