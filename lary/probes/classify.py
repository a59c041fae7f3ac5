"""The classification probe: several attentive heads trained at once on the latents of a data set of labelled clips.

The heads see the same batches; each has its own AdamW and learning rate. Which head and epoch are reported is decided
on a held-out tenth of the training split (protocol ``corrected``), and beside it as the published code does: the best
head of the last epoch on the reported split itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lary.fileio import write_text
from lary.probes.attentive import AttentiveProbe
from lary.probes.controls import majority_class
from lary.probes.fit import (
    ScaledSource,
    adamw,
    channel_statistics,
    keep_in_memory,
    read_batches,
    save_checkpoint,
    training_precision,
    weights_of,
)
from lary.probes.outcome import ClassificationOutcome, ClassPredictions, Floats, Ints, SampleColumns, SelectionName
from lary.probes.presets import ClassifierSettings, HeadSettings, ProbePreset
from lary.probes.sampler import balanced_indices, class_weights, hold_out
from lary.probes.schedule import learning_rate, weight_decay
from lary.runtime import seed_everything
from lary.types import BenchmarkProtocol, LaryError, LatentSource, Progress, UsageError

SECONDS_BETWEEN_CHECKPOINTS = 60.0
"""Five heads of the published width are 0.6 GB: writing them after every short epoch would cost more than training."""


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
class _Head:
    """One head in training, and in how many batches it was left out."""

    number: int
    settings: HeadSettings
    network: AttentiveProbe
    optimizer: torch.optim.AdamW
    skipped: int = 0

    def update(self, tokens: Tensor, labels: Tensor, plan: _Plan) -> tuple[int, int]:
        """One update; returns how many samples were right and how many counted (none if anything isn't finite)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, plan.step, plan.total, plan.per_epoch)
            group["weight_decay"] = weight_decay(self.settings, plan.step, plan.total)
        with training_precision(plan.device, plan.settings.bfloat16):
            logits = self.network(tokens)
            loss = F.cross_entropy(logits, labels, label_smoothing=plan.settings.label_smoothing)
        if not bool(torch.isfinite(loss) & torch.isfinite(logits).all()):
            self.skipped += 1
            return 0, 0
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return int((logits.argmax(dim=1) == labels).sum()), len(labels)


@dataclass
class _Plan:
    """Settings of this run and the count of updates so far."""

    settings: ClassifierSettings
    device: str
    per_epoch: int
    step: int = 0

    @property
    def total(self) -> int:
        return self.per_epoch * self.settings.epochs


@dataclass(frozen=True)
class _Scores:
    """A head's logits (n, L) on some rows, with their Top-1 and loss; a row that isn't finite counts as wrong."""

    logits: Floats
    accuracy: float
    loss: float
    finite: bool


@dataclass
class _Best:
    """The head and epoch chosen so far on the held-out rows: most right, then smallest loss, then first."""

    rank: tuple[float, float] = (-1.0, -math.inf)
    chosen: ClassPredictions | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, epoch: int, heads: Sequence[_Head], held: list[_Scores], validation: list[_Scores]) -> None:
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
) -> ClassificationOutcome:
    """Train all heads and return what the selected ones say about every validation sample.

    Epochs count from 1. Every epoch writes ``log_r0.csv`` (epoch, train_acc, val_acc: per cent, best head) into
    `folder`; the last one, and one a minute before, ``latest.pt`` (``classifiers``: state dicts of all heads;
    ``selected``: the head to report so far; ``scaling``: mean and std by channel that the heads expect taken off, or
    None).
    `progress` advances by the size of the training split in every epoch.

    Raises:
        UsageError: the inputs don't fit together, or nothing can be held out.
        LaryError: a latent isn't finite, or every head diverged.
    """
    given = preset.classifier
    settings = replace(given, epochs=epochs or given.epochs, batch_size=batch_size or given.batch_size)
    _check(inputs)
    seed_everything(seed)
    fit_rows, held_rows = _split(inputs, protocol, seed)
    scaling = channel_statistics(inputs.train, fit_rows) if settings.standardise else None
    train, validation = _ready(inputs.train, scaling), _ready(inputs.validation, scaling)
    heads = _make_heads(settings, train.shape[-1], len(inputs.classes), device)
    plan = _Plan(settings, device, per_epoch=math.ceil(len(fit_rows) / settings.batch_size))
    weights = class_weights(inputs.train_labels[fit_rows])
    everything = np.arange(len(validation), dtype=np.int64)
    history: list[dict[str, Any]] = []
    best = _Best()
    saved = time.monotonic()
    for epoch in range(1, settings.epochs + 1):
        rates = [learning_rate(head.settings, plan.step + 1, plan.total, plan.per_epoch) for head in heads]
        order = fit_rows[balanced_indices(weights, epoch - 1, seed)]
        shares = _train_epoch(heads, train, inputs.train_labels, order, plan, progress)
        held = _score(heads, train, inputs.train_labels, held_rows, plan, progress)
        scores = _score(heads, validation, inputs.labels, everything, plan, None)
        history.append(_history_row(epoch, rates, shares, held, scores))
        if held:
            best.consider(epoch, heads, held, scores)
        last = _best_of(epoch, scores)
        if folder is not None:
            _write_log(folder, history)
            if epoch == settings.epochs or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                _write_checkpoint(folder, history, heads, best, last, settings, scaling)
                saved = time.monotonic()
    if not last or (len(held_rows) and not best.chosen):
        raise LaryError(
            "Every head of the probe diverged: check the scale of the latents, or train with another preset."
        )
    chosen: dict[SelectionName, ClassPredictions] = {"held_out": best.chosen} if best.chosen else {}
    counts = np.bincount(inputs.train_labels, minlength=len(inputs.classes)).astype(np.int64)
    return ClassificationOutcome(
        classes=inputs.classes,
        samples=inputs.samples,
        labels=inputs.labels,
        selections={**chosen, "best_on_validation": last},
        controls={"majority_class": majority_class(counts, len(inputs.labels))},
        train_counts=counts,
        history=history,
        settings={
            **asdict(settings), "preset": preset.name, "protocol": protocol, "seed": seed, "device": device,
            "fit_samples": len(fit_rows), "held_out_samples": len(held_rows), "tokens": list(train.shape),
        },
        warnings=_warnings(heads, plan),
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


def _split(inputs: ClassifierInputs, protocol: BenchmarkProtocol, seed: int) -> tuple[Ints, Ints]:
    """Rows to fit on and rows held out; the published protocol fits on all of them."""
    if protocol == "paper":
        return np.arange(len(inputs.train), dtype=np.int64), np.empty(0, dtype=np.int64)
    return hold_out(inputs.train_groups, inputs.train_labels, seed=seed)


def _ready(source: LatentSource, scaling: tuple[Floats, Floats] | None) -> LatentSource:
    return keep_in_memory(ScaledSource(source, *scaling) if scaling else source)


def _make_heads(settings: ClassifierSettings, input_dim: int, classes: int, device: str) -> list[_Head]:
    heads = []
    for number, own in enumerate(settings.heads):
        network = AttentiveProbe(
            input_dim, classes, settings.model_dim, settings.num_heads, settings.depth, settings.max_temporal_len,
            settings.recompute_activations,
        ).to(device)  # fmt: skip
        heads.append(_Head(number, own, network, adamw(network, own.lr, own.weight_decay)))
    return heads


def _train_epoch(
    heads: list[_Head], source: LatentSource, labels: Ints, order: Ints, plan: _Plan, progress: Progress | None
) -> list[float]:
    """One pass over `order`; the share that each head had right while training, over the samples it counted."""
    right, seen = [0] * len(heads), [0] * len(heads)
    for rows, tokens in read_batches(source, order, plan.settings.batch_size, plan.device):
        plan.step += 1
        targets = torch.from_numpy(labels[rows]).to(plan.device)
        for head in heads:
            hits, counted = head.update(tokens, targets, plan)
            right[head.number] += hits
            seen[head.number] += counted
        if progress:
            progress.advance(len(rows))
    return [hits / max(1, counted) for hits, counted in zip(right, seen, strict=True)]


@torch.no_grad()
def _score(
    heads: list[_Head], source: LatentSource, labels: Ints, rows: Ints, plan: _Plan, progress: Progress | None
) -> list[_Scores]:
    """Logits of every head for `rows`, in float32; an empty list for no rows."""
    parts: list[list[Tensor]] = [[] for _ in heads]
    for done, tokens in read_batches(source, rows, plan.settings.batch_size, plan.device):
        for head in heads:
            parts[head.number].append(head.network(tokens).float().cpu())
        if progress:
            progress.advance(len(done))
    targets = torch.from_numpy(labels[rows])
    return [_judge(torch.cat(part), targets, plan.settings.label_smoothing) for part in parts if part]


def _judge(logits: Tensor, labels: Tensor, smoothing: float) -> _Scores:
    finite = torch.isfinite(logits).all(dim=1)
    right = (logits.argmax(dim=1) == labels) & finite
    loss = float(F.cross_entropy(logits, labels, label_smoothing=smoothing))
    return _Scores(logits.numpy(), float(right.double().mean()), loss, bool(finite.all()))


def _best_of(epoch: int, scores: list[_Scores]) -> ClassPredictions | None:
    """The published choice: the first of the best heads of one epoch; None if every head diverged."""
    usable = [number for number, own in enumerate(scores) if own.finite]
    if not usable:
        return None
    head = max(usable, key=lambda number: scores[number].accuracy)
    return ClassPredictions(epoch, head, scores[head].logits)


def _history_row(
    epoch: int, rates: list[float], shares: list[float], held: list[_Scores], scores: list[_Scores]
) -> dict[str, Any]:
    """One entry of the history: a list with a value per head under every key, accuracies in [0, 1]."""
    row: dict[str, Any] = {"epoch": epoch, "learning_rate": rates, "train_accuracy": shares}
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


def _write_checkpoint(
    folder: Path,
    history: list[dict[str, Any]],
    heads: list[_Head],
    best: _Best,
    last: ClassPredictions | None,
    settings: ClassifierSettings,
    scaling: tuple[Floats, Floats] | None,
) -> None:
    """``latest.pt``: the state of all heads after this epoch, and the head that would be reported."""
    states = [weights_of(head.network) for head in heads]
    selected: dict[str, Any] | None = None
    if best.chosen:
        selected = {"head": best.chosen.head, "epoch": best.chosen.epoch, "weights": best.weights}
    elif last:
        selected = {"head": last.head, "epoch": last.epoch, "weights": states[last.head]}
    value = {"classifiers": states, "epoch": len(history), "selected": selected, "settings": asdict(settings)}
    value["scaling"] = {"mean": torch.from_numpy(scaling[0]), "std": torch.from_numpy(scaling[1])} if scaling else None
    save_checkpoint(folder / "latest.pt", value)


def _warnings(heads: list[_Head], plan: _Plan) -> tuple[str, ...]:
    return tuple(
        f"Head {head.number} (learning rate {head.settings.lr:g}) was left out of {head.skipped} of {plan.step} "
        "training batches: its loss or output was not finite."
        for head in heads
        if head.skipped
    )
