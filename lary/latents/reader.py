"""Reading shards: random access to rows by memory map, or by positioned reads where the file system is a network's.

A memory map waits for one page after another, which a network makes slow; positioned reads fetch whole rows, several
at a time. Which one is taken depends on the kind of file system, or on the setting ``LARY_READ``.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.latents.shardfile import STORED, ShardHeader, broken, open_plain, stamp_of
from lary.latents.store import Floats, convert
from lary.types import LaryError, UsageError

if TYPE_CHECKING:
    import torch

LARY_READ = "LARY_READ"
MODES = ("mmap", "pread")
NETWORKS = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "panfs", "smb3", "smbfs", "virtiofs", "wekafs",
)  # fmt: skip
MOST_BUFFERS = 256
AT_ONCE = 16
"""Reads under way at a time: what a network needs is patience for many, not speed for one."""


def read_mode(folder: Path, asked: str | None = None) -> str:
    """How to read files of a folder: as asked, else by its file system. Raises UsageError for another word."""
    if asked is not None:
        if asked not in MODES:
            raise UsageError(f"LARY_READ={asked}: expected {' or '.join(MODES)}.")
        return asked
    kind = file_system(folder)
    return "pread" if kind in NETWORKS or kind.startswith("fuse.") else "mmap"


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Kind of the file system that a folder is on, such as ``ext4`` or ``nfs4``; empty where nobody knows."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    place, best, kind = str(folder.resolve()), -1, ""
    for line in lines:  # of proc(5): ... mount point (fifth field) ... - kind ...
        before, _, behind = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not behind:
            continue
        point = fields[4].replace("\\040", " ").rstrip("/")
        if len(point) >= best and (place == point or place.startswith(point + "/")):
            best, kind = len(point), behind.split()[0]
    return kind


class OpenFiles:
    """Shards that are open, the least used ones closed so that the process may open others."""

    def __init__(self, headers: Sequence[ShardHeader], mode: str) -> None:
        self._headers, self._mode = headers, mode
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._limit = most_files() // 4

    def __getstate__(self) -> tuple[Sequence[ShardHeader], str]:
        return self._headers, self._mode

    def __setstate__(self, state: tuple[Sequence[ShardHeader], str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def get(self, file: int) -> Any:
        """The rows of a shard as a tensor (R, values), or an `OpenFile` to read them from."""
        with self._lock:
            if file in self._open:
                self._open.move_to_end(file)
                return self._open[file]
            header = self._headers[file]
            handle = OpenFile(open_plain(header.path))
            if stamp_of(handle.number) != header.stamp:
                raise LaryError(f"{header.path} was changed while it was in use: start again.")
            found = map_rows(header, handle) if self._mode == "mmap" else handle
            self._open[file] = found
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
            return found


class OpenFile:
    """A file descriptor that is closed with the last who knows it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def most_files() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:
        return 512
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 65536 if soft == resource.RLIM_INFINITY else max(int(soft), 64)


def map_rows(header: ShardHeader, handle: OpenFile) -> torch.Tensor:
    """The rows of a shard in memory, (R, values) in the shard's number format, read from disk when touched."""
    import torch

    # Private and writable, though nobody writes: torch warns of memory that it must not write to.
    mapped = mmap.mmap(handle.number, header.stamp[1], flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    count = len(header) * header.row_values
    kind = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[header.dtype]
    return torch.frombuffer(mapped, dtype=kind, count=count, offset=header.start).view(len(header), -1)


class ShardSource:
    """A `StoredLatents` over rows of shards.

    Args:
        headers: of the shards, all with one shape and number format.
        files, positions: (n,) for each sample its shard and its row there.
        mode: ``mmap`` or ``pread``.

    Raises:
        LaryError: no rows, or shards that don't fit together.
    """

    def __init__(
        self, headers: Sequence[ShardHeader], files: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], mode: str
    ) -> None:
        if not len(files):
            raise LaryError("There are no latents to read.")
        first = headers[int(files[0])]
        for header in headers:
            if (header.shape, header.dtype, header.store) != (first.shape, first.dtype, first.store):
                raise LaryError(
                    f"{header.path} holds {header.dtype} latents {header.shape} of store {header.store}, {first.path} "
                    f"{first.dtype} {first.shape} of {first.store}: one table must hold latents of one extraction."
                )
        sizes = np.array([len(header) for header in headers])
        if ((positions < 0) | (positions >= sizes[files])).any():
            raise LaryError(f"{first.path.parent} has shards with fewer rows than were asked for: extract again.")
        self.headers, self.mode = tuple(headers), mode
        self._file, self._position = files, positions
        self._first = first
        self._open = OpenFiles(self.headers, mode)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._first.shape

    def __len__(self) -> int:
        return len(self._file)

    @property
    def bytes_on_disk(self) -> int:
        return len(self) * self._first.row_bytes

    def take(self, positions: Collection[int]) -> ShardSource:
        """Some of the samples."""
        chosen = np.fromiter(positions, dtype=np.int64, count=len(positions))
        return ShardSource(self.headers, self._file[chosen], self._position[chosen], self.mode)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Tokens of the samples at `rows`, (B, *shape) float32. Raises LaryError for a file that became shorter."""
        import torch

        chosen = np.asarray(rows, dtype=np.int64)
        files, positions = self._file[chosen], self._position[chosen]
        order = np.lexsort((positions, files))  # in the order on disk
        found: Floats = np.empty((len(chosen), self._first.row_values), dtype=np.float32)  # numpy asks for huge pages
        out = torch.from_numpy(found)
        if self.mode == "mmap":
            for place, file, position in zip(
                order.tolist(), files[order].tolist(), positions[order].tolist(), strict=True
            ):
                convert(self._open.get(file)[position], out[place])
        else:
            self._fetch(out, order, files[order], positions[order])
        return found.reshape(len(chosen), *self.shape)

    def _fetch(self, out: torch.Tensor, order: Any, files: Any, positions: Any) -> None:
        """Positioned reads into `out`, rows that lie side by side in one."""
        import torch

        dtype, raw = self._first.dtype, out
        if dtype != "float32":
            stored = np.empty(out.shape, dtype=np.int16)  # bits of the number format
            raw = torch.from_numpy(stored).view(getattr(torch, dtype))

        def fetch(places: list[int], file: int, position: int) -> None:
            header, handle = self.headers[file], self._open.get(file)
            buffers = [raw[place].view(torch.uint8).numpy().data for place in places]
            read_into(handle.number, buffers, header.start + position * header.row_bytes, header.path)
            for place in places if raw is not out else ():
                convert(raw[place], out[place])

        def fetch_all(parts: list[tuple[list[int], int, int]]) -> None:
            for part in parts:
                fetch(*part)

        parts = list(neighbours(order, files, positions))
        with ThreadPoolExecutor(AT_ONCE) as pool:  # a task for each thread: one per run costs as much as its read
            list(pool.map(fetch_all, (parts[first::AT_ONCE] for first in range(min(AT_ONCE, len(parts))))))

    def codes(self, rows: Collection[int]) -> list[npt.NDArray[Any] | None]:
        """Codes of samples."""
        found: list[npt.NDArray[Any] | None] = []
        for row in rows:
            header, position = self.headers[self._file[row]], int(self._position[row])
            if header.codes is None:
                found.append(None)
                continue
            with descriptor(header) as handle:
                found.append(read_codes(header, handle, position))
        return found


def neighbours(order: Any, files: Any, positions: Any) -> Iterator[tuple[list[int], int, int]]:
    """Runs of rows that lie side by side in a shard: their places in the output, the shard, the first row there."""
    breaks = (np.diff(files) != 0) | (np.diff(positions) != 1)
    starts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(order)]
    for start, end in pairwise(starts):
        for begin in range(start, end, MOST_BUFFERS):
            stop = min(begin + MOST_BUFFERS, end)
            yield order[begin:stop].tolist(), int(files[begin]), int(positions[begin])


def read_into(handle: int, buffers: list[memoryview], place: int, path: Path) -> None:
    """Fill buffers, one behind the other, from a place of a file. Raises LaryError where the file ends before."""
    while buffers:
        count = os.preadv(handle, buffers, place)
        if count <= 0:
            raise broken(path, "it ends before its last row")
        place += count
        while buffers and count >= len(buffers[0]):
            count -= len(buffers.pop(0))
        if count:
            buffers[0] = buffers[0][count:]


@contextmanager
def descriptor(header: ShardHeader) -> Iterator[int]:
    """A shard, open for positioned reads."""
    handle = open_plain(header.path)
    try:
        if stamp_of(handle) != header.stamp:
            raise LaryError(f"{header.path} was changed while it was in use: start again.")
        yield handle
    finally:
        os.close(handle)


def read_codes(header: ShardHeader, handle: int, position: int) -> npt.NDArray[Any]:
    """The codes of one row."""
    assert header.codes is not None
    start, kind, shape = header.codes
    found = np.empty(shape, dtype=kind)
    flat = found.reshape(-1).data.cast("B")
    read_into(handle, [flat], start + position * header.code_bytes, header.path)
    return found


def read_stored(header: ShardHeader, handle: int, position: int) -> npt.NDArray[Any]:
    """The tokens of one row as they are stored, bfloat16 as uint16."""
    found = np.empty(header.shape, dtype=STORED[header.dtype])
    flat = found.reshape(-1).data.cast("B")
    read_into(handle, [flat], header.start + position * header.row_bytes, header.path)
    return found
