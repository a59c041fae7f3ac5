"""Tables of a regression: errors by dimension, group of dimensions, robot type and orientation, with intervals.

Every function takes one prediction (n, K, A) float32 per seed, normalised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.data.spec import Orientation
from lary.probes.outcome import Floats, SampleColumns, SplitOutcome
from lary.results import scores
from lary.results import statistics as stats
from lary.results.measure import means, metric, seed_sums
from lary.results.record import DimensionRow, GroupRow, Metric, OrientationRow, PhysicalError, RobotRow

Doubles = npt.NDArray[np.float64]
SMALLEST_NORM = 1e-8
"""A quaternion below it has no direction."""


def error_interval(split: SplitOutcome, predictions: Sequence[Floats], seed: int) -> stats.Interval:
    """Error and R2 of every dimension and of all, as `scores.error_scores` orders them."""
    clusters = stats.cluster_index(split.samples.groups, seed)
    columns = [scores.error_columns(prediction, split.targets) for prediction in predictions]
    return stats.bootstrap(seed_sums(columns, clusters), scores.error_scores, seed=seed)


def overall(role: str, split: SplitOutcome, found: stats.Interval) -> dict[str, Metric]:
    """The metrics of a whole split from `error_interval`."""
    dims = split.targets.shape[2]
    values = {f"{role}_mse": metric(found, dims, "normalised", higher=False)}
    if not math.isnan(found.value[2 * dims + 1]):
        values[f"{role}_r2"] = metric(found, 2 * dims + 1, "none")
    return values


def squared(split: SplitOutcome, predictions: Sequence[Floats], physical: bool = False) -> list[Doubles]:
    """Squared errors averaged over the steps, (n, A) per seed; in the data set's units if `physical`."""
    scale = split.std.astype(np.float64)[:, None] if physical else 1.0
    targets = split.targets.astype(np.float64)
    return [np.square((prediction - targets) * scale).mean(axis=1) for prediction in predictions]


def plain(role: str, split: SplitOutcome, prediction: Floats) -> dict[str, float]:
    """The metrics of a whole split of one prediction, without intervals."""
    total = scores.error_columns(prediction, split.targets).sum(axis=0)[None]
    found = overall(role, split, stats.Interval(scores.error_scores(total)[0], None, None))
    return {name: each.value for name, each in found.items()}


def dimension_rows(
    role: str,
    split: SplitOutcome,
    predictions: Sequence[Floats],
    found: stats.Interval,
    names: Sequence[str],
    units: Sequence[str],
    seed: int,
) -> list[DimensionRow]:
    """One row per action dimension; `found` is the `error_interval` of the same predictions."""
    physical = means(squared(split, predictions, physical=True), split.samples.groups, seed, scores.magnitude)
    explained = found.value[len(names) + 1 :]
    return [
        DimensionRow(
            split=role,
            name=name,
            mse=metric(found, index, "normalised", higher=False),
            r2=optional(explained[index]),
            rmse=float(np.sqrt(physical.value[index])),
            physical_mse=metric(physical, index, "physical", higher=False),
            unit=units[index] if index < len(units) else "",
        )
        for index, name in enumerate(names)
    ]


def group_rows(
    role: str,
    split: SplitOutcome,
    predictions: Sequence[Floats],
    groups: Mapping[str, tuple[int, ...]],
    units: Sequence[str],
    seed: int,
) -> list[GroupRow]:
    """One row per group of dimensions; in physical units where its dimensions share one."""
    if not groups:
        return []
    tables = []
    for physical in (False, True):
        errors = squared(split, predictions, physical)
        per_seed = [
            np.stack([own[:, list(members)].mean(axis=1) for members in groups.values()], axis=1) for own in errors
        ]
        tables.append(means(per_seed, split.samples.groups, seed, scores.magnitude))
    rows = []
    for index, (name, members) in enumerate(groups.items()):
        own = {units[member] for member in members if member < len(units)}
        shared = own.pop() if len(own) == 1 else None
        rows.append(
            GroupRow(
                split=role,
                name=name,
                mse=metric(tables[0], index, "normalised", higher=False),
                r2=explained(split, predictions, members),
                physical_mse=None if shared is None else metric(tables[1], index, "physical", higher=False),
                unit=shared or "",
            )
        )
    return rows


def explained(split: SplitOutcome, predictions: Sequence[Floats], members: Sequence[int]) -> float | None:
    """R2 over some dimensions, the mean over seeds; None where their targets are constant."""
    chosen = list(members)
    values = [
        scores.error_scores(scores.error_columns(own[..., chosen], split.targets[..., chosen]).sum(axis=0)[None])[0, -1]
        for own in predictions
    ]
    return optional(float(np.mean(values)))


def robot_rows(
    role: str,
    split: SplitOutcome,
    predictions: Sequence[Floats],
    groups: Mapping[str, tuple[int, ...]],
    units: Sequence[str],
    orientations: Sequence[Orientation],
    seed: int,
) -> list[RobotRow]:
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
                split=role,
                name=robot,
                rows=len(chosen),
                groups=len(set(own.samples.groups)),
                mse=found[f"{role}_mse"],
                r2=None if explained is None else explained.value,
                degrees=_degrees(angles, own.samples.groups, seed),
                physical={
                    row.name: PhysicalError(mse=row.physical_mse, unit=row.unit)
                    for row in group_rows(role, own, values, groups, units, seed)
                    if row.physical_mse is not None
                },
            )
        )
    return rows


def rows_of(split: SplitOutcome, rows: npt.NDArray[np.int64]) -> SplitOutcome:
    """Some rows of a split, without its predictions."""
    samples = split.samples
    kept = SampleColumns(
        ids=tuple(samples.ids[row] for row in rows),
        media=tuple(samples.media[row] for row in rows),
        groups=tuple(samples.groups[row] for row in rows),
        embodiments=tuple(samples.embodiments[row] for row in rows),
    )
    return SplitOutcome(kept, split.targets[rows], split.mean[rows], split.std[rows], {}, {}, {})


def orientation_rows(
    role: str,
    split: SplitOutcome,
    predictions: Sequence[Floats],
    orientations: Sequence[Orientation],
    seed: int,
) -> list[OrientationRow]:
    """One row per orientation whose angle can be measured on any sample."""
    rows = []
    for orientation in orientations:
        angles = [angular_error(split, prediction, orientation) for prediction in predictions]
        found = _degrees(angles, split.samples.groups, seed)
        if found is not None:
            rows.append(
                OrientationRow(
                    split=role, name=orientation.name, convention=orientation.convention, degrees=found
                )
            )  # fmt: skip
    return rows


def _degrees(angles: Sequence[Doubles], groups: Sequence[str], seed: int) -> Metric | None:
    """Mean of angles (n,) per seed; None where there are none."""
    if not angles or np.isnan(angles[0]).all():
        return None
    found = means([own[:, None] for own in angles], groups, seed, scores.magnitude)
    return metric(found, 0, "degrees", higher=False)


def mean_angle(split: SplitOutcome, prediction: Floats, orientations: Sequence[Orientation]) -> Doubles:
    """Angular error of each sample over all its orientations, (n,) in degrees; NaN where it has none."""
    angles = np.stack([angular_error(split, prediction, each) for each in orientations], axis=1)
    there = ~np.isnan(angles)
    counts = there.sum(axis=1)
    total = np.where(there, angles, 0.0).sum(axis=1)
    mean: Doubles = np.divide(total, counts, out=np.full(len(angles), np.nan), where=counts > 0)
    return mean


def angular_error(split: SplitOutcome, prediction: Floats, orientation: Orientation) -> Doubles:
    """Mean angle over the steps between predicted and true orientation of each sample, (n,) in degrees.

    Zero true quaternions (no orientation was recorded) don't count, a sample of nothing else is NaN; a zero predicted
    one counts as no rotation.
    """
    chosen = list(orientation.dims)
    mean, std = (part.astype(np.float64)[:, None, chosen] for part in (split.mean, split.std))
    guess = prediction[..., chosen] * std + mean
    truth = split.targets[..., chosen] * std + mean
    steps = truth.shape[1]
    guess, truth = guess.reshape(-1, len(chosen)), truth.reshape(-1, len(chosen))
    there = np.ones(len(truth), dtype=bool)
    if orientation.convention == "quaternion_xyzw":
        there = np.linalg.norm(truth, axis=1) > SMALLEST_NORM
        guess[np.linalg.norm(guess, axis=1) <= SMALLEST_NORM] = (0, 0, 0, 1)
    angles = np.full(len(truth), np.nan)
    if there.any():
        turn = rotation(guess[there], orientation).inv() * rotation(truth[there], orientation)
        angles[there] = np.degrees(turn.magnitude())
    table = angles.reshape(-1, steps)
    counts = (~np.isnan(table)).sum(axis=1)
    average: Doubles = np.divide(np.nansum(table, axis=1), counts, out=np.full(len(table), np.nan), where=counts > 0)
    return average


def rotation(values: Doubles, orientation: Orientation) -> Any:
    """Values (n, 3 or 4) in an orientation's convention as SciPy's rotations."""
    from scipy.spatial.transform import Rotation

    if orientation.convention == "quaternion_xyzw":
        return Rotation.from_quat(values)
    return Rotation.from_euler("xyz", values)


def optional(value: float) -> float | None:
    """A number, or None in place of NaN."""
    return None if math.isnan(value) else float(value)
