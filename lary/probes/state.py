"""The state of a training on disk, so that a command that was interrupted goes on where it was."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lary import __version__
from lary.files import digest
from lary.probes.fit import save_checkpoint
from lary.probes.parallel import ALONE, Team
from lary.runtime import log

FILE = "training_state.pt"
FORMAT = 1

SHARE = 0.05
"""Of the training time that writing may take: a long epoch is always kept, a short one after some others."""


class StateFile:
    """``training_state.pt`` in the folder of a run: read once, rewritten at ends of epochs, gone with the result.

    `identity` names the run with everything that its numbers depend on; an empty one keeps no state. A state of
    another identity is removed before the training starts, so that it can't be taken up after this run has replaced
    the weights beside it. Of a `team` only the leading process touches the file; none goes on before all have read it.
    """

    def __init__(self, folder: Path | None, identity: str, *, resume: bool = True, team: Team = ALONE) -> None:
        self._path = folder / FILE if folder is not None and identity else None
        self._identity = digest(identity, str(FORMAT), __version__, torch.__version__)
        self._resume = resume
        self._team = team
        self._random: dict[str, Any] = {}
        self._cost = 0.0
        self._written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """What was kept last by this very run; None to start from nothing."""
        if self._path is None:
            return None
        values = self._load(self._path)
        self._team.wait()
        return values

    def _load(self, path: Path) -> dict[str, Any] | None:
        if self._team.leads:
            for torn in path.parent.glob(".*.tmp"):  # what a killed run was writing
                torn.unlink(missing_ok=True)
        if not path.exists():
            return None
        found = self._read(path)
        if found is None:
            if self._team.leads:
                path.unlink(missing_ok=True)
            return None
        self._random = {name: found[name] for name in ("random", "numpy", "torch")}
        values: dict[str, Any] = found["values"]
        log.info("%s: going on after epoch %d", path, values["epoch"])
        return values

    def restore_random(self) -> None:
        """Set the random generators to what they were when the loaded state was kept: after all that draws weights."""
        if self._random:
            random.setstate(self._random["random"])
            name, keys, *rest = self._random["numpy"]
            np.random.set_state((name, keys.numpy(), *rest))  # noqa: NPY002 (libraries draw from the global state)
            torch.set_rng_state(self._random["torch"])
        self._random = {}

    def keep(self, make: Callable[[], dict[str, Any]], *, beside: tuple[str, ...] = (), last: bool = False) -> None:
        """Write what `make` returns (tensors and plain values, with ``epoch``), if that is worth its time, or `last`.

        `beside` names files of the folder without which the state is of no use.
        """
        due = self._cost <= SHARE * (time.monotonic() - self._written)
        if self._path is None or not self._team.leads or not (due or last):
            return
        started = time.monotonic()
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        generator = (name, torch.from_numpy(np.array(keys)), *rest)
        save_checkpoint(
            self._path,
            {
                "identity": self._identity, "beside": list(beside), "values": make(), "random": random.getstate(),
                "numpy": generator, "torch": torch.get_rng_state(),
            },
        )  # fmt: skip
        self._written = time.monotonic()
        self._cost = self._written - started

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The file's content; None, with a line that says why, if it can't serve this run."""
        if not self._resume:
            log.info("%s is left aside: starting over", path)
            return None
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            if found["identity"] != self._identity:
                log.info("%s belongs to another run: starting over", path)
                return None
        except Exception as error:  # torch raises many kinds for a file that isn't its own
            log.warning("%s can't be read (%s): starting over", path, type(error).__name__)
            return None
        absent = [name for name in found["beside"] if not (path.parent / name).exists()]
        if absent:
            log.info("%s goes with %s, which is gone: starting over", path, ", ".join(absent))
            return None
        return found


def remove_state(folder: Path) -> None:
    """Remove the state of a run whose result is written."""
    (folder / FILE).unlink(missing_ok=True)


def identity_of_training(*parts: Any) -> str:
    """A digest of what decides a training: arrays by content, all else as JSON."""
    told = [
        digest(str(part.dtype), str(part.shape), np.ascontiguousarray(part).tobytes())
        if isinstance(part, np.ndarray)
        else json.dumps(part, sort_keys=True, default=str)
        for part in parts
    ]
    return digest(*told)
