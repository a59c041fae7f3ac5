"""One ``.npz`` file of latents: written in one go, and read with suspicion.

The file may come from anyone. Only its members ``tokens`` and ``indices`` are opened; what their headers say is held
against the archive's sizes before memory is asked for; arrays of objects are refused, and nothing is unpickled.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import math
import os
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lary.files import open_regular, write_parts
from lary.types import LaryError, MediaError

MOST_BYTES = 1 << 30
"""Of one sample's array; the largest of the benchmark has 19 MB."""

SMALL, LARGEST_RATIO = 64 << 20, 200
"""A member above the one size may be this many times as large as it is packed: numbers don't shrink further."""

LONGEST_HEADER = 10_000
LONGEST_STAMP = 4096
LOCAL, ENTRY = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
"""What stands before a member, and its entry in the directory (APPNOTE.TXT 4.3.7, 4.3.12)."""
FIRST_DAY = 33
"""1 January 1980 in an archive's way of counting: the same latents give the same bytes."""
END = struct.Struct("<4s4H2LH")
"""The last record of a zip archive (APPNOTE.TXT 4.3.16): signature, four counts, size and place of the directory."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stamp:
    """The zip comment of one file."""

    sample: str
    store: str
    model: str


def write_latents(path: Path, tokens: npt.NDArray[Any], codes: npt.NDArray[Any] | None, stamp: Stamp) -> None:
    """Write one sample: `tokens` (P, N, D) or (N, D), `codes` (P, N) or None, stored as an empty array.

    Raises:
        LaryError: the tokens are larger than what can be read again, or can't be written.
    """
    if tokens.nbytes > MOST_BYTES:
        raise LaryError(
            f"Tokens of {'x'.join(map(str, tokens.shape))} take {tokens.nbytes / 1e9:.1f} GB per sample, more than the "
            f"{MOST_BYTES / 1e9:.1f} GB that {path.name} may hold: extract with --pool mean or --pool grid:4."
        )
    arrays = {"tokens": tokens, "indices": np.array([]) if codes is None else codes}
    members = {f"{name}.npy": array_parts(np.ascontiguousarray(array)) for name, array in arrays.items()}
    write_parts(path, archive_parts(members, json.dumps(asdict(stamp)).encode()))


def array_parts(array: npt.NDArray[Any]) -> list[bytes | memoryview]:
    """A contiguous array as a ``.npy`` file (NEP 1): its header and its bytes, which are not copied."""
    header = array_header(array.dtype.str, array.shape)
    return [header, array.reshape(-1).data.cast("B")] if array.size else [header]


@functools.lru_cache(maxsize=64)
def array_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """The header of a ``.npy`` file in C order; those of one extraction are nearly all the same."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
    return head.getvalue()


def archive_parts(members: dict[str, list[bytes | memoryview]], comment: bytes) -> list[bytes | memoryview]:
    """A zip archive (APPNOTE.TXT 4.3.6) of members that are stored as they are.

    By hand, because `zipfile` writes a member's size behind it and goes back: five calls and a copy per member, and a
    large extraction writes a million files.
    """
    parts: list[bytes | memoryview] = []
    directory, start = b"", 0
    for name, content in members.items():
        size, checksum = sum(map(len, content)), 0
        for part in content:
            checksum = zlib.crc32(part, checksum)
        facts = (20, 0, zipfile.ZIP_STORED, 0, FIRST_DAY, checksum, size, size, len(name), 0)
        directory += ENTRY.pack(b"PK\x01\x02", 20, *facts, 0, 0, 0, 0, start) + name.encode()
        parts += [LOCAL.pack(b"PK\x03\x04", *facts) + name.encode(), *content]
        start += LOCAL.size + len(name) + size
    count = len(members)
    end = END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), start, len(comment))
    return [*parts, directory + end + comment]


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None if there is no such file, it is torn, or another program wrote it.

    Only the end of the file is read: the comment has to fill it exactly, and the directory to lie before it.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END.size - LONGEST_STAMP))
            tail = file.read()
        place = tail.rfind(b"PK\x05\x06")
        if place < 0:
            return None
        *_, directory, start, length = END.unpack_from(tail, place)
        if place + END.size + length != len(tail) or start + directory + len(tail) - place != size or not length:
            return None
        return Stamp(**json.loads(tail[place + END.size :]))
    except (OSError, ValueError, TypeError, struct.error, RecursionError):
        return None


def read_arrays(path: Path, *names: str) -> list[npt.NDArray[Any] | None]:
    """Numeric arrays of a file by name, None for one that isn't there.

    Raises:
        MediaError: the file is missing, torn, no archive, or an array is none of numbers, or larger than it may be.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            return [
                read_member(archive, members[f"{name}.npy"]) if f"{name}.npy" in members else None for name in names
            ]  # fmt: skip
    except FileNotFoundError:
        raise MediaError(f"The latents {path} do not exist: extract them again.") from None
    except (
        OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, NotImplementedError, RecursionError,
        SyntaxError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
    ) as error:  # fmt: skip
        told = str(error) or type(error).__name__
        raise MediaError(f"The latents {path} can't be read ({told}): extract them again.") from error


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """One array. Raises ValueError for what it must not be."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed by method {info.compress_type}")
    if info.file_size > MOST_BYTES:
        raise ValueError(f"{info.filename} claims {info.file_size} bytes, more than any latents have")
    if info.file_size > SMALL and info.file_size > LARGEST_RATIO * max(info.compress_size, 1):
        raise ValueError(f"{info.filename} unpacks to {info.file_size} bytes from {info.compress_size}: a zip bomb")
    with archive.open(info) as member:
        shape, fortran, kind, header = read_array_header(member, info.filename)
        size = math.prod(shape) * kind.itemsize
        if header + size != info.file_size:
            raise ValueError(f"{info.filename} is said to be {shape} {kind}, but has {info.file_size - header} bytes")
        array = np.empty(math.prod(shape), dtype=kind)  # writable, unlike a view of bytes
        view = array.data.cast("B") if array.size else memoryview(bytearray())
        while view:
            count = member.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"{info.filename} ends {len(view)} bytes too early")
            view = view[count:]
        member.read(1)  # to the end, where the checksum is compared
    return array.reshape(shape, order="F" if fortran else "C")


def read_array_header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, number format and length of the header of a ``.npy`` (NEP 1). Raises ValueError."""
    magic = member.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise ValueError(f"{name} is no array")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(member.read(width), "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"{name} has a header of {length} bytes")
    facts = ast.literal_eval(member.read(length).decode("latin1").strip())
    if not isinstance(facts, dict) or set(facts) != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"{name} has another header than an array")
    shape = facts["shape"]
    if not isinstance(shape, tuple) or len(shape) > 8 or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    if not isinstance(facts["descr"], str) or (kind := np.dtype(facts["descr"])).kind not in "fiu":
        raise ValueError(f"{name} holds {facts['descr']!r}, not numbers")
    return shape, bool(facts["fortran_order"]), kind, 8 + width + length


def read_tokens(path: Path) -> npt.NDArray[Any]:
    """The tokens of one sample in the file's number format. Raises MediaError as `read_arrays` does."""
    (tokens,) = read_arrays(path, "tokens")
    if tokens is None:
        raise MediaError(f"The latents {path} can't be read (no array 'tokens'): extract them again.")
    if tokens.ndim < 2 or not tokens.size:
        raise MediaError(f"The latents {path} have the shape {tokens.shape}, not (P, N, D) or (N, D): extract again.")
    return tokens


def read_latents(path: Path) -> Floats:
    """The tokens of one sample, float32. Raises MediaError as `read_tokens` does."""
    return np.asarray(read_tokens(path), dtype=np.float32)
