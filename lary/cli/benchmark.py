"""The commands of the benchmark: each builds the config object of a function and calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from lary.cli.places import ALL_DEFAULT, Places
from lary.configs import ClassifyConfig, ExtractConfig, RegressConfig
from lary.registry import load_plugin
from lary.settings import CONFIG_NAME, init_config, set_config
from lary.tool_configs import CheckModelConfig, DemoConfig
from lary.types import UsageError

CHECK_DEFAULT = CheckModelConfig()
DEMO_DEFAULT = DemoConfig()
Star = Parameter(name="*")

config_app = App(name="config", help="Show or change settings.", help_format="plaintext")


def demo(config: Annotated[DemoConfig, Star] = DEMO_DEFAULT) -> int:
    """Simulate robots, extract latents, train probes, write the report: the whole benchmark in minutes."""
    from lary.runs.demo import run_demo

    return run_demo(config)


def simulate(
    out: Path,
    *,
    seed: int = 0,
    pairs: int = 800,
    clips: int = 400,
    size: int = 200,
    processes: int = 2,
    sheet: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Make a data set of two simulated robot arms in the benchmark's layout.

    Args:
        out: Folder to write to; it serves as LARY_ROOT, its data/ as DATA_DIR.
        seed: Same seed, same bytes.
        pairs: Image pairs over all splits.
        clips: Clips over all splits.
        size: Height and width of frames in pixels.
        processes: Worker processes.
        sheet: Also write contact sheets of the clips, one row per verb.
        overwrite: Replace a simulation with other options.
    """
    from lary.simulate import SimulateConfig
    from lary.simulate import simulate as run

    rows = run(SimulateConfig(out, seed, pairs, clips, size, processes, overwrite))
    for table, count in rows.items():
        print(f"{table}: {count} rows")
    if sheet:
        from lary.simulate import write_sheets

        for path in write_sheets(out):
            print(path)
    return 0


def extract(config: Annotated[ExtractConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Extract latents of one split with a model."""
    places.load_plugins()
    if config.dry_run:
        from lary.runs.estimate import estimate

        found = estimate(config, places.settings(), plugins=places.plugin)
        print(found.text())
        return 0 if found.fits else 1
    from lary.runs.extract import extract as run

    report = run(config, places.settings(), plugins=places.plugin)
    print(f"{report.table}: {report.rows} rows, {report.extracted} extracted now, {len(report.failures)} failed")
    return 1 if report.failures else 0


def classify(config: Annotated[ClassifyConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Train the attentive probe that tells actions apart, and score it."""
    places.load_plugins()
    from lary.runs.probe import classify as run
    from lary.runs.probe import summary

    done = run(config, places.settings())
    print(summary(done.result))
    print(f"Written to {done.folder}")
    return 1 if done.result.failures else 0


def regress(config: Annotated[RegressConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Train the probe that decodes the robot's actions, and score it."""
    places.load_plugins()
    from lary.runs.probe import regress as run
    from lary.runs.probe import summary

    done = run(config, places.settings())
    print(summary(done.result))
    print(f"Written to {done.folder}")
    return 1 if done.result.failures else 0


def report(folder: Path | None = None, *, out: Path | None = None, places: Places = ALL_DEFAULT) -> int:
    """Write one offline HTML page of all results below a folder.

    Args:
        folder: Where to look for result.json files; default: LARY_LOG_DIR.
        out: File to write; default: report.html in that folder.
    """
    from lary.results.report import write_report

    print(write_report(folder or places.settings().path("LARY_LOG_DIR"), out))
    return 0


def check_model(
    key: str, config: Annotated[CheckModelConfig, Star] = CHECK_DEFAULT, places: Places = ALL_DEFAULT
) -> int:
    """Try a model on generated frames: shapes, range, determinism, use of the second frame, time.

    Args:
        key: Model, or FILE.py:NAME for one that a file registers.
    """
    places.load_plugins()
    file, colon, name = key.rpartition(":")
    if colon and file.endswith(".py"):
        load_plugin(file)
        key = name
    elif key.endswith(".py"):
        raise UsageError(f"check-model {key}: name the model that the file registers, as {key}:NAME.")
    from lary.models.check import check_model as run
    from lary.models.spec import MODELS

    report = run(MODELS.get(key), config, places.settings().values())
    print(report.text())
    return 1 if report.problems else 0


@config_app.command
def show(*, places: Places = ALL_DEFAULT) -> int:
    """Show every setting, its value and where that comes from."""
    for item in places.settings().items.values():
        print(f"{item.name:24} {item.value or '-':40} {item.origin}")
    return 0


@config_app.command
def init(file: Path = Path(CONFIG_NAME), *, overwrite: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Write a lary.yaml that lists every setting with its meaning.

    Args:
        file: File to write.
        overwrite: Replace a file that is there.
    """
    print(f"Wrote {init_config(file, overwrite=overwrite)}")
    return 0


@config_app.command(name="set")
def set_value(name: str, value: str, *, config: Path = Path(CONFIG_NAME)) -> int:
    """Set one setting in lary.yaml.

    Args:
        name: Variable, such as DATA_DIR.
        value: Its value; a relative path starts from the file's folder.
        config: File to change.
    """
    set_config(config, name, value)
    print(f"{config}: {name} = {value}")
    return 0
