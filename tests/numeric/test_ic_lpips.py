"""IC-LPIPS by matrix products against pairwise calls of the lpips package."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from helixbench import weights
from helixbench.score import ic_lpips as room

CPU = torch.device("cpu")


def pictures(n, size=48, seed=0):
    """Smooth random pictures, (n, size, size, 3) uint8, every fourth one nearly the one before."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((n, 3, 6, 6), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    out = (fine.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    for i in range(3, n, 4):
        out[i] = np.clip(out[i - 1].astype(int) + rng.integers(-9, 10, out[i].shape), 0, 255)
    return out


@pytest.fixture(params=["random", "squeeze"])
def module(request, monkeypatch):
    if request.param == "squeeze":
        homes = [
            os.environ.get("TORCH_HOME"),
            Path(__file__).parents[2].parent / "shared/weights/torch_home",
        ]
        home = next(
            (
                h
                for h in homes
                if h and (Path(h) / "hub/checkpoints" / weights.FILES["squeeze"]).is_file()
            ),
            None,
        )
        if home is None:
            pytest.skip("no SqueezeNet weights here")
        monkeypatch.setenv("TORCH_HOME", str(home))
    return room.build_lpips(request.param)


def pairwise_calls(module, first, second):
    as_input = lambda picture: torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        return np.array([[module(as_input(a), as_input(b)).item() for b in second] for a in first])


def test_distances_equal_pairwise_calls(module):
    images, anchors = pictures(8), pictures(3, seed=1)
    pairwise = room.PairwiseLpips(module, CPU, batch=3)
    expected = pairwise_calls(module, images, images)
    assert expected.max() > 0.05
    np.testing.assert_allclose(pairwise.distances(images), expected, atol=1e-4)
    np.testing.assert_allclose(
        pairwise.distances(anchors, images), pairwise_calls(module, anchors, images), atol=1e-4
    )
    small = room.PairwiseLpips(module, CPU, batch=2, memory_gib=1e-9)  # one picture a block
    assert small.capacity(images) == 1
    np.testing.assert_allclose(small.distances(images), expected, atol=1e-4)
    np.testing.assert_allclose(
        small.distances(anchors, images), pairwise_calls(module, anchors, images), atol=1e-4
    )


def test_half_precision_only_where_it_is_precise(module):
    images = pictures(8)
    single, half = (room.PairwiseLpips(module, CPU, half=half) for half in (False, True))
    expected, found = single.distances(images), half.distances(images)
    assert half.embedding.half and not single.embedding.half
    assert 0 < np.abs(found - expected).max() < room.HALF_WITHIN
    first = next(layer for layer in module.net.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(1e6)  # beyond half precision, while LPIPS normalises its features
    single, half = (room.PairwiseLpips(module, CPU, half=half) for half in (False, True))
    np.testing.assert_array_equal(half.distances(images), single.distances(images))
    assert not half.embedding.half


def test_score_follows_the_protocol(module):
    """The public scripts' loop, written out: nearest anchor, cap, mean over pairs, mean over
    clusters."""
    anchors, images = pictures(3, seed=5), pictures(14, seed=6)
    images[:5] = np.clip(
        anchors[0].astype(int) + np.arange(5)[:, None, None, None], 0, 255
    )  # a sure cluster
    found = room.ic_lpips(
        images, anchors, room.PairwiseLpips(module, CPU), cap=4, shuffles=3, seed=11
    )
    nearest = pairwise_calls(module, images, anchors).argmin(1)
    assert (nearest[:5] == 0).all()
    between = pairwise_calls(module, images, images)
    for shuffle, score in enumerate(found.scores):
        means = []
        for cluster in range(3):
            members = np.flatnonzero(nearest == cluster)
            kept = np.random.default_rng(
                room.derive_seed(11, "ic-lpips", cluster, shuffle)
            ).permutation(members)[:4]
            if len(kept) >= 2:
                means.append(np.mean([between[i, j] for i, j in itertools.combinations(kept, 2)]))
        assert score == pytest.approx(np.mean(means), abs=1e-4)
    assert found.clusters == 3
    sizes = [(nearest == c).sum() for c in range(3)]
    assert (found.empty_clusters, found.single_clusters) == (sizes.count(0), sizes.count(1))
    streamed = room.ic_lpips(
        images,
        anchors,
        room.PairwiseLpips(module, CPU, memory_gib=1e-9),
        cap=4,
        shuffles=3,
        seed=11,
    )
    assert streamed.scores == pytest.approx(found.scores, abs=1e-5)


def test_seed_fixes_the_shuffle_and_ties_go_to_the_later_anchor():
    pairwise = room.PairwiseLpips(room.build_lpips("random"), CPU)
    images = pictures(9)
    anchors = np.repeat(images[:1], 2, axis=0)
    again = [room.ic_lpips(images, anchors, pairwise, cap=3, shuffles=2, seed=s) for s in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    assert again[0].empty_clusters == 1  # the earlier of two equal anchors gets nothing


def test_copies_have_no_diversity_and_a_lonely_image_none_either():
    pairwise = room.PairwiseLpips(room.build_lpips("random"), CPU)
    copies = np.repeat(pictures(1), 4, axis=0)
    assert room.ic_lpips(copies, pictures(2, seed=3), pairwise).scores == pytest.approx(
        [0] * 5, abs=1e-6
    )
    lonely = room.ic_lpips(pictures(1), pictures(2, seed=3), pairwise)
    assert lonely.scores == (0.0,) * 5 and (lonely.empty_clusters, lonely.single_clusters) == (1, 1)


def test_random_network_is_one_network():
    first, second = (room.build_lpips("random").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
