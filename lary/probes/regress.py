"""The regression probes MLP, DiT and ridge: from latents to action chunks.

``corrected`` averages the weights over the last quarter of the epochs; the
ridge's penalty is picked by cross-validation within the training split. Samples
have F values of tokens, chunks of (K, A).
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lary.arrays import Floats, Ints
from lary.probes import outcome as metrics
from lary.probes.dit import ActionExpertDiT
from lary.probes.nets import ActionExpertMLP
from lary.probes.outcome import ActionPredictions, RegressionOutcome, SampleColumns, SelectionName, SplitOutcome
from lary.probes.presets import ActionSettings, DitSettings, RidgeSettings
from lary.probes.sources import COPIES, check_memory, check_splits, in_chunks, on_device
from lary.probes.training import Session, Training, adamw, chosen_precision, staged
from lary.runtime import memory_bytes
from lary.types import JsonDict, LaryError, LatentSource, UsageError

SEEN = "seen"  # the split that the published code picks its epoch on

AVERAGED = 4  # of so many epochs at the end, one's weights are averaged
READ_EACH = 64  # updates on an accelerator, the loss is read
FOLDS = 5  # of the training split, by group, that choose the ridge's penalty
RIDGE_SHARE = 0.6  # of this machine's memory, for the ridge's features and Gram matrix


@dataclass(frozen=True)
class EvaluatedSplit:
    """A split to report; `mean`, `std` (n, A) turn targets (n, K, A) into units."""

    latents: LatentSource
    targets: Floats
    samples: SampleColumns
    mean: Floats
    std: Floats


@dataclass(frozen=True)
class RegressorInputs:
    """Latents and normalised targets (n, K, A); `evaluated` by role has ``seen``."""

    train: LatentSource
    train_targets: Floats
    train_groups: tuple[str, ...]
    evaluated: Mapping[str, EvaluatedSplit]
    dims: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]


def train_regressor(inputs: RegressorInputs, settings: ActionSettings, session: Session) -> RegressionOutcome:
    """Train the probe of the settings, and predict every evaluated sample.

    Epochs count from 1; for the ridge an epoch is the number of a penalty. In
    the session's folder ``best_model.pth`` holds the weights of the reported
    selection: the state dict of the network, or ``coef`` (F, K * A),
    ``intercept`` (K * A), ``mean`` and ``std`` (F) of the ridge. Raises
    UsageError for inputs that don't fit together or into memory, or a ridge
    without two groups, LaryError on divergence.
    """
    evaluated = [(split.latents, split.targets) for split in inputs.evaluated.values()]
    check_splits((inputs.train, inputs.train_targets), *evaluated)
    kind: type[ActionTraining] = RegressorTraining
    session = replace(session, precision=chosen_precision(False, session))
    if isinstance(settings, RidgeSettings):
        kind, session = RidgeTraining, replace(session, device="cpu", precision="fp64")
    training = kind(inputs, settings, session)
    training.run()
    return training.outcome()


class ActionTraining(Training):
    """What regression probes share: scores of epochs, and the pick of one."""

    checkpoint = "best_model.pth"

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights of the latest epoch, on the CPU."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Chunks (B, K * A) that the latest weights predict from tokens."""

    @staged("evaluation")
    def score(self, row: JsonDict) -> None:
        self.predicted: dict[str, Tensor] = {}
        for role, split in self.inputs.evaluated.items():
            found = self.predict(self.decode, split.latents, np.arange(len(split.latents)))
            self.predicted[role] = self.add_errors(row, role, found, split.targets)

    def add_errors(self, row: JsonDict, name: str, found: Tensor, targets: Floats) -> Tensor:
        """Add loss and mean squared error to `row`; returns the chunks (n, K, A)."""
        chunks = found.reshape(targets.shape)
        row[f"{name}_loss"] = metrics.huber_loss(chunks.numpy(), targets, self.settings.batch_size)
        row[f"{name}_mse"] = metrics.mse(chunks.numpy(), targets)
        return chunks

    def close_epoch(self, epoch: int) -> None:
        row = self.history[-1]
        if "held_out_mse" in row:
            self.pick("held_out", [-row["held_out_mse"]], epoch, row)
        self.pick("best_on_validation", [-row[f"{SEEN}_mse"]], epoch, row)

    def pick(self, name: SelectionName, rank: list[float], epoch: int, row: JsonDict) -> None:
        losses = {role: row[f"{role}_loss"] for role in self.predicted}
        reported = (name == "held_out") == self.corrected
        if self.offer(name, rank, epoch=epoch, values=self.predicted, losses=losses) and reported and self.folder:
            self.unsaved = self.weights()

    def outcome(self) -> RegressionOutcome:
        inputs, warnings, splits = self.inputs, [], {}
        mean_action = inputs.train_targets.mean(axis=0, dtype=np.float64).astype(np.float32)
        for role, split in inputs.evaluated.items():
            picks = sorted(self.picks.items(), reverse=True)  # the reported one first
            selections = {name: ActionPredictions(own["epoch"], own["values"][role].numpy()) for name, own in picks}
            losses = {name: own["losses"][role] for name, own in picks}
            controls = {"mean_action": np.broadcast_to(mean_action, split.targets.shape).copy()}
            about = split.samples, split.targets, split.mean, split.std
            splits[role] = SplitOutcome(*about, selections, controls, losses)
        if isinstance(self.settings, DitSettings):
            beyond = 100 * float(np.mean(np.abs(inputs.evaluated[SEEN].targets) > 1))
            warnings.append(
                "The sampler of the DiT keeps predictions within one standard deviation, as "
                f"published; {beyond:.1f} % of the targets on the seen split lie beyond."
            )
        # The best may be beyond the end of the range.
        if isinstance(self.settings, RidgeSettings) and self.picks[metrics.headline(self.picks)]["epoch"] == 1:
            warnings.append(f"The smallest penalty of {len(self.history)} was picked: a smaller one might do better.")
        stated = self.stated()
        return RegressionOutcome(inputs.dims, inputs.groups, splits, self.history, stated, tuple(warnings))


class RegressorTraining(ActionTraining):
    """An MLP or a DiT in training."""

    choice = "the weights are averaged over the last quarter of the epochs; all training rows are used"

    def build(self) -> list[Any]:
        own, shape = self.settings, self.inputs.train.shape
        # The average of epochs, and the picked weights, have no gradients and moments.
        check_memory(self.make, 1 + 1 / COPIES, own.batch_size, shape, self.device)
        self.network = self.make().to(self.device)
        self.optimizer = adamw(self.network, own.lr, own.weight_decay)
        # A resumed training draws the orders of its completed epochs again.
        self.order = np.random.default_rng(self.session.seed)
        for _ in self.history:
            self.order.permutation(self.rows)
        self.average = AveragedModel(self.network)
        return [self.network, self.optimizer, self.average]

    def make(self) -> ActionExpertMLP | ActionExpertDiT:
        own, (_, steps, dims) = self.settings, self.inputs.train_targets.shape
        size = math.prod(self.inputs.train.shape)
        if not isinstance(own, DitSettings):
            return ActionExpertMLP(size, dims, steps, own.hidden_dim, own.num_blocks)
        widths = own.hidden_dim, own.depth, own.num_heads
        return ActionExpertDiT(size, dims, steps, *widths, own.sampler_steps, self.session.seed)

    def weights(self) -> dict[str, Tensor]:
        values = self.network.state_dict().items()
        return {name: value.to("cpu", copy=True) for name, value in values}

    def decode(self, tokens: Tensor) -> Tensor:
        with self.autocast():
            return self.network.predict(tokens)

    def run_epoch(self, epoch: int) -> JsonDict:
        row: JsonDict = {"epoch": epoch, "learning_rate": self.rate(self.step)}
        row["train_loss"] = self.train_epoch(self.order.permutation(self.rows))
        self.network.eval()
        self.score(row)
        self.check_finite(row.values(), "its predictions are not finite")
        return row

    def close_epoch(self, epoch: int) -> None:
        """As of all; ``corrected`` reports the average of the last epochs."""
        super().close_epoch(epoch)
        last = self.settings.epochs
        if not self.corrected or epoch <= last - max(1, last // AVERAGED):
            return
        self.average.update_parameters(self.network)
        if epoch == last:
            self.network.load_state_dict(self.average.module.state_dict())
            row: JsonDict = {}
            self.score(row)
            self.pick("held_out", [], epoch, row)

    @staged("training")
    def train_epoch(self, order: Ints) -> float:
        """Train on `order`; returns the mean loss of batches. Raises LaryError."""
        found: list[Tensor] = []
        self.network.train()
        for rows, tokens, count in self.batches(self.inputs.train, order):
            rate = self.rate(self.step - 1)  # published: counted from 0
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            wanted = on_device(torch.from_numpy(self.inputs.train_targets[rows]).flatten(1), self.device)
            with self.autocast():
                loss = self.network.loss(tokens, wanted, count, self.team.share)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            total = loss.detach()
            self.team.add(total)
            found.append(total)
            if self.device == "cpu" or len(found) % READ_EACH == 0:  # elsewhere each read waits
                self.check_finite([float(total)], "its loss is not finite")
            self.team.add_gradients(self.network)
            self.optimizer.step()
            if self.session.tracker:
                self.log({"batch_loss": float(total), "batch_learning_rate": rate})
        losses = torch.stack(found).tolist()
        self.check_finite(losses, "its loss is not finite")
        return float(np.mean(losses))

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 0: a linear rise, then constant."""
        rise = int(self.total * self.settings.warmup)
        return float(self.settings.lr) * (update / rise if update < rise else 1.0)

    def check_finite(self, values: Iterable[float], what: str) -> None:
        """Raise LaryError, with `what` happened, if a number isn't finite."""
        if not all(map(math.isfinite, values)):
            raise LaryError(
                f"The probe diverged in epoch {len(self.history) + 1}, update {self.step} (learning "
                f"rate {self.rate(self.step):.3g} of {self.settings.lr:g}): {what}. Check the scale "
                "of the latents, or take another --probe-preset."
            )


class RidgeTraining(ActionTraining):
    """A linear map from latents to chunks in closed form, as a fast reference.

    Values are centred, and scaled by their channel: by itself, a value that
    hardly changes in training could become huge on other splits.
    """

    choice = f"the penalty has the least error in {FOLDS} folds of the training groups, and is fitted on all rows"

    def build(self) -> list[Any]:
        rows, shape = self.rows, self.inputs.train.shape
        size, present = math.prod(shape), memory_bytes()
        # In float64: features and two copies, the Gram matrix and its factor.
        needed = 8 * (3 * len(rows) * size + 2 * min(len(rows), size) ** 2)
        if needed > RIDGE_SHARE * present:
            raise UsageError(
                f"The ridge probe needs {needed / 1e9:.1f} GB for {len(rows)} samples of {size} "
                f"values, this machine has {present / 1e9:.1f} GB: pass --pool or --project, or "
                "use --model-type mlp."
            )
        if self.corrected:
            if (groups := len(set(self.inputs.train_groups))) < 2:
                raise UsageError(
                    f"The {len(rows)} training samples are of one episode or video, so no penalty can be chosen by "
                    "cross-validation: give more data, or use the protocol 'paper'."
                )
            # As scikit-learn's GroupKFold, which takes two seconds to import.
            order = np.random.RandomState(self.session.seed).permutation(np.unique(self.inputs.train_groups))
            parts = np.array_split(order, min(FOLDS, groups))
            self.folds = [torch.from_numpy(np.isin(self.inputs.train_groups, part)) for part in parts]
        # In torch alone: threads of three libraries wait for each other.
        features = torch.from_numpy(np.concatenate(list(in_chunks(self.inputs.train, rows)))).flatten(1).double()
        mean = features.mean(dim=0)
        features -= mean
        spread = features.square().mean(dim=0).reshape(-1, shape[-1]).mean(dim=0).sqrt()
        spread[spread < 1e-6 * mean.abs().max().clamp(min=1)] = 1.0
        std = spread.repeat(size // len(spread))
        features /= std
        self.features, self.linear = features, {"mean": mean, "std": std}
        self.decompose()
        return []

    @staged("training")
    def decompose(self) -> None:
        """Rotate fewer rows than values into as many dimensions, which no fit sees."""
        self.basis, triangle = None, self.features.T
        if len(triangle) > len(self.features):
            self.basis, triangle = torch.linalg.qr(triangle)
        self.features, self.gram = triangle.T, triangle @ triangle.T

    def weights(self) -> dict[str, Tensor]:
        return dict(self.linear)  # a fit replaces them

    def decode(self, tokens: Tensor) -> Tensor:
        own = self.linear
        return (tokens.flatten(1).double() - own["mean"]) / own["std"] @ own["coef"] + own["intercept"]

    def run_epoch(self, epoch: int) -> JsonDict:
        row: JsonDict = {"epoch": epoch}
        self.fit(row)
        self.score(row)
        self.advance(len(self.inputs.train))
        return row

    @staged("training")
    def fit(self, row: JsonDict) -> None:
        """Fit the penalty of an epoch; adds its error in folds to `row`."""
        targets = self.inputs.train_targets
        shrinkage = row["shrinkage"] = self.settings.shrinkages[row["epoch"] - 1]
        wanted = torch.from_numpy(targets).flatten(1).double()
        # The mean eigenvalue: the trace is n * F, the rank min(n, F).
        penalty = shrinkage * max(len(wanted), len(self.linear["mean"]))
        if self.corrected:
            found = torch.empty_like(wanted)
            for held in self.folds:
                coef, intercept = self.solve(wanted, penalty, held)
                found[held] = self.features[held] @ coef + intercept
            self.add_errors(row, "held_out", found.float(), targets)
        coef, intercept = self.solve(wanted, penalty, torch.zeros(len(wanted)) > 0)
        self.add_errors(row, "train", (self.features @ coef + intercept).float(), targets)
        self.linear |= {"coef": coef if self.basis is None else self.basis @ coef, "intercept": intercept}

    def solve(self, targets: Tensor, penalty: float, held: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and intercept (m,) of targets (n, m), without the rows `held` (n,)."""
        own = self.features[held]
        kept = len(held) - len(own)
        mean = -own.sum(dim=0) / kept  # of all it is 0
        middle = targets[~held].mean(dim=0)
        gram = self.gram - own.T @ own - kept * torch.outer(mean, mean)
        gram.diagonal().add_(penalty)
        right = self.features.T @ torch.where(held[:, None], 0.0, targets - middle)
        coef = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
        return coef.contiguous(), middle - mean @ coef  # by columns, products are slow
