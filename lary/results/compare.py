"""Finished runs together: paired comparisons on shared samples, and tables for notebooks.

The first run is compared with each of the others. Clusters (episodes, videos)
are paired, the seeds of each run add their spread; p values are corrected by
Holm (1979).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lary.results import statistics as stats
from lary.results.folder import AGAIN, FinishedRun, choice_of, find_results, finished_run
from lary.results.published import SampleScores, read_arrays
from lary.results.record import Metric, number
from lary.results.summarise import metric
from lary.types import JsonDict, LaryError, UsageError, as_path

if TYPE_CHECKING:
    from pandas import DataFrame

FACTS = (
    "task",
    "label",
    "probe",
    "action_mode",
    "relative_frame",
    "protocol",
    "preset",
    "control",
    "project",
    "status",
    "primary",
)
"""Fields of a result that are columns of a table of runs."""


@dataclass(frozen=True)
class ScoredRun(FinishedRun):
    """A finished run and the scores of its samples on one split."""

    scores: SampleScores = field(kw_only=True)

    @property
    def text(self) -> str:
        result = self.result
        mean = self.scores.scores.mean(dtype=np.float64)
        return f"{result.label} [{result.protocol}, {result.preset}] {number(mean, result.score.unit)}"


@dataclass(frozen=True)
class Difference:
    """The first run's metric minus another's, on `samples` samples of `groups` clusters.

    ``p`` is two-sided and corrected (Holm 1979); None with too few clusters, for runs of
    different kinds, or where one of both is a `single` training.
    """

    other: ScoredRun
    samples: int
    groups: int
    gain: Metric
    p: float | None
    single: bool


@dataclass(frozen=True)
class Comparison:
    """One run against the others, on the split of a role."""

    first: ScoredRun
    role: str
    differences: tuple[Difference, ...]

    def text(self) -> str:
        first = self.first.result
        lines = [
            f"{first.dataset.name}, {self.role} split, {first.primary}: {self.first.text} against "
            f"({first.score.better} is better; positive: the first is larger)"
        ]
        count = sum(each.p is not None for each in self.differences)
        several = f" (Holm, {count} comparisons)" if count > 1 else ""
        for each in self.differences:
            p = "p unknown" if each.p is None else f"p {each.p:.3g}{several}"
            p = "for these trainings alone, no p value with a single seed" if each.single else p
            if first.kind != each.other.result.kind:
                p = f"no p: the kinds differ ({first.kind}; {each.other.result.kind}), so it ranks no representation"
            lines.append(
                f"  {each.other.text}: difference {each.gain.text()}, {p}, "
                f"{each.samples} samples of {each.groups} {first.dataset.unit}"
            )
        return "\n".join(lines)


def open_scored(place: str | Path, role: str = "seen") -> ScoredRun:
    """A finished run and its scores. Raises UsageError, LaryError for a missing file."""
    run = finished_run(as_path(place))
    return ScoredRun(run.folder, run.result, scores=read_arrays(SampleScores, run, role))


def compare(*runs: str | Path, role: Literal["seen", "unseen"] = "seen", seed: int = 0) -> Comparison:
    """Compare the first finished run with each other, on the shared samples of the split `role`.

    Runs are folders or result.json files; `seed` bundles many clusters. Raises UsageError for
    fewer than two runs or other kinds of scores, LaryError for a missing file or no shared sample.
    """
    if len(runs) < 2:
        raise UsageError("A comparison needs at least two results.")
    first, *others = (open_scored(place, role) for place in runs)
    for other in others:
        _check_alike(first, other)
    found = [paired_difference(first, other, seed) for other in others]
    corrected = iter(stats.holm([each.p for each in found if each.p is not None]))
    rows = (each if each.p is None else replace(each, p=next(corrected)) for each in found)
    return Comparison(first, role, tuple(rows))


def _check_alike(first: FinishedRun, other: FinishedRun) -> None:
    sides = (
        {
            "data set": each.dataset.name,
            "choice of splits": each.dataset.split_set or "published",
            "number of folds": each.folds,
            "metric": each.primary,
            "target": each.action_mode,
            "frame of motion": each.relative_frame,
            "epoch": choice_of(each),
        }.items()
        for each in (first.result, other.result)
    )
    for (what, own), (_, theirs) in zip(*sides, strict=True):
        if own != theirs:
            both = f"{first.folder} and {other.folder}"
            raise UsageError(f"{both} can't be compared: their {what} is {own} and {theirs}.")


def paired_difference(first: ScoredRun, other: ScoredRun, seed: int = 0) -> Difference:
    """One comparison, with p uncorrected. Raises LaryError if the runs share no sample."""
    names, rows, theirs = np.intersect1d(first.scores.ids, other.scores.ids, return_indices=True)
    if not len(names):
        raise LaryError(f"{first.folder} and {other.folder} share no sample: they were scored on different tables.")
    order = np.argsort(rows)  # a repeated sample counts once
    groups = np.array(first.scores.groups)[rows[order]]
    clusters = stats.cluster_index(groups.tolist(), seed)
    sides = (1.0, first.scores.scores[:, rows[order]]), (-1.0, other.scores.scores[:, theirs[order]])
    parts = [(weight, stats.mean_sums(scores, clusters)) for weight, scores in sides]
    unit = first.result.score.unit
    kind = stats.fraction if unit == "fraction" else stats.magnitude
    gain = metric(stats.spread_of(parts, kind).interval(), 0, unit)
    single = any(len(sums) < 2 for _, sums in parts)
    p = np.nan if single or first.result.kind != other.result.kind else stats.p_value(parts)
    return Difference(other, len(names), len(set(groups)), gain, None if np.isnan(p) else p, single)


# --- tables for notebooks ---


def load_results(folder: str | Path) -> DataFrame:
    """One row per run below a folder and way of choosing head and epoch.

    A metric has its value and with ``_low`` and ``_high`` the ends of its 95 % interval, NaN
    where a run lacks it. Unreadable files are left out. Raises UsageError without the folder.
    """
    from pandas import DataFrame

    rows = []
    for run in find_results(as_path(folder))[0]:
        result = run.result
        facts: JsonDict = {
            "folder": str(run.folder),
            "dataset": result.dataset.name,
            "split_set": result.dataset.split_set,
            "model": result.model.name,
            "paradigm": result.model.paradigm,
            **{name: getattr(result, name) for name in FACTS},
            "seeds": result.seeds or (result.seed,),
        }
        for name, selection in result.selections.items():
            row = facts | {
                "selection": name,
                "headline": name == result.headline,
                "epoch": selection.epoch,
                "head": selection.head,
            }
            for key, found in selection.metrics.items():
                row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
            rows.append(row)
    return DataFrame(rows)


def load_samples(run: str | Path) -> DataFrame:
    """One row per evaluated sample of a run, named by its folder or ``result.json``.

    ``score`` is the mean over the seeds' ``score_<seed>``: 1 for right, 0 for wrong, or the
    normalised squared error. A classification also has ``media``, ``predicted`` and ``true``.
    Raises UsageError without such a run, LaryError for a missing or foreign file.
    """
    from pandas import DataFrame, concat

    tables = []
    for role in ("seen", "unseen"):
        try:
            found = open_scored(run, role)
        except LaryError:
            if role == "seen":
                raise
            continue
        result, scores = found.result, found.scores
        columns: JsonDict = {"split": role, "sample": scores.ids, "group": scores.groups}
        columns["score"] = scores.scores.mean(axis=0, dtype=np.float64)
        try:
            columns |= {f"score_{seed}": own for seed, own in zip(result.seeds, scores.scores, strict=True)}
            if result.task == "classification":
                lines = found.file("case.txt").read_text(encoding="utf-8").splitlines()
                parts = zip(*(line.rsplit("\t", 2) for line in lines), strict=True)
                columns |= dict(zip(("media", "predicted", "true"), parts, strict=True))
            tables.append(DataFrame(columns))
        except (OSError, ValueError) as error:
            raise LaryError(f"{run}: its files differ: {error}. {AGAIN}") from error
    return concat(tables, ignore_index=True)
