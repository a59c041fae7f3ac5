"""Finished runs together: a paired comparison on the samples that they share, and tables for notebooks.

In a comparison the first run is compared with each of the others. Clusters (episodes, videos) are drawn for both runs
at once, the seeds of each run add their own spread; p values come from the same resamples and are corrected by Holm
(1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.results import statistics as stats
from lary.results.folder import run_file
from lary.results.measure import metric, seed_sums
from lary.results.published import SampleScores, read_scores
from lary.results.record import FILE_NAME, EvalResult, Metric, read_result
from lary.results.report import find_results
from lary.results.scores import ratio
from lary.types import LaryError, UsageError, as_path

if TYPE_CHECKING:
    from pandas import DataFrame

RESAMPLES = 10_000
"""More than for an interval, since a p value depends on the tail."""


@dataclass(frozen=True)
class ScoredRun:
    """A finished run and the scores of its samples on one split."""

    folder: Path
    result: EvalResult
    scores: SampleScores

    @property
    def name(self) -> str:
        """The run and its settings."""
        return f"{self.result.label} [{self.result.protocol}, {self.result.preset}]"

    @property
    def mean(self) -> str:
        """The mean score as it is printed."""
        score = self.result.score
        return f"{score.scale * self.scores.scores.mean(dtype=np.float64):.{score.digits}f}"


@dataclass(frozen=True)
class Difference:
    """The first run against another: its metric minus the other's, on `samples` samples of `groups` clusters.

    ``p`` is two-sided and corrected for all comparisons; None with too few clusters.
    """

    other: ScoredRun
    samples: int
    groups: int
    gain: Metric
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """One run against the others, on the split of a role."""

    first: ScoredRun
    role: str
    differences: tuple[Difference, ...]

    def text(self) -> str:
        """The comparison as lines for a terminal."""
        first = self.first.result
        better = "higher" if first.score.higher_is_better else "lower"
        lines = [
            f"{first.dataset.name}, {self.role} split: {self.first.name} {first.primary} {self.first.mean} against "
            f"({better} is better; positive: the first is larger)"
        ]
        several = f" (Holm, {len(self.differences)} comparisons)" if len(self.differences) > 1 else ""
        for each in self.differences:
            p = "p unknown" if each.p is None else f"p {each.p:.3g}{several}"
            lines.append(
                f"  {each.other.name} {each.other.mean}: difference {each.gain.text()}, {p}, "
                f"{each.samples} samples of {each.groups} episodes or videos"
            )
        return "\n".join(lines)


def open_scored(place: str | Path, role: str = "seen") -> ScoredRun:
    """A finished run from its folder or its ``result.json``. Raises UsageError or LaryError if a file is missing."""
    path = as_path(place)
    folder = path.parent if path.name == FILE_NAME else path
    if not (folder / FILE_NAME).exists():
        raise UsageError(f"{folder} holds no {FILE_NAME}: name the folder of a finished run, below $LARY_LOG_DIR.")
    result = read_result(folder / FILE_NAME)
    return ScoredRun(folder, result, read_scores(folder, result, role))


def compare_results(places: Sequence[str | Path], role: str = "seen", seed: int = 0) -> Comparison:
    """Compare the first run with each of the others.

    Raises:
        UsageError: fewer than two runs, or runs of different data sets, targets or metrics.
        LaryError: a file is missing, or two runs share no sample.
    """
    if len(places) < 2:
        raise UsageError("A comparison needs at least two results.")
    first, *others = (open_scored(place, role) for place in places)
    return compare_runs(first, others, role, seed)


def compare_runs(first: ScoredRun, others: Sequence[ScoredRun], role: str = "seen", seed: int = 0) -> Comparison:
    """Compare a run with others that were read already. Raises as `compare_results`."""
    for other in others:
        check_alike(first, other)
    found = [difference(first, other, seed) for other in others]
    corrected = iter(stats.holm([each.p for each in found if each.p is not None]))
    return Comparison(
        first, role, tuple(each if each.p is None else replace(each, p=next(corrected)) for each in found)
    )


def check_alike(first: ScoredRun, other: ScoredRun) -> None:
    """Refuse runs whose scores mean different things. Raises UsageError."""
    one, two = first.result, other.result
    pairs = (
        ("data set", one.dataset.name, two.dataset.name),
        ("choice of splits", one.dataset.split_set or "published", two.dataset.split_set or "published"),
        ("metric", one.primary, two.primary),
        ("target", one.action_mode, two.action_mode),
        ("frame of motion", one.relative_frame, two.relative_frame),
    )
    for what, own, theirs in pairs:
        if own != theirs:
            raise UsageError(
                f"{first.folder} and {other.folder} can't be compared: their {what} is {own} and {theirs}."
            )


def difference(first: ScoredRun, other: ScoredRun, seed: int) -> Difference:
    """One comparison with its own, uncorrected p value. Raises LaryError if the runs share no sample."""
    rows = [{name: row for row, name in reversed(list(enumerate(run.scores.ids)))} for run in (first, other)]
    shared = sorted(rows[0].keys() & rows[1].keys(), key=rows[0].__getitem__)  # a repeated sample counts once
    if not shared:
        raise LaryError(f"{first.folder} and {other.folder} share no sample: they were scored on different tables.")
    groups = [first.scores.groups[rows[0][name]] for name in shared]
    clusters = stats.cluster_index(groups, seed)
    parts = []
    for weight, run, own in zip((1.0, -1.0), (first, other), rows, strict=True):
        chosen = run.scores.scores[:, [own[name] for name in shared]]
        parts.append((weight, seed_sums((np.stack([each, np.ones(len(each))], axis=1) for each in chosen), clusters)))
    score, known = first.result.score, parts[0][1].shape[-2] >= stats.MIN_CLUSTERS
    found = stats.spread_of(parts, ratio, seed=seed, resamples=RESAMPLES)
    interval = stats.interval_of(found) if known else stats.Interval(found.value, None, None)
    gain = metric(interval, 0, score.unit, higher=score.higher_is_better)
    return Difference(other, len(shared), len(set(groups)), gain, stats.p_value(found) if known else None)


# --- tables for notebooks ---


def load_results(folder: str | Path) -> DataFrame:
    """One row per run below a folder and way of choosing head and epoch.

    Each metric has three columns: its value, and with ``_low`` and ``_high`` the ends of its 95 % interval; a metric
    that a run doesn't have is NaN. Files that can't be read are left out with a warning.

    Raises:
        UsageError: there is no such folder.
    """
    from pandas import DataFrame

    rows = []
    for entry in find_results(as_path(folder))[0]:
        result = entry.result
        for name, selection in result.selections.items():
            row: dict[str, Any] = {
                "folder": str(entry.path.parent), "task": result.task, "dataset": result.dataset.name,
                "split_set": result.dataset.split_set, "model": result.model.name, "label": result.label,
                "paradigm": result.model.paradigm, "probe": result.probe, "action_mode": result.action_mode,
                "relative_frame": result.relative_frame, "protocol": result.protocol, "preset": result.preset,
                "control": result.control, "project": result.project, "seeds": result.seeds or (result.seed,),
                "status": result.status, "selection": name, "headline": name == result.headline,
                "primary": result.primary, "epoch": selection.epoch, "head": selection.head,
            }  # fmt: skip
            for key, found in selection.metrics.items():
                row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
            rows.append(row)
    return DataFrame(rows)


def load_samples(run: str | Path) -> DataFrame:
    """One row per evaluated sample of a run, which is named by its folder or its ``result.json``.

    ``score`` is the mean over the seeds, whose own scores are in ``score_<seed>``: 1 for a right and 0 for a wrong
    answer, or the normalised squared error. A classification also has ``media``, ``predicted`` and ``true``.

    Raises:
        UsageError: there is no such run.
        LaryError: a file of the run is missing or another one than it wrote.
    """
    from pandas import DataFrame, concat

    tables = []
    for role in ("seen", "unseen"):
        try:
            found = open_scored(as_path(run), role)
        except LaryError:
            if role == "seen":
                raise
            continue
        result, scores = found.result, found.scores
        values = {"score": scores.scores.mean(axis=0, dtype=np.float64)}
        values |= {f"score_{seed}": own for seed, own in zip(result.seeds, scores.scores, strict=True)}
        columns: dict[str, Any] = {"split": role, "sample": scores.ids, "group": scores.groups, **values}
        if result.task == "classification":
            lines = run_file(found.folder, result, "case.txt").read_text(encoding="utf-8").splitlines()
            parts = zip(*(line.rsplit("\t", 2) for line in lines), strict=True)
            columns |= dict(zip(("media", "predicted", "true"), parts, strict=True))
        tables.append(DataFrame(columns))
    return concat(tables, ignore_index=True)
