"""The command line: commands by import path, so that help answers at once, and exit codes.

Exit codes: 0 done, 1 a failed run or skipped samples, 2 a wrong request.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from cyclopts import App, CycloptsError, Parameter

from lary import __version__
from lary.runtime import log, setup_logging
from lary.types import LaryError, UsageError

Outcome = TypeVar("Outcome")

COMMANDS = (
    ("demo", "lary.cli.benchmark:demo", "The whole benchmark on simulated robots, in minutes."),
    (
        "simulate",
        "lary.cli.benchmark:simulate",
        "Make a data set of two simulated robots in the benchmark's layout.",
    ),
    ("extract", "lary.cli.benchmark:extract", "Extract latents of one split with a model."),
    ("classify", "lary.cli.benchmark:classify", "Train the attentive probe that classifies actions, and score it."),
    ("regress", "lary.cli.benchmark:regress", "Train the probe that decodes the robot's actions, and score it."),
    ("run", "lary.cli.benchmark:run", "Extract what a probe needs and run the probe, in one go."),
    (
        "sweep",
        "lary.cli.benchmark:sweep",
        "Do many runs from one file, here or on a Ray cluster.",
    ),
    ("doctor", "lary.cli.inspect:doctor", "Check the environment, devices, decoders, settings and weights."),
    ("report", "lary.cli.inspect:report", "Write one offline HTML page of all results below a folder."),
    ("latents", "lary.cli.inspect:latents_app", "Inspect, verify, convert and export extracted latents."),
    ("models", "lary.cli.inspect:models", "List the models and whether their weights are here, or show one."),
    ("check-model", "lary.cli.inspect:check_model", "Try a model on generated frames: shapes, determinism, time."),
    ("config", "lary.cli.inspect:config_app", "Show or change settings."),
    ("data", "lary.cli.data:data_app", "Download, import, prepare, check, audit and split data."),
    ("indices", "lary.cli.data:indices", "Choose which frames of each clip are sampled."),
    ("datasets", "lary.cli.inspect:datasets", "List the data sets with their terms, or show one."),
    ("compare", "lary.cli.inspect:compare", "Compare finished runs: paired differences, p values."),
    ("controls", "lary.cli.benchmark:controls", "Run the controls of a model and state its margins."),
    ("diagnose", "lary.cli.inspect:diagnose", "Diagnose latents: channels, rank, codes."),
    ("analyze", "lary.cli.inspect:analyze", "Make figures and tables from finished runs."),
    ("schema", "lary.cli.inspect:schema", "Print the JSON Schema of result.json."),
)
"""Name, import path and help of every command."""

app = App(
    name="lary",
    help="Measures how much of an action a visual representation holds. Start with 'lary demo'.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)
for name, place, meaning in COMMANDS:
    app.command(place, name=name, help=meaning)


def guarded(call: Callable[[], Outcome]) -> Outcome | int:
    """Run a command; a user's mistake becomes a sentence and an exit code, never a traceback."""
    try:
        return call()
    except LaryError as error:
        log.error("%s", error)
        return error.exit_code
    except CycloptsError:
        return UsageError.exit_code
    except (MemoryError, RecursionError) as error:
        log.error("%s: a file or option asks for more than this machine has", str(error) or "out of memory")
        return LaryError.exit_code
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        log.error("%s", error)
        return LaryError.exit_code
    except KeyboardInterrupt:
        log.error("stopped; start the same command again to resume")
        return 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``lary`` command."""
    setup_logging()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    code = guarded(lambda: app(tokens, exit_on_error=False, print_error=True, result_action="return_value"))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
