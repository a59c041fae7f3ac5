"""Ray, the one way to use several machines: units of an extraction on actors, and the runs of a sweep as tasks.

Every machine sees the same files under the same paths (a shared file system) and has lary installed. What an actor, a
task or a machine was doing when it died is given to another one. Files and bits are those of the local engine.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lary.configs import SweepConfig
from lary.latents.pipeline import Advance, Job, Unit, UnitReport, encode_units, make_encoder, model_of
from lary.latents.store import MANIFEST, read_manifest
from lary.runs.engines import SECONDS_PER_CHECK, TRIES, StopRequest, open_table
from lary.runtime import log, pick_devices
from lary.settings import VARIABLES, Settings
from lary.types import LaryError, UsageError

TASK_ROWS = 1024
"""Rows per task, at least: a task starts with an empty pipeline."""

Group = TypeVar("Group")
Found = TypeVar("Found")


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


@contextmanager
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
