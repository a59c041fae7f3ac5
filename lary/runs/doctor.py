"""``lary doctor``: the packages, devices, decoders, settings and weights that the benchmark needs on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from lary.models.overview import weights_state
from lary.models.spec import MODELS
from lary.runtime import memory_bytes, usable_cores
from lary.settings import FOLDER, Settings

CODECS = ("h264", "av1", "vp9")
"""Video codecs of the data sets."""

Line = tuple[bool, str, str]
"""Whether something that is needed is broken, its name, and its state in words."""


def examine(settings: Settings) -> list[Line]:
    """Inspect the machine; nothing is written."""
    found: list[Line] = []
    for part in (packages, devices, decoders, variables):
        try:
            found += part(settings)
        except Exception as error:  # a broken library may raise anything, and the rest is still worth reporting
            found.append((True, part.__name__, f"{type(error).__name__}: {error}"))
    return found


def packages(_: Settings) -> Iterator[Line]:
    """Python, and every package that lary requires, with the versions that it takes."""
    from packaging.requirements import Requirement

    yield False, "python", f"{sys.version.split()[0]} in {sys.prefix}"
    for wanted in map(Requirement, importlib.metadata.requires("lary") or ()):
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            try:
                version = importlib.metadata.version(wanted.name)
            except importlib.metadata.PackageNotFoundError:
                version = "not installed"
            fits = version[0].isdigit() and wanted.specifier.contains(version, prereleases=True)
            yield not fits, wanted.name, version if fits else f"{version}; lary needs {wanted.specifier}"


def devices(_: Settings) -> Iterator[Line]:
    """Cores, memory, and the accelerators that torch computes on."""
    import torch

    yield False, "cpu", f"{usable_cores()} of {os.cpu_count()} cores, {memory_bytes() / 1e9:.1f} GB of memory"
    cuda = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if not cuda:
        metal = torch.backends.mps.is_available()
        yield False, "accelerator", "Metal: pass --device mps" if metal else "none: published sizes take hours"
    for index in cuda:
        free, total = (size / 1e9 for size in torch.cuda.mem_get_info(index))
        works = float((torch.ones(8, device=f"cuda:{index}") * 2).sum()) == 16
        yield not works, f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GB free"


def decoders(_: Settings) -> Iterator[Line]:
    """The video codecs of the data sets in this build of PyAV."""
    import av

    for codec in CODECS:
        present = codec in av.codecs_available
        yield not present, f"{codec} by PyAV", "decoded" if present else "this build of PyAV has no decoder for it"


def variables(settings: Settings) -> Iterator[Line]:
    """Every setting: its value, its origin, and whether what it names can be used; the models without weights."""
    for name, value in settings.values().items():
        path, origin, broken = Path(value), settings.items[name].origin, False
        if path.exists():
            broken = not os.access(path, os.R_OK) or (FOLDER[name] and not path.is_dir())
            free = f"folder, {shutil.disk_usage(path).free / 1e9:.1f} GB free" if path.is_dir() else "file"
            text = "can't be used" if broken else free
        elif not FOLDER[name] and value.count("/") == 1 and not path.is_absolute():
            text = "no file here: taken for a hub id"
        else:
            text = "does not exist"
            broken = name not in ("LARY_LA_DIR", "LARY_LOG_DIR") and origin != "default"  # commands make these
        yield broken, name, f"{value} ({origin}): {text}"
    absent = [model.name for model in MODELS if not weights_state(model, settings.values())[0]]
    text = f"not on this machine: {', '.join(absent)}; 'lary models KEY' prints what to set" if absent else "found"
    yield False, "weights", text
