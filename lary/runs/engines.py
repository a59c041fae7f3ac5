"""Who does the units of an extraction: this process, or one process per device of this machine.

Units are taken from one queue, so that a slow device holds nobody up. The unit of a process that dies is given to
another one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.latents.pipeline import Advance, Job, Unit, UnitReport, encode_units
from lary.models.running import LoadedEncoder
from lary.registry import load_plugin
from lary.runtime import log, setup_logging
from lary.types import LaryError

TRIES = 3
"""How often a unit is given out whose process dies."""
SECONDS_PER_CHECK = 0.5
SECONDS_TO_END = 10.0


class StopRequest:
    """A first Ctrl-C ends the run after the current units, a second one at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.warning("finishing the current unit of rows; press Ctrl-C again to stop at once")


def run_here(
    job: Job, table: SampleTable, units: Sequence[Unit], device: str, encoder: LoadedEncoder | None, stop: StopRequest,
    advance: Advance,
) -> Iterator[UnitReport]:  # fmt: skip
    """Do the units in this process. Raises LaryError."""
    waiting = (unit for unit in units if not stop.asked)
    yield from encode_units(job, table, waiting, device, encoder, advance=advance, stopped=stop)


@dataclass
class _Helper:
    """A process for one device, and the units that it has taken and not yet reported."""

    device: str
    process: Any
    connection: Connection
    taken: list[Unit] = field(default_factory=list)


def run_processes(
    job: Job, units: Sequence[Unit], devices: Sequence[str], stop: StopRequest, advance: Advance
) -> Iterator[UnitReport]:
    """Do the units in one process per device.

    Raises:
        LaryError: what a process raised, or all of them died.
    """
    context = multiprocessing.get_context("spawn")
    waiting, tries = deque(units), dict.fromkeys((unit.number for unit in units), 0)
    halt = context.Event()
    helpers = [_start(context, job, device, halt) for device in devices]
    ended: list[str] = []  # devices whose process found nothing left, until another one died
    try:
        while helpers or (waiting and ended):
            if not helpers:
                helpers = [_start(context, job, ended.pop(), halt)]
            if stop.asked:
                halt.set()
                waiting.clear()
            ready = set(wait([helper.connection for helper in helpers], SECONDS_PER_CHECK))
            for helper in [helper for helper in helpers if helper.connection in ready]:
                try:
                    message, content = helper.connection.recv()
                except (EOFError, OSError):
                    helpers.remove(helper)
                    if halt.is_set():  # what it has read ahead is left for the next start
                        helper.process.join(SECONDS_TO_END)
                        continue
                    if not helper.taken:
                        ended.append(helper.device)
                    _bury(helper, waiting, tries, bool(helpers or ended))
                    continue
                if message == "want":
                    _give(helper, waiting, tries)
                elif message == "advance":
                    advance(content)
                elif message == "done":
                    helper.taken = [unit for unit in helper.taken if unit.number != content.number]
                    yield content
                else:
                    raise content
    finally:
        halt.set()
        for helper in helpers:
            helper.process.terminate()
            helper.process.join(SECONDS_TO_END)


def _start(context: Any, job: Job, device: str, halt: Any) -> _Helper:
    here, there = context.Pipe()
    process = context.Process(target=work_on_device, args=(job, device, there, halt), daemon=True)
    process.start()
    there.close()
    return _Helper(device, process, here)


def _give(helper: _Helper, waiting: deque[Unit], tries: dict[int, int]) -> None:
    """Answer a process that wants a unit; None where there is none left."""
    unit = waiting.popleft() if waiting else None
    with contextlib.suppress(OSError):  # it died meanwhile: the next message tells
        helper.connection.send(unit)
    if unit is not None:
        tries[unit.number] += 1
        helper.taken.append(unit)


def _bury(helper: _Helper, waiting: deque[Unit], tries: dict[int, int], others: bool) -> None:
    """A process has ended: what it had taken goes back to the queue. Raises LaryError where nobody can take it."""
    helper.process.join(SECONDS_TO_END)
    if not helper.taken:
        return
    code = helper.process.exitcode
    what = f"The process on {helper.device} died ({f'signal {-code}' if code and code < 0 else f'exit code {code}'})"
    if not others or any(tries[unit.number] >= TRIES for unit in helper.taken):
        raise LaryError(f"{what}, perhaps for want of memory. What was done is kept: start the same command again.")
    log.warning("%s; its rows go to another one", what)
    waiting.extendleft(reversed(helper.taken))


def work_on_device(job: Job, device: str, connection: Connection, halt: Any) -> None:
    """A process that takes units from the queue until there are none left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the driver's to deal with
    setup_logging()

    def units() -> Iterator[Unit]:
        while not halt.is_set():
            connection.send(("want", None))
            unit = connection.recv()
            if unit is None:
                return
            yield unit

    try:
        table = open_table(job)
        for report in encode_units(
            job, table, units(), device, None, advance=lambda rows: connection.send(("advance", rows)),
            stopped=halt.is_set,
        ):  # fmt: skip
            connection.send(("done", report))
    except (EOFError, BrokenPipeError):
        return  # the driver is gone
    except LaryError as error:
        connection.send(("error", error))
    except Exception:
        connection.send(("error", RuntimeError(f"on {device}:\n{traceback.format_exc()}")))


def open_table(job: Job) -> SampleTable:
    """What a worker process needs besides its encoder: plug-ins, threads, and the table."""
    import torch

    for plugin in job.plugins:
        load_plugin(plugin)
    torch.set_num_threads(job.threads)
    dataset = DATASETS.get(job.config.dataset)
    return read_table(dataset, job.config.split, path=job.table, data_dir=job.data_dir, limit=job.config.limit)
