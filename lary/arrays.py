"""Arrays from untrusted ``.npy``, ``.npz`` and Parquet files, without pickles.

Unlike ``np.load``, no memory is allocated before the header was checked
against the size of its file (format: numpy.lib.format, versions 1.0 and 2.0).
"""

import io
import math
import re
import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lary.files import open_regular
from lary.types import MediaError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

LARGEST = 1 << 32
"""The most bytes of one array in an ``.npz``."""
FREE = 1 << 26
"""Bytes that any compressed array may unpack to; above, `RATIO` limits it."""
RATIO = 200
"""The most bytes out per byte in, against zip bombs: tokens stay below 2."""
ROWS_BYTES = 1 << 24
"""Bytes of rows read at once."""
LONGEST_HEADER = 1 << 16
PLAIN_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d*)', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]*)\),? *\} *\n?"
)
"""A header as np.save writes it, which needs no parser of Python."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""The errors that zipfile raises for a damaged or hostile archive."""

# Python 3.10 and 3.11 fail at random where two threads parse Python at once.
_parsing = threading.Lock()


def _header_of(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is Fortran's, and dtype. Raises ValueError."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version[0]}.{version[1]} is not read")
    length = stream.read(2 if version == (1, 0) else 4)
    text = stream.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))
    try:
        if found := PLAIN_HEADER.fullmatch(text):
            shape = tuple(int(side) for side in found[3].split(b",") if side.strip())
            return shape, found[2] == b"True", np.dtype(found[1].decode())
        with _parsing:
            # Version 1.0 differs by a shorter length.
            return np.lib.format.read_array_header_2_0(io.BytesIO(length.ljust(4, b"\0") + text))
    except Exception as error:  # numpy parses the header as Python: anything may be raised
        reason = str(error).splitlines() or [""]
        raise ValueError(f"its header can't be read ({reason[0][:200]})") from None


def array_of(stream: IO[bytes], size: int) -> Array:
    """The array of an ``.npy`` of `size` bytes. Raises ValueError."""
    shape, fortran, dtype = _header_of(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    needed = math.prod(shape) * dtype.itemsize
    if any(type(side) is not int or side < 0 for side in shape) or needed > size:
        raise ValueError(f"{size} bytes are too few for an array of shape {shape}")
    values = np.empty(needed, np.uint8)
    filled, view = 0, values.data
    while filled < needed and (count := stream.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += count
    if filled < needed:
        raise ValueError("it ends early")
    return values.view(dtype).reshape(shape, order="F" if fortran else "C")


def read_npz(path: Path, *names: str, largest: int = LARGEST) -> list[Array]:
    """The named arrays of an ``.npz``, of at most `largest` bytes each.

    Raises OSError for the file, KeyError for a missing name, ValueError for content.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = {entry.filename: entry for entry in archive.infolist()}
                return [_member(archive, entries[f"{name}.npy"], size, largest) for name in names]
        except BROKEN as error:
            raise ValueError(str(error) or type(error).__name__) from error


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int, largest: int) -> Array:
    """One array of an archive of `size` bytes. Raises ValueError."""
    name, packed = entry.filename, min(entry.compress_size, size)
    if entry.compress_type not in METHODS:
        raise ValueError(f"{name} is packed by method {entry.compress_type}")
    bomb = entry.file_size > FREE and entry.file_size > RATIO * packed
    if bomb or entry.file_size > largest:
        raise ValueError(f"{name} unpacks {packed} bytes to {entry.file_size}, which is refused")
    with archive.open(entry) as stream:
        found = array_of(stream, entry.file_size)
        # Reading to the end also compares the checksum.
        if stream.read(1) or stream.tell() != entry.file_size:
            raise ValueError(f"{name} has other bytes than those of its array of shape {found.shape}")
    return found


def tokens_checksum(path: Path) -> str:
    """CRC-32 and size of the tokens in an ``.npz``, which aren't read. Raises MediaError."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            about = archive.getinfo("tokens.npy")
            return f"{about.CRC} {about.file_size}"
    except (*BROKEN, KeyError) as error:
        raise MediaError(f"The latents {path} can't be read ({error}): extract them again.") from error


def read_rows(path: Path, columns: list[str], most: int, size: int, where: tuple[str, int] | None = None) -> Any:
    """Rows of a Parquet file, at most `most` of `size` bytes.

    `where`: a column and its value. Raises ValueError for more or larger rows,
    KeyError, OSError, ArrowException.
    """
    import pyarrow
    from pyarrow import dataset

    file = dataset.dataset(path, format="parquet")
    # A megabyte can hold gigabytes of equal rows.
    rows = where and dataset.field(where[0]) == where[1]
    count, taken, limit = 0, 0, max(FREE, RATIO * path.stat().st_size)
    how: Any = {"batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}
    piece, parts = max(1, min(4096, ROWS_BYTES // size)), list[Any]()
    for batch in file.to_batches(columns=columns, filter=rows, batch_size=piece, **how):
        count, taken = count + len(batch), taken + batch.nbytes
        if count > most or taken > min(limit, count * size + ROWS_BYTES):
            raise ValueError("it holds more or larger rows than announced")
        parts.append(batch)
    return pyarrow.Table.from_batches(parts, file.schema.empty_table().select(columns).schema)


def npy_bytes(values: Array) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(values), allow_pickle=False)
    return content.getvalue()
