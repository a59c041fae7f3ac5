"""The store of shards: one safetensors file per unit of rows, and an index in Parquet that can be rebuilt from them.

A shard appears whole, with the rows of its unit that could be done; rows that are done later, after
``--retry-failed`` or a larger ``--limit``, come in a further file of the unit. Nothing is ever changed in place.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.files import atomic_write, cannot_write, create_temporary, remove_torn
from lary.latents.shardfile import CODE_TAGS, ShardHeader, Spool, read_header
from lary.latents.store import INDEX, SHARD_MARK, SHARDS, Floats, StoreIdentity, narrow, record_table
from lary.types import LaryError

if TYPE_CHECKING:
    from lary.data.tables import SampleTable

INDEX_COLUMNS = ("sample", "row", "shard", "position", "checksum")

LARGEST_LINE = 512
"""Bytes that a line of the index may take."""

Place = tuple[str, int]
"""Name of a shard, and a row in it."""


def shard_name(unit: int, further: int = 0) -> str:
    """File name of the shard of a unit, or of a further one with rows that were done later."""
    return f"shard_{unit:05d}_{further}.safetensors" if further else f"shard_{unit:05d}.safetensors"


def place_name(file: str, position: int) -> str:
    """A row of a shard as it stands in ``la_path``."""
    return f"{file}{SHARD_MARK}{position}"


@dataclass(frozen=True)
class ShardStore:
    """A `LatentStore` of shards."""

    folder: Path
    identity: StoreIdentity
    unit_rows: int

    def headers(self) -> Iterator[ShardHeader]:
        """Headers of the store's whole shards, those of a unit from the oldest to the newest."""
        for file in sorted(self.folder.glob(SHARDS), key=unit_order):
            if (header := self.header(file)) is not None:
                yield header

    def header(self, file: Path) -> ShardHeader | None:
        """The header of a shard of this store; None if there is no such file, it is torn, or of another store."""
        try:
            header = read_header(file)
        except LaryError:
            return None
        return header if header.store == self.identity.key and header.dtype == self.identity.dtype else None

    def places(self, table: SampleTable) -> dict[int, Place]:
        """Where each row of the table is, by sample id and row."""
        there: dict[int, dict[str, Place]] = {}
        for header in self.headers():
            for position, (row, sample) in enumerate(zip(header.rows.tolist(), header.samples, strict=True)):
                if row < len(table):
                    there.setdefault(row, {})[sample] = (header.path.name, position)
        found = {row: samples.get(table[row].id) for row, samples in there.items()}
        return {row: place for row, place in found.items() if place is not None}

    def missing(self, table: SampleTable) -> list[int]:
        """Rows that no whole shard of this store holds for their sample."""
        there = self.places(table)
        return [row for row in range(len(table)) if row not in there]

    @contextmanager
    def writer(self, unit: int) -> Iterator[ShardWriter]:
        """A writer for some or all rows of a unit; the shard appears when the block is left without an exception."""
        handle, name = create_temporary(self.folder / shard_name(unit))
        writer = ShardWriter(self, unit, handle, Path(name))
        try:
            yield writer
            writer.commit()
        finally:
            os.close(handle)
            Path(name).unlink(missing_ok=True)

    def entries(self, table: SampleTable, root: Path, failed: Collection[int] = ()) -> list[str]:
        """``<folder>/<shard>#<row in the shard>`` by row of the table."""
        relative, there = self.folder.relative_to(root).as_posix(), self.places(table)
        return [
            f"{relative}/{place_name(*there[row])}" if row in there and row not in failed else ""
            for row in range(len(table))
        ]  # fmt: skip

    def finish(self, table: SampleTable) -> None:
        """Rebuild the index from the headers, and remove what killed writers have left."""
        remove_torn(self.folder)
        write_index(self.folder, list(self.headers()), self.identity.key)
        record_table(self.folder, table)


def unit_order(file: Path) -> tuple[int, int]:
    """Unit and further number of a shard; names of others come last."""
    parts = file.name.removesuffix(".safetensors").split("_")[1:]
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        return (1 << 62, 0)
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else 0


class ShardWriter:
    """Writes the rows of one unit; `add` may be called from several threads."""

    def __init__(self, store: ShardStore, unit: int, handle: int, temporary: Path) -> None:
        identity, rows = store.identity, store.unit_rows
        facts = {"store": identity.key, "model": identity.model, "pool": identity.pool}
        self._store, self._unit, self._temporary = store, unit, temporary
        self._spool = Spool(handle, rows, unit * rows, identity.dtype, facts)
        self._lock = threading.Lock()

    def add(self, row: int, sample: str, tokens: Floats, codes: npt.NDArray[Any] | None) -> None:
        """Write a row to its place. Raises as `UnitWriter.add` says."""
        if row // self._store.unit_rows != self._unit:
            raise LaryError(f"Row {row} is none of unit {self._unit} of {self._store.folder}.")
        stored = narrow(tokens, self._store.identity.dtype)
        if codes is not None:
            codes = np.ascontiguousarray(codes)
            if codes.dtype not in CODE_TAGS:
                codes = codes.astype(np.int64)
        with self._lock:
            if self._spool.shape is None:
                self._check_first(sample, stored)
                self._spool.begin(stored.shape, sample, codes)
            self._check(row, sample, stored, codes)
        try:
            self._spool.put(row, sample, stored, codes)
        except OSError as error:
            raise cannot_write(self._store.folder / shard_name(self._unit), error) from error

    def _check_first(self, sample: str, stored: npt.NDArray[Any]) -> None:
        if not 2 <= stored.ndim <= 4 or not stored.size:
            raise LaryError(f"Tokens of shape {stored.shape} can't be stored: expected (P, N, D) or (N, D).")
        if not sample or "," in sample:
            raise LaryError(f"The sample id {sample!r} can't be stored: ids have no comma.")

    def _check(self, row: int, sample: str, stored: npt.NDArray[Any], codes: npt.NDArray[Any] | None) -> None:
        expected = (self._spool.shape, self._spool.codes and self._spool.codes[:2], self._spool.sample_length)
        found = (stored.shape, None if codes is None else (CODE_TAGS[codes.dtype], codes.shape), len(sample))
        if found != expected:
            raise LaryError(
                f"Row {row}: tokens {found[0]}, codes {found[1]}, id of {found[2]} letters; the rows before have "
                f"{expected[0]}, {expected[1]}, {expected[2]}: a store of shards holds latents of one shape."
            )

    def commit(self) -> None:
        """Make the file a whole shard and give it its name; without any row there is none."""
        samples = self._spool.samples
        if not samples:
            return
        try:
            self._spool.seal()
            os.fsync(self._spool.handle)
            if (target := self._free_name(samples)) is not None:
                os.replace(self._temporary, target)
        except OSError as error:
            raise cannot_write(self._store.folder / shard_name(self._unit), error) from error

    def _free_name(self, samples: Mapping[int, str]) -> Path | None:
        """The first name of the unit that no whole shard has; None if one holds these rows already."""
        for further in count():
            file = self._store.folder / shard_name(self._unit, further)
            header = self._store.header(file)
            if header is None:
                return file
            if samples.items() <= dict(zip(header.rows.tolist(), header.samples, strict=True)).items():
                return None
        raise AssertionError


def write_index(folder: Path, headers: list[ShardHeader], key: str) -> None:
    """Write ``index.parquet``: sample, row, shard, position, checksum; of a row that is there twice, the newest.

    Raises:
        LaryError: shards hold latents of different shapes.
    """
    import pyarrow
    import pyarrow.parquet

    shapes = {header.shape: header.path for header in headers}
    if len(shapes) > 1:
        told = ", ".join(f"{path.name} {shape}" for shape, path in shapes.items())
        raise LaryError(f"{folder} holds latents of different shapes ({told}): extract it anew with --overwrite.")
    newest: dict[int, tuple[str, int, str, int, int]] = {}
    for header in headers:
        values = zip(header.rows.tolist(), header.samples, header.checksums.tolist(), strict=True)
        for position, (row, sample, checksum) in enumerate(values):
            newest[row] = (sample, row, header.path.name, position, checksum)
    columns = list(zip(*(newest[row] for row in sorted(newest)), strict=True)) or [(), (), (), (), ()]
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.string(), pyarrow.int32(), pyarrow.uint32())
    table = pyarrow.table(
        {name: pyarrow.array(values, kind) for name, values, kind in zip(INDEX_COLUMNS, columns, types, strict=True)},
        metadata={"store": key},
    )  # fmt: skip
    with atomic_write(folder / INDEX) as stream:
        pyarrow.parquet.write_table(table, stream)


def read_index(folder: Path, headers: Mapping[str, ShardHeader]) -> list[tuple[int, Place]]:
    """Rows and their places as ``index.parquet`` lists them, each held against the header of its shard.

    Raises:
        LaryError: the index can't be read, or contradicts the shards; says in which row.
    """
    import pyarrow
    import pyarrow.parquet

    file = folder / INDEX
    if file.is_symlink():
        raise LaryError(f"{file} is a link: a store holds files only.")
    try:
        found = pyarrow.parquet.ParquetFile(file, memory_map=False)
        check_index_size(file, found.metadata, headers)
        table = found.read(columns=list(INDEX_COLUMNS))
        columns = [table[name].to_pylist() for name in INDEX_COLUMNS]
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise LaryError(f"The index {file} can't be read ({error}): 'lary extract' writes it again.") from error
    listed = []
    for line, (sample, row, shard, position, checksum) in enumerate(zip(*columns, strict=True)):
        header = headers.get(shard)
        fits = header is not None and type(position) is int and 0 <= position < len(header)
        if (
            not fits or header is None or header.samples[position] != sample or int(header.rows[position]) != row
            or int(header.checksums[position]) != checksum
        ):  # fmt: skip
            raise LaryError(
                f"{file}, line {line + 1}: it places sample {sample} in row {position} of {shard}, where the shard "
                "doesn't have it. Run 'lary extract' again, which writes the index anew."
            )
        listed.append((int(row), (str(shard), int(position))))
    return listed


def check_index_size(file: Path, metadata: Any, headers: Mapping[str, ShardHeader]) -> None:
    """Refuse an index that unpacks to more than its shards explain. Raises LaryError."""
    rows = sum(map(len, headers.values()))
    size = sum(metadata.row_group(group).total_byte_size for group in range(min(metadata.num_row_groups, rows + 1)))
    if metadata.num_rows > rows or metadata.num_row_groups > rows + 1 or size > LARGEST_LINE * rows + (1 << 20):
        raise LaryError(
            f"The index {file} lists {metadata.num_rows} rows in {size} bytes; its shards hold {rows} rows. "
            "'lary extract' writes it again."
        )
