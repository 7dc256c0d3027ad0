"""Detection metrics against scikit-learn and against definitions written out threshold by
threshold."""

import tracemalloc

import numpy as np
import pytest
import torch
from anomalib.metrics.aupro import _AUPRO
from anomalib.metrics.auroc import _AUROC
from anomalib.metrics.f1_score import _F1Max
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_precision_recall_curve,
)

from helixbench import metrics


def brute_force_pro(scores, masks, limit):
    """The definition: at every threshold, FPR and the mean over regions of the share found; then
    the area."""
    regions = []
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(i, labels == k) for k in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        found = scores >= threshold
        fpr = (found & ~masks).sum() / (~masks).sum()
        points.append((fpr, np.mean([found[i][region].mean() for i, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def brute_force_f1(scores, labels):
    best = 0.0
    for threshold in np.unique(scores):
        found = scores >= threshold
        hit = (found & labels).sum()
        best = max(best, 2 * hit / (found.sum() + labels.sum()))
    return best


def example(seed, levels=None, shape=(4, 12, 12)):
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.normal(size=shape), (0, 1.5, 1.5)) > 0.15
    scores = rng.normal(size=shape) + masks
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), masks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 2])
def test_agrees_with_references(seed, levels):
    scores, masks = example(seed, levels)
    assert metrics.auroc(scores, masks) == pytest.approx(
        roc_auc_score(masks.ravel(), scores.ravel()), abs=1e-12
    )
    assert metrics.average_precision(scores, masks) == pytest.approx(
        average_precision_score(masks.ravel(), scores.ravel()), abs=1e-12
    )
    assert metrics.f1_max(scores, masks) == pytest.approx(brute_force_f1(scores, masks), abs=1e-12)
    for limit in (0.05, 0.3, 1.0):
        assert metrics.pro(scores, masks, limit) == pytest.approx(
            brute_force_pro(scores, masks, limit), abs=1e-10
        )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [None, 2, 1])
def test_agrees_with_torchmetrics(seed, levels):
    scores, masks = example(seed, levels)
    scores = (scores - scores.min()) / (
        scores.max() - scores.min()
    )  # torchmetrics takes what is outside of [0, 1] for logits
    x, y = torch.from_numpy(scores).ravel(), torch.from_numpy(masks).ravel().long()
    assert metrics.auroc(scores, masks) == pytest.approx(float(binary_auroc(x, y)), abs=1e-6)
    assert metrics.average_precision(scores, masks) == pytest.approx(
        float(binary_average_precision(x, y)), abs=1e-6
    )
    precision, recall, _ = binary_precision_recall_curve(x, y)
    f1 = torch.nan_to_num(2 * precision * recall / (precision + recall)).max()
    assert metrics.f1_max(scores, masks) == pytest.approx(float(f1), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 2, 1])
def test_agrees_with_anomalib(seed, levels):
    """PRO, AUROC and F1-max. Its AUPR is a trapezoid's area, which is not average precision."""
    scores, masks = example(seed, levels)
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    x, y = torch.from_numpy(scores), torch.from_numpy(masks).long()

    def found(metric):
        metric.update(x, y)
        return float(metric.compute())

    for limit in (0.05, 0.3, 1.0):
        assert metrics.pro(scores, masks, limit) == pytest.approx(
            found(_AUPRO(fpr_limit=limit)), abs=1e-6
        )
    assert metrics.auroc(scores, masks) == pytest.approx(found(_AUROC()), abs=1e-6)
    assert metrics.f1_max(scores, masks) == pytest.approx(found(_F1Max()), abs=1e-6)


def test_one_score_for_all_is_what_the_references_say():
    masks = example(0)[1]
    scores = np.full(masks.shape, 0.5, np.float32)
    x, y = torch.from_numpy(scores).ravel(), torch.from_numpy(masks).ravel().long()
    assert (
        metrics.auroc(scores, masks)
        == roc_auc_score(masks.ravel(), scores.ravel())
        == float(binary_auroc(x, y))
        == 0.5
    )
    share = masks.mean()
    for value in (
        average_precision_score(masks.ravel(), scores.ravel()),
        float(binary_average_precision(x, y)),
    ):
        assert (
            metrics.average_precision(scores, masks)
            == pytest.approx(value, abs=1e-6)
            == pytest.approx(share, abs=1e-6)
        )


@pytest.mark.parametrize("scored", ["one score", "many scores"])
@pytest.mark.parametrize("masked", [slice(0), slice(1, 3)], ids=["all masks", "some empty"])
def test_agrees_with_anomalib_on_degenerate_maps(scored, masked):
    scores, masks = example(0)
    masks[masked] = False
    scores = (
        np.full_like(scores, 0.5)
        if scored == "one score"
        else (scores - scores.min()) / np.ptp(scores)
    )
    for ours, theirs in (
        (metrics.pro(scores, masks, 0.3), _AUPRO(fpr_limit=0.3)),
        (metrics.auroc(scores, masks), _AUROC()),
    ):
        theirs.update(torch.from_numpy(scores), torch.from_numpy(masks).long())
        assert ours == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_memory_is_80_bytes_a_pixel_at_most():
    scores, masks = example(0, shape=(8, 128, 128))
    tracemalloc.start()
    try:
        ranking = metrics.Ranking(scores, masks)
        ranking.auroc(), ranking.average_precision(), ranking.f1_max(), ranking.pro(masks, 0.3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 80 * scores.size


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 6), st.randoms(use_true_random=False))
def test_agrees_with_references_on_any_ties(n, levels, random):
    scores = np.array([random.randrange(levels) / levels for _ in range(n)])
    labels = np.array([True, False] + [random.random() < 0.3 for _ in range(n - 2)])
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert metrics.average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-9
    )
    assert metrics.f1_max(scores, labels) == pytest.approx(brute_force_f1(scores, labels), abs=1e-9)


def test_pictures_without_a_region_count_their_false_positives_only():
    """An empty mask among others is no region, and its pixels are normal ones."""
    scores, masks = example(3)
    masks[1:3] = False
    assert metrics.pro(scores, masks, 0.3) == pytest.approx(
        brute_force_pro(scores, masks, 0.3), abs=1e-10
    )
    louder = scores.copy()
    louder[1:3] += 10
    assert metrics.pro(louder, masks, 0.3) < metrics.pro(scores, masks, 0.3)


def test_pro_weighs_regions_equally_and_joins_diagonals():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True  # one 8-connected region
    masks[0, 4:8, 4:8] = True
    scores = np.where(masks, 1.0, 0.5)
    scores[0, :2, :2] = 0.0  # the small region is never found before everything else
    assert len(np.unique(metrics.region_weights(masks))) == 3
    # half of the regions until FPR 46/48, far past the limit... both at 1
    assert metrics.pro(scores, masks, 0.3) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["auroc", "average_precision", "f1_max", "pro"])
def test_degenerate(name):
    metric = getattr(metrics, name)
    masks = np.zeros((2, 4, 4), bool)
    scores = np.linspace(0, 1, 32).reshape(2, 4, 4)
    with pytest.raises(ValueError, match="nothing is labelled anomalous"):
        metric(scores, masks)
    masks[0, 1, 1] = True
    with pytest.raises(ValueError, match="not finite"):
        metric(np.full_like(scores, np.nan), masks)
    with pytest.raises(ValueError, match="shape"):
        metric(scores[:1], masks)
    with pytest.raises(ValueError, match="no scores"):
        metric(scores[:0], masks[:0])
    one_score = metric(np.zeros_like(scores), masks)
    share = 1 / 32
    expected = {
        "auroc": 0.5,
        "average_precision": share,
        "f1_max": 2 * share / (1 + share),
        "pro": 0.15,
    }
    assert one_score == pytest.approx(expected[name])
    assert metric(masks.astype(float), masks) == pytest.approx(1)


@pytest.mark.parametrize("name", ["auroc", "pro"])
def test_all_anomalous_is_an_error(name):
    with pytest.raises(ValueError, match="nothing is labelled normal"):
        getattr(metrics, name)(np.ones((1, 3, 3)), np.ones((1, 3, 3), bool))


@pytest.mark.parametrize("limit", [0, -1, 1.1])
def test_limit_is_checked(limit):
    with pytest.raises(ValueError, match="limit"):
        metrics.pro(*example(0), limit)


shapes = st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6))


@st.composite
def scored(draw):
    shape = draw(shapes)
    scores = draw(hnp.arrays(np.int64, shape, elements=st.integers(-8, 8)))
    masks = draw(hnp.arrays(bool, shape))
    masks.flat[0], masks.flat[-1] = True, False
    return scores.astype(float), masks


@settings(max_examples=60, deadline=None)
@given(scored(), st.sampled_from([lambda x: 3 * x - 7, np.exp, lambda x: x**3, np.arctan]))
def test_only_the_order_of_scores_counts(data, transform):
    scores, masks = data
    assert np.array_equal(
        np.unique(scores, return_inverse=True)[1],
        np.unique(transform(scores), return_inverse=True)[1],
    )
    for metric in (metrics.auroc, metrics.average_precision, metrics.f1_max, metrics.pro):
        value = metric(scores, masks)
        assert 0 <= value <= 1 + 1e-12
        assert metric(transform(scores), masks) == pytest.approx(value, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(scored(), st.randoms(use_true_random=False))
def test_order_of_pictures_does_not_count_and_pro_is_exact(data, random):
    scores, masks = data
    order = list(range(len(scores)))
    random.shuffle(order)
    assert metrics.pro(scores[order], masks[order]) == pytest.approx(
        metrics.pro(scores, masks), abs=1e-12
    )
    assert metrics.pro(scores, masks) == pytest.approx(
        brute_force_pro(scores, masks, 0.3), abs=1e-10
    )
    assert metrics.auroc(-scores, masks) == pytest.approx(
        1 - metrics.auroc(scores, masks), abs=1e-12
    )


def sampled_pro(scores, masks, limit, count):
    """As MVTec 3D-AD's evaluation code defines it, region by region and threshold by threshold."""
    regions = []
    for score, mask in zip(scores, masks, strict=True):
        labels, found = ndimage.label(mask, np.ones((3, 3)))
        regions += [score[labels == k] for k in range(1, found + 1)]
    normal = np.sort(scores[~masks])
    points = [(1.0, 1.0)]
    for rank in np.linspace(0, len(normal) - 1, count, dtype=int):
        overlap = np.mean([(region > normal[rank]).mean() for region in regions])
        points.append((1 - (rank + 1) / len(normal), overlap))
    x, y = np.array(points[::-1]).T
    inside = x <= limit
    x = np.append(x[inside], limit)
    y = np.append(y[inside], np.interp(limit, *np.array(points[::-1]).T))
    return np.trapezoid(y, x) / limit


@pytest.mark.parametrize("count", [2, 10, 100, 10_000])
@pytest.mark.parametrize("levels", [None, 2])
def test_pro_from_sampled_thresholds_is_that_of_the_public_code(count, levels):
    scores, masks = example(3, levels)
    found = metrics.pro(scores, masks, 0.3, count)
    assert found == pytest.approx(sampled_pro(scores, masks, 0.3, count), abs=1e-9)


def test_pro_from_three_thresholds_by_hand():
    """Four normal pixels, a region of two and a region of one.

    Thresholds 0.1, 0.2 and 0.4, of ranks 0, 1 and 3, give (rate, overlap) = (0.75, 1), (0.5, 1) and
    (0, 0.25): half of one region and nothing of the other, whose 0.4 does not lie above 0.4. The
    line from there reaches 0.25 + 0.75 * 0.3 / 0.5 = 0.7 at a rate of 0.3.
    """
    scores = np.array([[[0.35, 0.5, 0.1, 0.4, 0.2, 0.3, 0.4]]])
    masks = np.array([[[1, 1, 0, 1, 0, 0, 0]]], bool)
    assert metrics.pro(scores, masks, 0.3, 3) == pytest.approx((0.25 + 0.7) / 2)


@pytest.mark.parametrize(("blur", "noise", "spots"), [(2, 0.05, 4), (2, 0.1, 4), (3, 0.02, 2)])
def test_sampled_thresholds_cost_more_than_a_point_of_pro_on_smooth_maps(blur, noise, spots):
    """Good maps with a few false alarms: 1.2 to 1.4 points less than exact, as on trained ones."""
    rng, shape = np.random.default_rng(0), (20, 128, 128)
    field = ndimage.gaussian_filter(rng.normal(size=shape), (0, 8, 8))
    masks = field > 2 * field.std()
    masks[:6] = False
    smooth = lambda maps, sigma: ndimage.gaussian_filter(maps, (0, sigma, sigma))
    grain = smooth(rng.normal(size=shape), blur)
    alarms = np.zeros(shape)
    alarms[np.arange(spots), 40, 70] = 1
    alarms = smooth(alarms, 3)
    maps = smooth(masks.astype(float), blur) + noise * grain / grain.std()
    maps += 1.5 * alarms / alarms.max()
    exact, sampled = (100 * metrics.pro(maps, masks, 0.3, count) for count in (None, 100))
    assert 98 < exact < 100
    assert 1.15 < exact - sampled < 1.45
    # a rank for each normal pixel leaves nothing between the points
    every = 100 * metrics.pro(maps, masks, 0.3, int((~masks).sum()))
    assert every == pytest.approx(exact, abs=0.01)
