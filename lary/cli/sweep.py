"""The commands ``lary run`` and ``lary sweep``: extraction and probe in one go, and many of these from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lary.cli.places import ALL_DEFAULT, Places
from lary.configs import RunConfig, SweepConfig

SWEEP_DEFAULT = SweepConfig()
Star = Parameter(name="*")


def run(config: Annotated[RunConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Extract every split that the probe needs, train the probe, and score it; what is done is not done again."""
    places.load_plugins()
    from lary.runs.probe import summary
    from lary.runs.run import run as work

    report = work(config, places.settings(), plugins=places.plugin)
    print(summary(report.probe.result))
    how = "encoded" if config.no_store else "extracted"
    print(f"{report.extracted} samples {how} now; the probe was {'run now' if report.probe.new else 'done before'}")
    print(f"Written to {report.probe.folder}")
    return 1 if report.failures else 0


def sweep(file: Path, *, config: Annotated[SweepConfig, Star] = SWEEP_DEFAULT, places: Places = ALL_DEFAULT) -> int:
    """Do many runs: models, data sets and options from a file. What is done is not done again.

    Args:
        file: YAML with the keys options, grid and runs.
    """
    places.load_plugins()
    from lary.runs.sweep import run_sweep

    return run_sweep(file, config, places.settings(), plugins=places.plugin)
