"""Work in several processes: one per device of this machine, or Ray for several.

Tasks come from one queue, so that a slow device holds nobody up. With Ray,
every machine has lary and sees the same files under the same paths. Files are
bit-identical on all engines.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from lary.configs import ExtractConfig, SweepConfig
from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.latents.pipeline import Advance, Job, Unit, UnitReport, encode_units, make_encoder, plan_units
from lary.latents.store import read_manifest
from lary.models.choices import chosen_model
from lary.models.running import LoadedEncoder
from lary.registry import load_plugin, loaded_plugins
from lary.runtime import log, pick_devices, progress
from lary.settings import VARIABLES, Settings
from lary.types import Failure, JsonDict, LaryError, UsageError
from lary.workers import Answer, NoAnswer, Pool, Question

TRIES = 3
"""How often Ray gets a task whose process dies."""
SECONDS_PER_CHECK, SECONDS_QUIET = 0.5, 30.0
TASK_ROWS, TASKS_EACH = 1024, 4
"""Rows of a task, which starts a pipeline; least tasks of a worker."""

Task = tuple[Unit, ...]
Worker = Callable[[Task], Future[list[Any]]]
Group = TypeVar("Group")
Found = TypeVar("Found")


class StopRequest:
    """A first Ctrl-C ends the run after current units, a second one at once."""

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

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.warning("finishing the current unit of rows; press Ctrl-C again to stop at once")


def devices_of(config: ExtractConfig) -> list[str]:
    """The devices that encode, here or by Ray. Raises UsageError."""
    if config.engine == "local":
        return pick_devices(config.gpus, config.device)
    with connected(config.address) as ray:
        count, _, options = plan_actors(ray, config.device)
    return ["cuda" if "num_gpus" in options else "cpu"] * count


def encode_all(
    job: Job, table: SampleTable, pending: Sequence[int], devices: Sequence[str], encoder: LoadedEncoder, title: str
) -> tuple[list[UnitReport], bool]:
    """Do the pending rows; returns also whether a stop was asked for. Raises LaryError."""
    import torch

    assert job.store is not None
    units = plan_units(pending, job.store.unit_rows)
    local = job.config.engine == "local"
    processes = len(devices) if local else 1
    job = replace(job, pending=len(pending), threads=torch.get_num_threads(), processes=processes)
    with StopRequest() as stop, progress(len(pending), title) as bar:
        advance = bar.advance
        if not local:
            found = extract_on_ray(job, units, stop, advance)
        elif processes > 1:
            found = run_processes(job, units, devices, stop, advance)
        else:
            waiting = (unit for unit in units if not stop.asked)
            found = encode_units(job, table, waiting, devices[0], encoder, advance=advance, stopped=lambda: stop.asked)
        return list(found), stop.asked


class UnitWorker:
    """An encoder on one device of one machine, made when it is first needed."""

    def __init__(self, job: Job, device: str | None = None) -> None:
        self._job, self._device = job, device

    @cached_property
    def _ready(self) -> tuple[SampleTable, str, LoadedEncoder]:
        import torch

        job, config = self._job, self._job.config
        check_shared(job)
        for plugin in job.plugins:
            load_plugin(plugin)
        torch.set_num_threads(job.threads)
        dataset = DATASETS.get(config.dataset)
        table = read_table(dataset, config.split, path=job.table, data_dir=job.data_dir, limit=config.limit)
        device = self._device or pick_devices(None, config.device)[0]
        return table, device, make_encoder(job, chosen_model(config), device)

    def run(self, units: Sequence[Unit]) -> list[UnitReport]:
        """Do some units. Raises LaryError."""
        table, device, encoder = self._ready
        return list(encode_units(self._job, table, units, device, encoder))


def check_shared(job: Job) -> None:
    """Check that this machine sees the driver's files. Raises LaryError."""
    import socket

    assert job.store is not None
    folder = job.store.folder
    there = read_manifest(folder).get("key") == job.store.identity.key
    if not (there and job.table.is_file()):
        where = f"The machine {socket.gethostname()} does not see {folder} or {job.table}"
        raise LaryError(f"{where}: all machines need one file system under the same paths.")


def in_tasks(units: Sequence[Unit], workers: int) -> list[Task]:
    """Units in groups of many rows, but several for each worker."""
    rows = sum(len(unit.rows) for unit in units)
    together = max(1, min(TASK_ROWS * len(units) // rows, len(units) // (TASKS_EACH * workers)))
    return [tuple(units[start : start + together]) for start in range(0, len(units), together)]


def share_out(tasks: Sequence[Task], workers: Sequence[Worker], stop: StopRequest, advance: Advance) -> Iterator[Any]:
    """The answers to tasks, given to free workers, until a stop."""
    waiting, idle = deque(tasks), list(workers)
    running: dict[Future[list[Any]], tuple[Worker, Task]] = {}
    while (waiting and not stop.asked) or running:
        while waiting and idle and not stop.asked:
            worker, task = idle.pop(), waiting.popleft()
            running[worker(task)] = (worker, task)
        for done in wait(running, SECONDS_PER_CHECK, FIRST_COMPLETED).done:
            worker, task = running.pop(done)
            idle.append(worker)
            yield from done.result()
            advance(sum(len(unit.rows) for unit in task))


# Processes of this machine


def run_processes(
    job: Job, units: Sequence[Unit], devices: Sequence[str], stop: StopRequest, advance: Advance
) -> Iterator[UnitReport]:
    """Do the units in one process per device. Raises LaryError."""
    packed = base64.b64encode(pickle.dumps(job)).decode()
    with contextlib.ExitStack() as stack:

        def start(device: str) -> Worker:
            pool = stack.enter_context(Pool(f"{__name__}:unit_worker", 1, arguments=(packed, device)))
            return lambda task: pool.submit([{"units": [(unit.number, unit.rows) for unit in task]}], math.inf)

        workers = [start(device) for device in devices]
        for answer in share_out(in_tasks(units, len(devices)), workers, stop, advance):
            if isinstance(answer, NoAnswer):
                died = f"A process that encodes died ({answer}), perhaps for want of memory"
                raise LaryError(f"{died}. What was done is kept: start it again.")
            if "error" in answer:
                raise LaryError(answer["error"])
            for report in answer["reports"]:
                yield UnitReport(report["done"], tuple(Failure(**item) for item in report["failures"]))


def unit_worker(packed: str, device: str) -> Callable[[Question], Answer]:
    """Make the answers of a process on a device; `packed` is its parent's pickled job."""
    worker = UnitWorker(pickle.loads(base64.b64decode(packed)), device)  # noqa: S301 (packed by the parent process)

    def answer(question: Question) -> Answer:
        try:
            found = worker.run([Unit(number, tuple(rows)) for number, rows in question["units"]])
            return {"reports": [asdict(report) for report in found]}
        except Exception as error:
            return {"error": str(error) if isinstance(error, LaryError) else traceback.format_exc()}

    return answer


# Ray


def extract_on_ray(job: Job, units: Sequence[Unit], stop: StopRequest, advance: Advance) -> Iterator[UnitReport]:
    """Do the units on the actors of a Ray cluster. Raises UsageError, LaryError."""
    with connected(job.config.address) as ray:
        count, processes, options = plan_actors(ray, job.config.device)
        remote = ray.remote(UnitWorker).options(**options)
        shared = ray.put(replace(job, processes=processes))
        tasks = in_tasks(units, count)
        try:
            with ThreadPoolExecutor(count + 1) as threads, contextlib.ExitStack() as stack:
                actors = [LastingActor(ray, partial(remote.remote, shared)) for _ in range(min(count, len(tasks)))]
                for actor in actors:
                    stack.callback(actor.close)  # else threads wait for tasks after an error or Ctrl-C
                ready = [actor.ready() for actor in actors]
                threads.submit(warn_of_waiting, partial(ray.wait, ready, num_returns=len(ready)))
                workers = [lambda task, own=actor: threads.submit(own.run, task) for actor in actors]
                yield from share_out(tasks, workers, stop, advance)
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, LaryError) else RuntimeError(str(error))) from error
        except ray.exceptions.RayError as error:
            died = f"{TRIES} actors died on the same rows, what was done is kept"
            raise LaryError(f"{died}: {_lines(error)[0]}") from error


def warn_of_waiting(wait: Callable[..., Any]) -> None:
    """Say how many actors Ray has no place for after a while."""
    started, late = wait(timeout=SECONDS_QUIET)
    if late:
        log.warning("Ray has no place yet for %d of %d actors; waiting", len(late), len(started) + len(late))


class LastingActor:
    """An actor that another one replaces when it dies.

    Ray's own restarts lose all tries within a second on a machine that is gone.
    """

    def __init__(self, ray: Any, start: Callable[[], Any]) -> None:
        self._ray = ray
        self._start = start
        self._actor = start()
        self._closed = False

    def run(self, task: Task) -> list[Any]:
        """Do a task. Raises ray's error of the task, or of the last of `TRIES` dead actors."""
        tries = 0
        while True:
            tries += 1
            try:
                return list(self._ray.get(self._actor.run.remote(task)))
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError as error:
                if self._closed or tries == TRIES:
                    raise
                log.warning("an actor died, another one takes its place: %s", _lines(error)[0])
                self._ray.kill(self._actor)
                self._actor = self._start()

    def ready(self) -> Any:
        """What Ray resolves once the actor has a place."""
        return self._actor.__ray_ready__.remote()

    def close(self) -> None:
        """End the actor, whatever it does."""
        self._closed = True
        self._ray.kill(self._actor)


def plan_actors(ray: Any, device: str) -> tuple[int, int, JsonDict]:
    """Actors, most actors of a machine, and what each asks of Ray.

    There is one per GPU; without GPUs, or with ``--device cpu``, one per machine.
    """
    gpus = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    log.info("Ray: %d machines with %d GPUs", len(gpus), sum(gpus))
    if sum(gpus) and device != "cpu":
        return sum(gpus), max(gpus), {"num_gpus": 1, "num_cpus": 1}
    return len(gpus), 1, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}


def tasks_on_ray(
    work: Callable[..., list[Found]], groups: Sequence[Group], config: SweepConfig, settings: Settings
) -> Iterator[tuple[Group, list[Found] | str]]:
    """Call ``work(group, settings, plug-ins, GPUs)`` for every group in a task of its own.

    Yields each completed group with its results, or why it failed. Raises LaryError.
    """
    with connected(config.address) as ray:
        options = check_resources(ray.cluster_resources(), config)
        task = ray.remote(max_retries=TRIES, **options)(_with_gpus)
        values = settings.values()
        for name, value in values.items():  # tasks run in another folder
            if VARIABLES[name].folder or Path(value).exists():
                values[name] = str(Path(value).absolute())
        files = tuple(plugin.absolute() for plugin in loaded_plugins())
        pending = {task.remote(work, group, values, files).future(): group for group in groups}
        for future in as_completed(pending):
            try:
                yield pending[future], future.result()
            except ray.exceptions.RayError as error:
                yield pending[future], _lines(error)[-1]


def _with_gpus(work: Callable[..., Any], *given: Any) -> Any:
    """A task: the work with the numbers of the GPUs that Ray gave it."""
    import ray

    return work(*given, ",".join(map(str, range(len(ray.get_gpu_ids())))) or None)


def check_resources(there: dict[str, float], config: SweepConfig) -> JsonDict:
    """What a task asks of Ray: by default one GPU where there are any.

    Raises LaryError for what no machine can give: Ray would wait for it without end.
    """
    gpus = config.gpus_per_run
    found = {"cpu": config.cpus_per_run, "gpu": float("GPU" in there) if gpus is None else gpus}
    for name, wanted in found.items():
        unit = name.upper()
        if wanted > (most := there.get(unit, 0.0)):
            raise LaryError(f"--{name}s-per-run {wanted:g}: the Ray cluster has {most:g} {unit}s in all.")
    if gpus == 0 and "GPU" in there:
        log.warning("--gpus-per-run 0: all runs are computed by CPUs")
    return {f"num_{name}s": wanted for name, wanted in found.items()}


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster, for the block only. Raises UsageError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without GPUs, leave the variable
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
            f"--address {address}: there is no Ray cluster ({_lines(error)[0]}). Start one with 'ray start --head', "
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


def _lines(error: BaseException) -> list[str]:
    """The lines of an error's text, or the name of its kind."""
    return str(error).strip().splitlines() or [type(error).__name__]
