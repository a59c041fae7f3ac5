"""The command line: builds the config object of a command and calls its function.

Exit codes: 0 done, 1 a failed run or skipped samples, 2 a wrong request.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter

from lary import __version__
from lary.configs import CheckModelConfig, ClassifyConfig, DemoConfig, ExtractConfig, RegressConfig
from lary.registry import load_plugin
from lary.runtime import log, setup_logging
from lary.settings import CONFIG_NAME, Settings, init_config, load_settings, set_config
from lary.types import LaryError, UsageError

PLACES = Group("Places (command line > environment > lary.yaml > default)", sort_key=9)
Outcome = TypeVar("Outcome")

app = App(
    name="lary",
    help="Measures how much of an action a visual representation holds. Start with 'lary demo'.",
    version=__version__,
    help_format="plaintext",
)
config_app = App(name="config", help="Show or change settings.", help_format="plaintext")
app.command(config_app)
# By import path: help must answer without loading them.
app.command("lary.cli_tools:data_app", name="data", help="Download, import, prepare, check, audit and split data.")
app.command("lary.cli_data:indices", name="indices", help="Choose which frames of each clip are sampled.")
app.command("lary.cli_import:datasets", name="datasets", help="List the data sets with their terms, or show one.")
app.command("lary.cli_compare:compare", name="compare", help="Compare finished runs: paired differences, p values.")
app.command("lary.cli_compare:controls", name="controls", help="Run the controls of a model and state its margins.")


@Parameter(name="*", group=PLACES)
@dataclass(frozen=True, kw_only=True)
class Places:
    """Settings that every command takes.

    Attributes:
        lary_root: Folder whose data/ holds the tables (LARY_ROOT).
        data_dir: Folder with classification/ and regression/ (DATA_DIR).
        model_dir: Folder with weights (MODEL_DIR).
        lary_la_dir: Folder of latents (LARY_LA_DIR).
        lary_log_dir: Folder of results (LARY_LOG_DIR).
        config: Configuration file; default: lary.yaml in this folder.
        plugin: Python file that registers models or data sets; may be repeated.
    """

    lary_root: str | None = None
    data_dir: str | None = None
    model_dir: str | None = None
    lary_la_dir: str | None = None
    lary_log_dir: str | None = None
    config: Path | None = None
    plugin: Annotated[tuple[Path, ...], Parameter(negative=())] = ()

    def settings(self) -> Settings:
        """The resolved settings."""
        names = ("lary_root", "data_dir", "model_dir", "lary_la_dir", "lary_log_dir")
        return load_settings({name.upper(): getattr(self, name) for name in names}, config=self.config)

    def load_plugins(self) -> None:
        """Run the plug-ins."""
        for plugin in self.plugin:
            load_plugin(plugin)


ALL_DEFAULT = Places()
CHECK_DEFAULT = CheckModelConfig()
DEMO_DEFAULT = DemoConfig()
Star = Parameter(name="*")


@app.command
def demo(config: Annotated[DemoConfig, Star] = DEMO_DEFAULT) -> int:
    """Simulate robots, extract latents, train probes, write the report: the whole benchmark in minutes."""
    from lary.demo import run_demo

    return run_demo(config)


@app.command
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
    from lary.data.simulate import SimulateConfig
    from lary.data.simulate import simulate as run

    rows = run(SimulateConfig(out, seed, pairs, clips, size, processes, overwrite))
    for table, count in rows.items():
        print(f"{table}: {count} rows")
    if sheet:
        from lary.data.simulate import write_sheets

        for path in write_sheets(out):
            print(path)
    return 0


@app.command
def extract(config: Annotated[ExtractConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Extract latents of one split with a model."""
    places.load_plugins()
    from lary.latents.extract import extract as run

    report = run(config, places.settings(), plugins=places.plugin)
    print(f"{report.table}: {report.rows} rows, {report.extracted} extracted now, {len(report.failures)} failed")
    return 1 if report.failures else 0


@app.command
def classify(config: Annotated[ClassifyConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Train the attentive probe that tells actions apart, and score it."""
    places.load_plugins()
    from lary.results.evaluate import classify as run
    from lary.results.evaluate import summary

    done = run(config, places.settings())
    print(summary(done.result))
    print(f"Written to {done.folder}")
    return 1 if done.result.failures else 0


@app.command
def regress(config: Annotated[RegressConfig, Star], places: Places = ALL_DEFAULT) -> int:
    """Train the probe that decodes the robot's actions, and score it."""
    places.load_plugins()
    from lary.results.evaluate import regress as run
    from lary.results.evaluate import summary

    done = run(config, places.settings())
    print(summary(done.result))
    print(f"Written to {done.folder}")
    return 1 if done.result.failures else 0


@app.command
def report(folder: Path | None = None, *, out: Path | None = None, places: Places = ALL_DEFAULT) -> int:
    """Write one offline HTML page of all results below a folder.

    Args:
        folder: Where to look for result.json files; default: LARY_LOG_DIR.
        out: File to write; default: report.html in that folder.
    """
    from lary.results.report import write_report

    print(write_report(folder or places.settings().path("LARY_LOG_DIR"), out))
    return 0


@app.command
def models(key: str | None = None, *, places: Places = ALL_DEFAULT) -> int:
    """List the models and whether their weights are here, or show the record of one.

    Args:
        key: Model to show.
    """
    places.load_plugins()
    from lary.models.overview import model_text, models_table
    from lary.models.spec import MODELS

    values = places.settings().values()
    print(model_text(MODELS.get(key), values) if key else models_table(values))
    return 0


@app.command
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


def guarded(call: Callable[[], Outcome]) -> Outcome | int:
    """Run a command; a user's mistake becomes a sentence and an exit code, never a traceback."""
    try:
        return call()
    except LaryError as error:
        log.error("%s", error)
        return error.exit_code
    except CycloptsError:
        return UsageError.exit_code
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        log.error("stopped; start the same command again to go on")
        return 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``lary`` command."""
    setup_logging()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    code = guarded(lambda: app(tokens, exit_on_error=False, print_error=True, result_action="return_value"))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
