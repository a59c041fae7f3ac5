"""Records of imported data sets as JSON files, and the plug-in that registers one.

``lary`` reads them by ``--plugin LARY_ROOT/data/<name>_dataset.py``: a file of fixed text that loads the JSON beside
it, so that nothing of an imported data set is ever run as code.
"""

from __future__ import annotations

import re
from pathlib import Path

from lary.data.spec import DATASETS, DatasetSpec
from lary.files import read_json, write_bytes, write_text
from lary.types import LaryError, UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

PLUGIN = '''"""Registers the data set of the JSON file beside this one: pass this file to lary with --plugin."""

from pathlib import Path

from lary.importers.records import load_record
from lary.data.spec import register_dataset

register_dataset(load_record(Path(__file__).with_suffix(".json")))
'''


def check_name(name: str) -> str:
    """A key for an imported data set. Raises UsageError if it can't be a file's name or is taken by a record."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--name '{name}': use letters, digits, dot, dash and underscore, 64 at most.")
    if name in DATASETS.names():
        raise UsageError(f"--name {name}: a data set of that name exists already; choose another.")
    return name


def save_record(spec: DatasetSpec, folder: Path) -> Path:
    """Write ``<name>_dataset.json`` and the plug-in ``<name>_dataset.py`` to a folder; returns the plug-in."""
    from pydantic import TypeAdapter

    plugin = folder / f"{spec.name}_dataset.py"
    write_bytes(plugin.with_suffix(".json"), TypeAdapter(DatasetSpec).dump_json(spec, indent=1) + b"\n")
    write_text(plugin, PLUGIN)
    return plugin


def load_record(path: Path) -> DatasetSpec:
    """Read a record.

    Raises:
        LaryError: the file is missing or is no record; names the first field that is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(DatasetSpec).validate_python(read_json(path, "data set record"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LaryError(f"The data set record {path} is wrong at '{where}': {first['msg']}.") from error
