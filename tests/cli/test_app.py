"""The command line as a whole: help in groups, the option names of version 0.1, exit codes, time to answer."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
from cyclopts import App

from lary.cli import app
from tests.helpers import FIXTURES, lary

KNOWN = json.loads((FIXTURES / "options_v0_1.json").read_text())
GONE = {
    "run": {"--no-store", "--no-no-store"},
    "doctor": {"--json"},
    "indices": {"--visualize", "--sheet-clips"},
}
"""Options of version 0.1 that are no more."""
GROUPS = ("Model and data set", "Latents", "Probe", "Reading of media", "Storage", "Machine", "Paths")


def command(words: str) -> App:
    found = app
    for word in words.split():
        found = found[word]
    return found


@pytest.mark.parametrize("words", KNOWN)
def test_options_of_version_0_1_are_taken(words: str) -> None:
    names = {name for argument in command(words).assemble_argument_collection() for name in argument.names}
    assert set(KNOWN[words].split()) - names == GONE.get(words, set())


def test_help_has_groups_in_the_order_of_their_use() -> None:
    done = lary("run", "--help")
    places = [done.out.index(f"─ {group}") for group in GROUPS]
    assert places == sorted(places)
    assert done.out.index("--model STR") < done.out.index("--weights STR")


def test_one_pair_of_options_names_devices_everywhere() -> None:
    for words in ("extract", "classify", "regress", "run", "controls", "check-model"):
        assert {"--gpus", "--device"} <= {
            name for argument in command(words).assemble_argument_collection() for name in argument.names
        }


def test_help_answers_at_once() -> None:
    """In seconds of the processor, which other work on the machine doesn't change much."""

    def used() -> float:
        found = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found.ru_utime + found.ru_stime

    seconds = []
    for _ in range(3):
        before = used()
        subprocess.run([sys.executable, "-m", "lary.cli", "--help"], capture_output=True, check=True)
        seconds.append(used() - before)
    assert min(seconds) < 0.5


def test_exit_codes() -> None:
    for words, code in (
        (("--help",), 0), (("models",), 0), (("models", "pixel"), 2), (("extract", "--modle", "x"), 2),
        (("nothing",), 2),
    ):  # fmt: skip
        assert lary(*words).code == code, words
