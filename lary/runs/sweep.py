"""``lary sweep``: many runs from one file, all checked before the first one starts.

The YAML file has `options` for all runs, `grid` with lists whose combinations
are run, and `runs` with single ones, all of ``lary run``. `train` has the same
three of ``lary train lam``, for models that are trained first and join the
grid, `plugins` Python files to run first, relative to the file's folder.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lary.configs import RunConfig, SweepConfig, help_texts, make_options
from lary.data.spec import DATASETS
from lary.data.splits import find_table
from lary.data.tables import read_table
from lary.files import digest, read_yaml
from lary.lam import is_trained, train_lam, training_name
from lary.lam.configs import TrainLamConfig
from lary.latents.pipeline import Interrupted
from lary.latents.ref import LatentsRef, find_latent_table
from lary.models.choices import chosen_model
from lary.models.spec import locate_weights
from lary.probes.presets import PRESETS
from lary.registry import aligned, load_named_plugins, load_plugin
from lary.results.record import FILE_NAME, EvalResult
from lary.runs.cost import estimate_runs
from lary.runs.engines import tasks_on_ray
from lary.runs.probe import run_folder
from lary.runs.run import RunReport, probe_config, results_table, run
from lary.runtime import log, setup_logging
from lary.settings import Setting, Settings, load_settings
from lary.types import RANDOM, JsonDict, LaryError, UsageError

SECTIONS = {"options": dict, "grid": dict, "runs": list}
MOST_RUNS, LONGEST, MEDIA_TRIED = 10_000, 200, 64

IN_FOLDER = help_texts()["facts"]["sweep"]["in_folder"].split()
"""Options in a result's folder name; runs that differ in others get their own folder."""

OF_LATENTS = help_texts()["facts"]["sweep"]["of_latents"].split()
"""Options that change latents but not their folder: all runs of a sweep share them."""


@dataclass(frozen=True)
class Planned:
    """A run: number from 1, options, own folder, training of its model."""

    number: int
    config: RunConfig
    own: str
    training: TrainLamConfig | None = None

    @property
    def title(self) -> str:
        """What sets this run apart, in a line."""
        default = vars(RunConfig(model="", dataset=""))
        own = vars(self.config)
        model = self.config.name if self.training else self.config.model
        words = [f"{name} {own[name]}" for name in IN_FOLDER[2:] if own[name] not in (default[name], model)]
        return ", ".join([f"{model} on {self.config.dataset}", *words, *[self.own] * bool(self.own)])

    @property
    def latents(self) -> tuple[str | None, ...]:
        """What names a folder of latents."""
        found = [getattr(self.config, name) for name in IN_FOLDER[:9]]
        found[3] = RANDOM if self.config.weights == RANDOM else None
        return tuple(found)

    def settings(self, settings: Settings) -> Settings:
        """The settings of this run."""
        if not self.own:
            return settings
        values = settings.values() | {"LARY_LOG_DIR": str(settings.path("LARY_LOG_DIR") / self.own)}
        return load_settings(values, environment={})

    def is_done(self, settings: Settings) -> bool:
        """Whether the run's folder has a result."""
        folder = run_folder(probe_config(self.config), self.settings(settings))
        return (folder / FILE_NAME).is_file()


Outcome = RunReport | str
"""What became of a run: its report, or why there is none."""


def run_sweep(file: Path, config: SweepConfig, settings: Settings) -> int:
    """Plan, run, print a table; returns the exit code. Raises UsageError."""
    plan = part_of(read_plan(file), config.part)
    trainings = {each.config.model: each.training for each in plan if each.training}
    left = {model: training for model, training in trainings.items() if not is_trained(training)}
    if trainings:
        states = [(f"  {Path(model).name}", "to do" if model in left else "finished") for model in trainings]
        print(f"{len(trainings)} trainings, which come first:", *aligned(states), sep="\n")
    print(f"{len(plan)} runs, those of one model and data set share their latents:")
    lacks = lacking([each for each in plan if each.config.model not in left], settings)
    words = lacks | {each.number: "result there" for each in plan if each.is_done(settings)}
    print(*aligned([(f"  {each.number:4d}", each.title, words.get(each.number, "to do")) for each in plan]), sep="\n")
    if config.dry_run:
        undone = {f"  {each.number:4d}  {each.title}": each.config for each in plan if each.number not in words}
        print(estimate_runs(undone, settings, left.values()))
        return int(bool(lacks))
    outcomes: dict[int, Outcome] = {}
    for training, outcome in done([[each] for each in left.values()], config, settings):
        for each in plan if isinstance(outcome, str) else ():
            if each.training == training:
                outcomes[each.number] = f"its training failed: {outcome}"
                log.error("%s: %s", each.title, outcomes[each.number])
    ready = [each for each in plan if each.number not in outcomes]
    groups = groups_of(ready) if config.engine == "ray" else [[each] for each in ready]
    for each, outcome in done(groups, config, settings):
        outcomes[each.number] = outcome
        what = f"run {each.number}, {each.title}"
        if isinstance(outcome, str):
            log.error("%s: failed: %s", what, outcome)
        else:
            state = "done" if outcome.probe.new else "was done before"
            log.info("%s: %s, %s", what, state, outcome.probe.result.score.text())
    print(outcome_text(plan, outcomes))
    return 1 if any(isinstance(outcome, str) or outcome.failures for outcome in outcomes.values()) else 0


def lacking(plan: Sequence[Planned], settings: Settings) -> dict[int, str]:
    """What undone runs lack, by number."""
    found: dict[int, str] = {}
    checked: dict[tuple[str, str], str] = {}
    for each in plan:
        config = each.config
        try:
            for role, split in DATASETS.get(config.dataset).roles(config.splits).items():
                if each.is_done(settings) or find_latent_table(settings, LatentsRef.of(config, split)):
                    continue
                locate_weights(chosen_model(config), settings.values(), config.weights)
                place = config.dataset, split
                if place not in checked:
                    checked[place] = split_problem(*place, optional=role == "unseen", settings=settings)
                if checked[place]:
                    raise UsageError(checked[place])
        except LaryError as error:
            found[each.number] = f"lacks: {error}"
    return found


def split_problem(name: str, split: str, *, optional: bool, settings: Settings) -> str:
    """Why a split can't be extracted; empty if it can."""
    dataset = DATASETS.get(name)
    try:
        path = find_table(dataset, split, settings.path("LARY_ROOT"))
    except UsageError as error:
        return "" if optional else str(error)
    try:
        table = read_table(dataset, split, path=path, data_dir=settings.path("DATA_DIR"))
        missing = table.missing_media(range(0, len(table), -(-len(table) // MEDIA_TRIED)))
    except LaryError as error:
        return str(error)
    return f"{len(missing)} media that {path} names are missing, such as {missing[0]}." if missing else ""


def done(groups: Sequence[Sequence[Any]], config: SweepConfig, settings: Settings) -> Iterator[tuple[Any, Any]]:
    """Runs or trainings, and outcomes; groups are tasks of Ray. Raises LaryError."""
    if config.engine == "local":
        yield from ((each, do(each, settings)) for group in groups for each in group)
    elif groups:
        for group, found in tasks_on_ray(do_group, groups, config, settings):
            reasons = [f"its task failed: {found}"] * len(group)
            yield from zip(group, reasons if isinstance(found, str) else found, strict=True)


def do(work: Planned | TrainLamConfig, settings: Settings) -> RunReport | JsonDict | str:
    """Do one run or training, or say why not. Raises Interrupted."""
    try:
        if isinstance(work, TrainLamConfig):
            return train_lam(work, settings)
        return run(work.config, work.settings(settings))
    except Interrupted:
        raise
    except Exception as error:
        return str(error) if isinstance(error, LaryError) else f"{type(error).__name__}: {error}"


def do_group(group: Sequence[Any], values: dict[str, str], plugins: tuple[Path, ...], gpus: str | None) -> list[Any]:
    """Do the work of one group on its GPUs, or else the CPU."""
    setup_logging()
    for plugin in plugins:
        load_plugin(plugin)
    settings = load_settings(values, environment={})
    own: JsonDict = {"gpus": gpus} if gpus else {"gpus": None, "device": "cpu"}

    def placed(each: Any) -> Any:
        trains = isinstance(each, TrainLamConfig)
        return replace(each, **own) if trains else replace(each, config=replace(each.config, **own))

    return [do(placed(each), settings) for each in group]


# The file


def read_plan(file: Path) -> list[Planned]:
    """The runs of a file, checked. Raises UsageError."""
    where = f"The sweep file {file}"
    content = read_yaml(file, "sweep file")
    trainings: dict[str, TrainLamConfig] = {}
    if isinstance(content, dict):
        load_named_plugins(content.pop("plugins", None), file)
        if "train" in content:
            trainings = read_trainings(content.pop("train"), file)
    common, asked = read_block(content, where, f"{file}, options", list(trainings))
    if len(seeds := (content.get("grid") or {}).get("seed", [])) > 1:
        several = ",".join(map(str, seeds))
        log.warning('%s: seed in the grid makes a run of each; seeds: "%s" makes one, with their mean', file, several)
    plan: list[Planned] = []
    seen: dict[str, int] = {}
    for number, given in enumerate(asked, start=1):
        place = f"{file}, run {number}"
        options = named_options(given, place)
        if training := trainings.get(str((common | options).get("model"))):
            options["name"] = f"lam-{training.out.name}"
        config = checked(common | options, place, known=training is None)
        if (other := seen.setdefault(repr(config), number)) != number:
            raise UsageError(f"{place}: this is the same run as number {other}.")
        others = {name: str(options[name]) for name in sorted(options.keys() - IN_FOLDER) if options[name] is not None}
        own = ",".join(f"{name}={re.sub(r'[^A-Za-z0-9.+-]+', '_', text)}" for name, text in others.items())
        own = own if len(own) <= LONGEST else f"{own[:LONGEST]},{digest(own)}"
        plan.append(Planned(number, config, own, training))
    if not plan:
        raise UsageError(f"{where} asks for no run: it needs a grid or runs.")
    latents: dict[tuple[Any, ...], Any] = {}
    for each, name in itertools.product(plan, OF_LATENTS):
        value = getattr(each.config, name)
        if (before := latents.setdefault((name, *each.latents), value)) != value:
            raise UsageError(
                f"{where} asks for {each.config.model} on {each.config.dataset} with {name} {before} and {value}: "
                "these share a folder; make two sweeps of it, with another LARY_LA_DIR and LARY_ROOT."
            )
    folders: dict[str, int] = {}
    here = Settings({"LARY_LOG_DIR": Setting("LARY_LOG_DIR", ".", "")}, file)
    for each in plan:
        place = f"{each.own}/{run_folder(probe_config(each.config), here)}".casefold()
        if (other := folders.setdefault(place, each.number)) != each.number:
            same = f"runs {other} and {each.number} differ, but would share {place}"
            raise UsageError(f"{where}: {same}: make two sweeps of it.")
    return plan


def read_block(content: Any, where: str, place: str, models: Sequence[str] = ()) -> tuple[JsonDict, list[Any]]:
    """Options of all, and of each: the grid's, which `models` join, then single ones. Raises UsageError."""
    if not isinstance(content, dict) or not content.keys() <= SECTIONS.keys():
        raise UsageError(f"{where} has to hold the keys {', '.join(SECTIONS)}, train or plugins, and no others.")
    found = [content.get(name) or kind() for name, kind in SECTIONS.items()]
    shared, grid, runs = found
    fitting = all(map(isinstance, found, SECTIONS.values()))
    if not fitting or not all(isinstance(values, list) and values for values in grid.values()):
        raise UsageError(f"{where}: options hold NAME: value, grid NAME: [values], runs a list of options.")
    if models:
        grid = {"model": [], **grid}
        grid["model"] = [*models, *grid["model"]]
    if math.prod(map(len, grid.values())) + len(runs) > MOST_RUNS:
        raise UsageError(f"{where} asks for more than {MOST_RUNS} runs: split it.")
    asked = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    return named_options(shared, place), [*asked, *runs]


def read_trainings(content: Any, file: Path) -> dict[str, TrainLamConfig]:
    """The trainings of a sweep, by their models' names. Raises UsageError."""
    common, asked = read_block(content, f"The sweep file {file}, train,", f"{file}, train")
    folder = Path(str(common.pop("out", "lam"))).absolute()  # clusters run elsewhere
    found = dict[str, TrainLamConfig]()
    for number, given in enumerate(asked or [{}], start=1):
        place = f"{file}, training {number}"
        own = named_options(given, place)
        config = make_options(TrainLamConfig, common | own | {"out": folder}, place)
        config = replace(config, out=folder / training_name(config, own))
        if found.setdefault(f"lam:{config.out}", config) is not config:
            raise UsageError(f"{place}: {config.out} is that of another.")
    return found


def named_options(options: Any, place: str) -> JsonDict:
    """Options by field name; dashes are taken for underscores. Raises UsageError."""
    if not isinstance(options, dict):
        raise UsageError(f"{place}: expected options as lines of the form NAME: value.")
    return {str(name).replace("-", "_"): value for name, value in options.items()}


def checked(options: Mapping[str, Any], place: str, *, known: bool) -> RunConfig:
    """The run of these options, checked without its data, or a model not `known`. Raises UsageError."""
    config = make_options(RunConfig, options, place)
    try:
        dataset = DATASETS.get(config.dataset)
        if known:
            chosen_model(config)
        PRESETS.get(config.probe_preset)
        probe_config(config)
        dataset.roles(config.splits)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    return config


def part_of(plan: list[Planned], part: str | None) -> list[Planned]:
    """A part of a plan, of whole groups. Raises UsageError."""
    if part is None:
        return plan
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--part {part}: expected K/N with K from 1 to N, such as 1/4.")
    chosen = groups_of(plan, together=True)[int(found[1]) - 1 :: int(found[2])]
    return list(itertools.chain(*chosen))


def groups_of(plan: Sequence[Planned], *, together: bool = False) -> list[list[Planned]]:
    """Runs by their latents, those of a model to train `together`."""
    groups: dict[Any, list[Planned]] = {}
    for each in plan:
        groups.setdefault(each.config.model if together and each.training else each.latents, []).append(each)
    return list(groups.values())


def outcome_text(plan: Sequence[Planned], outcomes: Mapping[int, Outcome]) -> str:
    """Leaderboards of what there is, and what failed."""
    boards: dict[str, list[EvalResult]] = {}
    failed, new = [], 0
    for each in plan:
        outcome = outcomes[each.number]
        if isinstance(outcome, str):
            failed.append(f"  failed: {each.title}: {outcome}")
            continue
        new += outcome.probe.new
        result = outcome.probe.result
        name = each.title.replace(f" on {each.config.dataset}", "")
        model = result.model.model_copy(update={"name": name})
        boards.setdefault(result.dataset.name, []).append(result.model_copy(update={"model": model}))
    last = f"{len(plan)} runs: {new} done now, {len(plan) - new - len(failed)} before, {len(failed)} failed"
    return "\n\n".join([*map(results_table, boards.values()), "\n".join([last, *failed])])
