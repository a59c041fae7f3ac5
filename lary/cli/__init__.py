"""The command line: commands by import path, and their exit codes.

Exit codes: 0 done, 1 a failed run or skipped samples, 2 a wrong request, 130
stopped by Ctrl-C.
"""

import atexit
import gc
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter

from lary import __version__
from lary.runtime import PlainStream, log, open_streams, refuse_copies, setup_logging
from lary.types import LaryError, UsageError

app = App(
    name="lary",
    help="Measures how much of an action a visual representation holds. Start with 'lary demo'.",
    help_epilogue="Every command takes --quiet (warnings alone), --verbose (libraries too) and --debug (tracebacks).",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)
MEMORY = re.compile("failed to map|allocate memory|out of memory")
# Function and help of every command and group of commands. A module is only
# imported when one is called, so that help answers at once.
_COMMANDS = json.loads(Path(__file__).with_name("commands.json").read_text(encoding="utf-8"))
for words, (function, meaning) in _COMMANDS.items():
    *group, name = words.split()
    if function:
        (app[group[0]] if group else app).command(f"lary.cli.{function}", name=name, help=meaning)
    else:
        app.command(App(name=name, help=meaning))
app.register_install_completion_command()
LOUDNESS = {"--quiet": "WARNING", "--verbose": "DEBUG", "--debug": "INFO"}
"""Words of every command: the level of the log."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; an error is a sentence and a code."""
    # The libraries make a million objects that stay: to search them for garbage,
    # at work and at the end, took a quarter of a short command.
    gc.set_threshold(1_000_000)
    atexit.register(gc.freeze)
    open_streams()
    setup_logging()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("LARY_DEBUG"))
    for level in (LOUDNESS[word] for word in words if word in LOUDNESS):
        log.setLevel(level)
        if level == "DEBUG":
            logging.basicConfig(level="INFO", stream=sys.stderr, format="%(name)s: %(message)s")
    if not re.fullmatch(r"[2-9]\d|\d{3}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]  # rich would not end
    code: object = LaryError.exit_code
    try:
        os.getcwd()  # or fail
        command, bound, _ = app.parse_args([word for word in words if word not in LOUDNESS], exit_on_error=False)
        own = command.__module__.startswith("lary.")  # help has colours
        if command.__module__ == "lary.cli.benchmark" and "--part" not in " ".join(words):
            refuse_copies()
        with redirect_stdout(PlainStream(sys.stdout) if own else sys.stdout):
            code = command(*bound.args, **bound.kwargs)
            sys.stdout.flush()
    except CycloptsError:  # it has printed its own sentence
        code = UsageError.exit_code
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        log.error("stopped; start the same command again to resume")
        code = 130
    except Exception as error:
        log.error("%s", "".join(traceback.format_exception(error)) if debug else sentence(error))
        code = getattr(error, "exit_code", code)
    sys.exit(code if isinstance(code, int) else 0)


def sentence(error: BaseException) -> str:
    """What went wrong, and the lines of plug-ins that it passed and doesn't name."""
    from lary.files import reason_of
    from lary.registry import PLUGIN

    lines: dict[str, str] = {}
    cause: BaseException | None = error
    while cause is not None:
        for frame, number in traceback.walk_tb(cause.__traceback__):
            if str(frame.f_globals.get("__name__")).startswith(PLUGIN):
                lines[f"{frame.f_code.co_filename}, line {number}"] = frame.f_code.co_name
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    text = str(error)
    if isinstance(error, MemoryError | RecursionError) or (MEMORY.search(text) and not isinstance(error, LaryError)):
        text = f"{text or 'out of memory'}: a file or option asks for more than this machine has"
    elif isinstance(error, FileNotFoundError) and error.filename is None:
        text = "The current folder was removed: change to another one."
    elif not isinstance(error, LaryError | OSError):
        text = f"{type(error).__name__}: {reason_of(error)}"
        text += "" if lines else "; --debug shows where"
    return text + "".join(f"\n  {line}, in {name}" for line, name in lines.items() if f"{line}:" not in text)
