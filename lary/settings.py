"""Settings: the variables of the benchmark, and where each value comes from.

Precedence: command line > environment > ``lary.yaml`` > default. ``lary.yaml``
is the file of ``--config`` or ``LARY_CONFIG``, or else the one in the current
folder; its relative paths start from its own folder.
"""

import importlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lary.files import LARGEST_YAML, path_problem, read_limited, read_text, read_yaml, write_text
from lary.registry import load_named_plugins, record_folder, suggest
from lary.types import UsageError, as_path

CONFIG_NAME = "lary.yaml"
PLUGIN = "PLUGIN"
"""The entry of `CONFIG_NAME` with a plug-in, or a list of them."""


class Variable(NamedTuple):
    """A setting in ``settings.json``; `folder` is its kind.

    ``{OTHER}`` in its default is the value of another setting.
    """

    meaning: str
    default: str | None = None
    folder: bool = False


class Setting(NamedTuple):
    """A value and its origin, for ``lary config show``."""

    name: str
    value: str | None
    origin: str


_SHIPPED = Path(__file__).with_name("settings.json").read_text("utf-8")
VARIABLES = {name: Variable(**entry) for name, entry in json.loads(_SHIPPED).items()}
FOLDERS = ("LARY_ROOT", "DATA_DIR", "LARY_LA_DIR", "LARY_LOG_DIR")


class Settings(NamedTuple):
    """The value and the origin of every setting."""

    items: dict[str, Setting]
    config_file: Path

    def get(self, name: str) -> str | None:
        """The value of a variable, or None. Raises UsageError for an unknown name."""
        check_setting(name, "There is no setting")
        return self.items[name].value

    def path(self, name: str) -> Path:
        """The folder that a variable names. Raises UsageError where it has no value."""
        value = self.get(name)
        if value is None:
            raise UsageError(
                f"{name} is not set. {VARIABLES[name].meaning} Set it with 'export {name}=FOLDER', "
                f"'lary config set {name} FOLDER' or --{name.lower().replace('_', '-')} FOLDER.{unexported()}"
            )
        path = Path(value)
        if VARIABLES[name].folder and path.exists() and not path.is_dir():
            raise UsageError(f"{name} ({self.items[name].origin}) points to {path}, which is a file and no folder.")
        return path

    def values(self) -> dict[str, str]:
        """Every variable that has a value."""
        return {name: item.value for name, item in self.items.items() if item.value is not None}


def unexported(root: Path | None = None) -> str:
    """A sentence about an env.sh, here or in `root`, that had no effect.

    NAME=value lines export nothing. Empty without such a file, or where its
    variables are set.
    """
    for file in (Path("env.sh"), (root or Path()) / "env.sh"):
        try:
            text = read_limited(file, LARGEST_YAML).decode(errors="replace")
        except OSError:
            continue
        named = re.findall(r"^\s*(?:export\s+)?([A-Z][A-Z0-9_]*)=", text, re.MULTILINE)
        if absent := [name for name in named if name in VARIABLES and name not in os.environ]:
            return (
                f" {file} sets {', '.join(absent[:3])}, but this process doesn't see it: "
                "write 'export NAME=value' in it, or 'set -a' above, and source it."
            )
    return ""


def load_settings(
    overrides: Mapping[str, str | None] | None = None,
    *,
    config: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Resolve every variable.

    `overrides` are values of the command line, or None; a named `config` must exist; `environment` stands in for
    ``os.environ``. Raises UsageError for a value that is no path, or a wrong configuration file.
    """
    env = os.environ if environment is None else environment
    named = config or env.get("LARY_CONFIG")
    if named:
        check_path("--config" if config else "LARY_CONFIG", str(named), "the file to read")
    file = as_path(named or CONFIG_NAME)
    if named and not file.is_file():
        raise UsageError(f"The configuration file {file} does not exist; 'lary config init' writes one.")
    from_file = _read_config(file) if file.is_file() else {}
    given, items = overrides or {}, {}
    known: dict[str, str] = {}
    for name, (_, default, is_folder) in VARIABLES.items():
        origin = "not set" if default is None else "default"
        value = None if default is None else str(Path(default.format(**known)))
        if given.get(name):
            value, origin = given[name], "command line"
        elif env.get(name):
            value, origin = env[name], "environment"
        elif name in from_file:
            value, origin = from_file[name], str(file)
        if value is not None:
            check_path(name, value, origin)
            if origin == str(file):
                path = file.parent / as_path(value)
                value = str(path) if is_folder or path.exists() else value  # hub ids stay
            known[name] = value = str(as_path(value)) if is_folder or value.startswith("~") else value
        items[name] = Setting(name, value, origin)
    record_folder[:] = [Path(known["LARY_ROOT"]) / "data"]
    return Settings(items, file)


def check_setting(name: str, problem: str) -> None:
    """Raise UsageError, beginning with `problem`, for an unknown setting."""
    if name not in VARIABLES:
        importlib.import_module("lary.models.spec").MODELS.names()  # of installed packages
    if name not in VARIABLES:
        raise UsageError(f"{problem} {name}.{suggest(name, list(VARIABLES))}")


def check_path(name: str, value: str, origin: str) -> None:
    if problem := path_problem(value):
        shown = value if len(value) < 60 else f"{value[:60]}..."
        raise UsageError(f"{name} ({origin}) is no path: {problem}: {shown!r}.")


def _read_config(file: Path) -> dict[str, str]:
    content: Any = read_yaml(file, "configuration file") or {}
    if not isinstance(content, dict):
        raise UsageError(f"The configuration file {file} must be lines of the form NAME: value.")
    load_named_plugins(content.pop(PLUGIN, None), file)
    for name, value in content.items():
        check_setting(str(name), f"The configuration file {file} has an unknown setting:")
        if value is not None and not isinstance(value, str | int | float):
            raise UsageError(f"The configuration file {file}: {name} must be a single value.")
    return {name: str(value) for name, value in content.items() if value not in (None, "")}


def config_template() -> str:
    lines = ["# Settings of lary. Precedence: command line > environment > this file > default.", ""]
    for name, (meaning, default, _) in VARIABLES.items():
        shown = (default or "").replace("{LARY_ROOT}/", "")
        lines += [f"# {meaning}", f"# {name}: {shown}".rstrip(), ""]
    return "\n".join(lines)


def init_config(file: Path, *, overwrite: bool = False) -> Path:
    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists already; change it with 'lary config set NAME VALUE' or pass --overwrite.")
    write_text(file, config_template())
    return file


def set_config(file: Path, name: str, value: str) -> None:
    """Set one variable, or `PLUGIN`, in a ``lary.yaml``, keeping its comments."""
    import yaml

    if name not in (PLUGIN, *VARIABLES):
        if file.exists():  # its plug-ins may have settings
            _read_config(file)
        check_setting(name, "There is no setting")
    text = read_text(file, "configuration file") if file.exists() else config_template()
    entry = yaml.safe_dump({name: value}, width=4096).strip()
    for start in ("", r"#[ \t]*"):  # in place of the lines that set it, or else of the comment
        form = rf"(?m)^{start}{name}[ \t]*:.*(\n[ \t]*- .*)*$"
        text, count = re.subn(form, lambda _: entry, text, count=1)
        if count:
            break
    write_text(file, text if count else text.rstrip("\n") + f"\n{entry}\n")
