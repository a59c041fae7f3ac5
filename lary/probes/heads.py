"""One head of the classification probe in training: its updates, its scores, and what becomes of it if it diverges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lary.probes.attentive import AttentiveProbe
from lary.probes.fit import adamw, read_batches, training_precision
from lary.probes.outcome import Floats, Ints
from lary.probes.parallel import ALONE, Team, add_gradients
from lary.probes.presets import ClassifierSettings, HeadSettings
from lary.probes.schedule import learning_rate, weight_decay
from lary.runtime import log
from lary.types import LatentSource


@dataclass
class Plan:
    """Settings of a run, what it runs on, and the count of updates so far; `at_once` samples pass a head together."""

    settings: ClassifierSettings
    device: str
    bfloat16: bool
    per_epoch: int
    at_once: int
    team: Team = ALONE
    step: int = 0

    @property
    def total(self) -> int:
        return self.per_epoch * self.settings.epochs

    @property
    def epoch(self) -> int:
        """The epoch, from 1, that the latest update belongs to."""
        return max(1, math.ceil(self.step / self.per_epoch))


@dataclass(frozen=True)
class Scores:
    """A head's logits (n, L) on some rows, with their Top-1 and loss; a row that isn't finite counts as wrong."""

    logits: Floats
    accuracy: float
    loss: float
    finite: bool


@dataclass
class Head:
    """One head; `dropped` is the sentence that says why it is trained no longer."""

    number: int
    settings: HeadSettings
    network: AttentiveProbe
    optimizer: torch.optim.AdamW
    dropped: str = ""
    loss: float = math.nan

    def update(self, tokens: Tensor, labels: Tensor, count: int, plan: Plan) -> int:
        """One update by this process's share of a batch of `count` samples; how many of all were right.

        The head is dropped, and keeps its weights, if a loss or an output isn't finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, plan.step, plan.total, plan.per_epoch)
            group["weight_decay"] = weight_decay(self.settings, plan.step, plan.total)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=plan.device)
        for start in range(0, len(tokens), plan.at_once):
            part = labels[start : start + plan.at_once]
            with training_precision(plan.device, plan.bfloat16):
                logits = self.network(tokens[start : start + plan.at_once])
                smoothing = plan.settings.label_smoothing
                loss = F.cross_entropy(logits, part, label_smoothing=smoothing, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
            unusable = ~(torch.isfinite(loss) & torch.isfinite(logits).all())
            sums += torch.stack([loss.detach().float(), (logits.argmax(dim=1) == part).sum().float(), unusable.float()])
        plan.team.add([sums])
        self.loss, right, unusable_parts = sums.tolist()
        if unusable_parts or not math.isfinite(self.loss):
            self.drop(plan, f"update {(plan.step - 1) % plan.per_epoch + 1}")
            return 0
        add_gradients(self.network, plan.team)
        self.optimizer.step()
        return int(right)

    def drop(self, plan: Plan, where: str) -> None:
        """Train this head no longer, and say so."""
        self.dropped = (
            f"Head {self.number} (learning rate {self.settings.lr:g}) was dropped in epoch {plan.epoch}, {where}: its "
            "loss or output was not finite. Numbers of earlier epochs still count."
        )
        log.warning("%s", self.dropped)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values to go on from."""
        return {
            "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "dropped": self.dropped,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.dropped = state["dropped"]


def make_heads(settings: ClassifierSettings, input_dim: int, classes: int, device: str) -> list[Head]:
    """All heads with fresh weights, in the order of the settings."""
    heads = []
    for number, own in enumerate(settings.heads):
        network = make_network(settings, input_dim, classes).to(device)
        heads.append(Head(number, own, network, adamw(network, own.lr, own.weight_decay)))
    return heads


def make_network(settings: ClassifierSettings, input_dim: int, classes: int) -> AttentiveProbe:
    """The network of one head."""
    return AttentiveProbe(
        input_dim, classes, settings.model_dim, settings.num_heads, settings.depth, settings.max_temporal_len
    )


@torch.no_grad()
def score(heads: Sequence[Head], source: LatentSource, labels: Ints, rows: Ints, plan: Plan) -> list[Scores]:
    """Scores of every head for `rows`, in float32; an empty list for no rows. A head whose output isn't finite is
    dropped."""
    if not len(rows):
        return []
    size, classes = plan.settings.batch_size, heads[0].network.classifier.linear.out_features
    own = plan.team.dealt(len(rows), size)
    logits = torch.full((len(heads), len(own), classes), math.nan)
    done = 0
    for part, tokens in read_batches(source, rows[own], size, plan.device):
        for head in heads:
            if not head.dropped:
                for start in range(0, len(part), plan.at_once):
                    values = head.network(tokens[start : start + plan.at_once]).float().cpu()
                    logits[head.number, done + start : done + start + len(values)] = values
        done += len(part)
    whole = plan.team.collect(logits.transpose(0, 1).contiguous(), len(rows), size, plan.device).transpose(0, 1)
    targets = torch.from_numpy(labels[rows])
    found = [_judge(own, targets, plan.settings.label_smoothing) for own in whole]
    for head, scores in zip(heads, found, strict=True):
        if not scores.finite and not head.dropped:
            head.drop(plan, "when it was scored")
    return found


def _judge(logits: Tensor, labels: Tensor, smoothing: float) -> Scores:
    finite = torch.isfinite(logits).all(dim=1)
    right = (logits.argmax(dim=1) == labels) & finite
    loss = float(F.cross_entropy(logits, labels, label_smoothing=smoothing))
    return Scores(np.ascontiguousarray(logits.numpy()), float(right.double().mean()), loss, bool(finite.all()))
