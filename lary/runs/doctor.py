"""``lary doctor``: the packages, devices, decoders, settings and weights that the benchmark needs on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from lary.models.spec import MODELS, locate_weights
from lary.runtime import usable_cores
from lary.settings import VARIABLES, Settings
from lary.types import UsageError

CODECS = ("h264", "av1", "vp9")
"""Video codecs of the data sets."""

Line = tuple[bool, str, str]
"""Whether something that is needed is broken, its name, and its state in words."""


def examine(settings: Settings) -> list[Line]:
    """Inspect the machine; nothing is written."""
    found: list[Line] = []
    for part in (packages, devices, decoders, lambda: variables(settings), lambda: weights(settings)):
        try:
            found += part()
        except Exception as error:  # a broken library may raise anything, and the rest is still worth reporting
            found.append((True, getattr(part, "__name__", "settings"), f"{type(error).__name__}: {error}"))
    return found


def packages() -> Iterator[Line]:
    """Python, and every package that lary requires, with the versions that it takes."""
    from packaging.requirements import Requirement

    yield False, "python", f"{sys.version.split()[0]} in {sys.prefix}"
    for wanted in map(Requirement, importlib.metadata.requires("lary") or ()):
        needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            if needed:
                yield True, wanted.name, f"not installed: pip install '{wanted.name}{wanted.specifier}'"
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        yield needed and not fits, wanted.name, version if fits else f"{version}; lary needs {wanted.specifier}"


def devices() -> Iterator[Line]:
    """Cores, memory, and the accelerators that torch computes on."""
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 1e9
    yield False, "cpu", f"{usable_cores()} of {os.cpu_count()} cores, {memory:.1f} GB of memory"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        metal = torch.backends.mps.is_available()
        yield False, "accelerator", "Metal: pass --device mps" if metal else "none: published sizes take hours"
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        works = float((torch.ones(8, device=f"cuda:{index}") * 2).sum()) == 16
        name = torch.cuda.get_device_name(index)
        yield not works, f"cuda:{index}", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def decoders() -> Iterator[Line]:
    """The video codecs of the data sets in this build of PyAV."""
    import av

    for codec in CODECS:
        present = codec in av.codecs_available
        yield not present, f"{codec} by PyAV", "decoded" if present else "this build of PyAV has no decoder for it"


def variables(settings: Settings) -> Iterator[Line]:
    """Every setting: its value, its origin, and whether what it names can be used."""
    for variable in VARIABLES:
        item = settings.items[variable.name]
        if item.value is None:
            continue
        path, text, broken = Path(item.value), "", False
        if path.exists():
            broken = not os.access(path, os.R_OK) or (variable.folder and not path.is_dir())
            free = f", {shutil.disk_usage(path).free / 1e9:.1f} GB free" if path.is_dir() else ""
            text = "can't be used" if broken else f"{'folder' if path.is_dir() else 'file'}{free}"
        elif not variable.folder and item.value.count("/") == 1 and not path.is_absolute():
            text = "no file here: taken for a hub id"
        else:
            made = variable.name in ("LARY_LA_DIR", "LARY_LOG_DIR")
            broken, text = not made and item.origin != "default", "will be made" if made else "does not exist"
        yield broken, variable.name, f"{item.value} ({item.origin}): {text}"


def weights(settings: Settings) -> Iterator[Line]:
    """The models whose weights are neither on this machine nor on the hub."""
    missing = []
    for model in MODELS:
        try:
            locate_weights(model, settings.values())
        except UsageError:
            missing.append(model.name)
    yield (
        False,
        "weights",
        f"missing: {', '.join(missing)}; 'lary models KEY' prints what to set" if missing else "found",
    )
