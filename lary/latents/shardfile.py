"""One shard of latents: its header, validated, and random access to its rows.

Rows are read through a memory map, or by positioned reads where the file system is a network's: a map waits for one
page after another, which a network makes slow, and a server that is gone ends the process. Which one is taken depends
on the kind of file system, or on the setting ``LARY_READ``.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psutil
from safetensors import SafetensorError, safe_open

from lary.configs import LatentDtype
from lary.files import open_regular
from lary.latents.store import SHARDS, Floats, copy_numbers
from lary.types import LaryError, UsageError

if TYPE_CHECKING:
    import torch

VERSION = "lary-latents-1"
TOKEN_TYPES: dict[str, LatentDtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODE_TYPES = {"U8": "|u1", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
CODE_TAGS = {np.dtype(name): tag for tag, name in CODE_TYPES.items()}
STORED: dict[LatentDtype, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""How numpy sees the bytes of a number format; it has no bfloat16."""

LARY_READ = "LARY_READ"
MODES = ("mmap", "pread")
NETWORKS = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "panfs", "smb3", "smbfs", "virtiofs", "wekafs",
)  # fmt: skip
AT_ONCE = 16
"""Positioned reads at a time: a network needs patience for many, not speed for one."""


@dataclass(frozen=True)
class ShardHeader:
    """What a shard holds; made by `read_shard`, so all of it fits the file.

    Attributes:
        start: first byte of the tokens.
        shape: of one row's tokens.
        codes: first byte, number format and shape of one row's codes; None without.
        rows: numbers (R,) int64 in the table, ascending.
        samples: R ids.
        checksums: (R,) uint32, of the bytes of tokens and codes of each row.
        stamp: file number, size and time of change, which show whether the file is still the same.
    """

    path: Path
    store: str
    model: str
    dtype: LatentDtype
    start: int
    shape: tuple[int, ...]
    codes: tuple[int, np.dtype[Any], tuple[int, ...]] | None
    rows: npt.NDArray[np.int64]
    samples: tuple[str, ...]
    checksums: npt.NDArray[np.uint32]
    stamp: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's tokens."""
        return math.prod(self.shape) * np.dtype(STORED[self.dtype]).itemsize


def stamp_of(handle: int) -> tuple[int, int, int]:
    """What shows whether a file has been exchanged or changed."""
    found = os.fstat(handle)
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_no_link(path: Path) -> None:
    """Refuse a link, whose target may be exchanged. Raises LaryError."""
    if path.is_symlink():
        raise LaryError(f"{path} is a link: a store holds files only.")


def cannot_open(path: Path, error: OSError) -> LaryError:
    """The error for latents that can't be opened."""
    return LaryError(f"The latents {path} can't be opened ({error.strerror}): extract them again.")


def read_shard(path: Path) -> ShardHeader:
    """The header of a shard, every statement of which was checked against the file.

    Raises:
        LaryError: the file is missing, a link, torn, or its header is wrong.
    """
    check_no_link(path)
    try:
        with open_regular(path) as file:
            stamp = stamp_of(file.fileno())
            with safe_open(path, "np"):  # the library checks every tensor's place against the file's size
                length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        return _checked(path, header, 8 + length, stamp)
    except OSError as error:
        raise cannot_open(path, error) from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise LaryError(
            f"{path} is damaged or no shard of latents: its header is wrong ({type(error).__name__}: {error}). Extract "
            "its rows again."
        ) from error


def _checked(path: Path, header: dict[str, Any], start: int, stamp: tuple[int, int, int]) -> ShardHeader:
    """A header whose tensors the library has checked. Raises one of Python's errors for what contradicts itself."""
    facts, tensors = header.pop("__metadata__"), set(header)
    if facts["format"] != VERSION:
        raise ValueError(f"expected the format {VERSION}")
    if not {"tokens"} <= tensors <= {"tokens", "codes"}:
        raise ValueError(f"it lists the tensors {', '.join(tensors) or 'none'}")
    dtype, shape = TOKEN_TYPES[header["tokens"]["dtype"]], tuple(header["tokens"]["shape"])
    if not 2 <= len(shape) <= 5:
        raise ValueError(f"tokens of shape {shape}")
    codes = None
    if "codes" in header:
        more = header["codes"]
        if more["shape"][0] != shape[0]:
            raise ValueError(f"{more['shape'][0]} rows of codes beside {shape[0]} of tokens")
        codes = (start + more["data_offsets"][0], np.dtype(CODE_TYPES[more["dtype"]]), tuple(more["shape"][1:]))
    rows = np.array([int(part) for part in _listed(facts["rows"])], dtype=np.int64)
    samples = _listed(facts["samples"])
    checksums = np.array([int(part, 16) for part in _listed(facts["checksums"])], dtype=np.uint32)
    if not len(rows) == len(samples) == len(checksums) == shape[0]:
        raise ValueError(f"{len(rows)} rows, {len(samples)} samples, {len(checksums)} checksums for {shape[0]} rows")
    if len(rows) and (rows[0] < 0 or (np.diff(rows) <= 0).any()):
        raise ValueError("its rows don't ascend")
    return ShardHeader(
        path, str(facts["store"]), str(facts["model"]), dtype, start + header["tokens"]["data_offsets"][0], shape[1:],
        codes, rows, tuple(samples), checksums, stamp,
    )  # fmt: skip


def _listed(text: str) -> list[str]:
    """The parts of a list in the metadata, whose values are strings."""
    return text.split(",") if text else []


def scan_shards(folder: Path, key: str | None) -> tuple[list[ShardHeader], list[str]]:
    """Headers of a folder's shards, those of a unit from the oldest to the newest, and what is wrong with others."""
    found, problems = [], []
    for file in sorted(folder.glob(SHARDS), key=_unit_order):
        try:
            header = read_shard(file)
        except LaryError as error:
            problems.append(str(error))
            continue
        if key is not None and header.store != key:
            problems.append(f"{file} belongs to another store.")
        else:
            found.append(header)
    return found, problems


def _unit_order(file: Path) -> tuple[int, int]:
    """Unit and further number of a shard; other names come last."""
    parts = file.name.removesuffix(".safetensors").split("_")[1:]
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        return (1 << 62, 0)
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else 0


def read_mode(folder: Path, asked: str | None = None) -> str:
    """How to read files of a folder: as asked, else by its file system. Raises UsageError for another word."""
    if asked is not None:
        if asked not in MODES:
            raise UsageError(f"LARY_READ={asked}: expected {' or '.join(MODES)}.")
        return asked
    place = str(folder.resolve())
    mounts = [
        each for each in psutil.disk_partitions(all=True) if f"{place}/".startswith(f"{each.mountpoint.rstrip('/')}/")
    ]
    kind = max(mounts, key=lambda each: len(each.mountpoint)).fstype if mounts else ""
    return "pread" if kind in NETWORKS or kind.startswith("fuse.") else "mmap"


class OpenShard:
    """A shard that is open; closed with the last who knows it."""

    def __init__(self, header: ShardHeader) -> None:
        self.header, self.handle = header, -1
        check_no_link(header.path)
        try:
            self.handle = os.open(header.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise cannot_open(header.path, error) from error
        if stamp_of(self.handle) != header.stamp:
            raise LaryError(f"{header.path} was changed while it was in use: start again.")

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)

    def mapped(self) -> torch.Tensor:
        """The rows in memory, (R, values) in the shard's number format, read from the disk when touched."""
        import torch

        # Private and writable, though nobody writes: torch warns of memory that it must not write to.
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        memory = mmap.mmap(self.handle, self.header.stamp[1], flags=mmap.MAP_PRIVATE, prot=protection)
        rows, values = len(self.header), math.prod(self.header.shape)
        kind = getattr(torch, self.header.dtype)
        return torch.frombuffer(memory, dtype=kind, count=rows * values, offset=self.header.start).view(rows, values)

    def read_into(self, array: npt.NDArray[Any], place: int) -> None:
        """Fill an array by positioned reads. Raises LaryError where the file ends before."""
        data = array.reshape(-1).data.cast("B")
        while data:
            size = os.preadv(self.handle, [data], place)
            if size <= 0:
                raise LaryError(f"{self.header.path} is damaged: it ends before its last row. Extract its rows again.")
            data, place = data[size:], place + size

    def tokens(self, position: int) -> npt.NDArray[Any]:
        """The tokens of one row as they are stored, bfloat16 as uint16."""
        found = np.empty(self.header.shape, dtype=STORED[self.header.dtype])
        self.read_into(found, self.header.start + position * self.header.row_bytes)
        return found

    def codes(self, position: int) -> npt.NDArray[Any] | None:
        """The codes of one row; None without."""
        if self.header.codes is None:
            return None
        start, kind, shape = self.header.codes
        found = np.empty(shape, dtype=kind)
        self.read_into(found, start + position * found.nbytes)
        return found


def most_files() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 65536 if soft == resource.RLIM_INFINITY else max(int(soft), 64)


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
        self._file, self._position, self._first = files, positions, first
        # The least used shards are closed, so that the process may open other files; the cache must not refer to
        # this object, or both would stay until the garbage collector runs.
        self._open = lru_cache(most_files() // 4)(partial(_opened, self.headers, mode))

    def __reduce__(self) -> Any:
        return type(self), (self.headers, self._file, self._position, self.mode)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._first.shape

    def __len__(self) -> int:
        return len(self._file)

    def take(self, positions: Collection[int]) -> ShardSource:
        """Some of the samples."""
        chosen = np.fromiter(positions, dtype=np.int64, count=len(positions))
        return ShardSource(self.headers, self._file[chosen], self._position[chosen], self.mode)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Tokens of the samples at `rows`, (B, *shape) float32. Raises LaryError for a file that became shorter."""
        import torch

        chosen = np.asarray(rows, dtype=np.int64)
        found: Floats = np.empty((len(chosen), math.prod(self.shape)), dtype=np.float32)  # numpy asks for huge pages
        out = torch.from_numpy(found)
        groups = list(self._groups(chosen))
        if self.mode == "pread":
            singly = [(shard, *row) for shard, _, places in groups for row in places]
            with ThreadPoolExecutor(AT_ONCE) as pool:  # a task for each thread: one per row costs as much as its read
                list(pool.map(lambda first: _fetch(out, singly[first::AT_ONCE]), range(AT_ONCE)))
            return found.reshape(len(chosen), *self.shape)
        size = self._first.row_bytes
        for shard, _, places in groups if hasattr(os, "posix_fadvise") else ():
            for _, position in places:  # all of them, before the first one is waited for
                os.posix_fadvise(shard.handle, shard.header.start + position * size, size, os.POSIX_FADV_WILLNEED)
        for _, stored, places in groups:
            for place, position in places:
                copy_numbers(stored[position], out[place])
        return found.reshape(len(chosen), *self.shape)

    def _groups(self, chosen: npt.NDArray[np.int64]) -> Iterator[tuple[OpenShard, Any, list[tuple[int, int]]]]:
        """Rows by shard, in the order on disk: the shard, its rows in memory, and place here with position there."""
        files, positions = self._file[chosen], self._position[chosen]
        order = np.lexsort((positions, files))
        ends = [0, *(np.flatnonzero(np.diff(files[order])) + 1).tolist(), len(order)]
        for start, end in pairwise(ends) if len(order) else ():
            part = order[start:end]
            yield *self._open(int(files[part[0]])), list(zip(part.tolist(), positions[part].tolist(), strict=True))

    def codes(self, rows: Collection[int]) -> list[npt.NDArray[Any] | None]:
        """Codes of samples."""
        return [self._open(int(self._file[row]))[0].codes(int(self._position[row])) for row in rows]


def _opened(headers: Sequence[ShardHeader], mode: str, file: int) -> tuple[OpenShard, Any]:
    """A shard, and its rows in memory where they are mapped."""
    shard = OpenShard(headers[file])
    return shard, shard.mapped() if mode == "mmap" else None


def _fetch(out: torch.Tensor, rows: Sequence[tuple[OpenShard, int, int]]) -> None:
    """Read rows of shards, each with its place in `out` and its position in the shard."""
    import torch

    for shard, place, position in rows:
        bits = torch.from_numpy(shard.tokens(position).reshape(-1).view(np.uint8))
        copy_numbers(bits.view(getattr(torch, shard.header.dtype)), out[place])
