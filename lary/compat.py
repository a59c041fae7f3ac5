"""Import paths of version 0.1 that moved: they work, with a DeprecationWarning."""

import functools
import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, cast


@functools.cache
def moved() -> dict[str, list[str]]:
    """The old modules by name, each with the new ones of its names."""
    found: dict[str, list[str]] = json.loads(Path(__file__).with_name("moved.json").read_text(encoding="utf-8"))
    return found


class OldPaths:
    """A finder for modules of ``moved.json``, with the new ones' names.

    It has no base class, since ``importlib.abc`` takes long to load.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, cast(Any, self)) if fullname[:5] == "lary." and fullname in moved() else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary module will do."""

    def exec_module(self, module: ModuleType) -> None:
        found = moved()[module.__name__]
        warnings.warn(f"{module.__name__} is now {' and '.join(found)}", DeprecationWarning, stacklevel=2)
        for name in found:
            module.__dict__.update({k: v for k, v in vars(importlib.import_module(name)).items() if k[:2] != "__"})


# The last finder: it is asked only for modules that are gone.
sys.meta_path.append(OldPaths())
