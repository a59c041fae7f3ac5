"""95 % intervals by bootstrap over clusters (episodes, videos).

Frames of one episode depend on each other, so episodes are drawn, never frames. Every metric here is a function of sums
over samples; samples are therefore added up per cluster once, (G, M), and a resample is a weighted sum of its rows.

The interval is the expanded percentile interval (Hesterberg 2015, "What teachers should know about the bootstrap"):
a percentile bootstrap of G clusters is too narrow by sqrt((G - 1) / G) and uses a normal quantile where Student's t
belongs, so its levels are moved out to Phi(-+ sqrt(G / (G - 1)) t). It stays in the range of the data. Below
`MIN_CLUSTERS` clusters no interval is given: the bootstrap can't leave the range of the clusters, and with five of
them the truth lies outside that range more than one time in twenty (2 * 0.5**5 = 6 %).

Several seeds of a probe are a second factor, crossed with the clusters: sums are then (S, G, M), the estimate is the
mean over seeds, and a resample draws clusters and seeds. Three seeds drawn with replacement have ten outcomes and too
small a spread, so the mean over seeds is drawn from a normal distribution with their unbiased variance (a parametric
bootstrap), and the interval is stretched by the ratio of Student's quantiles for the degrees of freedom of the sum
(Welch and Satterthwaite) and for the clusters alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Statistic = Callable[[Array], Array]

MIN_CLUSTERS = 6
MAX_CLUSTERS = 2048
"""More clusters are bundled at random into this many: the interval is as wide, memory and time stay bounded."""
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Estimates (S,) float64, NaN where undefined, and their bounds (S,), None with too few clusters."""

    value: Array
    low: Array | None
    high: Array | None


def cluster_index(groups: Sequence[str], seed: int = 0) -> Ints:
    """The cluster 0..G-1 of every sample, (n,) int64, from its group name; at most `MAX_CLUSTERS` of them."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) > MAX_CLUSTERS:
        bundle: Ints = np.random.default_rng(seed).permutation(len(names)) % MAX_CLUSTERS
        return bundle[index.reshape(-1)]
    return index.reshape(-1).astype(np.int64)


def cluster_sums(columns: npt.ArrayLike, clusters: Ints) -> Array:
    """Sums of `columns` (n, M) within each cluster, (G, M) float64."""
    values = np.asarray(columns, dtype=np.float64)
    sums = np.zeros((int(clusters.max()) + 1 if len(clusters) else 0, values.shape[1]))
    np.add.at(sums, clusters, values)
    return sums


def bootstrap(
    sums: Array,
    statistic: Statistic,
    *,
    support: Ints | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The statistic of all clusters and its interval.

    `sums` (G, M), or (S, G, M) for S seeds, are sums per cluster; `statistic` maps totals (R, M) to values (R, K), row
    by row, and may answer NaN where a resample leaves a value undefined. `support` (K,) says how many clusters a value
    rests on where that isn't all of them, as with the recall of one class; values on fewer than `MIN_CLUSTERS` have NaN
    bounds.
    """
    value = statistic(by_seed(sums).sum(axis=1)).mean(axis=0)
    clusters = sums.shape[-2]
    if clusters < MIN_CLUSTERS:
        return Interval(value, None, None)
    counts = np.full(len(value), clusters) if support is None else support
    drawn = resample([(1.0, sums)], statistic, counts, seed=seed, resamples=resamples)
    return interval_of(value, drawn, counts, level)


def interval_of(value: Array, drawn: Resamples, support: Ints, level: float = LEVEL) -> Interval:
    """The interval of estimates (K,) from their resamples, each on `support` (K,) clusters."""
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    for column, number in enumerate(support):
        defined = drawn.values[~np.isnan(drawn.values[:, column]), column]
        if number >= MIN_CLUSTERS and len(defined):
            ends = np.quantile(defined, (tail := _expanded_tail(int(number), level), 1 - tail))
            if drawn.freedom[column] < number - 1:
                stretch = _quantile(drawn.freedom[column], level) / _quantile(number - 1, level)
                ends = value[column] + stretch * (ends - value[column])
            low[column], high[column] = ends
    return Interval(value, low, high)


@dataclass(frozen=True)
class Resamples:
    """Values (R, K) of the resamples, and the degrees of freedom (K,) of their spread."""

    values: Array
    freedom: Array


def by_seed(sums: Array) -> Array:
    """Sums as (S, G, M), with one seed where there is no axis for them."""
    return sums if sums.ndim == 3 else sums[None]


def cluster_draws(clusters: int, seed: int, resamples: int) -> Array:
    """How often each cluster stands in each resample, (R, G) float64."""
    draws = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    return draws.astype(np.float64)


def resample(
    parts: Sequence[tuple[float, Array]], statistic: Statistic, support: Ints, *, seed: int, resamples: int
) -> Resamples:
    """The weighted sum of a statistic of several runs in resamples of clusters, shared by the runs, and of their seeds.

    `parts` are pairs of weight and sums (S, G, M) or (G, M): one of weight 1 for a run, 1 and -1 for a difference.
    """
    draws = cluster_draws(parts[0][1].shape[-2], seed, resamples)
    mean: Array = np.zeros(())
    moved, between, shares = mean, mean, mean
    for index, (weight, sums) in enumerate(parts):
        each = np.stack([statistic(draws @ run) for run in by_seed(sums)])
        mean, seeds = mean + weight * each.mean(axis=0), len(each)
        if seeds == 1:
            continue
        variance = statistic(by_seed(sums).sum(axis=1)).var(axis=0, ddof=1) / seeds
        noise = np.random.default_rng([seed, index, seeds]).standard_normal((resamples, 1))
        moved = moved + weight * np.sqrt(variance) * noise
        between, shares = between + variance, shares + variance**2 / (seeds - 1)
    full = np.maximum(support - 1.0, 1.0)
    if between.ndim == 0:  # one seed each
        return Resamples(mean, full)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column that is undefined in every resample
        within = np.nanvar(mean, axis=0)
    total = within**2 / full + shares
    freedom = np.divide((within + between) ** 2, total, out=full.copy(), where=total > 0)
    return Resamples(mean + moved, np.minimum(freedom, full))


def _quantile(freedom: float, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def _expanded_tail(clusters: int, level: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(-np.sqrt(clusters / (clusters - 1)) * _quantile(clusters - 1, level)))


def p_value(values: Array, clusters: int, freedom: float) -> float:
    """Two-sided p of no difference from resampled differences (R,): the level at which the interval reaches zero."""
    from scipy.special import ndtri, stdtr

    size = len(values)
    below = (np.sum(values < 0) + 0.5 * np.sum(values == 0) + 0.5) / (size + 1)
    t = abs(float(ndtri(below))) * np.sqrt((clusters - 1) / clusters)
    return float(min(1.0, 2 * stdtr(freedom, -t)))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number as by Holm (1979), in the given order."""
    corrected, reached = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        reached = max(reached, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = reached
    return corrected


def ratio(totals: Array) -> Array:
    """First half of the columns over the second half, (R, 2S) to (R, S); NaN over zero."""
    above, below = np.split(totals, 2, axis=1)
    quotient: Array = np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
    return quotient


def fraction_interval(hits: Array, counts: Array, *, seed: int = 0) -> Interval:
    """Interval of fractions such as accuracy, or recall per class, from hits and trials per cluster.

    Both are (G, K), or (S, G, K) for S seeds. Where all or no trials of a column hit, resampling shows no spread; there
    the bound is Clopper and Pearson's for as many independent trials as clusters hold any.
    """
    support: Ints = (by_seed(counts)[0] > 0).sum(axis=0)
    found = bootstrap(np.concatenate([hits, counts], axis=-1), ratio, support=support, seed=seed)
    if found.low is None or found.high is None:
        return found
    reach = np.where(support < MIN_CLUSTERS, np.nan, ((1 - LEVEL) / 2) ** (1 / np.maximum(support, 1)))
    low = np.where(found.value == 1, reach, found.low)
    return Interval(found.value, low, np.where(found.value == 0, 1 - reach, found.high))


def macro_scores(totals: Array) -> Array:
    """Recall averaged over the classes that occur, F1 over those that occur or are predicted, (R, 3L) to (R, 2).

    Columns: correct, true and predicted samples per class.
    """
    correct, true, predicted = np.split(totals, 3, axis=1)

    def mean_over(hits: Array, counts: Array) -> Array:
        shares = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
        mean: Array = shares.sum(axis=1) / np.maximum((counts > 0).sum(axis=1), 1)
        return mean

    return np.stack([mean_over(correct, true), mean_over(2 * correct, true + predicted)], axis=1)


def class_sums(labels: Ints, predicted: Ints, classes: int, clusters: Ints) -> Array:
    """Sums per cluster for `macro_scores`: correct, true and predicted samples per class, (G, 3L) float64."""
    sums = np.zeros((int(clusters.max()) + 1 if len(clusters) else 0, 3 * classes))
    np.add.at(sums, (clusters, labels), (labels == predicted).astype(np.float64))
    np.add.at(sums, (clusters, classes + labels), 1.0)
    np.add.at(sums, (clusters, 2 * classes + predicted), 1.0)
    return sums


def error_scores(totals: Array) -> Array:
    """Mean squared error and R2 per dimension, then over all, (R, 4A) to (R, 2A + 2).

    Columns per dimension: squared error, target, squared target, count (sums over samples and steps). R2 is one minus
    the squared error over the squared deviation of the targets from their mean per dimension, NaN for constant targets.
    """
    error, target, square, count = np.split(totals, 4, axis=1)
    spread = np.maximum(square - target**2 / np.maximum(count, 1), 0)
    spread[spread < 1e-9 * np.maximum(square, 1e-30)] = 0
    everything = np.hstack([error, error.sum(axis=1, keepdims=True)])
    mse = ratio(np.hstack([everything, count, count.sum(axis=1, keepdims=True)]))
    r2 = 1 - ratio(np.hstack([everything, spread, spread.sum(axis=1, keepdims=True)]))
    return np.hstack([mse, r2])


def error_columns(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Array:
    """One row per sample for `error_scores` from (n, K, A) arrays, (n, 4A) float64."""
    guess, truth = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    count = np.full((len(truth), truth.shape[2]), float(truth.shape[1]))
    return np.hstack([((guess - truth) ** 2).sum(axis=1), truth.sum(axis=1), (truth**2).sum(axis=1), count])
