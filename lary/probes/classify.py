"""The classification probe: several attentive heads trained at once on the latents of labelled clips.

The heads see the same batches; each has its own AdamW and learning rate. Which head and
epoch are reported is decided on a held-out tenth of the training split (protocol
``corrected``), and beside it as the published code does: the best head of the last epoch on
the reported split itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lary.configs import ProbePrecision
from lary.files import write_text
from lary.probes.nets import AttentiveProbe
from lary.probes.outcome import ClassificationOutcome, ClassPredictions, Ints, SampleColumns
from lary.probes.presets import ClassifierSettings, learning_rate, weight_decay
from lary.probes.sources import (
    balanced_indices,
    channel_statistics,
    check_memory,
    check_splits,
    class_weights,
    samples_at_once,
    standardised,
)
from lary.probes.training import Session, Training, adamw, save_checkpoint
from lary.types import LaryError, LatentSource, UsageError


@dataclass(frozen=True)
class ClassifierInputs:
    """Latents and labels of both splits; labels (n,) int64 are positions in `classes`."""

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

    Every epoch, counted from 1, writes ``log_r0.csv`` (epoch, train_acc, val_acc: per cent,
    best head) into the session's folder; the last one ``latest.pt`` (``classifiers``: state
    dicts of all heads; ``selected``: the head to report; ``scaling``: mean and std by channel
    that the heads expect taken off, or None). `precision` of None is that of the preset.

    Raises:
        UsageError: the inputs don't fit together or into memory, or nothing can be held out.
        LaryError: every head diverged.
    """
    check_splits((inputs.train, inputs.train_targets), (inputs.validation, inputs.labels))
    present = np.unique(inputs.train_targets)
    if len(present) == 1:
        raise UsageError(
            f"All {len(inputs.train)} training samples are of the class '{inputs.classes[present[0]]}': a probe needs "
            "at least two classes. Extract more of the training split."
        )
    settings = replace(settings, bfloat16=in_bfloat16(settings.bfloat16, precision, session.device))
    training = ClassifierTraining(inputs, settings, session)
    training.run()
    return training.outcome()


class ClassifierTraining(Training):
    """The heads in training; one whose outputs aren't finite is never picked from then on."""

    checkpoint = "latest.pt"
    by_class = True

    def build(self) -> dict[str, Any]:
        inputs, settings = self.inputs, self.settings
        # One head more than there are: the best one so far is kept as a copy.
        copies = 1 + len(settings.heads)
        check_memory(self.make_head, copies, settings.batch_size, inputs.train.shape, self.device)
        self.train, self.validation, self.scaling = inputs.train, inputs.validation, None
        if settings.standardise:
            self.scaling = channel_statistics(inputs.train, self.fit_rows)
            self.train, self.validation = (standardised(each, *self.scaling) for each in (self.train, self.validation))
        self.at_once = samples_at_once(inputs.train.shape, settings.model_dim, settings.depth, self.device)
        self.networks = [self.make_head().to(self.device) for _ in settings.heads]
        self.optimizers = [
            adamw(network, head.lr, head.weight_decay)
            for network, head in zip(self.networks, settings.heads, strict=True)
        ]
        self.chances = class_weights(inputs.train_targets[self.fit_rows])
        parts: dict[str, list[Any]] = {"network": self.networks, "optimizer": self.optimizers}
        return {f"{name} {number}": each for name, many in parts.items() for number, each in enumerate(many)}

    def make_head(self) -> AttentiveProbe:
        """The network of one head."""
        own = self.settings
        sizes = own.model_dim, own.num_heads, own.depth, own.max_temporal_len
        return AttentiveProbe(self.inputs.train.shape[-1], len(self.inputs.classes), *sizes)

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        inputs = self.inputs
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": self.rates(self.step + 1)}
        row |= self.train_epoch(self.fit_rows[balanced_indices(self.chances, epoch - 1, self.session.seed)])
        if len(self.held_rows):
            row |= self.score("held_out", self.train, inputs.train_targets, self.held_rows)[0]
            self.advance(len(self.held_rows))
        columns, logits = self.score("validation", self.validation, inputs.labels, np.arange(len(inputs.labels)))
        row |= columns
        losses = [row[name] for name in ("held_out_loss", "validation_loss") if name in row]
        usable = [number for number, own in enumerate(zip(*losses, strict=True)) if None not in own]
        self.check_usable(len(usable))
        for number in usable if len(self.held_rows) else ():
            rank = [row["held_out_accuracy"][number], -row["held_out_loss"][number]]
            if self.offer("held_out", rank, epoch=epoch, head=number, values=logits[number].clone()):
                # A copy, which later updates leave alone.
                state = self.networks[number].state_dict()
                self.picks["held_out"]["weights"] = {key: value.cpu().clone() for key, value in state.items()}
        # The published choice: the first of the best heads of the last epoch.
        first = max(usable, key=lambda number: row["validation_accuracy"][number])
        self.offer("best_on_validation", [epoch], epoch=epoch, head=first, values=logits[first].clone())
        return row

    def train_epoch(self, order: Ints) -> dict[str, Any]:
        """One pass over `order`; returns accuracy and mean loss by head, 0 and None for a diverged one."""
        right, losses = np.zeros((2, len(self.networks)))
        for rows, tokens, count in self.batches(self.train, order):
            labels = torch.from_numpy(self.inputs.train_targets[rows]).to(self.device)
            found = [self.update(number, tokens, labels, count) for number in range(len(self.networks))]
            batch, hits = np.array(found).T
            losses += batch * count
            right += hits
            self.check_usable(int(np.isfinite(batch).sum()))
            self.log({"batch_loss": batch.tolist(), "batch_learning_rate": self.rates(self.step)})
        accuracy = np.where(np.isfinite(losses), right / len(order), 0.0)
        return {"train_accuracy": accuracy.tolist(), "train_loss": finite_or_none(losses / len(order))}

    def update(self, number: int, tokens: Tensor, labels: Tensor, count: int) -> list[float]:
        """One update by a share of `count` samples; returns the loss and how many of all were right."""
        settings, network, optimizer = self.settings, self.networks[number], self.optimizers[number]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings.heads[number], self.step, self.total, self.per_epoch)
            group["weight_decay"] = weight_decay(settings.heads[number], self.step, self.total)
        optimizer.zero_grad(set_to_none=True)
        sums, smoothing = torch.zeros(2, device=self.device), settings.label_smoothing
        for own, part in zip(*(torch.split(each, self.at_once) for each in (tokens, labels)), strict=True):
            with training_precision(self.device, settings.bfloat16):
                logits = network(own)
                loss = F.cross_entropy(logits, part, label_smoothing=smoothing, reduction="sum") / count
            torch.autograd.backward(loss)
            sums += torch.stack([loss.detach().float(), (logits.argmax(dim=1) == part).sum().float()])
        self.team.add(sums)
        self.team.add_gradients(network)
        optimizer.step()
        return sums.tolist()

    def score(self, name: str, source: LatentSource, labels: Ints, rows: Ints) -> tuple[dict[str, Any], Tensor]:
        """Accuracy and loss of every head as columns of the history, and logits (H, n, L) of `rows`.

        A row whose logits aren't finite counts as wrong, and the loss of its head is None.
        """

        def logits_of(tokens: Tensor) -> Tensor:
            """Logits (B, H, L) of all heads."""
            parts = torch.split(tokens, self.at_once)
            return torch.stack([torch.cat([own(part) for part in parts]) for own in self.networks], dim=1)

        logits = self.predict(logits_of, source, rows).transpose(0, 1)
        targets, smoothing = torch.from_numpy(labels[rows]), self.settings.label_smoothing
        right = (logits.argmax(dim=2) == targets) & torch.isfinite(logits).all(dim=2)
        losses = [float(F.cross_entropy(own, targets, label_smoothing=smoothing)) for own in logits]
        accuracy = right.double().mean(dim=1).tolist()
        return {f"{name}_accuracy": accuracy, f"{name}_loss": finite_or_none(losses)}, logits

    def rates(self, step: int) -> list[float]:
        """The learning rates of all heads at an update."""
        return [learning_rate(head, step, self.total, self.per_epoch) for head in self.settings.heads]

    def check_usable(self, heads: int) -> None:
        """Raise LaryError where no head is left that gives finite numbers."""
        if not heads:
            rates = ", ".join(f"{head.lr:g}" for head in self.settings.heads)
            raise LaryError(
                f"Every head of the probe diverged by epoch {len(self.history) + 1} (learning rates {rates}): check "
                "the scale of the latents, or take another --probe-preset."
            )

    def close_epoch(self, epoch: int) -> None:
        """Write ``log_r0.csv`` of all epochs so far, and after the last one ``latest.pt``."""
        if self.folder is None:
            return
        lines = ["epoch,train_acc,val_acc"]
        for row in self.history:
            train, validation = (100 * max(row[f"{name}_accuracy"]) for name in ("train", "validation"))
            lines.append(f"{row['epoch']},{train:.5f},{validation:.5f}")
        write_text(self.folder / "log_r0.csv", "\n".join([*lines, ""]))
        if epoch < self.settings.epochs:
            return
        states = [network.state_dict() for network in self.networks]
        chosen = next(iter(self.picks.values()))
        head = chosen["head"]
        selected = {"head": head, "epoch": chosen["epoch"], "weights": chosen.get("weights", states[head])}
        scaling = None
        if self.scaling:
            scaling = dict(zip(("mean", "std"), map(torch.from_numpy, self.scaling), strict=True))
        value = {
            "classifiers": states, "epoch": epoch, "selected": selected, "settings": asdict(self.settings),
            "scaling": scaling,
        }  # fmt: skip
        save_checkpoint(self.folder / self.checkpoint, value)

    def outcome(self) -> ClassificationOutcome:
        """The predictions of the selected heads, and all that is reported beside them."""
        inputs = self.inputs
        selections: Any = {
            name: ClassPredictions(pick["epoch"], pick["head"], pick["values"].numpy())
            for name, pick in self.picks.items()
        }
        counts = np.bincount(inputs.train_targets, minlength=len(inputs.classes)).astype(np.int64)
        warnings = []
        unseen = np.setdiff1d(inputs.labels, inputs.train_targets)
        if len(unseen):
            names = ", ".join(inputs.classes[label] for label in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            warnings.append(
                f"{len(unseen)} of {len(inputs.classes)} classes are in the validation split but not among the "
                f"{len(inputs.train)} training samples ({names}): extract more of the training split."
            )
        for number, head in enumerate(self.settings.heads):
            if diverged := [row["epoch"] for row in self.history if row["validation_loss"][number] is None]:
                warnings.append(
                    f"Head {number} (learning rate {head.lr:g}) diverged in epoch {diverged[0]}: its outputs were not "
                    "finite. Its numbers of earlier epochs still count."
                )
        return ClassificationOutcome(
            classes=inputs.classes, samples=inputs.samples, labels=inputs.labels, selections=selections,
            controls={"majority_class": np.full(len(inputs.labels), int(np.argmax(counts)), dtype=np.int64)},
            train_counts=counts, history=self.history, warnings=tuple(warnings),
            settings=self.stated(precision="bf16" if self.settings.bfloat16 else "fp32"),
        )  # fmt: skip


def finite_or_none(losses: Iterable[float]) -> list[float | None]:
    """Losses as the history has them, None in place of those that aren't finite."""
    return [float(loss) if math.isfinite(loss) else None for loss in losses]


def in_bfloat16(preset: bool, precision: ProbePrecision | None, device: str) -> bool:
    """Whether to train in bfloat16: as asked for, else as the preset has it where the device does."""
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
