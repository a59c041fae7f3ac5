"""What all summaries share: the reported selection, metrics from intervals, checks, plain history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lary.probes.outcome import SelectionName
from lary.results import statistics as stats
from lary.results.record import Metric, Unit
from lary.results.scores import Statistic, ratio
from lary.types import LaryError


def headline(selections: Mapping[SelectionName, Any]) -> SelectionName:
    """The selection to report first: picked on held-out data where there is one."""
    return "held_out" if "held_out" in selections else "best_on_validation"


def interval_note(groups: int, samples: int, seeds: int = 1) -> str:
    """How the intervals of a run were made, in a sentence."""
    if groups < stats.MIN_CLUSTERS:
        need = f"{stats.MIN_CLUSTERS} are needed"
        return f"No intervals: the {samples} samples come from {groups} episodes or videos, and {need}."
    method = (
        f"95 % studentised bootstrap, {stats.RESAMPLES} resamples, for shares of right answers Korn and Graubard's,"
    )
    several = f", with the spread of {seeds} seeds by Student's t" if seeds > 1 else ""
    return f"{method} over {groups} episodes or videos ({samples} samples){several}."


def metric(found: stats.Interval, index: int, unit: Unit, higher: bool = True) -> Metric:
    """One value of an interval as a metric of a record."""

    def bound(values: stats.Array | None) -> float | None:
        return None if values is None or math.isnan(values[index]) else float(values[index])

    return Metric(
        value=float(found.value[index]),
        low=bound(found.low),
        high=bound(found.high),
        unit=unit,
        higher_is_better=higher,
    )


def reading(gain: Metric, p: float | None = None) -> Literal["", "even", "better", "worse"]:
    """What a difference says of the run: by its corrected p value where there is one, else by its interval, if any."""
    if gain.low is None or gain.high is None:
        return ""
    if gain.low <= 0 <= gain.high or (p is not None and p >= 1 - stats.LEVEL):
        return "even"
    return "better" if (gain.low > 0) == gain.higher_is_better else "worse"


def seed_sums(columns: Sequence[npt.ArrayLike], clusters: stats.Ints) -> stats.Array:
    """Sums (S, G, M) within clusters of one table of columns (n, M) per seed; (G, M) for a single one."""
    sums = [stats.cluster_sums(table, clusters) for table in columns]
    return sums[0] if len(sums) == 1 else np.stack(sums)


def means(values: Sequence[npt.ArrayLike], groups: Sequence[str], seed: int, kind: Statistic = ratio) -> stats.Interval:
    """Interval of the mean over samples of each column, from one table (n, K) per seed; NaN entries don't count.

    `kind` says in which range the means lie: `ratio` anywhere, `magnitude` from 0.
    """
    clusters = stats.cluster_index(groups, seed)
    tables = []
    for table in values:
        array = np.asarray(table, dtype=np.float64)
        there = ~np.isnan(array)
        tables.append(np.hstack([np.where(there, array, 0.0), there]))
    return stats.bootstrap(seed_sums(tables, clusters), kind, seed=seed)


def check_finite(values: npt.NDArray[Any], what: str) -> None:
    """Refuse an empty split, and numbers that aren't finite. Raises LaryError."""
    if len(values) == 0:
        raise LaryError(f"No {what}: the validation split is empty.")
    if not np.isfinite(values).all():
        raise LaryError(f"The {what} contain NaN or infinity: the probe diverged; lower its learning rate.")


def plain_history(entries: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """History with null in place of numbers that JSON can't hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return {str(key): plain(item) for key, item in value.items()} if isinstance(value, dict) else value

    return tuple(plain(entry) for entry in entries)
