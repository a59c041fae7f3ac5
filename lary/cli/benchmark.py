"""The commands that compute results: each builds options and calls one function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lary import configs
from lary.configs import Paths, add_help
from lary.data.configs import DemoConfig, SimulateConfig
from lary.lam.configs import ReconstructConfig, TrainLamConfig

if TYPE_CHECKING:
    from lary.runs.probe import ProbeRun


def demo(config: DemoConfig = DemoConfig()) -> int:
    from lary.runs.run import run_demo

    return run_demo(config)


def simulate(out: Path, *, config: SimulateConfig = SimulateConfig()) -> None:
    from lary.simulate import simulate as work

    for table, count in work(out, config).items():
        print(f"{table}: {count} rows")


def extract(config: configs.ExtractConfig, paths: Paths = Paths()) -> int:
    if config.dry_run:
        print(paths.call("lary.runs.cost:estimate", config))
        return 0
    report = paths.call("lary.runs.extract:extract", config)
    print(f"{report.table}: {report.rows} rows, {report.extracted} extracted now, {len(report.failures)} failed")
    return 1 if report.failures else 0


def classify(config: configs.ClassifyConfig, paths: Paths = Paths()) -> int:
    return show_run(paths.call("lary.runs.probe:classify", config))


def regress(config: configs.RegressConfig, paths: Paths = Paths()) -> int:
    return show_run(paths.call("lary.runs.probe:regress", config))


def run(config: configs.RunConfig, *, dry_run: bool = False, paths: Paths = Paths()) -> int:
    if dry_run:
        print(paths.call("lary.runs.cost:estimate_runs", {f"{config.model} on {config.dataset}": config}))
        return 0
    report = paths.call("lary.runs.run:run", config)
    now = "run now" if report.probe.new else "done before"
    show_run(report.probe, f"{report.extracted} samples extracted now; the probe was {now}")
    return 1 if report.failures else 0


def show_run(done: ProbeRun, *lines: str) -> int:
    from lary.runs.probe import summary

    print(summary(done.result), *lines, f"Written to {done.folder}", sep="\n")
    return 1 if done.result.failures else 0


def sweep(file: Path, *, config: configs.SweepConfig = configs.SweepConfig(), paths: Paths = Paths()) -> int:
    return int(paths.call("lary.runs.sweep:run_sweep", file, config))


def controls(config: configs.ControlsConfig, paths: Paths = Paths()) -> None:
    print(paths.call("lary.runs.controls:run_controls", config).text())


def reconstruct(config: ReconstructConfig, paths: Paths = Paths()) -> None:
    found = paths.call("lary.runs.reconstruct:reconstruct", config)
    for name, value in found["numbers"].items():
        print(f"{name:20} {value:.5g}")
    print(f"Written to {config.out}")


def lam(config: TrainLamConfig, paths: Paths = Paths()) -> None:
    record = paths.call("lary.lam:train_lam", config)
    print(f"{record['steps']} steps, {record['verdict']['text']}", f"Written to {config.out}", sep="\n")


add_help(globals())
