"""What a run leaves on the disk: bytes of a pair, of a prepared category, of a trained model and of
its resume state.

Pairs and prepared pictures: a real run of prepare and generate at the paper's 256 pixel, MVTec AD
bottle with Crop&Paste, whose pixels are real pictures'. Models at the size of Stable Diffusion 1.5:
weights counted without data, 4 bytes each.

    python benchmarks/disk.py FOLDER_OF_MVTEC_AD [--pairs 30] [--note "..."] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from overhead import project, run
from record import stamp
from train_memory import stable_diffusion

from helixbench.config import load
from helixbench.methods.dfmgan.method import DFMGANMethod
from helixbench.methods.dhdiff.unet import DHDiffUNet


def sizes(files: list[Path]) -> tuple[int, int]:
    """Number and bytes of files."""
    return len(files), sum(file.stat().st_size for file in files)


def pictures(raw: Path, pairs: int) -> list[dict[str, object]]:
    """Pairs and prepared pictures of a real run."""
    with tempfile.TemporaryDirectory() as folder:
        place = project(Path(folder))
        paper = load("params.yaml")
        overlay = {
            "run": {"name": "disk"},
            "prepare": {
                "use": ["MVTec-AD"],
                "datasets": {"MVTec-AD": {"root": str(raw.resolve()), "categories": ["bottle"]}},
            },
            "train": {
                "methods": {name: None for name in paper.train.methods if name != "crop_paste"}
            },
            "generate": {"pairs": pairs},
            "score": {
                "inception_score": {"network": "random"},
                "ic_lpips": {"network": "random"},
            },  # not run: no weights needed
            "report": {"tables": [1]},
        }
        (place / "disk.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
        run("snakemake", "--cores", "1", "pairs", "--configfile", "disk.yaml", cwd=place)
        results = place / "results/disk"
        made = results / "generate/crop_paste/MVTec-AD/bottle"
        images, masks = (
            sorted(made.rglob(f"bottle/{kind}/**/*.png")) for kind in ("test", "ground_truth")
        )
        if len(images) != len(masks) or not images:
            sys.exit(f"{len(images)} pictures and {len(masks)} masks in {made}")
        prepared = [file for file in (results / "prepare").rglob("*") if file.is_file()]
        small = [file for file in made.rglob("*") if file.is_file() and file.suffix != ".png"]
        return [
            {"what": "picture of a pair", "n": len(images), **per(images, len(images))},
            {"what": "mask of a pair", "n": len(masks), **per(masks, len(masks))},
            {"what": "manifest, a pair", "n": len(images), **per(small, len(images))},
            {"what": "prepared category", "n": 1, **per(prepared, 1)},
        ]


def per(files: list[Path], units: int) -> dict[str, float]:
    """Files and bytes of one unit."""
    count, total = sizes(files)
    return {"files": round(count / units, 3), "bytes": round(total / units)}


def weights() -> list[dict[str, object]]:
    """Trained models, and what training them keeps to be gone on with (weights and moments, twice:
    the one before stays)."""
    methods = load("params.yaml").train.methods

    def size(*parts: torch.nn.Module) -> int:
        return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())

    with torch.device("meta"):
        unet, frozen = stable_diffusion()
        base, whole = size(unet, *frozen), size(unet)
        helix = DHDiffUNet(unet, methods["dhdiff"]).trainable_()
    trained = [p for p in helix.parameters() if p.requires_grad]
    state = 3 * sum(p.numel() * p.element_size() for p in trained)  # weights and Adam's two moments
    dfmgan = DFMGANMethod(methods["dfmgan"], None)
    dfmgan._build(256, ["a", "b", "c", "d", "e"])
    return [
        {"what": "Stable Diffusion 1.5", "n": 1, "bytes": base},
        {"what": "trained model of dhdiff", "n": 1, "bytes": size(helix, *frozen)},
        {"what": "trained model of dfmgan", "n": 1, "bytes": size(dfmgan.module)},
        {
            "what": "resume state of dhdiff, newest and the one before",
            "n": 1,
            "files": 2,
            "bytes": 2 * state,
        },
        # RealNet trains the whole U-Net and averages it.
        {
            "what": "resume state of realnet, newest and the one before",
            "n": 1,
            "files": 2,
            "bytes": 2 * 4 * whole,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("raw", type=Path)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--note", default="", help="what a reader of the numbers should know")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shared = stamp(options.note)
    rows = [*pictures(options.raw, options.pairs), *weights()]
    with options.out.open("w", encoding="utf-8", newline="") if options.out else sys.stdout as file:
        writer = csv.DictWriter(file, ["what", "n", "files", "bytes", *shared], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | shared for row in rows)


if __name__ == "__main__":
    main()
