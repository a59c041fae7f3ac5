"""Options from a Python call or a sweep file: names and types are checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from lary.registry import suggest
from lary.types import UsageError

Config = TypeVar("Config")
WRITTEN = ("seeds", "gpus")
"""Options whose value is text on the command line, and may be a number or a list of numbers elsewhere."""


def make_options(kind: type[Config], given: Mapping[str, Any], where: str) -> Config:
    """The options of a command from their values by name.

    Raises:
        UsageError: an unknown or missing name, or a value of another type; begins with `where`.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in hints:
            raise UsageError(f"{where}: there is no option '{name}'.{suggest(name, list(hints))}")
        if value is None:
            continue
        if name in WRITTEN and isinstance(value, (int, list, tuple)):
            value = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        if hints[name] == Path | None and isinstance(value, str):
            value = Path(value)
        try:
            TypeAdapter(hints[name], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{where}: {name} {str(value)[:60]!r}: {error.errors()[0]['msg']}.") from None
        values[name] = value
    try:
        return kind(**values)
    except TypeError:
        needed = [field.name for field in fields(kind) if field.default is MISSING and field.name not in values]
        raise UsageError(f"{where}: there is no value for {', '.join(needed)}.") from None
