"""How often our 95 % intervals hold the truth, by simulation with strong correlation inside unequal clusters.

    python benchmarks/coverage.py [--runs 1000] [--clusters 12 30 300] [--only NAME ...]

Sizes of clusters (episodes, videos) are log-normal with a median of 4.5 samples and a mean of 7, unless a row says
"equal". A row has, for every number of clusters: the coverage in per cent and the upper limit of its own 95 % interval,
"*" where that is below 92 (90 for 12 clusters); the share of runs without an interval, which are misses; the share of
runs in which every sample is right or every one is wrong, which have no interval and are left out; and the median width
over that of the central 95 % of the estimates, "!" above 1.4 (seeds have to be wider: two or three say little of their
spread). A second table has comparisons of runs that do not differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lary.results import statistics as stats

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Generator = np.random.Generator
Draw = Callable[[Generator, int], Array]
"""From a generator and a number of clusters: sums (S, G, M) within clusters."""

SHARES = (0.4, 0.25, 0.15, 0.1, 0.07, 0.03)
"""How frequent each of six classes is."""
NARROW = 1.4
"""Most that the median width is to be of the central 95 % of the estimates."""


def sizes(rng: Generator, clusters: int) -> Integers:
    """Samples of every cluster."""
    return np.maximum(1, np.round(rng.lognormal(1.5, 1.0, clusters))).astype(np.int64)


def counted(values: Any, counts: Any) -> Array:
    """Sums (1, G, 2) of one seed."""
    return np.stack([values, counts], axis=1).astype(np.float64)[None]


def accuracy(chance: float, equal: bool = False) -> Draw:
    """Right and wrong answers, the chance drawn per cluster from a Beta distribution (correlation 1/3)."""

    def draw(rng: Generator, clusters: int) -> Array:
        counts = np.full(clusters, 10) if equal else sizes(rng, clusters)
        return counted(rng.binomial(counts, rng.beta(2 * chance, 2 * (1 - chance), clusters)), counts)

    return draw


def harder(chance: float) -> Draw:
    """The same with a chance that falls with the size of the cluster."""

    def draw(rng: Generator, clusters: int) -> Array:
        size = rng.standard_normal(clusters)
        counts = np.maximum(1, np.round(np.exp(1.5 + size))).astype(np.int64)
        odds = np.log(chance / (1 - chance)) - 0.8 * size + 0.8 * rng.standard_normal(clusters)
        return counted(rng.binomial(counts, 1 / (1 + np.exp(-odds))), counts)

    return draw


def error(sigma: float, slope: float = 0.0) -> Draw:
    """Squared errors: a factor per cluster, log-normal or Pareto (`sigma` 0), times a chi-square per sample.

    The factor grows with the size of the cluster to the power of `slope`.
    """

    def draw(rng: Generator, clusters: int) -> Array:
        counts = sizes(rng, clusters)
        factor = np.exp(sigma * rng.standard_normal(clusters) - sigma**2 / 2)
        factor = factor if sigma else (rng.pareto(3.0, clusters) + 1) / 1.5
        factor = factor * (counts / 4.5) ** slope
        return counted(factor * rng.chisquare(3 * counts) / 3, counts)

    return draw


def regression(rng: Generator, clusters: int) -> Array:
    """Targets and errors of three dimensions and two steps, both shared within clusters; errors have heavy tails."""
    members = np.repeat(np.arange(clusters), sizes(rng, clusters))
    target = 0.9 * rng.standard_normal((clusters, 1, 3))[members] + 0.5 * rng.standard_normal((len(members), 2, 3))
    heavy = np.exp(0.5 * rng.standard_normal((clusters, 1, 1)))
    wrong = (0.5 * rng.standard_normal((clusters, 1, 3)) * heavy)[members] + 0.3 * rng.standard_normal(target.shape)
    return stats.cluster_sums(stats.error_columns(target + wrong, target), members)[None]


def classes(skill: float) -> Draw:
    """Six classes of unequal frequency, the chance of a right answer drawn per cluster."""

    def draw(rng: Generator, clusters: int) -> Array:
        members = np.repeat(np.arange(clusters), sizes(rng, clusters))
        labels = rng.choice(len(SHARES), len(members), p=SHARES)
        right = rng.random(len(members)) < rng.beta(2 * skill, 2 * (1 - skill), clusters)[members]
        other = (labels + rng.integers(1, len(SHARES), len(members))) % len(SHARES)
        return stats.class_sums(labels, np.where(right, labels, other), len(SHARES), members)[None]

    return draw


def seeded(count: int, spread: float) -> Draw:
    """Errors of `count` probes that differ in their seed by `spread`, on samples that share what their cluster adds."""

    def draw(rng: Generator, clusters: int) -> Array:
        counts = sizes(rng, clusters)
        own = rng.normal(2.0, 0.5, clusters) + rng.normal(0, spread, (count, 1))
        own = own + rng.normal(0, 0.5 / np.sqrt(counts), (count, clusters))
        return np.stack([own * counts, np.broadcast_to(counts, own.shape)], axis=2)

    return draw


@dataclass(frozen=True)
class Kind:
    """A simulated metric: its sums, its statistic, and which value of that is looked at."""

    name: str
    draw: Draw
    statistic: stats.Statistic = stats.magnitude
    column: int = 0
    known: float | None = None


@cache
def truth_of(kind: Kind) -> float:
    """The value in a population of a million clusters, unless it is known."""
    if kind.known is not None:
        return kind.known
    rng = np.random.default_rng(0)
    total = sum(kind.draw(rng, 50_000)[0].sum(axis=0) for _ in range(20))
    return float(kind.statistic(np.asarray(total))[kind.column])


KINDS = (
    *(Kind(f"accuracy {chance}, equal sizes", accuracy(chance, True), stats.fraction) for chance in (0.7, 0.95, 0.02)),
    *(Kind(f"accuracy {chance}", accuracy(chance), stats.fraction) for chance in (0.7, 0.95, 0.99)),
    *(Kind(f"accuracy {chance}, large harder", harder(chance), stats.fraction) for chance in (0.7, 0.95)),
    *(Kind(f"error, log-normal {sigma}", error(sigma)) for sigma in (0.5, 1.0, 1.5)),
    Kind("error, Pareto 3", error(0)),
    Kind("error, log-normal 0.5, large harder", error(0.5, 0.3)),
    Kind("regression MSE", regression, stats.error_scores, 3),
    Kind("regression R2", regression, stats.error_scores, 7),
    *(
        Kind(f"macro {name}, skill {skill}", classes(skill), stats.macro_scores, column)
        for skill in (0.95, 0.6)
        for column, name in enumerate(("recall", "F1"))
    ),
    *(
        Kind(f"{count} seeds, spread {spread}", seeded(count, spread), known=2.0)
        for count, spread in ((2, 0.2), (3, 0.02), (3, 0.2))
    ),
)


class Cell(NamedTuple):
    """What one cell of the first table has measured; shares of runs, and a width relative to that of the estimates."""

    coverage: float
    upper: float
    missing: float
    alike: float
    width: float

    def text(self, clusters: int) -> str:
        """The cell in per cent, with its marks."""
        low, wide = "*" if self.upper < bar(clusters) else " ", "!" if self.width > NARROW else " "
        shares = f"{100 * self.coverage:5.1f} ({100 * self.upper:.1f}){low}"
        return f"{shares:13}{100 * self.missing:4.1f}{100 * self.alike:4.0f} {self.width:4.2f}{wide}"


def bar(clusters: int) -> float:
    """The coverage that is wanted."""
    return 0.9 if clusters <= 12 else 0.92


def measured(kind: Kind, clusters: int, runs: int) -> Cell:
    """Draw runs of a kind; those in which all samples are right, or all wrong, are counted apart."""
    values, low, high = np.empty((3, runs))
    for run in range(runs):
        found = stats.intervals(kind.draw(np.random.default_rng([run, clusters]), clusters), kind.statistic)
        values[run], low[run], high[run] = (each[kind.column] for each in (found.value, found.low, found.high))
    truth, missing = truth_of(kind), np.isnan(low)
    alike = missing & np.isin(values, (0, 1)) & (kind.statistic is not stats.magnitude)
    coverage = ((low <= truth) & (truth <= high))[~alike].mean()
    upper = min(coverage + 1.96 * np.sqrt(coverage * (1 - coverage) / (~alike).sum()), 1.0)
    width = np.nanmedian(high - low) / np.ptp(np.quantile(values, (0.025, 0.975)))
    return Cell(coverage, upper, (missing & ~alike).mean(), alike.mean(), width)


def share_below(values: Sequence[float]) -> str:
    """The share of p values below 0.05 in per cent with two standard errors."""
    mean = float(np.mean(np.array(values) < 0.05))
    return f"{100 * mean:.1f} +- {200 * np.sqrt(mean * (1 - mean) / len(values)):.1f}"


def p_values(rng: Generator, clusters: int, kind: str) -> list[float]:
    """p of three runs against a first one, none of which differ; they share the difficulty of their clusters."""
    counts, hard = sizes(rng, clusters), rng.normal(0, 1, clusters)

    def run() -> Array:
        if kind == "accuracy":
            return counted(rng.binomial(counts, 1 / (1 + np.exp(-(hard + rng.normal(0.8, 1, clusters))))), counts)
        if kind == "squared error":
            return counted(np.exp((hard + rng.normal(0, 1, clusters)) / 2) * rng.chisquare(counts), counts)
        own = hard + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 0.5, (3, clusters))
        return np.stack([own * counts, np.broadcast_to(counts, own.shape)], axis=2)

    first = run()
    return [stats.p_value([(1.0, first), (-1.0, run())]) for _ in range(3)]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--clusters", type=int, nargs="*", default=[12, 30, 300])
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the rows' names")
    asked = parser.parse_args()
    started = time.process_time()

    def wanted(name: str) -> bool:
        return not asked.only or name.startswith(tuple(asked.only))

    print(f"95 % intervals in {asked.runs} simulations: coverage (upper limit), none, all alike, relative width")
    print(f"{'clusters':38}" + "".join(f"{clusters:<28}" for clusters in asked.clusters))
    for kind in (each for each in KINDS if wanted(each.name)):
        cells = (measured(kind, clusters, asked.runs).text(clusters) for clusters in asked.clusters)
        print(f"{kind.name:38}" + "".join(f"{each:28}" for each in cells).rstrip(), flush=True)
    print("\nComparisons without any difference: p < 0.05 alone, and any of three after Holm, in per cent")
    for name in filter(wanted, ("accuracy", "squared error", "3 seeds each")):
        cells = []
        for clusters in asked.clusters:
            rows = [p_values(np.random.default_rng([run, clusters]), clusters, name) for run in range(asked.runs)]
            cells += [share_below([row[0] for row in rows]), share_below([min(stats.holm(row)) for row in rows])]
        print(f"{name:38}" + "".join(f"{each:14}" for each in cells).rstrip(), flush=True)
    print(f"Took {time.process_time() - started:.0f} CPU seconds.")


if __name__ == "__main__":
    main()
