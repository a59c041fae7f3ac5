"""Intervals by how often they hold the truth, bounds and p values by SciPy; tests/golden has the numbers."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lary.results import statistics


def sums_of(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums (S, G, 2) of values (n,) or (S, n)."""
    tables = [np.stack([own, np.ones_like(own)], axis=1) for own in np.atleast_2d(values)]
    return np.stack([statistics.cluster_sums(table, clusters) for table in tables])


def mean_interval(values: np.ndarray, clusters: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, ...]:
    """Estimate and ends of the interval of a mean."""
    found = statistics.bootstrap(sums_of(values, clusters), statistics.ratio, seed=seed, resamples=resamples)
    return float(found.value[0]), float(found.low[0]), float(found.high[0])


@pytest.mark.parametrize(("clusters", "seeds"), [(8, 1), (30, 1), (30, 3)])
def test_interval_covers_the_truth_about_95_times_of_100(clusters: int, seeds: int) -> None:
    covered, runs = 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        index = np.repeat(np.arange(clusters), 8)
        shared = rng.gamma(4, 0.25, clusters)[index]
        spread = 0.2 if seeds > 1 else 0.0
        values = np.stack([shared + rng.normal(0, spread) + rng.normal(0, 0.5, len(index)) for _ in range(seeds)])
        _, low, high = mean_interval(values, index, seed, resamples=500)
        covered += low <= 1 <= high
    assert 0.9 <= covered / runs <= 0.99


def test_few_clusters_get_no_interval_and_the_same_seed_the_same_one() -> None:
    values = np.arange(20, dtype=np.float64)
    few = np.arange(20) % (statistics.MIN_CLUSTERS - 1)
    assert mean_interval(values, few) == pytest.approx((9.5, np.nan, np.nan), nan_ok=True)
    assert np.isnan(statistics.p_value(statistics.spread_of([(1.0, sums_of(values, few))])))
    assert np.isfinite(mean_interval(values, np.arange(20) % statistics.MIN_CLUSTERS)).all(), "just enough"
    assert np.isfinite(statistics.fraction_interval(np.ones((1, statistics.MIN_CLUSTERS, 2))).low).all()
    first, second, other = (mean_interval(values, np.arange(20), seed) for seed in (0, 0, 1))
    assert first == second != other


def test_many_clusters_are_bundled_without_changing_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    clusters = statistics.cluster_index([f"video {index:05d}" for index in range(4000)])
    assert clusters.max() < statistics.MAX_CLUSTERS
    own, bundled = (np.ptp(mean_interval(values, each)[1:]) for each in (np.arange(4000), clusters))
    assert bundled == pytest.approx(own, rel=0.1)


def test_fractions_have_the_bounds_of_independent_trials() -> None:
    counts = np.ones((20, 3))
    counts[4:, 2] = 0  # four clusters hold the third class: too few
    found = statistics.fraction_interval(np.hstack([counts * np.array([1.0, 0.0, 1.0]), counts])[None])
    exact = scipy_stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert found.low == pytest.approx([exact.low, 0, np.nan], nan_ok=True)
    assert found.high == pytest.approx([1, 1 - exact.low, np.nan], nan_ok=True)
    few = statistics.fraction_interval(np.stack([np.repeat([1.0, 0.0], [3, 9]), np.ones(12)], axis=1)[None])
    exact = scipy_stats.binomtest(3, 12).proportion_ci(0.95, method="exact")
    assert 0.5 * exact.low < few.low[0] < exact.low
    assert exact.high < few.high[0] < 1.2 * exact.high, "wider by what Student's quantile is above the normal one"


def test_intervals_stay_in_the_range_of_the_metric() -> None:
    hits = np.ones(12)
    hits[:2] = 0.2
    accuracy = statistics.bootstrap(np.stack([hits, np.ones(12)], axis=1)[None], statistics.fraction)
    assert accuracy.high[0] <= 1
    values = np.random.default_rng(0).random(12) + np.array([[0.0], [0.9]])
    error = statistics.bootstrap(sums_of(values, np.arange(12)), statistics.magnitude)
    assert error.low[0] == 0, "two seeds say little"


def test_p_is_that_of_students_test_and_rarely_small_without_a_difference() -> None:
    values = np.random.default_rng(3).normal(0.3, 1, 50)
    found = statistics.spread_of([(1.0, sums_of(values, np.arange(50)))], resamples=20_000)
    p = statistics.p_value(found)
    assert found.value[0] - found.reach(0, 1 - p)[0] == pytest.approx(0, abs=1e-6), "the interval reaches zero"
    assert p == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue, rel=0.25)
    small, runs = 0, 200
    for seed in range(runs):
        sums = sums_of(np.random.default_rng(seed).normal(0, 1, 40), np.arange(40))
        small += statistics.p_value(statistics.spread_of([(1.0, sums)], seed=seed, resamples=500)) < 0.05
    assert 0.02 <= small / runs <= 0.085


def test_holm_and_p_without_spread() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert [*statistics.holm([0.6, 0.9]), *statistics.holm([])] == pytest.approx([1.0, 1.0])
    sums = np.ones((1, 20, 2))  # p is the smallest that the resamples can show
    assert statistics.p_value(statistics.spread_of([(1.0, sums)], resamples=999)) == pytest.approx(0.002)
    assert statistics.p_value(statistics.spread_of([(1.0, sums), (-1.0, sums)])) == 1.0
