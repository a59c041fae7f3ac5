"""How often our 95 % intervals hold the truth, by simulation with strong correlation inside clusters.

    python benchmarks/coverage.py [--runs 2000] [--only NAME ...]

Every row is a kind of metric with 30 or 300 clusters (episodes, videos) of unequal size. Beside our interval stand,
for 30 clusters, the bias-corrected and accelerated percentile interval (BCa) and what an interval over samples, which
takes frames of one episode as independent, would hold. A second table shows how often a paired comparison of two runs
that do not differ has p < 0.05, and how often any of three comparisons has after Holm's correction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lary.results import statistics as stats

Array = npt.NDArray[np.float64]
Generator = np.random.Generator
Draw = Callable[[Generator, int], Array]
"""From a generator and a number of clusters: sums (S, G, M) within clusters."""

CLASSES = 5
FEW, MANY = 30, 300


def sizes(rng: Generator, clusters: int) -> Array:
    """Samples of every cluster: 5 to 40."""
    return rng.integers(5, 41, clusters).astype(np.float64)


def accuracy(first: float, second: float) -> Draw:
    """Right and wrong answers, the chance drawn per cluster from a Beta distribution."""

    def draw(rng: Generator, clusters: int) -> Array:
        counts = sizes(rng, clusters)
        return np.stack([rng.binomial(counts.astype(int), rng.beta(first, second, clusters)), counts], axis=1)[None]

    return draw


def error(rng: Generator, clusters: int) -> Array:
    """Squared errors: a log-normal factor per cluster times a chi-square per sample, mean 1; skewed."""
    counts = sizes(rng, clusters)
    return np.stack([np.exp(rng.normal(-0.125, 0.5, clusters)) * rng.chisquare(counts), counts], axis=1)[None]


def explained(rng: Generator, clusters: int) -> Array:
    """Targets with four fifths of the variance between clusters, errors of variance 1.5 of which a third is shared."""
    members = np.repeat(np.arange(clusters), sizes(rng, clusters).astype(int))
    target = rng.normal(0, 2, clusters)[members] + rng.normal(size=len(members))
    wrong = rng.normal(0, np.sqrt(0.5), clusters)[members] + rng.normal(size=len(members))
    columns = stats.error_columns((target + wrong)[:, None, None], target[:, None, None])
    return stats.cluster_sums(columns, members)[None]


def confused(rng: Generator, clusters: int) -> Array:
    """Classes of unequal frequency, half the samples of a cluster of one class; the skill is drawn per cluster."""
    members = np.repeat(np.arange(clusters), sizes(rng, clusters).astype(int))
    shares = np.arange(1, CLASSES + 1) / np.arange(1, CLASSES + 1).sum()
    usual, any_class = rng.choice(CLASSES, clusters, p=shares), rng.choice(CLASSES, len(members), p=shares)
    labels = np.where(rng.random(len(members)) < 0.5, usual[members], any_class)
    right = rng.random(len(members)) < rng.beta(1.4, 0.6, clusters)[members]
    predicted = np.where(right, labels, rng.integers(0, CLASSES, len(members)))
    return stats.class_sums(labels, predicted, CLASSES, members)[None]


def seeded(count: int, spread: float, mean: float = 1.0) -> Draw:
    """Errors of `count` probes that differ in their seed by `spread`, on samples that share what their cluster adds."""

    def draw(rng: Generator, clusters: int) -> Array:
        counts = sizes(rng, clusters)
        shared = rng.normal(mean, 0.5, clusters)
        own = shared + rng.normal(0, spread, (count, 1)) + rng.normal(0, 0.5 / np.sqrt(counts), (count, clusters))
        return np.stack([own * counts, np.broadcast_to(counts, own.shape)], axis=2)

    return draw


@dataclass(frozen=True)
class Kind:
    """A simulated metric: its sums, its statistic, which value of that is looked at, and the truth."""

    name: str
    draw: Draw
    truth: float
    statistic: stats.Statistic = stats.magnitude
    column: int = 0


def truth_of(draw: Draw, statistic: stats.Statistic, column: int) -> float:
    """The value in a population of 100,000 clusters."""
    return float(statistic(draw(np.random.default_rng(0), 100_000)[0].sum(axis=0)[None])[0, column])


def kinds() -> list[Kind]:
    """The rows of the first table."""
    return [
        Kind("accuracy 70 %", accuracy(1.4, 0.6), 0.7, stats.fraction),
        Kind("accuracy 90 %", accuracy(1.8, 0.2), 0.9, stats.fraction),
        Kind("mean recall", confused, truth_of(confused, stats.macro_scores, 0), stats.macro_scores, 0),
        Kind("macro F1", confused, truth_of(confused, stats.macro_scores, 1), stats.macro_scores, 1),
        Kind("mean squared error, skewed", error, 1.0),
        Kind("R2", explained, 0.7, stats.error_scores, 3),
        Kind("2 seeds, large spread", seeded(2, 0.2), 1.0),
        Kind("3 seeds, small spread", seeded(3, 0.02), 1.0),
        Kind("3 seeds, large spread", seeded(3, 0.2), 1.0),
        Kind("5 seeds, large spread", seeded(5, 0.2), 1.0),
    ]


def covered(kind: Kind, sums: Array) -> bool:
    """Whether our interval of one simulated run holds the truth."""
    found = stats.fraction_interval(sums) if kind.statistic is stats.fraction else stats.bootstrap(sums, kind.statistic)
    return bool(found.low[kind.column] <= kind.truth <= found.high[kind.column])


def covered_by_bca(kind: Kind, sums: Array) -> bool:
    """Whether the BCa interval (Efron 1987) of one run with one seed holds the truth."""
    from scipy.special import ndtr, ndtri

    own, column = sums[0], kind.column
    total = own.sum(axis=0)
    drawn = kind.statistic(stats.cluster_draws(len(own), 0, stats.RESAMPLES) @ own)[:, column]
    value = kind.statistic(total[None])[0, column]
    without = kind.statistic(total - own)[:, column]
    pull = without.mean() - without
    speed = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    bias = ndtri(np.clip(np.mean(drawn < value) + np.mean(drawn == value) / 2, 0.001, 0.999))
    levels = bias + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(drawn, ndtr(bias + levels / (1 - speed * levels)))
    return bool(low <= kind.truth <= high)


def covered_alone(kind: Kind, sums: Array) -> bool:
    """Whether a normal interval that takes all samples as independent holds the truth, for means of fractions."""
    hits, count = sums[0].sum(axis=0)
    share = hits / count
    return bool(abs(share - kind.truth) <= 1.96 * np.sqrt(share * (1 - share) / count))


def share(outcomes: Sequence[bool]) -> str:
    """A share in per cent with two standard errors."""
    mean = float(np.mean(outcomes))
    return f"{100 * mean:.1f} +- {200 * np.sqrt(mean * (1 - mean) / len(outcomes)):.1f}"


def simulated(kind: Kind, clusters: int, runs: int, held: Callable[[Kind, Array], bool]) -> str:
    """The coverage of one cell of the first table."""
    return share([held(kind, kind.draw(np.random.default_rng([run, clusters]), clusters)) for run in range(runs)])


def p_values(rng: Generator, clusters: int, kind: str) -> list[float]:
    """p of three runs against a first one, none of which differ; they share the difficulty of their clusters."""
    counts = sizes(rng, clusters)
    hard = rng.normal(0, 1, clusters)

    def run() -> Array:
        if kind == "accuracy":
            chance = 1 / (1 + np.exp(-(hard + rng.normal(0.8, 1, clusters))))
            return np.stack([rng.binomial(counts.astype(int), chance), counts], axis=1)[None]
        if kind == "squared error":
            return np.stack([np.exp((hard + rng.normal(0, 1, clusters)) / 2) * rng.chisquare(counts), counts], axis=1)[
                None
            ]
        own = hard + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 0.5, (3, clusters))
        return np.stack([own * counts, np.broadcast_to(counts, own.shape)], axis=2)

    first = run()
    found = (stats.spread_of([(1.0, first), (-1.0, run())], stats.ratio) for _ in range(3))
    return [stats.p_value(each) for each in found]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the rows' names")
    asked = parser.parse_args()
    started = time.process_time()

    def wanted(name: str) -> bool:
        return not asked.only or name.startswith(tuple(asked.only))

    print(f"Coverage of 95 % intervals in per cent, {asked.runs} simulations, +- 2 standard errors")
    print(f"{'':28}{'30 clusters':>14}{'300 clusters':>14}{'BCa, 30':>14}{'independent, 30':>18}")
    for kind in (each for each in kinds() if wanted(each.name)):
        cells = [simulated(kind, clusters, asked.runs, covered) for clusters in (FEW, MANY)]
        cells.append(simulated(kind, FEW, asked.runs, covered_by_bca) if "seeds" not in kind.name else "")
        cells.append(simulated(kind, FEW, asked.runs, covered_alone) if kind.statistic is stats.fraction else "")
        print(f"{kind.name:28}{cells[0]:>14}{cells[1]:>14}{cells[2]:>14}{cells[3]:>18}", flush=True)
    print("\nComparisons without any difference: p < 0.05, and any of three after Holm, in per cent")
    print(f"{'':28}{'30 clusters':>14}{'300 clusters':>14}{'Holm, 30':>14}{'Holm, 300':>14}")
    for name in filter(wanted, ("accuracy", "squared error", "3 seeds each")):
        single, corrected = [], []
        for clusters in (FEW, MANY):
            rows = [p_values(np.random.default_rng([run, clusters]), clusters, name) for run in range(asked.runs)]
            single.append(share([row[0] < 0.05 for row in rows]))
            corrected.append(share([min(stats.holm(row)) < 0.05 for row in rows]))
        print(f"{name:28}" + "".join(f"{cell:>14}" for cell in (*single, *corrected)), flush=True)
    print(f"Took {time.process_time() - started:.0f} CPU seconds.")


if __name__ == "__main__":
    main()
