"""The command line as a whole: help in groups, the option names of version 0.1, exit codes, time to answer."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

import lary
import lary.configs
import lary.data.configs
import lary.lam.configs
from lary.cli import app
from lary.configs import Options
from lary.runtime import log
from lary.types import LaryError, UsageError
from tests.helpers import FIXTURES, printed
from tests.helpers import lary as command

LOADED, HELPING = "print(*sys.modules, file=sys.stderr)", ("cli", "compat", "runtime", "types")
KNOWN = json.loads((FIXTURES / "options_v0_1.json").read_text())
GONE = {
    "latents export": {"--ids"},
    "run": {"--no-store", "--no-no-store"},
    "doctor": {"--json"},
    "data stats": {"--merge"},
    "indices": {"--visualize", "--sheet-clips"},
    "simulate": {"--sheet"},
    "data clip": {"--backend"},
    "data check": {"--restart"},
    "data audit": {"--actions", "--cache", "--distance", "--still"},
    "diagnose": {"--relations", "--seed"},
    "analyze": {"--square"},
}
"""Options of version 0.1 that are no more."""
MORE = "a file or option asks for more than this machine has"
GROUPS = ("Model and data set", "Latents", "Probe", "Reading of media", "Storage", "Machine", "Paths")


def kinds_of(of: type) -> list[type]:
    """The classes of options, in the order in which they are made."""
    return [each for kind in of.__subclasses__() for each in (kind, *kinds_of(kind))]


def names_of(words: str) -> set[str]:
    """The names of all options of a command."""
    found = app
    for word in words.split():
        found = found[word]
    return {name for argument in found.assemble_argument_collection() for name in argument.names}


@pytest.mark.parametrize("words", sorted(KNOWN))
def test_options_of_version_0_1_are_taken(words: str) -> None:
    assert set(KNOWN[words].split()) - names_of(words) == GONE.get(words, set())
    if words in ("extract", "classify", "regress", "run", "controls", "check-model"):
        assert {"--gpus", "--device"} <= names_of(words), "one pair of options names devices everywhere"


def test_help_has_groups_in_the_order_of_their_use() -> None:
    done = command("run", "--help")
    places = [done.out.index(f"─ {group}") for group in GROUPS]
    assert places == sorted(places)
    assert done.out.index("--model STR") < done.out.index("--weights STR")


def test_every_option_has_one_help_and_every_help_an_option() -> None:
    texts = yaml.safe_load((Path(lary.configs.__file__).with_name("options.yaml")).read_text())
    shared = {name for names in texts["boxes"].values() for name in names}
    kinds = {kind.__name__: set(kind.__annotations__) for kind in kinds_of(Options)}
    own = {name: set(texts["classes"].get(name, ())) for name in kinds}
    assert texts["classes"].keys() <= kinds.keys()
    assert not {name: extra for name in kinds if (extra := own[name] - kinds[name])}, "help without an option"
    for name, options in kinds.items():
        bare = {each for each in options - own[name] - shared if f"{name}.{each}" not in shared}
        assert not bare, f"options of {name} without help"
    assert {name.rpartition(".")[2] for name in shared} <= set().union(*kinds.values())


def test_help_answers_at_once() -> None:
    """It loads what prints it and nothing else; seconds would depend on what the machine does beside."""
    program = f"import sys; from lary.cli import main; sys.argv[1:] = ['--help']\ntry: main()\nfinally: {LOADED}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert {name for name in loaded if name.startswith("lary.")} == {f"lary.{name}" for name in HELPING}
    assert not loaded & {"numpy", "torch", "pydantic", "pyarrow", "yaml"}


@pytest.mark.parametrize(
    ("words", "code"), [("--help", 0), ("models", 0), ("models pixel", 2), ("extract --modle x", 2), ("nothing", 2)]
)
def test_exit_codes(words: str, code: int) -> None:
    assert command(*words.split()).code == code


def test_errors_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, code, words in (
        (LaryError("wrong"), 1, "wrong"), (UsageError("wrong"), 2, "wrong"), (OSError("gone"), 1, "gone"),
        (MemoryError(), 1, f"out of memory: {MORE}"), (ImportError("failed to map"), 1, f"failed to map: {MORE}"),
        (KeyError("x"), 1, "KeyError: 'x'; --debug shows where"),
        (KeyboardInterrupt(), 130, "stopped; start the same command again to resume"),
    ):  # fmt: skip
        monkeypatch.setattr("lary.cli.app", Mock(parse_args=Mock(side_effect=error)))
        assert (command("models").code, command("models").err) == (code, f"lary: {words}\n")
    shell = f"{sys.executable} -m lary.cli schema | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), "a reader that has seen enough is no error"


def test_defaults_of_options_stay() -> None:
    """A changed default changes results without a word."""
    found = {}
    for kind in kinds_of(Options):
        found[kind.__name__] = {name: getattr(kind, name, "needed") for name in kind.__annotations__}
    assert json.loads(json.dumps(found, default=str)) == json.loads((FIXTURES / "defaults.json").read_text())


def run(words: str, **options: Any) -> tuple[int, str]:
    """Exit code and output of a command in a shell, where ``lary`` is the command line."""
    shell = f'lary() {{ {sys.executable} -m lary.cli "$@"; }}; {words}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=600, check=False, **options)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("columns", ["0", "3", "-5", "wide", "99999999"])
def test_help_ends_on_terminals_without_a_width(columns: str) -> None:
    code, text = run("lary extract --help", env={**os.environ, "COLUMNS": columns})
    assert (code, "--model STR" in text) == (0, True)


def test_streams_that_are_closed_and_a_folder_that_is_gone(tmp_path: Path) -> None:
    """A closed stream is never the next file that is opened."""
    env = {**os.environ, "PYTHONPATH": str(Path(lary.__file__).parents[1])}
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        words = f"lary config init {closed}; lary schema --out schema.json {closed}"
        assert run(words, cwd=tmp_path, env=env) in ((0, ""), (0, "Wrote lary.yaml\n"))
        assert (tmp_path / "lary.yaml").read_text().startswith("# Settings")
        assert json.loads((tmp_path / "schema.json").read_text())
        (tmp_path / "lary.yaml").unlink()
    code, text = run('mkdir gone; cd gone; rmdir "$PWD"; lary config init', cwd=tmp_path, env=env)
    assert (code, text) == (1, "lary: The current folder was removed: change to another one.\n")


def test_an_error_of_a_plugin_names_its_lines_and_debug_shows_all(tmp_path: Path, monkeypatch: Any) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text("import json\n\ndef inner():\n    json.loads('{')\n\ninner()\n")
    done = command("--debug", "models", "--plugin", plugin)
    assert (done.code, "Traceback" in done.err, "json/decoder.py" in done.err) == (2, True, True)
    text = printed("models", "--plugin", plugin, code=2, has=[f"Plug-in {plugin} failed in", "line 4: JSONDecodeError"])
    assert (text.count("line 4"), text.endswith(f"\n  {plugin}, line 6, in <module>\n")) == (1, True)
    assert "decoder.py" not in text
    monkeypatch.setenv("LARY_DEBUG", "1")
    assert "Traceback" in command("models", "--plugin", plugin).err


def test_what_files_say_does_not_steer_the_terminal(tmp_path: Path) -> None:
    config = tmp_path / "lary.yaml"
    assert "/x\\x1b[2J" in printed("config", "set", "DATA_DIR", "/x\x1b[2J", "--config", config)
    plugin = tmp_path / "own.py"
    plugin.write_text("print('\\x1b]0;owned\\x07 tab\\t', end='!')")
    assert "\\x1b]0;owned\\x07 tab\t!" in printed("models", "--plugin", plugin)


def test_loudness_is_an_option_of_every_command() -> None:
    """`--quiet` leaves results and warnings; none is an option of a command's own."""
    for words, level in (((), "INFO"), (("--quiet",), "WARNING"), (("--verbose",), "DEBUG"), (("--debug",), "INFO")):
        printed("models", *words, "pixels", has=["baseline"])
        assert logging.getLevelName(log.level) == level
    printed("--help", has=["--install-completion", "--quiet", "--verbose", "--debug"])
