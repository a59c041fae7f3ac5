"""The classification probe: several attentive heads trained at once on the latents of a data set of labelled clips.

The heads see the same batches; each has its own AdamW and learning rate. Which head and epoch are reported is decided
on a held-out tenth of the training split (protocol ``corrected``), and beside it as the published code does: the best
head of the last epoch on the reported split itself.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lary.configs import ProbePrecision
from lary.files import write_text
from lary.probes.nets import AttentiveProbe
from lary.probes.outcome import (
    ClassificationOutcome,
    ClassPredictions,
    Ints,
    SampleColumns,
    SelectionName,
    accuracy,
)
from lary.probes.presets import ClassifierSettings, HeadSettings, ProbePreset
from lary.probes.session import Session, StateFile, save_checkpoint
from lary.probes.sources import (
    balanced_indices,
    channel_statistics,
    class_weights,
    keep_in_memory,
    split_training_rows,
    standardised,
)
from lary.probes.training import (
    Training,
    adamw,
    check_tokens,
    count_weights,
    in_bfloat16,
    learning_rate,
    samples_at_once,
    training_precision,
    weight_decay,
)
from lary.runtime import log, seed_everything
from lary.types import LaryError, LatentSource, UsageError


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
class Head:
    """One head in training, and its loss on the latest batch."""

    number: int
    settings: HeadSettings
    network: AttentiveProbe
    optimizer: torch.optim.AdamW
    loss: float = math.nan


@dataclass(frozen=True)
class HeadScores:
    """Logits (H, n, L) of all heads on some rows, and by head: Top-1, loss, and whether all of them are finite.

    A row that isn't finite counts as wrong.
    """

    logits: Tensor
    accuracy: list[float]
    loss: list[float]
    finite: list[bool]

    def of(self, head: int, epoch: int) -> ClassPredictions:
        """The scores of one head as predictions."""
        return ClassPredictions(epoch, head, self.logits[head].contiguous().numpy())

    def columns(self, name: str) -> dict[str, Any]:
        """The numbers of all heads as columns of the history."""
        losses = [loss if math.isfinite(loss) else None for loss in self.loss]
        return {f"{name}_accuracy": self.accuracy, f"{name}_loss": losses}


def train_classifier(
    inputs: ClassifierInputs,
    preset: ProbePreset,
    session: Session,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    precision: ProbePrecision | None = None,
) -> ClassificationOutcome:
    """Train all heads and return the predictions of the selected ones for every validation sample.

    Epochs count from 1. Every epoch writes ``log_r0.csv`` (epoch, train_acc, val_acc: per cent, best head) into the
    session's folder; the last one ``latest.pt`` (``classifiers``: state dicts of all heads; ``selected``: the head to
    report; ``scaling``: mean and std by channel that the heads expect taken off, or None). `precision` of None is that
    of the preset on the device. With an identity in `session` an interrupted training is resumed, and its result is
    bit-identical on a CPU. The progress advances by the size of the training split in every epoch.

    Raises:
        UsageError: the inputs don't fit together, nothing can be held out, or the heads don't fit into memory.
        LaryError: a latent isn't finite, or every head diverged.
    """
    given = preset.classifier
    settings = replace(given, epochs=epochs or given.epochs, batch_size=batch_size or given.batch_size)
    _check(inputs)
    bfloat16 = in_bfloat16(settings.bfloat16, precision, session.device)
    seed_everything(session.seed)
    rows = split_training_rows(session.protocol, inputs.train_groups, inputs.train_labels, seed=session.seed)
    training = ClassifierTraining(inputs, settings, session, rows, bfloat16)
    training.run(
        StateFile(
            session, asdict(settings), bfloat16, list(inputs.train.shape),
            inputs.train_labels, inputs.labels, list(inputs.train_groups),
        )
    )  # fmt: skip
    selections: dict[SelectionName, ClassPredictions] = {}
    if training.best is not None:
        selections["held_out"] = training.best
    assert training.last is not None
    selections["best_on_validation"] = training.last
    training.log({
        f"final/{name}_top1": accuracy(inputs.labels, each.logits.argmax(axis=1)) for name, each in selections.items()
    })  # fmt: skip
    counts = np.bincount(inputs.train_labels, minlength=len(inputs.classes)).astype(np.int64)
    return ClassificationOutcome(
        classes=inputs.classes,
        samples=inputs.samples,
        labels=inputs.labels,
        selections=selections,
        controls={"majority_class": np.full(len(inputs.labels), int(np.argmax(counts)), dtype=np.int64)},
        train_counts=counts,
        history=training.history,
        settings=session.settings(settings, preset.name, rows, precision="bf16" if bfloat16 else "fp32")
        | {"tokens": list(inputs.train.shape)},
        warnings=(*_warnings(inputs), *filter(None, training.dropped)),
    )


def _check(inputs: ClassifierInputs) -> None:
    """Refuse inputs that don't fit together."""
    sizes = (len(inputs.train), len(inputs.train_labels), len(inputs.train_groups))
    if len(set(sizes)) != 1 or not len(inputs.validation) == len(inputs.labels) == len(inputs.samples.ids):
        raise UsageError("Latents, labels and samples of a split differ in number: extract the split again.")
    if not len(inputs.train) or not len(inputs.validation):
        raise UsageError("A classification probe needs at least one training and one validation sample.")
    check_tokens(inputs.train.shape)
    if inputs.train.shape[-1] != inputs.validation.shape[-1] or len(inputs.train.shape) != len(inputs.validation.shape):
        raise UsageError(
            f"Training latents have shape {inputs.train.shape}, validation latents {inputs.validation.shape}: "
            "extract both splits with the same model and settings."
        )
    count = len(inputs.classes)
    for name, labels in (("training", inputs.train_labels), ("validation", inputs.labels)):
        if len(outside := labels[(labels < 0) | (labels >= count)]):
            raise UsageError(
                f"Label {outside[0]} of the {name} split is outside the {count} classes (0 to {count - 1}): "
                "check the label space of the data set's record."
            )
    if len(present := np.unique(inputs.train_labels)) == 1:
        raise UsageError(
            f"All {len(inputs.train)} training samples are of the class '{inputs.classes[present[0]]}': a probe needs "
            "at least two classes. Extract more of the training split."
        )


def _warnings(inputs: ClassifierInputs) -> tuple[str, ...]:
    """A warning of classes that occur in the reported split and can't be learned."""
    unseen = np.setdiff1d(inputs.labels, inputs.train_labels)
    if not len(unseen):
        return ()
    names = ", ".join(inputs.classes[label] for label in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
    return (
        f"{len(unseen)} of {len(inputs.classes)} classes are in the validation split but not among the "
        f"{len(inputs.train)} training samples ({names}): extract more of the training split.",
    )


class ClassifierTraining(Training):
    """The heads in training; a head whose loss or output isn't finite is dropped and trained no longer."""

    checkpoint = "latest.pt"

    def __init__(
        self, inputs: ClassifierInputs, settings: ClassifierSettings, session: Session, rows: tuple[Ints, Ints],
        bfloat16: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(session, rows, settings.epochs, settings.batch_size)
        self.inputs, self.settings, self.bfloat16 = inputs, settings, bfloat16
        self.at_once = samples_at_once(
            inputs.train.shape, settings.model_dim, settings.depth, self.batch_size, self.device
        )
        self.dropped = [""] * len(settings.heads)
        """The sentence that says why a head is trained no longer, by head."""
        self.best: ClassPredictions | None = None
        self.last: ClassPredictions | None = None
        self.best_rank = (-1.0, -math.inf)
        self.best_weights: dict[str, Tensor] = {}

    def build(self) -> dict[str, Any]:
        inputs, settings = self.inputs, self.settings
        dim, classes = inputs.train.shape[-1], len(inputs.classes)
        # One head more than there are: the best one so far is kept as a copy.
        weights = (1 + len(settings.heads)) * count_weights(lambda: make_head(settings, dim, classes))
        self.check_memory(weights, inputs.train.shape, f"classification probe of {len(settings.heads)} heads")
        self.scaling = channel_statistics(inputs.train, self.fit_rows) if settings.standardise else None
        self.train, self.validation = (
            keep_in_memory(standardised(source, *self.scaling) if self.scaling else source, self.team.size)
            for source in (inputs.train, inputs.validation)
        )
        self.heads = []
        for number, own in enumerate(settings.heads):
            network = make_head(settings, dim, classes).to(self.device)
            self.heads.append(Head(number, own, network, adamw(network, own.lr, own.weight_decay)))
        self.chances = class_weights(inputs.train_labels[self.fit_rows])
        networks = {f"network {head.number}": head.network for head in self.heads}
        return networks | {f"optimizer {head.number}": head.optimizer for head in self.heads}

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        inputs = self.inputs
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": self.rates(self.step + 1)}
        row |= self.train_epoch(self.fit_rows[balanced_indices(self.chances, epoch - 1, self.session.seed)])
        everything = np.arange(len(inputs.labels))
        held = self.score(self.train, inputs.train_labels, self.held_rows) if len(self.held_rows) else None
        self.session.advance(len(self.held_rows))
        scores = self.score(self.validation, inputs.labels, everything)
        self._check_alive()
        for number, head in enumerate(self.heads):
            if held and held.finite[number] and scores.finite[number]:
                rank = (held.accuracy[number], -held.loss[number])
                if rank > self.best_rank:
                    self.best_rank, self.best = rank, scores.of(number, epoch)
                    # A copy, which later updates leave alone.
                    self.best_weights = {key: value.cpu().clone() for key, value in head.network.state_dict().items()}
        # The published choice: the first of the best heads of one epoch.
        usable = [number for number, finite in enumerate(scores.finite) if finite]
        self.last = scores.of(max(usable, key=lambda number: scores.accuracy[number]), epoch)
        return row | (held.columns("held_out") if held else {}) | scores.columns("validation")

    def train_epoch(self, order: Ints) -> dict[str, Any]:
        """One pass over `order`: by head the share that was right and the mean loss; 0 and None for a dropped one."""
        right, losses = [0] * len(self.heads), [0.0] * len(self.heads)
        for rows, tokens, count in self.batches(self.train, order):
            targets = torch.from_numpy(self.inputs.train_labels[rows]).to(self.device)
            for head in self.heads:
                if not self.dropped[head.number]:
                    right[head.number] += self.update(head, tokens, targets, count)
                    losses[head.number] += head.loss * count
            self._check_alive()
            if self.session.tracker is not None:
                self.log({
                    "batch_loss": [head.loss for head in self.heads], "batch_learning_rate": self.rates(self.step)
                })  # fmt: skip
        alive = [not dropped for dropped in self.dropped]
        return {
            "train_accuracy": [right[n] / len(order) if own else 0.0 for n, own in enumerate(alive)],
            "train_loss": [losses[n] / len(order) if own else None for n, own in enumerate(alive)],
        }

    def update(self, head: Head, tokens: Tensor, labels: Tensor, count: int) -> int:
        """One update by this process's share of a batch of `count` samples; how many of all were right.

        The head is dropped, and keeps its weights, if a loss or an output isn't finite.
        """
        for group in head.optimizer.param_groups:
            group["lr"] = learning_rate(head.settings, self.step, self.total, self.per_epoch)
            group["weight_decay"] = weight_decay(head.settings, self.step, self.total)
        head.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.device)
        parts = zip(*(torch.split(given, self.at_once) for given in (tokens, labels)), strict=True)
        for own, part in parts:
            if not len(own):  # a process without a share of a small batch
                continue
            with training_precision(self.device, self.bfloat16):
                logits = head.network(own)
                smoothing = self.settings.label_smoothing
                loss = F.cross_entropy(logits, part, label_smoothing=smoothing, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
            unusable = ~(torch.isfinite(loss) & torch.isfinite(logits).all())
            sums += torch.stack([loss.detach().float(), (logits.argmax(dim=1) == part).sum().float(), unusable.float()])
        self.team.add(sums)
        head.loss, right, unusable_parts = sums.tolist()
        if unusable_parts or not math.isfinite(head.loss):
            self._drop(head, f"update {(self.step - 1) % self.per_epoch + 1}")
            return 0
        self.team.add_gradients(head.network)
        head.optimizer.step()
        return int(right)

    def score(self, source: LatentSource, labels: Ints, rows: Ints) -> HeadScores:
        """Scores of every head for `rows`, in float32. A head whose output isn't finite is dropped."""

        def logits_of(tokens: Tensor) -> Tensor:
            """Logits (B, H, L) of all heads, NaN for a dropped one."""
            nothing = torch.full((len(tokens), len(self.inputs.classes)), math.nan)
            return torch.stack([
                nothing if self.dropped[head.number]
                else torch.cat([head.network(part).float().cpu() for part in torch.split(tokens, self.at_once)])
                for head in self.heads
            ], dim=1)  # fmt: skip

        logits = self.predict(logits_of, source, rows).transpose(0, 1)
        targets = torch.from_numpy(labels[rows])
        finite = torch.isfinite(logits).all(dim=2)
        right = (logits.argmax(dim=2) == targets) & finite
        losses = [float(F.cross_entropy(own, targets, label_smoothing=self.settings.label_smoothing)) for own in logits]
        usable: list[bool] = finite.all(dim=1).tolist()
        for head in self.heads:
            if not usable[head.number] and not self.dropped[head.number]:
                self._drop(head, "when it was scored")
        return HeadScores(logits, right.double().mean(dim=1).tolist(), losses, usable)

    def rates(self, step: int) -> list[float]:
        """The learning rates of all heads at an update."""
        return [learning_rate(head, step, self.total, self.per_epoch) for head in self.settings.heads]

    def _drop(self, head: Head, where: str) -> None:
        """Train a head no longer, and say so."""
        self.dropped[head.number] = (
            f"Head {head.number} (learning rate {head.settings.lr:g}) was dropped in epoch {len(self.history) + 1}, "
            f"{where}: its loss or output was not finite. Numbers of earlier epochs still count."
        )
        log.warning("%s", self.dropped[head.number])

    def _check_alive(self) -> None:
        if all(self.dropped):
            rates = ", ".join(f"{head.lr:g}" for head in self.settings.heads)
            raise LaryError(
                f"Every head of the probe diverged by epoch {len(self.history) + 1} (learning rates {rates}): check "
                "the scale of the latents, or train with another --probe-preset."
            )

    def close_epoch(self, epoch: int) -> None:
        """Write ``log_r0.csv`` of all epochs so far, and after the last one ``latest.pt``."""
        if self.folder is None:
            return
        lines = ["epoch,train_acc,val_acc"]
        for row in self.history:
            train, validation = 100 * max(row["train_accuracy"]), 100 * max(row["validation_accuracy"])
            lines.append(f"{row['epoch']},{train:.5f},{validation:.5f}")
        write_text(self.folder / "log_r0.csv", "\n".join(lines) + "\n")
        if epoch < self.epochs:
            return
        states = [head.network.state_dict() for head in self.heads]
        chosen = self.best or self.last
        assert chosen is not None
        weights = self.best_weights if self.best else states[chosen.head]
        pair = zip(("mean", "std"), map(torch.from_numpy, self.scaling), strict=True) if self.scaling else None
        value = {
            "classifiers": states, "epoch": epoch,
            "selected": {"head": chosen.head, "epoch": chosen.epoch, "weights": weights},
            "settings": asdict(self.settings), "scaling": dict(pair) if pair else None,
        }  # fmt: skip
        save_checkpoint(self.folder / self.checkpoint, value)

    def found(self) -> dict[str, Any]:
        chosen = {
            name: each and {"epoch": each.epoch, "head": each.head, "logits": torch.from_numpy(each.logits)}
            for name, each in (("best", self.best), ("last", self.last))
        }
        return {**chosen, "dropped": self.dropped, "rank": list(self.best_rank), "weights": self.best_weights}

    def restore(self, before: dict[str, Any]) -> None:
        self.best, self.last = (
            each and ClassPredictions(each["epoch"], each["head"], each["logits"].numpy())
            for each in (before["best"], before["last"])
        )
        first, second = before["rank"]
        self.dropped, self.best_rank, self.best_weights = before["dropped"], (first, second), before["weights"]


def make_head(settings: ClassifierSettings, dim: int, classes: int) -> AttentiveProbe:
    """The network of one head."""
    return AttentiveProbe(
        dim, classes, settings.model_dim, settings.num_heads, settings.depth, settings.max_temporal_len
    )
