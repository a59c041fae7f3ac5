"""The functions of the public interface, with the options of commands as keyword arguments.

They are fields of one class of `lary.configs` and of `Paths`, which otherwise
come from the environment, ``lary.yaml`` and the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.configs import ClassifyConfig, ControlsConfig, ExtractConfig, Paths, RegressConfig, RunConfig, make_options
from lary.lam.configs import ReconstructConfig, TrainLamConfig
from lary.types import JsonDict, as_path

if TYPE_CHECKING:
    from lary.runs.controls import ControlReport
    from lary.runs.extract import ExtractReport
    from lary.runs.probe import ProbeRun
    from lary.runs.run import RunReport


def paths_of(options: JsonDict) -> Paths:
    """Take folders, configuration and plug-ins, text or paths, out of `options`."""
    given = {name: options.pop(name) for name in Paths.__dataclass_fields__ if options.get(name) is not None}
    plugin = given.pop("plugin", ())
    config = given.pop("config", None)
    plugins = (plugin,) if isinstance(plugin, (str, Path)) else plugin
    folders = {name: str(value) for name, value in given.items()}
    return Paths(plugin=tuple(map(as_path, plugins)), config=as_path(config) if config else None, **folders)


def interface(kind: type[Any], place: str) -> Callable[..., Any]:
    """A public function with the options of `kind` and of `Paths`; calls ``MODULE:NAME``."""
    name = place.partition(":")[2].removeprefix("run_")

    def call(**options: Any) -> Any:
        paths = paths_of(options)
        return paths.call(place, make_options(kind, options, f"lary.{name}"))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = (
        f"{kind.__doc__} The keyword arguments are those of `{kind.__name__}` and `Paths`.\n\n"
        f"Raises:\n    LaryError: as the command ``lary {name}`` reports it; UsageError for a wrong request."
    )
    return call


extract: Callable[..., ExtractReport] = interface(ExtractConfig, "lary.runs.extract:extract")
classify: Callable[..., ProbeRun] = interface(ClassifyConfig, "lary.runs.probe:classify")
regress: Callable[..., ProbeRun] = interface(RegressConfig, "lary.runs.probe:regress")
run: Callable[..., RunReport] = interface(RunConfig, "lary.runs.run:run")
train_lam: Callable[..., JsonDict] = interface(TrainLamConfig, "lary.lam:train_lam")
reconstruct: Callable[..., JsonDict] = interface(ReconstructConfig, "lary.runs.reconstruct:reconstruct")
controls: Callable[..., ControlReport] = interface(ControlsConfig, "lary.runs.controls:run_controls")
