"""From what probes hand on to the record of a run: metrics, intervals, controls, tables.

Several probes that differ in their seed alone make one record: its metrics are means over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from lary.data.spec import Orientation
from lary.probes import outcome as metrics
from lary.probes.outcome import ClassificationOutcome, Floats, RegressionOutcome, SelectionName, SplitOutcome
from lary.results import measure, scores
from lary.results import statistics as stats
from lary.results.measure import check_finite, headline, interval_note, means, metric, seed_sums
from lary.results.record import (
    ClassRow,
    Control,
    EvalResult,
    Example,
    Metric,
    RunFacts,
    SeedRow,
    Selection,
)

EXAMPLE_QUANTILES = (0.1, 0.5, 0.9)
"""Ranks of the errors whose chunks are shown: a good one, the median, a bad one."""

TOP_K = 5


# --- classification ---


def _accuracy(correct: Sequence[npt.NDArray[np.bool_]], clusters: scores.Ints) -> Metric:
    columns = [np.stack([own, np.ones_like(own)], axis=1) for own in correct]
    hits, trials = np.split(seed_sums(columns, clusters), 2, axis=-1)
    return metric(stats.fraction_interval(hits, trials), 0, "fraction")


def _class_metrics(
    labels: scores.Ints, predicted: Sequence[scores.Ints], classes: int, clusters: scores.Ints, seed: int
) -> dict[str, Metric]:
    sums = [scores.class_sums(labels, own, classes, clusters) for own in predicted]
    macro = stats.bootstrap(np.stack(sums), scores.macro_scores, seed=seed)
    return {
        "top1": _accuracy([labels == own for own in predicted], clusters),
        "macro_recall": metric(macro, 0, "fraction"),
        "macro_f1": metric(macro, 1, "fraction"),
    }


def _score_metrics(
    labels: scores.Ints, logits: Sequence[Floats], clusters: scores.Ints, seed: int
) -> dict[str, Metric]:
    count = logits[0].shape[1]
    found = _class_metrics(labels, [own.argmax(axis=1) for own in logits], count, clusters, seed)
    if count > TOP_K:
        found[f"top{TOP_K}"] = _accuracy([_in_top(labels, own) for own in logits], clusters)
    return found


def _plain_metrics(labels: scores.Ints, logits: Floats) -> dict[str, float]:
    """The metrics of one probe without intervals."""
    count, predicted = logits.shape[1], logits.argmax(axis=1)
    totals = scores.class_sums(labels, predicted, count, np.zeros_like(labels))
    recall, f1 = scores.macro_scores(totals)[0]
    found = {"top1": metrics.accuracy(labels, predicted), "macro_recall": float(recall), "macro_f1": float(f1)}
    return found | ({f"top{TOP_K}": float(np.mean(_in_top(labels, logits)))} if count > TOP_K else {})


def _in_top(labels: scores.Ints, logits: Floats) -> npt.NDArray[np.bool_]:
    """Whether the class of each sample is among the `TOP_K` highest scores; equal scores count in class order."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K]
    found: npt.NDArray[np.bool_] = (best == labels[:, None]).any(axis=1)
    return found


def _class_rows(
    outcome: ClassificationOutcome, predicted: scores.Ints, clusters: scores.Ints, matrix: scores.Ints
) -> tuple[ClassRow, ...]:
    count = len(outcome.classes)
    table = metrics.class_statistics(matrix)
    sums = scores.class_sums(outcome.labels, predicted, count, clusters)
    recall = stats.fraction_interval(sums[:, :count], sums[:, count : 2 * count])
    true = matrix.sum(axis=0)
    return tuple(
        ClassRow(
            name=name,
            train=int(outcome.train_counts[index]),
            true=int(true[index]),
            predicted=int(matrix[index].sum()),
            precision=float(table.precision[index]),
            recall=metric(recall, index, "fraction") if true[index] else None,
            f1=float(table.f1[index]),
        )
        for index, name in enumerate(outcome.classes)
    )


def classification_result(
    outcome: ClassificationOutcome, facts: RunFacts, others: Sequence[ClassificationOutcome] = ()
) -> EvalResult:
    """The record of a classification run: Top-1, mean recall, macro F1 and Top-5 with intervals, controls, class table.

    `others` are probes with the further seeds of `facts`, on the same samples.

    Raises:
        LaryError: the split is empty or scores aren't finite.
    """
    runs = (outcome, *others)
    labels, count, seed = outcome.labels, len(outcome.classes), facts.seed
    groups = outcome.samples.groups
    clusters = stats.cluster_index(groups, seed)
    selections: dict[SelectionName, Selection] = {}
    for name, chosen in outcome.selections.items():
        logits = [run.selections[name].logits for run in runs]
        for own in logits:
            check_finite(own, "scores of the probe")
        found = _score_metrics(labels, logits, clusters, seed)
        selections[name] = Selection(epoch=chosen.epoch, head=chosen.head, metrics=found)
    first = headline(outcome.selections)
    predicted = [run.selections[first].logits.argmax(axis=1) for run in runs]
    matrix = metrics.confusion_matrix(labels, predicted[0], count)
    controls: dict[str, Control] = {}
    for control in outcome.controls:
        guesses = [run.controls[control] for run in runs]
        gains = [
            ((own == labels).astype(np.float64) - (guess == labels))[:, None]
            for own, guess in zip(predicted, guesses, strict=True)
        ]
        controls[control] = Control(
            metrics=_class_metrics(labels, guesses, count, clusters, seed),
            gain=metric(means(gains, groups, seed), 0, "fraction"),
        )
    per_seed = [
        SeedRow(
            seed=number, epoch=run.selections[first].epoch, head=run.selections[first].head,
            metrics=_plain_metrics(labels, run.selections[first].logits),
        )
        for number, run in zip(facts.seeds, runs, strict=False)
    ]  # fmt: skip
    return _finished(
        runs,
        facts,
        groups,
        task="classification",
        headline=first,
        primary="top1",
        selections=selections,
        controls=controls,
        classes=_class_rows(outcome, predicted[0], clusters, matrix),
        confusion=tuple(tuple(row) for row in matrix.tolist()),
        per_seed=tuple(per_seed) if others else (),
    )


# --- regression ---


def _error_gain(split: SplitOutcome, ours: Sequence[Floats], theirs: Sequence[Floats], seed: int) -> Metric:
    """MSE of the run minus that of a control, paired by sample: negative where the run is better."""
    pairs = zip(measure.squared(split, ours), measure.squared(split, theirs), strict=True)
    gains = [(own - other).mean(axis=1)[:, None] for own, other in pairs]
    return metric(means(gains, split.samples.groups, seed), 0, "normalised", higher=False)


def example_rows(split: SplitOutcome, selection: SelectionName) -> list[tuple[int, float, float]]:
    """Rows to show as (row, quantile, error): the samples at `EXAMPLE_QUANTILES` of the error, ties by row."""
    error = ((split.selections[selection].values - split.targets) ** 2).mean(axis=(1, 2))
    order = np.argsort(error, kind="stable")
    ranks = [(round(quantile * (len(order) - 1)), quantile) for quantile in EXAMPLE_QUANTILES]
    rows = {int(order[rank]): quantile for rank, quantile in ranks}
    return [(row, quantile, float(error[row])) for row, quantile in rows.items()]


def _examples(split: SplitOutcome, selection: SelectionName, files: Iterable[str]) -> tuple[Example, ...]:
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


def regression_result(
    outcome: RegressionOutcome,
    facts: RunFacts,
    others: Sequence[RegressionOutcome] = (),
    orientations: Sequence[Orientation] = (),
) -> EvalResult:
    """The record of a regression run: MSE and R2 with intervals per split, dimension, group, robot type and
    orientation, controls, examples.

    Physical units come from `facts.dataset.units`; pictures of the examples from `facts.files`. `others` are probes
    with the further seeds of `facts`, on the same samples. `orientations` are for absolute actions: the difference of
    two orientations' values is none.

    Raises:
        LaryError: a split is empty or predictions aren't finite.
    """
    runs = (outcome, *others)
    seed, units = facts.seed, facts.dataset.units
    first = headline(outcome.splits["seen"].selections)
    found: dict[SelectionName, dict[str, Metric]] = {}
    controls: dict[str, dict[str, Metric]] = {}
    tables: dict[str, list[Any]] = {"dimensions": [], "dimension_groups": [], "robots": [], "orientations": []}
    for role, split in outcome.splits.items():
        for name in split.selections:
            values = [run.splits[role].selections[name].values for run in runs]
            for own in values:
                check_finite(own, f"predictions on the {role} split")
            interval = measure.error_interval(split, values, seed)
            found.setdefault(name, {}).update(measure.overall(role, split, interval))
            if name == first:
                asked = (role, split, values)
                tables["dimensions"] += measure.dimension_rows(*asked, interval, outcome.dims, units, seed)
                tables["dimension_groups"] += measure.group_rows(*asked, outcome.groups, units, seed)
                tables["robots"] += measure.robot_rows(*asked, outcome.groups, units, orientations, seed)
                tables["orientations"] += measure.orientation_rows(*asked, orientations, seed)
        for control in split.controls:
            guesses = [run.splits[role].controls[control] for run in runs]
            metrics_of = measure.overall(role, split, measure.error_interval(split, guesses, seed))
            controls.setdefault(control, {}).update(metrics_of)
    per_seed = []
    for number, run in zip(facts.seeds, runs, strict=False):
        plain: dict[str, float] = {}
        for role, split in run.splits.items():
            plain |= measure.plain_errors(role, split, split.selections[first].values)
        per_seed.append(SeedRow(seed=number, epoch=run.splits["seen"].selections[first].epoch, metrics=plain))
    seen = outcome.splits["seen"]
    ours = [run.splits["seen"].selections[first].values for run in runs]
    return _finished(
        runs,
        facts,
        seen.samples.groups,
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
            name: Control(
                metrics=values,
                gain=_error_gain(seen, ours, [run.splits["seen"].controls[name] for run in runs], seed),
            )
            for name, values in controls.items()
            if name in seen.controls
        },
        **{name: tuple(rows) for name, rows in tables.items()},
        per_seed=tuple(per_seed) if others else (),
        examples=_examples(seen, first, facts.files),
    )


def _finished(
    runs: Sequence[ClassificationOutcome | RegressionOutcome], facts: RunFacts, groups: Sequence[str], **parts: Any
) -> EvalResult:
    """The record with what both tasks have: the note on intervals, the history of the first seed, all warnings."""
    history = from_json(to_json(runs[0].history, inf_nan_mode="null", fallback=lambda value: value.item()))
    return EvalResult(
        **dict(facts), **parts,
        interval=interval_note(len(set(groups)), len(groups), len(runs)),
        history=tuple(history),
        warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
    )  # fmt: skip
