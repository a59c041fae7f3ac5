"""How often our 95 % intervals hold the truth, by simulation with strong correlation inside clusters.

    python benchmarks/coverage.py [--runs 1000] [--resamples 2000]

Every row is a kind of metric with 30 or 300 clusters (episodes, videos) of unequal size; the last column shows
what an interval over samples, which takes frames of one episode as independent, would hold.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lary.results import statistics as stats

Draw = Callable[[np.random.Generator, int], tuple[list[np.ndarray], np.ndarray]]
"""From a generator and a number of clusters: scores (n,) of each seed and the cluster (n,) of every sample."""


def sizes(rng: np.random.Generator, clusters: int) -> np.ndarray:
    """The cluster of every sample: 5 to 40 samples each."""
    return np.repeat(np.arange(clusters), rng.integers(5, 41, clusters))


def accuracy(rng: np.random.Generator, clusters: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Right and wrong answers, the chance drawn per cluster from Beta(1.4, 0.6): correlation 1/3 inside, mean 0.7."""
    members = sizes(rng, clusters)
    chances = rng.beta(1.4, 0.6, clusters)
    return [(rng.random(len(members)) < chances[members]).astype(np.float64)], members


def error(rng: np.random.Generator, clusters: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Squared errors: a log-normal factor per cluster times a chi-square per sample, mean 1; skewed."""
    members = sizes(rng, clusters)
    factors = np.exp(rng.normal(-0.125, 0.5, clusters))
    return [factors[members] * rng.normal(size=len(members)) ** 2], members


def difference(rng: np.random.Generator, clusters: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Paired differences, normal with four fifths of the variance between clusters, mean 0."""
    members = sizes(rng, clusters)
    return [rng.normal(0, 2, clusters)[members] + rng.normal(size=len(members))], members


def seeded(count: int, spread: float) -> Draw:
    """Errors of `count` probes that differ in their seed by `spread` around mean 1, on clustered samples."""

    def draw(rng: np.random.Generator, clusters: int) -> tuple[list[np.ndarray], np.ndarray]:
        members = sizes(rng, clusters)
        shared = rng.normal(1, 0.5, clusters)[members]
        return [
            shared + rng.normal(0, spread) + rng.normal(0, 0.5, len(members)) for _ in range(count)
        ], members  # fmt: skip

    return draw


@dataclass(frozen=True)
class Kind:
    """A simulated metric with its true value."""

    name: str
    draw: Draw
    truth: float
    fraction: bool = False


KINDS = (
    Kind("accuracy", accuracy, 0.7, fraction=True),
    Kind("mean squared error", error, 1.0),
    Kind("paired difference", difference, 0.0),
    Kind("3 seeds, small spread", seeded(3, 0.02), 1.0),
    Kind("3 seeds, large spread", seeded(3, 0.2), 1.0),
    Kind("5 seeds, large spread", seeded(5, 0.2), 1.0),
)


def covered(kind: Kind, clusters: int, seed: int, resamples: int, alone: bool) -> bool:
    """Whether the interval of one simulated run holds the truth; with `alone` every sample is its own cluster."""
    scores, members = kind.draw(np.random.default_rng([seed, clusters]), clusters)
    if alone:
        members = np.arange(len(members))
    sums = np.stack([stats.cluster_sums(np.stack([own, np.ones_like(own)], axis=1), members) for own in scores])
    if len(sums) == 1:
        sums = sums[0]
    if kind.fraction:
        found = stats.fraction_interval(sums[..., :1], sums[..., 1:], seed=seed)
    else:
        found = stats.bootstrap(sums, stats.ratio, seed=seed, resamples=resamples)
    assert found.low is not None
    assert found.high is not None
    return bool(found.low[0] <= kind.truth <= found.high[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=stats.RESAMPLES)
    asked = parser.parse_args()
    started = time.monotonic()
    print(f"Coverage of 95 % intervals in per cent, {asked.runs} simulations, +- 2 standard errors")
    print(f"{'':24}{'30 clusters':>16}{'300 clusters':>16}{'samples taken as independent (30)':>36}")
    for kind in KINDS:
        cells = []
        for clusters, alone in ((30, False), (300, False), (30, True)):
            runs = min(asked.runs, 200) if alone else asked.runs
            share = np.mean([covered(kind, clusters, seed, asked.resamples, alone) for seed in range(runs)])
            spread = 2 * np.sqrt(share * (1 - share) / runs)
            cells.append(f"{100 * share:.1f} +- {100 * spread:.1f}")
        print(f"{kind.name:24}{cells[0]:>16}{cells[1]:>16}{cells[2]:>36}", flush=True)
    print(f"Took {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
