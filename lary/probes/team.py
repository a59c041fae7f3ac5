"""The processes that train a probe together, one per device.

They draw the same batches and work on their share of each; the sums of their
gradients are those of one process, up to rounding. Every row is scored once.
"""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lary.arrays import Ints
from lary.runtime import log, setup_logging, usable_cores
from lary.types import LaryError, UsageError
from lary.workers import SECONDS_TO_STOP, end_with_starter

# The others wait while the first one writes. One that dies ends them at once.
LONGEST_WAIT = timedelta(hours=12)


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """This process's rows of a batch: every `size`-th one."""
        return slice(self.rank, None, self.size)

    def dealt(self, count: int, batch: int) -> Ints:
        """Positions of `count` that this process scores: each `size`-th batch."""
        # Whole batches: the DiT's noise goes by a row's place in its batch.
        return np.flatnonzero(np.arange(count) // batch % self.size == self.rank)

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def add_gradients(self, network: nn.Module) -> None:
        """Sum the gradients of a network over the processes."""
        # None: the forward pass doesn't use it.
        own = [weight.grad for weight in network.parameters() if weight.grad is not None]
        if self.size > 1 and own:
            # One message: those of single weights would wait for each other.
            flat = torch.cat([grad.flatten() for grad in own])
            self.add(flat)
            for grad, part in zip(own, flat.split([grad.numel() for grad in own]), strict=True):
                grad.copy_(part.view_as(grad))

    def collect(self, rows: Ints, values: Tensor, count: int) -> Tensor:
        """Gather what all processes computed for their rows, (m, ...) -> (count, ...)."""
        if self.size == 1:
            return values
        from accelerate.utils import gather_object

        pieces = [piece for piece in gather_object([(rows, values)]) if len(piece[0])]
        whole = values.new_empty((count, *pieces[0][1].shape[1:]))
        for own, part in pieces:
            whole[torch.from_numpy(own)] = part
        return whole


SINGLE = Team()


def launch(work: Callable[..., None], arguments: tuple[Any, ...], devices: Sequence[str]) -> None:
    """Run ``work(*arguments, team, device)`` in one new process per device.

    Accelerate's own launchers fork, which CUDA and threads do not survive.
    Raises what a process raised first, as LaryError; the others are ended.
    """
    import multiprocessing

    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    errors = multiprocessing.get_context("spawn").SimpleQueue()
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start: Any = start_processes  # without types in torch
    given = (work, arguments, devices, port, errors)
    team = start(_member, given, nprocs=len(devices), join=False, start_method="spawn")
    try:
        while not team.join():
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if errors.empty():
            raise LaryError(f"One of {len(devices)} training processes failed: {error}") from error
        kind, message = errors.get()
        raise kind(message) from None
    finally:  # one may wait where no signal reaches it
        for process in team.processes:
            process.terminate()
        for process in team.processes:
            process.join(SECONDS_TO_STOP / len(devices))
            process.kill()


def _member(
    rank: int, work: Callable[..., None], arguments: tuple[Any, ...], devices: Sequence[str], port: int, errors: Any
) -> None:
    """Do the work as one of a team; errors go to the starting process."""
    from accelerate import PartialState

    kind, _, number = devices[rank].partition(":")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(devices))}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # Accelerate takes the CUDA device of this number.
    os.environ |= {"LOCAL_RANK": number or str(rank), "LOCAL_WORLD_SIZE": str(len(devices))}
    end_with_starter()
    setup_logging()
    if rank:
        log.setLevel("ERROR")  # rank 0 logs what all would
    if kind == "cuda":
        torch.set_num_threads(max(1, usable_cores() // len(devices)))
    state = PartialState(cpu=kind == "cpu", timeout=LONGEST_WAIT)
    try:
        work(*arguments, Team(state.process_index, state.num_processes), devices[rank])
        torch.distributed.barrier()  # ends together: the first one still writes
        torch.distributed.destroy_process_group()
    except LaryError as error:
        errors.put((UsageError if isinstance(error, UsageError) else LaryError, str(error)))
        os._exit(1)  # an ordinary end would wait for the others
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may abort an ordinary end
