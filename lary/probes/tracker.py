"""Where a training is followed while it runs: TensorBoard, Weights & Biases or Trackio, as ``--tracker`` says."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from lary.configs import TrackerName
from lary.types import UsageError

PROJECT = "lary"


class Tracker(Protocol):
    """What a training tells: numbers by name at an update, and its end."""

    @property
    def wanted(self) -> bool:
        """Whether anybody listens; numbers that cost time are not computed otherwise."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at update `step`, which never falls."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


class Silent:
    """Nobody is told."""

    wanted = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder."""

    wanted = True

    def __init__(self, folder: Path, run: str, options: Mapping[str, Any]) -> None:
        _import("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("options", "\n\n".join(f"{name}: {value}" for name, value in options.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One scalar per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Hosted:
    """A library with ``init``, ``log`` and ``finish``: Weights & Biases, and Trackio, which speaks the same."""

    wanted = True

    def __init__(self, library: str, folder: Path, run: str, options: Mapping[str, Any]) -> None:
        self._module: Any = _import(library, library)
        place = {"dir": str(folder)} if library == "wandb" else {}
        self._module.init(project=PROJECT, name=run, config=dict(options), **place)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """All names at once."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._module.finish()


def open_tracker(name: TrackerName, folder: Path, run: str, options: Mapping[str, Any]) -> Tracker:
    """The tracker that ``--tracker`` names, for a run with these options in this folder.

    Raises:
        UsageError: its library isn't installed.
    """
    if name == "none":
        return Silent()
    folder.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":
        return TensorBoard(folder, run, options)
    return Hosted(name, folder, run, options)


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """An entry of a history as numbers by name: a list's values as ``name/0``, ``name/1``; None and NaN left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        several = value if isinstance(value, list) else [value]
        for number, each in enumerate(several):
            if isinstance(each, (int, float)) and math.isfinite(each):
                found[f"{name}/{number}" if isinstance(value, list) else name] = float(each)
    return found


def _import(library: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise UsageError(
            f"--tracker {library}: the library '{library}' is not installed. Run \"pip install 'lary[{extra}]'\", or "
            "leave the option out."
        ) from None
