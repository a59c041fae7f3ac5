"""The trained regression probes, MLP and DiT: from the latents of image pairs to normalised action chunks.

Which epoch is reported is decided on a held-out tenth of the training split (protocol ``corrected``), and beside it as
the published code does: the epoch with the smallest error on the reported split itself.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lary.probes.chunks import (
    SEEN,
    RegressorInputs,
    check_inputs,
    errors,
    make_picks,
    split_outcome,
    split_rows,
)
from lary.probes.dit import TRAINING_STEPS, ActionExpertDiT, Sampler
from lary.probes.fit import adamw, keep_in_memory, read_batches, save_checkpoint, team_batches
from lary.probes.memory import check_memory, count_weights, training_need
from lary.probes.mlp import ActionExpertMLP
from lary.probes.outcome import Floats, Ints, RegressionOutcome
from lary.probes.parallel import add_gradients
from lary.probes.presets import DitSettings, ProbePreset, RegressorSettings
from lary.probes.schedule import warmup_factor
from lary.probes.session import UNATTENDED, Session
from lary.probes.state import StateFile
from lary.probes.tracker import flat
from lary.runtime import seed_everything
from lary.types import BenchmarkProtocol, LaryError, LatentSource, Progress, UsageError

Network = ActionExpertMLP | ActionExpertDiT
NetworkType = Literal["mlp", "dit"]

CHECKPOINT = "best_model.pth"


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
    session: Session = UNATTENDED,
) -> RegressionOutcome:
    """Train a probe and return what its selected epochs say about every evaluated sample.

    Epochs count from 1. ``best_model.pth`` in `folder` is the state dict of the reported epoch, written whenever a
    better one is found. With an identity in `session` an interrupted training goes on where it was, and ends with the
    same bits on a CPU. `progress` advances by the size of the training split in every epoch. The DiT draws every chunk
    that is scored, with the sampling steps of its settings or `sampler_steps`.

    Raises:
        UsageError: the inputs don't fit together, nothing can be held out, or the network doesn't fit into memory.
        LaryError: a latent isn't finite, or the training diverged.
    """
    settings = choose_settings(preset, probe, epochs, batch_size, sampler_steps)
    check_inputs(inputs)
    seed_everything(seed)
    rows = split_rows(inputs, protocol, seed)
    kept = session.state_file(
        folder, probe, asdict(settings), protocol, seed, device.partition(":")[0], list(inputs.train.shape),
        inputs.train_targets, list(inputs.train_groups), *(split.targets for split in inputs.evaluated.values()),
    )  # fmt: skip
    training = _Training(inputs, settings, device, seed, rows, session)
    training.run(kept, folder, progress)
    picks = training.picks
    final = {f"final/{name}_{SEEN}_mse": pick.row[f"{SEEN}_mse"] for name, pick in picks.items()}
    session.tracker.log(final, training.update)
    return RegressionOutcome(
        dims=inputs.dims,
        groups=inputs.groups,
        splits={role: split_outcome(inputs, role, picks) for role in inputs.evaluated},
        history=training.history,
        settings={
            **asdict(settings), "preset": preset.name, "protocol": protocol, "seed": seed, "device": device,
            "fit_samples": len(rows[0]), "held_out_samples": len(rows[1]), "tokens": list(inputs.train.shape),
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


def _warnings(settings: RegressorSettings | DitSettings, inputs: RegressorInputs) -> tuple[str, ...]:
    if not isinstance(settings, DitSettings):
        return ()
    beyond = float(np.mean(np.abs(inputs.evaluated[SEEN].targets) > 1))
    return (
        f"The sampler of the DiT keeps predictions within one standard deviation, as published; {100 * beyond:.1f} % "
        "of the targets on the seen split lie beyond.",
    )


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


class _Training:
    """The network, what it is trained on, and what was found so far."""

    def __init__(
        self, inputs: RegressorInputs, settings: RegressorSettings | DitSettings, device: str, seed: int,
        rows: tuple[Ints, Ints], session: Session,
    ) -> None:  # fmt: skip
        self.inputs, self.settings, self.device, self.seed, self.session = inputs, settings, device, seed, session
        self.fit_rows, self.held_rows = rows
        _, self.steps, self.dims = inputs.train_targets.shape
        self.total = settings.epochs * math.ceil(len(self.fit_rows) / settings.batch_size)
        self.update = 0
        self.history: list[dict[str, Any]] = []
        self.picks = make_picks(self.held_rows)
        self.order = np.random.default_rng(seed)

    def run(self, kept: StateFile, folder: Path | None, progress: Progress | None) -> None:
        """Train from what was kept to the end. Raises LaryError if the training diverges."""
        before = kept.load()
        if before is not None:
            self._restore(before)
        if len(self.history) < self.settings.epochs:
            self._train(before, kept, folder, progress)
        if progress and before is not None:
            progress.skip(before["epoch"] * len(self.inputs.train))

    def _train(
        self, before: dict[str, Any] | None, kept: StateFile, folder: Path | None, progress: Progress | None
    ) -> None:
        inputs, settings, team = self.inputs, self.settings, self.session.team
        shapes = inputs.train.shape, inputs.train_targets.shape
        self._check_memory(*shapes)
        train = keep_in_memory(inputs.train, team.size)
        latents = {role: keep_in_memory(split.latents, team.size) for role, split in inputs.evaluated.items()}
        self.network = make_network(settings, *shapes, self.seed).to(self.device)
        self.optimizer = adamw(self.network, settings.lr, settings.weight_decay)
        if before is not None:
            self.network.load_state_dict(before["network"])
            self.optimizer.load_state_dict(before["optimizer"])
        headline = next(iter(self.picks.values()))
        kept.restore_random()
        for epoch in range(len(self.history) + 1, settings.epochs + 1):
            row: dict[str, Any] = {"epoch": epoch, "learning_rate": self.rate()}
            row["train_loss"] = self.run_epoch(train, self.order.permutation(self.fit_rows), epoch, progress)
            if len(self.held_rows):
                held = self.predict(train, self.held_rows)
                row |= errors("held_out", held, inputs.train_targets[self.held_rows], settings.batch_size)
                if progress:
                    progress.advance(len(self.held_rows))
            values = {role: self.predict(source, np.arange(len(source))) for role, source in latents.items()}
            for role, split in inputs.evaluated.items():
                row |= errors(role, values[role], split.targets, settings.batch_size)
            if not all(math.isfinite(value) for value in row.values()):
                raise self._diverged(epoch, "its predictions are not finite")
            self.history.append(row)
            self.session.tracker.log(flat(row), self.update)
            for pick in self.picks.values():
                if pick.consider(row, values) and pick is headline and folder is not None and team.leads:
                    save_checkpoint(folder / CHECKPOINT, self.network.state_dict())
            if epoch == settings.epochs:
                kept.keep(self._state, beside=(CHECKPOINT,), last=True)
            else:
                kept.keep(lambda: self._state() | self._weights(), beside=(CHECKPOINT,))

    def _check_memory(self, tokens: tuple[int, ...], targets: tuple[int, ...]) -> None:
        weights = count_weights(lambda: make_network(self.settings, tokens, targets, self.seed))
        kind = "dit" if isinstance(self.settings, DitSettings) else "mlp"
        check_memory(training_need(weights, tokens, self.settings.batch_size), tokens, self.device, f"probe {kind}")

    def _diverged(self, epoch: int, what: str) -> LaryError:
        return LaryError(
            f"The regression probe diverged in epoch {epoch}, update {self.update} (learning rate {self.rate():.3g} of "
            f"{self.settings.lr:g}): {what}. Check the scale of the latents, or train with another --probe-preset."
        )

    def rate(self) -> float:
        """Learning rate of the next update."""
        return self.settings.lr * warmup_factor(self.update, self.total, self.settings.warmup)

    def run_epoch(self, source: LatentSource, order: Ints, epoch: int, progress: Progress | None) -> float:
        """One pass over `order`; the mean of the batches' losses. Raises LaryError where one isn't finite."""
        losses = []
        size, team, tracker = self.settings.batch_size, self.session.team, self.session.tracker
        self.network.train()
        for rows, tokens, count in team_batches(source, order, size, self.device, team):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            wanted = torch.from_numpy(self.inputs.train_targets[rows]).flatten(1).to(self.device)
            loss = self.network.loss(tokens, wanted, count, team.share(count))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach()
            team.add([total])
            losses.append(float(total))
            if not math.isfinite(losses[-1]):
                raise self._diverged(epoch, "its loss is not finite")
            add_gradients(self.network, team)
            self.optimizer.step()
            if tracker.wanted:
                tracker.log({"batch_loss": losses[-1], "batch_learning_rate": self.rate()}, self.update)
            self.update += 1
            if progress:
                progress.advance(count)
        return float(np.mean(losses))

    @torch.no_grad()
    def predict(self, source: LatentSource, rows: Ints) -> Floats:
        """Predicted chunks (n, K, A) float32 for `rows`."""
        size, team = self.settings.batch_size, self.session.team
        parts = [torch.empty(0, self.steps * self.dims)]
        self.network.eval()
        for _, tokens in read_batches(source, rows[team.dealt(len(rows), size)], size, self.device):
            parts.append(self.network.predict(tokens).float().cpu())
        chunks: Floats = team.collect(torch.cat(parts), len(rows), size, self.device).numpy()
        return chunks.reshape(-1, self.steps, self.dims)

    def _weights(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _state(self) -> dict[str, Any]:
        picks = {
            name: {"row": pick.row, "values": {role: torch.from_numpy(value) for role, value in pick.values.items()}}
            for name, pick in self.picks.items()
        }
        order = json.dumps(self.order.bit_generator.state)
        return {
            "epoch": len(self.history), "update": self.update, "history": self.history, "picks": picks, "order": order
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.update, self.history = state["update"], state["history"]
        self.order.bit_generator.state = json.loads(state["order"])
        for name, pick in self.picks.items():
            kept = state["picks"][name]
            pick.row = kept["row"]
            pick.values = {role: value.numpy() for role, value in kept["values"].items()}
