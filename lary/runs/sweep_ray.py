"""The runs of a sweep as tasks of a Ray cluster, whose machines see the same folders and have lary installed.

Runs that share latents are one task, one after the other. A task whose machine dies is started again on another one,
where it finds what was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lary.configs import SweepConfig
from lary.registry import load_plugin
from lary.runs.ray_engine import connected
from lary.runs.sweep import Done, Planned, do, groups_of
from lary.settings import VARIABLES, Settings, load_settings
from lary.types import LaryError

TRIES = 3
"""How often a task is started again whose machine died."""


def run_on_ray(
    plan: Sequence[Planned], config: SweepConfig, settings: Settings, plugins: tuple[Path, ...]
) -> Iterator[Done]:
    """Do the runs; each is given back when its task has ended.

    Raises:
        UsageError: Ray isn't installed, or there is no cluster.
        LaryError: it can never have what a task needs.
    """
    with connected(config.address) as ray:
        check_resources(ray.cluster_resources(), config)
        task = ray.remote(num_cpus=config.cpus_per_run, num_gpus=config.gpus_per_run, max_retries=TRIES)(work)
        values = absolute_values(settings)
        files = tuple(plugin.absolute() for plugin in plugins)
        pending = {task.remote(group, values, files): group for group in groups_of(plan)}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            group = pending.pop(ready)
            try:
                yield from ray.get(ready)
            except ray.exceptions.RayError as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                yield from (Done(each.number, None, f"its task failed: {reason}") for each in group)


def check_resources(there: dict[str, float], config: SweepConfig) -> None:
    """Refuse what no machine can give: Ray would wait for it without end. Raises LaryError."""
    for name, wanted in (("CPU", config.cpus_per_run), ("GPU", config.gpus_per_run)):
        if wanted > there.get(name, 0.0):
            raise LaryError(
                f"--{name.lower()}s-per-run {wanted:g}: the Ray cluster has {there.get(name, 0.0):g} {name}s in all."
            )


def absolute_values(settings: Settings) -> dict[str, str]:
    """The settings with folders in full, since tasks run in another one."""
    folders = {variable.name for variable in VARIABLES if variable.folder}
    return {
        name: str(Path(value).absolute()) if name in folders or Path(value).exists() else value
        for name, value in settings.values().items()
    }


def work(group: list[Planned], values: dict[str, str], plugins: tuple[Path, ...]) -> list[Done]:
    """A task: the runs of one group on the GPUs that Ray gave it."""
    import ray

    from lary.runtime import setup_logging

    setup_logging()
    for plugin in plugins:
        load_plugin(plugin)
    settings = load_settings(values, environment={})
    count = len(ray.get_gpu_ids())
    gpus = ",".join(map(str, range(count))) if count else None
    return [do(replace(each, config=replace(each.config, gpus=gpus)), settings, plugins) for each in group]
