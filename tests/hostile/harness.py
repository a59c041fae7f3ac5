"""How a hostile input is judged: refused in one sentence, nothing run, nothing written, time and memory bounded."""

import os
import resource
import signal
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av  # loaded before memory is bounded, as libraries take gigabytes of addresses
import cv2
import pandas
import pytest
import torch
import yaml

from lary.types import LaryError

LOADED = (av, cv2, pandas, torch, yaml)
MEBIBYTE = 1 << 20
ROOM = 1536
"""Mebibytes of addresses that a refusal may take: 16 threads reserve 64 each. Every bomb asks for more."""
SECONDS = 6.0
TAKEN = Path("/proc/self/statm")
JSON = {
    "nested lists": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "huge whole number": '{"schema_version": ' + "9" * 20_000 + "}",
    "large version": '{"schema_version": ' + "9" * 4_000 + "}",
    "huge number": '{"schema_version": 1e999999}',
    "list": "[1, 2]",
    "text": '"schema_version"',
    "null": "null",
    "not a number": '{"schema_version": NaN}',
    "truth": '{"schema_version": true}',
    "no text": "\udcff\udcfe\udcfd",
    "half a letter": '{"schema_version": 2, "task": "\\ud800"}',
    "fields": '{"schema_version": 2, "__class__": "x", "model": {"__init__": 1}}',
}
"""JSON that others have written: nested, huge, of another kind."""


class Code:
    """What a pickle runs when it is loaded: it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """All files and folders below a folder, links not followed: mode, size and time of change."""
    facts = {str(path.relative_to(folder)): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (found.st_mode, found.st_size, found.st_mtime_ns) for name, found in facts.items()}


@contextmanager
def bounded() -> Iterator[None]:
    """A block that may neither hang, nor take more than `ROOM` of new memory or `SECONDS` of processor time."""

    def hangs(*_: object) -> None:
        raise AssertionError("it hangs")

    before = resource.getrlimit(resource.RLIMIT_AS)
    room = before[0]
    if TAKEN.exists():  # elsewhere than on Linux time alone is bounded
        room = int(TAKEN.read_text().split()[0]) * resource.getpagesize() + ROOM * MEBIBYTE
    handler = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, 30)
    started = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert time.process_time() - started < SECONDS, "a refusal takes too long"


def refused(place: Path, call: Callable[[], object], words: str) -> str:
    """`call` is refused in one sentence that holds `words`, and `place` stays as it was; returns the sentence."""
    before = snapshot(place)
    with bounded(), pytest.raises(LaryError, match=words) as caught:
        call()
    assert caught.value.exit_code in (1, 2)
    sentence = str(caught.value)
    assert len(sentence) < 800, "a sentence, not a dump"
    assert "\n" not in sentence, "one line"
    assert snapshot(place) == before, "a refusal leaves nothing behind"
    return sentence


def deflated_zeros(size: int) -> bytes:
    """A raw deflate stream of `size` zeros: 1/1000 of it in size, made without packing all of it."""
    block = MEBIBYTE * 16
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (size // block - 1) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def write_zip(path: Path, content: Mapping[Any, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of these members."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def zipped(path: Path, name: str, packed: bytes, size: int) -> None:
    """A zip of one entry whose headers claim `size` bytes."""
    own = name.encode()
    fields = struct.pack("<HHHHHIII", 20, 0, zipfile.ZIP_DEFLATED, 0, 33, 0, len(packed), min(size, 2**32 - 1))
    local = b"PK\x03\x04" + fields + struct.pack("<HH", len(own), 0) + own + packed
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHHHII", len(own), 0, 0, 0, 0, 0, 0) + own
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    path.write_bytes(local + entry + end)
