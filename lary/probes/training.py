"""The part that the trainings of all probes share: processes, state on disk, epochs, trackers.

Several processes, one per device, draw the same batches and work on their share of each;
sums of gradients over the processes are what one process would have computed, up to
rounding, so the protocol does not depend on their number. Scored rows are dealt out by whole
batches and put back by position: none is padded, none counts twice.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lary import __version__
from lary.configs import TrackerName
from lary.files import atomic_write, digest, remove_torn
from lary.probes.outcome import Ints
from lary.probes.sources import read_batches
from lary.runtime import log, setup_logging
from lary.types import BenchmarkProtocol, LaryError, LatentSource, Progress, UsageError

KIND = "LARY_TEAM_DEVICES"
"""Environment variable of the processes that `launch` starts: the kind of their devices."""

PROJECT = "lary"
"""Project that the runs of Weights & Biases and Trackio belong to."""

STATE_FILE = "training_state.pt"
STATE_FORMAT = 3
STATE_SHARE = 0.05
"""Share of the training time that writing may take: a long epoch is always kept, a short one not always."""


# --- processes ---


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """The rows of a batch that are this process's: every `size`-th one."""
        return slice(self.rank, None, self.size)

    def dealt(self, count: int, batch: int) -> Ints:
        """Positions out of `count` that this process scores: every `size`-th batch of `batch` rows."""
        return np.flatnonzero(np.arange(count) // batch % self.size == self.rank).astype(np.int64)

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def add_gradients(self, network: nn.Module) -> None:
        """Sum the gradients of a network over the processes; weights that no process has one for go without."""
        if self.size == 1:
            return
        weights = list(network.parameters())
        present = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
        self.add(present)
        for weight, processes in zip(weights, present.tolist(), strict=True):
            if processes:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                self.add(weight.grad)

    def collect(self, rows: Ints, values: Tensor, count: int) -> Tensor:
        """Put together what every process computed for its `rows` out of `count`: (m, ...) -> (count, ...)."""
        if self.size == 1:
            return values
        from accelerate.utils import gather_object

        pieces = [piece for piece in gather_object([(rows, values)]) if len(piece[0])]
        whole = values.new_empty((count, *pieces[0][1].shape[1:]))
        for own, part in pieces:
            whole[torch.from_numpy(own)] = part
        return whole

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def launch(work: Callable[..., None], arguments: tuple[Any, ...], devices: Sequence[str]) -> None:
    """Run ``work(*arguments)`` in one new process per device; each may `join` the team.

    Accelerate's own launchers are for notebooks and tests: they fork, which CUDA and threads
    do not survive.

    Raises:
        LaryError: what a process raised first, in its own words; the others are ended.
    """
    import multiprocessing

    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    errors = multiprocessing.get_context("spawn").SimpleQueue()
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start: Any = start_processes  # without types in torch
    given = (work, arguments, tuple(devices), port, errors)
    try:
        start(_member, given, nprocs=len(devices), start_method="spawn")
    except (ProcessExitedException, ProcessRaisedException) as error:
        if errors.empty():
            raise LaryError(f"One of {len(devices)} training processes failed: {error}") from error
        wrong_request, message = errors.get()
        raise (UsageError if wrong_request else LaryError)(message) from None


def _member(
    rank: int, work: Callable[..., None], arguments: tuple[Any, ...], devices: tuple[str, ...], port: int, errors: Any
) -> None:
    """One process of a team: its rank in it, the work, and its error for the process that started it."""
    kind, _, number = devices[rank].partition(":")
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(len(devices)), "LOCAL_WORLD_SIZE": str(len(devices)),
        "LOCAL_RANK": number or str(rank),  # accelerate takes the CUDA device of this number
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), KIND: kind,
    }  # fmt: skip
    setup_logging()
    if rank:
        log.setLevel("ERROR")  # the first one reports what all would
    try:
        work(*arguments)
    except LaryError as error:
        errors.put((isinstance(error, UsageError), str(error)))
        sys.exit(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may abort the ordinary end of an interpreter


def join() -> tuple[Team, str]:
    """The team that `launch` started this process in, and its own torch device."""
    from accelerate import PartialState

    on_cpu = os.environ[KIND] == "cpu"
    state = PartialState(cpu=on_cpu)
    return Team(state.process_index, state.num_processes), "cpu" if on_cpu else str(state.device)


# --- one training ---


@dataclass(frozen=True, kw_only=True)
class Session:
    """Surroundings of a training: protocol, seed, device, the folder for its files and its progress bar.

    `identity` names latents and options from outside; an empty one keeps no state to resume
    from. `tracker` is what `tracking` gives.
    """

    protocol: BenchmarkProtocol
    seed: int
    preset: str = ""
    device: str = "cpu"
    folder: Path | None = None
    progress: Progress | None = None
    identity: str = ""
    tracker: Any = None
    team: Team = Team()


class Training(ABC):
    """A training in progress: what it trains on, the updates so far, the history of its epochs, and its picks.

    A subclass makes its networks, runs one epoch at a time, and offers what may be reported.
    The state of a training, ``training_state.pt``, is read once and rewritten at ends of
    epochs. It is that of the same session, settings and `data` alone: one of another training
    is removed before this one replaces the weights beside it.
    """

    checkpoint: ClassVar[str]
    """Name of the file with the weights, without which a state that was written beside it is of no use."""

    def __init__(self, session: Session, settings: Any, rows: tuple[Ints, Ints], *data: Any) -> None:
        self.session, self.settings, self.team, self.device = session, settings, session.team, session.device
        self.fit_rows, self.held_rows = rows
        self.folder = session.folder if self.team.leads else None  # the leading process alone writes files
        self.per_epoch = math.ceil(len(self.fit_rows) / settings.batch_size)
        self.total = self.per_epoch * settings.epochs
        """Updates of all epochs."""
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.picks: dict[str, dict[str, Any]] = {}
        """What is reported, by selection: ``rank``, ``epoch``, and ``values`` as tensors."""
        self.dropped: dict[int, str] = {}
        """Why a network is trained no longer, by its number."""
        versions = (STATE_FORMAT, __version__, torch.__version__)
        deciding = (session.protocol, session.seed, self.device.partition(":")[0], asdict(settings), versions, *data)
        self._identity = digest(session.identity, *map(_digest_of, deciding))
        self._state = session.folder / STATE_FILE if session.folder and session.identity else None
        self._written, self._cost = time.monotonic(), 0.0

    @abstractmethod
    def build(self) -> dict[str, Any]:
        """Make the networks; returns all that has a state dict, by name. Raises UsageError."""

    @abstractmethod
    def run_epoch(self, epoch: int) -> dict[str, Any]:
        """Train and score one epoch, counted from 1, and return its entry of the history. Raises LaryError."""

    @abstractmethod
    def close_epoch(self, epoch: int) -> None:
        """Write files, after the history has its entry."""

    def run(self) -> None:
        """Train from the kept state to the end. Raises LaryError if the training diverges."""
        before, epochs = self._load(), self.settings.epochs
        if before is not None:
            self.step, self.history = before["step"], before["history"]
            self.picks, self.dropped = before["picks"], before["dropped"]
            if self.session.progress:
                self.session.progress.skip(len(self.history) * (len(self.fit_rows) + len(self.held_rows)))
            if len(self.history) == epochs:  # nothing is left to train
                return
        built = self.build()
        if before is not None:
            for name, each in built.items():
                each.load_state_dict(before["built"][name])
            torch.set_rng_state(before["random"])  # after all that draws weights
        for epoch in range(len(self.history) + 1, epochs + 1):
            self.history.append(self.run_epoch(epoch))
            self.log(self.history[-1])
            self.close_epoch(epoch)
            self.keep({} if epoch == epochs else built, last=epoch == epochs)

    def _load(self) -> dict[str, Any] | None:
        """The state that this very training left; None to start from nothing."""
        path, found = self._state, None
        if path is None:
            return None
        if self.team.leads:
            remove_torn(path.parent)
        if path.exists():
            try:
                found = torch.load(path, weights_only=True, map_location="cpu")
                if found["identity"] != self._identity:
                    raise LookupError("it belongs to another training")
                if found["beside"] and not (path.parent / self.checkpoint).exists():
                    raise LookupError(f"{self.checkpoint} is gone")
                log.info("%s: resuming after epoch %d", path, len(found["history"]))
            except Exception as error:  # torch raises many kinds for a file that isn't its own
                log.warning("%s can't be taken up (%s): starting over", path, str(error).partition("\n")[0])
                found = None
        self.team.wait()  # none goes on before all have read it
        if found is None and self.team.leads:
            path.unlink(missing_ok=True)
        return found

    def keep(self, built: Mapping[str, Any], *, last: bool) -> None:
        """Write the state, if that is worth its time or the `last` one."""
        due = self._cost <= STATE_SHARE * (time.monotonic() - self._written)
        if self._state is None or not self.team.leads or not (due or last):
            return
        started = time.monotonic()
        state = {
            "identity": self._identity, "step": self.step, "history": self.history, "picks": self.picks,
            "dropped": self.dropped,
            "built": {name: each.state_dict() for name, each in built.items()}, "random": torch.get_rng_state(),
            "beside": (self._state.parent / self.checkpoint).exists(),
        }  # fmt: skip
        save_checkpoint(self._state, state)
        self._written = time.monotonic()
        self._cost = self._written - started

    def offer(self, name: str, rank: list[float], **pick: Any) -> bool:
        """Take a pick in place of the one before if its rank is strictly better; returns whether it was taken."""
        if name in self.picks and rank <= self.picks[name]["rank"]:
            return False
        self.picks[name] = {"rank": rank, **pick}
        return True

    def advance(self, count: int) -> None:
        """Move the progress bar on by so many rows."""
        if self.session.progress and count:
            self.session.progress.advance(count)

    def log(self, values: Mapping[str, Any]) -> None:
        """Report numbers to the tracker: a list's values as ``name/0``, ``name/1``; None and NaN are left out."""
        if self.session.tracker is None or not self.team.leads:
            return
        numbers: dict[str, float] = {}
        for name, value in values.items():
            many = {f"{name}/{at}": each for at, each in enumerate(value)} if isinstance(value, list) else {name: value}
            numbers |= {key: float(each) for key, each in many.items() if each is not None and math.isfinite(each)}
        self.session.tracker.log(numbers, step=self.step)

    def batches(self, source: LatentSource, order: Ints) -> Iterator[tuple[Ints, Tensor, int]]:
        """The batches of an epoch as `read_batches` yields them; counts each as an update and its rows as progress."""
        for rows, tokens, count in read_batches(
            source, order, self.settings.batch_size, self.device, self.team.share
        ):  # fmt: skip
            self.step += 1
            yield rows, tokens, count
            self.advance(count)

    @torch.no_grad()
    def predict(self, network: Callable[[Tensor], Tensor], source: LatentSource, rows: Ints) -> Tensor:
        """What `network` makes of the tokens (B, ...) at `rows`, float32 on the CPU, whichever process computed it."""
        own = self.team.dealt(len(rows), self.settings.batch_size)
        batches = read_batches(source, rows[own], self.settings.batch_size, self.device)
        parts = [network(tokens).float().cpu() for _, tokens, _ in batches]
        return self.team.collect(own, torch.cat(parts) if parts else torch.empty(0), len(rows))

    def stated(self, source: LatentSource, **more: Any) -> dict[str, Any]:
        """The settings of the training on latents of this shape, as its outcome states them."""
        session = self.session
        own = {"preset": session.preset, "protocol": session.protocol, "seed": session.seed, "device": session.device}
        counts = {"fit_samples": len(self.fit_rows), "held_out_samples": len(self.held_rows)}
        return {**asdict(self.settings), **own, **more, **counts, "tokens": list(source.shape)}


def adamw(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with torch's defaults over every parameter; biases and norms decay too, as in the published code."""
    return torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def save_checkpoint(path: Path, value: Mapping[str, Any]) -> None:
    """Write tensors and plain values so that ``torch.load(..., weights_only=True)`` reads them. Raises LaryError."""
    with atomic_write(path) as stream:
        torch.save(value, stream)


def _digest_of(part: Any) -> str:
    """A digest of a part of an identity: arrays by content, all else as JSON."""
    if isinstance(part, np.ndarray):
        return digest(str(part.dtype), str(part.shape), np.ascontiguousarray(part).tobytes())
    return digest(json.dumps(part, sort_keys=True, default=str))


@contextmanager
def tracking(name: TrackerName, folder: Path, run: str, options: Mapping[str, Any]) -> Iterator[Any]:
    """The tracker of accelerate that ``--tracker`` names, for a run with these options; None for ``none``.

    TensorBoard's event files go to ``tensorboard/`` of the folder.

    Raises:
        UsageError: its library isn't installed.
    """
    if name == "none":
        yield None
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState()  # accelerate's trackers refuse to log without it
    known = {name: value for name, value in options.items() if value is not None}
    tracker: Any
    try:
        importlib.import_module(name)
        if name == "tensorboard":
            tracker = TensorBoardTracker(name, folder)
        elif name == "wandb":
            tracker = WandBTracker(PROJECT, name=run, config=known, dir=str(folder))
        else:
            tracker = TrackioTracker(PROJECT, name=run, config=known)
        folder.mkdir(parents=True, exist_ok=True)
        tracker.start()
    except ImportError:
        raise UsageError(
            f"--tracker {name}: the library '{name}' is not installed. Run \"pip install 'lary[{name}]'\", or "
            "leave the option out."
        ) from None
    if name == "tensorboard":
        tracker.log({"options": "\n\n".join(f"{option}: {value}" for option, value in known.items())})
    try:
        yield tracker
    finally:
        tracker.finish()
