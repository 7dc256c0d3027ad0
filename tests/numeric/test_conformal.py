"""The promise of the threshold: the mean rate of false alarms, and its spread."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helixbench.detect import conformal
from helixbench.errors import UserError

SPLITS = 200


def alarms(pool, n, rate, rng, splits=SPLITS):
    """Number of false alarms among the pictures that are left, by split of the pool."""
    counts = []
    for _ in range(splits):
        order = rng.permutation(pool)
        found = conformal.threshold(dict(enumerate(order[:n])), rate)
        counts.append(int((order[n:] > found.value).sum()))
    return np.array(counts)


@pytest.mark.parametrize("n, rate", [(19, 0.05), (60, 0.05), (99, 0.1), (140, 0.01)])
def test_the_promise_holds_and_the_spread_is_beta_binomial(n, rate):
    rng = np.random.default_rng(n)
    pool = rng.beta(0.5, 4, 300)  # skewed, as scores of normal pictures are
    m, above = 300 - n, int((n + 1) * rate + 1e-9)
    expected = stats.betabinom(m, above, n + 1 - above)
    counts = alarms(pool, n, rate, rng)
    error = expected.std() / np.sqrt(SPLITS)
    assert expected.mean() / m <= rate + 1e-12
    assert counts.mean() < m * rate + 3 * error
    assert abs(counts.mean() - expected.mean()) < 4 * error
    # each count in its place of the distribution, ties broken at random: uniform
    below, own = expected.cdf(counts - 1), expected.pmf(counts)
    assert stats.kstest(below + own * rng.random(SPLITS), "uniform").pvalue > 1e-3


def test_a_threshold_that_is_one_rank_too_low_breaks_the_promise():
    """The test above can fail: the quantile that one takes without thinking is too low."""
    rng = np.random.default_rng(0)
    pool, rates = rng.random(300), []
    for _ in range(SPLITS):
        order = rng.permutation(pool)
        rates.append((order[19:] > np.quantile(order[:19], 0.95)).mean())
    assert np.mean(rates) > 0.06


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
    st.floats(0.001, 0.999),
)
def test_the_threshold_is_the_order_statistic(scores, rate):
    n = len(scores)
    named = {str(i): score for i, score in enumerate(scores)}
    if rate < conformal.smallest_rate(n) - 1e-6:
        with pytest.raises(UserError, match=f"with {n} normals"):
            conformal.threshold(named, rate)
    elif rate > conformal.smallest_rate(n) + 1e-6:
        found = conformal.threshold(named, rate)
        above = sum(score > found.value for score in scores)
        assert (above + 1) / (n + 1) <= rate + 1e-8, "the new picture counts as one of them"
        assert any(0 <= found.value - score <= 1.1e-5 for score in scores)


def test_how_many_normals_a_rate_takes():
    assert [conformal.needed(rate) for rate in (0.5, 0.1, 0.05, 0.01)] == [1, 9, 19, 99]
    assert conformal.threshold({str(i): i / 20 for i in range(19)}, 0.05).value == 0.9
    with pytest.raises(UserError, match="with 20 normals .* below 4.8 % can be promised, not 1 %"):
        conformal.check(20, 0.01, "")


def test_a_threshold_that_flags_nothing_is_a_threshold():
    assert conformal.threshold({"a": 1.0, "b": 0.2}, 0.4).value == 1.0
