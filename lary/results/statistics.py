"""95 % intervals by bootstrap over clusters (episodes, videos) and seeds, and p values of differences.

Frames of one episode depend on each other, so episodes are drawn, never frames. Every metric here is a function of sums
over samples (`lary.results.scores`); samples are therefore added up per cluster once, (G, M), and a resample is a
weighted sum of its rows.

The interval is the studentised bootstrap, also bootstrap-t (Efron 1981; Davison and Hinkley 1997, section 5.2). Each
resample gives its deviation from the estimate in units of its own standard error; the quantiles of these ratios stand
where Student's t would stand, so that skewed errors get a skewed interval. Standard errors come from the slopes of the
metric (delta method over clusters) and are widened by sqrt(G / (G - 1)). Two guards: a resample whose standard error
is below `FLOOR` of the estimate's gets that one, since a few clusters without any spread would make it infinite; and
the ends stay in the range of the metric. Percentile intervals, also bias-corrected and accelerated ones, hold the truth
too rarely where errors are skewed and clusters few: `benchmarks/coverage.py` measures it. Differences, and whatever
else has no range, get no quantile below Student's: theirs are often heavy on both sides, and the studentised bootstrap
then finds one in thirteen pairs of equal runs different. Below `MIN_CLUSTERS` clusters no interval is given.

Shares of right answers have Korn and Graubard's interval (`fraction_interval`): a class may have a dozen samples.

Several seeds of a probe are a second factor, crossed with the clusters: sums are then (S, G, M), the estimate is the
mean over seeds, and its variance is that over clusters plus that of a mean of S seeds. Three seeds have a variance
with two degrees of freedom, which no resampling mends. So Student's quantile is taken for the sum of both variances,
and the clusters' share of it moved by as much as their own quantile differs from Student's. The degrees of freedom of
the sum are Satterthwaite's (1946), but a variance with f of them counts 1 + (3 / f)**2 times in his formula: it
believes a seed variance that came out small by chance, and where seeds differ much its intervals hold the truth 87
times of 100 with two seeds and 92 with three. The factor was found by simulation of normal means; it leaves 94 to 97.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lary.results.scores import Array, Ints, Statistic, fraction, no_limits, ratio, statistic_of

Part = tuple[float, Array]
"""A weight and the sums (S, G, M) or (G, M) of a run: weight 1 for a run, 1 and -1 for a difference of two."""

MIN_CLUSTERS = 6
MAX_CLUSTERS = 1024
"""More clusters are bundled at random into this many: the interval is as wide, memory and time stay bounded."""
RESAMPLES = 2000
BLOCK = 1000
"""Resamples at a time."""
FLOOR = 0.3
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Estimates (K,) float64, NaN where undefined, and their bounds (K,), None with too few clusters."""

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


def by_seed(sums: Array) -> Array:
    """Sums as (S, G, M), with one seed where there is no axis for them."""
    return sums if sums.ndim == 3 else sums[None]


@lru_cache(maxsize=4)
def cluster_draws(clusters: int, seed: int, resamples: int) -> Array:
    """How often each cluster is in each resample, (R, G) float64, read-only; all metrics of a run share them."""
    draws = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    kept: Array = draws.astype(np.float64)
    kept.flags.writeable = False
    return kept


@dataclass(frozen=True)
class Spread:
    """What is known of the spread of estimates (K,) on `support` (K,) clusters.

    `ratios` (R, K) are the sorted studentised deviations of the resamples, NaN last; `variance` (K,) is that over
    clusters; `seeds` are pairs of variance (K,) and degrees of freedom, one for each run of several seeds; `ranged`
    says whether the metric has a range.
    """

    value: Array
    support: Ints
    ratios: Array
    variance: Array
    seeds: tuple[tuple[Array, int], ...]
    ranged: bool

    def reach(self, column: int, level: float) -> tuple[float, float]:
        """How far the interval of a value reaches below and above it; NaN where that can't be known."""
        own = self.ratios[:, column]
        own = own[: len(own) - int(np.isnan(own).sum())]
        if self.support[column] < MIN_CLUSTERS or not len(own):
            return np.nan, np.nan
        tail = (1 - level) / 2
        low, high = quantile(own, tail), quantile(own, 1 - tail)
        total, freedom = self.total(column)
        if total <= 0:
            return 0.0, 0.0
        student, own_student = _student(freedom, level), _student(self.support[column] - 1, level)
        excess = [side - own_student for side in (high, -low)]
        excess = excess if self.ranged else [max(each, 0.0) for each in excess]
        share = float(self.variance[column]) / total
        below, above = (max(student + share * more, 0.0) * total**0.5 for more in excess)
        return below, above

    def total(self, column: int) -> tuple[float, float]:
        """Variance of a value over clusters and seeds together, and its degrees of freedom."""
        own = (float(self.variance[column]), float(self.support[column] - 1))
        parts = [(float(each[column]), freedom) for each, freedom in self.seeds]
        total = own[0] + sum(each for each, _ in parts)
        if total <= 0:
            return 0.0, own[1]
        return total, _freedom([own, *((each * (1 + 9 / f**2), f) for each, f in parts)])


def bootstrap(
    sums: Array, statistic: Callable[[Array], Array], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The statistic of all clusters and its interval.

    `sums` (G, M), or (S, G, M) for S seeds, are sums per cluster; `statistic` is a `Statistic`, or any smooth function
    from totals (R, M) to values (R, K), row by row, which may answer NaN where a resample leaves a value undefined.
    """
    known = statistic_of(statistic, by_seed(sums))
    if sums.shape[-2] < MIN_CLUSTERS:
        return Interval(_estimate(by_seed(sums), known)[0], None, None)
    return interval_of(spread_of([(1.0, sums)], known, seed=seed, resamples=resamples), known)


def interval_of(found: Spread, statistic: Statistic | None = None, level: float = LEVEL) -> Interval:
    """The interval of estimates from their spread, in the range of the statistic."""
    reach = np.array([found.reach(column, level) for column in range(len(found.value))]).reshape(-1, 2)
    low, high = found.value - reach[:, 0], found.value + reach[:, 1]
    if statistic is not None:
        lowest, highest = statistic.limits(len(found.value))
        low, high = np.clip(low, lowest, None), np.clip(high, None, highest)
    return Interval(found.value, low, high)


def _estimate(runs: Array, statistic: Statistic) -> tuple[Array, Array]:
    """Means (K,) over seeds of the statistic, from sums (S, G, M), and the variance (K,) of a mean of that many."""
    values = statistic(runs.sum(axis=1))
    spread = values.var(axis=0, ddof=1) / len(values) if len(values) > 1 else np.zeros(values.shape[1])
    return values.mean(axis=0), spread


def spread_of(
    parts: Sequence[Part], statistic: Statistic = ratio, *, seed: int = 0, resamples: int = RESAMPLES
) -> Spread:
    """The weighted sum of a statistic of several runs, and its spread over clusters, shared by the runs, and seeds."""
    known = _without_resamples(parts, statistic)
    runs = [(weight, by_seed(sums)) for weight, sums in parts]
    draws = cluster_draws(runs[0][1].shape[1], seed, resamples)
    blocks = [_resampled(runs, statistic, draws[start : start + BLOCK]) for start in range(0, resamples, BLOCK)]
    values, errors = (np.concatenate(part) for part in zip(*blocks, strict=True))
    whole = np.sqrt(known.variance * (known.support - 1) / known.support)
    errors = np.maximum(errors, FLOOR * whole)
    deviations = values - known.value
    ratios = np.divide(deviations, errors, out=np.where(np.isnan(deviations), np.nan, 0.0), where=errors > 0)
    return replace(known, ratios=np.sort(ratios, axis=0))


def _without_resamples(parts: Sequence[Part], statistic: Statistic, support: Ints | None = None) -> Spread:
    """Estimates and their variances over clusters and seeds alone.

    `support` (K,) says how many clusters a value rests on where that isn't all of them, as with the recall of a class.
    """
    runs = [(weight, by_seed(sums)) for weight, sums in parts]
    value: Array = np.zeros(())
    seeds = []
    for weight, sums in runs:
        mean, variance = _estimate(sums, statistic)
        value = value + weight * mean
        if len(sums) > 1:
            seeds.append((weight**2 * variance, len(sums) - 1))
    clusters = runs[0][1].shape[1]
    _, whole = _resampled(runs, statistic, np.ones((1, clusters)))
    counts = np.full(len(value), clusters) if support is None else np.asarray(support)
    variance = whole[0] ** 2 * counts / np.maximum(counts - 1, 1)
    return Spread(value, counts, np.empty((0, len(value))), variance, tuple(seeds), statistic.limits is not no_limits)


def _resampled(runs: Sequence[Part], statistic: Statistic, draws: Array) -> tuple[Array, Array]:
    """Values and their standard errors over clusters, both (R, K), of resamples `draws` (R, G).

    Each cluster pulls at a value by the slope of the value times the cluster's sums; the standard error is the root of
    the summed squares of these pulls. They add up to zero in all metrics here, which don't change if all sums double.
    """
    mean: Array = np.zeros(())
    slopes = []
    for weight, sums in runs:
        for own in sums:
            totals = draws @ own
            mean = mean + weight / len(sums) * statistic(totals)
            slopes.append((weight / len(sums), own, statistic.slopes(totals)))
    errors = np.empty_like(mean)
    for column in range(mean.shape[1]):
        pulls = []
        for weight, own, each in slopes:
            columns, slope = next(each)
            pulls.append((weight * slope, own[:, columns]))
        held = np.flatnonzero(np.any([own.any(axis=1) for _, own in pulls], axis=0))
        pull = sum(slope @ own[held].T for slope, own in pulls)
        errors[:, column] = np.sqrt(np.einsum("rg,rg,rg->r", draws[:, held], pull, pull))
    return mean, errors


def quantile(ordered: Array, share: float) -> float:
    """A quantile of sorted values by linear interpolation, as NumPy's."""
    place = share * (len(ordered) - 1)
    index = min(int(place), len(ordered) - 2) if len(ordered) > 1 else 0
    ends = ordered[index : index + 2]
    return float(ends[0] + (place - index) * (ends[-1] - ends[0]))


def _freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances, from pairs of variance and degrees of freedom (Satterthwaite)."""
    return float(sum(each for each, _ in parts) ** 2 / sum(each**2 / freedom for each, freedom in parts))


def _student(freedom: float, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def p_value(found: Spread, column: int = 0) -> float:
    """Two-sided p of no difference: the level at which the interval of a difference reaches zero, by bisection.

    The smallest is 2 / (R + 1), as for any test by R resamples.
    """
    value = float(found.value[column])
    low, high = np.log(2 / (len(found.ratios) + 1)), 0.0

    def holds_zero(p: float) -> bool:
        below, above = found.reach(column, 1 - p)
        return value - below <= 0 <= value + above

    if holds_zero(1.0):
        return 1.0
    if not holds_zero(float(np.exp(low))):
        return float(np.exp(low))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds_zero(float(np.exp(middle))) else (low, middle)
    return float(np.exp(low))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number as by Holm (1979), in the given order."""
    corrected, reached = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        reached = max(reached, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = reached
    return corrected


def fraction_interval(hits: Array, counts: Array, *, level: float = LEVEL) -> Interval:
    """Interval of fractions such as accuracy, or recall per class, from hits and trials per cluster.

    Both are (G, K), or (S, G, K) for S seeds. That of Korn and Graubard (1998, Survey Methodology 24): Clopper and
    Pearson's for as many independent trials as have the variance found, fewer by what Student's quantile is above the
    normal one; for as many trials as clusters where all or no trials hit. Resampling fails for a class with a dozen
    samples, of which some resamples hold no hit.
    """
    from scipy.special import betaincinv, ndtri

    support: Ints = (by_seed(counts)[0] > 0).sum(axis=0)
    sums = np.concatenate([hits, counts], axis=-1)
    if sums.shape[-2] < MIN_CLUSTERS:
        return Interval(_estimate(by_seed(sums), fraction)[0], None, None)
    found = _without_resamples([(1.0, sums)], fraction, support)
    trials, normal = by_seed(counts)[0].sum(axis=0), float(ndtri((1 + level) / 2))
    low, high = np.full_like(found.value, np.nan), np.full_like(found.value, np.nan)
    for column in np.flatnonzero(support >= MIN_CLUSTERS).tolist():
        share = float(found.value[column])
        total, freedom = found.total(column)
        size = float(support[column])
        if 0 < share < 1:
            size = float(trials[column])
            if total > 0:
                size = min(size, share * (1 - share) / total * (normal / _student(freedom, level)) ** 2)
        right, wrong, tail = share * size, (1 - share) * size, (1 - level) / 2
        low[column] = betaincinv(right, wrong + 1, tail) if share > 0 else 0.0
        high[column] = betaincinv(right + 1, wrong, 1 - tail) if share < 1 else 1.0
    return Interval(found.value, low, high)
