"""The command line: commands by import path, and their exit codes.

Exit codes: 0 done, 1 a failed run or skipped samples, 2 a wrong request, 130
stopped by Ctrl-C.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter

from lary import __version__
from lary.runtime import log, setup_logging
from lary.types import LaryError, UsageError

app = App(
    name="lary",
    help="Measures how much of an action a visual representation holds. Start with 'lary demo'.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)
# Function and help of every command. Its module is only imported when it is
# called, so that help answers at once.
_COMMANDS = json.loads(Path(__file__).with_name("commands.json").read_text(encoding="utf-8"))
for name, (function, meaning) in _COMMANDS.items():
    app.command(f"lary.cli.{function}", name=name, help=meaning)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; errors become a sentence and a code, not a traceback."""
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
