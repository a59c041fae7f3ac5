"""What surrounds a training: the processes that share it, the tracker that follows it, and its state on disk.

Several processes, one per device, draw the same batches and work on their share of each; sums of gradients over the
processes are what one process would have computed, up to rounding, so the protocol does not depend on their number.
Scored rows are dealt out by whole batches and put back by position: none is padded, none counts twice.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lary import __version__
from lary.configs import TrackerName
from lary.files import atomic_write, digest, remove_torn
from lary.probes.outcome import Ints
from lary.runtime import log, setup_logging
from lary.types import BenchmarkProtocol, LaryError, Progress, UsageError

MEMBER = "LARY_TEAM_MEMBER"
"""Environment variable of the processes that `launch` starts; its value is the kind of device."""

PROJECT = "lary"
"""Project that the runs of Weights & Biases and Trackio belong to."""

STATE_FILE = "training_state.pt"
STATE_FORMAT = 2
STATE_SHARE = 0.05
"""Share of the training time that writing may take: a long epoch is always kept, a short one not always."""


class NothingLeft(Exception):
    """A process of a team has no more to do; `launch` takes it as a good end."""


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The rows of a batch of `count` that are this process's: every `size`-th one."""
        return slice(self.rank, count, self.size)

    def dealt(self, count: int, batch: int) -> Ints:
        """Positions out of `count` that this process scores: every `size`-th batch of `batch` rows."""
        return np.flatnonzero(np.arange(count) // batch % self.size == self.rank).astype(np.int64)

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def add_gradients(self, network: torch.nn.Module) -> None:
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
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def leave(self) -> None:
        """End here in all processes but the leading one, which writes the result. Raises NothingLeft in the others."""
        if not self.leads:
            raise NothingLeft


ALONE = Team()


def is_member() -> bool:
    """Whether this process was started by `launch`."""
    return MEMBER in os.environ


def join() -> tuple[Team, str]:
    """The team that `launch` started this process in, and its own torch device."""
    from accelerate import PartialState

    kind = os.environ[MEMBER]
    state = PartialState(cpu=kind == "cpu")
    return Team(state.process_index, state.num_processes), "cpu" if kind == "cpu" else str(state.device)


def launch(work: Callable[..., None], arguments: tuple[Any, ...], devices: Sequence[str]) -> None:
    """Run ``work(*arguments)`` in one new process per device; each may `join` the team.

    Accelerate's own launchers are for notebooks and tests: they fork, which CUDA and threads do not survive.

    Raises:
        LaryError: what a process raised first, in its own words; the others are ended.
    """
    import multiprocessing

    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    errors = multiprocessing.get_context("spawn").SimpleQueue()
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (work, arguments, tuple(devices), port, errors)
    start: Any = start_processes  # without types in torch
    running = start(_member, given, nprocs=len(devices), join=False, start_method="spawn")
    try:
        while not running.join():
            pass
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
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), MEMBER: kind,
    }  # fmt: skip
    setup_logging()
    if rank:
        log.setLevel("ERROR")  # the first one reports what all would
    try:
        work(*arguments)
    except NothingLeft:
        pass
    except LaryError as error:
        errors.put((isinstance(error, UsageError), str(error)))
        sys.exit(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may abort the ordinary end of an interpreter


def open_tracker(name: TrackerName, folder: Path, run: str, options: Mapping[str, Any]) -> Any:
    """The started tracker of accelerate that ``--tracker`` names, for a run with these options; None for ``none``.

    TensorBoard's event files go to ``tensorboard/`` of the folder.

    Raises:
        UsageError: its library isn't installed.
    """
    if name == "none":
        return None
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's trackers refuse to log without it
    tracker: Any
    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker("tensorboard", folder)
    elif name == "wandb":
        tracker = tracking.WandBTracker(PROJECT, name=run, config=dict(options), dir=str(folder))
    else:
        tracker = tracking.TrackioTracker(PROJECT, name=run, config=dict(options))
    try:
        importlib.import_module(name)
        folder.mkdir(parents=True, exist_ok=True)
        tracker.start()
    except ImportError:
        raise UsageError(
            f"--tracker {name}: the library '{name}' is not installed. Run \"pip install 'lary[{name}]'\", or "
            "leave the option out."
        ) from None
    if name == "tensorboard":
        tracker.log({"options": "\n\n".join(f"{option}: {value}" for option, value in options.items())})
    return tracker


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """An entry of a history as numbers by name: a list's values as ``name/0``, ``name/1``; None and NaN left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        for number, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, (int, float)) and math.isfinite(each):
                found[f"{name}/{number}" if isinstance(value, list) else name] = float(each)
    return found


@dataclass(frozen=True, kw_only=True)
class Session:
    """Surroundings of a training: protocol, seed, device, the folder for its files and its progress bar.

    `identity` names latents and options from outside; an empty one keeps no state to resume from. `resume` takes up the
    state of an interrupted training of the same identity. `tracker` is what `open_tracker` returns.
    """

    protocol: BenchmarkProtocol
    seed: int
    device: str = "cpu"
    folder: Path | None = None
    progress: Progress | None = None
    identity: str = ""
    resume: bool = True
    tracker: Any = None
    team: Team = ALONE

    def advance(self, count: int) -> None:
        """Move the progress bar on by so many rows."""
        if self.progress and count:
            self.progress.advance(count)

    def settings(self, settings: Any, preset: str, rows: tuple[Ints, Ints], **more: Any) -> dict[str, Any]:
        """The settings of a training as its outcome states them; `rows` to fit on and held out."""
        own = {"preset": preset, "protocol": self.protocol, "seed": self.seed, "device": self.device}
        counts = {"fit_samples": len(rows[0]), "held_out_samples": len(rows[1])}
        return {**asdict(settings), **own, **more, **counts}


class StateFile:
    """``training_state.pt`` in the folder of a run: read once, rewritten at ends of epochs, gone with the result.

    The session and `parts` name the training with everything that its numbers depend on; without an
    identity no state is kept. A state of another training is removed before this one starts, so that it can't be taken
    up after this one has replaced the weights beside it. Of a team only the leading process touches the file; none
    goes on before all have read it.
    """

    def __init__(self, session: Session, *parts: Any) -> None:
        self._path = session.folder / STATE_FILE if session.folder is not None and session.identity else None
        deciding = (session.protocol, session.seed, session.device.partition(":")[0], *parts)
        versions = (str(STATE_FORMAT), __version__, torch.__version__)
        self._identity = digest(session.identity, *map(_digest_of, deciding), *versions)
        self._resume, self._team = session.resume, session.team
        self._random: dict[str, Any] = {}
        self._cost = 0.0
        self._written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """What was kept last by this very run; None to start from nothing."""
        if (path := self._path) is None:
            return None
        if self._team.leads:
            remove_torn(path.parent)
        found = self._read(path) if path.exists() else None
        self._team.wait()
        if found is None:
            if self._team.leads:
                path.unlink(missing_ok=True)
            return None
        self._random = found["random"]
        values: dict[str, Any] = found["values"]
        log.info("%s: resuming after epoch %d", path, len(values["history"]))
        return values

    def restore_random(self) -> None:
        """Set the random generators to what they were when the loaded state was kept: after all that draws weights."""
        if self._random:
            random.setstate(self._random["python"])
            name, keys, *rest = self._random["numpy"]
            np.random.set_state((name, keys.numpy(), *rest))  # noqa: NPY002 (libraries draw from the global state)
            torch.set_rng_state(self._random["torch"])
        self._random = {}

    def keep(self, make: Callable[[], dict[str, Any]], *, beside: str, last: bool = False) -> None:
        """Write what `make` returns (tensors and plain values, with ``history``), if that is worth its time, or `last`.

        `beside` names a file of the folder; where it exists now, the state is of no use without it.
        """
        due = self._cost <= STATE_SHARE * (time.monotonic() - self._written)
        if self._path is None or not self._team.leads or not (due or last):
            return
        started = time.monotonic()
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        numpy_state = (name, torch.from_numpy(np.array(keys)), *rest)
        drawn = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
        present = [beside] if (self._path.parent / beside).exists() else []
        save_checkpoint(self._path, {"identity": self._identity, "beside": present, "values": make(), "random": drawn})
        self._written = time.monotonic()
        self._cost = self._written - started

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The file's content; None, with a line that says why, if it can't serve this run."""
        if not self._resume:
            log.info("%s is left aside: starting over", path)
            return None
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            if found["identity"] != self._identity:
                log.info("%s belongs to another run: starting over", path)
                return None
        except Exception as error:  # torch raises many kinds for a file that isn't its own
            log.warning("%s can't be read (%s): starting over", path, type(error).__name__)
            return None
        if absent := [name for name in found["beside"] if not (path.parent / name).exists()]:
            log.info("%s goes with %s, which is gone: starting over", path, ", ".join(absent))
            return None
        return found


def save_checkpoint(path: Path, value: dict[str, Any]) -> None:
    """Write tensors and plain values so that ``torch.load(..., weights_only=True)`` reads them.

    Raises:
        LaryError: the file can't be written, such as on a full disk.
    """
    try:
        with atomic_write(path) as stream:
            torch.save(value, stream)
    except LaryError:
        raise
    except (OSError, RuntimeError) as error:
        raise LaryError(f"Cannot write {path}: {error}. Check the space left there.") from error


def _digest_of(part: Any) -> str:
    """A digest of a part of an identity: arrays by content, all else as JSON."""
    if isinstance(part, np.ndarray):
        return digest(str(part.dtype), str(part.shape), np.ascontiguousarray(part).tobytes())
    return digest(json.dumps(part, sort_keys=True, default=str))
