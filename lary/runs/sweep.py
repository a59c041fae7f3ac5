"""``lary sweep``: many runs from one file, planned and checked before the first one starts, each by itself.

The file is YAML with three keys: `options` for all runs, `grid` with lists whose combinations are run, `runs` with
single ones. Keys are the options of ``lary run``.
"""

from __future__ import annotations

import itertools
import math
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lary.configs import RunConfig, SweepConfig, make_options
from lary.data.spec import DATASETS
from lary.files import read_yaml
from lary.latents.pipeline import Interrupted
from lary.models.spec import MODELS, with_latent
from lary.probes.presets import PRESETS
from lary.registry import load_plugin, suggest
from lary.results.record import FILE_NAME, EvalResult
from lary.runs.demo import demo_table
from lary.runs.probe import run_folder
from lary.runs.run import probe_config, run
from lary.runtime import log, setup_logging
from lary.settings import Settings, load_settings
from lary.types import LaryError, UsageError

SECTIONS = ("options", "grid", "runs")
NAMES = tuple(field.name for field in fields(RunConfig))
MOST_RUNS = 10_000

IN_FOLDER = (
    "model", "dataset", "protocol", "weights", "latent", "pool", "model_type", "action_mode", "control", "project",
)  # fmt: skip
"""Options that are part of a result's folder name; runs that differ in others get a folder of their own."""

OF_LATENTS = (
    "revision", "precision", "model_seed", "dtype", "store", "shard_rows", "limit", "batch_size", "compile", "device",
    "mode", "stride",
)  # fmt: skip
"""Options that change latents but not their folder: all runs of a sweep share them."""


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: its number from 1, what is asked, and the folder of results that it has to itself."""

    number: int
    config: RunConfig
    own: str

    @property
    def title(self) -> str:
        """What sets this run apart, in a line."""
        default, own = asdict(RunConfig(model="", dataset="")), asdict(self.config)
        shown = [f"{name} {own[name]}" for name in IN_FOLDER[2:] if own[name] != default[name]]
        return ", ".join([f"{self.config.model} on {self.config.dataset}", *shown, *filter(None, [self.own])])

    @property
    def latents(self) -> tuple[str | None, ...]:
        """The names that a folder of latents is made of: runs in which they are equal share their latents."""
        config = self.config
        return config.model, config.dataset, config.protocol, config.weights, config.latent, config.pool

    def settings(self, settings: Settings) -> Settings:
        """The settings of this run."""
        if not self.own:
            return settings
        values = settings.values() | {"LARY_LOG_DIR": str(settings.path("LARY_LOG_DIR") / self.own)}
        return load_settings(values, environment={})

    def folder(self, settings: Settings) -> Path:
        """Where the run leaves its result."""
        dataset = DATASETS.get(self.config.dataset)
        return run_folder(probe_config(self.config, dataset), self.settings(settings), dataset)


@dataclass(frozen=True)
class Done:
    """What became of a run: its result, or why there is none; `problems` counts rows that were left out."""

    number: int
    result: EvalResult | None
    reason: str = ""
    problems: int = 0
    new: bool = False


def run_sweep(file: Path, config: SweepConfig, settings: Settings, *, plugins: tuple[Path, ...] = ()) -> int:
    """Plan, run what isn't done, and print a table; returns the exit code.

    Raises:
        UsageError: the file can't be read, or asks for something that there isn't; names the place in the file.
    """
    plan = part_of(read_plan(file), config.part)
    print(plan_text(plan, settings))
    if config.dry_run:
        return 0
    if config.engine == "ray":
        found = on_ray(plan, config, settings, plugins)
    else:
        found = (do(each, settings, plugins) for each in plan)
    done = []
    for each in found:
        done.append(each)
        log_done(each, plan)
    done.sort(key=lambda each: each.number)
    print(outcome_text(done, plan))
    return 1 if any(each.result is None or each.problems for each in done) else 0


def do(planned: Planned, settings: Settings, plugins: tuple[Path, ...]) -> Done:
    """Do one run. Whatever goes wrong is its own: the others go on. Raises Interrupted, which stops them all."""
    try:
        report = run(planned.config, planned.settings(settings), plugins=plugins)
    except Interrupted:
        raise
    except LaryError as error:
        return Done(planned.number, None, str(error))
    except Exception as error:
        log.debug("%s", traceback.format_exc())
        return Done(planned.number, None, f"{type(error).__name__}: {error}")
    return Done(planned.number, report.probe.result, problems=report.failures, new=report.probe.new)


def on_ray(
    plan: Sequence[Planned], config: SweepConfig, settings: Settings, plugins: tuple[Path, ...]
) -> Iterator[Done]:
    """Do the runs on a Ray cluster; those that share latents are one task, one after the other."""
    from lary.runs.engines import tasks_on_ray

    for group, found in tasks_on_ray(do_group, groups_of(plan), config, settings, plugins):
        if isinstance(found, str):
            found = [Done(each.number, None, f"its task failed: {found}") for each in group]
        yield from found


def do_group(
    group: Sequence[Planned], values: dict[str, str], plugins: tuple[Path, ...], gpus: str | None
) -> list[Done]:
    """Do the runs of one group in a process of its own, on the GPUs that it was given."""
    setup_logging()
    for plugin in plugins:
        load_plugin(plugin)
    settings = load_settings(values, environment={})
    return [do(replace(each, config=replace(each.config, gpus=gpus)), settings, plugins) for each in group]


# The file


def read_plan(file: Path) -> list[Planned]:
    """The runs of a file, checked. Raises UsageError."""
    content = read_yaml(file, "sweep file")
    if not isinstance(content, dict):
        raise UsageError(f"The sweep file {file} has to hold the keys {', '.join(SECTIONS)}.")
    for name in content:
        if name not in SECTIONS:
            raise UsageError(f"The sweep file {file} has an unknown key '{name}'.{suggest(str(name), SECTIONS)}")
    shared = named_options(content.get("options") or {}, f"{file}, options")
    plan: list[Planned] = []
    seen: dict[str, int] = {}
    for place, options in listed_runs(content, file):
        config = checked(shared | options, place)
        key = repr(config)
        if key in seen:
            raise UsageError(f"{place}: this is the same run as number {seen[key]}.")
        seen[key] = len(plan) + 1
        plan.append(Planned(len(plan) + 1, config, own_folder(options)))
    if not plan:
        raise UsageError(f"The sweep file {file} asks for no run: it needs a grid or runs.")
    check_latents(plan, file)
    return plan


def listed_runs(content: Mapping[str, Any], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the grid's values, the last key changing fastest, and then the single runs."""
    grid, runs = named_options(content.get("grid") or {}, f"{file}, grid"), content.get("runs") or []
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{file}, grid: {name} has to be a list of values; one value for all is one of options.")
    if not isinstance(runs, list):
        raise UsageError(f"{file}, runs: expected a list of runs, each with its options.")
    if math.prod(map(len, grid.values())) + len(runs) > MOST_RUNS:
        raise UsageError(f"The sweep file {file} asks for more than {MOST_RUNS} runs: split it.")
    for values in itertools.product(*grid.values()) if grid else ():
        combination = dict(zip(grid, values, strict=True))
        yield f"{file}, grid {', '.join(f'{name} {value}' for name, value in combination.items())}", combination
    for index, options in enumerate(runs, start=1):
        yield f"{file}, run {index}", named_options(options, f"{file}, run {index}")


def named_options(options: Any, place: str) -> dict[str, Any]:
    """Options by field name; dashes are taken for underscores. Raises UsageError with a suggestion."""
    if not isinstance(options, dict):
        raise UsageError(f"{place}: expected options as lines of the form NAME: value.")
    found = {}
    for name, value in options.items():
        plain = str(name).replace("-", "_")
        if plain not in NAMES:
            raise UsageError(f"{place}: there is no option '{name}'.{suggest(plain, NAMES)}")
        found[plain] = value
    return found


def checked(options: Mapping[str, Any], place: str) -> RunConfig:
    """The run of these options, as far as it can be checked without its data. Raises UsageError."""
    for name in ("model", "dataset"):
        if not isinstance(options.get(name), str):
            raise UsageError(f"{place}: a run needs a {name}.")
    config = make_options(RunConfig, options, place)
    try:
        dataset, model = DATASETS.get(config.dataset), MODELS.get(config.model)
        with_latent(model, config.latent)
        PRESETS.get(config.probe_preset)
        probe_config(config, dataset)
        dataset.roles(config.splits)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    return config


def own_folder(options: Mapping[str, Any]) -> str:
    """The folder below LARY_LOG_DIR for a run that differs from others in options that no folder name has."""
    odd = {name: value for name, value in sorted(options.items()) if name not in IN_FOLDER and value is not None}
    return ",".join(f"{name}={re.sub(r'[^A-Za-z0-9.+-]+', '_', str(value))}" for name, value in odd.items())[:200]


def check_latents(plan: Sequence[Planned], file: Path) -> None:
    """Refuse runs that would write different latents into one folder. Raises UsageError."""
    found: dict[tuple[Any, ...], Any] = {}
    for each, name in itertools.product(plan, OF_LATENTS):
        value = getattr(each.config, name)
        if (other := found.setdefault((name, *each.latents), value)) != value:
            raise UsageError(
                f"The sweep file {file} asks for {each.config.model} on {each.config.dataset} with {name} {other} and "
                f"{value}: their latents would share a folder; make two sweeps of it, with another LARY_LA_DIR and "
                "LARY_ROOT."
            )


def part_of(plan: list[Planned], part: str | None) -> list[Planned]:
    """One of several parts of a plan; runs that share latents stay together. Raises UsageError."""
    if part is None:
        return plan
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--part {part}: expected K/N with K from 1 to N, such as 1/4.")
    return [each for group in groups_of(plan)[int(found[1]) - 1 :: int(found[2])] for each in group]


def groups_of(plan: Sequence[Planned]) -> list[list[Planned]]:
    """Runs by the latents that they read: those of one group come one after the other."""
    groups: dict[tuple[str | None, ...], list[Planned]] = {}
    for each in plan:
        groups.setdefault(each.latents, []).append(each)
    return list(groups.values())


# The report


def plan_text(plan: Sequence[Planned], settings: Settings) -> str:
    """The runs, and which of them have a result already."""
    lines = [f"{len(plan)} runs, those of one model and data set share their latents:"]
    for each in plan:
        mark = "result there" if (each.folder(settings) / FILE_NAME).is_file() else "to do"
        lines.append(f"  {each.number:4d}  {each.title:70} {mark}")
    return "\n".join(lines)


def log_done(done: Done, plan: Sequence[Planned]) -> None:
    """A line of the log for a run that ended."""
    title = next(each.title for each in plan if each.number == done.number)
    if done.result is None:
        log.error("run %d, %s: failed: %s", done.number, title, done.reason)
    else:
        state = "done" if done.new else "was done before"
        log.info("run %d, %s: %s, %s", done.number, title, state, done.result.score.text())


def outcome_text(done: Sequence[Done], plan: Sequence[Planned]) -> str:
    """Leaderboards of what there is, and what failed."""
    titles = {each.number: each for each in plan}
    boards: dict[tuple[str, str], list[EvalResult]] = {}
    for each in done:
        if each.result is not None:
            config = titles[each.number].config
            label = titles[each.number].title.replace(f" on {config.dataset}", "")
            model = each.result.model.model_copy(update={"name": label})
            board = (each.result.dataset.name, each.result.task)
            boards.setdefault(board, []).append(each.result.model_copy(update={"model": model}))
    lines = [demo_table(results) for results in boards.values()]
    failed = [each for each in done if each.result is None]
    new = sum(each.new for each in done)
    lines.append(f"{len(done)} runs: {new} done now, {len(done) - new - len(failed)} before, {len(failed)} failed")
    lines += [f"  failed: {titles[each.number].title}: {each.reason}" for each in failed]
    return "\n\n".join([*lines[: len(boards)], "\n".join(lines[len(boards) :])])
