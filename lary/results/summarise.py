"""From what probes hand on to the record of a run: metrics, intervals, controls, tables.

Several probes that differ in their seed alone make one record: its metrics are means over
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from lary.data.spec import Orientation
from lary.probes.outcome import (
    ClassificationOutcome,
    Floats,
    RegressionOutcome,
    SelectionName,
    SplitOutcome,
    class_statistics,
    confusion_matrix,
)
from lary.results import statistics as stats
from lary.results.published import examples_of
from lary.results.record import (
    ClassRow,
    Control,
    DimensionRow,
    EvalResult,
    GroupRow,
    Metric,
    OrientationRow,
    PhysicalError,
    RobotRow,
    RunFacts,
    SeedRow,
    Selection,
    Unit,
    headline,
)
from lary.types import LaryError

TOP_K = 5
SMALLEST_NORM = 1e-8
"""A quaternion below it has no direction."""

Doubles = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

Scores = dict[str, tuple[stats.Interval, int, Unit]]
"""Metrics by name: each is a column of an interval, and has a unit."""


def metric(found: stats.Interval, index: int, unit: Unit) -> Metric:
    """One value of an interval as a metric of a record; of errors and angles a lower one is better."""
    value, low, high = (float(part[index]) for part in (found.value, found.low, found.high))
    return Metric(
        value=value,
        low=None if math.isnan(low) else low,
        high=None if math.isnan(high) else high,
        unit=unit,
        higher_is_better=unit in ("fraction", "none"),
    )


def _metrics(scores: Scores) -> dict[str, Metric]:
    return {name: metric(*score) for name, score in scores.items()}


def _check_finite(values: Sequence[npt.NDArray[Any]], what: str) -> None:
    """Refuse an empty split, and numbers that aren't finite. Raises LaryError."""
    if len(values[0]) == 0:
        raise LaryError(f"No {what}: the validation split is empty.")
    if not all(np.isfinite(own).all() for own in values):
        raise LaryError(f"The {what} contain NaN or infinity: the probe diverged; lower its learning rate.")


def _interval_note(groups: Sequence[str], seeds: int) -> str:
    """How the intervals of a run were made, in a sentence."""
    count, samples = len(set(groups)), len(groups)
    if count < stats.MIN_CLUSTERS:
        need = f"{stats.MIN_CLUSTERS} are needed"
        return f"No intervals: the {samples} samples come from {count} episodes or videos, and {need}."
    several = f", with the spread of {seeds} seeds by Student's t" if seeds > 1 else ""
    return (
        f"95 % studentised bootstrap, {stats.RESAMPLES} resamples, for shares of right answers "
        f"Korn and Graubard's, over {count} episodes or videos ({samples} samples){several}."
    )


def _finished(
    runs: Sequence[ClassificationOutcome | RegressionOutcome],
    facts: RunFacts,
    groups: Sequence[str],
    scores: Scores,
    **parts: Any,
) -> EvalResult:
    """The record with what both tasks have; `scores` are those of the headline selection."""
    first = runs[0]
    history = to_json(first.history, inf_nan_mode="null", fallback=lambda value: value.item())
    per_seed = []
    for row, (seed, run) in enumerate(zip(facts.seeds, runs, strict=False)):
        split = run if isinstance(run, ClassificationOutcome) else run.splits["seen"]
        chosen: Any = split.selections[headline(split.selections)]
        values = {name: float(found.seeds[row, column]) for name, (found, column, _) in scores.items()}
        head = getattr(chosen, "head", None)
        per_seed.append(SeedRow(seed=seed, epoch=chosen.epoch, head=head, metrics=values))
    return EvalResult(
        **dict(facts),
        **parts,
        interval=_interval_note(groups, len(runs)),
        per_seed=tuple(per_seed) if len(runs) > 1 else (),
        history=tuple(from_json(history)),
        warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
    )


# --- classification ---


def _seed_sums(tables: Iterable[npt.ArrayLike], clusters: stats.Ints) -> stats.Array:
    """Sums (S, G, M) within clusters of one table (n, M) per seed."""
    return np.stack([stats.cluster_sums(table, clusters) for table in tables])


def _accuracy(right: Sequence[Booleans], clusters: stats.Ints) -> stats.Interval:
    tables = (np.stack([own, np.ones_like(own)], axis=1) for own in right)
    return stats.fraction_interval(_seed_sums(tables, clusters))


def _in_top(labels: stats.Ints, logits: Floats) -> Booleans:
    """Whether the true class is among the `TOP_K` highest scores; equal ones count in class order."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K]
    found: Booleans = (best == labels[:, None]).any(axis=1)
    return found


def classification_result(
    outcome: ClassificationOutcome, facts: RunFacts, others: Sequence[ClassificationOutcome] = ()
) -> EvalResult:
    """The record of a classification: Top-1, mean recall, macro F1, Top-5, controls, class table.

    `others` are probes with the further seeds of `facts`, on the same samples.

    Raises:
        LaryError: the split is empty or scores aren't finite.
    """
    runs = (outcome, *others)
    labels, count, groups = outcome.labels, len(outcome.classes), outcome.samples.groups
    clusters = stats.cluster_index(groups, facts.seed)

    def scores_of(predicted: Sequence[stats.Ints]) -> Scores:
        sums = np.stack([stats.class_sums(labels, own, count, clusters) for own in predicted])
        macro = stats.bootstrap(sums, stats.macro_scores, seed=facts.seed)
        accuracy = _accuracy([labels == own for own in predicted], clusters)
        return {
            "top1": (accuracy, 0, "fraction"),
            "macro_recall": (macro, 0, "fraction"),
            "macro_f1": (macro, 1, "fraction"),
        }

    found: dict[SelectionName, Scores] = {}
    for name in outcome.selections:
        logits = [run.selections[name].logits for run in runs]
        _check_finite(logits, "scores of the probe")
        found[name] = scores_of([own.argmax(axis=1) for own in logits])
        if count > TOP_K:
            top = _accuracy([_in_top(labels, own) for own in logits], clusters)
            found[name][f"top{TOP_K}"] = (top, 0, "fraction")
    first = headline(outcome.selections)
    predicted = [run.selections[first].logits.argmax(axis=1) for run in runs]
    controls = {}
    for control in outcome.controls:
        guesses = [run.controls[control] for run in runs]
        gains = []
        for own, guess in zip(predicted, guesses, strict=True):
            gain = (own == labels).astype(np.float64) - (guess == labels)
            gains.append(np.stack([gain, np.ones_like(gain)], axis=1))
        gained = stats.bootstrap(_seed_sums(gains, clusters), stats.ratio, seed=facts.seed)
        controls[control] = Control(metrics=_metrics(scores_of(guesses)), gain=metric(gained, 0, "fraction"))
    matrix = confusion_matrix(labels, predicted[0], count)
    return _finished(
        runs,
        facts,
        groups,
        found[first],
        task="classification",
        headline=first,
        primary="top1",
        selections={
            name: Selection(epoch=chosen.epoch, head=chosen.head, metrics=_metrics(found[name]))
            for name, chosen in outcome.selections.items()
        },
        controls=controls,
        classes=tuple(_class_rows(outcome, predicted[0], clusters, matrix)),
        confusion=tuple(map(tuple, matrix.tolist())),
    )


def _class_rows(
    outcome: ClassificationOutcome, predicted: stats.Ints, clusters: stats.Ints, matrix: stats.Ints
) -> Iterator[ClassRow]:
    count = len(outcome.classes)
    table = class_statistics(matrix)
    sums = stats.class_sums(outcome.labels, predicted, count, clusters)
    recall = stats.fraction_interval(sums[:, : 2 * count])
    for index, name in enumerate(outcome.classes):
        true = int(table.support[index])
        yield ClassRow(
            name=name,
            train=int(outcome.train_counts[index]),
            true=true,
            predicted=int(matrix[index].sum()),
            precision=float(table.precision[index]),
            recall=metric(recall, index, "fraction") if true else None,
            f1=float(table.f1[index]),
        )


# --- regression ---


@dataclass(frozen=True)
class _Predicted:
    """The predictions of one split, (n, K, A) normalised, by the probe of each seed."""

    role: str
    split: SplitOutcome
    groups: npt.NDArray[np.str_]
    values: Sequence[Floats]
    seed: int

    def take(self, rows: stats.Ints) -> _Predicted:
        """Some of the samples."""
        split = self.split
        part = replace(split, targets=split.targets[rows], mean=split.mean[rows], std=split.std[rows])
        return replace(self, split=part, groups=self.groups[rows], values=[own[rows] for own in self.values])

    def interval(self, tables: Iterable[npt.ArrayLike], statistic: stats.Statistic) -> stats.Interval:
        """The interval of a statistic of one table (n, M) per seed."""
        clusters = stats.cluster_index(self.groups.tolist(), self.seed)
        return stats.bootstrap(_seed_sums(tables, clusters), statistic, seed=self.seed)

    def means(self, tables: Iterable[Doubles], kind: stats.Statistic = stats.magnitude) -> stats.Interval:
        """The interval of the means of the columns (n, K); NaN entries don't count."""
        counted = (np.hstack([np.nan_to_num(table), ~np.isnan(table)]) for table in tables)
        return self.interval(counted, kind)

    def squared(self, values: Sequence[Floats]) -> list[Doubles]:
        """Squared errors averaged over the steps, (n, A) per seed."""
        targets = self.split.targets.astype(np.float64)
        return [np.square(own - targets).mean(axis=1) for own in values]

    def overall(self) -> Scores:
        """Error and R2 of all dimensions; no R2 where the targets are constant."""
        columns = (stats.error_columns(own, self.split.targets) for own in self.values)
        found, dims = self.interval(columns, stats.error_scores), self.split.targets.shape[2]
        scores: Scores = {f"{self.role}_mse": (found, dims, "normalised")}
        if not np.isnan(found.value[-1]):
            scores[f"{self.role}_r2"] = (found, 2 * dims + 1, "none")
        return scores

    def parts(self, parts: Mapping[str, tuple[int, ...]], units: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A row for each part of an action, such as a dimension or a group of them.

        In physical units, too, where the dimensions of the part share one.
        """
        if not parts:
            return
        squared, scale = self.squared(self.values), self.split.std.astype(np.float64) ** 2
        chosen = [list(members) for members in parts.values()]
        normalised, physical = (
            self.means(
                np.stack([(own * factor)[:, members].mean(axis=1) for members in chosen], axis=1) for own in squared
            )
            for factor in (1.0, scale)
        )
        sums = np.stack([stats.error_columns(own, self.split.targets).sum(axis=0) for own in self.values])
        for index, (name, members) in enumerate(zip(parts, chosen, strict=True)):
            columns = np.add.outer(np.arange(4) * scale.shape[1], members).ravel()
            explained = float(stats.error_scores(sums[:, columns])[:, -1].mean())
            own = {units[member] for member in members if member < len(units)}
            yield {
                "split": self.role,
                "name": name,
                "mse": metric(normalised, index, "normalised"),
                "r2": None if math.isnan(explained) else explained,
                "physical_mse": metric(physical, index, "physical") if len(own) == 1 else None,
                "unit": own.pop() if len(own) == 1 else "",
            }

    def angle(self, orientations: Sequence[Orientation]) -> Metric | None:
        """Mean angular error over some orientations; None where there are none."""
        angles = []
        for values in self.values:
            errors = [angular_error(self.split, values, each) for each in orientations]
            angles.append(_row_means(np.stack(errors, axis=1)) if errors else np.full(len(values), np.nan))
        if np.isnan(angles[0]).all():
            return None
        return metric(self.means(own[:, None] for own in angles), 0, "degrees")


def _tables(
    own: _Predicted,
    outcome: RegressionOutcome,
    units: Sequence[str],
    orientations: Sequence[Orientation],
) -> dict[str, list[Any]]:
    """The tables of a split: errors by dimension, group of dimensions, robot type and orientation."""
    dims = {name: (index,) for index, name in enumerate(outcome.dims)}
    rows = own.parts(dims, [*units, *[""] * len(dims)])
    found: dict[str, list[Any]] = {
        "dimensions": [DimensionRow(**row, rmse=row["physical_mse"].value ** 0.5) for row in rows],
        "dimension_groups": [GroupRow(**row) for row in own.parts(outcome.groups, units)],
        "robots": [],
        "orientations": [],
    }
    robots = np.array(own.split.samples.embodiments)
    for robot in np.unique(robots).tolist():
        part = own.take(np.flatnonzero(robots == robot))
        scores = _metrics(part.overall())
        explained = scores.get(f"{own.role}_r2")
        groups = [row for row in part.parts(outcome.groups, units) if row["physical_mse"]]
        row = RobotRow(
            split=own.role,
            name=robot,
            rows=len(part.groups),
            groups=len(np.unique(part.groups)),
            mse=scores[f"{own.role}_mse"],
            r2=explained.value if explained else None,
            degrees=part.angle(orientations),
            physical={row["name"]: PhysicalError(mse=row["physical_mse"], unit=row["unit"]) for row in groups},
        )
        found["robots"].append(row)
    for each in orientations:
        if (degrees := own.angle([each])) is not None:
            found["orientations"].append(
                OrientationRow(split=own.role, name=each.name, convention=each.convention, degrees=degrees)
            )
    return found


def regression_result(
    outcome: RegressionOutcome,
    facts: RunFacts,
    others: Sequence[RegressionOutcome] = (),
    orientations: Sequence[Orientation] = (),
) -> EvalResult:
    """The record of a regression: MSE and R2 with intervals, tables, controls, examples.

    Physical units come from `facts.dataset.units`; pictures of the examples from
    `facts.files`. `others` are probes with the further seeds of `facts`, on the same
    samples. `orientations` are for absolute actions: the difference of two orientations'
    values is none.

    Raises:
        LaryError: a split is empty or predictions aren't finite.
    """
    runs, seen = (outcome, *others), outcome.splits["seen"]
    first = headline(seen.selections)
    found: dict[SelectionName, Scores] = {name: {} for name in seen.selections}
    controls: dict[str, Scores] = {name: {} for name in seen.controls}
    tables: dict[str, list[Any]] = {}
    for role, split in outcome.splits.items():
        groups = np.array(split.samples.groups)
        for name in split.selections:
            values = [run.splits[role].selections[name].values for run in runs]
            _check_finite(values, f"predictions on the {role} split")
            own = _Predicted(role, split, groups, values, facts.seed)
            found[name] |= own.overall()
            if name == first:
                for table, rows in _tables(own, outcome, facts.dataset.units, orientations).items():
                    tables.setdefault(table, []).extend(rows)
        for control in controls:
            guesses = [run.splits[role].controls[control] for run in runs]
            controls[control] |= _Predicted(role, split, groups, guesses, facts.seed).overall()

    ours = [run.splits["seen"].selections[first].values for run in runs]
    reported = _Predicted("seen", seen, np.array(seen.samples.groups), ours, facts.seed)

    def gain(control: str) -> Metric:
        """MSE of the run minus that of a control, paired by sample: negative where the run is better."""
        theirs = reported.squared([run.splits["seen"].controls[control] for run in runs])
        pairs = zip(reported.squared(ours), theirs, strict=True)
        gains = ((own - other).mean(axis=1)[:, None] for own, other in pairs)
        return metric(reported.means(gains, stats.ratio), 0, "normalised")

    return _finished(
        runs,
        facts,
        seen.samples.groups,
        found[first],
        task="regression",
        headline=first,
        primary="seen_mse",
        selections={
            name: Selection(
                epoch=seen.selections[name].epoch,
                loss={role: float(split.loss[name]) for role, split in outcome.splits.items() if name in split.loss},
                metrics=_metrics(scores),
            )
            for name, scores in found.items()
        },
        controls={name: Control(metrics=_metrics(scores), gain=gain(name)) for name, scores in controls.items()},
        **{name: tuple(rows) for name, rows in tables.items()},
        examples=tuple(examples_of(seen, first, facts.files)),
    )


def _row_means(table: Doubles) -> Doubles:
    """Means of the rows (n, K) over what is there, (n,); NaN for a row without anything."""
    found: Doubles = np.ma.masked_invalid(table).mean(axis=1).filled(np.nan)
    return found


def angular_error(split: SplitOutcome, prediction: Floats, orientation: Orientation) -> Doubles:
    """Mean angle over the steps between predicted and true orientation of each sample, (n,) degrees.

    Zero true quaternions (no orientation was recorded) don't count, a sample of nothing
    else is NaN; a zero predicted one counts as no rotation.
    """
    from scipy.spatial.transform import Rotation

    chosen = list(orientation.dims)
    mean, std = (part.astype(np.float64)[:, None, chosen] for part in (split.mean, split.std))
    guess, truth = (
        (values[..., chosen] * std + mean).reshape(-1, len(chosen)) for values in (prediction, split.targets)
    )
    there = np.ones(len(truth), dtype=bool)
    quaternion = orientation.convention == "quaternion_xyzw"
    if quaternion:
        there = np.linalg.norm(truth, axis=1) > SMALLEST_NORM
        guess[np.linalg.norm(guess, axis=1) <= SMALLEST_NORM] = (0, 0, 0, 1)
    angles = np.full(len(truth), np.nan)
    if there.any():
        one, other = (
            Rotation.from_quat(own[there]) if quaternion else Rotation.from_euler("xyz", own[there])
            for own in (guess, truth)
        )
        angles[there] = np.degrees((one.inv() * other).magnitude())
    return _row_means(angles.reshape(len(split.targets), -1))
