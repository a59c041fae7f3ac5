"""One shard: a safetensors file with the tokens of many rows, written row by row in any order and read with suspicion.

Layout (https://github.com/huggingface/safetensors, "Format"): the length of the header in 8 bytes, the header in JSON,
then the tensors ``tokens`` (R, P, N, D) or (R, N, D) and, for models with a codebook, ``codes`` (R, P, N), without
gaps. The header's ``__metadata__`` holds the store's key, and for every row its number in the table, its sample id and
the CRC-32 of its bytes. CRC-32 because the standard library has it at 3 GB/s, outside of the interpreter's lock; it
finds a damaged disk or copy, which is what it is for, and no forger.

The same rows give the same bytes, in whatever order they came. The header is read here and not by the library because
rows are read from their offsets in the file, for which the library has no words.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary import direct
from lary.configs import LatentDtype
from lary.types import LaryError

VERSION = "lary-latents-1"
LONGEST_HEADER = 64 << 20
MOVED = 8 << 20
TOKEN_TYPES: dict[str, LatentDtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TAGS = {name: tag for tag, name in TOKEN_TYPES.items()}
STORED: dict[LatentDtype, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""How numpy sees the bytes of a number format; it has no bfloat16."""
CODE_TYPES = {"U8": "|u1", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
CODE_TAGS = {np.dtype(name): tag for tag, name in CODE_TYPES.items()}


@dataclass(frozen=True)
class ShardHeader:
    """What a shard holds; made by `read_header`, so all of it fits the file.

    Attributes:
        start: first byte of the tokens.
        shape: of one row's tokens.
        codes: first byte, number format and shape of one row's codes; None without.
        rows: numbers (R,) int64 in the table, ascending.
        samples: R ids.
        checksums: (R,) uint32, of the bytes of tokens and codes of each row.
        stamp: file number, size and time of change, which tell whether the file is still the same.
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
    def row_values(self) -> int:
        """Numbers per row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's tokens."""
        return self.row_values * np.dtype(STORED[self.dtype]).itemsize

    @property
    def code_bytes(self) -> int:
        """Bytes of one row's codes."""
        return 0 if self.codes is None else math.prod(self.codes[2]) * self.codes[1].itemsize


def open_plain(path: Path) -> int:
    """A descriptor of a regular file that is no link. Raises LaryError."""
    flags = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))  # a pipe must not make us wait
    try:
        handle = os.open(path, functools.reduce(operator.or_, flags, os.O_RDONLY))
    except OSError as error:
        if path.is_symlink():
            raise LaryError(f"{path} is a link: a store holds files only.") from error
        raise LaryError(f"The latents {path} can't be opened ({error.strerror}): extract them again.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise LaryError(f"{path} is no regular file: it is no shard of latents.")
    return handle


def stamp_of(handle: int) -> tuple[int, int, int]:
    """What tells whether a file has been exchanged or changed."""
    found = os.fstat(handle)
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_header(path: Path) -> ShardHeader:
    """The header of a shard, every statement of which was held against the file.

    Raises:
        LaryError: the file is missing, a link, torn, or its header is wrong; says which and where.
    """
    handle = open_plain(path)
    try:
        stamp = stamp_of(handle)
        prefix = os.pread(handle, 8, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(stamp[1] - 8, LONGEST_HEADER):
            raise broken(path, f"its header claims {length} bytes of a file of {stamp[1]}")
        text = os.pread(handle, length, 8)
    finally:
        os.close(handle)
    try:
        header = json.loads(text.decode(), object_pairs_hook=only_once)
        return check_header(path, header, 8 + length, stamp)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise broken(path, f"its header is wrong ({type(error).__name__}: {error})") from error


def broken(path: Path, reason: str) -> LaryError:
    """The error for a file that is no shard."""
    return LaryError(f"{path} is damaged or no shard of latents: {reason}. Extract its rows again.")


def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON none of whose names stands there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def check_header(path: Path, header: dict[str, Any], start: int, stamp: tuple[int, int, int]) -> ShardHeader:
    """A header from JSON. Raises one of Python's errors for values that are wrong, LaryError for contradictions."""
    facts = header.pop("__metadata__")
    if facts.pop("format") != VERSION:
        raise ValueError(f"expected the format {VERSION}")
    if not {"tokens"} <= set(header) <= {"tokens", "codes"}:
        raise ValueError(f"it lists the tensors {', '.join(header) or 'none'}")
    shape, end = check_tensor(header["tokens"], 0, np.dtype(STORED[TOKEN_TYPES[header["tokens"]["dtype"]]]).itemsize)
    codes = None
    if "codes" in header:
        kind = np.dtype(CODE_TYPES[header["codes"]["dtype"]])
        code_shape, code_end = check_tensor(header["codes"], end, kind.itemsize)
        if code_shape[0] != shape[0]:
            raise ValueError(f"{code_shape[0]} rows of codes beside {shape[0]} of tokens")
        codes, end = (start + end, kind, code_shape[1:]), code_end
    if start + end != stamp[1]:
        raise ValueError(f"its tensors end at byte {start + end} of a file of {stamp[1]}")
    rows = np.array([int(part) for part in listed(facts["rows"])], dtype=np.int64)
    samples = listed(facts["samples"])
    checksums = np.array([int(part, 16) for part in listed(facts["checksums"])], dtype=np.uint32)
    if not len(rows) == len(samples) == len(checksums) == shape[0]:
        raise ValueError(f"{len(rows)} rows, {len(samples)} samples, {len(checksums)} checksums for {shape[0]} rows")
    if len(rows) and (rows[0] < 0 or (np.diff(rows) <= 0).any()):
        raise ValueError("its rows don't ascend")
    dtype = TOKEN_TYPES[header["tokens"]["dtype"]]
    return ShardHeader(
        path, str(facts["store"]), str(facts["model"]), dtype, start, shape[1:], codes, rows, tuple(samples),
        checksums, stamp,
    )  # fmt: skip


def listed(text: str) -> list[str]:
    """The parts of a list in the metadata, whose values are strings."""
    return text.split(",") if text else []


def check_tensor(facts: dict[str, Any], begin: int, itemsize: int) -> tuple[tuple[int, ...], int]:
    """Shape and end of a tensor that has to begin at a byte of the data. Raises ValueError."""
    shape, offsets = facts["shape"], facts["data_offsets"]
    if set(facts) != {"dtype", "shape", "data_offsets"} or not 2 <= len(shape) <= 5:
        raise ValueError("a tensor is described in another way")
    if any(type(side) is not int or side < 0 for side in [*shape, *offsets]):
        raise ValueError("a size is no natural number")
    if offsets != [begin, begin + math.prod(shape) * itemsize]:
        raise ValueError(f"a tensor {shape} of {itemsize} bytes each claims the bytes {offsets}")
    return tuple(shape), offsets[1]


def header_bytes(
    metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...], int]], least: int = 0
) -> bytes:
    """Length and header, padded with blanks to whole blocks and at least `least` bytes.

    Args:
        tensors: tag, shape and bytes by name, in the file's order.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, (tag, shape, size) in tensors.items():
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header, separators=(",", ":")).encode()
    size = -(-max(least, 8 + len(text)) // direct.BLOCK) * direct.BLOCK
    text += b" " * (size - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


@dataclass
class Spool:
    """A shard in the making: rows go straight to their places in a file, the header comes last.

    Memory holds no tokens. Places are counted from `first`; where one stayed empty, the rows behind it move up once at
    the end. The header always takes the room that one of all places would need.
    """

    handle: int
    capacity: int
    first: int
    dtype: LatentDtype
    facts: dict[str, str]
    shape: tuple[int, ...] | None = None
    codes: tuple[str, tuple[int, ...], int] | None = None
    sample_length: int = 0
    _row_bytes: int = 0
    _reserved: int = 0
    _past_cache: bool = False
    _done: dict[int, tuple[str, int, npt.NDArray[Any] | None]] = field(default_factory=dict)

    def begin(self, shape: tuple[int, ...], sample: str, codes: npt.NDArray[Any] | None) -> None:
        """Learn from the first row what all are like, and with it every row's place."""
        self.shape, self.sample_length = shape, len(sample)
        self.codes = None if codes is None else (CODE_TAGS[codes.dtype], codes.shape, codes.nbytes)
        self._row_bytes = math.prod(shape) * np.dtype(STORED[self.dtype]).itemsize
        rows = range(self.first, self.first + self.capacity)
        self._reserved = len(self._header(rows, [sample] * self.capacity, [0] * self.capacity))
        fits = self._row_bytes >= direct.LEAST and self._row_bytes % direct.BLOCK == 0
        self._past_cache = fits and direct.switch(self.handle, on=True)

    def _header(self, rows: Sequence[int], samples: Sequence[str], checksums: Sequence[int]) -> bytes:
        assert self.shape is not None
        metadata = {
            "format": VERSION, **self.facts,
            "rows": ",".join(map(str, rows)), "samples": ",".join(samples),
            "checksums": ",".join(f"{value:08x}" for value in checksums),
        }  # fmt: skip
        kinds = {"tokens": (TAGS[self.dtype], self.shape, self._row_bytes)}
        if self.codes is not None:
            kinds["codes"] = self.codes
        count = len(rows)
        return header_bytes(
            metadata, {name: (tag, (count, *shape), count * size) for name, (tag, shape, size) in kinds.items()},
            self._reserved,
        )  # fmt: skip

    def put(self, row: int, sample: str, stored: npt.NDArray[Any], codes: npt.NDArray[Any] | None) -> None:
        """Write a row's tokens, in the number format, to their place."""
        data = np.ascontiguousarray(stored).data.cast("B")
        checksum = zlib.crc32(data)
        if codes is not None:
            checksum = zlib.crc32(codes.reshape(-1).data.cast("B"), checksum)
        place = self._reserved + (row - self.first) * self._row_bytes
        if self._past_cache:
            direct.write_past_cache(self.handle, [data], place)
        else:
            write_at(self.handle, data, place)
        self._done[row] = (sample, checksum, codes)

    def __contains__(self, row: int) -> bool:
        return row in self._done

    @property
    def samples(self) -> dict[int, str]:
        """Ids of the rows that are there."""
        return {row: self._done[row][0] for row in sorted(self._done)}

    def seal(self) -> None:
        """Close the gaps, write codes and header; the file is a whole shard then."""
        direct.switch(self.handle, on=False)
        rows = sorted(self._done)
        codes = [self._done[row][2] for row in rows]
        header = self._header(rows, [self._done[row][0] for row in rows], [self._done[row][1] for row in rows])
        end = len(header)
        for first, last in runs(rows):
            source = self._reserved + (first - self.first) * self._row_bytes
            end = move(self.handle, source, end, (last - first + 1) * self._row_bytes)
        for part in codes:
            if part is not None:
                write_at(self.handle, part.reshape(-1).data.cast("B"), end)
                end += part.nbytes
        os.ftruncate(self.handle, end)
        write_at(self.handle, memoryview(header), 0)


def runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of successive numbers."""
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and row == found[-1][1] + 1:
            found[-1] = (found[-1][0], row)
        else:
            found.append((row, row))
    return found


def write_at(handle: int, data: memoryview, place: int) -> None:
    """Write all of `data` at a place of a file."""
    while data:
        written = os.pwrite(handle, data, place)
        data, place = data[written:], place + written


def move(handle: int, source: int, target: int, count: int) -> int:
    """Move bytes of a file towards its beginning; returns the end of where they are now."""
    if source == target:
        return target + count
    for start in range(0, count, MOVED):
        part = os.pread(handle, min(MOVED, count - start), source + start)
        write_at(handle, memoryview(part), target + start)
    return target + count
