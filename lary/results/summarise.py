"""From what a probe hands on to the record of a run: metrics, intervals, controls, tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.probes import metrics
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SelectionName, SplitOutcome
from lary.results import statistics as stats
from lary.results.record import (
    ClassRow,
    Control,
    DimensionRow,
    EvalResult,
    Example,
    GroupRow,
    Metric,
    RunFacts,
    Selection,
    Unit,
)
from lary.types import LaryError

EXAMPLE_QUANTILES = (0.1, 0.5, 0.9)
"""Ranks of the errors whose chunks are shown: a good one, the median, a bad one."""

TOP_K = 5


def headline(selections: Mapping[SelectionName, Any]) -> SelectionName:
    """The selection to report first: picked on held-out data where there is one."""
    return "held_out" if "held_out" in selections else "best_on_validation"


def interval_note(groups: int, samples: int) -> str:
    """How the intervals of a run were made, in a sentence."""
    if groups < stats.MIN_CLUSTERS:
        need = f"{stats.MIN_CLUSTERS} are needed"
        return f"No intervals: the {samples} samples come from {groups} episodes or videos, and {need}."
    method = f"95 % expanded percentile bootstrap, {stats.RESAMPLES} resamples"
    return f"{method} over {groups} episodes or videos ({samples} samples)."


def _metric(found: stats.Interval, index: int, unit: Unit, higher: bool = True) -> Metric:
    def bound(values: stats.Array | None) -> float | None:
        return None if values is None or math.isnan(values[index]) else float(values[index])

    return Metric(
        value=float(found.value[index]),
        low=bound(found.low),
        high=bound(found.high),
        unit=unit,
        higher_is_better=higher,
    )


def _check(values: npt.NDArray[Any], what: str) -> None:
    if len(values) == 0:
        raise LaryError(f"No {what}: the validation split is empty.")
    if not np.isfinite(values).all():
        raise LaryError(f"The {what} contain NaN or infinity: the probe diverged; lower its learning rate.")


def _history(entries: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
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


# --- classification ---------------------------------------------------------------------------------------------------


def _accuracy(correct: npt.NDArray[np.bool_], clusters: stats.Ints, seed: int) -> Metric:
    columns = np.stack([correct, np.ones_like(correct)], axis=1)
    hits, trials = np.split(stats.cluster_sums(columns, clusters), 2, axis=1)
    return _metric(stats.fraction_interval(hits, trials, seed=seed), 0, "fraction")


def _class_metrics(
    labels: stats.Ints, predicted: stats.Ints, classes: int, clusters: stats.Ints, seed: int
) -> dict[str, Metric]:
    macro = stats.bootstrap(stats.class_sums(labels, predicted, classes, clusters), stats.macro_scores, seed=seed)
    return {
        "top1": _accuracy(labels == predicted, clusters, seed),
        "macro_recall": _metric(macro, 0, "fraction"),
        "macro_f1": _metric(macro, 1, "fraction"),
    }


def _class_gain(labels: stats.Ints, ours: stats.Ints, theirs: stats.Ints, clusters: stats.Ints, seed: int) -> Metric:
    difference = (ours == labels).astype(np.float64) - (theirs == labels)
    sums = stats.cluster_sums(np.stack([difference, np.ones_like(difference)], axis=1), clusters)
    return _metric(stats.bootstrap(sums, stats.ratio, seed=seed), 0, "fraction")


def _class_rows(
    outcome: ClassificationOutcome, predicted: stats.Ints, clusters: stats.Ints, matrix: stats.Ints
) -> tuple[ClassRow, ...]:
    count = len(outcome.classes)
    table = metrics.class_statistics(matrix)
    sums = stats.class_sums(outcome.labels, predicted, count, clusters)
    recall = stats.fraction_interval(sums[:, :count], sums[:, count : 2 * count])
    true = matrix.sum(axis=0)
    return tuple(
        ClassRow(
            name=name,
            train=int(outcome.train_counts[index]),
            true=int(true[index]),
            predicted=int(matrix[index].sum()),
            precision=float(table.precision[index]),
            recall=_metric(recall, index, "fraction") if true[index] else None,
            f1=float(table.f1[index]),
        )
        for index, name in enumerate(outcome.classes)
    )


def classification_result(outcome: ClassificationOutcome, facts: RunFacts) -> EvalResult:
    """The record of a classification run: Top-1, mean recall, macro F1 and Top-5 with intervals, controls, class table.

    Raises:
        LaryError: the split is empty or scores aren't finite.
    """
    labels, count, seed = outcome.labels, len(outcome.classes), facts.seed
    clusters = stats.cluster_index(outcome.samples.groups, seed)
    selections: dict[SelectionName, Selection] = {}
    for name, chosen in outcome.selections.items():
        _check(chosen.logits, "scores of the probe")
        found = _class_metrics(labels, chosen.logits.argmax(axis=1), count, clusters, seed)
        if count > TOP_K:
            best = np.argsort(-chosen.logits, axis=1, kind="stable")[:, :TOP_K]
            found[f"top{TOP_K}"] = _accuracy((best == labels[:, None]).any(axis=1), clusters, seed)
        selections[name] = Selection(epoch=chosen.epoch, head=chosen.head, metrics=found)
    first = headline(outcome.selections)
    predicted = outcome.selections[first].logits.argmax(axis=1)
    matrix = metrics.confusion_matrix(labels, predicted, count)
    controls = {
        name: Control(
            metrics=_class_metrics(labels, guess, count, clusters, seed),
            gain=_class_gain(labels, predicted, guess, clusters, seed),
        )
        for name, guess in outcome.controls.items()
    }
    return EvalResult(
        **dict(facts),
        task="classification",
        headline=first,
        primary="top1",
        selections=selections,
        controls=controls,
        interval=interval_note(len(set(outcome.samples.groups)), len(labels)),
        classes=_class_rows(outcome, predicted, clusters, matrix),
        confusion=tuple(tuple(row) for row in matrix.tolist()),
        history=_history(outcome.history),
        warnings=outcome.warnings,
    )


# --- regression -------------------------------------------------------------------------------------------------------


def _error_metrics(
    role: str, prediction: npt.NDArray[np.float32], split: SplitOutcome, seed: int
) -> tuple[dict[str, Metric], stats.Interval]:
    """Overall metrics of a split and the interval of every dimension (columns of `statistics.error_scores`)."""
    clusters = stats.cluster_index(split.samples.groups, seed)
    sums = stats.cluster_sums(stats.error_columns(prediction, split.targets), clusters)
    found = stats.bootstrap(sums, stats.error_scores, seed=seed)
    dims = split.targets.shape[2]
    overall = {f"{role}_mse": _metric(found, dims, "normalised", higher=False)}
    if not math.isnan(found.value[2 * dims + 1]):
        overall[f"{role}_r2"] = _metric(found, 2 * dims + 1, "none")
    return overall, found


def _error_gain(
    split: SplitOutcome, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32], seed: int
) -> Metric:
    """MSE of the run minus that of a control, paired by sample: negative where the run is better."""
    clusters = stats.cluster_index(split.samples.groups, seed)
    targets = split.targets.astype(np.float64)
    difference = (ours - targets) ** 2 - (theirs - targets) ** 2
    per_sample = np.stack([difference.mean(axis=(1, 2)), np.ones(len(targets))], axis=1)
    sums = stats.cluster_sums(per_sample, clusters)
    return _metric(stats.bootstrap(sums, stats.ratio, seed=seed), 0, "normalised", higher=False)


def _dimension_rows(
    role: str,
    split: SplitOutcome,
    prediction: npt.NDArray[np.float32],
    found: stats.Interval,
    names: tuple[str, ...],
    units: tuple[str, ...],
) -> list[DimensionRow]:
    physical = (prediction.astype(np.float64) - split.targets) * split.std[:, None, :]
    rmse = np.sqrt((physical**2).mean(axis=(0, 1)))
    explained = found.value[len(names) + 1 :]
    return [
        DimensionRow(
            split=role,
            name=name,
            mse=_metric(found, index, "normalised", higher=False),
            r2=None if math.isnan(explained[index]) else float(explained[index]),
            rmse=float(rmse[index]),
            unit=units[index] if index < len(units) else "",
        )
        for index, name in enumerate(names)
    ]


def _group_rows(
    role: str,
    split: SplitOutcome,
    prediction: npt.NDArray[np.float32],
    groups: Mapping[str, tuple[int, ...]],
    seed: int,
) -> list[GroupRow]:
    if not groups:
        return []
    clusters = stats.cluster_index(split.samples.groups, seed)
    squared = (prediction.astype(np.float64) - split.targets) ** 2
    means = np.stack([squared[:, :, list(members)].mean(axis=(1, 2)) for members in groups.values()], axis=1)
    sums = stats.cluster_sums(np.hstack([means, np.ones_like(means)]), clusters)
    found = stats.bootstrap(sums, stats.ratio, seed=seed)
    return [
        GroupRow(split=role, name=name, mse=_metric(found, index, "normalised", higher=False))
        for index, name in enumerate(groups)
    ]


def example_rows(split: SplitOutcome, selection: SelectionName) -> list[tuple[int, float, float]]:
    """Rows to show as (row, quantile, error): the samples at `EXAMPLE_QUANTILES` of the error, ties by row."""
    error = ((split.selections[selection].values - split.targets) ** 2).mean(axis=(1, 2))
    order = np.argsort(error, kind="stable")
    ranks = [(round(quantile * (len(order) - 1)), quantile) for quantile in EXAMPLE_QUANTILES]
    rows = {int(order[rank]): quantile for rank, quantile in ranks}
    return [(row, quantile, float(error[row])) for row, quantile in rows.items()]


def _examples(split: SplitOutcome, selection: SelectionName, files: tuple[str, ...]) -> tuple[Example, ...]:
    prediction = split.selections[selection].values
    found = []
    for index, (row, quantile, error) in enumerate(example_rows(split, selection)):

        def physical(chunk: npt.NDArray[np.float32], row: int = row) -> tuple[tuple[float, ...], ...]:
            values = chunk * split.std[row] + split.mean[row]
            return tuple(tuple(float(f"{value:.5g}") for value in step) for step in values)

        stems = (f"sample_{index}_src.png", f"sample_{index}_tgt.png")
        pictures = tuple(name for stem in stems for name in files if PurePosixPath(name).name == stem)
        samples = split.samples
        found.append(
            Example(
                sample=samples.ids[row], media=samples.media[row], group=samples.groups[row],
                quantile=quantile, mse=error,
                predicted=physical(prediction[row]), true=physical(split.targets[row]), pictures=pictures,
            )
        )  # fmt: skip
    return tuple(found)


def regression_result(outcome: RegressionOutcome, facts: RunFacts) -> EvalResult:
    """The record of a regression run: MSE and R2 with intervals per split, dimension and group, controls, examples.

    Physical units come from `facts.dataset.units`; pictures of the examples from `facts.files`.

    Raises:
        LaryError: a split is empty or predictions aren't finite.
    """
    first = headline(outcome.splits["seen"].selections)
    found: dict[SelectionName, dict[str, Metric]] = {}
    controls: dict[str, dict[str, Metric]] = {}
    dimensions: list[DimensionRow] = []
    groups: list[GroupRow] = []
    for role, split in outcome.splits.items():
        for name, chosen in split.selections.items():
            _check(chosen.values, f"predictions on the {role} split")
            overall, per_dimension = _error_metrics(role, chosen.values, split, facts.seed)
            found.setdefault(name, {}).update(overall)
            if name == first:
                dimensions += _dimension_rows(
                    role, split, chosen.values, per_dimension, outcome.dims, facts.dataset.units
                )
                groups += _group_rows(role, split, chosen.values, outcome.groups, facts.seed)
        for control, values in split.controls.items():
            controls.setdefault(control, {}).update(_error_metrics(role, values, split, facts.seed)[0])
    seen = outcome.splits["seen"]
    ours = seen.selections[first].values
    return EvalResult(
        **dict(facts),
        task="regression",
        headline=first,
        primary="seen_mse",
        selections={
            name: Selection(
                epoch=seen.selections[name].epoch,
                loss={role: float(split.loss[name]) for role, split in outcome.splits.items() if name in split.loss},
                metrics=values,
            )
            for name, values in found.items()
        },
        controls={
            name: Control(metrics=values, gain=_error_gain(seen, ours, seen.controls[name], facts.seed))
            for name, values in controls.items()
            if name in seen.controls
        },
        interval=interval_note(len(set(seen.samples.groups)), len(seen.targets)),
        dimensions=tuple(dimensions),
        dimension_groups=tuple(groups),
        examples=_examples(seen, first, facts.files),
        history=_history(outcome.history),
        warnings=outcome.warnings,
    )
