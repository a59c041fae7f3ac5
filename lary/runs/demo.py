"""The whole benchmark on simulated robots: simulate, extract, classify, regress, report. What is done is not redone."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lary.configs import RunConfig
from lary.data.configs import DemoConfig, SimulateConfig
from lary.data.spec import DATASETS
from lary.models.spec import MODELS, ModelSpec, locate_weights
from lary.results.record import EvalResult
from lary.results.report import write_report
from lary.runs.run import run_splits
from lary.runtime import log
from lary.settings import CONFIG_NAME, NAMES, Settings, load_settings
from lary.simulate import simulate
from lary.types import UsageError

PRESET = "demo"
FOLDERS = ("LARY_ROOT", "DATA_DIR", "LARY_LA_DIR", "LARY_LOG_DIR")


def run_demo(config: DemoConfig) -> int:
    """Run what isn't done yet of the demo and print its table; returns the exit code.

    Raises:
        UsageError: the folder holds a demo with other options, or MuJoCo isn't installed.
    """
    started = time.monotonic()
    simulate(config.out, SimulateConfig(seed=config.seed, pairs=config.pairs, clips=config.clips, size=config.size))
    settings = demo_settings(config.out)
    models = demo_models(settings)
    runs = []
    for dataset in (record for record in DATASETS if record.in_demo):
        for model in models:
            asked = RunConfig(model=model.name, dataset=dataset.name, probe_preset=PRESET, model_seed=config.seed)
            runs.append(run_splits(asked, dataset.splits, settings))
    page = write_report(settings.path("LARY_LOG_DIR"), config.out / "report.html")
    print(demo_table([run.probe.result for run in runs]))
    if not any(run.extracted or run.probe.new for run in runs):
        print("Everything was done before: nothing was run again.")
    print(f"Took {time.monotonic() - started:.0f} s. Open {page} in a browser.")
    return 1 if any(run.failures for run in runs) else 0


def demo_settings(out: Path) -> Settings:
    """Settings of the demo's own folder; only the checkpoints are taken from the environment."""
    environment = {name: os.environ[name] for name in NAMES if name in os.environ and name not in FOLDERS}
    return load_settings(config=out / CONFIG_NAME, environment=environment)


def demo_models(settings: Settings) -> list[ModelSpec]:
    """Every model that needs no weights, and those marked for the demo whose weights are on this machine."""
    found = []
    for model in MODELS:
        if model.weights is None:
            found.append(model)
        elif model.in_demo:
            try:
                place = locate_weights(model, settings.values())
            except UsageError:
                place = None
            if place is not None and Path(place).exists():
                found.append(model)
            else:
                log.info(
                    "%s is left out: its weights are not on this machine (set %s)", model.name, model.weights.variable
                )
    return found


def demo_table(results: list[EvalResult]) -> str:
    """The demo's results and their controls as text, best first within each task."""
    lines: list[str] = []
    for task in dict.fromkeys(result.task for result in results):
        chosen = [result for result in results if result.task == task]
        first = chosen[0]
        metrics = [
            name for name in first.selections[first.headline].metrics if name.endswith(("mse", "top1", "macro_f1"))
        ]
        rows = [(result.model.name, result.selections[result.headline].metrics) for result in chosen]
        better = first.score.higher_is_better
        rows.sort(key=lambda row: row[1][first.primary].value, reverse=better)
        rows += [(f"({name.replace('_', ' ')})", control.metrics) for name, control in first.controls.items()]
        lines += ["", f"{first.dataset.title}: {task}, 95 % intervals, {'higher' if better else 'lower'} is better"]
        lines.append(f"  {'':18}" + "".join(f"{name:>26}" for name in metrics))
        for name, values in rows:
            cells = (values[metric].text() if metric in values else "" for metric in metrics)
            lines.append(f"  {name:18}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines).lstrip("\n")
