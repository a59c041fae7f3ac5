"""The classification probe: attentive heads, trained together on clips.

The heads see the same batches; each has its own AdamW. ``corrected`` averages
the probabilities of all heads after the last epoch. Beside it stands the choice
on the reported split: the best head of all epochs, or, as published (``paper``),
of the last one. L is the number of classes, H that of heads.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lary.arrays import Ints
from lary.files import write_text
from lary.probes import sources
from lary.probes.nets import AttentiveProbe
from lary.probes.outcome import ClassificationOutcome, ClassPredictions, SampleColumns, headline
from lary.probes.presets import ClassifierSettings, learning_rate, weight_decay
from lary.probes.training import Session, Training, adamw, chosen_precision, save_checkpoint, staged
from lary.types import JsonDict, LaryError, LatentSource, UsageError


@dataclass(frozen=True)
class ClassifierInputs:
    """Latents and labels of both splits; labels (n,) are indices into `classes`."""

    train: LatentSource
    train_targets: Ints
    validation: LatentSource
    labels: Ints
    samples: SampleColumns
    classes: tuple[str, ...]


def train_classifier(inputs: ClassifierInputs, settings: ClassifierSettings, session: Session) -> ClassificationOutcome:
    """Train all heads; returns the predictions of the selected ones.

    Every epoch writes ``log_r0.csv`` (epoch, train_acc, val_acc: per cent,
    best head) into the session's folder; the last one ``latest.pt``
    (``classifiers``: state dicts; ``selected``: numbers of those to report;
    ``scaling``: mean and std by channel, or None). Raises UsageError for
    inputs that don't fit together or into memory, LaryError if every head
    diverged.
    """
    sources.check_splits((inputs.train, inputs.train_targets), (inputs.validation, inputs.labels))
    present = np.unique(inputs.train_targets)
    if len(present) == 1:
        raise UsageError(
            f"All {len(inputs.train)} training samples are of the class "
            f"'{inputs.classes[present[0]]}': a probe needs at least two classes. Extract more "
            "of the training split."
        )
    chosen = chosen_precision(settings.bfloat16, session)
    settings = replace(settings, bfloat16=chosen == "bf16")
    training = ClassifierTraining(inputs, settings, replace(session, precision=chosen))
    training.run()
    return training.outcome()


class ClassifierTraining(Training):
    """The heads in training; one that gives NaN or infinity can't be picked."""

    checkpoint = "latest.pt"
    choice = "the probabilities of all heads are averaged after the last epoch; all training rows are used"

    def build(self) -> list[Any]:
        inputs, own = self.inputs, self.settings
        shape = inputs.train.shape
        sizes = len(own.heads), own.batch_size, shape, self.device
        sources.check_memory(self.make_head, *sizes, sources.CUDA_SHARE)
        self.train, self.validation, self.scaling = inputs.train, inputs.validation, None
        if own.standardise:
            self.scaling = sources.channel_statistics(inputs.train, self.rows)
            self.train = sources.standardised(inputs.train, *self.scaling)
            self.validation = sources.standardised(inputs.validation, *self.scaling)
        self.at_once = sources.samples_at_once(shape, own.model_dim, own.depth, self.device)
        self.networks = [self.make_head().to(self.device) for _ in own.heads]
        self.optimizers = [
            adamw(network, head.lr, head.weight_decay) for network, head in zip(self.networks, own.heads, strict=True)
        ]
        self.chances = sources.class_weights(inputs.train_targets)
        return [*self.networks, *self.optimizers]

    def make_head(self) -> AttentiveProbe:
        own, inputs = self.settings, self.inputs
        sizes = own.model_dim, own.num_heads, own.depth, own.max_temporal_len
        return AttentiveProbe(inputs.train.shape[-1], len(inputs.classes), *sizes)

    def run_epoch(self, epoch: int) -> JsonDict:
        inputs = self.inputs
        row: JsonDict = {"epoch": epoch, "learning_rate": self.rates(self.step + 1)}
        self.train_epoch(row, sources.balanced_indices(self.chances, epoch - 1, self.session.seed))
        logits = self.score(row, inputs.labels)
        usable = [number for number, loss in enumerate(row["validation_loss"]) if loss is not None]
        if not usable:
            rates = ", ".join(f"{head.lr:g}" for head in self.settings.heads)
            raise LaryError(
                f"Every head of the probe diverged by epoch {epoch} (learning rates {rates}): check "
                "the scale of the latents, or take another --probe-preset."
            )
        if self.corrected and epoch == self.settings.epochs:
            shares = torch.logsumexp(logits[usable].log_softmax(dim=-1), dim=0) - math.log(len(usable))
            self.offer("held_out", [], epoch=epoch, head=None, heads=usable, values=shares)
        best = max(usable, key=lambda number: row["validation_accuracy"][number])
        # Published is the first of the best heads of the last epoch.
        rank = [row["validation_accuracy"][best] if self.corrected else epoch]
        self.offer("best_on_validation", rank, epoch=epoch, head=best, heads=[best], values=logits[best].clone())
        return row

    @staged("training")
    def train_epoch(self, row: JsonDict, order: Ints) -> None:
        """Train on `order`; adds accuracy and loss by head, 0 and None if diverged."""
        right, losses = np.zeros((2, len(self.networks)))
        found: list[tuple[Tensor, int]] = []
        for rows, tokens, count in self.batches(self.train, order):
            labels = sources.on_device(torch.from_numpy(self.inputs.train_targets[rows]), self.device)
            rates = self.rates(self.step)
            sums = torch.stack([self.update(*each, tokens, labels, count) for each in enumerate(rates)])
            self.team.add(sums)
            found.append((sums, count))
            if self.session.tracker:
                self.log({"batch_loss": sums[:, 0].tolist(), "batch_learning_rate": rates})
        for sums, count in found:  # only now, so that no update waits
            batch, hits = sums.cpu().double().numpy().T
            losses += batch * count
            right += hits
        accuracy = np.where(np.isfinite(losses), right / len(order), 0.0)
        row["train_accuracy"] = accuracy.tolist()
        row["train_loss"] = finite_or_none(losses / len(order))

    def update(self, number: int, rate: float, tokens: Tensor, labels: Tensor, count: int) -> Tensor:
        """One update on a share of `count` samples; returns its loss and hits."""
        own, network, optimizer = self.settings, self.networks[number], self.optimizers[number]
        decay = weight_decay(own.heads[number], self.step, self.total)
        for group in optimizer.param_groups:
            group.update(lr=rate, weight_decay=decay)
        optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.device)
        for part, wanted in zip(*(each.split(self.at_once) for each in (tokens, labels)), strict=True):
            with self.autocast():
                logits = network(part)
                loss = self.loss(logits, wanted, "sum") / count
            torch.autograd.backward(loss)
            hits = (logits.argmax(dim=1) == wanted).sum()
            sums += torch.stack([loss.detach().float(), hits.float()])
        self.team.add_gradients(network)
        optimizer.step()
        return sums

    def loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction=reduction)

    @staged("evaluation")
    def score(self, row: JsonDict, labels: Ints) -> Tensor:
        """Logits (H, n, L) on validation; adds accuracy and loss by head to `row`.

        Logits that aren't finite count as wrong, and such a loss is None.
        """

        def logits_of(tokens: Tensor) -> Tensor:
            """Logits (B, H, L) of all heads."""
            parts = tokens.split(self.at_once)
            with self.autocast(scoring=True):
                own = [torch.cat([network(part) for part in parts]) for network in self.networks]
            return torch.stack(own, dim=1)

        logits = self.predict(logits_of, self.validation, np.arange(len(labels))).transpose(0, 1)
        targets = torch.from_numpy(labels)
        right = (logits.argmax(dim=2) == targets) & torch.isfinite(logits).all(dim=2)
        row["validation_accuracy"] = right.double().mean(dim=1).tolist()
        row["validation_loss"] = finite_or_none([float(self.loss(own, targets)) for own in logits])
        return logits

    def rates(self, step: int) -> list[float]:
        """Learning rates of all heads at update `step`, counted from 1."""
        heads = self.settings.heads
        return [learning_rate(head, step, self.total, self.per_epoch) for head in heads]

    def close_epoch(self, epoch: int) -> None:
        if self.folder is None:
            return
        lines = ["epoch,train_acc,val_acc"]
        for row in self.history:
            best = [100 * max(row[f"{name}_accuracy"]) for name in ("train", "validation")]
            lines.append(f"{row['epoch']},{best[0]:.5f},{best[1]:.5f}")
        write_text(self.folder / "log_r0.csv", "\n".join([*lines, ""]))
        if epoch < self.settings.epochs:
            return
        states = [network.state_dict() for network in self.networks]
        scaling = self.scaling and dict(zip(("mean", "std"), map(torch.from_numpy, self.scaling), strict=True))
        value = {"classifiers": states, "epoch": epoch, "scaling": scaling, "settings": asdict(self.settings)}
        chosen = self.picks[headline(self.picks)]
        value["selected"] = {name: chosen[name] for name in ("head", "epoch", "heads")}
        save_checkpoint(self.folder / self.checkpoint, value)

    def outcome(self) -> ClassificationOutcome:
        inputs = self.inputs
        selections: Any = {
            name: ClassPredictions(pick["epoch"], pick["head"], pick["values"].numpy())
            for name, pick in sorted(self.picks.items(), reverse=True)  # the reported one first
        }
        counts = np.bincount(inputs.train_targets, minlength=len(inputs.classes))
        majority = np.full(len(inputs.labels), np.argmax(counts))
        return ClassificationOutcome(
            classes=inputs.classes,
            samples=inputs.samples,
            labels=inputs.labels,
            selections=selections,
            controls={"majority_class": majority},
            train_counts=counts,
            history=self.history,
            warnings=self.warnings(),
            settings=self.stated(),
        )

    def warnings(self) -> tuple[str, ...]:
        inputs, found = self.inputs, []
        unseen = np.setdiff1d(inputs.labels, inputs.train_targets)
        if len(unseen):
            names = [inputs.classes[label] for label in unseen[:5]] + ["..."] * (len(unseen) > 5)
            found.append(
                f"{len(unseen)} of {len(inputs.classes)} classes are in the validation split but "
                f"not among the {len(inputs.train)} training samples ({', '.join(names)}): extract "
                "more of the training split."
            )
        for number, head in enumerate(self.settings.heads):
            lost = [row["epoch"] for row in self.history if row["validation_loss"][number] is None]
            if lost:
                found.append(
                    f"Head {number} (learning rate {head.lr:g}) diverged in epoch {lost[0]}: its "
                    "outputs were not finite. It is left out from there on."
                )
        return tuple(found)


def finite_or_none(losses: Any) -> list[float | None]:
    return [float(loss) if math.isfinite(loss) else None for loss in losses]
