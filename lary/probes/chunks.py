"""What all regression probes have in common: inputs and their checks, rows held out, errors, the epoch picked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lary.probes.controls import mean_action
from lary.probes.metrics import huber_loss, mse
from lary.probes.outcome import ActionPredictions, Floats, Ints, SampleColumns, SelectionName, SplitOutcome
from lary.probes.sampler import hold_out
from lary.types import BenchmarkProtocol, LatentSource, UsageError

SEEN = "seen"
"""The role of the split that the published code picks its epoch on."""


@dataclass(frozen=True)
class EvaluatedSplit:
    """One split to report: normalised targets (n, K, A) float32; `mean`, `std` (n, A) give physical units back."""

    latents: LatentSource
    targets: Floats
    samples: SampleColumns
    mean: Floats
    std: Floats


@dataclass(frozen=True)
class RegressorInputs:
    """Latents and normalised targets (n, K, A) float32; `evaluated` by role: ``seen`` always, ``unseen`` optional."""

    train: LatentSource
    train_targets: Floats
    train_groups: tuple[str, ...]
    evaluated: Mapping[str, EvaluatedSplit]
    dims: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]


def errors(name: str, predicted: Floats, targets: Floats, batch_size: int) -> dict[str, float]:
    """Loss and mean squared error of one split, as columns of the history."""
    return {f"{name}_loss": huber_loss(predicted, targets, batch_size), f"{name}_mse": mse(predicted, targets)}


def make_picks(held_rows: Ints) -> dict[SelectionName, Pick]:
    """The ways to choose an epoch, the headline first; nothing held out leaves the published one."""
    published: dict[SelectionName, Pick] = {"best_on_validation": Pick(f"{SEEN}_mse")}
    return {"held_out": Pick("held_out_mse"), **published} if len(held_rows) else published


@dataclass
class Pick:
    """The epoch with the smallest error so far in one column of the history, and what was predicted then."""

    column: str
    row: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Floats] = field(default_factory=dict)

    def consider(self, row: dict[str, Any], values: dict[str, Floats]) -> bool:
        """Take this epoch if it is strictly better; says whether it was taken."""
        if row[self.column] >= self.row.get(self.column, math.inf):
            return False
        self.row, self.values = row, values
        return True


def check_inputs(inputs: RegressorInputs) -> None:
    """Refuse inputs that don't fit together."""
    if SEEN not in inputs.evaluated:
        raise UsageError("A regression probe needs the split 'seen' to report.")
    if not len(inputs.train) == len(inputs.train_targets) == len(inputs.train_groups):
        raise UsageError("Latents, targets and samples of the training split differ in number: extract it again.")
    for role, split in inputs.evaluated.items():
        if not len(split.latents) == len(split.targets) == len(split.samples.ids):
            raise UsageError(f"Latents, targets and samples of the {role} split differ in number: extract it again.")
        if split.latents.shape != inputs.train.shape:
            raise UsageError(
                f"Training latents have shape {inputs.train.shape}, {role} latents {split.latents.shape}: "
                "extract both splits with the same model and settings."
            )
        if split.targets.shape[1:] != inputs.train_targets.shape[1:]:
            raise UsageError(f"Action chunks of the training and the {role} split differ in length or dimensions.")
    if not all(len(targets) for targets in (inputs.train_targets, *(s.targets for s in inputs.evaluated.values()))):
        raise UsageError("A regression probe needs at least one sample in every split.")


def split_rows(inputs: RegressorInputs, protocol: BenchmarkProtocol, seed: int) -> tuple[Ints, Ints]:
    """Rows to fit on and rows held out; the published protocol fits on all of them."""
    if protocol == "paper":
        return np.arange(len(inputs.train), dtype=np.int64), np.empty(0, dtype=np.int64)
    return hold_out(inputs.train_groups, seed=seed)


def split_outcome(inputs: RegressorInputs, role: str, picks: Mapping[SelectionName, Pick]) -> SplitOutcome:
    """What the picked epochs say about one split."""
    split = inputs.evaluated[role]
    return SplitOutcome(
        samples=split.samples,
        targets=split.targets,
        mean=split.mean,
        std=split.std,
        selections={name: ActionPredictions(pick.row["epoch"], pick.values[role]) for name, pick in picks.items()},
        controls={"mean_action": mean_action(inputs.train_targets, len(split.targets))},
        loss={name: pick.row[f"{role}_loss"] for name, pick in picks.items()},
    )
