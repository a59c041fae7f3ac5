"""Reading latents from files, which are untrusted.

An ``.npz`` holds ``tokens`` and ``indices`` of one sample; its zip comment names
the sample and the store. A shard is a safetensors file with ``tokens`` (R, P, N,
D) or (R, N, D) and perhaps ``codes`` (R, P, N); its metadata hold the store's
key and of every row the row in the table, the sample id and the CRC-32.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from lary.arrays import BROKEN, Array, Floats, Ints, read_npz
from lary.configs import LatentDtype
from lary.files import open_regular, regular_handle
from lary.latents.store import SHARDS, copy_numbers, token_shape
from lary.runtime import in_threads
from lary.types import JsonDict, LaryError, MediaError

MOST_BYTES = 1 << 30
"""Most bytes of an array in an .npz; the benchmark's largest has 19 MB."""
THREADS = 8

LONGEST_END = 1 << 12
"""Bytes at the end of an .npz that hold its stamp."""
VERSION = "lary-latents-1"
TOKEN_TYPES: dict[str, LatentDtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODE_TYPES = {"U8": "|u1", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
"""Bytes of a number by the tag of its format in a shard."""
STORED: dict[LatentDtype, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""numpy's type by number format; bits of bfloat16 are read as uint16."""
MOST_OPEN = 256
"""Shards open at once: a process usually has a thousand files."""
MOST_KEPT = 1 << 26
"""Most bytes of a batch that are kept for the next one."""


# One file per sample


@dataclass(frozen=True)
class Stamp:
    """The zip comment of one file: sample id, key of the store, model."""

    sample: str
    store: str
    model: str


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None if it is missing, torn or of another program."""
    try:
        with regular_handle(path) as handle:
            size = os.fstat(handle).st_size
            end = os.pread(handle, LONGEST_END, max(0, size - LONGEST_END))
        # `zipfile` takes five times as long: it reads
        # the names of what is in the archive, too.
        at = end.rindex(b"PK\5\6")
        *_, length, place, comment = struct.unpack_from("<4s4H2LH", end, at)
        whole = place + length + 22 + comment == size
        return Stamp(**json.loads(end[at + 22 :])) if whole else None
    except (*BROKEN, TypeError):
        return None


def read_stamps(folder: Path, names: Sequence[str]) -> Iterator[Stamp | None]:
    return in_threads(lambda name: read_stamp(folder / name), names, THREADS, batch=32)


def read_array(path: Path, name: str) -> Array | None:
    """A numeric array of a file, or None if it isn't there. Raises MediaError."""
    try:
        (array,) = read_npz(path, name, largest=MOST_BYTES)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"'{name}' holds {array.dtype}, not numbers")
        return array
    except KeyError:
        return None
    except FileNotFoundError:
        raise MediaError(f"The latents {path} do not exist: extract them again.") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"The latents {path} can't be read ({error}): extract them again.") from error


def read_tokens(path: Path) -> Array:
    """Stored tokens of one sample, (P, N, D) or (N, D). Raises MediaError."""
    tokens = read_array(path, "tokens")
    if tokens is None:
        raise MediaError(f"The latents {path} can't be read (no array 'tokens'): extract them again.")
    if not tokens.ndim or not tokens.size:
        raise MediaError(f"The latents {path} have the shape {tokens.shape}, not (P, N, D), (N, D) or (D,).")
    return tokens.reshape(token_shape(tokens.shape))


def stamp_of(file: int | Path) -> tuple[int, int, int]:
    """Inode, size and time of change."""
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


class NpzSource:
    """A `LatentSource` of ``.npz`` files, one per sample; none may be replaced meanwhile."""

    def __init__(self, files: Sequence[Path], stamps: Sequence[object] = ()) -> None:
        self.files = tuple(files)
        self.stamps = tuple(stamps or map(stamp_of, files))
        self.shape = tuple(read_tokens(self.files[0]).shape)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Sequence[int] | Ints) -> Floats:
        out = np.empty((len(rows), *self.shape), dtype=np.float32)
        for position, row in enumerate(rows):
            tokens = read_tokens(self.files[row])
            if stamp_of(self.files[row]) != self.stamps[row]:
                raise LaryError(f"{self.files[row]} was changed while it was in use: start again.")
            if tokens.shape != self.shape:
                files = f"{self.files[0]} and {self.files[row]}"
                raise LaryError(f"{files} have latents of different shapes: one table must hold latents of one model.")
            out[position] = tokens
        return out

    def take(self, positions: Collection[int]) -> NpzSource:
        return NpzSource([self.files[place] for place in positions], [self.stamps[place] for place in positions])

    def codes(self, rows: Collection[int]) -> list[Array | None]:
        found = [read_array(self.files[row], "indices") for row in rows]
        return [codes if codes is not None and codes.size else None for codes in found]


# Shards

Place = tuple[int, np.dtype[Any], tuple[int, ...]]
"""First byte of a tensor in a shard, numpy's format, shape of one row."""


@dataclass(frozen=True)
class ShardHeader:
    """What a shard holds; made by `read_shard`, so all of it fits the file.

    Attributes:
        rows: (R,) int64, rows of the table, ascending.
        samples: R sample ids.
        checksums: (R,) uint32, of each row's tokens and codes.
    """

    path: Path
    store: str
    model: str
    dtype: LatentDtype
    tokens: Place
    codes: Place | None
    rows: Ints
    samples: tuple[str, ...]
    checksums: npt.NDArray[np.uint32]
    stamp: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens[2]

    def positions(self) -> dict[int, tuple[str, int]]:
        """Sample id and position in the shard by row of the table."""
        pairs = enumerate(zip(self.rows.tolist(), self.samples, strict=True))
        return {row: (sample, position) for position, (row, sample) in pairs}


def open_own(path: Path) -> Any:
    """Open a file of a store. Raises LaryError for a link, which could lead anywhere."""
    if path.is_symlink():
        raise LaryError(f"{path} is a link: a store holds files only.")
    return open_regular(path)


def read_shard(path: Path) -> ShardHeader:
    """The header of a shard, checked against its file. Raises LaryError."""
    try:
        with open_own(path) as file:
            stamp = stamp_of(file.fileno())
            with safe_open(path, "np"):  # the library checks every tensor's place against the file's size
                length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        return _checked(path, header, 8 + length, stamp)
    except OSError as error:
        raise LaryError(f"The latents {path} can't be opened ({error.strerror}): extract them again.") from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise LaryError(
            f"{path} is damaged or no shard of latents: its header is wrong ({type(error).__name__}: {error}). Extract "
            "its rows again."
        ) from error


def _checked(path: Path, header: JsonDict, start: int, stamp: tuple[int, int, int]) -> ShardHeader:
    """Check a header whose tensors the library has checked. Raises built-in errors."""
    facts, tokens, codes = header.pop("__metadata__"), header.pop("tokens"), header.pop("codes", None)
    if header or facts["format"] != VERSION:
        raise ValueError(f"expected tokens and codes in the format {VERSION}")
    dtype, count = TOKEN_TYPES[tokens["dtype"]], tokens["shape"][0]
    if not 2 <= len(tokens["shape"]) <= 5:
        raise ValueError(f"tokens of shape {tokens['shape']}")

    def place(tensor: JsonDict, kind: str) -> Place:
        if tensor["shape"][0] != count:
            raise ValueError(f"{tensor['shape'][0]} rows beside {count}")
        return start + tensor["data_offsets"][0], np.dtype(kind), tuple(tensor["shape"][1:])

    # The values of metadata are strings: lists are joined by commas.
    listed = {name: facts[name].split(",") if facts[name] else [] for name in ("rows", "samples", "checksums")}
    if any(len(values) != count for values in listed.values()):
        raise ValueError(f"rows, samples and checksums that are not {count}")
    rows = np.array([int(part) for part in listed["rows"]], dtype=np.int64)
    if len(rows) and (rows[0] < 0 or (np.diff(rows) <= 0).any()):
        raise ValueError("its rows don't ascend")
    return ShardHeader(
        path,
        str(facts["store"]),
        str(facts["model"]),
        dtype,
        place(tokens, STORED[dtype]),
        None if codes is None else place(codes, CODE_TYPES[codes["dtype"]]),
        rows,
        tuple(listed["samples"]),
        np.array([int(part, 16) for part in listed["checksums"]], dtype=np.uint32),
        stamp,
    )


def scan_shards(folder: Path, key: str | None, problems: list[str]) -> Iterator[ShardHeader]:
    """Headers of a folder's shards, oldest of a unit first; adds `problems` of others."""

    def order(file: Path) -> list[int]:  # unit and further number; other names come last
        parts = file.name.removesuffix(".safetensors").split("_")[1:]
        return [int(part) if part.isascii() and part.isdigit() else 1 << 62 for part in parts]

    for file in sorted(folder.glob(SHARDS), key=order):
        try:
            header = read_shard(file)
        except LaryError as error:
            problems.append(str(error))
            continue
        if key is not None and header.store != key:
            problems.append(f"{file} belongs to another store.")
        else:
            yield header


class OpenShard:
    """An open shard, closed when nothing refers to it any more."""

    def __init__(self, header: ShardHeader) -> None:
        self.header = header
        with open_own(header.path) as file:
            self.handle = os.dup(file.fileno())
        if stamp_of(self.handle) != header.stamp:
            raise LaryError(f"{header.path} was changed while it was in use: start again.")

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)

    def read_into(self, data: memoryview, place: int) -> None:
        """Fill memory from a byte offset. Raises LaryError if the file ends early."""
        while data:
            size = os.preadv(self.handle, [data], place)
            if size <= 0:
                raise LaryError(f"{self.header.path} is damaged: it ends before its last row. Extract its rows again.")
            data, place = data[size:], place + size

    def read_cached(self, data: memoryview, place: int) -> bool:
        """Fill memory as `read_into` if that needs no disk; else announce the read."""
        try:
            if os.preadv(self.handle, [data], place, os.RWF_NOWAIT) == len(data):
                return True
        except (OSError, AttributeError):  # not cached, or a system without such reads
            pass
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.handle, place, len(data), os.POSIX_FADV_WILLNEED)
        return False

    def row(self, position: int) -> tuple[Array, Array | None]:
        """Tokens and codes, or None, of one row as stored; bfloat16 as uint16."""
        found: list[Any] = []
        for place in (self.header.tokens, self.header.codes):
            if place is None:
                return found[0], None
            found.append(np.empty(place[2], dtype=place[1]))
            self.read_into(found[-1].reshape(-1).data.cast("B"), place[0] + position * found[-1].nbytes)
        return found[0], found[1]


class ShardSource:
    """A `LatentSource` of rows in shards; `files`, `positions` (n,): each sample's shard, and its row there.

    Raises LaryError for shards of several shapes, number formats or stores.
    """

    kind: Any = np.float32  # of the numbers that `read` returns

    def __init__(self, headers: Sequence[ShardHeader], files: Ints, positions: Ints) -> None:
        kinds = {(header.shape, header.dtype, header.store): header.path for header in headers}
        if len(kinds) > 1:
            paths = " and ".join(map(str, kinds.values()))
            raise LaryError(f"{paths} are of different extractions: one table must hold latents of one.")
        sizes = np.array([len(header.samples) for header in headers])
        if ((positions < 0) | (positions >= sizes[files])).any():
            folder = headers[0].path.parent
            raise LaryError(f"{folder} has shards with fewer rows than were asked for: extract again.")
        self.headers, self.shape, self.dtype = tuple(headers), headers[0].shape, headers[0].dtype
        self._file, self._position = files, positions
        # The cache must not refer to this object: a cycle keeps files open.
        self._open = lru_cache(MOST_OPEN)(lambda file: OpenShard(headers[file]))
        self._spare: list[mmap.mmap] = []

    def __reduce__(self) -> Any:
        return type(self), (self.headers, self._file, self._position)

    def __len__(self) -> int:
        return len(self._file)

    def take(self, positions: Collection[int]) -> ShardSource:
        chosen = np.fromiter(positions, dtype=np.int64, count=len(positions))
        return ShardSource(self.headers, self._file[chosen], self._position[chosen])

    def read(self, rows: Sequence[int] | Ints) -> Floats:
        import torch

        chosen = np.asarray(rows, dtype=np.int64)
        found = self._memory((len(chosen), *self.shape))
        out = torch.from_numpy(found.reshape(len(chosen), math.prod(self.shape)))
        raw = torch.empty(math.prod(self.shape), dtype=getattr(torch, self.dtype))
        out = out.view(raw.dtype) if out.dtype == torch.uint16 else out
        data = raw.view(torch.uint8).numpy().data
        order = np.lexsort((self._position[chosen], self._file[chosen]))  # as on disk
        places = order, self._file[chosen[order]], self._position[chosen[order]]
        # All rows that aren't cached are announced first, so that a disk or a
        # network fetches them at once: 1.5 to 4 times as fast.
        absent = []
        for place, file, row in zip(*(own.tolist() for own in places), strict=True):
            shard = self._open(file)
            start = shard.header.tokens[0] + len(data) * row
            if shard.read_cached(data, start):
                copy_numbers(raw, out[place])
            else:
                absent.append((place, shard, start))
        for place, shard, start in absent:
            shard.read_into(data, start)
            copy_numbers(raw, out[place])
        return found

    def _memory(self, shape: tuple[int, ...]) -> Floats:
        """Memory for a batch: that of an earlier one which is out of use.

        Fresh pages cost as much time as filling them with numbers.
        """
        size = math.prod(shape) * np.dtype(self.kind).itemsize
        memory = self._spare.pop() if self._spare else None
        if memory is None or len(memory) < size:
            memory = mmap.mmap(-1, max(size, 1))
        found = np.frombuffer(memory, self.kind, math.prod(shape))
        # Every view refers to `found`, since that doesn't own its memory.
        if len(memory) <= MOST_KEPT:
            weakref.finalize(found, self._spare.append, memory).atexit = False
        return found.reshape(shape)

    def codes(self, rows: Collection[int]) -> list[Array | None]:
        return [self._open(int(self._file[row])).row(int(self._position[row]))[1] for row in rows]
