"""The regression probes: from the latents of image pairs to action chunks, by MLP, DiT or ridge.

Which epoch, or which penalty of the ridge, is reported is decided on a held-out tenth of the
training split (protocol ``corrected``), and beside it as the published code does: the one
with the smallest error on the reported split itself.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lary.probes.dit import ActionExpertDiT, Sampler
from lary.probes.nets import ActionExpertMLP
from lary.probes.outcome import (
    ActionPredictions,
    Floats,
    Ints,
    RegressionOutcome,
    SampleColumns,
    SplitOutcome,
    Values,
    huber_loss,
    mse,
)
from lary.probes.presets import ActionSettings, DitSettings, RidgeSettings
from lary.probes.sources import check_memory, check_splits, in_chunks
from lary.probes.training import Session, Training, adamw, save_checkpoint
from lary.runtime import memory_bytes
from lary.types import LaryError, LatentSource, UsageError

SEEN = "seen"  # the role of the split that the published code picks its epoch on

RIDGE_SHARE = 0.6  # of this machine's memory, for the features of the ridge and their Gram matrix


@dataclass(frozen=True)
class EvaluatedSplit:
    """One split to report: normalised targets (n, K, A); `mean`, `std` (n, A) give units back."""

    latents: LatentSource
    targets: Floats
    samples: SampleColumns
    mean: Floats
    std: Floats


@dataclass(frozen=True)
class RegressorInputs:
    """Latents and normalised targets (n, K, A); `evaluated` by role, ``seen`` always."""

    train: LatentSource
    train_targets: Floats
    train_groups: tuple[str, ...]
    evaluated: Mapping[str, EvaluatedSplit]
    dims: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]


def train_regressor(inputs: RegressorInputs, settings: ActionSettings, session: Session) -> RegressionOutcome:
    """Train the probe that the settings are for, and predict every evaluated sample.

    Epochs count from 1; for the ridge an epoch is the number of a penalty. ``best_model.pth``
    in the session's folder holds the weights of the reported epoch: the state dict of the
    network, or ``coef`` (F, K * A), ``intercept`` (K * A), ``mean`` and ``std`` (F) of the
    ridge. The DiT draws every chunk that is scored.

    Raises:
        UsageError: the inputs don't fit together or into memory, or nothing can be held out.
        LaryError: the training diverged.
    """
    evaluated = [(split.latents, split.targets) for split in inputs.evaluated.values()]
    check_splits((inputs.train, inputs.train_targets), *evaluated)
    training: ActionTraining
    if isinstance(settings, RidgeSettings):
        training = RidgeTraining(inputs, settings, replace(session, device="cpu"))
    else:
        training = RegressorTraining(inputs, settings, session)
    training.run()
    return training.outcome()


class ActionTraining(Training):
    """What the regression probes share: the scores of an epoch, and the ways to choose one."""

    checkpoint = "best_model.pth"

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The weights of the latest epoch."""

    def score(self, row: dict[str, Any], predict: Callable[[LatentSource, Ints], Floats]) -> None:
        """Predict all that is scored, and add the errors to a row of the history."""
        inputs, size = self.inputs, self.settings.batch_size
        self.predicted: dict[str, Tensor] = {}
        if len(self.held_rows):
            held = predict(inputs.train, self.held_rows)
            row |= errors("held_out", held, inputs.train_targets[self.held_rows], size)
        for role, split in inputs.evaluated.items():
            found = predict(split.latents, np.arange(len(split.latents)))
            row |= errors(role, found, split.targets, size)
            self.predicted[role] = torch.from_numpy(found)

    def close_epoch(self, epoch: int) -> None:
        """Offer the epoch to the picks, and write its weights where the reported pick takes it."""
        # Without held-out rows the published choice is the only one.
        columns = {"held_out": "held_out_mse"} if len(self.held_rows) else {}
        row, values = self.history[-1], self.predicted
        taken = [
            self.offer(name, [-row[column]], epoch=epoch, values=values)
            for name, column in (columns | {"best_on_validation": f"{SEEN}_mse"}).items()
        ]
        if taken[0] and self.folder is not None:
            save_checkpoint(self.folder / self.checkpoint, self.weights())

    def outcome(self) -> RegressionOutcome:
        """The outcome of the picked epochs."""
        inputs = self.inputs
        rows = {name: self.history[pick["epoch"] - 1] for name, pick in self.picks.items()}
        mean_action = inputs.train_targets.mean(axis=0, dtype=np.float64).astype(np.float32)
        splits = {}
        for role, split in inputs.evaluated.items():
            selections: Any = {}
            for name, pick in self.picks.items():
                selections[name] = ActionPredictions(pick["epoch"], pick["values"][role].numpy())
            losses: Any = {name: row[f"{role}_loss"] for name, row in rows.items()}
            controls = {"mean_action": np.broadcast_to(mean_action, split.targets.shape).copy()}
            own = split.samples, split.targets, split.mean, split.std
            splits[role] = SplitOutcome(*own, selections, controls, losses)
        warnings = []
        if isinstance(self.settings, DitSettings):
            beyond = 100 * float(np.mean(np.abs(inputs.evaluated[SEEN].targets) > 1))
            warnings.append(
                "The sampler of the DiT keeps predictions within one standard deviation, as published; "
                f"{beyond:.1f} % of the targets on the seen split lie beyond."
            )
        # The end of the range may not be the best there is.
        if isinstance(self.settings, RidgeSettings) and next(iter(rows.values()))["epoch"] == 1:
            warnings.append(f"The smallest penalty of {len(self.history)} was picked: a smaller one might do better.")
        stated = self.stated()
        return RegressionOutcome(inputs.dims, inputs.groups, splits, self.history, stated, tuple(warnings))


def errors(name: str, predicted: Floats, targets: Floats, batch_size: int) -> dict[str, float]:
    """Loss and mean squared error of one split, as columns of the history."""
    return {f"{name}_loss": huber_loss(predicted, targets, batch_size), f"{name}_mse": mse(predicted, targets)}


class RegressorTraining(ActionTraining):
    """An MLP or a DiT in training."""

    def build(self) -> dict[str, Any]:
        inputs, settings = self.inputs, self.settings
        check_memory(self.make, 1, settings.batch_size, inputs.train.shape, self.device)
        self.network = self.make().to(self.device)
        self.optimizer = adamw(self.network, settings.lr, settings.weight_decay)
        # The orders of the epochs that a resumed training has completed are drawn once more.
        self.order = np.random.default_rng(self.session.seed)
        for _ in self.history:
            self.order.permutation(self.fit_rows)
        return {"network": self.network, "optimizer": self.optimizer}

    def make(self) -> ActionExpertMLP | ActionExpertDiT:
        """The network for tokens and targets of these shapes."""
        own, (_, steps, dims) = self.settings, self.inputs.train_targets.shape
        size = math.prod(self.inputs.train.shape)
        if isinstance(own, DitSettings):
            sampler = Sampler(own.sampler_steps, self.session.seed)
            return ActionExpertDiT(size, dims, steps, own.hidden_dim, own.depth, own.num_heads, sampler)
        return ActionExpertMLP(size, dims, steps, own.hidden_dim, own.num_blocks)

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": self.rate(self.step)}
        row["train_loss"] = self.train_epoch(self.order.permutation(self.fit_rows))
        self.network.eval()
        self.score(row, self._predict)
        self.advance(len(self.held_rows))
        if not all(math.isfinite(value) for value in row.values()):
            raise self._diverged("its predictions are not finite")
        return row

    def train_epoch(self, order: Ints) -> float:
        """One pass over `order`; returns the mean of the batches' losses. Raises LaryError."""
        losses = []
        self.network.train()
        for rows, tokens, count in self.batches(self.inputs.train, order):
            rate = self.rate(self.step - 1)  # the published warm-up counts updates from 0
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            wanted = torch.from_numpy(self.inputs.train_targets[rows]).flatten(1).to(self.device)
            loss = self.network.loss(tokens, wanted, count, self.team.share)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            total = loss.detach()
            self.team.add(total)
            losses.append(float(total))
            if not math.isfinite(losses[-1]):
                raise self._diverged("its loss is not finite")
            self.team.add_gradients(self.network)
            self.optimizer.step()
            self.log({"batch_loss": losses[-1], "batch_learning_rate": rate})
        return float(np.mean(losses))

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 0: a linear rise, then constant."""
        rise = int(self.total * self.settings.warmup)
        return float(self.settings.lr) * (update / rise if update < rise else 1.0)

    def _predict(self, source: LatentSource, rows: Ints) -> Floats:
        """Predicted chunks (n, K, A) float32 for `rows`."""
        values: Floats = self.predict(self.network.predict, source, rows).numpy()
        return values.reshape(-1, *self.inputs.train_targets.shape[1:])

    def _diverged(self, what: str) -> LaryError:
        return LaryError(
            f"The probe diverged in epoch {len(self.history) + 1}, update {self.step} (learning rate "
            f"{self.rate(self.step):.3g} of {self.settings.lr:g}): {what}. Check the scale of the latents, or take "
            "another --probe-preset."
        )


class RidgeTraining(ActionTraining):
    """Action chunks as a linear function of the latents, in closed form; a fast reference.

    Every value is centred, and scaled by its channel: scaled by itself, a value that hardly
    ever changes in training would blow up what is seen there for the first time.
    """

    def build(self) -> dict[str, Any]:
        rows, size = self.fit_rows, math.prod(self.inputs.train.shape)
        needed, present = 8 * (2 * len(rows) * size + 2 * min(len(rows), size) ** 2), memory_bytes()
        if needed > RIDGE_SHARE * present:
            raise UsageError(
                f"The ridge probe needs {needed / 1e9:.1f} GB for {len(rows)} samples of {size} values, this machine "
                f"has {present / 1e9:.1f} GB: pass --pool or --project, or use --model-type mlp."
            )
        parts = [part.reshape(len(part), -1) for part in in_chunks(self.inputs.train, rows)]
        features = np.concatenate(parts).astype(np.float64)
        mean = features.mean(axis=0)
        features -= mean
        spread = np.sqrt(np.square(features).mean(axis=0).reshape(-1, self.inputs.train.shape[-1]).mean(axis=0))
        spread[spread < 1e-6 * max(1.0, float(np.abs(mean).max()))] = 1.0
        std = np.tile(spread, size // len(spread))
        features /= std
        self.features = features
        self.linear: dict[str, Values] = {"mean": mean, "std": std}
        return {}

    def weights(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in self.linear.items()}

    def run_epoch(self, epoch: int) -> dict[str, Any]:
        from sklearn.linear_model import Ridge

        shrinkage = self.settings.shrinkages[epoch - 1]
        targets = self.inputs.train_targets[self.fit_rows]
        model = Ridge(alpha=shrinkage * max(self.features.shape), solver="cholesky")
        model.fit(self.features, targets.reshape(len(targets), -1))
        coef, intercept = np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)
        self.linear |= {"coef": coef, "intercept": intercept}
        fitted = (self.features @ coef + intercept).reshape(targets.shape).astype(np.float32)
        row: dict[str, Any] = {"epoch": epoch, "shrinkage": shrinkage}
        row |= errors("train", fitted, targets, self.settings.batch_size)
        self.score(row, self._predict)
        self.advance(len(self.inputs.train))
        return row

    def _predict(self, source: LatentSource, rows: Ints) -> Floats:
        """Predicted chunks (n, K, A) float32 for `rows`."""
        own, parts = self.linear, []
        for tokens in in_chunks(source, rows):
            features = (tokens.reshape(len(tokens), -1).astype(np.float64) - own["mean"]) / own["std"]
            parts.append(features @ own["coef"] + own["intercept"])
        return np.concatenate(parts).reshape(-1, *self.inputs.train_targets.shape[1:]).astype(np.float32)
