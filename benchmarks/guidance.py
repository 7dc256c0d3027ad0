"""Does what a user gives reach the pairs of a trained DH-Diff? And what can they agree at most?

Of a finished run (`snakemake ... --configfile OVERLAYS`), on its own plan and seeds: moves_*
  change of the noise prediction at t = T/2 when a condition is exchanged between pairs [% of its
  RMS] x0_error_*   squared error of the clean latents that one noise prediction implies, by share
  of T; 1: nothing known coupling_*   change of the noise prediction when merging or SSM of one
  layer is cut between the streams [% of its RMS] own, shuffled, mask_shuffled   image-mask
  agreement and mask in the planned cells, with the planned raw masks, with those of other pairs,
  and with those of other pairs for the annotation stream alone control      IoU of the masks with
  the planned real mask, which is given as control and not given ceiling      agreement of the real
  pairs of the test half as they are, and after a pass through the autoencoder

    python benchmarks/guidance.py --overlays config/rivals.yaml [--method dhdiff] [--pairs 60]
        [--picture guidance.png] [--out results/measured/guidance.csv] [--pairs-to FOLDER]

--pairs-to keeps the pairs of each way in a folder of its own, in the layout of MVTec AD, for
`helixbench judge --pairs`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import record
import torch
from PIL import Image

from helixbench import config
from helixbench.diffusion.data import Pictures
from helixbench.engine.devices import describe, pick_device
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.dhdiff.guidance import coupling, guidance, x0_error
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.pictures.outline import BLUE, outlined
from helixbench.pictures.prepared import sample_images, sample_masks
from helixbench.pictures.raw import write_png
from helixbench.pictures.transforms import to_tensor
from helixbench.records import Sample, read_csv
from helixbench.score.alignment import MaskAgreement
from helixbench.score.metrics.mask_in_cells import mask_in_cells

BATCH = 20


def as_bytes(images: torch.Tensor) -> np.ndarray:
    """(n, 3, H, W) in [0, 1] -> uint8 (n, H, W, 3)."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def drawn(method: DHDiffMethod, given: list, plans: list) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the plan, from these conditions: uint8 (n, H, W, 3) and bool (n, H, W)."""
    images, masks, first = [], [], 0
    for one in given:
        seeds = [plan.seed for plan in plans[first : first + len(one)]]
        made, mask = method.sample(one, [torch.Generator().manual_seed(seed) for seed in seeds])
        images.append(as_bytes(made))
        masks.append(mask[:, 0].numpy() > 0.5)
        first += len(one)
    return np.concatenate(images), np.concatenate(masks)


def annotation_only(method: DHDiffMethod):
    """A method whose annotation stream gets the raw mask of the next pair, while the image stream
    keeps its own."""
    zeta, real = (
        method.unet.inputs.zeta["raw_annotation"],
        method.unet.inputs.zeta["raw_annotation"].forward,
    )
    zeta.forward = lambda latent: real(latent.roll(1, 0))
    return lambda: setattr(zeta, "forward", real)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Mean intersection over union of (n, H, W) masks; two empty ones agree."""
    both, either = (one & other).sum((1, 2)), (one | other).sum((1, 2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1).mean())


def ceiling(method: DHDiffMethod, prepared: Path, agreement: MaskAgreement) -> dict[str, float]:
    """Agreement of real test pairs, as they are and with picture and mask decoded again."""
    samples = [s for s in read_csv(prepared / "samples.csv", Sample) if s.mask and s.role == "test"]
    images = sample_images(prepared, samples)
    masks = sample_masks(prepared, samples, images.shape[1:3])
    base = method.base
    through = torch.cat([base.decode(base.encode(x)).cpu() for x in to_tensor(images).split(BATCH)])
    as_pictures = to_tensor(masks).expand(-1, 3, -1, -1)
    again = torch.cat(
        [base.decode(base.encode(x)).cpu().mean(1) > 0.5 for x in as_pictures.split(BATCH)]
    ).numpy()
    return {
        "ceiling_real": 100 * agreement(images, masks).own.mean(),
        "ceiling_through_autoencoder": 100 * agreement(as_bytes(through), again).own.mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--overlays", type=Path, nargs="+", default=[Path("config/bottle.yaml")])
    parser.add_argument("--method", default="dhdiff")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs-to", type=Path)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    settings = config.load("params.yaml", *options.overlays)
    (dataset, prepared), *_ = settings.prepare.datasets.items()
    category, run = prepared.categories[0], Path("results") / settings.run.name
    folder = run / "prepare" / dataset / category
    data, device = Pictures.load(folder), pick_device()
    model = run / "train" / options.method / dataset / category
    method = DHDiffMethod.load(
        settings.train.methods[options.method], model, settings.generate.sampling
    ).to(device)
    result: dict[str, object] = {
        "name": f"guidance, {settings.run.name} {category}",
        "device": describe(device),
    }
    for name, (image, annotation) in guidance(method, data).items():
        result |= {
            f"moves_{name}_image": round(100 * image, 2),
            f"moves_{name}_annotation": round(100 * annotation, 2),
        }
    for at in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        for stream, error in zip(("image", "annotation"), x0_error(method, data, at), strict=True):
            result[f"x0_error_{stream}_{at:g}"] = round(error, 4)
    for (layer, module), (image, annotation) in coupling(method, data).items():
        result[f"coupling_{module}_{layer}_image"] = round(100 * image, 2)
        result[f"coupling_{module}_{layer}_annotation"] = round(100 * annotation, 2)

    per_type = -(-options.pairs // len(data.defects))
    plans = make_plan(
        data, settings.generate.model_copy(update={"pairs": per_type}), settings.run.seed
    )
    planned = [conditions(data, plans[i : i + BATCH]) for i in range(0, len(plans), BATCH)]
    detailed = [replace(one, control=one.donor_mask) for one in planned]
    shuffled = [replace(one, raw_mask=one.raw_mask.roll(1, 0)) for one in planned]
    made = {"own": drawn(method, planned, plans), "shuffled": drawn(method, shuffled, plans)}
    if method.unet.inputs is not None and "raw_annotation" in method.unet.inputs.zeta:
        undo = annotation_only(method)
        made["mask_shuffled"] = drawn(method, planned, plans)
        undo()
    made["control"] = drawn(method, detailed, plans)

    agreement = MaskAgreement(data.normals, device)
    cells = np.concatenate([one.raw_mask[:, 0].numpy() > 0.5 for one in planned])
    real = np.concatenate([one.donor_mask[:, 0].numpy() > 0.5 for one in planned])
    for name, (images, masks) in made.items():
        share, overlap = mask_in_cells(masks, cells)
        result |= {
            f"{name}_agreement": round(100 * agreement(images, masks).own.mean(), 1),
            f"{name}_mask_in_cells": round(100 * share.mean(), 1),
            f"{name}_mask_cells_iou": round(100 * overlap.mean(), 1),
        }
    result["planned_mask_cells_iou"] = round(100 * mask_in_cells(real, cells)[1].mean(), 1)
    result |= {
        "control_iou": round(100 * iou(made["control"][1], real), 1),
        "no_control_iou": round(100 * iou(made["own"][1], real), 1),
    }
    result |= {name: round(value, 1) for name, value in ceiling(method, folder, agreement).items()}
    for name, value in result.items():
        print(f"{name:32} {value}")
    if options.out:
        record.write(options.out, result, options.note)
    if options.picture:
        write_sheet(options.picture, made, cells)
    for name, pairs in made.items() if options.pairs_to else ():
        write_pairs(options.pairs_to / name / category, plans, *pairs)


def write_pairs(folder: Path, plans: list, images: np.ndarray, masks: np.ndarray) -> None:
    """Pairs in the layout of MVTec AD."""
    for plan, image, mask in zip(plans, images, masks, strict=True):
        files = (
            f"test/{plan.defect}/{plan.index:03d}.png",
            f"ground_truth/{plan.defect}/{plan.index:03d}_mask.png",
        )
        for file, array in zip(files, (image, mask), strict=True):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            write_png(folder / file, array)


def write_sheet(file: Path, made: dict, cells: np.ndarray) -> None:
    """For some pairs, one row per way of making them: picture, and picture with mask (red) and
    planned cells (blue)."""
    chosen = range(0, len(cells), max(1, len(cells) // 16))
    rows = []
    for images, masks in made.values():
        marked = images.copy()
        for i in chosen:
            marked[i] = outlined(outlined(images[i], cells[i], BLUE), masks[i])
        rows += [np.concatenate([stack[i] for i in chosen], axis=1) for stack in (images, marked)]
    Image.fromarray(np.concatenate(rows)).save(file)


if __name__ == "__main__":
    main()
