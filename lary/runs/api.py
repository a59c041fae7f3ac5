"""The functions of the public Python interface: keyword arguments are the options of the commands, folders included.

Every function takes the fields of one class of `lary.configs`, and those of `Paths` (``lary_root``, ``data_dir``,
``plugin`` ...), which otherwise come from the environment, ``lary.yaml`` and the defaults, as for a command.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lary.configs import ClassifyConfig, ControlsConfig, ExtractConfig, Paths, RegressConfig, RunConfig, make_options
from lary.types import as_path

if TYPE_CHECKING:
    from lary.results.compare import Comparison
    from lary.runs.controls import ControlReport
    from lary.runs.extract import ExtractReport
    from lary.runs.probe import ProbeRun
    from lary.runs.run import RunReport


def paths_of(options: dict[str, Any]) -> Paths:
    """Take the options that name folders, configuration and plug-ins out of `options`; values may be text or paths."""
    own = {field.name: options.pop(field.name, None) for field in fields(Paths)}
    given: dict[str, Any] = {name: str(value) for name, value in own.items() if value is not None}
    if (plugin := own["plugin"]) is not None:
        given["plugin"] = (as_path(plugin),) if isinstance(plugin, (str, Path)) else tuple(map(as_path, plugin))
    if own["config"] is not None:
        given["config"] = as_path(own["config"])
    return Paths(**given)


def interface(name: str, kind: type[Any], module: str, function: str, *, plugins: bool) -> Callable[..., Any]:
    """A function of the public interface: it takes the options of `kind` and of `Paths`, and calls one of `module`.

    `plugins` hands the plug-ins on, for the worker processes of an extraction.
    """

    def call(**options: Any) -> Any:
        paths = paths_of(options)
        settings = paths.settings()
        config = make_options(kind, options, f"lary.{name}")
        work = getattr(importlib.import_module(module), function)
        return work(config, settings, plugins=paths.plugin) if plugins else work(config, settings)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = (
        f"{kind.__doc__} The keyword arguments are those of `{kind.__name__}` and `Paths`.\n\n"
        f"Raises:\n    LaryError: as the command ``lary {name}`` reports it; UsageError for a wrong request."
    )
    return call


extract: Callable[..., ExtractReport] = interface(
    "extract", ExtractConfig, "lary.runs.extract", "extract", plugins=True
)
classify: Callable[..., ProbeRun] = interface("classify", ClassifyConfig, "lary.runs.probe", "classify", plugins=False)
regress: Callable[..., ProbeRun] = interface("regress", RegressConfig, "lary.runs.probe", "regress", plugins=False)
run: Callable[..., RunReport] = interface("run", RunConfig, "lary.runs.run", "run", plugins=True)
controls: Callable[..., ControlReport] = interface(
    "controls", ControlsConfig, "lary.runs.controls", "run_controls", plugins=True
)


def compare(*runs: str | Path, role: Literal["seen", "unseen"] = "seen", seed: int = 0) -> Comparison:
    """Compare the first of several finished runs with each of the others, on the samples that they share.

    Args:
        runs: folders of runs, or their result.json files.
        role: split to compare on.
        seed: seed of the resampling.

    Raises:
        LaryError: fewer than two runs, or runs that can't be compared.
    """
    from lary.results.compare import compare_results

    return compare_results(runs, role, seed)
