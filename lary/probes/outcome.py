"""Outcome of a probe: predictions per validation sample, and their metrics.

An outcome has two selections: ``held_out`` (the average of the last epochs or
of the heads, or a ridge's penalty by cross-validation) and
``best_on_validation`` (picked on the reported split), ``paper``'s only one.

Splits have n samples, L classes, and chunks of K steps and A dimensions.
Shares are in [0, 1]; errors of actions are normalised, not in physical units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lary.arrays import Array, Doubles, Floats, Ints
from lary.types import JsonDict

SelectionName = Literal["held_out", "best_on_validation"]


def headline(selections: Mapping[SelectionName, Any]) -> SelectionName:
    """The selection to report: if there is any, one that reads nothing of the split."""
    return "held_out" if "held_out" in selections else "best_on_validation"


EPSILON = 1e-9
"""Added to the denominators of precision, recall and F1, as published."""


@dataclass(frozen=True)
class SampleColumns:
    """Identity of the samples of a split, in their order."""

    ids: tuple[str, ...]
    media: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    embodiments: tuple[str, ...]


@dataclass(frozen=True)
class ClassPredictions:
    """Scores (n, L) float32 of an epoch (from 1) and head (from 0; None: mean of all)."""

    epoch: int
    head: int | None
    logits: Floats


@dataclass(frozen=True)
class ClassificationOutcome:
    """A trained classification probe; `controls` are predicted labels (n,) by name."""

    classes: tuple[str, ...]
    samples: SampleColumns
    labels: Ints
    selections: Mapping[SelectionName, ClassPredictions]
    controls: Mapping[str, Ints]
    train_counts: Ints
    history: list[JsonDict] = field(default_factory=list)
    settings: JsonDict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActionPredictions:
    """Predictions of one selected epoch, normalised, (n, K, A) float32."""

    epoch: int
    values: Floats
    head: None = None


@dataclass(frozen=True)
class SplitOutcome:
    """An evaluated split; `mean`, `std` (n, A) turn targets (n, K, A) into units."""

    samples: SampleColumns
    targets: Floats
    mean: Floats
    std: Floats
    selections: Mapping[SelectionName, ActionPredictions]
    controls: Mapping[str, Floats]
    loss: Mapping[SelectionName, float]


@dataclass(frozen=True)
class RegressionOutcome:
    """A trained regression probe; `splits` by role, ``seen`` and perhaps ``unseen``."""

    dims: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]
    splits: Mapping[str, SplitOutcome]
    history: list[JsonDict] = field(default_factory=list)
    settings: JsonDict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts (L, L) int64: rows are the predicted, columns the true class."""
    cells = np.bincount(predicted * classes + labels, minlength=classes * classes)
    return cells.reshape(classes, classes)


def class_statistics(confusion: Ints) -> dict[str, Array]:
    """Precision (share of a row), recall (of a column), F1 and true samples by class, (L,)."""
    hits = np.diagonal(confusion).astype(np.float64)
    precision = hits / (confusion.sum(axis=1) + EPSILON)
    recall = hits / (confusion.sum(axis=0) + EPSILON)
    f1 = 2 * precision * recall / (precision + recall + EPSILON)
    return {"precision": precision, "recall": recall, "f1": f1, "true": confusion.sum(axis=0)}


def mse(predicted: Floats, targets: Floats) -> float:
    """Mean squared error over samples, steps and dimensions of (n, K, A)."""
    return float(np.mean(np.square(predicted - targets), dtype=np.float64))


def mse_per_dim(predicted: Floats, targets: Floats) -> Doubles:
    """Mean squared error of every action dimension, (n, K, A) -> (A,)."""
    return np.asarray(np.square(predicted - targets).mean(axis=(0, 1), dtype=np.float64))


def mse_per_group(predicted: Floats, targets: Floats, groups: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Mean squared error of (n, K, A) over each named group of dimensions."""
    per_dim = mse_per_dim(predicted, targets)
    return {name: float(np.mean(per_dim[list(dims)])) for name, dims in groups.items()}


def huber_loss(predicted: Floats, targets: Floats, batch_size: int) -> float:
    """The published validation loss: the mean Huber loss of batches, a small last one included."""
    size = np.abs(predicted - targets)
    loss = np.where(size < 1, 0.5 * np.square(size), size - 0.5)
    batches = (loss[start : start + batch_size] for start in range(0, len(loss), batch_size))
    return float(np.mean([np.mean(batch, dtype=np.float64) for batch in batches]))
