"""Samples of one split that say something about each other: triples (a, b), (b, c), (a, c), and reversals.

Image pairs are matched by the paths of their two frames. A clip's reversal is the clip whose name carries ``_rev``
before its extension, as the benchmark's clip tool writes it.

Both sides of a relation are held against each other and, as a baseline, against the other side of another relation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from lary.configs import DiagnoseConfig
from lary.data.tables import SampleTable
from lary.results import statistics as stats
from lary.results.measure import metric
from lary.results.record import Metric
from lary.results.scores import ratio
from lary.types import LatentSource

REVERSED_CLIP = re.compile(r"_rev(?=\.[^./]+$)")
SEARCHED = 1_000_000
"""Triples are drawn from the first this many."""

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """How near two latents are that should be equal: relative error and cosine, for the relation or its baseline."""

    error: Metric
    cosine: Metric


@dataclass(frozen=True)
class RelationFound:
    """A relation on the split; `why` says in a sentence why there are no numbers, where there are none.

    ``stored`` and ``centred`` (without the mean latent) each hold the relation, the baseline with partners shuffled,
    and the difference of the two.
    """

    count: int
    groups: int
    stored: tuple[Agreement, Agreement, Agreement] | None = None
    centred: tuple[Agreement, Agreement, Agreement] | None = None
    why: str = ""


def find_triples(media: Sequence[tuple[str, ...]], limit: int, seed: int) -> Rows:
    """Rows (R, 3) int64 of the pairs (a, b), (b, c) and (a, c), at most `limit` of them, drawn from the seed.

    `media` holds source and target of every pair; clips have no triples.
    """
    edges: dict[tuple[str, str], int] = {}
    for row, paths in enumerate(media):
        if len(paths) == 2 and paths[0] != paths[1]:
            edges.setdefault((paths[0], paths[1]), row)
    targets: dict[str, list[str]] = {}
    for source, target in edges:
        targets.setdefault(source, []).append(target)

    def walk() -> Iterator[tuple[int, int, int]]:
        for (source, target), whole in edges.items():
            for middle in targets[source]:
                second = edges.get((middle, target))
                if second is not None:
                    yield edges[source, middle], second, whole

    return drawn(list(islice(walk(), SEARCHED)), 3, limit, seed)


def find_reversals(media: Sequence[tuple[str, ...]], limit: int, seed: int) -> Rows:
    """Rows (R, 2) int64 of samples and their reversals, each couple once, at most `limit` of them."""
    places: dict[tuple[str, ...], int] = {}
    for row, paths in enumerate(media):
        places.setdefault(paths, row)
    found = []
    for paths, row in places.items():
        other = places.get(reversal(paths))
        if other is not None and row < other:
            found.append((row, other))
    return drawn(found, 2, limit, seed)


def reversal(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The media of the reversed sample: target and source exchanged, or the other name of the clip."""
    if len(paths) == 2:
        return paths[1], paths[0]
    clip = paths[0]
    forward = REVERSED_CLIP.sub("", clip)
    return (forward if forward != clip else re.sub(r"(\.[^./]+)$", r"_rev\1", clip),)


def drawn(found: Sequence[tuple[int, ...]], width: int, limit: int, seed: int) -> Rows:
    """All rows, or `limit` of them drawn from the seed, in the order in which they were found."""
    rows = np.array(found, dtype=np.int64).reshape(-1, width)
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))]


def media_of(table: SampleTable) -> list[tuple[str, ...]]:
    """Media paths of every sample of a table."""
    return [sample.media for sample in table]


def batches(rows: Rows, size: int) -> Iterator[Rows]:
    """The rows in parts of `size`."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


Sides = Callable[[Sequence[Doubles]], tuple[Doubles, Doubles]]
"""From the latents of a relation's samples to the two sides that should be equal, both (B, *shape)."""


def additive(latents: Sequence[Doubles]) -> tuple[Doubles, Doubles]:
    """z(a, b) + z(b, c) and z(a, c)."""
    return latents[0] + latents[1], latents[2]


def reversible(latents: Sequence[Doubles]) -> tuple[Doubles, Doubles]:
    """z(a, b) and -z(b, a); the steps of a reversed latent (P, N, D) run backwards."""
    turned = latents[1][:, ::-1] if latents[1].ndim == 4 else latents[1]
    return latents[0], -turned


def measure(
    relations: Rows, sides: Sides, apart: bool, missing: str, source: LatentSource, mean: Doubles,
    groups: Sequence[str], config: DiagnoseConfig,
) -> RelationFound:  # fmt: skip
    """Both sides of a relation held against each other, and against the other side of another relation."""
    if not len(relations):
        return RelationFound(0, 0, why=missing)
    own = [groups[row] for row in relations[:, -1]]
    count = len(set(own))
    if apart:
        why = "not measured: latents with one step per frame differ, add up and turn round by construction"
        return RelationFound(len(relations), count, why=why)
    partner = np.random.default_rng(config.seed).permutation(len(relations))
    shifted = np.empty_like(partner)
    shifted[partner] = np.roll(partner, 1)  # nobody is their own partner
    tables: dict[bool, list[Doubles]] = {False: [], True: []}
    for part in batches(np.arange(len(relations), dtype=np.int64), config.batch_size):
        latents = [source.read(relations[part, place]).astype(np.float64) for place in range(relations.shape[1])]
        others = [source.read(relations[shifted[part], place]).astype(np.float64) for place in range(len(latents))]
        for centred, table in tables.items():
            origin = mean if centred else 0.0
            left, right = sides([each - origin for each in latents])
            _, wrong = sides([each - origin for each in others])
            table.append(np.hstack([nearness(left, right), nearness(left, wrong)]))
    clusters = stats.cluster_index(own, config.seed)
    stored, centre = (agreements(np.concatenate(table), clusters, config.seed) for table in tables.values())
    return RelationFound(len(relations), count, stored, centre)


def nearness(left: Doubles, right: Doubles) -> Doubles:
    """Columns (B, 4) whose sums make `errors_and_cosines`: squared error, squared length, cosine, one."""
    flat, other = left.reshape(len(left), -1), right.reshape(len(right), -1)
    size = np.square(other).sum(axis=1)
    length = np.sqrt(np.square(flat).sum(axis=1) * size)
    cosine = np.divide((flat * other).sum(axis=1), length, out=np.zeros(len(flat)), where=length > 0)
    return np.stack([np.square(flat - other).sum(axis=1), size, cosine, np.ones(len(flat))], axis=1)


def errors_and_cosines(totals: Doubles) -> Doubles:
    """Error and cosine of relation, baseline and their difference, (R, 8) to (R, 6).

    The error is the root of the summed squared error over the summed squared length.
    """
    columns = []
    for own in np.split(totals, 2, axis=1):
        columns += [np.sqrt(ratio(own[:, :2])[:, 0]), ratio(own[:, 2:])[:, 0]]
    found: Doubles = np.stack([*columns, columns[0] - columns[2], columns[1] - columns[3]], axis=1)
    return found


def agreements(table: Doubles, clusters: Rows, seed: int) -> tuple[Agreement, Agreement, Agreement] | None:
    """Relation, baseline and difference with intervals over clusters; None where latents have no length."""
    sums = stats.cluster_sums(table, clusters)
    if not (sums[:, 1].sum() and sums[:, 5].sum()):
        return None
    found = stats.bootstrap(sums, errors_and_cosines, seed=seed)
    first, second, third = (
        Agreement(metric(found, 2 * index, "none", higher=False), metric(found, 2 * index + 1, "none"))
        for index in range(3)
    )
    return first, second, third
