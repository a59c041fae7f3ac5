"""What every run needs beside its work: log, progress, seeds, devices, provenance."""

import functools
import gc
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from lary import __version__
from lary.types import JsonDict, LaryError, Progress, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger("lary")

SECONDS_BETWEEN_LINES = 10.0
"""Time between two lines of progress where stderr is no terminal."""

QUEUED = 128
"""Batches that threads get at once, which bounds the results in memory."""
QUICK = 0.01
"""Seconds below which a batch is quick."""
TRIED = 32
"""Most items of a batch that is tried."""

CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and details of memory, for control groups v2 and v1."""

CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")
"""Control characters besides tab and line feed."""

REPORTED_PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "diffusers",
    "av",
    "opencv-python-headless",
    "pillow",
    "mujoco",
    "scikit-learn",
)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(*, free: bool = False) -> int:
    """Memory of this machine or container: all of it, or what is free."""
    import psutil

    machine = psutil.virtual_memory()
    found = [int(machine.available if free else machine.total)]
    for limit, used, facts in CGROUP_FILES:
        try:
            within = int((CGROUP / limit).read_text())
            if free:
                stat = dict(line.split() for line in (CGROUP / facts).read_text().splitlines())
                # The page cache of files counts as used, but gives way.
                within -= int((CGROUP / used).read_text()) - int(stat["inactive_file"])
        except (OSError, ValueError, KeyError):
            continue
        found.append(max(0, within))
    return min(found)


class PlainStream:
    """A stream that writes control characters as ``\\x1b``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        plain = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        return int(self._stream.write(plain))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> None:
    """Reopen closed standard streams: files would get their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def setup_logging() -> None:
    """Log to stderr; results alone go to stdout."""
    handler: logging.Handler = logging.StreamHandler(PlainStream(sys.stderr))
    handler.setFormatter(logging.Formatter("lary: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class ProgressBar:
    """Progress on stderr: a bar on a terminal, elsewhere lines of the log."""

    def __init__(self, total: int, title: str, unit: str, done: int) -> None:
        self._title, self._unit, self._total = title, unit, total
        self._first, self._done = done, done
        self._started = self._logged = time.monotonic()
        from tqdm.auto import tqdm  # a widget in notebooks, text on terminals

        off = log.level > logging.INFO or (not sys.stderr.isatty() and "ipykernel" not in sys.modules)
        self._bar = tqdm(total=total, initial=done, desc=title, unit=f" {unit}s", leave=False, disable=off)

    def advance(self, count: int = 1) -> None:
        self._done += count
        self._bar.update(count)
        if time.monotonic() - self._logged > SECONDS_BETWEEN_LINES:
            gc.collect(1)  # see main()
            self._logged = time.monotonic()
            if not self._bar.disable:
                return
            rate = max(self._done - self._first, 1e-9) / (self._logged - self._started)
            left = (self._total - self._done) / rate
            pace = f"{rate:.1f} {self._unit}s/s" if rate > 0.1 else f"{1 / rate:.0f} s per {self._unit}"
            log.info("%s: %d of %d, %s, %.0f s left", self._title, self._done, self._total, pace, left)

    def skip(self, count: int) -> None:
        """Count work that was done before; it says nothing about the rate."""
        self._first += count
        self._done += count
        self._bar.initial = self._first
        self._bar.update(count)

    def close(self) -> None:
        """End the bar with one line that says how long the work took."""
        self._bar.close()
        seconds = time.monotonic() - self._started
        log.info("%s: %d of %d in %.1f s", self._title, self._done, self._total, seconds)


def progress(total: int, title: str, unit: str = "sample", done: int = 0) -> closing[ProgressBar]:
    return closing(ProgressBar(total, title, unit, done))


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int, *, batch: int = 1, bar: Progress | None = None
) -> Iterator[Result]:
    """The results of `work` for all items, in their order, from threads.

    A thread takes `batch` items, as one may be less work than handing it over.
    Batches of quick work, such as files in memory, stay in this thread, since
    threads would wait for each other. Raises what `work` raises.
    """
    place, alone = 0, batch > 1
    with ThreadPoolExecutor(threads) as pool:
        while place < len(items):
            size = min(batch, TRIED) if alone else batch
            starts = range(place, len(items), size)[: 1 if alone else QUEUED]
            parts, begun = (items[start : start + size] for start in starts), time.perf_counter()
            place, again = starts.stop, not alone and batch > 1
            for done in (map if alone else pool.map)(lambda part: [work(item) for item in part], parts):
                again = again or (alone and time.perf_counter() - begun < QUICK * size / batch)
                if bar is not None:
                    bar.advance(len(done))
                yield from done
            alone = again


def timed(items: Iterable[Item], waits: list[float]) -> Iterator[Item]:
    """The items; `waits` collects the seconds for which each is waited for."""
    begun = time.perf_counter()
    for item in items:
        waits.append(time.perf_counter() - begun)
        yield item
        begun = time.perf_counter()


@functools.cache
def tell_once(message: str) -> None:
    log.info(message)


def device_numbers(gpus: str) -> list[int]:
    """The numbers in a list such as ``0,1``. Raises UsageError."""
    try:
        wanted = [int(part) for part in gpus.split(",")]
    except ValueError:
        raise UsageError(f"--gpus '{gpus}': expected device numbers such as 0 or 0,1,2,3.") from None
    if min(wanted) < 0 or len(set(wanted)) < len(wanted):
        raise UsageError(f"--gpus {gpus}: expected numbers from 0, each once, such as 0 or 0,1,2,3.")
    return wanted


def pick_devices(gpus: str | None, choice: str = "auto", *, every: bool = False) -> list[str]:
    """Torch device names for ``--gpus 0,1``, or the CPU where CUDA isn't.

    `gpus` are numbers among CUDA_VISIBLE_DEVICES, None is the first one, or
    with `every` all. `choice` is ``auto``, ``cpu``, ``cuda`` or ``mps``. Raises
    UsageError for a device that this machine lacks.
    """
    import torch

    wanted = device_numbers(gpus or "0")
    if choice == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no Metal device; use --device auto.")
    if choice in ("cpu", "mps"):
        return [choice]
    if not torch.cuda.is_available():
        if choice == "cuda":
            raise UsageError("--device cuda: torch finds no CUDA device here; use --device auto.")
        asked = f"--gpus {gpus}: torch finds " if gpus else ""
        remedy = "; to use one, install its driver and a torch that is built for CUDA" if gpus else ""
        tell_once(f"{asked}no CUDA device here: one process on the CPU{remedy}")
        return ["cpu"]
    count = torch.cuda.device_count()
    if gpus is None and every:
        wanted = list(range(count))
    if missing := [index for index in wanted if index >= count]:
        there = "CUDA device 0 alone" if count == 1 else f"CUDA devices 0 to {count - 1}"
        raise UsageError(f"--gpus {gpus}: this machine has {there}, not {missing[0]}: name those that are there.")
    devices = [f"cuda:{index}" for index in wanted]
    tell_once(f"working on {', '.join(devices)} of {count} visible CUDA devices")
    return devices


def set_arithmetic(device: str, precision: str = "fp32") -> str:
    """Set how this process multiplies.

    TF32 rounds factors to 10 bits. Returns a part of a store's
    identity, empty but on CUDA. Raises UsageError without TF32.
    """
    import torch

    kind, fast = device.partition(":")[0], precision == "tf32"
    if fast and kind != "cuda":
        raise UsageError(f"--precision tf32: {device} has no TF32; use fp32.")
    own = torch.backends.cudnn
    torch.backends.cuda.matmul.allow_tf32 = own.allow_tf32 = fast
    own.benchmark, own.deterministic = False, True
    return f"cuda {'tf32' if fast else 'fp32'}" if kind == "cuda" else ""


def leave_devices(held: dict[str, Any]) -> None:
    """Let the encoders go that are `held`, with all memory that is out of use."""
    import torch

    if held or torch.cuda.is_initialized():
        held.clear()
        gc.collect()  # encoders refer to themselves
        torch.cuda.empty_cache()


def free_memory(device: str) -> int:
    """Bytes free on a device, with those that torch keeps there for reuse."""
    import torch

    if not device.startswith("cuda"):
        return memory_bytes(free=True)
    leave_devices({})
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


@contextmanager
def within_memory(device: str, advice: str) -> Iterator[None]:
    """Turn a lack of memory on a device into a LaryError.

    Halving a batch would change how its rows are rounded.
    """
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason, free = str(error).partition(". GPU")[0], free_memory(device) / 1e9
        told = f"{device} ran out of memory ({reason}; now {free:.1f} GB are free)"
        raise LaryError(f"{told}: {advice}.") from error


def pinned(pin: Callable[[], Result], plain: Callable[[], Result], device: str) -> Result:
    """`pin` for CUDA, to copy while it computes, or else `plain`.

    Containers may forbid to pin memory.
    """
    import torch

    if not device.startswith("cuda"):
        return plain()
    try:
        return pin()
    except RuntimeError as error:
        tell_once(f"memory can't be pinned here: {str(error).partition(chr(10))[0]}")
        with suppress(RuntimeError):  # takes the error that the next kernel would find
            torch.zeros(1, device=device)
        return plain()


LAUNCHED = "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"
"""Variables with a launcher's number of processes."""


def refuse_copies() -> None:
    """Refuse to be one of several equal processes. Raises UsageError."""
    for name in LAUNCHED:
        if os.environ.get(name, "1") not in ("", "0", "1"):
            raise UsageError(
                f"{name} is {os.environ[name]}, and all these processes would do the same: start "
                "lary by itself, or see --gpus."
            )


def provenance(devices: Sequence[str] = ("cpu",)) -> JsonDict:
    """Versions, commit, machine and command line of what `devices` computed."""
    import importlib.metadata
    import platform

    versions = {"lary": __version__, "python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    commit, dirty = _git_state(Path(__file__).parent)
    machine: JsonDict = {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 1,
        "device": ", ".join(sorted({device.partition(":")[0] for device in devices})),
    }
    if devices[0].startswith("cuda"):
        import torch

        machine["device"] = ", ".join(map(torch.cuda.get_device_name, devices))
    return {"command": list(sys.argv), "versions": versions, "commit": commit, "dirty": dirty, "machine": machine}


def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of lary's checkout, and whether files differ from it."""
    import subprocess

    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None, None
    return found.removesuffix("-dirty"), found.endswith("-dirty")
