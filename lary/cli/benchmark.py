"""The commands that make numbers: each builds the options of one function and calls it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from lary.configs import (
    ClassifyConfig,
    ControlsConfig,
    ExtractConfig,
    Paths,
    RegressConfig,
    RunConfig,
    SweepConfig,
)
from lary.data.configs import DemoConfig, SimulateConfig

if TYPE_CHECKING:
    from lary.runs.probe import ProbeRun

Star = Parameter(name="*")


def demo(config: Annotated[DemoConfig, Star] = DemoConfig()) -> int:
    """Simulate robots, extract latents, train probes, write the report: the whole benchmark in minutes."""
    from lary.runs.demo import run_demo

    return run_demo(config)


def simulate(out: Path, *, config: Annotated[SimulateConfig, Star] = SimulateConfig()) -> int:
    """Make a data set of two simulated robot arms in the benchmark's layout.

    Args:
        out: Folder to write to; it serves as LARY_ROOT, its data/ as DATA_DIR.
    """
    from lary.simulate import simulate as run
    from lary.simulate import write_sheets

    for table, count in run(out, config).items():
        print(f"{table}: {count} rows")
    for path in write_sheets(out, config) if config.sheet else ():
        print(path)
    return 0


def extract(config: Annotated[ExtractConfig, Star], paths: Paths = Paths()) -> int:
    """Extract latents of one split with a model."""
    settings = paths.settings()
    if config.dry_run:
        from lary.runs.extract import estimate

        found = estimate(config, settings, plugins=paths.plugin)
        print(found.text())
        return 0 if found.fits else 1
    from lary.runs.extract import extract as run

    report = run(config, settings, plugins=paths.plugin)
    print(f"{report.table}: {report.rows} rows, {report.extracted} extracted now, {len(report.failures)} failed")
    return 1 if report.failures else 0


def classify(config: Annotated[ClassifyConfig, Star], paths: Paths = Paths()) -> int:
    """Train the attentive probe that classifies actions, and score it."""
    settings = paths.settings()
    from lary.runs.probe import classify as run

    return show_run(run(config, settings))


def regress(config: Annotated[RegressConfig, Star], paths: Paths = Paths()) -> int:
    """Train the probe that decodes the robot's actions, and score it."""
    settings = paths.settings()
    from lary.runs.probe import regress as run

    return show_run(run(config, settings))


def run(config: Annotated[RunConfig, Star], paths: Paths = Paths()) -> int:
    """Extract every split that the probe needs, train the probe, and score it; what is done is not done again."""
    settings = paths.settings()
    from lary.runs.run import run as work

    report = work(config, settings, plugins=paths.plugin)
    now = "run now" if report.probe.new else "done before"
    return show_run(report.probe, report.failures, f"{report.extracted} samples extracted now; the probe was {now}")


def show_run(done: ProbeRun, failures: int | None = None, *lines: str) -> int:
    """Print the summary of a run; returns the exit code."""
    from lary.runs.probe import summary

    print(summary(done.result), *lines, f"Written to {done.folder}", sep="\n")
    return 1 if (done.result.failures if failures is None else failures) else 0


def sweep(file: Path, *, config: Annotated[SweepConfig, Star] = SweepConfig(), paths: Paths = Paths()) -> int:
    """Run many models, data sets and options from a file. What is done is not done again.

    Args:
        file: YAML with the keys options, grid and runs.
    """
    settings = paths.settings()
    from lary.runs.sweep import run_sweep

    return run_sweep(file, config, settings, plugins=paths.plugin)


def controls(config: Annotated[ControlsConfig, Star], paths: Paths = Paths()) -> int:
    """Run a model with its controls and state its margin over each."""
    settings = paths.settings()
    from lary.runs.controls import run_controls

    print(run_controls(config, settings, plugins=paths.plugin).text())
    return 0
