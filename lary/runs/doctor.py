"""``lary doctor``: what of this machine the benchmark needs, and what of it is broken."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from lary.files import read_limited
from lary.models.spec import MODELS, locate_weights
from lary.runtime import usable_cores
from lary.settings import VARIABLES, Settings
from lary.types import UsageError

State = Literal["ok", "note", "broken"]
MARKS: dict[State, str] = {"ok": "  ", "note": "- ", "broken": "! "}

PYTHONS = ((3, 10), (3, 13))
EXTRAS = {"mujoco": "demo", "ray": "ray"}
CODECS = {"H.264": ("libx264", "mp4"), "AV1": ("libsvtav1", "mp4"), "VP9": ("libvpx-vp9", "webm")}
SIDE, FRAMES = 64, 3
OUTPUTS = ("LARY_ROOT", "LARY_LA_DIR", "LARY_LOG_DIR")
LOW_SPACE, LOW_FILES = 5e9, 100_000
GIGABYTE = 1e9


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    group: str
    name: str
    state: State
    text: str


@dataclass(frozen=True)
class Report:
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
            lines.append(group)
            own = [finding for finding in self.findings if finding.group == group]
            lines += [f"{MARKS[finding.state]}{finding.name:24} {finding.text}" for finding in own]
        count = sum(finding.state == "broken" for finding in self.findings)
        return "\n".join([*lines, "", f"{count} broken" if count else "Nothing is broken."])

    def data(self) -> dict[str, Any]:
        """The same for programs."""
        return {"broken": self.broken, "findings": [asdict(finding) for finding in self.findings]}


def examine(settings: Settings) -> Report:
    """Look at everything. Nothing is written but empty trial files, which are removed at once."""
    parts: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("environment", packages),
        ("devices", devices),
        ("decoders", decoders),
        ("settings", lambda: variables(settings)),
        ("weights", lambda: weights(settings)),
        ("disk", lambda: disk(settings)),
        ("hub", hub),
    )
    found: list[Finding] = []
    for group, part in parts:
        try:
            found += part()
        except Exception as error:  # a broken library may raise anything, and the rest is still worth telling
            found.append(Finding(group, group, "broken", f"can't be examined: {type(error).__name__}: {error}"))
    return Report(tuple(found))


def packages() -> Iterator[Finding]:
    """Python, what lary requires, its extras, and what is known to get in the way."""
    version = ".".join(map(str, sys.version_info[:3]))
    low, high = (".".join(map(str, bound)) for bound in PYTHONS)
    right = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    yield Finding(
        "environment", "python", "ok" if right else "broken",
        f"{version} in {sys.prefix}" + ("" if right else f"; {low} to {high} are needed"),
    )  # fmt: skip
    for name, wanted in requirements():
        yield package(name, wanted)
    for name, extra in EXTRAS.items():
        found = installed(name)
        text = found or f"not here; pip install 'lary[{extra}]' brings it"
        yield Finding("environment", name, "ok" if found else "note", text)
    if found := installed("torchvision"):
        match = re.match(r"\d+\.(\d+)", found), re.match(r"\d+\.(\d+)", installed("torch"))
        fits = match[0] and match[1] and int(match[0][1]) == int(match[1][1]) + 15
        advice = "" if fits else f", made for another torch than {installed('torch')}: remove it, lary needs none"
        yield Finding("environment", "torchvision", "ok" if fits else "note", found + advice)


def requirements() -> Iterator[tuple[str, str]]:
    """Names and lowest versions of what lary requires, from its own metadata."""
    for line in importlib.metadata.requires("lary") or ():
        found = re.match(r"([A-Za-z0-9._-]+)\s*(?:[^;]*?>=\s*([0-9.]+))?[^;]*(;.*extra.*)?$", line)
        if found and not found[3]:
            yield found[1], found[2] or "0"


def package(name: str, wanted: str) -> Finding:
    """Whether one package is there and new enough."""
    found = installed(name)
    if not found:
        return Finding("environment", name, "broken", f"not installed; {wanted} or newer is needed: pip install {name}")
    if numbers(found) < numbers(wanted):
        return Finding("environment", name, "broken", f"{found}; {wanted} or newer is needed: pip install -U {name}")
    return Finding("environment", name, "ok", found)


def installed(name: str) -> str:
    """The version of an installed package, or nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: (2, 13, 0) of 2.13.0+cpu."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def devices() -> Iterator[Finding]:
    """Cores, threads, memory, and what torch can compute on."""
    import torch

    from lary.runtime import memory_bytes

    cores = os.cpu_count() or 1
    threads = f"{torch.get_num_threads()} of torch, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS') or 'not set'}"
    yield Finding("devices", "cpu", "ok", f"{cores} cores, {usable_cores()} for this process; threads: {threads}")
    yield Finding("devices", "memory", "ok", f"{memory_bytes() / GIGABYTE:.1f} GB")
    if not torch.cuda.is_available():
        metal = torch.backends.mps.is_available()
        text = "Metal is there: --device mps" if metal else "none: the CPU works, published sizes take hours on it"
        yield Finding("devices", "accelerator", "ok" if metal else "note", text)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name, (free, total) = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)
        value = float((torch.ones(8, device=f"cuda:{index}") * 2).sum())
        text = f"{name}, {free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free"
        yield Finding("devices", f"cuda:{index}", "ok" if value == 16 else "broken", text)


def decoders() -> Iterator[Finding]:
    """Whether a few generated frames come back: images by both readers, videos by PyAV."""
    import numpy as np

    from lary.data.images import decode_with_cv2, decode_with_pillow

    picture = np.full((SIDE, SIDE, 3), (200, 60, 30), dtype=np.uint8)
    from PIL import Image

    for kind in ("PNG", "JPEG"):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, kind)
        for reader, read in (("OpenCV", decode_with_cv2), ("Pillow", decode_with_pillow)):
            near = int(np.abs(read(Path(kind), data.getvalue()).astype(int) - picture).max()) <= 8
            yield Finding("decoders", f"{kind} by {reader}", "ok" if near else "broken", "reads" if near else "wrong")
    for name, (encoder, container) in CODECS.items():
        yield codec(name, encoder, container, picture)


def codec(name: str, encoder: str, container: str, picture: Any) -> Finding:
    """Whether PyAV decodes a codec; a build without its encoder can't be tried but may still decode."""
    import av
    import numpy as np

    decoder = {"H.264": "h264", "AV1": "av1", "VP9": "vp9"}[name]
    try:
        av.codec.Codec(decoder, "r")
    except ValueError:
        return Finding("decoders", f"{name} by PyAV", "broken", f"this build of PyAV has no decoder for {name}")
    av.logging.set_level(av.logging.PANIC)
    os.environ.setdefault("SVT_LOG", "1")  # errors alone, else this encoder tells its life
    try:
        av.codec.Codec(encoder, "w")
    except ValueError:
        return Finding("decoders", f"{name} by PyAV", "note", "there is a decoder; no encoder here to try it with")
    data = io.BytesIO()
    with av.open(data, "w", format=container) as out:
        stream: Any = out.add_stream(encoder, rate=Fraction(10))
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for _ in range(FRAMES):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    data.seek(0)
    with av.open(data, mode="r") as source:
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    near = len(frames) == FRAMES and int(np.abs(frames[-1].astype(int) - picture).max()) <= 16
    return Finding("decoders", f"{name} by PyAV", "ok" if near else "broken", "reads" if near else "gives other frames")


def variables(settings: Settings) -> Iterator[Finding]:
    """Every setting: its value, where that comes from, and whether what it names can be used."""
    for variable in VARIABLES:
        item = settings.items[variable.name]
        if item.value is None:
            yield Finding("settings", variable.name, "note", "not set")
            continue
        path, hub = Path(item.value), not variable.folder and item.value.count("/") == 1
        named = item.origin != "default"
        state: State = "ok"
        if path.is_dir():
            text = "folder, " + ("writable" if os.access(path, os.W_OK) else "readable")
            if not os.access(path, os.R_OK | os.X_OK):
                state, text = "broken", "a folder that may not be read"
            elif variable.name in OUTPUTS and not os.access(path, os.W_OK):
                state, text = "broken", "a folder that may not be written to"
        elif path.exists():
            state, text = ("broken", "a file, and a folder is needed") if variable.folder else ("ok", "file")
            if state == "ok" and not os.access(path, os.R_OK):
                state, text = "broken", "a file that may not be read"
        elif variable.name in OUTPUTS:
            text = "will be made"
        elif hub and not path.is_absolute():
            text = "no file here: taken for a hub id"
        else:
            state, text = ("broken" if named else "note"), "does not exist"
        yield Finding("settings", variable.name, state, f"{item.value} ({item.origin}): {text}")


def weights(settings: Settings) -> Iterator[Finding]:
    """The models whose weights lie on this machine, or are fetched from the hub."""
    here: list[str] = []
    away: list[str] = []
    missing: list[str] = []
    for model in MODELS:
        if model.weights is None:
            here.append(model.name)
            continue
        try:
            place = locate_weights(model, settings.values())
        except UsageError:
            missing.append(model.name)
            continue
        (here if place is not None and Path(place).exists() else away).append(model.name)
    yield Finding("weights", "here", "ok", ", ".join(here))
    if away:
        yield Finding("weights", "from the hub", "note", ", ".join(away))
    if missing:
        yield Finding("weights", "missing", "note", f"{', '.join(missing)}; 'lary models KEY' says what to set")


def disk(settings: Settings) -> Iterator[Finding]:
    """Free bytes and free files of every folder that is written to."""
    for name in OUTPUTS:
        path = Path(settings.get(name) or ".").absolute()
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        files = os.statvfs(path).f_favail if hasattr(os, "statvfs") else 0
        low = free < LOW_SPACE or 0 < files < LOW_FILES
        count = f", {files:,} files" if files else ""
        advice = "; 'lary extract --dry-run' tells what an extraction needs"
        yield Finding("disk", name, "note" if low else "ok", f"{free / GIGABYTE:.1f} GB{count} free at {path}{advice}")


def hub() -> Iterator[Finding]:
    """Where the hub's files are kept, whether it may be asked, and whether there is a token; never the token itself."""
    from huggingface_hub import constants

    yield Finding("hub", "HF_HOME", "ok", f"{constants.HF_HOME}, cache {constants.HF_HUB_CACHE}")
    yield Finding("hub", "HF_HUB_OFFLINE", "ok", "on: only what is here is used" if constants.HF_HUB_OFFLINE else "off")
    token = bool(os.environ.get("HF_TOKEN")) or has_token(Path(constants.HF_TOKEN_PATH))
    yield Finding("hub", "token", "ok", "there is one" if token else "none: gated models can't be fetched")


def has_token(path: Path) -> bool:
    """Whether a file holds a token."""
    try:
        return bool(read_limited(path, 1 << 16).strip())
    except (OSError, ValueError):
        return False
