"""The command line: commands by import path, so that help answers at once, and exit codes.

Exit codes: 0 done, 1 a failed run or skipped samples, 2 a wrong request, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from lary import __version__
from lary.runtime import log, setup_logging
from lary.types import LaryError, UsageError

COMMANDS = {
    "demo": ("benchmark:demo", "The whole benchmark on simulated robots, in minutes."),
    "simulate": ("benchmark:simulate", "Make a data set of two simulated robots in the benchmark's layout."),
    "extract": ("benchmark:extract", "Extract latents of one split with a model."),
    "classify": ("benchmark:classify", "Train the attentive probe that classifies actions, and score it."),
    "regress": ("benchmark:regress", "Train the probe that decodes the robot's actions, and score it."),
    "run": ("benchmark:run", "Extract what a probe needs and run the probe, in one go."),
    "sweep": ("benchmark:sweep", "Do many runs from one file, here or on a Ray cluster."),
    "doctor": ("inspect:doctor", "Check devices, settings and weights."),
    "report": ("inspect:report", "Write one offline HTML page of all results below a folder."),
    "latents": ("inspect:latents_app", "Inspect, verify, convert and export extracted latents."),
    "models": ("inspect:models", "List the models and whether their weights are here, or show one."),
    "check-model": ("inspect:check_model", "Try a model on generated frames: shapes, determinism, time."),
    "config": ("inspect:config_app", "Show or change settings."),
    "data": ("data:data_app", "Download, import, prepare, check, audit and split data."),
    "indices": ("data:indices", "Choose which frames of each clip are sampled."),
    "datasets": ("inspect:datasets", "List the data sets with their terms, or show one."),
    "compare": ("inspect:compare", "Compare finished runs: paired differences, p values."),
    "controls": ("benchmark:controls", "Run the controls of a model and state its margins."),
    "diagnose": ("inspect:diagnose", "Diagnose latents: channels, rank, codes."),
    "analyze": ("inspect:analyze", "Make figures and tables from finished runs."),
    "schema": ("inspect:schema", "Print the JSON Schema of result.json."),
}
"""Function and help of every command."""

app = App(
    name="lary",
    help="Measures how much of an action a visual representation holds. Start with 'lary demo'.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)
for name, (function, meaning) in COMMANDS.items():
    app.command(f"lary.cli.{function}", name=name, help=meaning)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; a user's mistake becomes a sentence and an exit code, never a traceback."""
    setup_logging()
    words = list(sys.argv[1:] if arguments is None else arguments)
    code: object = LaryError.exit_code
    try:
        code = app(words, exit_on_error=False, print_error=True, result_action="return_value")
    except LaryError as error:
        log.error("%s", error)
        code = error.exit_code
    except CycloptsError:  # it has printed its own sentence
        code = UsageError.exit_code
    except (MemoryError, RecursionError) as error:
        log.error("%s: a file or option asks for more than this machine has", str(error) or "out of memory")
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        log.error("%s", error)
    except KeyboardInterrupt:
        log.error("stopped; start the same command again to resume")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
