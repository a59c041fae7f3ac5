"""What latents are like before any probe: channels, rank, use of the codebook.

Effective rank is the exponential of the entropy of the normalised singular
values (Roy and Vetterli 2007), the participation ratio the squared sum of the
principal variances over the sum of their squares, both without the mean.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.arrays import Doubles, Ints
from lary.configs import DiagnoseConfig
from lary.data.spec import DATASETS
from lary.files import write_json
from lary.latents.ref import LatentsRef, open_latents
from lary.models.choices import chosen_model
from lary.runtime import progress
from lary.settings import Settings
from lary.types import JsonDict

DEAD = 1e-6
"""A channel is dead if its deviation is below this share of its mean, or of 1."""
PIECE = 8192
"""Tokens that are brought to float64 at once."""


class Scatter:
    """Mean and scatter (D, D) of rows in batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Doubles = np.zeros(dim)
        self.squares: Doubles = np.zeros((dim, dim))

    def add(self, rows: npt.ArrayLike) -> None:
        values = np.asarray(rows)
        for start in range(0, len(values), PIECE):
            part = values[start : start + PIECE].astype(np.float64)
            mean = part.mean(axis=0)
            part -= mean
            apart = mean - self.mean
            total = self.count + len(part)
            self.squares += part.T @ part + np.outer(apart, apart) * (self.count * len(part) / total)
            self.mean += apart * (len(part) / total)
            self.count = total

    def ranks(self) -> dict[str, float]:
        """Effective rank and participation ratio, zero where nothing varies, and their limit."""
        from scipy.stats import entropy

        powers = np.linalg.eigvalsh(self.squares)
        powers = powers[powers > len(powers) * np.finfo(np.float64).eps * max(float(powers[-1]), 0.0)]
        effective = participation = 0.0
        if len(powers):
            effective = float(np.exp(entropy(np.sqrt(powers))))
            participation = float(powers.sum() ** 2 / np.square(powers).sum())
        limit = min(len(self.mean), max(self.count - 1, 0))
        return {"effective_rank": effective, "participation_ratio": participation, "limit": limit}


def diagnosis_text(found: Mapping[str, Any]) -> str:
    channels, codes = found["channels"], found["codes"]
    std = np.array(channels["std"])
    lines = [
        f"{found['dataset']} {found['split']} with {found['model']} ({found['protocol']}): {found['samples']} samples "
        f"of {found['groups']} {found['unit']}, tokens {' x '.join(map(str, found['shape']))}",
        f"  channels        {len(std)}, {len(channels['dead'])} dead; mean {np.mean(channels['mean']):.4g}, "
        f"standard deviation {np.median(std):.4g} (median; {std.min():.4g} to {std.max():.4g})",
    ]
    for name, own in (("tokens", found["tokens"]), ("mean tokens", found["samples_pooled"])):
        rank = f"{own['effective_rank']:.1f} of {own['limit']} of {name}"
        lines.append(f"  effective rank  {rank}, participation ratio {own['participation_ratio']:.1f}")
    if codes is None:
        use = "none: the model has no codebook, or the latents were stored without codes"
    else:
        of = f" of {codes['size']} ({100 * codes['used'] / codes['size']:.1f} %)" if codes["size"] else ""
        use = f"{codes['used']}{of} used, perplexity {codes['perplexity']:.2f} "
        use += f"({codes['perplexity_per_place']:.2f} at a single place)"
    return "\n".join([*lines, f"  codes           {use}"])


def diagnose_split(config: DiagnoseConfig, settings: Settings) -> tuple[JsonDict, Path]:
    """Diagnose the latents of a split; returns the numbers and their JSON file.

    Raises UsageError without latents, LaryError for one that can't be read or isn't finite.
    """
    from lary.probes.sources import finite_latents

    config.check_counts("rows", "batch_size")
    model = chosen_model(config)
    dataset = DATASETS.get(config.dataset)
    split = config.split or dataset.validation
    dataset.split(split)
    ref = LatentsRef.of(config, split)
    latents = open_latents(settings, ref)
    table, source = latents.table, latents.source
    read = finite_latents(source, lambda row: f"sample {table[row].id} ({table[row].media[-1]})").read
    count = min(config.rows or len(table), len(table))
    rows = np.linspace(0, len(table) - 1, count).round().astype(np.int64)
    tokens = Scatter(source.shape[-1])
    pooled = Scatter(source.shape[-1])
    counts: dict[int, Ints] = {}
    coded = True
    with progress(len(rows), f"diagnose {table.spec.name} {table.split}") as bar:
        for part in np.split(rows, range(config.batch_size, len(rows), config.batch_size)):
            values = read(part).reshape(len(part), -1, tokens.mean.size)
            tokens.add(values.reshape(-1, tokens.mean.size))
            pooled.add(values.mean(axis=1, dtype=np.float64))
            codes = source.codes(part) if coded else [None]
            coded = coded and all(own is not None for own in codes)
            if coded:  # codes of some samples alone say nothing of the split
                by_place = np.stack([np.ravel(own) for own in codes if own is not None]).astype(np.int64)
                for code in np.unique(by_place).tolist():
                    counts[code] = counts.get(code, 0) + (by_place == code).sum(axis=0)
            bar.advance(len(part))
    std = np.sqrt(np.diagonal(tokens.squares) / max(tokens.count, 1))
    dead = std < DEAD * np.maximum(1.0, np.abs(tokens.mean))
    groups = table.groups()
    found = {
        "format": 1,
        "model": model.name,
        "dataset": table.spec.name,
        "split": table.split,
        "protocol": config.protocol,
        "samples": len(rows),
        "groups": len({groups[row] for row in rows}),
        "unit": table.unit,
        "shape": list(source.shape),
        "channels": {"mean": tokens.mean.tolist(), "std": std.tolist(), "dead": np.flatnonzero(dead).tolist()},
        "tokens": tokens.ranks(),
        "samples_pooled": pooled.ranks(),
        "codes": code_use(counts if coded else {}, model.codebook),
    }
    folder = settings.path("LARY_LOG_DIR") / "diagnostics" / ref.dataset / ref.split
    file = config.json or folder / f"{ref.tag}.json"
    write_json(file, found)
    return found, file


def code_use(counts: Mapping[int, Ints], size: int | None) -> JsonDict | None:
    """Use of a codebook, from counts by place; None without codes.

    `size` is None where the model's record lacks it.
    """
    if not counts:
        return None
    from scipy.stats import entropy

    codes = sorted(counts)
    table = np.stack([counts[code] for code in codes])
    totals = table.sum(axis=1)
    return {
        "size": size,
        "used": len(codes),
        "perplexity": float(np.exp(entropy(totals))),
        "perplexity_per_place": float(np.exp(entropy(table, axis=0)).mean()),
        "counts": dict(zip(map(str, codes), totals.tolist(), strict=True)),
    }
