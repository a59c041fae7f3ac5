"""Intervals and p values: compared with SciPy, by simulation of how often they hold the truth, and at their limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lary.results import scores, statistics


def ratio_interval(values: np.ndarray, clusters: np.ndarray, seed: int = 0) -> statistics.Interval:
    sums = statistics.cluster_sums(np.stack([values, np.ones_like(values)], axis=1), clusters)
    return statistics.bootstrap(sums, scores.ratio, seed=seed)


def ends(found: statistics.Interval, column: int = 0) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return float(found.low[column]), float(found.high[column])


def width(found: statistics.Interval) -> float:
    low, high = ends(found)
    return high - low


def test_interval_agrees_with_scipy_for_independent_samples() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    ours = ratio_interval(values, np.arange(400))
    rng = np.random.default_rng(1)
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=2000, rng=rng, method="percentile")
    low, high = theirs.confidence_interval
    assert ends(ours) == (pytest.approx(low, abs=0.06 * (high - low)), pytest.approx(high, abs=0.06 * (high - low)))


def test_dependent_samples_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(40), 25)
    values = rng.normal(size=40)[episodes] + 0.1 * rng.normal(size=1000)
    assert width(ratio_interval(values, episodes)) > 4 * width(ratio_interval(values, np.arange(1000)))


@pytest.mark.parametrize("clusters", [8, 30])
def test_interval_covers_the_truth_about_95_times_of_100(clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    covered, runs = 0, 300
    for seed in range(runs):
        sizes = rng.integers(3, 12, clusters)
        hits = rng.binomial(sizes, rng.beta(3, 2, clusters))
        sums = np.stack([hits, sizes], axis=1).astype(np.float64)
        low, high = ends(statistics.bootstrap(sums, scores.ratio, seed=seed, resamples=600))
        covered += low <= 0.6 <= high
    assert 0.91 <= covered / runs <= 0.985


def test_few_clusters_get_no_interval_and_the_same_seed_the_same_one() -> None:
    values = np.arange(20, dtype=np.float64)
    few = ratio_interval(values, np.arange(20) % (statistics.MIN_CLUSTERS - 1))
    assert (few.low, few.high, few.value[0]) == (None, None, values.mean())
    first, second, other = (ends(ratio_interval(values, np.arange(20), seed)) for seed in (0, 0, 1))
    assert first == second != other


def test_many_clusters_are_bundled_without_changing_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    clusters = statistics.cluster_index([f"video {index:05d}" for index in range(4000)])
    assert clusters.max() < statistics.MAX_CLUSTERS
    assert width(ratio_interval(values, clusters)) == pytest.approx(
        width(ratio_interval(values, np.arange(4000))), rel=0.1
    )


def test_fractions_have_the_bounds_of_independent_trials() -> None:
    counts = np.ones((20, 3))
    counts[4:, 2] = 0  # four clusters hold the third class: too few
    found = statistics.fraction_interval(counts * np.array([1.0, 0.0, 1.0]), counts)
    exact = scipy_stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert ends(found) == (pytest.approx(exact.low), 1.0)
    assert ends(found, 1) == (0.0, pytest.approx(1 - exact.low))
    assert np.isnan(ends(found, 2)).all()
    low, high = ends(statistics.fraction_interval(np.array([[1.0]] * 3 + [[0.0]] * 9), np.ones((12, 1))))
    exact = scipy_stats.binomtest(3, 12).proportion_ci(0.95, method="exact")
    assert 0.5 * exact.low < low < exact.low
    assert exact.high < high < 1.2 * exact.high, "wider by what Student's quantile is above the normal one"


def test_intervals_stay_in_the_range_of_the_metric() -> None:
    rng = np.random.default_rng(0)
    hits = np.ones(12)
    hits[:2] = 0.2
    accuracy = statistics.bootstrap(np.stack([hits, np.ones(12)], axis=1), scores.fraction)
    runs = np.stack([np.stack([rng.random(12) + add, np.ones(12)], axis=1) for add in (0.0, 0.9)])
    error = statistics.bootstrap(runs, scores.magnitude)
    assert ends(accuracy)[1] <= 1
    assert ends(error)[0] == 0, "two seeds say little"


def test_standard_error_is_that_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(300, 2, 3))
    sums = statistics.cluster_sums(scores.error_columns(target + 0.4, target * 2), np.arange(300) % 12)
    found = statistics.spread_of([(1.0, sums)], scores.error_scores)
    without = scores.error_scores(sums.sum(axis=0) - sums)
    jackknife = (len(sums) - 1) / len(sums) * ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(found.variance, jackknife, rtol=0.15)


def seed_table(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums (S, G, 2) of values (S, n)."""
    tables = [np.stack([own, np.ones_like(own)], axis=1) for own in values]
    return np.stack([statistics.cluster_sums(table, clusters) for table in tables])


def test_equal_seeds_add_nothing_and_different_ones_widen() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(1, 1, 200), np.arange(200) % 40
    one = statistics.bootstrap(seed_table(values[None], clusters)[0], scores.ratio)
    same = statistics.bootstrap(seed_table(np.stack([values] * 3), clusters), scores.ratio)
    apart = statistics.bootstrap(seed_table(values + np.array([[-0.3], [0.0], [0.3]]), clusters), scores.ratio)
    assert [same.value, apart.value] == [pytest.approx(one.value)] * 2
    assert width(same) == pytest.approx(width(one), rel=1e-6)
    assert width(apart) > 3 * width(one)


def test_an_interval_over_three_seeds_covers_the_truth() -> None:
    covered, runs = 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(30), 8)
        shared = rng.normal(1, 0.5, 30)[clusters]
        values = np.stack([shared + rng.normal(0, 0.2) + rng.normal(0, 0.5, 240) for _ in range(3)])
        low, high = ends(statistics.bootstrap(seed_table(values, clusters), scores.ratio, seed=seed, resamples=500))
        covered += low <= 1 <= high
    assert 0.91 <= covered / runs <= 0.99


def test_p_is_the_level_at_which_the_interval_reaches_zero() -> None:
    values = np.random.default_rng(3).normal(0.3, 1, 50)
    found = statistics.spread_of([(1.0, np.stack([values, np.ones(50)], axis=1))], scores.ratio, resamples=20_000)
    p = statistics.p_value(found)
    assert ends(statistics.interval_of(found, level=1 - p))[0] == pytest.approx(0, abs=1e-6)
    assert p == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue, rel=0.25)


def test_p_of_no_difference_is_rarely_small() -> None:
    small, runs = 0, 200
    for seed in range(runs):
        values = np.random.default_rng(seed).normal(0, 1, 40)
        sums = np.stack([values, np.ones(40)], axis=1)
        found = statistics.spread_of([(1.0, sums)], scores.ratio, seed=seed, resamples=500)
        small += statistics.p_value(found) < 0.05
    assert 0.02 <= small / runs <= 0.085


def test_holm_and_p_without_spread() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []
    sums = np.ones((20, 2))  # p is the smallest that the resamples can show
    assert statistics.p_value(statistics.spread_of([(1.0, sums)], scores.ratio, resamples=999)) == pytest.approx(0.002)
    zero = statistics.spread_of([(1.0, sums), (-1.0, sums)], scores.ratio)
    assert statistics.p_value(zero) == 1.0
