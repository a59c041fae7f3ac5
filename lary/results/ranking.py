"""Rows of a leaderboard, and which are not told apart from the best."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lary.results import statistics as stats
from lary.results.compare import ScoredRun, paired_difference
from lary.results.folder import FinishedRun, choice_of
from lary.results.published import SampleScores, read_arrays
from lary.results.record import Metric
from lary.results.summarise import metric
from lary.types import LaryError

READINGS = {"even": "not told apart", "better": "worse", "worse": "better on the shared samples"}
"""What a difference of the best says of the other row."""


@dataclass
class Row:
    """A row and its relation to the best (`reading`, `p`)."""

    label: str
    kind: str
    metrics: dict[str, Metric]
    runs: Sequence[FinishedRun] = ()
    scored: ScoredRun | None = None
    rank: int | None = None
    reading: str = ""
    p: float | None = None


def pooled_rows(runs: Iterable[FinishedRun]) -> list[Row]:
    """The rows of runs; those that differ in a single seed alone share one."""
    found: dict[Any, list[FinishedRun]] = {}
    copies: Counter[Any] = Counter()
    for run in runs:
        result = run.result
        seeds = result.seeds or (result.seed,)
        options = {**result.options, "seed": None}
        inputs = [own for own in result.inputs if own.name != "options"]
        same = repr((result.label, result.model, result.dataset, inputs, options))
        copies[same, seeds] += 1
        found.setdefault((same, len(seeds) > 1 and seeds, copies[same, seeds]), []).append(run)
    rows = list(map(_pooled, found.values()))
    names = Counter(row.label for row in rows)
    for row in rows:
        if names[row.label] > 1:
            row.label += f" [{'/'.join(row.runs[0].folder.parts[-2:])}]"
    return rows


def _pooled(runs: Sequence[FinishedRun]) -> Row:
    first = runs[0].result
    unit = runs[0].result.score.unit
    scored = None
    tables = [run.result.selections[run.result.headline].metrics for run in runs]
    metrics = dict(tables[0])
    with suppress(LaryError, ValueError):
        found = [read_arrays(SampleScores, run) for run in runs]
        scores = replace(found[0], scores=np.concatenate([own.scores for own in found]))
        alike = all(own.ids == scores.ids for own in found) and len(scores.ids) == len(scores.groups)
        if alike and scores.scores.shape[1:] == (len(scores.ids),) and np.isfinite(scores.scores).all():
            scored = ScoredRun(runs[0].folder, first, scores=scores)
    if len(runs) > 1:
        for name, own in metrics.items():
            mean = float(np.mean([table[name].value for table in tables if name in table]))
            without = {"value": mean, "low": None, "high": None, "no_interval": "pooled from several runs"}
            metrics[name] = own.model_copy(update=without)
        if scored:
            sums = stats.mean_sums(scored.scores.scores, stats.cluster_index(scored.scores.groups))
            kind = stats.fraction if unit == "fraction" else stats.magnitude
            metrics[first.primary] = metric(stats.intervals(sums, kind), 0, unit)
    usual = "baseline" if first.model.paradigm == "baseline" else "model"
    return Row(first.label, "control" if first.is_control else usual, metrics, runs, scored)


def ranked(rows: Iterable[Row], primary: str) -> list[Row]:
    """The rows, best first, with ranks of models and baselines: one more than there are better ones.

    The best is chosen from the numbers that it is compared by, so p is corrected
    by Holm (1979) for all pairs of tested rows; those without it count as p = 1.
    """
    order = sorted(rows, key=lambda row: row.metrics[primary].rank)
    own = [row for row in order if row.kind in ("model", "baseline")]
    for row in own:
        row.rank = 1 + sum(each.metrics[primary].rank < row.metrics[primary].rank for each in own)
        row.reading = _compared(own[0], row)
    tested = [row for row in own if row.p is not None]
    known = [row.p for row in own if row.p is not None]
    others = [1.0] * (len(known) * (len(known) - 1) // 2)
    for row, row.p in zip(tested, stats.holm([*known, *others]), strict=False):
        row.reading = READINGS["even"] if row.p >= 0.05 else row.reading
    return order


def _compared(best: Row, row: Row) -> str:
    """The reading of a row, whose uncorrected p is set."""
    if row is best:
        return "best"
    if best.scored is None or row.scored is None:
        return "no test: no scores of samples"
    if choice_of(best.scored.result) != choice_of(row.scored.result):
        return "no test: another choice of the epoch"
    try:
        found = paired_difference(best.scored, row.scored)
    except LaryError:
        return "no test: no shared samples"
    row.p = found.p
    if found.p is None:
        return f"no test: {found.gain.no_interval or 'a single seed'}"
    return READINGS[found.gain.reading(found.p)]
