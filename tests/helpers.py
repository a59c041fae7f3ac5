"""Functions that the tests of all packages share: settings of a folder, and commands run in this process."""

import contextlib
import csv
import io
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lary.cli import main
from lary.settings import Settings, load_settings

FIXTURES = Path(__file__).parent / "fixtures"
"""Tables of the published form, results of older versions, and a tree that version 0.1 wrote."""
INPUTS: dict[str, Any] = yaml.safe_load((FIXTURES / "inputs.yaml").read_text())
FORKED = multiprocessing.get_context("forkserver")
"""Starts processes that have loaded what commands need: each is a copy of one."""
FORKED.set_forkserver_preload(["accelerate", "lary.runs.sweep", "matplotlib.figure", "tests.golden.golden",
                               "tests.lam.made", "tests.probes.made"])  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A finished command: its exit code and what it printed."""

    code: int
    out: str
    err: str


def settings_of(root: Path, **given: str | Path) -> Settings:
    """Settings whose folders are all below `root`, with the layout that the benchmark describes."""
    values = {"LARY_ROOT": root, "DATA_DIR": root / "data", "LARY_LOG_DIR": root / "logs", **given}
    return load_settings({name: str(value) for name, value in values.items()}, environment={})


def lary(*words: str | Path, root: Path | None = None) -> Done:
    """Run a command in this process, as ``lary WORDS``; `root` serves as LARY_ROOT with data/ and logs/ below it."""
    if root is not None:
        words = (*words, "--lary-root", root, "--data-dir", root / "data", "--lary-log-dir", root / "logs")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    return Done(code, out.getvalue(), err.getvalue())


def printed(*words: str | Path, root: Path | None = None, code: int = 0, has: Iterable[str] = ()) -> str:
    """What a command prints, which has to end with this code and to print these words."""
    done = lary(*words, root=root)
    text = done.out + done.err
    assert (done.code, [part for part in has if part not in text], "Traceback" in text) == (code, [], False), text
    return text


def fails(kind: type[BaseException], words: str, call: Callable[..., object], /, *given: Any, **options: Any) -> None:
    """The call raises an error of this kind, whose sentence has these words: a regular expression."""
    with pytest.raises(kind, match=words or None):
        call(*given, **options)


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """The files below a folder whose names are like the pattern, by their paths in it."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, as cells by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
