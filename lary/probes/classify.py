"""The classification probe: several attentive heads trained at once on the latents of a data set of labelled clips.

The heads see the same batches; each has its own AdamW and learning rate. Which head and epoch are reported is decided
on a held-out tenth of the training split (protocol ``corrected``), and beside it as the published code does: the best
head of the last epoch on the reported split itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lary.configs import ProbePrecision
from lary.files import write_text
from lary.probes.controls import majority_class
from lary.probes.fit import (
    ScaledSource,
    channel_statistics,
    in_bfloat16,
    keep_in_memory,
    save_checkpoint,
    team_batches,
    weights_of,
)
from lary.probes.heads import Head, Plan, Scores, make_heads, make_network, score
from lary.probes.memory import check_memory, count_weights, samples_at_once, training_need
from lary.probes.outcome import ClassificationOutcome, ClassPredictions, Floats, Ints, SampleColumns, SelectionName
from lary.probes.presets import ClassifierSettings, ProbePreset
from lary.probes.sampler import balanced_indices, class_weights, hold_out
from lary.probes.schedule import learning_rate
from lary.probes.session import UNATTENDED, Session
from lary.probes.state import StateFile
from lary.probes.tracker import flat
from lary.runtime import seed_everything
from lary.types import BenchmarkProtocol, LaryError, LatentSource, Progress, UsageError

CHECKPOINT = "latest.pt"


@dataclass(frozen=True)
class ClassifierInputs:
    """Latents and labels of both splits; labels (n,) int64 are positions in `classes`, groups episodes or videos."""

    train: LatentSource
    train_labels: Ints
    train_groups: tuple[str, ...]
    validation: LatentSource
    labels: Ints
    samples: SampleColumns
    classes: tuple[str, ...]


@dataclass
class _Best:
    """The head and epoch chosen so far on the held-out rows: most right, then smallest loss, then first."""

    rank: tuple[float, float] = (-1.0, -math.inf)
    chosen: ClassPredictions | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, epoch: int, heads: Sequence[Head], held: list[Scores], validation: list[Scores]) -> None:
        for head, own, reported in zip(heads, held, validation, strict=True):
            rank = (own.accuracy, -own.loss)
            if own.finite and reported.finite and rank > self.rank:
                self.rank = rank
                self.chosen = ClassPredictions(epoch, head.number, reported.logits)
                self.weights = weights_of(head.network)


def train_classifier(
    inputs: ClassifierInputs,
    preset: ProbePreset,
    *,
    protocol: BenchmarkProtocol,
    device: str,
    seed: int,
    folder: Path | None,
    progress: Progress | None,
    epochs: int | None = None,
    batch_size: int | None = None,
    precision: ProbePrecision | None = None,
    session: Session = UNATTENDED,
) -> ClassificationOutcome:
    """Train all heads and return what the selected ones say about every validation sample.

    Epochs count from 1. Every epoch writes ``log_r0.csv`` (epoch, train_acc, val_acc: per cent, best head) into
    `folder`; the last one ``latest.pt`` (``classifiers``: state dicts of all heads; ``selected``: the head to report;
    ``scaling``: mean and std by channel that the heads expect taken off, or None). `precision` of None is what the
    preset has on `device`. With an identity in `session` an interrupted training goes on where it was, and ends with
    the same bits on a CPU. `progress` advances by the size of the training split in every epoch.

    Raises:
        UsageError: the inputs don't fit together, nothing can be held out, or the heads don't fit into memory.
        LaryError: a latent isn't finite, or every head diverged.
    """
    given = preset.classifier
    settings = replace(given, epochs=epochs or given.epochs, batch_size=batch_size or given.batch_size)
    _check(inputs)
    bfloat16 = in_bfloat16(settings.bfloat16, precision, device)
    seed_everything(seed)
    rows = _split(inputs, protocol, seed)
    training = _Training(inputs, settings, device, bfloat16, seed, rows, session)
    kept = session.state_file(
        folder, asdict(settings), protocol, seed, device.partition(":")[0], bfloat16, list(inputs.train.shape),
        inputs.train_labels, inputs.labels, list(inputs.train_groups),
    )  # fmt: skip
    training.run(kept, folder, progress)
    assert training.last is not None
    best = training.best.chosen
    held_out: dict[SelectionName, ClassPredictions] = {"held_out": best} if best else {}
    selections: dict[SelectionName, ClassPredictions] = {**held_out, "best_on_validation": training.last}
    final = {name: float(np.mean(each.logits.argmax(axis=1) == inputs.labels)) for name, each in selections.items()}
    session.tracker.log({f"final/{name}_top1": value for name, value in final.items()}, training.plan.step)
    counts = np.bincount(inputs.train_labels, minlength=len(inputs.classes)).astype(np.int64)
    return ClassificationOutcome(
        classes=inputs.classes,
        samples=inputs.samples,
        labels=inputs.labels,
        selections=selections,
        controls={"majority_class": majority_class(counts, len(inputs.labels))},
        train_counts=counts,
        history=training.history,
        settings={
            **asdict(settings), "preset": preset.name, "protocol": protocol, "seed": seed, "device": device,
            "precision": "bf16" if bfloat16 else "fp32", "fit_samples": len(rows[0]), "held_out_samples": len(rows[1]),
            "tokens": list(inputs.train.shape),
        },
        warnings=(*_warnings(inputs), *filter(None, training.dropped)),
    )  # fmt: skip


def _check(inputs: ClassifierInputs) -> None:
    """Refuse inputs that don't fit together."""
    sizes = (len(inputs.train), len(inputs.train_labels), len(inputs.train_groups))
    if (
        len(set(sizes)) != 1
        or len(inputs.validation) != len(inputs.labels)
        or len(inputs.samples.ids) != len(inputs.labels)
    ):
        raise UsageError("Latents, labels and samples of a split differ in number: extract the split again.")
    if not len(inputs.train) or not len(inputs.validation):
        raise UsageError("A classification probe needs at least one training and one validation sample.")
    if inputs.train.shape[-1] != inputs.validation.shape[-1] or len(inputs.train.shape) != len(inputs.validation.shape):
        raise UsageError(
            f"Training latents have shape {inputs.train.shape}, validation latents {inputs.validation.shape}: "
            "extract both splits with the same model and settings."
        )
    count = len(inputs.classes)
    for name, labels in (("training", inputs.train_labels), ("validation", inputs.labels)):
        if len(outside := labels[(labels < 0) | (labels >= count)]):
            raise UsageError(
                f"Label {outside[0]} of the {name} split lies outside the {count} classes (0 to {count - 1}): "
                "check the label space of the data set's record."
            )
    if len(present := np.unique(inputs.train_labels)) == 1:
        raise UsageError(
            f"All {len(inputs.train)} training samples are of the class '{inputs.classes[present[0]]}': a probe needs "
            "at least two classes. Extract more of the training split."
        )


def _warnings(inputs: ClassifierInputs) -> tuple[str, ...]:
    """Classes that occur in the reported split and can't be learned."""
    unseen = np.setdiff1d(inputs.labels, inputs.train_labels)
    if not len(unseen):
        return ()
    names = ", ".join(inputs.classes[label] for label in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
    return (
        f"{len(unseen)} of {len(inputs.classes)} classes stand in the validation split and not among the "
        f"{len(inputs.train)} training samples ({names}): extract more of the training split.",
    )


def _split(inputs: ClassifierInputs, protocol: BenchmarkProtocol, seed: int) -> tuple[Ints, Ints]:
    """Rows to fit on and rows held out; the published protocol fits on all of them."""
    if protocol == "paper":
        return np.arange(len(inputs.train), dtype=np.int64), np.empty(0, dtype=np.int64)
    return hold_out(inputs.train_groups, inputs.train_labels, seed=seed)


class _Training:
    """The heads, what they are trained on, and what was found so far."""

    def __init__(
        self, inputs: ClassifierInputs, settings: ClassifierSettings, device: str, bfloat16: bool, seed: int,
        rows: tuple[Ints, Ints], session: Session,
    ) -> None:  # fmt: skip
        self.inputs, self.settings, self.seed, self.session = inputs, settings, seed, session
        self.fit_rows, self.held_rows = rows
        shape = inputs.train.shape
        self.plan = Plan(
            settings, device, bfloat16, per_epoch=math.ceil(len(self.fit_rows) / settings.batch_size),
            at_once=samples_at_once(shape, settings.model_dim, settings.depth, settings.batch_size, device),
            team=session.team,
        )  # fmt: skip
        self.best = _Best()
        self.last: ClassPredictions | None = None
        self.history: list[dict[str, Any]] = []
        self.dropped: list[str] = []

    def run(self, kept: StateFile, folder: Path | None, progress: Progress | None) -> None:
        """Train from what was kept to the end. Raises LaryError if every head diverged."""
        before = kept.load()
        if before is not None and "heads" not in before:  # nothing is left to train
            self._restore(before)
        else:
            self._train(before, kept, folder, progress)
        if progress and before is not None:
            progress.skip(before["epoch"] * len(self.inputs.train))

    def _train(
        self, before: dict[str, Any] | None, kept: StateFile, folder: Path | None, progress: Progress | None
    ) -> None:
        inputs, settings, plan = self.inputs, self.settings, self.plan
        dim, classes = inputs.train.shape[-1], len(inputs.classes)
        one = count_weights(lambda: make_network(settings, dim, classes))
        need = training_need((1 + len(settings.heads)) * one, inputs.train.shape, settings.batch_size)
        check_memory(need, inputs.train.shape, plan.device, f"classification probe of {len(settings.heads)} heads")
        scaling = channel_statistics(inputs.train, self.fit_rows) if settings.standardise else None
        train, validation = (self._ready(source, scaling) for source in (inputs.train, inputs.validation))
        heads = make_heads(settings, dim, classes, plan.device)
        if before is not None:
            self._restore(before)
            for head, state in zip(heads, before["heads"], strict=True):
                head.restore(state)
        weights = class_weights(inputs.train_labels[self.fit_rows])
        everything = np.arange(len(validation), dtype=np.int64)
        kept.restore_random()
        for epoch in range(len(self.history) + 1, settings.epochs + 1):
            rates = _rates(heads, plan, plan.step + 1)
            order = self.fit_rows[balanced_indices(weights, epoch - 1, self.seed)]
            shares, losses = self._train_epoch(heads, train, order, progress)
            held = score(heads, train, inputs.train_labels, self.held_rows, plan)
            if progress:
                progress.advance(len(self.held_rows))
            scores = score(heads, validation, inputs.labels, everything, plan)
            self.dropped = [head.dropped for head in heads]
            self._check_alive()
            self.history.append(_history_row(epoch, rates, shares, losses, held, scores))
            self.session.tracker.log(flat(self.history[-1]), plan.step)
            if held:
                self.best.consider(epoch, heads, held, scores)
            self.last = _best_of(epoch, scores)
            if folder is not None and plan.team.leads:
                _write_log(folder, self.history)
                if epoch == settings.epochs:
                    self._write_checkpoint(folder, heads, scaling)
            if epoch == settings.epochs:
                kept.keep(self._state, beside=(CHECKPOINT,), last=True)
            else:
                kept.keep(lambda: self._state() | self._weights(heads))

    def _ready(self, source: LatentSource, scaling: tuple[Floats, Floats] | None) -> LatentSource:
        return keep_in_memory(ScaledSource(source, *scaling) if scaling else source, self.plan.team.size)

    def _train_epoch(
        self, heads: Sequence[Head], source: LatentSource, order: Ints, progress: Progress | None
    ) -> tuple[list[float], list[float | None]]:
        """One pass over `order`: by head the share that was right and the mean loss; 0 and None for a dropped one."""
        plan, tracker = self.plan, self.session.tracker
        right, losses = [0] * len(heads), [0.0] * len(heads)
        for rows, tokens, count in team_batches(source, order, plan.settings.batch_size, plan.device, plan.team):
            plan.step += 1
            targets = torch.from_numpy(self.inputs.train_labels[rows]).to(plan.device)
            for head in (head for head in heads if not head.dropped):
                right[head.number] += head.update(tokens, targets, count, plan)
                losses[head.number] += head.loss * count
            self.dropped = [head.dropped for head in heads]
            self._check_alive()
            if tracker.wanted:
                told = {
                    "batch_loss": [head.loss for head in heads],
                    "batch_learning_rate": _rates(heads, plan, plan.step),
                }
                tracker.log(flat(told), plan.step)
            if progress:
                progress.advance(count)
        return (
            [0.0 if head.dropped else right[head.number] / len(order) for head in heads],
            [None if head.dropped else losses[head.number] / len(order) for head in heads],
        )

    def _check_alive(self) -> None:
        if all(self.dropped):
            rates = ", ".join(f"{head.lr:g}" for head in self.settings.heads)
            raise LaryError(
                f"Every head of the probe diverged by epoch {self.plan.epoch} (learning rates {rates}): check the "
                "scale of the latents, or train with another --probe-preset."
            )

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": len(self.history), "step": self.plan.step, "history": self.history, "dropped": self.dropped,
            "rank": list(self.best.rank), "chosen": _plain(self.best.chosen),
            "last": _plain(self.last),
        }  # fmt: skip

    def _weights(self, heads: Sequence[Head]) -> dict[str, Any]:
        return {"heads": [head.state() for head in heads], "weights": self.best.weights}

    def _restore(self, state: dict[str, Any]) -> None:
        self.plan.step, self.history, self.dropped = state["step"], state["history"], state["dropped"]
        first, second = state["rank"]
        self.best = _Best((first, second), _predictions(state["chosen"]), state.get("weights", {}))
        self.last = _predictions(state["last"])

    def _write_checkpoint(self, folder: Path, heads: Sequence[Head], scaling: tuple[Floats, Floats] | None) -> None:
        """``latest.pt``: all heads after this epoch, and the one that is reported."""
        states = [head.network.state_dict() for head in heads]
        selected: dict[str, Any] | None = None
        if self.best.chosen:
            chosen = self.best.chosen
            selected = {"head": chosen.head, "epoch": chosen.epoch, "weights": self.best.weights}
        elif self.last:
            selected = {"head": self.last.head, "epoch": self.last.epoch, "weights": states[self.last.head]}
        value = {"classifiers": states, "epoch": len(self.history), "selected": selected}
        value["settings"] = asdict(self.settings)
        value["scaling"] = (
            {"mean": torch.from_numpy(scaling[0]), "std": torch.from_numpy(scaling[1])} if scaling else None
        )
        save_checkpoint(folder / CHECKPOINT, value)


def _plain(chosen: ClassPredictions | None) -> dict[str, Any] | None:
    """A selection as plain values and tensors."""
    if chosen is None:
        return None
    return {"epoch": chosen.epoch, "head": chosen.head, "logits": torch.from_numpy(chosen.logits)}


def _predictions(plain: dict[str, Any] | None) -> ClassPredictions | None:
    """What `_plain` was made of."""
    if plain is None:
        return None
    return ClassPredictions(plain["epoch"], plain["head"], plain["logits"].numpy())


def _rates(heads: Sequence[Head], plan: Plan, step: int) -> list[float]:
    """The learning rates of all heads at an update."""
    return [learning_rate(head.settings, step, plan.total, plan.per_epoch) for head in heads]


def _best_of(epoch: int, scores: list[Scores]) -> ClassPredictions | None:
    """The published choice: the first of the best heads of one epoch; None if every head diverged."""
    usable = [number for number, own in enumerate(scores) if own.finite]
    if not usable:
        return None
    head = max(usable, key=lambda number: scores[number].accuracy)
    return ClassPredictions(epoch, head, scores[head].logits)


def _history_row(
    epoch: int, rates: list[float], shares: list[float], losses: list[float | None], held: list[Scores],
    scores: list[Scores],
) -> dict[str, Any]:  # fmt: skip
    """One entry of the history: a list with a value per head under every key, accuracies in [0, 1]."""
    row: dict[str, Any] = {"epoch": epoch, "learning_rate": rates, "train_accuracy": shares, "train_loss": losses}
    for name, part in (("held_out", held), ("validation", scores)):
        if part:
            row[f"{name}_accuracy"] = [own.accuracy for own in part]
            row[f"{name}_loss"] = [own.loss if math.isfinite(own.loss) else None for own in part]
    return row


def _write_log(folder: Path, history: list[dict[str, Any]]) -> None:
    """``log_r0.csv`` of all epochs so far: per cent, the best head."""
    lines = ["epoch,train_acc,val_acc"]
    for row in history:
        train, validation = 100 * max(row["train_accuracy"]), 100 * max(row["validation_accuracy"])
        lines.append(f"{row['epoch']},{train:.5f},{validation:.5f}")
    write_text(folder / "log_r0.csv", "\n".join(lines) + "\n")
