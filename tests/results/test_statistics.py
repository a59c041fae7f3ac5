"""Intervals by how often they hold the truth, bounds and p values by SciPy; tests/golden has the numbers."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from benchmarks import coverage
from lary.results import statistics


def sums_of(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums (S, G, 2) of values (n,) or (S, n)."""
    tables = [np.stack([own, np.ones_like(own)], axis=1) for own in np.atleast_2d(values)]
    return np.stack([statistics.cluster_sums(table, clusters) for table in tables])


def mean_interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, ...]:
    """Estimate and ends of the interval of a mean."""
    found = statistics.intervals(sums_of(values, clusters), statistics.ratio)
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
        _, low, high = mean_interval(values, index)
        covered += low <= 1 <= high
    assert 0.9 <= covered / runs <= 0.99


@pytest.mark.parametrize("clusters", [12, 30, 300])
@pytest.mark.parametrize("name", ["accuracy 0.95", "accuracy 0.95, large harder", "error, log-normal 1.0", "macro F1"])
def test_interval_covers_the_truth_with_unequal_clusters(name: str, clusters: int) -> None:
    (kind, *_) = (kind for kind in coverage.KINDS if kind.name.startswith(name))
    cell = coverage.measured(kind, clusters, 400)
    assert cell.upper > coverage.bar(clusters)
    assert cell.missing == 0, "without an interval only where all samples are right"
    assert cell.width < coverage.NARROW


def test_few_clusters_get_no_interval_but_a_reason() -> None:
    values = np.arange(20, dtype=np.float64)
    few = np.arange(20) % (statistics.MIN_CLUSTERS - 1)
    assert mean_interval(values, few) == pytest.approx((9.5, np.nan, np.nan), nan_ok=True)
    assert "5 groups, and 6" in statistics.intervals(sums_of(values, few), statistics.ratio).reasons[0]
    assert np.isnan(statistics.p_value([(1.0, sums_of(values, few))]))
    assert np.isfinite(mean_interval(values, np.arange(20) % statistics.MIN_CLUSTERS)).all(), "just enough"


def test_without_spread_there_is_no_interval_but_a_reason() -> None:
    ones, third = np.ones((1, 12, 2)), np.array([[[0.1 * size, 0.3 * size] for size in range(1, 13)]])
    cases = [(ones, statistics.fraction), (third, statistics.fraction), (ones * [0, 1], statistics.magnitude)]
    cases += [(ones[:, :, :1] * np.eye(3)[0].repeat(2)[[0, 2, 0, 2, 0, 2]], statistics.macro_scores)]
    for sums, statistic in cases:
        found = statistics.intervals(sums, statistic)
        assert set(found.reasons) == {statistics.NO_SPREAD}
        assert np.isnan([found.low, found.high]).all()
    constant = np.ones((12, 2, 1)) * np.arange(2)[:, None]  # all targets but those of one cluster are the same
    constant[:11] = 1
    columns = statistics.error_columns(np.random.default_rng(0).normal(size=(12, 2, 1)), constant)
    assert statistics.intervals(columns[None], statistics.error_scores).reasons[2:] == (statistics.UNDEFINED,) * 2


def test_many_clusters_are_bundled_without_changing_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    clusters = statistics.cluster_index([f"video {index:05d}" for index in range(4000)])
    assert clusters.max() < statistics.MAX_CLUSTERS
    assert (statistics.cluster_index([f"video {index:05d}" for index in range(4000)], 1) != clusters).any()
    own, bundled = (np.ptp(mean_interval(values, each)[1:]) for each in (np.arange(4000), clusters))
    assert bundled == pytest.approx(own, rel=0.1)


def test_fractions_are_a_little_wider_than_those_of_independent_trials() -> None:
    counts = np.ones((20, 3))
    counts[4:, 2] = 0  # four clusters hold the third class: too few
    found = statistics.intervals(np.hstack([counts * np.array([1.0, 0.0, 1.0]), counts])[None], statistics.fraction)
    assert found.value == pytest.approx([1, 0, 1])
    assert [bool(reason) for reason in found.reasons] == [True] * 3, "all or none right"
    assert found.reasons[2].startswith("4 groups")
    single = np.stack([np.repeat([1.0, 0.0], [3, 9]), np.ones(12)], axis=1)[None]
    few = statistics.intervals(single, statistics.fraction)
    exact = scipy_stats.binomtest(3, 12).proportion_ci(0.95, method="exact")
    assert 0.5 * exact.low < few.low[0] < 1.4 * exact.low
    assert exact.high < few.high[0] < 1.4 * exact.high
    mirrored = statistics.intervals(np.stack([1 - single[..., 0], single[..., 1]], axis=-1), statistics.fraction)
    assert (1 - mirrored.high[0], 1 - mirrored.low[0]) == pytest.approx((few.low[0], few.high[0]))


def test_intervals_stay_in_the_range_of_the_metric() -> None:
    rng = np.random.default_rng(0)
    for clusters in (6, 7, 12):
        counts = coverage.sizes(rng, clusters).astype(float)
        hits = np.minimum(counts, 1 + np.arange(clusters) % 2)
        wrong = rng.lognormal(0, 2, clusters)
        for statistic, above in ((statistics.fraction, hits), (statistics.magnitude, wrong), (statistics.gain, hits)):
            found = statistics.intervals(np.stack([above, counts], axis=1)[None], statistic)
            lowest, highest = statistic.limits[0]
            assert lowest <= found.low[0] < found.value[0] < found.high[0] <= highest
        columns = statistics.error_columns(*rng.normal(size=(2, clusters, 3, 2)))
        assert (statistics.intervals(columns[None], statistics.error_scores).high[3:] < 1).all()
    values = rng.random(12) + np.array([[0.0], [0.9]])
    error = statistics.intervals(sums_of(values, np.arange(12)), statistics.magnitude)
    assert 0 < error.low[0] < 0.5 * error.value[0], "two seeds say little"
    parts = [(1.0, np.stack([hits, counts], axis=1)[None]), (-1.0, np.stack([counts - hits, counts], axis=1)[None])]
    assert statistics.spread_of(parts, statistics.fraction).limits.tolist() == [[-1, 1]]


def test_p_is_that_of_students_test_and_rarely_small_without_a_difference() -> None:
    values = np.random.default_rng(3).normal(0.3, 1, 50)
    assert statistics.p_value([(1.0, sums_of(values, np.arange(50)))]) == pytest.approx(
        scipy_stats.ttest_1samp(values, 0).pvalue
    )
    for clusters in (8, 40):
        small, runs = 0, 400
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            counts = coverage.sizes(rng, clusters)
            values = np.repeat(rng.normal(size=clusters), counts)
            small += statistics.p_value([(1.0, sums_of(values, np.repeat(np.arange(clusters), counts)))]) < 0.05
        assert small / runs <= 0.07


@pytest.mark.parametrize("clusters", [6, 8, 12, 30])
def test_p_is_never_below_that_of_the_exact_test_and_corrected_by_holm(clusters: int) -> None:
    """Always right against always wrong is what the sign test of SciPy says, with any sizes of clusters."""
    counts = np.arange(1.0, clusters + 1)
    right, wrong = np.stack([counts, counts], axis=1)[None], np.stack([0 * counts, counts], axis=1)[None]
    exact = scipy_stats.binomtest(clusters, clusters).pvalue
    assert statistics.p_value([(1.0, right), (-1.0, wrong)]) == pytest.approx(exact)
    nearly = right - np.where(counts == 1, 0.01, 0)[:, None] * [1, 0]
    assert statistics.p_value([(1.0, nearly), (-1.0, wrong)]) >= exact * (1 - 1e-9)
    assert statistics.p_value([(1.0, right), (-1.0, right)]) == 1
    seeds = np.stack([counts * np.array([[0.1], [0.9]]), np.broadcast_to(counts, (2, clusters))], axis=2)
    assert statistics.p_value([(1.0, seeds), (-1.0, wrong)]) > 0.2, "two seeds that differ, clusters that do not"
    differences = np.random.default_rng(0).normal(0.5, 1, 8)
    permuted = scipy_stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert statistics.sign_p(differences) == pytest.approx(permuted)
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert [*statistics.holm([0.6, 0.9]), *statistics.holm([])] == pytest.approx([1.0, 1.0])
