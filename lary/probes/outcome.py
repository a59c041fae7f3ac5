"""What a probe run hands on: predictions per validation sample, under each way of selecting, and its history.

Two selections stand in every outcome: ``held_out`` (head and epoch picked on a held-out tenth of the training
split, never on what is reported) and ``best_on_validation`` (picked on the reported split itself, as the published
code does). ``held_out`` is missing under the ``paper`` protocol, which trains on the whole training split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SelectionName = Literal["held_out", "best_on_validation"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SampleColumns:
    """Who the samples of a split are: one entry per sample (n), in one order with all predictions."""

    ids: tuple[str, ...]
    media: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    embodiments: tuple[str, ...]


@dataclass(frozen=True)
class ClassPredictions:
    """Scores of one selected head and epoch: `logits` (n, L) float32; `head` counts from 0."""

    epoch: int
    head: int
    logits: Floats


@dataclass(frozen=True)
class ClassificationOutcome:
    """A classification probe after training. `labels` (n,) int64; `controls` holds predicted labels (n,) by name."""

    classes: tuple[str, ...]
    samples: SampleColumns
    labels: Ints
    selections: Mapping[SelectionName, ClassPredictions]
    controls: Mapping[str, Ints]
    train_counts: Ints
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActionPredictions:
    """Predictions of one selected epoch, normalised, (n, K, A) float32."""

    epoch: int
    values: Floats


@dataclass(frozen=True)
class SplitOutcome:
    """One evaluated split: `targets` (n, K, A) float32 normalised; `mean`, `std` (n, A) give physical units back."""

    samples: SampleColumns
    targets: Floats
    mean: Floats
    std: Floats
    selections: Mapping[SelectionName, ActionPredictions]
    controls: Mapping[str, Floats]
    loss: Mapping[SelectionName, float]


@dataclass(frozen=True)
class RegressionOutcome:
    """A regression probe after training; `splits` by role: ``seen`` always, ``unseen`` where there is one."""

    dims: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]
    splits: Mapping[str, SplitOutcome]
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
