"""Image-mask agreement: high on real pairs, lower with shifted masks, lowest with one another's masks."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from helixbench.config import Slice
from helixbench.datasets import layouts, procedural
from helixbench.prepare.pictures import read_mask, read_rgb, resize_mask, resize_rgb
from helixbench.score.alignment import NOTHING, MaskAgreement

DATA = Path(os.environ.get("HELIXBENCH_DATA") or Path(__file__).parents[2].parent / "shared/data")
CPU = torch.device("cpu")
SIZE = 96


def pictures(root, category, each):
    """Normals, and `each` defective pictures of every type with their masks."""
    samples = layouts.read("mvtec_ad", root, "any", category)
    read = lambda s: resize_rgb(read_rgb(s.image), SIZE)  # noqa: E731
    normals = np.stack([read(s) for s in samples if s.subset == "train"])
    chosen = []
    for defect in sorted({s.defect for s in samples if s.mask}):
        chosen += [s for s in samples if s.defect == defect][:each]
    return normals, np.stack([read(s) for s in chosen]), np.stack([resize_mask(read_mask(s.mask), SIZE) for s in chosen])


def means(normals, images, masks):
    """Mean agreement with the own masks, with masks moved by a sixteenth of the picture, and with another picture's."""
    measure = MaskAgreement(normals, CPU, size=SIZE)
    real = measure(images, masks)
    shifted = measure(images, np.roll(masks, (SIZE // 16, SIZE // 16), (1, 2)))
    return real.own.mean(), shifted.own.mean(), real.shuffled.mean()


@pytest.mark.parametrize("category", ["disc", "weave", "plate"])
def test_on_drawn_pictures(tmp_path, category):
    config = Slice({"prepare.datasets.D.procedural": {"size": SIZE, "train_good": 16, "test_good": 2, "per_defect": 6}, "run.seed": 3})
    procedural.draw(tmp_path, "D", category, config["prepare.datasets.D.procedural"], 3)
    own, shifted, shuffled = means(*pictures(tmp_path, category, 6))
    print(f"{category}: own {own:.3f}, shifted {shifted:.3f}, shuffled {shuffled:.3f}")
    assert own > 0.8 and own > shifted + 0.05 and shifted > shuffled + 0.05


@pytest.mark.skipif(not (DATA / "mvtec_ad/bottle").is_dir(), reason="no MVTec AD bottle here")
def test_on_the_real_bottle():
    own, shifted, shuffled = means(*pictures(DATA / "mvtec_ad", "bottle", 8))
    print(f"bottle: own {own:.3f}, shifted {shifted:.3f}, shuffled {shuffled:.3f}")
    assert own > 0.9 and own > shifted + 0.05 and shifted > shuffled + 0.1


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
        least[y, x] = min(least[y, x], ((padded[:, :, y + j, x + i] - own[:, y, x]) ** 2).sum(1).min())
    expected = [[least[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].mean() for x in range(12)] for y in range(12)]
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
    assert list(MaskAgreement(normals, CPU)(normals[:1], masks[2:]).shuffled) == [NOTHING], "there is no other mask"
