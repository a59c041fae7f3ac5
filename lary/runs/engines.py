"""Who does the work in several processes: one per device of this machine, or Ray, the one way to use several machines.

Units are taken from one queue, so that a slow device holds nobody up. What a process, an actor or a machine was doing
when it died is given to another one. Under Ray every machine sees the same files under the same paths (a shared file
system) and has lary installed. Files and bits are the same on all engines.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from lary.configs import SweepConfig
from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.latents.pipeline import Advance, Job, Unit, UnitReport, encode_units, make_encoder, model_of
from lary.latents.store import MANIFEST, read_manifest
from lary.registry import load_plugin
from lary.runtime import log, pick_devices, setup_logging
from lary.settings import VARIABLES, Settings
from lary.types import LaryError, UsageError

TRIES = 3
"""How often a unit is given out whose process dies."""
SECONDS_PER_CHECK = 0.5
SECONDS_TO_END = 10.0
TASK_ROWS = 1024
"""Rows per task of Ray, at least: a task starts with an empty pipeline."""

Group = TypeVar("Group")
Found = TypeVar("Found")


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


class EncodingActor:
    """Holds an encoder on one device of one machine. What goes wrong shows in `run`, not in the constructor."""

    def __init__(self, job: Job, processes: int) -> None:
        self._job = replace(job, processes=processes)
        self._ready: tuple[Any, str, Any] | None = None

    def run(self, units: Sequence[Unit]) -> list[UnitReport]:
        """Do some units. Raises LaryError."""
        if self._ready is None:
            check_shared(self._job)
            table = open_table(self._job)
            device = pick_devices(None, self._job.config.device)[0]
            self._ready = table, device, make_encoder(self._job, model_of(self._job.config), device)
        table, device, encoder = self._ready
        return list(encode_units(self._job, table, units, device, encoder, advance=lambda rows: None))


def check_shared(job: Job) -> None:
    """Whether this machine sees the files that the driver sees. Raises LaryError."""
    import socket

    assert job.store is not None
    where = f"The machine {socket.gethostname()} does not see"
    if not job.table.is_file():
        raise LaryError(f"{where} {job.table}: all machines need one file system under the same paths.")
    folder = job.store.folder
    if not (folder / MANIFEST).is_file() or read_manifest(folder).get("key") != job.store.identity.key:
        raise LaryError(f"{where} the store {folder}: all machines need one file system under the same paths.")


def extract_on_ray(job: Job, units: Sequence[Unit], stop: StopRequest, advance: Advance) -> Iterator[UnitReport]:
    """Do the units on the actors of a Ray cluster.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
        LaryError: what an actor raised, or units whose actors die again and again.
    """
    with connected(job.config.address) as ray:
        waiting = deque(in_tasks(units))
        tries = dict.fromkeys(waiting, 0)
        count, processes, options = plan_actors(ray, job)
        remote = ray.remote(EncodingActor).options(**options)
        shared = ray.put(job)
        idle = [remote.remote(shared, processes) for _ in range(min(count, len(waiting)))]
        running: dict[Any, tuple[Any, tuple[Unit, ...]]] = {}
        while (waiting and not stop.asked) or running:
            while waiting and idle and not stop.asked:
                actor, task = idle.pop(), waiting.popleft()
                tries[task] += 1
                running[actor.run.remote(task)] = (actor, task)
            for done in ray.wait(list(running), timeout=SECONDS_PER_CHECK)[0]:
                actor, task = running.pop(done)
                try:
                    reports = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise _raised(error) from error
                except ray.exceptions.RayError as error:
                    if tries[task] >= TRIES:
                        raise LaryError(
                            f"{TRIES} actors died one after another on rows {task[0].rows[0] + 1} to "
                            f"{task[-1].rows[-1] + 1}: {_first_line(error)} What was done is kept."
                        ) from error
                    log.warning("an actor died; its rows go to another one: %s", _first_line(error))
                    waiting.appendleft(task)
                    ray.kill(actor)
                    idle.append(remote.remote(shared, processes))
                    continue
                idle.append(actor)
                advance(sum(len(unit.rows) for unit in task))
                yield from reports


def in_tasks(units: Sequence[Unit]) -> list[tuple[Unit, ...]]:
    """Units in groups of `TASK_ROWS` rows or more."""
    tasks: list[tuple[Unit, ...]] = []
    group: list[Unit] = []
    for unit in units:
        group.append(unit)
        if sum(len(each.rows) for each in group) >= TASK_ROWS:
            tasks.append(tuple(group))
            group = []
    return [*tasks, tuple(group)] if group else tasks


def plan_actors(ray: Any, job: Job) -> tuple[int, int, dict[str, Any]]:
    """How many actors, how many of them share a machine's cores, and what each one asks of Ray.

    One per GPU; where the cluster has none, or ``--device cpu`` is asked for, one per machine.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if sum(gpus) and job.config.device != "cpu":
        log.info("Ray: %d GPUs on %d machines", sum(gpus), len(nodes))
        return sum(gpus), max(gpus), {"num_gpus": 1, "num_cpus": 1}
    log.info("Ray: %d machines, one process each on the CPU", len(nodes))
    return len(nodes), 1, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}


def tasks_on_ray(
    work: Callable[[Group, dict[str, str], tuple[Path, ...], str | None], list[Found]], groups: Sequence[Group],
    config: SweepConfig, settings: Settings, plugins: tuple[Path, ...],
) -> Iterator[tuple[Group, list[Found] | str]]:  # fmt: skip
    """Call ``work(group, settings, plug-ins, GPUs)`` for every group in a task of its own.

    Yields:
        Each group with what `work` returned, or why its task failed, in the order of completion.

    Raises:
        UsageError: Ray isn't installed, or there is no cluster.
        LaryError: the cluster can never have what a task needs.
    """
    with connected(config.address) as ray:
        check_resources(ray.cluster_resources(), config)
        options = {"num_cpus": config.cpus_per_run, "num_gpus": config.gpus_per_run, "max_retries": TRIES}
        task = ray.remote(**options)(_with_gpus)
        folders = {variable.name for variable in VARIABLES if variable.folder}
        values = {  # tasks run in another folder
            name: str(Path(value).absolute()) if name in folders or Path(value).exists() else value
            for name, value in settings.values().items()
        }
        files = tuple(plugin.absolute() for plugin in plugins)
        pending = {task.remote(work, group, values, files): group for group in groups}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            group = pending.pop(ready)
            try:
                yield group, ray.get(ready)
            except ray.exceptions.RayError as error:
                yield group, (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _with_gpus(work: Callable[..., Any], *given: Any) -> Any:
    """A task: the work with the numbers of the GPUs that Ray gave it."""
    import ray

    count = len(ray.get_gpu_ids())
    return work(*given, ",".join(map(str, range(count))) if count else None)


def check_resources(there: dict[str, float], config: SweepConfig) -> None:
    """Refuse what no machine can give: Ray would wait for it without end. Raises LaryError."""
    for name, wanted in (("CPU", config.cpus_per_run), ("GPU", config.gpus_per_run)):
        if wanted > there.get(name, 0.0):
            raise LaryError(
                f"--{name.lower()}s-per-run {wanted:g}: the Ray cluster has {there.get(name, 0.0):g} {name}s in all."
            )


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster; one that was connected before stays so. Raises UsageError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no GPU asked for: leave the variable alone
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'lary[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    try:
        knock(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--address {address}: there is no Ray cluster ({_first_line(error)}). Start one with 'ray start --head', "
            "or pass --address local to use this machine alone. One that asks for a token needs ~/.ray/auth_token of "
            "its first machine and RAY_AUTH_MODE=token here."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Try a HOST:PORT, which Ray itself would do for minutes. Raises OSError, ValueError."""
    import socket

    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _raised(error: Any) -> Exception:
    """What an actor raised, as itself where it is a sentence for the user."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LaryError) else RuntimeError(str(error))


def _first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
