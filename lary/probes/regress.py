"""The regression probes: from the latents of image pairs to normalised action chunks, by an MLP or a DiT.

Which epoch is reported is decided on a held-out tenth of the training split (protocol ``corrected``), and beside it as
the published code does: the epoch with the smallest error on the reported split itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from lary.probes.dit import TRAINING_STEPS, ActionExpertDiT, Sampler
from lary.probes.nets import ActionExpertMLP
from lary.probes.outcome import (
    ActionPredictions,
    Floats,
    Ints,
    RegressionOutcome,
    SampleColumns,
    SelectionName,
    SplitOutcome,
    huber_loss,
    mse,
)
from lary.probes.presets import DitSettings, ProbePreset, RegressorSettings
from lary.probes.session import Session, StateFile, save_checkpoint
from lary.probes.sources import keep_in_memory, split_training_rows
from lary.probes.training import Training, adamw, check_tokens, count_weights, warmup_factor
from lary.runtime import seed_everything
from lary.types import LaryError, LatentSource, UsageError

Network = ActionExpertMLP | ActionExpertDiT
NetworkType = Literal["mlp", "dit"]
NetworkSettings = RegressorSettings | DitSettings

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


@dataclass
class Pick:
    """The epoch with the smallest error so far in one column of the history, and what was predicted then."""

    column: str
    row: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Floats] = field(default_factory=dict)

    def consider(self, row: dict[str, Any], values: dict[str, Floats]) -> bool:
        """Take this epoch if it is strictly better, and return whether it was taken."""
        if row[self.column] >= self.row.get(self.column, math.inf):
            return False
        self.row, self.values = row, values
        return True


class Evaluation:
    """The scores of a regression probe, epoch by epoch, and the ways to choose one, the headline first."""

    def __init__(self, inputs: RegressorInputs, held_rows: Ints, batch_size: int) -> None:
        self.inputs, self.held_rows, self.batch_size = inputs, held_rows, batch_size
        # Without held-out rows the published choice is the only one.
        self.picks: dict[SelectionName, Pick] = {"held_out": Pick("held_out_mse")} if len(held_rows) else {}
        self.picks["best_on_validation"] = Pick(f"{SEEN}_mse")

    def score(self, row: dict[str, Any], predict: Callable[[LatentSource, Ints], Floats]) -> dict[str, Floats]:
        """Add the errors of one epoch to its row of the history; returns the predictions by role."""
        inputs = self.inputs
        if len(self.held_rows):
            held = predict(inputs.train, self.held_rows)
            row |= errors("held_out", held, inputs.train_targets[self.held_rows], self.batch_size)
        values = {
            role: predict(split.latents, np.arange(len(split.latents))) for role, split in inputs.evaluated.items()
        }
        for role, split in inputs.evaluated.items():
            row |= errors(role, values[role], split.targets, self.batch_size)
        return values

    def consider(self, row: dict[str, Any], values: dict[str, Floats]) -> bool:
        """Offer an epoch to all picks, and return whether it is the one to report from now on."""
        taken = [pick.consider(row, values) for pick in self.picks.values()]
        return taken[0]

    def outcome(
        self, history: list[dict[str, Any]], settings: dict[str, Any], warnings: tuple[str, ...]
    ) -> RegressionOutcome:
        """The outcome of the picked epochs."""
        return RegressionOutcome(
            dims=self.inputs.dims,
            groups=self.inputs.groups,
            splits={role: self._split_outcome(role) for role in self.inputs.evaluated},
            history=history,
            settings={**settings, "tokens": list(self.inputs.train.shape)},
            warnings=warnings,
        )

    def _split_outcome(self, role: str) -> SplitOutcome:
        split, targets = self.inputs.evaluated[role], self.inputs.train_targets
        mean_action = targets.mean(axis=0, dtype=np.float64).astype(np.float32)
        return SplitOutcome(
            samples=split.samples,
            targets=split.targets,
            mean=split.mean,
            std=split.std,
            selections={
                name: ActionPredictions(pick.row["epoch"], pick.values[role]) for name, pick in self.picks.items()
            },
            controls={"mean_action": np.broadcast_to(mean_action, split.targets.shape).copy()},
            loss={name: pick.row[f"{role}_loss"] for name, pick in self.picks.items()},
        )


def errors(name: str, predicted: Floats, targets: Floats, batch_size: int) -> dict[str, float]:
    """Loss and mean squared error of one split, as columns of the history."""
    return {f"{name}_loss": huber_loss(predicted, targets, batch_size), f"{name}_mse": mse(predicted, targets)}


def check_regression(inputs: RegressorInputs) -> None:
    """Refuse inputs that don't fit together. Raises UsageError."""
    if SEEN not in inputs.evaluated:
        raise UsageError("A regression probe needs the split 'seen' to report.")
    check_tokens(inputs.train.shape)
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


def train_regressor(
    inputs: RegressorInputs,
    preset: ProbePreset,
    session: Session,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    probe: NetworkType = "mlp",
    sampler_steps: int | None = None,
) -> RegressionOutcome:
    """Train a probe and return the predictions of its selected epochs for every evaluated sample.

    Epochs count from 1. ``best_model.pth`` in the session's folder is the state dict of the reported epoch, written
    whenever a better one is found. With an identity in `session` an interrupted training is resumed, and its result is
    bit-identical on a CPU. The progress advances by the size of the training split in every epoch. The DiT draws every
    chunk that is scored, with the sampling steps of its settings or `sampler_steps`.

    Raises:
        UsageError: the inputs don't fit together, nothing can be held out, or the network doesn't fit into memory.
        LaryError: a latent isn't finite, or the training diverged.
    """
    settings = choose_settings(preset, probe, epochs, batch_size, sampler_steps)
    check_regression(inputs)
    seed_everything(session.seed)
    rows = split_training_rows(session.protocol, inputs.train_groups, seed=session.seed)
    training = RegressorTraining(inputs, settings, session, rows)
    training.run(
        StateFile(
            session, probe, asdict(settings), list(inputs.train.shape), inputs.train_targets,
            list(inputs.train_groups), *(split.targets for split in inputs.evaluated.values()),
        )
    )  # fmt: skip
    evaluation = training.evaluation
    training.log({f"final/{name}_{SEEN}_mse": pick.row[f"{SEEN}_mse"] for name, pick in evaluation.picks.items()})
    stated = session.settings(settings, preset.name, rows)
    return evaluation.outcome(training.history, stated, _warnings(settings, inputs))


def choose_settings(
    preset: ProbePreset, probe: NetworkType, epochs: int | None, batch_size: int | None, sampler_steps: int | None
) -> NetworkSettings:
    """The settings of a preset with what was asked for in their place. Raises UsageError."""
    given = preset.dit if probe == "dit" else preset.regressor
    settings = replace(given, epochs=epochs or given.epochs, batch_size=batch_size or given.batch_size)
    if sampler_steps is None:
        return settings
    if not isinstance(settings, DitSettings):
        raise UsageError(f"--sampler-steps {sampler_steps}: only the probe dit draws samples; leave the option out.")
    if not 1 <= sampler_steps <= TRAINING_STEPS:
        raise UsageError(f"--sampler-steps {sampler_steps}: must be from 1 to {TRAINING_STEPS}; 500 is published.")
    return replace(settings, sampler_steps=sampler_steps)


def _warnings(settings: NetworkSettings, inputs: RegressorInputs) -> tuple[str, ...]:
    if not isinstance(settings, DitSettings):
        return ()
    beyond = float(np.mean(np.abs(inputs.evaluated[SEEN].targets) > 1))
    return (
        f"The sampler of the DiT keeps predictions within one standard deviation, as published; {100 * beyond:.1f} % "
        "of the targets on the seen split lie beyond.",
    )


def make_regressor(settings: NetworkSettings, tokens: tuple[int, ...], targets: tuple[int, ...], seed: int) -> Network:
    """The network of a probe for tokens of this shape and targets (n, K, A); `seed` is that of the DiT's samples."""
    _, steps, dims = targets
    size = math.prod(tokens)
    if isinstance(settings, DitSettings):
        sampler = Sampler(settings.sampler_steps, seed)
        return ActionExpertDiT(size, dims, steps, settings.hidden_dim, settings.depth, settings.num_heads, sampler)
    return ActionExpertMLP(size, dims, steps, hidden_dim=settings.hidden_dim, num_blocks=settings.num_blocks)


class RegressorTraining(Training):
    """The network in training."""

    checkpoint = "best_model.pth"

    def __init__(
        self, inputs: RegressorInputs, settings: NetworkSettings, session: Session, rows: tuple[Ints, Ints]
    ) -> None:
        super().__init__(session, rows, settings.epochs, settings.batch_size)
        self.inputs, self.settings = inputs, settings
        self.evaluation = Evaluation(inputs, self.held_rows, self.batch_size)
        self.order = np.random.default_rng(session.seed)
        self.predicted: dict[str, Floats] = {}

    def build(self) -> dict[str, Any]:
        inputs, settings = self.inputs, self.settings
        shapes = inputs.train.shape, inputs.train_targets.shape
        weights = count_weights(lambda: make_regressor(settings, *shapes, self.session.seed))
        kind = "dit" if isinstance(settings, DitSettings) else "mlp"
        self.check_memory(weights, inputs.train.shape, f"probe {kind}")
        splits = {
            role: replace(split, latents=keep_in_memory(split.latents, self.team.size))
            for role, split in inputs.evaluated.items()
        }
        train = keep_in_memory(inputs.train, self.team.size)
        self.inputs = self.evaluation.inputs = replace(inputs, train=train, evaluated=splits)
        self.network = make_regressor(settings, *shapes, self.session.seed).to(self.device)
        self.optimizer = adamw(self.network, settings.lr, settings.weight_decay)
        return {"network": self.network, "optimizer": self.optimizer}

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": self.rate(self.step)}
        row["train_loss"] = self.train_epoch(self.order.permutation(self.fit_rows))
        self.network.eval()
        self.predicted = self.evaluation.score(row, self._predict)
        self.session.advance(len(self.held_rows))
        if not all(math.isfinite(value) for value in row.values()):
            raise self._diverged("its predictions are not finite")
        return row

    def train_epoch(self, order: Ints) -> float:
        """One pass over `order`; the mean of the batches' losses. Raises LaryError where one isn't finite."""
        losses = []
        self.network.train()
        for rows, tokens, count in self.batches(self.inputs.train, order):
            rate = self.rate(self.step - 1)  # the published warm-up counts updates from 0
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            wanted = torch.from_numpy(self.inputs.train_targets[rows]).flatten(1).to(self.device)
            loss = self.network.loss(tokens, wanted, count, self.team.share(count))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach()
            self.team.add(total)
            losses.append(float(total))
            if not math.isfinite(losses[-1]):
                raise self._diverged("its loss is not finite")
            self.team.add_gradients(self.network)
            self.optimizer.step()
            if self.session.tracker is not None:
                self.log({"batch_loss": losses[-1], "batch_learning_rate": rate})
        return float(np.mean(losses))

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 0."""
        return self.settings.lr * warmup_factor(update, self.total, self.settings.warmup)

    def _predict(self, source: LatentSource, rows: Ints) -> Floats:
        """Predicted chunks (n, K, A) float32 for `rows`."""
        values: Floats = self.predict(self.network.predict, source, rows).numpy()
        return values.reshape(-1, *self.inputs.train_targets.shape[1:])

    def _diverged(self, what: str) -> LaryError:
        rate = self.rate(self.step)
        return LaryError(
            f"The regression probe diverged in epoch {len(self.history) + 1}, update {self.step} (learning rate "
            f"{rate:.3g} of {self.settings.lr:g}): {what}. Check the scale of the latents, or train with another "
            "--probe-preset."
        )

    def close_epoch(self, epoch: int) -> None:
        """Offer the epoch to the picks, and write ``best_model.pth`` where it is the best one so far."""
        best = self.evaluation.consider(self.history[-1], self.predicted)
        if best and self.folder is not None:
            save_checkpoint(self.folder / self.checkpoint, self.network.state_dict())

    def found(self) -> dict[str, Any]:
        picks = {
            name: {"row": pick.row, "values": {role: torch.from_numpy(value) for role, value in pick.values.items()}}
            for name, pick in self.evaluation.picks.items()
        }
        return {"picks": picks, "order": json.dumps(self.order.bit_generator.state)}

    def restore(self, before: dict[str, Any]) -> None:
        self.order.bit_generator.state = json.loads(before["order"])
        for name, pick in self.evaluation.picks.items():
            kept = before["picks"][name]
            pick.row = kept["row"]
            pick.values = {role: value.numpy() for role, value in kept["values"].items()}
