"""The store of shards: one safetensors file per unit of rows, and an index in Parquet that can be rebuilt from them.

A shard holds the tensors ``tokens`` (R, P, N, D) or (R, N, D) and, for models with a codebook, ``codes`` (R, P, N). Its
metadata hold the store's key, and for every row its number in the table, its sample id and the CRC-32 of its bytes:
the standard library has that at 3 GB/s without the interpreter's lock, and it finds a damaged disk or copy.

A shard appears whole, with the rows of its unit that could be done; rows that are done later, after ``--retry-failed``
or a larger ``--limit``, come in a further file of the unit. Nothing is ever changed in place. The same rows give the
same bytes, in whatever order they came.
"""

from __future__ import annotations

import json
import math
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.files import atomic_write, cannot_write, create_temporary, open_regular
from lary.latents.shardfile import (
    CODE_TAGS,
    CODE_TYPES,
    TOKEN_TYPES,
    VERSION,
    ShardHeader,
    check_no_link,
    read_shard,
    scan_shards,
)
from lary.latents.store import INDEX, SHARD_MARK, Floats, LatentStore, Write, narrow
from lary.types import LaryError

if TYPE_CHECKING:
    import pyarrow

    from lary.data.tables import SampleTable

BLOCK = 4096
"""The data of a shard begin at a multiple of it: rows as large as a page lie on pages of their own."""
MOVED = 8 << 20
LARGEST_LINE = 512
"""Bytes that a line of the index may unpack to."""
INDEX_COLUMNS = ("sample", "row", "shard", "position", "checksum")


def header_bytes(
    metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...], int]], least: int = 0
) -> bytes:
    """The beginning of a safetensors file, padded with blanks to whole blocks and at least `least` bytes.

    Written by hand, since the library writes files whose tensors are all in memory.

    Args:
        tensors: tag, shape and bytes by name, in the file's order.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, (tag, shape, size) in tensors.items():
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header, separators=(",", ":")).encode()
    size = -(-max(least, 8 + len(text)) // BLOCK) * BLOCK
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


class ShardStore(LatentStore):
    """A store of shards."""

    def file(self, unit: int, further: int = 0) -> Path:
        """The shard of a unit, or a further one with rows that were done later."""
        return self.folder / f"shard_{unit:05d}{f'_{further}' if further else ''}.safetensors"

    def headers(self) -> list[ShardHeader]:
        """Headers of the store's whole shards, those of a unit from the oldest to the newest."""
        return [header for header in scan_shards(self.folder, None)[0] if self.owns(header)]

    def owns(self, header: ShardHeader) -> bool:
        """Whether a shard is one of this store."""
        return (header.store, header.dtype) == (self.identity.key, self.identity.dtype)

    def held(self, table: SampleTable, *, check: bool = True) -> dict[int, str]:
        """``<shard>#<row in the shard>`` by row of the table, by sample id and row."""
        there: dict[int, dict[str, str]] = {}
        for header in self.headers():
            for position, (row, sample) in enumerate(zip(header.rows.tolist(), header.samples, strict=True)):
                if row < len(table):
                    there.setdefault(row, {})[sample] = f"{header.path.name}{SHARD_MARK}{position}"
        return {row: own for row, samples in there.items() if (own := samples.get(table[row].id)) is not None}

    @contextmanager
    def writer(self, unit: int) -> Iterator[Write]:
        handle, name = create_temporary(self.file(unit))
        writer = ShardWriter(self, unit, handle, Path(name))
        try:
            yield writer.add
            writer.commit()
        finally:
            os.close(handle)
            Path(name).unlink(missing_ok=True)

    def finish(self, table: SampleTable) -> None:
        """Rebuild the index from the headers too."""
        import pyarrow.parquet

        super().finish(table)
        listed = index_of(self.folder, self.headers()).replace_schema_metadata({"store": self.identity.key})
        with atomic_write(self.folder / INDEX) as stream:
            pyarrow.parquet.write_table(listed, stream)


class ShardWriter:
    """Writes the rows of one unit; `add` may be called from several threads.

    Rows go straight to their places in the file, so memory holds no tokens. Places are counted from the unit's first
    row; where one stayed empty, the rows behind it move up once at the end. The header comes last, into as much space
    as one of all places needs.
    """

    def __init__(self, store: ShardStore, unit: int, handle: int, temporary: Path) -> None:
        self._store, self._unit, self._handle, self._temporary = store, unit, handle, temporary
        self._rows = range(unit * store.unit_rows, (unit + 1) * store.unit_rows)
        self._lock = threading.Lock()
        self._kind: tuple[Any, ...] = ()
        self._start = self._row_bytes = 0
        self._done: dict[int, tuple[str, int, npt.NDArray[Any] | None]] = {}

    def add(self, row: int, sample: str, tokens: Floats, codes: npt.NDArray[Any] | None) -> None:
        """Write a row to its place. Raises as `Write`."""
        if row not in self._rows:
            raise LaryError(f"Row {row} is none of unit {self._unit} of {self._store.folder}.")
        stored = narrow(tokens, self._store.identity.dtype)
        if codes is not None:
            codes = np.ascontiguousarray(codes)
            codes = codes if codes.dtype in CODE_TAGS else codes.astype(np.int64)
        kind = (stored.shape, codes is not None and (CODE_TAGS[codes.dtype], codes.shape), len(sample))
        with self._lock:
            if not self._kind:
                self._begin(kind, sample, stored)
        if kind != self._kind:
            raise LaryError(
                f"Row {row}: tokens {kind[0]}, codes {kind[1] or None}, id of {kind[2]} letters; the rows before have "
                f"{self._kind[0]}, {self._kind[1] or None}, {self._kind[2]}: a store of shards holds latents of one "
                "shape."
            )
        data = np.ascontiguousarray(stored).data.cast("B")
        checksum = zlib.crc32(data)
        if codes is not None:
            checksum = zlib.crc32(codes.reshape(-1).data.cast("B"), checksum)
        try:
            write_at(self._handle, data, self._start + (row - self._rows[0]) * self._row_bytes)
        except OSError as error:
            raise cannot_write(self._store.file(self._unit), error) from error
        self._done[row] = (sample, checksum, codes)

    def _begin(self, kind: tuple[Any, ...], sample: str, stored: npt.NDArray[Any]) -> None:
        """Learn from the first row what all are like, and with it every row's place."""
        if not 2 <= stored.ndim <= 4 or not stored.size:
            raise LaryError(f"Tokens of shape {stored.shape} can't be stored: expected (P, N, D) or (N, D).")
        if not sample or "," in sample:
            raise LaryError(f"The sample id {sample!r} can't be stored: ids have no comma.")
        self._kind, self._row_bytes = kind, stored.nbytes
        self._start = len(self._header(self._rows, [sample] * len(self._rows), [0] * len(self._rows)))

    def _header(self, rows: Sequence[int], samples: Sequence[str], checksums: Sequence[int]) -> bytes:
        identity, (shape, codes, _) = self._store.identity, self._kind
        metadata = {
            "format": VERSION, "store": identity.key, "model": identity.model, "pool": identity.pool,
            "rows": ",".join(map(str, rows)), "samples": ",".join(samples),
            "checksums": ",".join(f"{value:08x}" for value in checksums),
        }  # fmt: skip
        tag = next(tag for tag, name in TOKEN_TYPES.items() if name == identity.dtype)
        tensors = {"tokens": (tag, (len(rows), *shape), len(rows) * self._row_bytes)}
        if codes:
            size = math.prod(codes[1]) * np.dtype(CODE_TYPES[codes[0]]).itemsize
            tensors["codes"] = (codes[0], (len(rows), *codes[1]), len(rows) * size)
        return header_bytes(metadata, tensors, self._start)

    def commit(self) -> None:
        """Make the file a whole shard and give it its name; without any row there is none."""
        if not self._done:
            return
        try:
            self._seal()
            os.fsync(self._handle)
            if (target := self._free_name()) is not None:
                os.replace(self._temporary, target)
        except OSError as error:
            raise cannot_write(self._store.file(self._unit), error) from error

    def _seal(self) -> None:
        """Close the gaps, and write codes and header."""
        rows = sorted(self._done)
        end = self._start
        for row in rows:
            source = self._start + (row - self._rows[0]) * self._row_bytes
            for offset in range(0, self._row_bytes if source > end else 0, MOVED):
                part = os.pread(self._handle, min(MOVED, self._row_bytes - offset), source + offset)
                write_at(self._handle, memoryview(part), end + offset)
            end += self._row_bytes
        samples, checksums, codes = zip(*(self._done[row] for row in rows), strict=True)
        for each in codes:
            if each is not None:
                write_at(self._handle, each.reshape(-1).data.cast("B"), end)
                end += each.nbytes
        os.ftruncate(self._handle, end)
        write_at(self._handle, memoryview(self._header(rows, samples, checksums)), 0)

    def _free_name(self) -> Path | None:
        """The first name of the unit that no whole shard has; None if one holds these rows already."""
        own = {row: sample for row, (sample, *_) in self._done.items()}
        for further in count():
            file = self._store.file(self._unit, further)
            try:
                header = read_shard(file)
            except LaryError:
                return file
            if not self._store.owns(header):
                return file
            if own.items() <= dict(zip(header.rows.tolist(), header.samples, strict=True)).items():
                return None
        raise AssertionError


def write_at(handle: int, data: memoryview, place: int) -> None:
    """Write all of `data` at a place of a file."""
    while data:
        written = os.pwrite(handle, data, place)
        data, place = data[written:], place + written


def index_of(folder: Path, headers: Sequence[ShardHeader]) -> pyarrow.Table:
    """What ``index.parquet`` lists: sample, row, shard, position, checksum; of a row that is there twice, the newest.

    Raises:
        LaryError: shards hold latents of different shapes.
    """
    import pyarrow

    shapes = {header.shape: header.path for header in headers}
    if len(shapes) > 1:
        named = ", ".join(f"{path.name} {shape}" for shape, path in shapes.items())
        raise LaryError(f"{folder} holds latents of different shapes ({named}): extract it anew with --overwrite.")
    newest: dict[int, tuple[str, int, str, int, int]] = {}
    for header in headers:
        values = zip(header.rows.tolist(), header.samples, header.checksums.tolist(), strict=True)
        for position, (row, sample, checksum) in enumerate(values):
            newest[row] = (sample, row, header.path.name, position, checksum)
    columns = list(zip(*(newest[row] for row in sorted(newest)), strict=True)) or [(), (), (), (), ()]
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.string(), pyarrow.int32(), pyarrow.uint32())
    return pyarrow.table(
        {name: pyarrow.array(values, kind) for name, values, kind in zip(INDEX_COLUMNS, columns, types, strict=True)}
    )


def index_problems(folder: Path, headers: Sequence[ShardHeader]) -> list[str]:
    """What is wrong with the index of a store of shards."""
    import pyarrow.parquet

    file = folder / INDEX
    again = "'lary extract' writes it again"
    try:
        check_no_link(file)
        wanted = index_of(folder, headers)
        with open_regular(file) as stream:
            found = pyarrow.parquet.ParquetFile(stream)
            facts = found.metadata
            size = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
            if facts.num_rows != len(wanted) or size > LARGEST_LINE * len(wanted) + (1 << 20):
                return [f"{file} lists {facts.num_rows} rows in {size} bytes, its shards hold {len(wanted)}: {again}."]
            if found.read().equals(wanted):
                return []
    except FileNotFoundError:
        return [f"{file} is missing: {again}."]
    except LaryError as error:
        return [str(error)]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        return [f"The index {file} can't be read ({error}): {again}."]
    return [f"{file} places samples where the shards don't have them: {again}."]
