"""Metrics as functions of sums over samples, with their slopes: what intervals are made for.

A `Statistic` maps totals (R, M) to values (R, K), row by row, and knows how each value reacts to each total, so that
the standard error of a value over clusters is found without resampling (the delta method).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Slopes = Callable[[Array], Iterator[tuple[Ints, Array]]]
"""From totals (R, M), for each of K values: the columns (m,) that it rests on, its derivatives by them, (R, m)."""

STEP = 1e-6
"""Relative step of a numerical derivative."""


def no_limits(count: int) -> tuple[Array, Array]:
    """Values that may lie anywhere: lowest and highest, (K,) each."""
    return np.full(count, -np.inf), np.full(count, np.inf)


@dataclass(frozen=True)
class Statistic:
    """A metric: its values, its slopes, and the range (K,) that its values lie in."""

    values: Callable[[Array], Array]
    slopes: Slopes
    limits: Callable[[int], tuple[Array, Array]] = no_limits

    def __call__(self, totals: Array) -> Array:
        """Totals (R, M) to values (R, K), NaN where a value is undefined."""
        return self.values(totals)


def statistic_of(function: Callable[[Array], Array], sums: Array) -> Statistic:
    """A `Statistic` from any smooth function of totals, with numerical slopes in steps suited to `sums` (..., M)."""
    if isinstance(function, Statistic):
        return function
    steps = STEP * np.abs(sums).sum(axis=tuple(range(sums.ndim - 1)))
    every = np.flatnonzero(steps)  # a column of zeros pulls at nothing
    unit = np.eye(sums.shape[-1])

    def slopes(totals: Array) -> Iterator[tuple[Ints, Array]]:
        moved = [
            (function(totals + steps * unit[column]) - function(totals - steps * unit[column])) / (2 * steps[column])
            for column in every
        ]
        for value in range(moved[0].shape[1]):
            yield every, np.stack([each[:, value] for each in moved], axis=1)

    return Statistic(function, slopes)


def _over(above: Array, below: Array) -> Array:
    """A quotient, NaN over zero."""
    quotient: Array = np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan),
                                where=below != 0)  # fmt: skip
    return quotient


def _ratio_values(totals: Array) -> Array:
    above, below = np.split(totals, 2, axis=1)
    return _over(above, below)


def _ratio_slopes(totals: Array) -> Iterator[tuple[Ints, Array]]:
    half = totals.shape[1] // 2
    for column in range(half):
        above, below = totals[:, column], totals[:, half + column]
        yield (
            np.array([column, half + column]),
            np.stack([_over(np.ones_like(below), below), -_over(above, below**2)], 1),
        )


def within(low: float, high: float) -> Callable[[int], tuple[Array, Array]]:
    """One range for all values of a `Statistic`."""
    return lambda count: (np.full(count, low), np.full(count, high))


ratio = Statistic(_ratio_values, _ratio_slopes)
"""First half of the columns over the second half, (R, 2K) to (R, K); NaN over zero."""
fraction = Statistic(_ratio_values, _ratio_slopes, within(0, 1))
"""The same between 0 and 1, such as an accuracy."""
magnitude = Statistic(_ratio_values, _ratio_slopes, within(0, np.inf))
"""The same from 0, such as a mean error."""


def _macro_parts(totals: Array) -> list[tuple[Array, Array]]:
    """Hits and counts (R, L) whose quotients are averaged: recall, then F1."""
    correct, true, predicted = np.split(totals, 3, axis=1)
    return [(correct, true), (2 * correct, true + predicted)]


def _macro_values(totals: Array) -> Array:
    found = []
    for hits, counts in _macro_parts(totals):
        shares = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
        found.append(shares.sum(axis=1) / np.maximum((counts > 0).sum(axis=1), 1))
    return np.stack(found, axis=1)


def _macro_slopes(totals: Array) -> Iterator[tuple[Ints, Array]]:
    columns = np.arange(totals.shape[1])
    for factor, (hits, counts) in zip((1, 2), _macro_parts(totals), strict=True):
        classes = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1)
        by_hits = factor * np.divide(1, counts, out=np.zeros_like(counts), where=counts > 0) / classes
        by_counts = -np.divide(hits, counts**2, out=np.zeros_like(counts), where=counts > 0) / classes
        yield columns, np.hstack([by_hits, by_counts, by_counts if factor == 2 else np.zeros_like(by_counts)])


macro_scores = Statistic(_macro_values, _macro_slopes, within(0, 1))
"""Recall averaged over the classes that occur, F1 over those that occur or are predicted, (R, 3L) to (R, 2).

Columns: correct, true and predicted samples per class, as `class_sums` makes them.
"""


def class_sums(labels: Ints, predicted: Ints, classes: int, clusters: Ints) -> Array:
    """Sums per cluster for `macro_scores`: correct, true and predicted samples per class, (G, 3L) float64."""
    sums = np.zeros((int(clusters.max()) + 1 if len(clusters) else 0, 3 * classes))
    np.add.at(sums, (clusters, labels), (labels == predicted).astype(np.float64))
    np.add.at(sums, (clusters, classes + labels), 1.0)
    np.add.at(sums, (clusters, 2 * classes + predicted), 1.0)
    return sums


def _spreads(target: Array, square: Array, count: Array) -> Array:
    """Squared deviation of targets from their mean; zero for constant ones, however they are rounded."""
    spread: Array = np.maximum(square - target**2 / np.maximum(count, 1), 0)
    spread[spread < 1e-9 * np.maximum(square, 1e-30)] = 0
    return spread


def _error_values(totals: Array) -> Array:
    error, target, square, count = np.split(totals, 4, axis=1)
    spread = _spreads(target, square, count)

    def with_all(columns: Array) -> Array:
        return np.hstack([columns, columns.sum(axis=1, keepdims=True)])

    everything = with_all(error)
    return np.hstack([_over(everything, with_all(count)), 1 - _over(everything, with_all(spread))])


def _error_slopes(totals: Array) -> Iterator[tuple[Ints, Array]]:
    size = totals.shape[1] // 4
    error, target, square, count = np.split(totals, 4, axis=1)
    spread, mean = _spreads(target, square, count), target / np.maximum(count, 1)
    choices = [np.array([dim]) for dim in range(size)] + [np.arange(size)]
    ones = np.ones_like(error)
    for dims in choices:
        above, below = (part[:, dims].sum(axis=1, keepdims=True) for part in (error, count))
        slopes = [_over(ones[:, dims], below), -_over(above, below**2) * ones[:, dims]]
        yield np.concatenate([dims, 3 * size + dims]), np.hstack(slopes)
    for dims in choices:
        above, below = (part[:, dims].sum(axis=1, keepdims=True) for part in (error, spread))
        pull, own = _over(above, below**2), mean[:, dims]
        slopes = [-_over(ones[:, dims], below), -2 * own * pull, pull * ones[:, dims], own**2 * pull]
        yield np.concatenate([part * size + dims for part in range(4)]), np.hstack(slopes)


def _error_limits(count: int) -> tuple[Array, Array]:
    half = count // 2
    low, high = no_limits(count)
    low[:half], high[half:] = 0, 1
    return low, high


error_scores = Statistic(_error_values, _error_slopes, _error_limits)
"""Mean squared error and R2 per dimension, then over all, (R, 4A) to (R, 2A + 2).

Columns per dimension: squared error, target, squared target, count (sums over samples and steps). R2 is one minus
the squared error over the squared deviation of the targets from their mean per dimension, NaN for constant targets.
"""


def error_columns(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Array:
    """One row per sample for `error_scores` from (n, K, A) arrays, (n, 4A) float64."""
    guess, truth = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    count = np.full((len(truth), truth.shape[2]), float(truth.shape[1]))
    return np.hstack([((guess - truth) ** 2).sum(axis=1), truth.sum(axis=1), (truth**2).sum(axis=1), count])
