"""``lary doctor``: the packages, devices, decoders, settings, weights and free space that the benchmark needs here."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lary.models.spec import MODELS, locate_weights
from lary.runtime import usable_cores
from lary.settings import VARIABLES, Settings
from lary.types import UsageError

State = Literal["ok", "note", "broken"]
MARKS: dict[State, str] = {"ok": "  ", "note": "- ", "broken": "! "}
CODECS = {"H.264": "h264", "AV1": "av1", "VP9": "vp9"}
OUTPUTS = ("LARY_ROOT", "LARY_LA_DIR", "LARY_LOG_DIR")
LOW_SPACE = 5e9


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    group: str
    name: str
    state: State
    text: str


@dataclass(frozen=True)
class MachineReport:
    """Everything that was found."""

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> bool:
        """Whether something that is needed doesn't work."""
        return any(finding.state == "broken" for finding in self.findings)

    def text(self) -> str:
        """A block of lines per group; what is broken has an exclamation mark."""
        lines: list[str] = []
        for group in dict.fromkeys(finding.group for finding in self.findings):
            own = [finding for finding in self.findings if finding.group == group]
            lines += [group, *(f"{MARKS[finding.state]}{finding.name:24} {finding.text}" for finding in own)]
        count = sum(finding.state == "broken" for finding in self.findings)
        return "\n".join([*lines, "", f"{count} broken" if count else "Nothing is broken."])

    def data(self) -> dict[str, Any]:
        """The same for programs."""
        return {"broken": self.broken, "findings": [asdict(finding) for finding in self.findings]}


def examine(settings: Settings) -> MachineReport:
    """Inspect everything; nothing is written."""
    parts: dict[str, Callable[[], Iterator[tuple[str, State, str]]]] = {
        "environment": packages, "devices": devices, "decoders": decoders, "settings": lambda: variables(settings),
        "weights": lambda: weights(settings), "disk": lambda: disk(settings),
    }  # fmt: skip
    found: list[Finding] = []
    for group, part in parts.items():
        try:
            found += [Finding(group, *line) for line in part()]
        except Exception as error:  # a broken library may raise anything, and the rest is still worth reporting
            found.append(Finding(group, group, "broken", f"can't be examined: {type(error).__name__}: {error}"))
    return MachineReport(tuple(found))


def packages() -> Iterator[tuple[str, State, str]]:
    """Python, and every package that lary requires, with the versions that it takes."""
    from packaging.requirements import Requirement

    yield "python", "ok", f"{sys.version.split()[0]} in {sys.prefix}"
    for line in importlib.metadata.requires("lary") or ():
        wanted = Requirement(line)
        extra = wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            if not extra:
                yield wanted.name, "broken", f"not installed: pip install '{wanted.name}{wanted.specifier}'"
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        state: State = "ok" if fits else "note" if extra else "broken"
        yield wanted.name, state, version if fits else f"{version}; lary needs {wanted.specifier}"


def devices() -> Iterator[tuple[str, State, str]]:
    """Cores, memory, and the accelerators that torch computes on."""
    import psutil
    import torch

    yield "cpu", "ok", f"{usable_cores()} of {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    yield "memory", "ok", f"{psutil.virtual_memory().total / 1e9:.1f} GB"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        metal = torch.backends.mps.is_available()
        text = "Metal: pass --device mps" if metal else "none: the CPU works, published sizes take hours on it"
        yield "accelerator", "ok" if metal else "note", text
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        text = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        works = float((torch.ones(8, device=f"cuda:{index}") * 2).sum()) == 16
        yield f"cuda:{index}", "ok" if works else "broken", text


def decoders() -> Iterator[tuple[str, State, str]]:
    """The video codecs of the data sets in this build of PyAV."""
    import av

    for name, codec in CODECS.items():
        try:
            yield f"{name} by PyAV", "ok", av.codec.Codec(codec, "r").name
        except ValueError:
            yield f"{name} by PyAV", "broken", f"this build of PyAV has no decoder for {name}"


def variables(settings: Settings) -> Iterator[tuple[str, State, str]]:
    """Every setting: its value, its origin, and whether what it names can be used."""
    for variable in VARIABLES:
        item = settings.items[variable.name]
        if item.value is None:
            yield variable.name, "note", "not set"
            continue
        path, output = Path(item.value), variable.name in OUTPUTS
        state: State = "ok"
        if path.exists():
            usable = os.access(path, os.R_OK) and (not output or os.access(path, os.W_OK))
            text = ("folder" if path.is_dir() else "file") + (
                "" if usable else ", without the permissions that it needs"
            )
            if not usable or (variable.folder and not path.is_dir()):
                state = "broken"
        elif output:
            text = "will be made"
        elif not variable.folder and item.value.count("/") == 1 and not path.is_absolute():
            text = "no file here: taken for a hub id"
        else:
            state, text = "note" if item.origin == "default" else "broken", "does not exist"
        yield variable.name, state, f"{item.value} ({item.origin}): {text}"


def weights(settings: Settings) -> Iterator[tuple[str, State, str]]:
    """The models by where their weights are: on this machine, on the hub, or nowhere yet."""
    found: dict[str, list[str]] = {"here": [], "from the hub": [], "missing": []}
    for model in MODELS:
        try:
            path = locate_weights(model, settings.values()) if model.weights else "."
        except UsageError:
            found["missing"].append(model.name)
        else:
            found["here" if path is not None and Path(path).exists() else "from the hub"].append(model.name)
    yield "here", "ok", ", ".join(found["here"])
    for name in ("from the hub", "missing"):
        if found[name]:
            yield name, "note", f"{', '.join(found[name])}; 'lary models KEY' says what to set"


def disk(settings: Settings) -> Iterator[tuple[str, State, str]]:
    """Free bytes of every folder that is written to."""
    for name in OUTPUTS:
        path = Path(settings.get(name) or ".").absolute()
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        advice = "; 'lary extract --dry-run' reports what an extraction needs"
        yield name, "note" if free < LOW_SPACE else "ok", f"{free / 1e9:.1f} GB free at {path}{advice}"
