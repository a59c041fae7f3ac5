"""The part that the trainings of all probe networks share: epochs, state, memory, precision and progress."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lary.configs import ProbePrecision
from lary.probes.outcome import Ints
from lary.probes.presets import HeadSettings
from lary.probes.session import Session, StateFile, flat
from lary.probes.sources import AHEAD, read_batches
from lary.runtime import memory_bytes
from lary.types import LatentSource, UsageError

VALUE = 4
"""Bytes of a float32."""

BATCH_COPIES = AHEAD + 6
"""Batches read ahead, the one in work, its normalised form and their gradients."""

CHUNK_TOKENS = 2048
"""Tokens that pass a network at once on a CPU: enough for its matrix products, few enough for its cache."""

CUDA_SHARE = 0.2
"""Share of a CUDA device's memory that the activations of one pass may take."""

COPIES = {"weights": 1, "gradients": 1, "two moments of AdamW": 2}


class Training(ABC):
    """A training in progress: what it trains on, the updates so far, and the history of its epochs.

    A subclass makes its networks, runs one epoch at a time, and chooses what is reported.
    """

    checkpoint: ClassVar[str]
    """Name of the file with the weights, which a state goes with."""

    def __init__(self, session: Session, rows: tuple[Ints, Ints], epochs: int, batch_size: int) -> None:
        self.session, self.team, self.device = session, session.team, session.device
        self.fit_rows, self.held_rows = rows
        self.epochs, self.batch_size = epochs, batch_size
        self.folder = session.folder if self.team.leads else None  # the leading process alone writes files
        self.per_epoch = math.ceil(len(self.fit_rows) / batch_size)
        self.total = self.per_epoch * epochs
        """Updates of all epochs."""
        self.step = 0
        self.history: list[dict[str, Any]] = []

    @abstractmethod
    def build(self) -> dict[str, Any]:
        """Make the networks; returns all that has a state dict, by name. Raises UsageError."""

    @abstractmethod
    def run_epoch(self, epoch: int) -> dict[str, Any]:
        """Train and score one epoch, counted from 1, and return its entry of the history. Raises LaryError."""

    @abstractmethod
    def close_epoch(self, epoch: int) -> None:
        """Choose what is reported, and write files, after the history has its entry."""

    @abstractmethod
    def found(self) -> dict[str, Any]:
        """What was found so far, as tensors and plain values; all that a finished training needs."""

    @abstractmethod
    def restore(self, before: dict[str, Any]) -> None:
        """Take up what `found` returned."""

    def run(self, kept: StateFile) -> None:
        """Train from the kept state to the end. Raises LaryError if the training diverges."""
        before = kept.load()
        if before is not None:
            self.step, self.history = before["step"], before["history"]
            self.restore(before)
            if self.session.progress:
                self.session.progress.skip(len(self.history) * (len(self.fit_rows) + len(self.held_rows)))
        if len(self.history) == self.epochs:  # nothing is left to train
            return
        built = self.build()
        if before is not None:
            for name, each in built.items():
                each.load_state_dict(before["built"][name])
        kept.restore_random()
        for epoch in range(len(self.history) + 1, self.epochs + 1):
            self.history.append(self.run_epoch(epoch))
            self.log(self.history[-1])
            self.close_epoch(epoch)
            last = epoch == self.epochs
            kept.keep(partial(self._state, {} if last else built), beside=self.checkpoint, last=last)

    def _state(self, built: dict[str, Any]) -> dict[str, Any]:
        states = {name: each.state_dict() for name, each in built.items()}
        return {"step": self.step, "history": self.history, "built": states, **self.found()}

    def log(self, values: dict[str, Any]) -> None:
        """Report numbers to the tracker."""
        if self.session.tracker is not None and self.team.leads:
            self.session.tracker.log(flat(values), step=self.step)

    def batches(self, source: LatentSource, order: Ints) -> Iterator[tuple[Ints, Tensor, int]]:
        """The batches of an epoch as `read_batches` yields them; counts each as an update and its rows as progress."""
        for rows, tokens, count in read_batches(source, order, self.batch_size, self.device, self.team):
            self.step += 1
            yield rows, tokens, count
            self.session.advance(count)

    def check_memory(self, weights: int, tokens: tuple[int, ...], what: str) -> None:
        """Refuse a training of so many weights on samples of this shape that the device can't hold.

        Raises:
            UsageError: with the numbers and the alternatives.
        """
        trained, free = VALUE * sum(COPIES.values()) * weights, free_bytes(self.device)
        batch = VALUE * BATCH_COPIES * self.batch_size * math.prod(tokens)
        if trained + batch <= free:
            return
        shape = " x ".join(map(str, tokens))
        raise UsageError(
            f"The {what} needs {(trained + batch) / 1e9:.1f} GB for latents of {shape} values: {trained / 1e9:.1f} GB "
            f"for {', '.join(COPIES)} ({weights / 1e9:.2f} billion weights), {batch / 1e9:.1f} GB for batches. On "
            f"{self.device} {free / 1e9:.1f} GB are free. Pool the tokens with --pool mean or --pool grid:4, project "
            "their channels with --project 64, take a smaller --probe-batch-size where the batches are what is large, "
            "or use a device with more memory."
        )

    @torch.no_grad()
    def predict(self, network: Callable[[Tensor], Tensor], source: LatentSource, rows: Ints) -> Tensor:
        """What `network` makes of the tokens (B, ...) at `rows`, float32 on the CPU, whichever process computed it."""
        own = self.team.dealt(len(rows), self.batch_size)
        batches = read_batches(source, rows[own], self.batch_size, self.device)
        parts = [network(tokens).float().cpu() for _, tokens, _ in batches]
        return self.team.collect(own, torch.cat(parts) if parts else torch.empty(0), len(rows))


def check_tokens(shape: tuple[int, ...]) -> None:
    """Refuse latents whose shape no probe reads. Raises UsageError."""
    if not 1 <= len(shape) <= 3 or 0 in shape:
        raise UsageError(
            f"Latents of shape {' x '.join(map(str, shape)) or 'of one number'} can't be probed: a probe reads tokens "
            "(P, N, D), (N, D) or (D,). Store the tokens in one of these shapes."
        )


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


def adamw(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with torch's defaults over every parameter; biases and norms decay too, as in the published code."""
    return torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def count_weights(make: Callable[[], nn.Module]) -> int:
    """Weights of the network that `make` builds, without building it in memory."""
    with torch.device("meta"):
        network = make()
    return sum(parameter.numel() for parameter in network.parameters())


def free_bytes(device: str) -> int:
    """Memory that is free on a torch device; on the CPU what this machine or container can still give."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    available = int(psutil.virtual_memory().available)
    try:  # a container counts files that it could drop as used
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
        droppable = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
        return max(0, min(available, memory_bytes() - used + droppable))
    except (OSError, ValueError):
        return available


def samples_at_once(tokens: tuple[int, ...], model_dim: int, depth: int, batch_size: int, device: str) -> int:
    """Samples whose activations are held at once in training; the gradients of a batch add up over such parts.

    On a CPU a part of the batch is faster than all of it; on CUDA it is what keeps long sequences within memory without
    computing anything twice.
    """
    length = math.prod(tokens[:-1])
    if device.startswith("cuda"):
        held = torch.cuda.get_device_properties(device).total_memory * CUDA_SHARE
        # Norms, queries, keys, values, two wide MLP layers and residuals.
        per_token = VALUE * 20 * model_dim * depth
        return max(1, min(batch_size, int(held / (per_token * length))))
    return max(1, min(batch_size, CHUNK_TOKENS // length))


def learning_rate(head: HeadSettings, step: int, total: int, per_epoch: int) -> float:
    """Learning rate of update number `step`, counted from 1, of `total` updates with `per_epoch` in an epoch.

    A linear rise over ``head.warmup`` epochs, then a half cosine that reaches ``final_lr`` with the very last update.
    """
    rise = int(head.warmup * per_epoch)
    if step < rise:
        start = head.lr if head.start_lr is None else head.start_lr
        return start + step / max(1, rise) * (head.lr - start)
    share = (step - rise) / max(1, total - rise)
    return max(head.final_lr, _cosine(head.lr, head.final_lr, share))


def weight_decay(head: HeadSettings, step: int, total: int) -> float:
    """Weight decay of update number `step`, counted from 1: a half cosine from reference to final value."""
    final = head.weight_decay if head.final_weight_decay is None else head.final_weight_decay
    value = _cosine(head.weight_decay, final, step / total)
    return max(final, value) if final <= head.weight_decay else min(final, value)


def warmup_factor(update: int, total: int, warmup: float) -> float:
    """Factor on the regression probe's learning rate for update number `update`, counted from 0; the first is 0."""
    rise = int(total * warmup)
    return update / rise if update < rise else 1.0


def _cosine(start: float, final: float, share: float) -> float:
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * share))
