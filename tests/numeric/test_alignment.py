"""Image-mask agreement: high on real pairs, lower with shifted masks, lowest with one another's
masks."""

import os
from pathlib import Path

import mask_agreement
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from helixbench.datasets.procedural import render
from helixbench.score.alignment import NOTHING, MaskAgreement

DATA = Path(os.environ.get("HELIXBENCH_DATA") or Path(__file__).parents[2].parent / "shared/data")
CPU = torch.device("cpu")


def in_order(found: dict, of_own: float, above_shuffled: float) -> bool:
    """Own masks above moved ones above other pictures' [percent]."""
    own, moved, shuffled = (
        found[name] for name in ("own masks", "moved by a sixteenth", "another picture's")
    )
    return own > of_own and own > moved + 5 and moved > shuffled + above_shuffled


@pytest.mark.parametrize("category", ["disc", "weave", "plate"])
def test_on_drawn_pictures(tmp_path, category):
    render.draw(tmp_path, "D", category, mask_agreement.DRAWN, 3)
    found = mask_agreement.measure(category, *mask_agreement.pictures(tmp_path, category, 6))
    assert in_order(found, 80, 5), found


@pytest.mark.skipif(not (DATA / "mvtec_ad/bottle").is_dir(), reason="no MVTec AD bottle here")
def test_on_the_real_bottle():
    found = mask_agreement.measure(
        "bottle", *mask_agreement.pictures(DATA / "mvtec_ad", "bottle", 8)
    )
    assert in_order(found, 90, 10), found


def noise(n, size=32, seed=0):
    return np.random.default_rng(seed).integers(100, 140, (n, size, size, 3), np.uint8)


def test_the_difference_is_the_nearest_of_normals_and_shifts():
    """Written out pixel by pixel, on small pictures."""
    normals, (image,) = noise(5, 12), noise(1, 12, seed=1)
    measure = MaskAgreement(normals, CPU, size=12, neighbours=3, shift=1)
    small, own = measure.normals.numpy(), measure._small(image[None]).numpy()[0]
    nearest = small[np.argsort(((small - own) ** 2).mean((1, 2, 3)))[:3]]
    padded = np.pad(nearest, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    least = np.full((12, 12), np.inf)
    for y, x, j, i in np.ndindex(12, 12, 3, 3):
        least[y, x] = min(
            least[y, x], ((padded[:, :, y + j, x + i] - own[:, y, x]) ** 2).sum(1).min()
        )
    expected = [
        [least[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].mean() for x in range(12)]
        for y in range(12)
    ]
    np.testing.assert_allclose(measure.difference(image), expected, rtol=1e-4)


def test_each_pair_is_scored_by_its_own_auroc():
    images, masks = noise(3, seed=2), np.zeros((3, 32, 32), bool)
    for i in range(3):
        masks[i, 8 * i : 8 * i + 6, 4:14] = True
        images[i][masks[i]] = 250
    measure = MaskAgreement(noise(6), CPU, size=32)
    found = measure(images, masks)
    assert found.own.min() > 0.95 and found.shuffled.max() < 0.6
    values = measure.difference(images[1])
    assert found.own[1] == pytest.approx(roc_auc_score(masks[1].ravel(), values.ravel()))
    assert found.shuffled[1] == pytest.approx(roc_auc_score(masks[2].ravel(), values.ravel()))
    np.testing.assert_allclose(measure(images[:1], masks[:1]).own, found.own[:1])


def test_masks_that_say_nothing_and_pictures_that_differ_nowhere():
    normals = noise(4)
    masks = np.zeros((3, 32, 32), bool)
    masks[1], masks[2, :8] = True, True
    found = MaskAgreement(normals, CPU, size=32)(normals[:3], masks)
    assert list(found.own[:2]) == [NOTHING, NOTHING], "empty, full"
    assert found.own[2] == pytest.approx(0.5), "a normal picture differs nowhere from itself"
    assert list(MaskAgreement(normals, CPU)(normals[:1], masks[2:]).shuffled) == [NOTHING], (
        "there is no other mask"
    )
