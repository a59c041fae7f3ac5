"""Several processes that train one probe together, one per device.

Every process draws the same batches and works on its share of each; sums of gradients over the processes are what one
process would have computed, up to rounding, so the protocol does not depend on their number. Scored rows are dealt out
by whole batches and put back by position: none is padded, none counts twice.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lary.probes.outcome import Ints
from lary.runtime import log, setup_logging
from lary.types import LaryError, UsageError

MEMBER = "LARY_TEAM_MEMBER"
"""Environment variable of the processes that `launch` starts; its value is the kind of device."""


class Done(Exception):
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
        """Which of `count` rows of a batch are this process's: every `size`-th one."""
        return slice(self.rank, count, self.size)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def dealt(self, count: int, batch: int, rank: int | None = None) -> Ints:
        """Positions out of `count` that a process scores: every `size`-th batch of `batch` rows."""
        mine = np.arange(count) // batch % self.size == (self.rank if rank is None else rank)
        return np.flatnonzero(mine).astype(np.int64)

    def collect(self, part: Tensor, count: int, batch: int, device: str) -> Tensor:
        """Put together what every process computed for its `dealt` positions: (m, ...) -> (count, ...) on the CPU."""
        if self.size == 1:
            return part
        from accelerate.utils import gather

        places = [self.dealt(count, batch, rank) for rank in range(self.size)]
        longest = max(map(len, places))
        padded = part.new_zeros((longest, *part.shape[1:]))
        padded[: len(part)] = part
        gathered = gather(padded.to(device)).cpu()
        whole = part.new_empty((count, *part.shape[1:]))
        for rank, own in enumerate(places):
            whole[torch.from_numpy(own)] = gathered[rank * longest : rank * longest + len(own)]
        return whole

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def leave(self) -> None:
        """End here in all processes but the leading one, which writes what was found. Raises Done in the others."""
        if not self.leads:
            raise Done


ALONE = Team()


def add_gradients(network: torch.nn.Module, team: Team) -> None:
    """Sum the gradients of a network over the processes; weights that no process has one for go without."""
    if team.size == 1:
        return
    weights = list(network.parameters())
    present = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
    team.add([present])
    for weight, processes in zip(weights, present.tolist(), strict=True):
        if processes:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            team.add([weight.grad])


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
    """One process of a team: its place in it, the work, and its error for the process that started it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(devices)),
        "LOCAL_WORLD_SIZE": str(len(devices)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        MEMBER: devices[rank].partition(":")[0],
    }  # fmt: skip
    if os.environ[MEMBER] == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(devices, os.environ.get("CUDA_VISIBLE_DEVICES"))
    setup_logging()
    if rank:
        log.setLevel("ERROR")  # the first one tells what all would say
    try:
        work(*arguments)
    except Done:
        pass
    except LaryError as error:
        errors.put((isinstance(error, UsageError), str(error)))
        sys.exit(1)
    finally:
        if torch.distributed.is_initialized() and sys.exc_info()[0] is None:
            torch.distributed.destroy_process_group()


def visible(devices: Sequence[str], before: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for devices such as ``cuda:1``, which count among those that were visible `before`."""
    numbers = [int(device.partition(":")[2]) for device in devices]
    names = before.split(",") if before else []
    return ",".join(names[number].strip() if number < len(names) else str(number) for number in numbers)
