"""The ridge probe: action chunks as a linear function of the flattened latents, in closed form.

Every value is centred, and scaled by its channel: scaled by itself, a value that hardly ever changes in training would
blow up what is seen there for the first time.

A fast reference for the trained probes. Its penalty takes the part of their epoch: it is picked on the held-out
tenth of the training split (protocol ``corrected``), and beside it on the reported split.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lary.probes.outcome import Floats, Ints, RegressionOutcome, Values
from lary.probes.presets import ProbePreset
from lary.probes.regress import Evaluation, RegressorInputs, check_regression, errors
from lary.probes.session import Session, save_checkpoint
from lary.probes.sources import CHUNK, read_finite, split_training_rows
from lary.runtime import memory_bytes
from lary.types import LatentSource, UsageError

RIDGE_SHARE = 0.6
"""Share of this machine's memory that the features and their Gram matrix may take."""


def fit_ridge(inputs: RegressorInputs, preset: ProbePreset, session: Session) -> RegressionOutcome:
    """Fit one model per penalty and return the predictions of the picked ones for every evaluated sample.

    In the outcome an epoch is the number of a penalty, from 1. ``best_model.pth`` in the session's folder holds
    ``coef`` (F, K * A), ``intercept`` (K * A), ``mean`` and ``std`` (F) of the reported one. The progress advances by
    the size of the training split for every penalty.

    Raises:
        UsageError: the inputs don't fit together, nothing can be held out, or the features don't fit into memory.
        LaryError: a latent isn't finite.
    """
    import torch
    from sklearn.linear_model import Ridge

    settings = preset.ridge
    check_regression(inputs)
    fit_rows, held_rows = split_training_rows(session.protocol, inputs.train_groups, seed=session.seed)
    size = math.prod(inputs.train.shape)
    _check_features(len(fit_rows), size)
    mean, std, features = read_features(inputs.train, fit_rows)
    targets = inputs.train_targets[fit_rows]
    evaluation = Evaluation(inputs, held_rows, settings.batch_size)
    history: list[dict[str, Any]] = []
    for number, shrinkage in enumerate(settings.shrinkages, start=1):
        alpha = shrinkage * max(len(fit_rows), size)
        model = Ridge(alpha=alpha, solver="cholesky").fit(features, targets.reshape(len(targets), -1))
        coef, intercept = np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)
        linear = {"coef": coef, "intercept": intercept, "mean": mean, "std": std}
        fitted = (features @ coef + intercept).reshape(targets.shape).astype(np.float32)
        row: dict[str, Any] = {"epoch": number, "shrinkage": shrinkage}
        row |= errors("train", fitted, targets, settings.batch_size)
        values = evaluation.score(row, partial(_predict, linear, targets.shape[1:]))
        history.append(row)
        if evaluation.consider(row, values) and session.folder is not None:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in linear.items()}
            save_checkpoint(session.folder / "best_model.pth", tensors)
        session.advance(len(inputs.train))
    warnings: tuple[str, ...] = ()
    if next(iter(evaluation.picks.values())).row["epoch"] == 1:  # the end of the range may not be the best there is
        warnings = (f"The smallest penalty of {len(history)} was picked: an even smaller one might do better.",)
    stated = replace(session, device="cpu").settings(settings, preset.name, (fit_rows, held_rows))
    return evaluation.outcome(history, stated, warnings)


def _predict(linear: dict[str, Values], shape: tuple[int, ...], source: LatentSource, rows: Ints) -> Floats:
    """Predicted chunks (n, *shape) float32 of `rows`."""
    parts = []
    for start in range(0, len(rows), CHUNK):
        tokens = read_finite(source, rows[start : start + CHUNK])
        features = (tokens.reshape(len(tokens), -1).astype(np.float64) - linear["mean"]) / linear["std"]
        parts.append(features @ linear["coef"] + linear["intercept"])
    return np.concatenate(parts).reshape(-1, *shape).astype(np.float32)


def _check_features(rows: int, size: int) -> None:
    """Refuse features that don't fit. Raises UsageError with the numbers."""
    needed = 8 * (2 * rows * size + 2 * min(rows, size) ** 2)
    present = memory_bytes()
    if needed > RIDGE_SHARE * present:
        raise UsageError(
            f"The ridge probe needs {needed / 1e9:.1f} GB for {rows} samples of {size} values, this machine has "
            f"{present / 1e9:.1f} GB: pool the latents with --pool, project them with --project, or use --model-type "
            "mlp."
        )


def read_features(source: LatentSource, rows: Ints) -> tuple[Values, Values, Values]:
    """Mean of each feature, standard deviation of its channel, both (F,), and the scaled features (n, F) of `rows`."""
    features = np.empty((len(rows), math.prod(source.shape)))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        features[start : start + len(part)] = read_finite(source, part).reshape(len(part), -1)
    mean = features.mean(axis=0)
    features -= mean
    spread = np.sqrt(np.square(features).mean(axis=0).reshape(-1, source.shape[-1]).mean(axis=0))
    spread[spread < 1e-6 * max(1.0, float(np.abs(mean).max()))] = 1.0
    std = np.tile(spread, features.shape[1] // len(spread))
    features /= std
    return mean, std, features
