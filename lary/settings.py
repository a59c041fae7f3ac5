"""Settings: the variables of the benchmark, and where each value comes from.

Precedence: command line > environment > ``lary.yaml`` > default. ``lary.yaml`` is the file of ``--config`` or
``LARY_CONFIG``, or else the one in the current folder; its relative paths start from its own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lary.files import LARGEST_YAML, path_problem, read_limited, read_yaml, write_text
from lary.registry import suggest
from lary.types import UsageError, as_path

CONFIG_NAME = "lary.yaml"


@dataclass(frozen=True)
class Variable:
    """One setting: its name, its default (``{OTHER}`` is the value of another), its meaning in a sentence."""

    name: str
    default: str | None
    meaning: str
    folder: bool = True


VARIABLES = (
    Variable("LARY_ROOT", ".", "Folder whose data/ holds the metadata tables; extraction writes its tables there."),
    Variable("DATA_DIR", None, "Folder with classification/ and regression/: images, clips and actions."),
    Variable("MODEL_DIR", "{LARY_ROOT}/models", "Folder with model weights."),
    Variable("LARY_LA_DIR", "{LARY_ROOT}/latent_actions", "Folder that extraction writes latents to."),
    Variable("LARY_LOG_DIR", "{LARY_ROOT}/logs", "Folder that probes write results to."),
    Variable("DINO_V2_PATH", None, "DINOv2 checkpoint: folder or hub id.", folder=False),
    Variable("DINO_V3_PATH", None, "DINOv3 checkpoint: folder or hub id.", folder=False),
    Variable("SIGLIP2_PATH", None, "SigLIP2 checkpoint: folder or hub id.", folder=False),
    Variable("MAGVIT2_CONFIG_PATH", None, "Open-MAGVIT2 configuration file.", folder=False),
    Variable("MAGVIT2_TOKENIZER_PATH", None, "Open-MAGVIT2 tokenizer weights.", folder=False),
    Variable("UNIVLA_CKPT_PATH", None, "UniVLA latent action model checkpoint.", folder=False),
    Variable("VILLA_X_CKPT_PATH", None, "villa-X checkpoint folder.", folder=False),
    Variable("VILLA_X_DIR", None, "villa-X checkout; accepted for old env.sh files, not needed here.", folder=False),
    Variable("AE_MODEL_PATH", None, "FLUX.2 autoencoder weights.", folder=False),
    Variable("WAN22_VAE_PATH", None, "Wan2.2 autoencoder weights.", folder=False),
    Variable("VJEPA2_CKPT_PATH", None, "V-JEPA 2 checkpoint: original file or folder.", folder=False),
    Variable("LARY_READ", None, "How shards of latents are read: mmap, or pread as on network folders.", folder=False),
)
NAMES = tuple(variable.name for variable in VARIABLES)


@dataclass(frozen=True)
class Setting:
    """A value and its origin, for ``lary config show``."""

    name: str
    value: str | None
    origin: str
    meaning: str


class Settings:
    """All settings, resolved."""

    def __init__(self, items: Mapping[str, Setting], config_file: Path) -> None:
        self.items = dict(items)
        self.config_file = config_file
        self._folders = {variable.name: variable.folder for variable in VARIABLES}

    def get(self, name: str) -> str | None:
        """The value of a variable, or None. Raises UsageError for a name that is no setting."""
        if name not in self.items:
            raise UsageError(f"There is no setting {name}.{suggest(name, NAMES)}")
        return self.items[name].value

    def path(self, name: str) -> Path:
        """The folder that a variable names. Raises UsageError with how to set it if it has no value."""
        value = self.get(name)
        if value is None:
            raise UsageError(
                f"{name} is not set. {self.items[name].meaning} Set it with 'export {name}=FOLDER', "
                f"'lary config set {name} FOLDER' or --{name.lower().replace('_', '-')} FOLDER.{unexported()}"
            )
        path = Path(value)
        if self._folders.get(name) and path.exists() and not path.is_dir():
            raise UsageError(f"{name} ({self.items[name].origin}) points to {path}, which is a file and no folder.")
        return path

    def values(self) -> dict[str, str]:
        """Every variable that has a value."""
        return {name: item.value for name, item in self.items.items() if item.value is not None}


def unexported(root: Path | None = None) -> str:
    """A sentence about an env.sh, here or in `root`, whose variables did not arrive: bare NAME=value lines export none.

    Empty where there is no such file, or its variables are set.
    """
    for file in (Path("env.sh"), (root or Path()) / "env.sh"):
        try:
            lines = read_limited(file, LARGEST_YAML).decode(errors="replace").splitlines()
        except OSError:
            continue
        named = [found[1] for line in lines if (found := re.match(r"(?:export\s+)?([A-Z][A-Z0-9_]*)=", line.strip()))]
        if absent := [name for name in named if name in NAMES and name not in os.environ]:
            return (
                f" {file} sets {', '.join(absent[:3])}, but this process doesn't see it: source the file first, and "
                "write 'export NAME=value', or 'set -a' above the lines, since bare NAME=value lines export nothing."
            )
    return ""


def load_settings(
    overrides: Mapping[str, str | None] | None = None,
    *,
    config: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Resolve every variable.

    Args:
        overrides: values from the command line; None means not given.
        config: the ``lary.yaml`` to read; it must exist if named.
        environment: in place of ``os.environ``.

    Raises:
        UsageError: the configuration file is missing, isn't a table of known names, or names them wrongly.
    """
    env = os.environ if environment is None else environment
    named = config or env.get("LARY_CONFIG")
    if named:
        check_path("LARY_CONFIG" if not config else "--config", str(named), "the file to read")
    file = as_path(named) if named else Path(CONFIG_NAME)
    if named and not file.is_file():
        raise UsageError(f"The configuration file {file} does not exist; 'lary config init' writes one.")
    from_file = _read_config(file) if file.is_file() else {}
    given = {name: value for name, value in (overrides or {}).items() if value}

    items: dict[str, Setting] = {}
    for variable in VARIABLES:
        name = variable.name
        if name in given:
            value, origin = given[name], "command line"
        elif env.get(name):
            value, origin = env[name], "environment"
        elif name in from_file:
            value, origin = _from_folder(file.parent, from_file[name], variable), str(file)
        elif variable.default is not None:
            known = {key: item.value or "" for key, item in items.items()}
            value, origin = str(Path(variable.default.format(**known))), "default"
        else:
            items[name] = Setting(name, None, "not set", variable.meaning)
            continue
        check_path(name, value, origin)
        if variable.folder or value.startswith("~"):
            value = str(as_path(value))
        items[name] = Setting(name, value, origin, variable.meaning)
    return Settings(items, file)


def check_path(name: str, value: str, origin: str) -> None:
    """Refuse a value that no file system takes. Raises UsageError."""
    if problem := path_problem(value):
        shown = value if len(value) < 60 else f"{value[:60]}..."
        raise UsageError(f"{name} ({origin}) is no path: {problem}: {shown!r}.")


def _from_folder(folder: Path, value: str, variable: Variable) -> str:
    """A value of the configuration file: its relative paths start from the file's folder; hub ids stay."""
    check_path(variable.name, value, "lary.yaml")
    path = folder / as_path(value)
    return str(path) if variable.folder or path.exists() else value


def _read_config(file: Path) -> dict[str, str]:
    content: Any = read_yaml(file, "configuration file")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"The configuration file {file} must be lines of the form NAME: value.")
    for name, value in content.items():
        if name not in NAMES:
            hint = suggest(str(name), NAMES)
            raise UsageError(f"The configuration file {file} has an unknown setting '{name}'.{hint}")
        if value is not None and not isinstance(value, str | int | float):
            raise UsageError(f"The configuration file {file}: {name} must be a single value.")
    return {name: str(value) for name, value in content.items() if value not in (None, "")}


def config_template() -> str:
    """A ``lary.yaml`` with every variable commented out, its meaning above it."""
    lines = ["# Settings of lary. Precedence: command line > environment > this file > default.", ""]
    for variable in VARIABLES:
        default = variable.default.replace("{LARY_ROOT}/", "") if variable.default else ""
        lines += [f"# {variable.meaning}", f"# {variable.name}: {default}".rstrip(), ""]
    return "\n".join(lines)


def init_config(file: Path, *, overwrite: bool = False) -> Path:
    """Write a commented ``lary.yaml``. Raises UsageError if there is one already."""
    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists already; change it with 'lary config set NAME VALUE' or pass --overwrite.")
    write_text(file, config_template())
    return file


def set_config(file: Path, name: str, value: str) -> None:
    """Set one variable in a ``lary.yaml``, keeping its comments; the file is made if there is none."""
    if name not in NAMES:
        raise UsageError(f"There is no setting {name}.{suggest(name, NAMES)}")
    import yaml

    text = file.read_text(encoding="utf-8") if file.exists() else config_template()
    entry = yaml.safe_dump({name: value}, width=4096).strip()
    pattern = re.compile(rf"^{name}[ \t]*:.*$", re.MULTILINE)
    if not pattern.search(text):
        pattern = re.compile(rf"^#[ \t]*{name}[ \t]*:.*$", re.MULTILINE)
    replaced, count = pattern.subn(lambda _: entry, text, count=1)
    write_text(file, replaced if count else text.rstrip("\n") + f"\n{entry}\n")
