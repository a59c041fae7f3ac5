"""What the latents of a split are like before any probe: use of the codebook, rank, channels, and whether latents of
neighbouring motions add up and turn round.

Effective rank is the exponential of the entropy of the normalised singular values (Roy and Vetterli 2007), the
participation ratio the squared sum of the variances along the principal axes over the sum of their squares. Both are
of the latents without their mean. The split is read in batches; memory grows with the batch and with D squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.configs import DiagnoseConfig
from lary.data.spec import DATASETS
from lary.files import write_json
from lary.latents.ref import LatentsRef, SplitLatents, open_latents
from lary.latents.store import StoredLatents
from lary.models.spec import MODELS, ModelSpec, with_latent
from lary.results.relations import (
    RelationFound,
    additive,
    batches,
    find_reversals,
    find_triples,
    measure,
    media_of,
    reversible,
)
from lary.runtime import progress
from lary.settings import Settings
from lary.types import LaryError, UsageError

DEAD = 1e-6
"""A channel is dead if its standard deviation is below this share of its mean, or below this where the mean is < 1."""
PIECE = 8192
"""Tokens that are brought to float64 at once."""

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

    def ranks(self) -> tuple[float, float]:
        """Effective rank and participation ratio; zero where nothing varies."""
        powers = np.linalg.eigvalsh(self.squares)
        powers = powers[powers > len(powers) * np.finfo(np.float64).eps * max(float(powers[-1]), 0.0)]
        if not len(powers):
            return 0.0, 0.0
        shares = np.sqrt(powers) / np.sqrt(powers).sum()
        return float(np.exp(-(shares * np.log(shares)).sum())), float(powers.sum() ** 2 / np.square(powers).sum())


@dataclass(frozen=True)
class Ranks:
    """How many dimensions are in use, and how many there could be: the smaller of D and the rows minus one."""

    effective: float
    participation: float
    limit: int


@dataclass(frozen=True)
class CodeUse:
    """Use of a codebook over all samples, steps and tokens; `size` is None where the model's record doesn't tell."""

    counts: tuple[tuple[int, int], ...]
    size: int | None
    perplexity: float
    per_place: float

    @property
    def used(self) -> int:
        """How many different codes occur."""
        return len(self.counts)


@dataclass(frozen=True)
class Diagnosis:
    """All diagnostics of one split."""

    model: str
    dataset: str
    split: str
    protocol: str
    samples: int
    groups: int
    shape: tuple[int, ...]
    mean: Doubles
    std: Doubles
    dead: tuple[int, ...]
    tokens: Ranks
    pooled: Ranks
    codes: CodeUse | None
    additivity: RelationFound
    reversibility: RelationFound


def diagnose(config: DiagnoseConfig, settings: Settings) -> tuple[Diagnosis, str]:
    """Diagnose the latents of a split and write the numbers as JSON; returns them and where they stand.

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
    write_json(file, as_json(found))
    return found, str(file)


def diagnosis_file(settings: Settings, ref: LatentsRef) -> Path:
    """The file with the diagnosis of a split's latents."""
    return settings.path("LARY_LOG_DIR") / "diagnostics" / ref.dataset / ref.split / f"{ref.tag}.json"


def diagnose_latents(latents: SplitLatents, model: ModelSpec, config: DiagnoseConfig) -> Diagnosis:
    """All diagnostics of latents that are open already. Raises as `diagnose`."""
    table, source = latents.table, latents.source
    rows = np.arange(len(table), dtype=np.int64)
    if config.rows is not None and config.rows < len(rows):
        rows = np.unique(np.linspace(0, len(rows) - 1, config.rows).round().astype(np.int64))
    media = media_of(table)
    groups = table.groups()
    tokens, pooled, mean, counts = read_through(latents, rows, config.batch_size, media)
    std = np.sqrt(np.diagonal(tokens.squares) / max(tokens.count, 1))
    whole = (source, mean, groups, config)
    triples = find_triples(media, config.relations, config.seed)
    reversals = find_reversals(media, config.relations, config.seed)
    frames = len(table[0].frame_index) or len(table[0].media)
    apart = len(source.shape) == 3 and source.shape[0] == frames
    what = table.spec.media
    return Diagnosis(
        model=model.name, dataset=table.spec.name, split=table.split, protocol=config.protocol,
        samples=len(rows), groups=len({groups[row] for row in rows}), shape=tuple(source.shape),
        mean=tokens.mean, std=std,
        dead=tuple(int(channel) for channel in np.flatnonzero(std < DEAD * np.maximum(1.0, np.abs(tokens.mean)))),
        tokens=Ranks(*tokens.ranks(), min(source.shape[-1], max(tokens.count - 1, 0))),
        pooled=Ranks(*pooled.ranks(), min(source.shape[-1], max(pooled.count - 1, 0))),
        codes=code_use(counts, model.codebook),
        additivity=measure(triples, additive, apart, no_triples(what), *whole),
        reversibility=measure(reversals, reversible, apart, no_reversals(what), *whole),
    )  # fmt: skip


def no_triples(media: str) -> str:
    """Why a split without triples has no number."""
    if media == "clip":
        return "a clip has no triples: its samples are whole motions"
    return "no triples: no pairs (a, b), (b, c) and (a, c) of this split share their frames"


def no_reversals(media: str) -> str:
    """Why a split without reversals has no number."""
    if media == "clip":
        return "no reversals: no clip of this split has one whose name ends in _rev"
    return "no reversals: no pair of this split is there from b to a as well as from a to b"


def read_through(
    latents: SplitLatents, rows: Rows, size: int, media: Sequence[tuple[str, ...]]
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
                row = int(part[int(np.argmin(finite))])
                raise LaryError(
                    f"The latents of sample {latents.table[row].id} ({media[row][-1]}) hold values that are not "
                    "finite: check the model and extract this split again."
                )
            tokens.add(values.reshape(-1, dim))
            pooled.add(values.reshape(len(values), -1, dim).mean(axis=1, dtype=np.float64))
            total += values.sum(axis=0, dtype=np.float64)
            codes = read_codes(source, part) if counts is not None else None
            counts = None if codes is None or counts is None else add_counts(counts, codes)
            bar.advance(len(part))
    return tokens, pooled, total / len(rows), counts


def read_codes(source: StoredLatents, rows: Rows) -> npt.NDArray[np.int64] | None:
    """Codebook ids of some samples, (B, places) int64; None for a model without codes. Raises LaryError."""
    found = [codes for codes in source.codes(rows) if codes is not None]
    if len(found) < len(rows):
        return None
    return np.stack([np.asarray(codes, dtype=np.int64).reshape(-1) for codes in found])


def add_counts(counts: dict[int, Rows], codes: npt.NDArray[np.int64]) -> dict[int, Rows]:
    """Counts of each code by place, (places,) int64, with those of some samples (B, places) added."""
    for code in np.unique(codes):
        own = (codes == code).sum(axis=0).astype(np.int64)
        counts[int(code)] = counts[int(code)] + own if int(code) in counts else own
    return counts


def code_use(counts: dict[int, Rows] | None, size: int | None) -> CodeUse | None:
    """Use of the codebook from counts by place; None without codes."""
    if not counts:
        return None
    table = np.stack([counts[code] for code in sorted(counts)]).astype(np.float64)
    by_place = perplexity(table / table.sum(axis=0))
    return CodeUse(
        counts=tuple((code, int(counts[code].sum())) for code in sorted(counts)),
        size=size,
        perplexity=float(perplexity((table.sum(axis=1) / table.sum())[:, None])[0]),
        per_place=float(by_place.mean()),
    )


def perplexity(shares: Doubles) -> Doubles:
    """Exponential of the entropy of each column of shares (C, n)."""
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    values: Doubles = np.exp(-(shares * logarithms).sum(axis=0))
    return values


# --- output -----------------------------------------------------------------------------------------------------------


def as_json(found: Diagnosis) -> dict[str, Any]:
    """A diagnosis as plain values; the channels one by one."""
    codes = found.codes

    def ranks(own: Ranks) -> dict[str, float]:
        return {"effective_rank": own.effective, "participation_ratio": own.participation, "limit": own.limit}

    def relation(own: RelationFound) -> dict[str, Any]:
        value: dict[str, Any] = {"relations": own.count, "groups": own.groups, "why_not": own.why or None}
        for name, parts in (("as_stored", own.stored), ("centred", own.centred)):
            if parts:
                value[name] = {
                    kind: {"relative_error": part.error.model_dump(), "cosine": part.cosine.model_dump()}
                    for kind, part in zip(("relation", "shuffled", "difference"), parts, strict=True)
                }
        return value

    return {
        "format": 1, "model": found.model, "dataset": found.dataset, "split": found.split, "protocol": found.protocol,
        "samples": found.samples, "groups": found.groups, "shape": list(found.shape),
        "channels": {"mean": found.mean.tolist(), "std": found.std.tolist(), "dead": list(found.dead)},
        "tokens": ranks(found.tokens), "samples_pooled": ranks(found.pooled),
        "codes": None if codes is None else {
            "size": codes.size, "used": codes.used, "perplexity": codes.perplexity,
            "perplexity_per_place": codes.per_place, "counts": {str(code): count for code, count in codes.counts},
        },
        "additivity": relation(found.additivity), "reversibility": relation(found.reversibility),
    }  # fmt: skip


def as_text(found: Diagnosis) -> str:
    """A diagnosis as lines for a terminal."""
    std, shape = found.std, " x ".join(map(str, found.shape))
    lines = [
        f"{found.dataset} {found.split} with {found.model} ({found.protocol}): {found.samples} samples of "
        f"{found.groups} episodes or videos, tokens {shape}",
        f"  channels        {len(std)}, {len(found.dead)} dead; mean {found.mean.mean():.4g}, standard deviation "
        f"{np.median(std):.4g} (median; {std.min():.4g} to {std.max():.4g})",
    ]
    for name, ranks in (("of tokens", found.tokens), ("of mean tokens", found.pooled)):
        lines.append(
            f"  {'effective rank' if ranks is found.tokens else '':15} {ranks.effective:.1f} of {ranks.limit} {name}, "
            f"participation ratio {ranks.participation:.1f}"
        )
    lines += [f"  {'codes':15} {line}" for line in (code_text(found.codes),)]
    lines += relation_text("additivity", "z(a,b) + z(b,c) against z(a,c)", found.additivity)
    lines += relation_text("reversibility", "z(a,b) against -z(b,a)", found.reversibility)
    return "\n".join(lines)


def code_text(codes: CodeUse | None) -> str:
    """The use of the codebook in a line."""
    if codes is None:
        return "none: the model has no codebook, or the latents were stored without codes"
    of = f" of {codes.size} ({100 * codes.used / codes.size:.1f} %)" if codes.size else ""
    most = max(count for _, count in codes.counts) / sum(count for _, count in codes.counts)
    return (
        f"{codes.used}{of} used, perplexity {codes.perplexity:.2f} ({codes.per_place:.2f} at a single place), "
        f"the most frequent takes {100 * most:.1f} %"
    )


def relation_text(name: str, what: str, found: RelationFound) -> list[str]:
    """A relation as lines: its numbers, or why there are none."""
    if found.why or found.stored is None:
        return [f"  {name:15} {found.why or 'not measured: the latents are zero'}"]
    lines = [f"  {name:15} {what}, {found.count} times in {found.groups} episodes or videos"]
    lines.append(f"  {'':17}{'':32}{'relative error':28}cosine")
    for title, parts in (("as stored", found.stored), ("without the mean", found.centred)):
        for kind, part in zip(("", "shuffled", "difference"), parts or (), strict=False):
            label = f"{title}, {kind}" if kind else title
            lines.append(f"  {'':17}{label:32}{part.error.text():28}{part.cosine.text()}")
    return lines
