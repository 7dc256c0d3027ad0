"""What the detector stages share: pairs to train on, held-out real pictures to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from helixbench.errors import UserError
from helixbench.pictures.prepared import pair_images, pair_masks, sample_images, sample_masks
from helixbench.records import GOOD, Pair, Sample


def usable(
    found: Sequence[Pair],
    limit: int | None,
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """Pairs to train on by defect type, and how many the mask gate left out.

    Those past the gate, in order of their index, at most `limit` of each type; None: all.
    """
    used, left_out = {}, {}
    for defect in sorted({pair.defect for pair in found}):
        own = sorted((pair for pair in found if pair.defect == defect), key=lambda pair: pair.index)
        passed = [pair for pair in own if pair.gate == "ok"]
        used[defect], left_out[defect] = passed[:limit], len(own) - len(passed)
    return used, left_out


def counts(
    used: Mapping[str, list[Pair]], left_out: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """What the manifest says of the pairs."""
    return {
        defect: {"used": len(own), "left_out_by_gate": left_out[defect]}
        for defect, own in used.items()
    }


def normals(prepared: Path, samples: Sequence[Sample]) -> np.ndarray:
    """Normal pictures to train on, (n, H, W, 3) uint8; UserError when there are none."""
    found = [s for s in samples if s.role == "normal"]
    if not found:
        raise UserError(
            f"{prepared / 'samples.csv'}: no picture has role normal; the detector needs some"
        )
    return sample_images(prepared, found)


def pair_arrays(
    folder: Path, used: Mapping[str, list[Pair]], size: tuple[int, int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Defect type -> (images (m, H, W, 3) uint8, masks (m, H, W) bool), types without a pair left
    out; UserError for another size.
    """
    found = {
        defect: (pair_images(folder, own), pair_masks(folder, own))
        for defect, own in used.items()
        if own
    }
    for defect, arrays in found.items():
        for array in arrays:
            if array.shape[1:3] != size:
                height, width = array.shape[1:3]
                raise UserError(
                    f"{folder}: pairs of {defect} are {width}x{height}, the normals "
                    f"{size[1]}x{size[0]}; generate again"
                )
    return found


def test_set(
    prepared: Path, samples: Sequence[Sample]
) -> tuple[list[Sample], np.ndarray, np.ndarray]:
    """Test samples (good first, then by defect type), pictures (n, H, W, 3) and masks (n, H, W)."""
    tests = sorted(
        (s for s in samples if s.tests), key=lambda s: (s.defect != GOOD, s.defect, s.id)
    )
    for wanted, text in ((True, "normal"), (False, "defective")):
        if not any((s.defect == GOOD) == wanted for s in tests):
            raise UserError(
                f"{prepared / 'samples.csv'}: no {text} picture has role test; metrics need both"
            )
    images = sample_images(prepared, tests)
    masks = sample_masks(prepared, tests, images.shape[1:3])
    for sample, mask in zip(tests, masks, strict=True):
        if sample.defect != GOOD and not mask.any():
            raise UserError(
                f"{prepared / (sample.mask or sample.image)}: a defective test picture without a "
                f"mask; give it one"
            )
    return tests, images, masks
