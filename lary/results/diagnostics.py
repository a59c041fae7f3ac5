"""What the latents of a split are like before any probe: use of the codebook, rank, channels, and whether latents of
neighbouring motions add up and turn round.

Effective rank is the exponential of the entropy of the normalised singular values (Roy and Vetterli 2007), the
participation ratio the squared sum of the variances along the principal axes over the sum of their squares. Both are
of the latents without their mean. The split is read in batches; memory grows with the batch and with D squared.

Relations are triples (a, b), (b, c), (a, c), and reversals. Image pairs are matched by the paths of their two frames. A
clip's reversal is the clip whose name carries ``_rev`` before its extension, as the benchmark's clip tool writes it.
Both sides of a relation are compared with each other and, as a baseline, with the other side of another relation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.configs import DiagnoseConfig
from lary.data.spec import DATASETS
from lary.files import write_json
from lary.latents.ref import LatentsRef, SplitLatents, open_latents
from lary.models.spec import MODELS, ModelSpec, with_latent
from lary.results import statistics as stats
from lary.results.measure import metric
from lary.results.record import Metric
from lary.results.scores import ratio
from lary.runtime import progress
from lary.settings import Settings
from lary.types import LaryError, UsageError

DEAD = 1e-6
"""A channel is dead if its standard deviation is below this share of its mean, or below this where the mean is < 1."""
PIECE = 8192
"""Tokens that are brought to float64 at once."""
REVERSED_CLIP = re.compile(r"_rev(?=\.[^./]+$)")
SEARCHED = 1_000_000
"""Triples are drawn from the first this many."""
NO_TRIPLES = {
    "clip": "a clip has no triples: its samples are whole motions",
    "pair": "no triples: no pairs (a, b), (b, c) and (a, c) of this split share their frames",
}
NO_REVERSALS = {
    "clip": "no reversals: no clip of this split has one whose name ends in _rev",
    "pair": "no reversals: no pair of this split is there from b to a as well as from a to b",
}
"""Why a split has no number, by its media."""
ONE_STEP_PER_FRAME = "not measured: latents with one step per frame differ, add up and turn round by construction"

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class Scatter:
    """Mean (D,) and sum of squared deviations (D, D) of rows that come in batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Doubles = np.zeros(dim)
        self.squares: Doubles = np.zeros((dim, dim))

    def add(self, rows: npt.ArrayLike) -> None:
        """Take in rows (n, D)."""
        values = np.asarray(rows)
        for start in range(0, len(values), PIECE):
            part = values[start : start + PIECE].astype(np.float64)
            mean = part.mean(axis=0)
            part -= mean
            apart, total = mean - self.mean, self.count + len(part)
            self.squares += part.T @ part + np.outer(apart, apart) * (self.count * len(part) / total)
            self.mean += apart * (len(part) / total)
            self.count = total

    def ranks(self) -> dict[str, float]:
        """Effective rank and participation ratio, zero where nothing varies, and the largest that there could be."""
        from scipy.stats import entropy

        powers = np.linalg.eigvalsh(self.squares)
        powers = powers[powers > len(powers) * np.finfo(np.float64).eps * max(float(powers[-1]), 0.0)]
        effective = float(np.exp(entropy(np.sqrt(powers)))) if len(powers) else 0.0
        ratio = float(powers.sum() ** 2 / np.square(powers).sum()) if len(powers) else 0.0
        limit = min(len(self.mean), max(self.count - 1, 0))
        return {"effective_rank": effective, "participation_ratio": ratio, "limit": limit}


def diagnosis_text(found: Mapping[str, Any]) -> str:
    """A diagnosis as lines for a terminal."""
    std, codes = np.array(found["channels"]["std"]), found["codes"]
    shape = " x ".join(map(str, found["shape"]))
    lines = [
        f"{found['dataset']} {found['split']} with {found['model']} ({found['protocol']}): {found['samples']} samples "
        f"of {found['groups']} episodes or videos, tokens {shape}",
        f"  channels        {len(std)}, {len(found['channels']['dead'])} dead; mean "
        f"{np.mean(found['channels']['mean']):.4g}, standard deviation "
        f"{np.median(std):.4g} (median; {std.min():.4g} to {std.max():.4g})",
    ]
    for title, name, own in (
        ("effective rank", "tokens", found["tokens"]),
        ("", "mean tokens", found["samples_pooled"]),
    ):
        rank = f"{own['effective_rank']:.1f} of {own['limit']} of {name}"
        lines.append(f"  {title:15} {rank}, participation ratio {own['participation_ratio']:.1f}")
    use = "none: the model has no codebook, or the latents were stored without codes"
    if codes is not None:
        of = f" of {codes['size']} ({100 * codes['used'] / codes['size']:.1f} %)" if codes["size"] else ""
        most = max(codes["counts"].values()) / sum(codes["counts"].values())
        use = (
            f"{codes['used']}{of} used, perplexity {codes['perplexity']:.2f} ({codes['perplexity_per_place']:.2f} at a "
            f"single place), the most frequent takes {100 * most:.1f} %"
        )
    lines.append(f"  {'codes':15} {use}")
    for name, what in (("additivity", "z(a,b) + z(b,c) against z(a,c)"), ("reversibility", "z(a,b) against -z(b,a)")):
        own = found[name]
        if own["why_not"] or "as_stored" not in own:
            lines.append(f"  {name:15} {own['why_not'] or 'not measured: the latents are zero'}")
            continue
        lines.append(f"  {name:15} {what}, {own['relations']} times in {own['groups']} episodes or videos")
        lines.append(f"  {'':17}{'':32}{'relative error':28}cosine")
        for title, key in (("as stored", "as_stored"), ("without the mean", "centred")):
            for kind, part in own.get(key, {}).items():
                label = title if kind == "relation" else f"{title}, {kind}"
                error, cosine = (Metric.model_validate(part[each]).text() for each in ("relative_error", "cosine"))
                lines.append(f"  {'':17}{label:32}{error:28}{cosine}")
    return "\n".join(lines)


def diagnose_split(config: DiagnoseConfig, settings: Settings) -> tuple[dict[str, Any], Path]:
    """Diagnose the latents of a split and write the numbers as JSON; returns them and the file.

    Raises:
        UsageError: no latents, or numbers below one.
        LaryError: a latent that can't be read or isn't finite; names the sample.
    """
    for name, value in (("rows", config.rows), ("relations", config.relations), ("batch-size", config.batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: must be at least 1.")
    model, dataset = with_latent(MODELS.get(config.model), config.latent), DATASETS.get(config.dataset)
    split = config.split or dataset.validation
    dataset.split(split)
    ref = LatentsRef.of(config, split)
    found = diagnose_latents(open_latents(settings, ref), model, config)
    file = config.json or diagnosis_file(settings, ref)
    write_json(file, found)
    return found, file


def diagnosis_file(settings: Settings, ref: LatentsRef) -> Path:
    """The file with the diagnosis of a split's latents."""
    return settings.path("LARY_LOG_DIR") / "diagnostics" / ref.dataset / ref.split / f"{ref.tag}.json"


def diagnose_latents(latents: SplitLatents, model: ModelSpec, config: DiagnoseConfig) -> dict[str, Any]:
    """All diagnostics of latents that are open already, as plain values. Raises as `diagnose_split`."""
    table, source = latents.table, latents.source
    rows = np.arange(len(table), dtype=np.int64)
    if config.rows is not None and config.rows < len(rows):
        rows = np.unique(np.linspace(0, len(rows) - 1, config.rows).round().astype(np.int64))
    media, groups = [sample.media for sample in table], table.groups()
    tokens, pooled, mean, counts = read_through(latents, rows, config.batch_size)
    std = np.sqrt(np.diagonal(tokens.squares) / max(tokens.count, 1))
    dead = np.flatnonzero(std < DEAD * np.maximum(1.0, np.abs(tokens.mean))).tolist()
    frames = len(table[0].frame_index) or len(table[0].media)
    apart = len(source.shape) == 3 and source.shape[0] == frames
    what = table.spec.media

    def relation(rows: Rows, sides: Sides, missing: str) -> dict[str, Any]:
        own = [groups[row] for row in rows[:, -1]]
        why = missing if not len(rows) else ONE_STEP_PER_FRAME if apart else None
        found = {} if why else measure_relation(rows, sides, latents, mean, own, config)
        return {"relations": len(rows), "groups": len(set(own)), "why_not": why, **found}

    return {
        "format": 1, "model": model.name, "dataset": table.spec.name, "split": table.split,
        "protocol": config.protocol, "samples": len(rows), "groups": len({groups[row] for row in rows}),
        "shape": list(source.shape),
        "channels": {"mean": tokens.mean.tolist(), "std": std.tolist(), "dead": dead},
        "tokens": tokens.ranks(), "samples_pooled": pooled.ranks(), "codes": code_use(counts, model.codebook),
        "additivity": relation(find_triples(media, config.relations, config.seed), additive, NO_TRIPLES[what]),
        "reversibility": relation(find_reversals(media, config.relations, config.seed), reversible, NO_REVERSALS[what]),
    }  # fmt: skip


def read_through(
    latents: SplitLatents, rows: Rows, size: int
) -> tuple[Scatter, Scatter, Doubles, dict[int, Rows] | None]:
    """One pass: scatter of all tokens and of the mean token per sample, mean latent, counts of codes by place."""
    source = latents.source
    dim = source.shape[-1]
    tokens, pooled, total = Scatter(dim), Scatter(dim), np.zeros(source.shape)
    counts: dict[int, Rows] | None = {}
    with progress(len(rows), f"diagnose {latents.table.spec.name} {latents.table.split}") as bar:
        for part in batches(rows, size):
            values = source.read(part)
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                sample = latents.table[int(part[int(np.argmin(finite))])]
                raise LaryError(
                    f"The latents of sample {sample.id} ({sample.media[-1]}) hold values that are not "
                    "finite: check the model and extract this split again."
                )
            tokens.add(values.reshape(-1, dim))
            pooled.add(values.reshape(len(values), -1, dim).mean(axis=1, dtype=np.float64))
            total += values.sum(axis=0, dtype=np.float64)
            codes = [own for own in source.codes(part) if own is not None] if counts is not None else []
            if counts is not None and len(codes) == len(part):
                table = np.stack([np.asarray(own, dtype=np.int64).reshape(-1) for own in codes])
                for code in np.unique(table).tolist():
                    counts[code] = counts.get(code, 0) + (table == code).sum(axis=0).astype(np.int64)
            else:
                counts = None  # codes of some samples alone say nothing of the split
            bar.advance(len(part))
    return tokens, pooled, total / len(rows), counts


def code_use(counts: Mapping[int, Rows] | None, size: int | None) -> dict[str, Any] | None:
    """Use of a codebook over all samples, steps and tokens, from counts by place; None without codes.

    `size` is None where the model's record doesn't have it.
    """
    if not counts:
        return None
    from scipy.stats import entropy

    table = np.stack([counts[code] for code in sorted(counts)])
    return {
        "size": size, "used": len(counts), "perplexity": float(np.exp(entropy(table.sum(axis=1)))),
        "perplexity_per_place": float(np.exp(entropy(table, axis=0)).mean()),
        "counts": {str(code): int(counts[code].sum()) for code in sorted(counts)},
    }  # fmt: skip


# --- relations ---


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

    return some_of(list(islice(walk(), SEARCHED)), 3, limit, seed)


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
    return some_of(found, 2, limit, seed)


def reversal(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The media of the reversed sample: target and source exchanged, or the other name of the clip."""
    if len(paths) == 2:
        return paths[1], paths[0]
    clip = paths[0]
    forward = REVERSED_CLIP.sub("", clip)
    return (forward if forward != clip else re.sub(r"(\.[^./]+)$", r"_rev\1", clip),)


def some_of(found: Sequence[tuple[int, ...]], width: int, limit: int, seed: int) -> Rows:
    """All rows, or `limit` of them drawn from the seed, in the order in which they were found."""
    rows = np.array(found, dtype=np.int64).reshape(-1, width)
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))]


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


def measure_relation(
    relations: Rows, sides: Sides, latents: SplitLatents, mean: Doubles, groups: Sequence[str], config: DiagnoseConfig
) -> dict[str, Any]:
    """Compare both sides of a relation with each other, and with the other side of another relation.

    Relative error and cosine of the relation, of the baseline with partners shuffled, and the difference of the two; as
    stored, and without the mean latent. None where latents have no length.
    """
    source = latents.source
    partner = np.random.default_rng(config.seed).permutation(len(relations))
    shifted = np.empty_like(partner)
    shifted[partner] = np.roll(partner, 1)  # nobody is their own partner
    tables: tuple[list[Doubles], list[Doubles]] = ([], [])
    for part in batches(np.arange(len(relations), dtype=np.int64), config.batch_size):
        own, others = (
            [source.read(relations[rows, place]).astype(np.float64) for place in range(relations.shape[1])]
            for rows in (part, shifted[part])
        )
        for origin, table in zip((np.zeros(()), mean), tables, strict=True):
            left, right = sides([each - origin for each in own])
            _, wrong = sides([each - origin for each in others])
            table.append(np.hstack([nearness(left, right), nearness(left, wrong)]))
    clusters = stats.cluster_index(groups, config.seed)
    found = {name: agreements(np.concatenate(table), clusters, config.seed)
             for name, table in zip(("as_stored", "centred"), tables, strict=True)}  # fmt: skip
    return {name: own for name, own in found.items() if own}


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


def agreements(table: Doubles, clusters: Rows, seed: int) -> dict[str, dict[str, Any]]:
    """Relation, baseline and difference with intervals over clusters; none where latents have no length."""
    sums = stats.cluster_sums(table, clusters)
    if not (sums[:, 1].sum() and sums[:, 5].sum()):
        return {}
    found = stats.bootstrap(sums, errors_and_cosines, seed=seed)
    return {
        kind: {
            "relative_error": metric(found, 2 * index, "none", higher=False).model_dump(),
            "cosine": metric(found, 2 * index + 1, "none").model_dump(),
        }
        for index, kind in enumerate(("relation", "shuffled", "difference"))
    }
