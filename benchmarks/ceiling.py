"""What an autoencoder leaves of real defects: the detector trained on them as they are, and decoded
again.

Of a run whose base is there (`snakemake base ... --configfile OVERLAYS`): the defects of the
generator's half are the pairs, the held-out half is the test, and the detector is the run's own. No
method that decodes its pictures can be much better than the second number; what is between the two
is lost by the autoencoder alone.

    python benchmarks/ceiling.py --overlays config/rivals.yaml [--seeds 0 1 2] [--out
    results/measured/ceiling.csv]
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import record
import torch
import yaml

from helixbench import config
from helixbench.diffusion.base import BaseModel
from helixbench.engine.devices import describe, pick_device
from helixbench.pictures.prepared import sample_images, sample_masks
from helixbench.pictures.raw import write_png
from helixbench.pictures.transforms import to_tensor
from helixbench.records import GOOD, Sample, read_csv

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pro")
WAYS = ("real", "decoded")


def decoded(base: BaseModel, images: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) through the autoencoder, one at a time."""
    with torch.no_grad():
        out = torch.cat([base.decode(base.encode(one)).cpu() for one in to_tensor(images).split(1)])
    return (out.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def write(
    folder: Path, samples: list[Sample], images: np.ndarray, masks: np.ndarray, subset: str = "test"
) -> None:
    """Pictures, and masks of the defective ones, in the layout of MVTec AD."""
    for number, (sample, image, mask) in enumerate(zip(samples, images, masks, strict=True)):
        files = {folder / subset / sample.defect / f"{number:03d}.png": image}
        if sample.defect != GOOD:
            files[folder / "ground_truth" / sample.defect / f"{number:03d}_mask.png"] = mask
        for file, array in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_png(file, array)


def detect(folder: Path, way: str, seed: int, size: int) -> dict[str, float]:
    """Scores of all defect types together, of a detector trained on `folder/<way>`."""
    command = [
        sys.executable,
        "-m",
        "helixbench.cli",
        "judge",
        "--no-scores",
        "--size",
        str(size),
        "--seed",
        str(seed),
    ]
    command += [
        "--pairs",
        folder / way,
        "--normals",
        folder / "normals",
        "--test",
        folder / "held_out",
    ]
    command += ["--settings", folder / "detect.yaml", "-o", folder / f"{way}{seed}"]
    subprocess.run(list(map(str, command)), check=True)
    with (folder / f"{way}{seed}/detector/scores.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["metric"]: float(row["value"])
            for row in csv.DictReader(file)
            if row["defect"] == "all"
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--overlays", type=Path, nargs="+", default=[Path("config/rivals.yaml")])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    settings = config.load("params.yaml", *options.overlays)
    (dataset, chosen), *_ = settings.prepare.datasets.items()
    category, run = chosen.categories[0], Path("results") / settings.run.name
    prepared = run / "prepare" / dataset / category
    base = BaseModel.load(run / "train/base" / dataset / category).to(pick_device())
    samples = read_csv(prepared / "samples.csv", Sample)
    parts = {
        "normals": [s for s in samples if s.role == "normal"],
        "held_out": [s for s in samples if s.role == "test"],
    }
    parts["real"] = [s for s in samples if s.role == "generator"]
    result: dict[str, object] = {
        "name": f"ceiling, {settings.run.name} {category}",
        "device": describe(pick_device()),
    }
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, own in parts.items():
            images = sample_images(prepared, own)
            masks = sample_masks(prepared, own, images.shape[1:3])
            write(folder / name, own, images, masks, "train" if name == "normals" else "test")
            if name == "real":
                write(folder / "decoded", own, decoded(base, images), masks)
        section = settings.detect.localization.model_dump(mode="json", exclude={"seeds"})
        (folder / "detect.yaml").write_text(
            yaml.safe_dump({"detect": {"localization": section}}), encoding="utf-8"
        )
        for way in WAYS:
            found = [detect(folder, way, seed, settings.prepare.size) for seed in options.seeds]
            for metric in METRICS:
                values = [scores[metric] for scores in found]
                result[f"{way}_{metric}"] = round(statistics.fmean(values), 2)
                if len(values) > 1:
                    result[f"{way}_{metric}_std"] = round(statistics.stdev(values), 2)
    result["seeds"] = len(options.seeds)
    for name, value in result.items():
        print(f"{name:28} {value}")
    if options.out:
        record.write(options.out, result, options.note)


if __name__ == "__main__":
    main()
