"""The classification probe: several attentive heads trained at once on the latents of a data set of labelled clips.

The heads see the same batches; each has its own AdamW and learning rate. Which head and
epoch are reported is decided on a held-out tenth of the training split (protocol
``corrected``), and beside it as the published code does: the best head of the last epoch on
the reported split itself.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lary.configs import ProbePrecision
from lary.files import write_text
from lary.probes.nets import AttentiveProbe
from lary.probes.outcome import ClassificationOutcome, ClassPredictions, Ints, SampleColumns, accuracy
from lary.probes.presets import ClassifierSettings, HeadSettings, learning_rate, weight_decay
from lary.probes.sources import (
    balanced_indices,
    channel_statistics,
    check_memory,
    check_splits,
    class_weights,
    keep_in_memory,
    samples_at_once,
    standardised,
    training_rows,
)
from lary.probes.training import Session, Training, adamw, save_checkpoint
from lary.runtime import log, seed_everything
from lary.types import LaryError, LatentSource, UsageError


@dataclass(frozen=True)
class ClassifierInputs:
    """Latents and labels of both splits; labels (n,) int64 are positions in `classes`, groups episodes or videos."""

    train: LatentSource
    train_targets: Ints
    train_groups: tuple[str, ...]
    validation: LatentSource
    labels: Ints
    samples: SampleColumns
    classes: tuple[str, ...]


def train_classifier(
    inputs: ClassifierInputs, settings: ClassifierSettings, session: Session, precision: ProbePrecision | None = None
) -> ClassificationOutcome:
    """Train all heads and return the predictions of the selected ones for every validation sample.

    Epochs count from 1. Every epoch writes ``log_r0.csv`` (epoch, train_acc, val_acc: per
    cent, best head) into the session's folder; the last one ``latest.pt`` (``classifiers``:
    state dicts of all heads; ``selected``: the head to report; ``scaling``: mean and std by
    channel that the heads expect taken off, or None). `precision` of None is that of the
    preset on the device. With an identity in `session` an interrupted training is resumed,
    and its result is bit-identical on a CPU. The progress advances by the size of the
    training split in every epoch.

    Raises:
        UsageError: the inputs don't fit together, nothing can be held out, or the heads
            don't fit into memory.
        LaryError: every head diverged.
    """
    check_splits((inputs.train, inputs.train_targets), (inputs.validation, inputs.labels))
    present = np.unique(inputs.train_targets)
    if len(present) == 1:
        raise UsageError(
            f"All {len(inputs.train)} training samples are of the class '{inputs.classes[present[0]]}': a probe needs "
            "at least two classes. Extract more of the training split."
        )
    seed_everything(session.seed)
    bfloat16 = in_bfloat16(settings.bfloat16, precision, session.device)
    rows = training_rows(session.protocol, inputs.train_groups, inputs.train_targets, seed=session.seed)
    training = ClassifierTraining(inputs, settings, session, rows, bfloat16)
    training.run()
    return training.outcome()


class ClassifierTraining(Training):
    """The heads in training; a head whose loss or output isn't finite is dropped and trained no longer."""

    checkpoint = "latest.pt"

    def __init__(
        self, inputs: ClassifierInputs, settings: ClassifierSettings, session: Session, rows: tuple[Ints, Ints],
        bfloat16: bool,
    ) -> None:  # fmt: skip
        super().__init__(
            session, settings, rows,
            bfloat16, list(inputs.train.shape), inputs.train_targets, inputs.labels, list(inputs.train_groups),
        )  # fmt: skip
        self.inputs, self.bfloat16 = inputs, bfloat16
        self.at_once = samples_at_once(
            inputs.train.shape, settings.model_dim, settings.depth, settings.batch_size, self.device
        )
        self.networks: list[AttentiveProbe] = []
        self.optimizers: list[torch.optim.AdamW] = []

    def build(self) -> dict[str, Any]:
        inputs, settings = self.inputs, self.settings
        # One head more than there are: the best one so far is kept as a copy.
        copies = 1 + len(settings.heads)
        check_memory(self.make_head, copies, settings.batch_size, inputs.train.shape, self.device)
        self.scaling = channel_statistics(inputs.train, self.fit_rows) if settings.standardise else None
        self.train, self.validation = (
            keep_in_memory(standardised(source, *self.scaling) if self.scaling else source, self.team.size)
            for source in (inputs.train, inputs.validation)
        )
        for head in settings.heads:
            self.networks.append(self.make_head().to(self.device))
            self.optimizers.append(adamw(self.networks[-1], head.lr, head.weight_decay))
        self.chances = class_weights(inputs.train_targets[self.fit_rows])
        parts = {"network": self.networks, "optimizer": self.optimizers}
        return {f"{name} {number}": each for name, many in parts.items() for number, each in enumerate(many)}

    def make_head(self) -> AttentiveProbe:
        """The network of one head."""
        own = self.settings
        dim, classes = self.inputs.train.shape[-1], len(self.inputs.classes)
        return AttentiveProbe(dim, classes, own.model_dim, own.num_heads, own.depth, own.max_temporal_len)

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        inputs = self.inputs
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": self.rates(self.step + 1)}
        row |= self.train_epoch(self.fit_rows[balanced_indices(self.chances, epoch - 1, self.session.seed)])
        if len(self.held_rows):
            row |= self.score("held_out", self.train, inputs.train_targets, self.held_rows)[0]
            self.advance(len(self.held_rows))
        scored, logits = self.score("validation", self.validation, inputs.labels, np.arange(len(inputs.labels)))
        row |= scored
        self.check_alive()
        alive = [number for number in range(len(self.networks)) if number not in self.dropped]
        for number in alive if len(self.held_rows) else ():
            loss = row["held_out_loss"][number]
            rank = [row["held_out_accuracy"][number], -math.inf if loss is None else -loss]
            if self.offer("held_out", rank, epoch=epoch, head=number, values=logits[number].clone()):
                # A copy, which later updates leave alone.
                weights = {key: value.cpu().clone() for key, value in self.networks[number].state_dict().items()}
                self.picks["held_out"]["weights"] = weights
        # The published choice: the first of the best heads of the last epoch.
        first = max(alive, key=lambda number: row["validation_accuracy"][number])
        self.offer("best_on_validation", [epoch], epoch=epoch, head=first, values=logits[first].clone())
        return row

    def train_epoch(self, order: Ints) -> dict[str, Any]:
        """One pass over `order`: by head the share that was right and the mean loss; 0 and None for a dropped one."""
        heads = range(len(self.networks))
        right, losses = [0] * len(heads), [0.0] * len(heads)
        for rows, tokens, count in self.batches(self.train, order):
            targets = torch.from_numpy(self.inputs.train_targets[rows]).to(self.device)
            latest = [math.nan] * len(heads)
            for number in heads:
                if number not in self.dropped:
                    latest[number], hits = self.update(number, tokens, targets, count)
                    losses[number] += latest[number] * count
                    right[number] += hits
            self.check_alive()
            self.log({"batch_loss": latest, "batch_learning_rate": self.rates(self.step)})
        return {
            "train_accuracy": [0.0 if n in self.dropped else right[n] / len(order) for n in heads],
            "train_loss": [None if n in self.dropped else losses[n] / len(order) for n in heads],
        }

    def update(self, number: int, tokens: Tensor, labels: Tensor, count: int) -> tuple[float, int]:
        """One update by this process's share of a batch of `count` samples: the loss, and how many of all were right.

        The head is dropped, and keeps its weights, if a loss or an output isn't finite.
        """
        settings, network, optimizer = self.settings, self.networks[number], self.optimizers[number]
        head: HeadSettings = settings.heads[number]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(head, self.step, self.total, self.per_epoch)
            group["weight_decay"] = weight_decay(head, self.step, self.total)
        optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.device)
        for own, part in zip(tokens.split(self.at_once), labels.split(self.at_once), strict=True):
            if not len(own):  # a process without a share of a small batch
                continue
            with training_precision(self.device, self.bfloat16):
                logits = network(own)
                smoothing = settings.label_smoothing
                loss = F.cross_entropy(logits, part, label_smoothing=smoothing, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
            unusable = ~(torch.isfinite(loss) & torch.isfinite(logits).all())
            sums += torch.stack([loss.detach().float(), (logits.argmax(dim=1) == part).sum().float(), unusable.float()])
        self.team.add(sums)
        value, right, unusable_parts = sums.tolist()
        if unusable_parts or not math.isfinite(value):
            self.drop(number, f"update {(self.step - 1) % self.per_epoch + 1}")
            return value, 0
        self.team.add_gradients(network)
        optimizer.step()
        return value, int(right)

    def score(self, name: str, source: LatentSource, labels: Ints, rows: Ints) -> tuple[dict[str, Any], Tensor]:
        """Accuracy and loss of every head for `rows` as columns of the history, and logits (H, n, L), in float32.

        A head whose output isn't finite is dropped; such a row counts as wrong.
        """

        def logits_of(tokens: Tensor) -> Tensor:
            """Logits (B, H, L) of all heads, NaN for a dropped one."""
            nothing = torch.full((len(tokens), len(self.inputs.classes)), math.nan)
            return torch.stack([
                nothing if number in self.dropped
                else torch.cat([network(part).float().cpu() for part in tokens.split(self.at_once)])
                for number, network in enumerate(self.networks)
            ], dim=1)  # fmt: skip

        logits = self.predict(logits_of, source, rows).transpose(0, 1)
        targets = torch.from_numpy(labels[rows])
        finite = torch.isfinite(logits).all(dim=2)
        right = ((logits.argmax(dim=2) == targets) & finite).double().mean(dim=1)
        smoothing = self.settings.label_smoothing
        losses = [float(F.cross_entropy(own, targets, label_smoothing=smoothing)) for own in logits]
        for number, usable in enumerate(finite.all(dim=1).tolist()):
            if not usable and number not in self.dropped:
                self.drop(number, "when it was scored")
        finite_losses = [loss if math.isfinite(loss) else None for loss in losses]
        return {f"{name}_accuracy": right.tolist(), f"{name}_loss": finite_losses}, logits

    def rates(self, step: int) -> list[float]:
        """The learning rates of all heads at an update."""
        return [learning_rate(head, step, self.total, self.per_epoch) for head in self.settings.heads]

    def drop(self, number: int, where: str) -> None:
        """Train a head no longer, and say so."""
        self.dropped[number] = (
            f"Head {number} (learning rate {self.settings.heads[number].lr:g}) was dropped in epoch "
            f"{len(self.history) + 1}, {where}: its loss or output was not finite. Numbers of earlier epochs still "
            "count."
        )
        log.warning("%s", self.dropped[number])

    def check_alive(self) -> None:
        """Raise LaryError once all heads are dropped."""
        if len(self.dropped) == len(self.networks):
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
        if epoch < self.settings.epochs:
            return
        states = [network.state_dict() for network in self.networks]
        chosen = next(iter(self.picks.values()))
        selected = {"head": chosen["head"], "epoch": chosen["epoch"]}
        selected["weights"] = chosen.get("weights", states[chosen["head"]])
        scaling = self.scaling and dict(zip(("mean", "std"), map(torch.from_numpy, self.scaling), strict=True))
        value = {"classifiers": states, "epoch": epoch, "selected": selected}
        save_checkpoint(
            self.folder / self.checkpoint, {**value, "settings": asdict(self.settings), "scaling": scaling}
        )  # fmt: skip

    def outcome(self) -> ClassificationOutcome:
        """The predictions of the selected heads, with controls, history and warnings."""
        inputs = self.inputs
        selections: Any = {
            name: ClassPredictions(pick["epoch"], pick["head"], pick["values"].numpy())
            for name, pick in self.picks.items()
        }
        self.log({
            f"final/{name}_top1": accuracy(inputs.labels, each.logits.argmax(axis=1))
            for name, each in selections.items()
        })  # fmt: skip
        counts = np.bincount(inputs.train_targets, minlength=len(inputs.classes)).astype(np.int64)
        warnings = [self.dropped[number] for number in sorted(self.dropped)]
        unseen = np.setdiff1d(inputs.labels, inputs.train_targets)
        if len(unseen):
            names = ", ".join(inputs.classes[label] for label in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            warnings.insert(
                0,
                f"{len(unseen)} of {len(inputs.classes)} classes are in the validation split but not among the "
                f"{len(inputs.train)} training samples ({names}): extract more of the training split.",
            )
        return ClassificationOutcome(
            classes=inputs.classes, samples=inputs.samples, labels=inputs.labels, selections=selections,
            controls={"majority_class": np.full(len(inputs.labels), int(np.argmax(counts)), dtype=np.int64)},
            train_counts=counts, history=self.history, warnings=tuple(warnings),
            settings=self.stated(inputs.train, precision="bf16" if self.bfloat16 else "fp32"),
        )  # fmt: skip


def in_bfloat16(preset: bool, precision: ProbePrecision | None, device: str) -> bool:
    """Whether a probe is trained in bfloat16: as asked for, else as its preset has it where the device does."""
    if precision is not None or not preset:
        return precision == "bf16"
    # Devices that don't multiply bfloat16 themselves emulate it, slower than float32.
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Older torch has no such function.
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def training_precision(device: str, bfloat16: bool) -> AbstractContextManager[Any]:
    """bfloat16 autocast, or none."""
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16) if bfloat16 else nullcontext()
