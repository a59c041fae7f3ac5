"""From what probes hand on to the record of a run: metrics, intervals, controls, tables.

Several probes that differ in their seed alone make one record: its metrics are means over
them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from lary.arrays import Array, Doubles, Floats, Ints
from lary.data.spec import Orientation
from lary.probes import outcome as metrics
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SplitOutcome, headline
from lary.results import statistics as stats
from lary.results.published import TOP_K, examples_of
from lary.results.record import EvalResult, Metric, RunFacts, Unit
from lary.types import JsonDict, LaryError

SMALLEST_NORM = 1e-8
"""A quaternion below it has no direction."""

Scores = dict[str, tuple[stats.Interval, int, Unit]]
"""Metrics by name: each is a column of an interval, and has a unit."""


def metric(found: stats.Interval, index: int, unit: Unit) -> Metric:
    """A value of an interval as a metric; errors and angles are better if lower."""
    higher = unit in ("fraction", "none")
    reason = found.reasons[index]
    ends = {"no_interval": reason} if reason else {"low": found.low[index], "high": found.high[index]}
    return Metric(value=found.value[index], unit=unit, higher_is_better=higher, **ends)


def _metrics(scores: Scores) -> dict[str, Metric]:
    return {name: metric(*score) for name, score in scores.items()}


def _check_finite(values: Sequence[Array], what: str) -> None:
    if len(values[0]) == 0:
        raise LaryError(f"No {what}: the validation split is empty.")
    if not all(np.isfinite(own).all() for own in values):
        raise LaryError(f"The {what} contain NaN or infinity: the probe diverged; lower its learning rate.")


def _means(tables: Iterable[npt.ArrayLike], clusters: Ints, kind: stats.Statistic) -> stats.Interval:
    """The interval of means of the columns, without NaN."""
    return stats.intervals(stats.mean_sums(tables, clusters), kind)


def _finished(
    runs: Sequence[Any], facts: RunFacts, scores: Mapping[str, Scores], gains: Mapping[str, Metric], **parts: Any
) -> EvalResult:
    """The record of both tasks: `scores` of selections and controls, `gains` over these."""
    roles: JsonDict = getattr(runs[0], "splits", {})
    splits = [run.splits["seen"] if roles else run for run in runs]
    groups = splits[0].samples.groups
    count = f"{len(set(groups))} {facts.dataset.unit}"
    first = headline(splits[0].selections)
    selections, per_seed = {}, []
    for name, own in splits[0].selections.items():
        loss = {role: split.loss[name] for role, split in roles.items() if name in split.loss}
        selections[name] = {"epoch": own.epoch, "head": own.head, "loss": loss, "metrics": _metrics(scores[name])}
    for row, (seed, split) in enumerate(zip(facts.seeds, splits, strict=False)):
        values = {name: found.seeds[row, column] for name, (found, column, _) in scores[first].items()}
        own = split.selections[first]
        per_seed.append({"seed": seed, "epoch": own.epoch, "head": own.head, "metrics": values})
    several = f", with the spread of {len(runs)} seeds" if len(runs) > 1 else ""
    of = f"{count} ({len(groups)} samples), corrected for unequal sizes and skewness{several}"
    interval = f"95 % by Student's t and the jackknife over {of}."
    if len(set(groups)) < stats.MIN_CLUSTERS:
        interval = f"No intervals: the {len(groups)} samples come from {count}, and {stats.MIN_CLUSTERS} are needed."
    history = to_json(runs[0].history, inf_nan_mode="null", fallback=lambda value: value.item())
    return EvalResult(
        **dict(facts),
        **parts,
        headline=first,
        selections=selections,
        controls={name: {"metrics": _metrics(scores[name]), "gain": gain} for name, gain in gains.items()},
        interval=interval,
        per_seed=per_seed if len(runs) > 1 else (),
        history=from_json(history),
        warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
    )


# --- classification ---


def classification_result(
    outcome: ClassificationOutcome, facts: RunFacts, others: Sequence[ClassificationOutcome] = ()
) -> EvalResult:
    """The record of a classification; `others` are probes with further seeds.

    Raises LaryError where the split is empty or scores aren't finite.
    """
    runs = (outcome, *others)
    labels, count = outcome.labels, len(outcome.classes)
    clusters = stats.cluster_index(outcome.samples.groups, facts.seed)

    def share(right: Iterable[npt.ArrayLike]) -> stats.Interval:
        return _means(right, clusters, stats.fraction)

    def scores_of(predicted: Sequence[Ints]) -> Scores:
        sums = np.stack([stats.class_sums(labels, own, count, clusters) for own in predicted])
        macro = stats.intervals(sums, stats.macro_scores)
        return {
            "top1": (share(labels == own for own in predicted), 0, "fraction"),
            "macro_recall": (macro, 0, "fraction"),
            "macro_f1": (macro, 1, "fraction"),
        }

    scores: dict[str, Scores] = {}
    for name in outcome.selections:
        logits = [run.selections[name].logits for run in runs]
        _check_finite(logits, "scores of the probe")
        own = scores[name] = scores_of([each.argmax(axis=1) for each in logits])
        if count > TOP_K:  # equal scores in class order
            best = (np.argsort(-each, axis=1, kind="stable")[:, :TOP_K] for each in logits)
            right = ((each == labels[:, None]).any(axis=1) for each in best)
            own[f"top{TOP_K}"] = (share(right), 0, "fraction")
    first = headline(outcome.selections)
    predicted = [run.selections[first].logits.argmax(axis=1) for run in runs]
    gains = {}
    for control in outcome.controls:
        guesses = [run.controls[control] for run in runs]
        scores[control] = scores_of(guesses)
        pairs = zip(predicted, guesses, strict=True)
        better = (np.equal(own, labels) - 1.0 * (guess == labels) for own, guess in pairs)
        gains[control] = metric(_means(better, clusters, stats.gain), 0, "fraction")
    matrix = metrics.confusion_matrix(labels, predicted[0], count)
    return _finished(
        runs,
        facts,
        scores,
        gains,
        task="classification",
        primary="top1",
        classes=_class_rows(outcome, predicted[0], clusters, matrix),
        confusion=matrix.tolist(),
    )


def _class_rows(outcome: ClassificationOutcome, predicted: Ints, clusters: Ints, matrix: Ints) -> Iterator[Any]:
    from pandas import DataFrame

    count = len(outcome.classes)
    sums = stats.class_sums(outcome.labels, predicted, count, clusters)
    recall = stats.intervals(sums[None, :, : 2 * count], stats.fraction)
    table = DataFrame({"name": outcome.classes, "train": outcome.train_counts, **metrics.class_statistics(matrix)})
    for index, row in enumerate(table.assign(predicted=matrix.sum(axis=1)).to_dict("records")):
        yield row | {"recall": metric(recall, index, "fraction") if row["true"] else None}


# --- regression ---


@dataclass(frozen=True)
class _Predicted:
    """The predictions of one split, (n, K, A) normalised, by the probe of each seed."""

    role: str
    split: SplitOutcome
    groups: Sequence[str]
    values: Sequence[Floats]
    seed: int

    @property
    def clusters(self) -> Ints:
        return stats.cluster_index(self.groups, self.seed)

    def take(self, rows: Ints) -> _Predicted:
        split = self.split
        part = replace(split, targets=split.targets[rows], mean=split.mean[rows], std=split.std[rows])
        groups = [self.groups[row] for row in rows]
        return replace(self, split=part, groups=groups, values=[own[rows] for own in self.values])

    def squared(self) -> list[Doubles]:
        """Squared errors averaged over the steps, (n, A) per seed."""
        targets = self.split.targets.astype(np.float64)
        return [np.square(own - targets).mean(axis=1) for own in self.values]

    def overall(self) -> Scores:
        """Error and R2 of all dimensions; no R2 where the targets are constant."""
        columns = (stats.error_columns(own, self.split.targets) for own in self.values)
        sums = np.stack([stats.cluster_sums(own, self.clusters) for own in columns])
        found = stats.intervals(sums, stats.error_scores)
        dims = self.split.targets.shape[2]
        if all((own == own[:1]).all() for own in self.values):
            # Nobody explains anything by the same answer to every sample.
            most = np.maximum(found.value, np.repeat((np.inf, 0), dims + 1))
            found = replace(found, high=np.minimum(found.high, most))
        scores: Scores = {f"{self.role}_mse": (found, dims, "normalised")}
        if not np.isnan(found.value[-1]):
            scores[f"{self.role}_r2"] = (found, 2 * dims + 1, "none")
        return scores

    def parts(self, parts: Mapping[str, tuple[int, ...]], units: Sequence[str]) -> Iterator[JsonDict]:
        """A row for each part of an action: a dimension, or a group of them.

        In physical units, too, where the dimensions of the part share one.
        """
        if not parts:
            return
        chosen = [list(members) for members in parts.values()]
        clusters = self.clusters

        def means(scale: Any) -> stats.Interval:
            errors = [own * scale for own in self.squared()]
            tables = (np.stack([own[:, dims].mean(axis=1) for dims in chosen], axis=1) for own in errors)
            return _means(tables, clusters, stats.magnitude)

        normalised = means(1.0)
        physical = means(self.split.std.astype(np.float64) ** 2)
        sums = np.stack([stats.error_columns(own, self.split.targets).sum(axis=0) for own in self.values])
        for index, (name, dims) in enumerate(zip(parts, chosen, strict=True)):
            columns = np.add.outer(np.arange(4) * self.split.targets.shape[2], dims).ravel()
            explained = stats.error_scores(sums[:, columns])[:, -1].mean()
            shared = {units[dim] for dim in dims if dim < len(units)}
            alike = len(shared) == 1
            yield {
                "split": self.role,
                "name": name,
                "mse": metric(normalised, index, "normalised"),
                "r2": None if math.isnan(explained) else explained,
                "physical_mse": metric(physical, index, "physical") if alike else None,
                "unit": shared.pop() if alike else "",
            }

    def angle(self, orientations: Sequence[Orientation]) -> Metric | None:
        """Mean angular error over some orientations; None where there are none."""
        angles = []
        for values in self.values if orientations else ():
            errors = [angular_error(self.split, values, each) for each in orientations]
            angles.append(stats.mean_known(np.stack(errors, axis=1)))
        if not angles or np.isnan(angles[0]).all():
            return None
        return metric(_means(angles, self.clusters, stats.magnitude), 0, "degrees")

    def robot(
        self, name: str, groups: Mapping[str, tuple[int, ...]], facts: RunFacts, turns: Sequence[Orientation]
    ) -> JsonDict:
        """The row of a robot type, whose samples these are."""
        scores = _metrics(self.overall())
        explained = scores.get(f"{self.role}_r2")
        rows = [row for row in self.parts(groups, facts.dataset.units) if row["physical_mse"]]
        return {
            "split": self.role,
            "name": name,
            "rows": len(self.groups),
            "groups": len(set(self.groups)),
            "mse": scores[f"{self.role}_mse"],
            "r2": explained.value if explained else None,
            "degrees": self.angle(turns),
            "physical": {row["name"]: {"mse": row["physical_mse"], "unit": row["unit"]} for row in rows},
        }


def regression_result(
    outcome: RegressionOutcome,
    facts: RunFacts,
    others: Sequence[RegressionOutcome] = (),
    orientations: Sequence[Orientation] = (),
) -> EvalResult:
    """The record of a regression: MSE and R2 with intervals, tables, controls, examples.

    `others` are probes with further seeds. `orientations` are for absolute actions.
    Raises LaryError where a split is empty or predictions aren't finite.
    """
    runs = (outcome, *others)
    seen = outcome.splits["seen"]
    units = facts.dataset.units
    first = headline(seen.selections)
    scores: dict[str, Scores] = {}
    predicted: dict[tuple[str, str], _Predicted] = {}
    for role, split in outcome.splits.items():
        for name in (*split.selections, *seen.controls):
            splits: list[Any] = [run.splits[role] for run in runs]
            control = name in seen.controls
            values = [own.controls[name] if control else own.selections[name].values for own in splits]
            _check_finite(values, f"predictions on the {role} split")
            own = predicted[role, name] = _Predicted(role, split, split.samples.groups, values, facts.seed)
            scores.setdefault(name, {}).update(own.overall())
    names = "dimensions", "dimension_groups", "robots", "orientations"
    tables: dict[str, list[JsonDict]] = {name: [] for name in names}
    dims = {name: (index,) for index, name in enumerate(outcome.dims)}
    for role, split in outcome.splits.items():
        own = predicted[role, first]
        for row in own.parts(dims, [*units, *[""] * len(dims)]):
            tables["dimensions"].append(row | {"rmse": row["physical_mse"].value ** 0.5})
        tables["dimension_groups"] += own.parts(outcome.groups, units)
        robots = np.array(split.samples.embodiments)
        for robot in np.unique(robots).tolist():
            part = own.take(np.flatnonzero(robots == robot))
            tables["robots"].append(part.robot(robot, outcome.groups, facts, orientations))
        for each in orientations:
            if (degrees := own.angle([each])) is not None:
                row = {"split": role, "name": each.name, "convention": each.convention, "dims": each.dims}
                tables["orientations"].append(row | {"degrees": degrees})
    own, gains = predicted["seen", first], {}
    for name in seen.controls:
        pairs = zip(own.squared(), predicted["seen", name].squared(), strict=True)
        errors = ((ours - theirs).mean(axis=1) for ours, theirs in pairs)
        gains[name] = metric(_means(errors, own.clusters, stats.ratio), 0, "normalised")
    examples = examples_of(seen, facts.files)
    return _finished(runs, facts, scores, gains, task="regression", primary="seen_mse", examples=examples, **tables)


def angular_error(split: SplitOutcome, prediction: Floats, orientation: Orientation) -> Doubles:
    """Mean angle over the steps between predicted and true orientation, (n,) degrees.

    Zero true quaternions (none recorded) don't count, a sample of nothing else is NaN; a
    zero predicted one is no rotation.
    """
    from scipy.spatial.transform import Rotation

    chosen = list(orientation.dims)
    mean, std = (part.astype(np.float64)[:, None, chosen] for part in (split.mean, split.std))
    both = (values[..., chosen] * std + mean for values in (prediction, split.targets))
    guess, truth = (values.reshape(-1, len(chosen)) for values in both)
    there = np.ones(len(truth), dtype=bool)
    turn: Any = functools.partial(Rotation.from_euler, "xyz")
    if orientation.convention == "quaternion_xyzw":
        turn = Rotation.from_quat
        there = np.linalg.norm(truth, axis=1) > SMALLEST_NORM
        for own in (guess, truth):
            own[np.linalg.norm(own, axis=1) <= SMALLEST_NORM] = (0, 0, 0, 1)
    between = turn(guess).inv() * turn(truth)
    angles = np.where(there, np.degrees(between.magnitude()), np.nan)
    return stats.mean_known(angles.reshape(len(split.targets), -1))
