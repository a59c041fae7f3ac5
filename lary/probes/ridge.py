"""The ridge probe: action chunks as a linear function of the flattened latents, in closed form.

Every value is centred, and scaled by its channel: scaled by itself, a place that hardly ever changes in training would
blow up what is seen there for the first time.

A fast reference for the trained probes. Its penalty takes the place of their epoch: it is picked on the held-out
tenth of the training split (protocol ``corrected``), and beside it on the reported split.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.probes.chunks import RegressorInputs, check_inputs, errors, make_picks, split_outcome, split_rows
from lary.probes.fit import CHUNK, first_not_finite, memory_bytes, save_checkpoint
from lary.probes.outcome import Floats, Ints, RegressionOutcome
from lary.probes.presets import ProbePreset
from lary.types import BenchmarkProtocol, LaryError, LatentSource, Progress, UsageError

Doubles = npt.NDArray[np.float64]

MEMORY_SHARE = 0.6
"""Of this machine's memory that the features and their Gram matrix may take."""


@dataclass(frozen=True)
class Scaling:
    """On the rows that are fitted: mean of each feature, and standard deviation of its channel, both (F,) float64."""

    mean: Doubles
    std: Doubles

    def apply(self, tokens: Floats) -> Doubles:
        """Tokens (B, ...) to features (B, F)."""
        return (tokens.reshape(len(tokens), -1).astype(np.float64) - self.mean) / self.std


def fit_ridge(
    inputs: RegressorInputs,
    preset: ProbePreset,
    *,
    protocol: BenchmarkProtocol,
    seed: int,
    folder: Path | None,
    progress: Progress | None,
) -> RegressionOutcome:
    """Fit one model per penalty and return what the picked ones say about every evaluated sample.

    In the outcome an epoch is the number of a penalty, from 1. ``best_model.pth`` in `folder` holds ``coef``
    (F, K * A), ``intercept`` (K * A), ``mean`` and ``std`` (F) of the reported one. `progress` advances by the size of
    the training split for every penalty.

    Raises:
        UsageError: the inputs don't fit together, nothing can be held out, or the features don't fit into memory.
        LaryError: a latent isn't finite.
    """
    from sklearn.linear_model import Ridge

    settings = preset.ridge
    check_inputs(inputs)
    fit_rows, held_rows = split_rows(inputs, protocol, seed)
    size = math.prod(inputs.train.shape)
    check_memory(len(fit_rows), size)
    scaling, features = read_features(inputs.train, fit_rows)
    wanted = inputs.train_targets[fit_rows].reshape(len(fit_rows), -1)
    shape = inputs.train_targets.shape[1:]
    picks = make_picks(held_rows)
    headline = next(iter(picks.values()))
    history: list[dict[str, Any]] = []
    for number, shrinkage in enumerate(settings.shrinkages, start=1):
        alpha = shrinkage * max(len(fit_rows), size)
        model = Ridge(alpha=alpha, solver="cholesky").fit(features, wanted)
        linear = Linear(scaling, np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_), shape)
        fitted = (features @ linear.coef + linear.intercept).reshape(-1, *shape).astype(np.float32)
        row: dict[str, Any] = {"epoch": number, "shrinkage": shrinkage}
        row |= errors("train", fitted, inputs.train_targets[fit_rows], settings.batch_size)
        if len(held_rows):
            held = linear.predict(inputs.train, held_rows)
            row |= errors("held_out", held, inputs.train_targets[held_rows], settings.batch_size)
        values = {
            role: linear.predict(split.latents, np.arange(len(split.latents)))
            for role, split in inputs.evaluated.items()
        }
        for role, split in inputs.evaluated.items():
            row |= errors(role, values[role], split.targets, settings.batch_size)
        history.append(row)
        for pick in picks.values():
            if pick.consider(row, values) and pick is headline and folder is not None:
                save_checkpoint(folder / "best_model.pth", linear.state())
        if progress:
            progress.advance(len(inputs.train))
    return RegressionOutcome(
        dims=inputs.dims,
        groups=inputs.groups,
        splits={role: split_outcome(inputs, role, picks) for role in inputs.evaluated},
        history=history,
        settings={
            **asdict(settings), "preset": preset.name, "protocol": protocol, "seed": seed, "device": "cpu",
            "fit_samples": len(fit_rows), "held_out_samples": len(held_rows), "tokens": list(inputs.train.shape),
        },
        warnings=_warnings(history, headline.row),
    )  # fmt: skip


@dataclass(frozen=True)
class Linear:
    """A linear map from features (F,) to chunks of `shape` (K, A); coef (F, K * A), intercept (K * A)."""

    scaling: Scaling
    coef: Doubles
    intercept: Doubles
    shape: tuple[int, ...]

    def predict(self, source: LatentSource, rows: Ints) -> Floats:
        """Predicted chunks (n, K, A) float32 of `rows`."""
        parts = [
            self.scaling.apply(read(source, rows[start : start + CHUNK])) @ self.coef + self.intercept
            for start in range(0, len(rows), CHUNK)
        ]
        return np.concatenate(parts).reshape(-1, *self.shape).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Tensors for a checkpoint."""
        import torch

        arrays = {"coef": self.coef, "intercept": self.intercept, "mean": self.scaling.mean, "std": self.scaling.std}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def check_memory(rows: int, size: int) -> None:
    """Refuse features that don't fit. Raises UsageError with the numbers."""
    needed = 8 * (2 * rows * size + 2 * min(rows, size) ** 2)
    there = memory_bytes()
    if needed > MEMORY_SHARE * there:
        raise UsageError(
            f"The ridge probe needs {needed / 1e9:.1f} GB for {rows} samples of {size} values, this machine has "
            f"{there / 1e9:.1f} GB: pool the latents with --pool, project them with --project, or use --model-type mlp."
        )


def read(source: LatentSource, rows: Ints) -> Floats:
    """Tokens of `rows`. Raises LaryError if one isn't finite."""
    tokens: Floats = source.read(rows)
    if (bad := first_not_finite(tokens)) is not None:
        raise LaryError(
            f"The latents of row {rows[bad]} hold values that are not finite: check the model and extract this split "
            "again."
        )
    return tokens


def read_features(source: LatentSource, rows: Ints) -> tuple[Scaling, Doubles]:
    """The scaled features (n, F) of `rows`, and what scales them."""
    features = np.empty((len(rows), math.prod(source.shape)))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        features[start : start + len(part)] = read(source, part).reshape(len(part), -1)
    mean = features.mean(axis=0)
    features -= mean
    spread = np.sqrt(np.square(features).mean(axis=0).reshape(-1, source.shape[-1]).mean(axis=0))
    spread[spread < 1e-6 * max(1.0, float(np.abs(mean).max()))] = 1.0
    std = np.tile(spread, features.shape[1] // len(spread))
    features /= std
    return Scaling(mean, std), features


def _warnings(history: list[dict[str, Any]], chosen: dict[str, Any]) -> tuple[str, ...]:
    """A penalty at the end of the range may not be the best one there is."""
    if chosen["epoch"] != 1:
        return ()
    return (f"The smallest penalty of {len(history)} was picked: an even smaller one might do better.",)
