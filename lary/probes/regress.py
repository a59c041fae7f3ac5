"""The trained regression probes, MLP and DiT: from the latents of image pairs to normalised action chunks.

Which epoch is reported is decided on a held-out tenth of the training split (protocol ``corrected``), and beside it as
the published code does: the epoch with the smallest error on the reported split itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lary.probes.controls import mean_action
from lary.probes.dit import TRAINING_STEPS, ActionExpertDiT, Sampler
from lary.probes.fit import adamw, keep_in_memory, read_batches, save_checkpoint, weights_of
from lary.probes.metrics import huber_loss, mse
from lary.probes.mlp import ActionExpertMLP
from lary.probes.outcome import (
    ActionPredictions,
    Floats,
    Ints,
    RegressionOutcome,
    SampleColumns,
    SelectionName,
    SplitOutcome,
)
from lary.probes.presets import DitSettings, ProbePreset, RegressorSettings
from lary.probes.sampler import hold_out
from lary.probes.schedule import warmup_factor
from lary.runtime import seed_everything
from lary.types import BenchmarkProtocol, LaryError, LatentSource, Progress, UsageError

Network = ActionExpertMLP | ActionExpertDiT
NetworkType = Literal["mlp", "dit"]

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


def train_regressor(
    inputs: RegressorInputs,
    preset: ProbePreset,
    *,
    protocol: BenchmarkProtocol,
    device: str,
    seed: int,
    folder: Path | None,
    progress: Progress | None,
    epochs: int | None = None,
    batch_size: int | None = None,
    probe: NetworkType = "mlp",
    sampler_steps: int | None = None,
) -> RegressionOutcome:
    """Train a probe and return what its selected epochs say about every evaluated sample.

    Epochs count from 1. ``best_model.pth`` in `folder` is the state dict of the reported epoch, written whenever a
    better one is found. `progress` advances by the size of the training split in every epoch. The DiT draws every
    chunk that is scored, with the sampling steps of its settings or `sampler_steps`.

    Raises:
        UsageError: the inputs don't fit together, or nothing can be held out.
        LaryError: a latent isn't finite, or the training diverged.
    """
    settings = choose_settings(preset, probe, epochs, batch_size, sampler_steps)
    check_inputs(inputs)
    seed_everything(seed)
    fit_rows, held_rows = split_rows(inputs, protocol, seed)
    train = keep_in_memory(inputs.train)
    latents = {role: keep_in_memory(split.latents) for role, split in inputs.evaluated.items()}
    network = make_network(settings, train.shape, inputs.train_targets.shape, seed)
    training = _Training(network.to(device), settings, inputs.train_targets.shape, device, len(fit_rows))
    picks = make_picks(held_rows)
    headline = next(iter(picks.values()))
    order = np.random.default_rng(seed)
    history: list[dict[str, Any]] = []
    for epoch in range(1, settings.epochs + 1):
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": training.rate()}
        row["train_loss"] = training.run_epoch(train, inputs.train_targets, order.permutation(fit_rows), progress)
        if len(held_rows):
            held = training.predict(train, held_rows, progress)
            row |= errors("held_out", held, inputs.train_targets[held_rows], settings.batch_size)
        values = {role: training.predict(source, np.arange(len(source))) for role, source in latents.items()}
        for role, split in inputs.evaluated.items():
            row |= errors(role, values[role], split.targets, settings.batch_size)
        if not all(math.isfinite(value) for value in row.values()):
            raise LaryError(f"The regression probe diverged in epoch {epoch}: check the scale of the latents.")
        history.append(row)
        for pick in picks.values():
            if pick.consider(row, values) and pick is headline and folder is not None:
                save_checkpoint(folder / "best_model.pth", weights_of(training.network))
    return RegressionOutcome(
        dims=inputs.dims,
        groups=inputs.groups,
        splits={role: split_outcome(inputs, role, picks) for role in inputs.evaluated},
        history=history,
        settings={
            **asdict(settings), "preset": preset.name, "protocol": protocol, "seed": seed, "device": device,
            "fit_samples": len(fit_rows), "held_out_samples": len(held_rows), "tokens": list(train.shape),
        },
        warnings=_warnings(settings, inputs),
    )  # fmt: skip


def choose_settings(
    preset: ProbePreset, probe: NetworkType, epochs: int | None, batch_size: int | None, sampler_steps: int | None
) -> RegressorSettings | DitSettings:
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


def make_network(
    settings: RegressorSettings | DitSettings, tokens: tuple[int, ...], targets: tuple[int, ...], seed: int
) -> Network:
    """The network of a probe for tokens of this shape and targets (n, K, A); `seed` is that of the DiT's samples."""
    _, steps, dims = targets
    size = math.prod(tokens)
    if isinstance(settings, DitSettings):
        sampler = Sampler(settings.sampler_steps, seed)
        return ActionExpertDiT(size, dims, steps, settings.hidden_dim, settings.depth, settings.num_heads, sampler)
    return ActionExpertMLP(size, dims, steps, hidden_dim=settings.hidden_dim, num_blocks=settings.num_blocks)


def _warnings(settings: RegressorSettings | DitSettings, inputs: RegressorInputs) -> tuple[str, ...]:
    if not isinstance(settings, DitSettings):
        return ()
    beyond = float(np.mean(np.abs(inputs.evaluated[SEEN].targets) > 1))
    return (
        f"The sampler of the DiT keeps predictions within one standard deviation, as published; {100 * beyond:.1f} % "
        "of the targets on the seen split lie beyond.",
    )


def errors(name: str, predicted: Floats, targets: Floats, batch_size: int) -> dict[str, float]:
    """Loss and mean squared error of one split, as columns of the history."""
    return {f"{name}_loss": huber_loss(predicted, targets, batch_size), f"{name}_mse": mse(predicted, targets)}


def check_inputs(inputs: RegressorInputs) -> None:
    """Refuse inputs that don't fit together."""
    if SEEN not in inputs.evaluated:
        raise UsageError("A regression probe needs the split 'seen' to report.")
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


def split_rows(inputs: RegressorInputs, protocol: BenchmarkProtocol, seed: int) -> tuple[Ints, Ints]:
    """Rows to fit on and rows held out; the published protocol fits on all of them."""
    if protocol == "paper":
        return np.arange(len(inputs.train), dtype=np.int64), np.empty(0, dtype=np.int64)
    return hold_out(inputs.train_groups, seed=seed)


def make_picks(held_rows: Ints) -> dict[SelectionName, Pick]:
    """The ways to choose an epoch, the headline first; nothing held out leaves the published one."""
    published: dict[SelectionName, Pick] = {"best_on_validation": Pick(f"{SEEN}_mse")}
    return {"held_out": Pick("held_out_mse"), **published} if len(held_rows) else published


def split_outcome(inputs: RegressorInputs, role: str, picks: Mapping[SelectionName, Pick]) -> SplitOutcome:
    """What the picked epochs say about one split."""
    split = inputs.evaluated[role]
    return SplitOutcome(
        samples=split.samples,
        targets=split.targets,
        mean=split.mean,
        std=split.std,
        selections={name: ActionPredictions(pick.row["epoch"], pick.values[role]) for name, pick in picks.items()},
        controls={"mean_action": mean_action(inputs.train_targets, len(split.targets))},
        loss={name: pick.row[f"{role}_loss"] for name, pick in picks.items()},
    )


@dataclass
class Pick:
    """The epoch with the smallest error so far in one column of the history, and what was predicted then."""

    column: str
    row: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Floats] = field(default_factory=dict)

    def consider(self, row: dict[str, Any], values: dict[str, Floats]) -> bool:
        """Take this epoch if it is strictly better; says whether it was taken."""
        if row[self.column] >= self.row.get(self.column, math.inf):
            return False
        self.row, self.values = row, values
        return True


class _Training:
    """The network with its optimizer and the count of updates so far."""

    def __init__(
        self, network: Network, settings: RegressorSettings | DitSettings, targets: tuple[int, ...], device: str,
        rows: int,
    ) -> None:  # fmt: skip
        _, self.steps, self.dims = targets
        self.network = network
        self.settings = settings
        self.device = device
        self.total = settings.epochs * math.ceil(rows / settings.batch_size)
        self.update = 0
        self.optimizer = adamw(self.network, settings.lr, settings.weight_decay)

    def rate(self) -> float:
        """Learning rate of the next update."""
        return self.settings.lr * warmup_factor(self.update, self.total, self.settings.warmup)

    def run_epoch(self, source: LatentSource, targets: Floats, order: Ints, progress: Progress | None) -> float:
        """One pass over `order`; the mean of the batches' losses."""
        losses = []
        self.network.train()
        for rows, tokens in read_batches(source, order, self.settings.batch_size, self.device):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            wanted = torch.from_numpy(targets[rows]).flatten(1).to(self.device)
            loss = self.network.loss(tokens, wanted)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.update += 1
            losses.append(loss.detach())
            if progress:
                progress.advance(len(rows))
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def predict(self, source: LatentSource, rows: Ints, progress: Progress | None = None) -> Floats:
        """Predicted chunks (n, K, A) float32 for `rows`."""
        parts = []
        self.network.eval()
        for done, tokens in read_batches(source, rows, self.settings.batch_size, self.device):
            parts.append(self.network.predict(tokens).float().cpu())
            if progress:
                progress.advance(len(done))
        chunks: Floats = torch.cat(parts).numpy()
        return chunks.reshape(-1, self.steps, self.dims)
