"""Metrics and tables with intervals from what probes hand on.

Functions of regressions take one prediction (n, K, A) float32 per seed, normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lary.data.spec import Orientation
from lary.probes.outcome import Floats, SampleColumns, SelectionName, SplitOutcome
from lary.results import scores
from lary.results import statistics as stats
from lary.results.record import DimensionRow, GroupRow, Metric, OrientationRow, PhysicalError, RobotRow, Unit
from lary.types import LaryError

Doubles = npt.NDArray[np.float64]
SMALLEST_NORM = 1e-8
"""A quaternion below it has no direction."""


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
    low, high = (None if ends is None else optional(ends[index]) for ends in (found.low, found.high))
    return Metric(value=float(found.value[index]), low=low, high=high, unit=unit, higher_is_better=higher)


def optional(value: float) -> float | None:
    """A number, or None in place of NaN."""
    return None if math.isnan(value) else float(value)


def reading(gain: Metric, p: float | None = None) -> Literal["", "even", "better", "worse"]:
    """What a difference says of the run: by its corrected p value where there is one, else by its interval, if any."""
    if gain.low is None or gain.high is None:
        return ""
    if gain.low <= 0 <= gain.high or (p is not None and p >= 1 - stats.LEVEL):
        return "even"
    return "better" if (gain.low > 0) == gain.higher_is_better else "worse"


def seed_sums(columns: Iterable[npt.ArrayLike], clusters: scores.Ints) -> scores.Array:
    """Sums (S, G, M) within clusters of one table of columns (n, M) per seed."""
    return np.stack([stats.cluster_sums(table, clusters) for table in columns])


def means(
    values: Sequence[npt.ArrayLike], groups: Sequence[str], seed: int, kind: scores.Statistic = scores.ratio
) -> stats.Interval:
    """Interval of the mean over samples of each column, from one table (n, K) per seed; NaN entries don't count.

    `kind` says in which range the means are: `ratio` anywhere, `magnitude` from 0.
    """
    arrays = [np.asarray(table, dtype=np.float64) for table in values]
    tables = [np.hstack([np.where(np.isnan(array), 0.0, array), ~np.isnan(array)]) for array in arrays]
    return stats.bootstrap(seed_sums(tables, stats.cluster_index(groups, seed)), kind, seed=seed)


def check_finite(values: npt.NDArray[Any], what: str) -> None:
    """Refuse an empty split, and numbers that aren't finite. Raises LaryError."""
    if len(values) == 0:
        raise LaryError(f"No {what}: the validation split is empty.")
    if not np.isfinite(values).all():
        raise LaryError(f"The {what} contain NaN or infinity: the probe diverged; lower its learning rate.")


# --- errors of a regression ---


def error_interval(split: SplitOutcome, predictions: Sequence[Floats], seed: int) -> stats.Interval:
    """Error and R2 of every dimension and of all, as `scores.error_scores` orders them."""
    clusters = stats.cluster_index(split.samples.groups, seed)
    columns = (scores.error_columns(prediction, split.targets) for prediction in predictions)
    return stats.bootstrap(seed_sums(columns, clusters), scores.error_scores, seed=seed)


def overall(role: str, split: SplitOutcome, found: stats.Interval) -> dict[str, Metric]:
    """The metrics of a whole split from `error_interval`."""
    dims = split.targets.shape[2]
    values = {f"{role}_mse": metric(found, dims, "normalised", higher=False)}
    if not math.isnan(found.value[2 * dims + 1]):
        values[f"{role}_r2"] = metric(found, 2 * dims + 1, "none")
    return values


def plain_errors(role: str, split: SplitOutcome, prediction: Floats) -> dict[str, float]:
    """The metrics of a whole split of one prediction, without intervals."""
    total = scores.error_columns(prediction, split.targets).sum(axis=0)[None]
    found = overall(role, split, stats.Interval(scores.error_scores(total)[0], None, None))
    return {name: each.value for name, each in found.items()}


def squared(split: SplitOutcome, predictions: Sequence[Floats], physical: bool = False) -> list[Doubles]:
    """Squared errors averaged over the steps, (n, A) per seed; in the data set's units if `physical`."""
    scale = split.std.astype(np.float64)[:, None] if physical else 1.0
    targets = split.targets.astype(np.float64)
    return [np.square((prediction - targets) * scale).mean(axis=1) for prediction in predictions]


def dimension_rows(
    role: str, split: SplitOutcome, predictions: Sequence[Floats], found: stats.Interval, names: Sequence[str],
    units: Sequence[str], seed: int,
) -> list[DimensionRow]:  # fmt: skip
    """One row per action dimension; `found` is the `error_interval` of the same predictions."""
    physical = means(squared(split, predictions, physical=True), split.samples.groups, seed, scores.magnitude)
    explained = found.value[len(names) + 1 :]
    return [
        DimensionRow(
            split=role, name=name, mse=metric(found, index, "normalised", higher=False),
            r2=optional(explained[index]), rmse=float(np.sqrt(physical.value[index])),
            physical_mse=metric(physical, index, "physical", higher=False),
            unit=units[index] if index < len(units) else "",
        )
        for index, name in enumerate(names)
    ]  # fmt: skip


def group_rows(
    role: str, split: SplitOutcome, predictions: Sequence[Floats], groups: Mapping[str, tuple[int, ...]],
    units: Sequence[str], seed: int,
) -> list[GroupRow]:  # fmt: skip
    """One row per group of dimensions; in physical units where its dimensions share one."""
    if not groups:
        return []

    def table(physical: bool) -> stats.Interval:
        per_seed = [
            np.stack([own[:, list(members)].mean(axis=1) for members in groups.values()], axis=1)
            for own in squared(split, predictions, physical)
        ]
        return means(per_seed, split.samples.groups, seed, scores.magnitude)

    normalised, physical = table(False), table(True)
    rows = []
    for index, (name, members) in enumerate(groups.items()):
        own = {units[member] for member in members if member < len(units)}
        unit = own.pop() if len(own) == 1 else None
        chosen = list(members)
        totals = [scores.error_columns(own[..., chosen], split.targets[..., chosen]) for own in predictions]
        explained = np.mean([scores.error_scores(total.sum(axis=0)[None])[0, -1] for total in totals])
        rows.append(
            GroupRow(
                split=role, name=name, mse=metric(normalised, index, "normalised", higher=False),
                r2=optional(float(explained)), unit=unit or "",
                physical_mse=None if unit is None else metric(physical, index, "physical", higher=False),
            )
        )  # fmt: skip
    return rows


def robot_rows(
    role: str, split: SplitOutcome, predictions: Sequence[Floats], groups: Mapping[str, tuple[int, ...]],
    units: Sequence[str], orientations: Sequence[Orientation], seed: int,
) -> list[RobotRow]:  # fmt: skip
    """One row per robot type; in physical units for groups of dimensions that share one."""
    robots = np.array(split.samples.embodiments)
    rows = []
    for robot in sorted(set(split.samples.embodiments)):
        chosen = np.flatnonzero(robots == robot)
        own, values = rows_of(split, chosen), [prediction[chosen] for prediction in predictions]
        found = overall(role, own, error_interval(own, values, seed))
        explained = found.get(f"{role}_r2")
        angles = [mean_angle(own, prediction, orientations) for prediction in values] if orientations else []
        rows.append(
            RobotRow(
                split=role, name=robot, rows=len(chosen), groups=len(set(own.samples.groups)),
                mse=found[f"{role}_mse"], r2=None if explained is None else explained.value,
                degrees=_degrees(angles, own.samples.groups, seed),
                physical={
                    row.name: PhysicalError(mse=row.physical_mse, unit=row.unit)
                    for row in group_rows(role, own, values, groups, units, seed)
                    if row.physical_mse is not None
                },
            )
        )  # fmt: skip
    return rows


def rows_of(split: SplitOutcome, rows: npt.NDArray[np.int64]) -> SplitOutcome:
    """Some rows of a split, without its predictions."""
    samples = split.samples
    parts = (samples.ids, samples.media, samples.groups, samples.embodiments)
    kept = SampleColumns(*(tuple(part[row] for row in rows) for part in parts))  # type: ignore[arg-type]
    return SplitOutcome(kept, split.targets[rows], split.mean[rows], split.std[rows], {}, {}, {})


# --- orientations ---


def orientation_rows(
    role: str, split: SplitOutcome, predictions: Sequence[Floats], orientations: Sequence[Orientation], seed: int
) -> list[OrientationRow]:
    """One row per orientation whose angle can be measured on any sample."""
    rows = []
    for each in orientations:
        angles = [angular_error(split, prediction, each) for prediction in predictions]
        if (found := _degrees(angles, split.samples.groups, seed)) is not None:
            rows.append(OrientationRow(split=role, name=each.name, convention=each.convention, degrees=found))
    return rows


def _degrees(angles: Sequence[Doubles], groups: Sequence[str], seed: int) -> Metric | None:
    """Mean of angles (n,) per seed; None where there are none."""
    if not angles or np.isnan(angles[0]).all():
        return None
    found = means([own[:, None] for own in angles], groups, seed, scores.magnitude)
    return metric(found, 0, "degrees", higher=False)


def _row_means(table: Doubles) -> Doubles:
    """Means of the rows (n, K) over what is there, (n,); NaN for a row without anything."""
    counts = (~np.isnan(table)).sum(axis=1)
    found: Doubles = np.divide(np.nansum(table, axis=1), counts, out=np.full(len(table), np.nan), where=counts > 0)
    return found


def mean_angle(split: SplitOutcome, prediction: Floats, orientations: Sequence[Orientation]) -> Doubles:
    """Angular error of each sample over all its orientations, (n,) in degrees; NaN where it has none."""
    return _row_means(np.stack([angular_error(split, prediction, each) for each in orientations], axis=1))


def angular_error(split: SplitOutcome, prediction: Floats, orientation: Orientation) -> Doubles:
    """Mean angle over the steps between predicted and true orientation of each sample, (n,) in degrees.

    Zero true quaternions (no orientation was recorded) don't count, a sample of nothing else is NaN; a zero predicted
    one counts as no rotation.
    """
    from scipy.spatial.transform import Rotation

    chosen = list(orientation.dims)
    mean, std = (part.astype(np.float64)[:, None, chosen] for part in (split.mean, split.std))
    guess, truth = (
        (values[..., chosen] * std + mean).reshape(-1, len(chosen)) for values in (prediction, split.targets)
    )
    there = np.ones(len(truth), dtype=bool)
    if orientation.convention == "quaternion_xyzw":
        there = np.linalg.norm(truth, axis=1) > SMALLEST_NORM
        guess[np.linalg.norm(guess, axis=1) <= SMALLEST_NORM] = (0, 0, 0, 1)

    def rotation(values: Doubles) -> Any:
        quaternion = orientation.convention == "quaternion_xyzw"
        return Rotation.from_quat(values) if quaternion else Rotation.from_euler("xyz", values)

    angles = np.full(len(truth), np.nan)
    if there.any():
        angles[there] = np.degrees((rotation(guess[there]).inv() * rotation(truth[there])).magnitude())
    return _row_means(angles.reshape(len(split.targets), -1))
