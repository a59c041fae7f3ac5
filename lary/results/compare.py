"""Paired comparison of finished runs on the samples that they share.

The first run is held against each of the others. Clusters (episodes, videos) are drawn for both runs at once, the
seeds of each run add their own spread; p values come from the same resamples and are corrected by Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.results import statistics as stats
from lary.results.measure import metric, seed_sums
from lary.results.predictions import Scores, read_scores
from lary.results.record import FILE_NAME, EvalResult, Metric, read_result
from lary.results.scores import ratio
from lary.types import LaryError, UsageError, as_path

RESAMPLES = 10_000
"""More than for an interval, since a p value looks at the tail."""


@dataclass(frozen=True)
class Run:
    """A finished run and the scores of its samples on one split."""

    folder: Path
    result: EvalResult
    scores: Scores


@dataclass(frozen=True)
class Difference:
    """The first run against another: its metric minus the other's, on `samples` samples of `groups` clusters.

    ``p`` is two-sided and corrected for all comparisons; None with too few clusters.
    """

    other: Run
    samples: int
    groups: int
    gain: Metric
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """One run against the others, on the split of a role."""

    first: Run
    role: str
    differences: tuple[Difference, ...]

    def text(self) -> str:
        """The comparison as lines for a terminal."""
        first = self.first.result
        better = "higher" if first.score.higher_is_better else "lower"
        lines = [
            f"{first.dataset.name}, {self.role} split: {_name(self.first)} {first.primary} {_mean(self.first)} against "
            f"({better} is better; positive: the first is larger)"
        ]
        for each in self.differences:
            p = "p unknown" if each.p is None else f"p {each.p:.3g}" + (
                f" (Holm, {len(self.differences)} comparisons)" if len(self.differences) > 1 else ""
            )  # fmt: skip
            lines.append(
                f"  {_name(each.other)} {_mean(each.other)}: difference {each.gain.text()}, {p}, "
                f"{each.samples} samples of {each.groups} episodes or videos"
            )
        return "\n".join(lines)


def _name(run: Run) -> str:
    result = run.result
    return f"{result.label} [{result.protocol}, {result.preset}]"


def _mean(run: Run) -> str:
    scale, digits = (100, 1) if run.result.score.unit == "fraction" else (1, 3)
    return f"{scale * run.scores.scores.mean(dtype=np.float64):.{digits}f}"


def open_run(place: str | Path, role: str = "seen") -> Run:
    """A finished run from its folder or its ``result.json``. Raises UsageError or LaryError if a file is missing."""
    path = as_path(place)
    folder = path.parent if path.name == FILE_NAME else path
    if not (folder / FILE_NAME).exists():
        raise UsageError(f"{folder} holds no {FILE_NAME}: name the folder of a finished run, below $LARY_LOG_DIR.")
    return Run(folder, read_result(folder / FILE_NAME), read_scores(folder, role))


def compare(places: Sequence[str | Path], role: str = "seen", seed: int = 0) -> Comparison:
    """Hold the first run against each of the others.

    Raises:
        UsageError: fewer than two runs, or runs of different data sets, targets or metrics.
        LaryError: a file is missing, or two runs share no sample.
    """
    if len(places) < 2:
        raise UsageError("A comparison needs at least two results.")
    first, *others = (open_run(place, role) for place in places)
    return compare_runs(first, others, role, seed)


def compare_runs(first: Run, others: Sequence[Run], role: str = "seen", seed: int = 0) -> Comparison:
    """Hold a run against others that were read already. Raises as `compare`."""
    for other in others:
        check_alike(first, other)
    found = [difference(first, other, seed) for other in others]
    known = [each.p for each in found if each.p is not None]
    corrected = iter(stats.holm(known))
    return Comparison(
        first,
        role,
        tuple(
            Difference(each.other, each.samples, each.groups, each.gain, None if each.p is None else next(corrected))
            for each in found
        ),
    )


def check_alike(first: Run, other: Run) -> None:
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


def difference(first: Run, other: Run, seed: int) -> Difference:
    """One comparison with its own, uncorrected p value. Raises LaryError if the runs share no sample."""
    ours, theirs = shared(first.scores, other.scores)
    if not len(ours):
        raise LaryError(f"{first.folder} and {other.folder} share no sample: they were scored on different tables.")
    groups = [first.scores.groups[row] for row in ours]
    clusters = stats.cluster_index(groups, seed)
    parts = [(1.0, _sums(first.scores, ours, clusters)), (-1.0, _sums(other.scores, theirs, clusters))]
    score, count = first.result.score, parts[0][1].shape[-2]
    found = stats.spread_of(parts, ratio, seed=seed, resamples=RESAMPLES)
    known = count >= stats.MIN_CLUSTERS
    interval = stats.interval_of(found) if known else stats.Interval(found.value, None, None)
    p = stats.p_value(found) if known else None
    gain = metric(interval, 0, score.unit, higher=score.higher_is_better)
    return Difference(other, len(ours), len(set(groups)), gain, p)


def shared(one: Scores, two: Scores) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of the samples that both have, in the order of the first; a repeated sample counts once."""
    places = {name: position for position, name in reversed(list(enumerate(two.ids)))}
    own = {name: position for position, name in reversed(list(enumerate(one.ids))) if name in places}
    names = sorted(own, key=own.__getitem__)
    return (
        np.array([own[name] for name in names], dtype=np.int64),
        np.array([places[name] for name in names], dtype=np.int64),
    )


def _sums(scores: Scores, rows: npt.NDArray[np.int64], clusters: stats.Ints) -> stats.Array:
    """Score and count per cluster, (S, G, 2) or (G, 2)."""
    return seed_sums([np.stack([own[rows], np.ones(len(rows))], axis=1) for own in scores.scores], clusters)
