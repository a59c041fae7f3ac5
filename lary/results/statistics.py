"""Metrics as functions of sums, their 95 % intervals, and p values of differences.

Samples are added up per episode or video (cluster), (G, M); the standard error
is that of the jackknife over clusters. Seeds are a second factor, crossed with
them: sums are (S, G, M). docs/number.md has the reasons, the sources and the
measured coverage.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isnan

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtr, stdtrit

from lary.arrays import Array, Doubles, Ints

Part = tuple[float, Doubles]
"""A weight and the sums (S, G, M) of a run: weight 1 for a run, 1 and -1 for a difference."""

MIN_CLUSTERS = 6
MAX_CLUSTERS = 1024
"""More clusters are bundled at random into this many."""
EXACT_CLUSTERS = 12
"""Up to this many clusters, p values are those of all 2^G changes of sign."""
LEVEL = 0.95
SKEWNESS = 1.5
"""Assumed skewness of errors of clusters: few clusters never show their own."""
LONGEST = 3.2
"""Most standard errors that the correction for skewness moves an end away."""
MORE_ERRORS = 2.5
"""Most times the rate of errors that the upper end reaches, beside `NO_ERRORS`."""
NO_ERRORS = 3.9
"""Wrong samples that may be where none was seen; independent ones have -log(0.025) = 3.7."""
ROUNDING = 1e-6
"""Relative spread that 32-bit predictions have from rounding alone."""

NO_SPREAD = "the groups do not differ, so that their spread is unknown"
UNDEFINED = "the value is undefined without one of the groups"


# --- metrics ---


def _second_half(sums: Doubles) -> Doubles:
    return np.split(sums, 2, axis=-1)[1]


@dataclass(frozen=True)
class Statistic:
    """A metric of sums: its values, and the lowest and highest of each kind.

    `function` maps sums (..., M) to K values (..., K), NaN where undefined,
    the same if all sums double. `counts` maps them to the samples behind each
    value, `trials` to independent ones that vary as much. The K values are as
    many of each kind in `limits`, kind by kind.
    """

    function: Callable[[Doubles], Doubles]
    counts: Callable[[Doubles], Doubles] = _second_half
    trials: Callable[[Doubles], Doubles] | None = None
    limits: tuple[tuple[float, float], ...] = ((-inf, inf),)

    def __call__(self, sums: Doubles) -> Doubles:
        return self.function(sums)


def _quotient(above: Doubles, below: Doubles) -> Doubles:
    """A quotient, NaN over zero."""
    found: Doubles = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return found


def _ratio(sums: Doubles) -> Doubles:
    above, below = np.split(sums, 2, axis=-1)
    return _quotient(above, below)


ratio = Statistic(_ratio)
"""First half of the columns over the second half, (..., 2K) to (..., K); NaN over zero."""
fraction = Statistic(_ratio, limits=((0, 1),))
"""The same between 0 and 1, such as an accuracy."""
magnitude = Statistic(_ratio, limits=((0, inf),))
"""The same from 0, such as a mean error."""
gain = Statistic(_ratio, limits=((-1, 1),))
"""The same for the difference of two fractions."""


def mean_known(values: Doubles) -> Doubles:
    """Means (...) of values (..., L) without NaN, NaN where there are none."""
    known = ~np.isnan(values)
    return _quotient(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def _macro(sums: Doubles) -> Doubles:
    correct, true, predicted = np.split(sums, 3, axis=-1)
    shares = _quotient(correct, true), _quotient(2 * correct, true + predicted)
    return np.stack([mean_known(share) for share in shares], axis=-1)


def _macro_counts(sums: Doubles) -> Doubles:
    count = np.split(sums, 3, axis=-1)[1].sum(axis=-1)
    return np.stack([count, count], axis=-1)


def _macro_trials(sums: Doubles) -> Doubles:
    """A mean over L classes of n samples each varies as one of L^2 / sum(1 / n) samples."""
    true = np.split(sums, 3, axis=-1)[1]
    trials = _quotient((true > 0).sum(axis=-1) ** 2.0, np.nansum(_quotient(np.ones_like(true), true), axis=-1))
    return np.stack([trials, trials], axis=-1)


macro_scores = Statistic(_macro, _macro_counts, _macro_trials, ((0, 1),))
"""Recall averaged over the classes that occur, F1 over those that occur or are predicted,
(..., 3L) to (..., 2). Columns: correct, true and predicted samples per class."""


def class_sums(labels: Ints, predicted: Ints, classes: int, clusters: Ints) -> Doubles:
    """Sums per cluster for `macro_scores`, (G, 3L) float64."""
    true = np.eye(classes)[labels]
    guess = np.eye(classes)[predicted]
    return cluster_sums(np.hstack([true * guess, true, guess]), clusters)


def _with_total(part: Doubles) -> Doubles:
    return np.concatenate([part, part.sum(axis=-1, keepdims=True)], axis=-1)


def _errors(sums: Doubles) -> Doubles:
    error, target, square, count = np.split(sums, 4, axis=-1)
    spread = np.maximum(square - target**2 / np.maximum(count, 1), 0)
    # Constant targets have no spread, however they are rounded.
    spread = np.where(spread < 1e-9 * np.maximum(square, 1e-30), 0.0, spread)
    error, count, spread = (_with_total(part) for part in (error, count, spread))
    return np.concatenate([_quotient(error, count), 1 - _quotient(error, spread)], axis=-1)


def _error_counts(sums: Doubles) -> Doubles:
    return np.tile(_with_total(np.split(sums, 4, axis=-1)[3]), 2)


error_scores = Statistic(_errors, _error_counts, limits=((0, inf), (-inf, 1)))
"""Mean squared error per dimension and over all, then R2 likewise, (..., 4A) to (..., 2A + 2).

Columns per dimension: squared error, target, squared target, count (sums over samples and
steps). R2 is one minus the squared error over the squared deviation of the targets from
their mean per dimension, NaN for constant targets."""


def error_columns(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Doubles:
    """One row per sample for `error_scores` from (n, K, A) arrays, (n, 4A) float64."""
    guess = np.asarray(prediction, dtype=np.float64)
    truth = np.asarray(target, dtype=np.float64)
    count = np.full((len(truth), truth.shape[2]), float(truth.shape[1]))
    error = ((guess - truth) ** 2).sum(axis=1)
    return np.hstack([error, truth.sum(axis=1), (truth**2).sum(axis=1), count])


# --- clusters ---


def cluster_index(groups: Sequence[str], seed: int = 0) -> Ints:
    """The cluster of every sample by its group, (n,), at most `MAX_CLUSTERS`."""
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


# --- intervals ---


@dataclass(frozen=True)
class Interval:
    """Estimates (K,) and their bounds, NaN where there are none for the reason of the same place.

    `seeds` (S, K) are the values of each seed, where there is one run.
    """

    value: Doubles
    low: Doubles
    high: Doubles
    seeds: Doubles
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Spread:
    """What is known of the spread of estimates (K,).

    `pulls` (G, K): how much each cluster changes them. `support` (K,):
    clusters that one rests on, `effective` (K,): as many of equal size (Kish
    1965), `lopsided` (K,): skewness of a sum of values with skewness 1.
    `parts`: weights and values (S, K) of all seeds, `limits` (K, 2): the
    range, `trials` (K,): independent samples that would vary as much.
    """

    value: Doubles
    pulls: Doubles
    support: Ints
    effective: Doubles
    lopsided: Doubles
    parts: tuple[tuple[float, Doubles], ...]
    limits: Doubles
    trials: Doubles

    def interval(self) -> Interval:
        """The interval of each estimate, in the range of the metric, or why there is none."""
        columns = range(len(self.value))
        reasons = tuple(self.reason(column) for column in columns)
        with np.errstate(over="ignore"):  # without a limit, an end may be infinite
            ends = np.array([(np.nan, np.nan) if reasons[column] else self._ends(column) for column in columns])
        return Interval(self.value, ends[:, 0], ends[:, 1], self.parts[0][1], reasons)

    def reason(self, column: int) -> str:
        """Why a value has no interval; empty where it has one."""
        if self.support[column] < MIN_CLUSTERS:
            return f"{self.support[column]} groups, and {MIN_CLUSTERS} are needed"
        if isnan(self.variance(column)):
            return UNDEFINED
        scale = max(float(np.abs(values[:, column]).max()) for _, values in self.parts)
        return NO_SPREAD if self.variance(column) ** 0.5 <= ROUNDING * scale else ""

    def variance(self, column: int) -> float:
        """The jackknife variance of a value over clusters."""
        count = self.support[column]
        return float((self.pulls[:, column] ** 2).sum() * (count - 1) / count)

    def total(self, column: int) -> tuple[float, float]:
        """Variance of a value over clusters and seeds together, and its degrees of freedom."""
        whole = self.variance(column)
        found = [(whole, max(float(self.effective[column]) - 1, 1.0))]
        # Satterthwaite (1946) believes a variance of f + 1 seeds that came out small by chance; with
        # 1 + (3 / f)**2, found by simulation, intervals hold the truth 94 to 97 times of 100.
        for weight, values in self.parts:
            if len(values) > 1:
                own = weight**2 * float(values[:, column].var(ddof=1)) / len(values)
                whole += own
                found.append((own * (1 + 9 / (len(values) - 1) ** 2), len(values) - 1))
        counted = sum(own for own, _ in found)
        if counted == 0:
            return 0.0, inf
        return whole, counted**2 / sum(own**2 / freedom for own, freedom in found)

    def _ends(self, column: int) -> tuple[float, float]:
        """The interval on the scale on which the metric has no limit."""
        value, (lowest, highest) = float(self.value[column]), self.limits[column]
        total, freedom = self.total(column)
        error = total**0.5
        student = float(stdtrit(freedom, (1 + LEVEL) / 2))
        # Johnson (1978): a studentised mean of skewed values needs this much more on their long side.
        clusters = self.variance(column) / total
        skewed = clusters * SKEWNESS * float(self.lopsided[column]) * (1 + 2 * student**2) / 6
        if (lowest, highest) == (0, 1):
            longer = max(student, min(student + abs(1 - 2 * value) * skewed, LONGEST))
            # Errors of a single cluster have a standard error as large as their rate: no scale helps there.
            rate = min(value, 1 - value)
            most = max(rate / error, 1.0) * (MORE_ERRORS * rate + NO_ERRORS / float(self.trials[column])) / clusters
            middle = logit(rate)
            slope = error / (rate * (1 - rate))
            low = float(expit(middle - student * slope))
            high = min(float(expit(middle + longer * slope)), most)
            return (low, high) if value <= 0.5 else (1 - high, 1 - low)
        longer = max(student, min(student + skewed, LONGEST))
        if lowest == 0:
            return value * np.exp(-student * error / value), value * np.exp(longer * error / value)
        if highest == 1 and lowest == -inf:
            rest = 1 - value
            return 1 - rest * np.exp(longer * error / rest), 1 - rest * np.exp(-student * error / rest)
        return max(value - student * error, lowest), min(value + student * error, highest)


def intervals(sums: Doubles, statistic: Statistic) -> Interval:
    """The statistic of all clusters and its interval, from sums (S, G, M)."""
    return spread_of([(1.0, sums)], statistic).interval()


def spread_of(parts: Sequence[Part], statistic: Statistic = ratio) -> Spread:
    """The weighted sum of a statistic of several runs on the same samples, and its spread."""
    value: Array = np.zeros(())
    without: Array = np.zeros(())
    for weight, sums in parts:
        totals = sums.sum(axis=1, keepdims=True)
        value = value + weight * statistic(totals[:, 0]).mean(axis=0)
        without = without + weight * statistic(totals - sums).mean(axis=0)
    sizes = statistic.counts(parts[0][1][0])
    squares = np.maximum((sizes**2).sum(axis=0), 1)
    ranges = np.repeat(np.array(statistic.limits, dtype=np.float64), len(value) // len(statistic.limits), axis=0)
    ends = np.sort(np.stack([weight * ranges for weight, _ in parts]), axis=2)
    return Spread(
        value=value,
        pulls=value - without,
        support=(sizes > 0).sum(axis=0),
        effective=sizes.sum(axis=0) ** 2 / squares,
        lopsided=(sizes**3).sum(axis=0) / squares**1.5,
        parts=tuple((weight, statistic(sums.sum(axis=1))) for weight, sums in parts),
        limits=ends.sum(axis=0),
        trials=(statistic.trials or statistic.counts)(parts[0][1][0].sum(axis=0)),
    )


# --- p values ---


def p_value(parts: Sequence[Part]) -> float:
    """Two-sided p of no difference, from sums (S, G, 2) of each run; NaN on too few clusters.

    It is that of Student's t, and never below that of the exact test which
    changes the signs of whole clusters (Fisher 1935), at least 2^(1 - G).
    """
    found = spread_of(parts)
    reason = found.reason(0)
    value = abs(float(found.value[0]))
    if reason not in ("", NO_SPREAD):
        return np.nan
    student = 0.0 if value else 1.0
    total, freedom = found.total(0)
    # Without spread over clusters, seeds may still differ.
    if not reason or (total > 0 and total > 2 * found.variance(0)):
        student = 2 * float(stdtr(freedom, -value / total**0.5))
    differences: Array = sum((weight * sums.mean(axis=0)[:, 0] for weight, sums in parts), np.zeros(()))
    return max(student, sign_p(differences))


def sign_p(differences: Doubles) -> float:
    """Share of the changes of sign of differences (G,) with a sum as far from zero.

    With more than `EXACT_CLUSTERS` it is the least that such a test can show.
    """
    if len(differences) > EXACT_CLUSTERS:
        return float(2.0 ** (1 - len(differences)))
    # The bits of a number say which clusters change their sign.
    changed = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
    signs = 1.0 - 2.0 * changed
    sums = np.abs(signs @ differences)
    own = abs(float(differences.sum()))
    return float((sums >= own * (1 - ROUNDING)).mean())


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number as by Holm (1979), in the given order."""
    found = np.asarray(values, dtype=np.float64)
    order = found.argsort(kind="stable")
    found[order] = np.maximum.accumulate(np.minimum(found[order] * np.arange(len(found), 0, -1), 1))
    corrected: list[float] = found.tolist()
    return corrected
