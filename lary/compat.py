"""The import paths of version 0.1 that moved: they keep working, with a DeprecationWarning that names the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: dict[str, tuple[str, ...]] = {
    "lary.fileio": ("lary.files",),
    "lary.tool_configs": ("lary.configs", "lary.data.configs"),
    "lary.paths": ("lary.latents.ref", "lary.runs.probe"),
    "lary.data.samples": ("lary.data.tables", "lary.data.splits"),
    "lary.data.catalog": ("lary.data.spec",),
    "lary.data.statistics": ("lary.data.normalisation",),
    "lary.data.records": ("lary.importers.records",),
    "lary.data.lerobot": ("lary.importers.lerobot",),
    "lary.data.motion": ("lary.importers.episodes",),
    "lary.data.trajectories": ("lary.importers.plain",),
    "lary.data.videos": ("lary.importers.plain",),
    "lary.data.simulate": ("lary.simulate", "lary.data.configs"),
    "lary.latents.extract": ("lary.runs.extract",),
    "lary.latents.table": ("lary.latents.ref",),
    "lary.results.evaluate": ("lary.runs.probe",),
    "lary.results.run": ("lary.runs.run",),
    "lary.results.controls": ("lary.runs.controls",),
    "lary.demo": ("lary.runs.run",),
    "lary.sweep": ("lary.runs.sweep",),
}
"""Old modules, each with the new ones that hold its names."""


class OldPaths(MetaPathFinder, Loader):
    """A finder for the modules of `MOVED`: each has the names of the new ones."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a moved module; None for all others."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a moved module with the names of the new ones."""
        found = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {' and '.join(found)}", DeprecationWarning, stacklevel=2)
        for name in found:
            module.__dict__.update({k: v for k, v in vars(importlib.import_module(name)).items() if k[:2] != "__"})


# Behind all others, so that only a path that is no more reaches it.
sys.meta_path.append(OldPaths())
