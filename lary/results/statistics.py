"""Metrics as functions of sums, their 95 % intervals, and p values of differences.

Frames of an episode depend on each other, so episodes or videos (clusters) are drawn.
Samples are added up per cluster, (G, M); a resample is a weighted sum.
Intervals are made by the studentised bootstrap (Efron 1981; Davison and Hinkley 1997,
section 5.2). Seeds are a second factor, crossed with the clusters: sums are (S, G, M), and
the variance of a mean of S seeds joins that over clusters. docs/number.md has the reasons.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv, ndtri, stdtrit
from torch import Tensor

from lary.arrays import Array, Doubles, Ints

Part = tuple[float, Doubles]
"""A weight and the sums (S, G, M) of a run: weight 1 for a run, 1 and -1 for a difference."""

MIN_CLUSTERS = 6
MAX_CLUSTERS = 1024
"""More clusters are bundled at random into this many, which bounds memory and time."""
RESAMPLES = 2000
FLOOR = 0.3
"""Least share of the estimate's standard error: few clusters without spread have ratios without end."""
LEVEL = 0.95


# --- metrics ---


@dataclass(frozen=True)
class Statistic:
    """A metric of totals: its values in torch, and the lowest and highest of each kind.

    `function` maps totals (R, M) to values (R, K), row by row, NaN where undefined. All
    metrics here stay the same if all totals double. The K values are as many of each of
    the kinds in `limits`, kind by kind.
    """

    function: Callable[[Tensor], Tensor]
    limits: tuple[tuple[float, float], ...] = ((-inf, inf),)

    def __call__(self, totals: Doubles) -> Doubles:
        """Values (R, K) of totals (R, M)."""
        return self.function(torch.tensor(totals)).numpy()

    def slopes(self, totals: Doubles) -> Iterator[Doubles]:
        """Derivatives of each of the K values by the totals, (R, M) each."""
        point = torch.tensor(totals, requires_grad=True)
        values = self.function(point)
        for column in range(values.shape[1]):
            (slope,) = torch.autograd.grad(values[:, column].sum(), point, retain_graph=True)
            yield slope.numpy()


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """A quotient, NaN over zero; the second choice keeps the slopes of torch finite there."""
    there = below != 0
    return torch.where(there, above / torch.where(there, below, 1.0), torch.nan)


def _ratio(totals: Tensor) -> Tensor:
    above, below = totals.chunk(2, dim=1)
    return _quotient(above, below)


ratio = Statistic(_ratio)
"""First half of the columns over the second half, (R, 2K) to (R, K); NaN over zero."""
fraction = Statistic(_ratio, ((0, 1),))
"""The same between 0 and 1, such as an accuracy."""
magnitude = Statistic(_ratio, ((0, inf),))
"""The same from 0, such as a mean error."""


def _macro(totals: Tensor) -> Tensor:
    correct, true, predicted = totals.chunk(3, dim=1)
    shares = _quotient(correct, true), _quotient(2 * correct, true + predicted)
    return torch.stack([share.nanmean(dim=1) for share in shares], dim=1)


macro_scores = Statistic(_macro, ((0, 1),))
"""Recall averaged over the classes that occur, F1 over those that occur or are predicted,
(R, 3L) to (R, 2). Columns: correct, true and predicted samples per class."""


def class_sums(labels: Ints, predicted: Ints, classes: int, clusters: Ints) -> Doubles:
    """Sums per cluster for `macro_scores`, (G, 3L) float64."""
    true, guess = np.eye(classes)[labels], np.eye(classes)[predicted]
    return cluster_sums(np.hstack([true * guess, true, guess]), clusters)


def _errors(totals: Tensor) -> Tensor:
    error, target, square, count = totals.chunk(4, dim=1)
    spread = (square - target**2 / count.clamp(min=1)).clamp(min=0)
    # Constant targets have no spread, however they are rounded.
    spread = torch.where(spread < 1e-9 * square.clamp(min=1e-30), 0.0, spread)
    error, count, spread = (torch.hstack([part, part.sum(dim=1, keepdim=True)]) for part in (error, count, spread))
    return torch.hstack([_quotient(error, count), 1 - _quotient(error, spread)])


error_scores = Statistic(_errors, ((0, inf), (-inf, 1)))
"""Mean squared error per dimension and over all, then R2 likewise, (R, 4A) to (R, 2A + 2).

Columns per dimension: squared error, target, squared target, count (sums over samples and
steps). R2 is one minus the squared error over the squared deviation of the targets from
their mean per dimension, NaN for constant targets."""


def error_columns(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Doubles:
    """One row per sample for `error_scores` from (n, K, A) arrays, (n, 4A) float64."""
    guess, truth = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    count = np.full((len(truth), truth.shape[2]), float(truth.shape[1]))
    error = ((guess - truth) ** 2).sum(axis=1)
    return np.hstack([error, truth.sum(axis=1), (truth**2).sum(axis=1), count])


# --- clusters ---


def cluster_index(groups: Sequence[str], seed: int = 0) -> Ints:
    """The cluster of every sample from its group name, (n,), at most `MAX_CLUSTERS` of them."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    bundles = np.arange(len(names))
    if len(names) > MAX_CLUSTERS:
        bundles = np.random.default_rng(seed).permutation(len(names)) % MAX_CLUSTERS
    found: Ints = bundles[index.reshape(-1)]
    return found


def cluster_sums(columns: npt.ArrayLike, clusters: Ints) -> Doubles:
    """Sums of `columns` (n, M) within each cluster, (G, M) float64."""
    values = np.asarray(columns, dtype=np.float64)
    sums = np.zeros((int(clusters.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(sums, clusters, values)
    return sums


def mean_sums(tables: Iterable[npt.ArrayLike], clusters: Ints) -> Doubles:
    """Sums (S, G, 2M) for `ratio`, from a table (n, M) or column (n,) of each seed.

    First come the sums of the values, then how many there are, without NaN.
    """
    columns = [np.asarray(table, dtype=np.float64).reshape(len(clusters), -1) for table in tables]
    counted = (np.hstack([np.nan_to_num(own), ~np.isnan(own)]) for own in columns)
    return np.stack([cluster_sums(own, clusters) for own in counted])


@lru_cache(maxsize=4)
def cluster_draws(clusters: int, seed: int, resamples: int) -> Doubles:
    """How often each cluster is in each resample, (R, G), which all metrics of a run share."""
    chances = np.full(clusters, 1 / clusters)
    draws = np.random.default_rng(seed).multinomial(clusters, chances, size=resamples)
    return draws.astype(np.float64)


# --- intervals ---


@dataclass(frozen=True)
class Interval:
    """Estimates (K,) and their bounds, NaN where undefined or on too few clusters.

    `seeds` (S, K) are the values of each seed, where there is one run.
    """

    value: Doubles
    low: Doubles
    high: Doubles
    seeds: Doubles


@dataclass(frozen=True)
class Spread:
    """What is known of the spread of estimates (K,) on `support` (K,) clusters.

    `ratios` (R, K) are studentised deviations of the resamples, `variance` (K,) is over
    clusters, `parts` are weights and values (S, K) of all seeds, `limits` (K, 2) the range.
    """

    value: Doubles
    support: Ints
    ratios: Doubles
    variance: Doubles
    parts: tuple[tuple[float, Doubles], ...]
    limits: Doubles

    def interval(self) -> Interval:
        """The interval of each estimate, in the range of the metric."""
        reach = np.array([self.reach(column, LEVEL) for column in range(len(self.value))])
        low = np.maximum(self.value - reach[:, 0], self.limits[:, 0])
        high = np.minimum(self.value + reach[:, 1], self.limits[:, 1])
        return Interval(self.value, low, high, self.parts[0][1])

    def reach(self, column: int, level: float) -> tuple[float, float]:
        """How far the interval of a value reaches below and above it, NaN if unknown."""
        own = self.ratios[:, column]
        own = own[~np.isnan(own)]
        if self.support[column] < MIN_CLUSTERS or not len(own):
            return np.nan, np.nan
        total, freedom = self.total(column)
        if total <= 0:
            return 0.0, 0.0
        low, high = np.quantile(own, [(1 - level) / 2, (1 + level) / 2])
        student = _student(freedom, level)
        excess = np.array([high, -low]) - _student(self.support[column] - 1, level)
        # Differences are heavy on both sides: else one in thirteen equal pairs is found different.
        if np.isinf(self.limits).all():
            excess = np.maximum(excess, 0)
        share = self.variance[column] / total
        below, above = np.maximum(student + share * excess, 0) * total**0.5
        return float(below), float(above)

    def total(self, column: int) -> tuple[float, float]:
        """Variance of a value over clusters and seeds together, and its degrees of freedom."""
        found = [(float(self.variance[column]), float(self.support[column] - 1))]
        whole, freedom = found[0]
        # Satterthwaite (1946) believes a variance of f + 1 seeds that came out small by chance; with
        # 1 + (3 / f)**2, found by simulation, intervals hold the truth 94 to 97 times of 100.
        for weight, values in self.parts:
            if len(values) > 1:
                own = weight**2 * float(values[:, column].var(ddof=1)) / len(values)
                whole += own
                found.append((own * (1 + 9 / (len(values) - 1) ** 2), len(values) - 1))
        if whole <= 0:
            return 0.0, freedom
        counted = sum(own for own, _ in found)
        return whole, counted**2 / sum(own**2 / count for own, count in found)


def _student(freedom: float, level: float) -> float:
    return float(stdtrit(freedom, (1 + level) / 2))


def bootstrap(sums: Doubles, statistic: Statistic, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The statistic of all clusters and its interval, from sums (S, G, M)."""
    return spread_of([(1.0, sums)], statistic, seed=seed, resamples=resamples).interval()


def spread_of(
    parts: Sequence[Part], statistic: Statistic = ratio, *, seed: int = 0, resamples: int = RESAMPLES
) -> Spread:
    """The weighted sum of a statistic of several runs, and its spread."""
    known = _without_resamples(parts, statistic)
    draws = cluster_draws(parts[0][1].shape[-2], seed, resamples)
    values, errors = _resampled(parts, statistic, draws)
    whole = np.sqrt(known.variance * (known.support - 1) / known.support)
    errors = np.maximum(errors, FLOOR * whole)
    deviations = values - known.value
    nothing = np.where(np.isnan(deviations), np.nan, 0.0)
    return replace(known, ratios=np.divide(deviations, errors, out=nothing, where=errors > 0))


def _without_resamples(parts: Sequence[Part], statistic: Statistic, support: Ints | None = None) -> Spread:
    """Estimates and their variances over clusters and seeds alone.

    `support` (K,) says how many clusters a value rests on where that isn't all of them,
    as with the recall of a class.
    """
    clusters = parts[0][1].shape[-2]
    estimate, whole = _resampled(parts, statistic, np.ones((1, clusters)))
    counts = np.full(estimate.shape[1], clusters) if support is None else support
    own = whole[0] ** 2 * counts / np.maximum(counts - 1, 1)
    values = tuple((weight, statistic(sums.sum(axis=1))) for weight, sums in parts)
    limits = np.repeat(statistic.limits, len(own) // len(statistic.limits), axis=0)
    return Spread(estimate[0], counts, np.empty((0, len(own))), own, values, limits)


def _resampled(parts: Sequence[Part], statistic: Statistic, draws: Doubles) -> tuple[Doubles, Doubles]:
    """Values and their standard errors over clusters, both (R, K), of resamples `draws` (R, G).

    A cluster pulls at a value by its slope times the cluster's sums; the standard error is
    the root of the pulls' summed squares. The pulls add up to zero.
    """
    mean: Array = np.zeros(())
    slopes = []
    for weight, sums in parts:
        for own in sums:
            totals, share = draws @ own, weight / len(sums)
            mean = mean + share * statistic(totals)
            slopes.append((share, own, statistic.slopes(totals)))
    errors = np.empty_like(mean)
    for column in range(mean.shape[1]):
        pull: Array = np.zeros(())
        for share, own, each in slopes:
            slope = next(each)
            used = np.flatnonzero(slope.any(axis=0))  # most values rest on few columns
            pull = pull + share * slope[:, used] @ own[:, used].T
        errors[:, column] = np.sqrt(np.einsum("rg,rg,rg->r", draws, pull, pull))
    return mean, errors


def fraction_interval(sums: Doubles) -> Interval:
    """Interval of fractions from `sums` (S, G, 2K): hits, then trials.

    It is that of Korn and Graubard (1998, Survey Methodology 24): Clopper and Pearson's for
    as many independent trials as have the variance found, fewer by what Student's quantile is
    above the normal one; for as many as clusters where all or none hit. Resampling fails for
    a dozen samples, of which some resamples hold no hit.
    """
    counts = np.split(sums[0], 2, axis=1)[1]
    support: Ints = (counts > 0).sum(axis=0)
    normal, tail = float(ndtri((1 + LEVEL) / 2)), (1 - LEVEL) / 2
    found = _without_resamples([(1.0, sums)], fraction, support)
    low, high = np.full_like(found.value, np.nan), np.full_like(found.value, np.nan)
    for column in np.flatnonzero(support >= MIN_CLUSTERS).tolist():
        share = float(found.value[column])
        total, freedom = found.total(column)
        size = float(counts[:, column].sum() if 0 < share < 1 else support[column])
        if 0 < share < 1 and total > 0:
            independent = share * (1 - share) / total
            size = min(size, independent * (normal / _student(freedom, LEVEL)) ** 2)
        right, wrong = share * size, (1 - share) * size
        low[column] = betaincinv(right, wrong + 1, tail) if share > 0 else 0.0
        high[column] = betaincinv(right + 1, wrong, 1 - tail) if share < 1 else 1.0
    return Interval(found.value, low, high, found.parts[0][1])


# --- p values ---


def p_value(found: Spread) -> float:
    """Two-sided p of no difference: the level at which the interval reaches zero, by bisection.

    The smallest is 2 / (R + 1), as for any test by R resamples; NaN on too few clusters.
    """
    value = float(found.value[0])
    low, high = np.log(2 / (len(found.ratios) + 1)), 0.0

    def holds_zero(logarithm: float) -> bool:
        below, above = found.reach(0, 1 - float(np.exp(logarithm)))
        return value - below <= 0 <= value + above

    if np.isnan(found.reach(0, LEVEL)).any():
        return np.nan
    if holds_zero(high):
        return 1.0
    if not holds_zero(low):
        return float(np.exp(low))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds_zero(middle) else (low, middle)
    return float(np.exp(low))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number as by Holm (1979), in the given order."""
    found = np.asarray(values, dtype=np.float64)
    order = found.argsort(kind="stable")
    found[order] = np.maximum.accumulate(np.minimum(found[order] * np.arange(len(found), 0, -1), 1))
    corrected: list[float] = found.tolist()
    return corrected
