"""Writing the two kinds of stores: ``npz`` and ``shards``.

``npz`` is the published layout, one file per sample. ``shards`` writes one
safetensors file per unit of rows; those done later (``--retry-failed``) come in
a further file. The same rows give the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.arrays import Array, Floats
from lary.files import atomic_write, cannot_write, create_temporary
from lary.latents.sources import (
    CODE_TYPES,
    ITEM_BYTES,
    MOST_BYTES,
    TOKEN_TYPES,
    VERSION,
    ShardHeader,
    Stamp,
    read_shard,
    read_stamps,
    scan_shards,
)
from lary.latents.store import SHARD_MARK, Held, LatentStore, Write, narrow
from lary.types import JsonDict, LaryError

if TYPE_CHECKING:
    from lary.data.tables import SampleTable

CODE_TAGS = {np.dtype(name): tag for tag, name in CODE_TYPES.items()}
BLOCK = 4096
"""The data of a shard begin at a multiple of it, so that rows align with pages."""


# One file per sample

LATENT_NAME = re.compile(r"latent_action_(\d{8}|[1-9]\d{8,17})\.npz", re.ASCII)


def rows_in(folder: Path) -> dict[int, str]:
    """The latent files of a folder by their rows, ascending.

    One listing is read, since asking for millions of files would take long.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    return dict(sorted((int(found[1]), found[0]) for found in map(LATENT_NAME.fullmatch, names) if found))


def write_latents(path: Path, tokens: Array, codes: Array | None, stamp: Stamp) -> None:
    """Write one sample; an empty array stands for no codes. Raises LaryError."""
    if tokens.nbytes > MOST_BYTES:
        shape, size = "x".join(map(str, tokens.shape)), tokens.nbytes / 1e9
        raise LaryError(
            f"Tokens of {shape} take {size:.1f} GB per sample, more than the {MOST_BYTES / 1e9:.1f} GB that "
            f"{path.name} may hold: extract with --pool mean or --pool grid:4."
        )
    arrays = {"tokens": tokens, "indices": np.array([]) if codes is None else codes}
    with atomic_write(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.comment = json.dumps(asdict(stamp)).encode()
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the same latents give the same bytes
            info.file_size = array.nbytes
            array = np.ascontiguousarray(array)
            with archive.open(info, "w") as member:  # numpy's own way to a zip copies the array
                np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
                member.write(array.reshape(-1).data.cast("B"))


class NpzStore(LatentStore):
    """A store of ``.npz`` files, in which every write is final."""

    def held(self, table: SampleTable, *, check: bool = True) -> Iterator[Held]:
        names, key = rows_in(self.folder), self.identity.key
        rows = [row for row in names if row < len(table)]
        if check and rows:  # a sample's id is asked for only where there is a file
            stamps = read_stamps(self.folder, [names[row] for row in rows])
            own = zip(rows, table.take(rows).ids, stamps, strict=True)
            rows = [row for row, name, stamp in own if stamp and (stamp.store, stamp.sample) == (key, name)]
        yield rows, map(names.__getitem__, rows)

    @contextmanager
    def writer(self, unit: int) -> Iterator[Write]:
        identity = self.identity

        def write(row: int, sample: str, tokens: Floats, codes: Array | None) -> None:
            stamp = Stamp(sample, identity.key, identity.model)
            file = self.folder / f"latent_action_{row:08d}.npz"
            write_latents(file, narrow(tokens, identity.dtype), codes, stamp)

        yield write


# Shards


def header_bytes(metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]], least: int = 0) -> bytes:
    """The header of a safetensors file: whole blocks, at least `least` bytes.

    The library only writes tensors in memory. `tensors`: number format and shape by name, in the file's order.
    """
    header: JsonDict = {"__metadata__": metadata}
    begin = 0
    for name, (tag, shape) in tensors.items():
        end = begin + math.prod(shape) * ITEM_BYTES[tag]
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    size = -(-max(least, 8 + len(text)) // BLOCK) * BLOCK
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


class ShardStore(LatentStore):
    """A store of safetensors files, one or more per unit."""

    def file(self, unit: int, further: int = 0) -> Path:
        """The path of a unit's shard, or of a further one with rows done later."""
        return self.folder / f"shard_{unit:05d}{f'_{further}' if further else ''}.safetensors"

    def headers(self) -> Iterator[ShardHeader]:
        found = scan_shards(self.folder, self.identity.key, [])
        return (each for each in found if each.dtype == self.identity.dtype)

    def held(self, table: SampleTable, *, check: bool = True) -> Iterator[Held]:
        """Rows whose id fits, and their ``<shard>#<row in the shard>``."""
        for header in self.headers():
            ids, mark = table.ids, f"{header.path.name}{SHARD_MARK}"
            pairs = zip(header.rows.tolist(), header.samples, strict=True)
            fits = [row < len(ids) and ids[row] == own for row, own in pairs]
            places = np.flatnonzero(fits)
            yield header.rows[places], (f"{mark}{at}" for at in places)

    @contextmanager
    def writer(self, unit: int) -> Iterator[Write]:
        handle, name = create_temporary(self.file(unit))
        writer = ShardWriter(self, unit, handle)
        try:
            yield writer.add
            if (target := writer.seal()) is not None:
                os.replace(name, target)
        except OSError as error:
            raise error if isinstance(error, LaryError) else cannot_write(self.file(unit), error) from error
        finally:
            os.close(handle)
            Path(name).unlink(missing_ok=True)


class ShardWriter:
    """Writes the rows of one unit; `add` may be called from several threads.

    Rows go straight to their places in the file, counted from the unit's first
    row, so that memory holds no tokens. At the end rows after gaps move up. The
    header comes last, into the space that a full unit's needs.
    """

    def __init__(self, store: ShardStore, unit: int, handle: int) -> None:
        self._store, self._unit, self._handle = store, unit, handle
        self._rows = range(unit * store.unit_rows, (unit + 1) * store.unit_rows)
        self._lock = threading.Lock()
        self._kind: tuple[Any, ...] = ()
        self._start = self._row_bytes = 0
        self._done: dict[int, tuple[str, int, Array | None]] = {}

    def add(self, row: int, sample: str, tokens: Floats, codes: Array | None) -> None:
        """Write a row to its place. Raises what `Write` does, and OSError."""
        if row not in self._rows:
            raise LaryError(f"Row {row} is none of unit {self._unit} of {self._store.folder}.")
        stored = np.ascontiguousarray(narrow(tokens, self._store.identity.dtype))
        if codes is not None:
            codes = np.ascontiguousarray(codes)
            codes = codes if codes.dtype in CODE_TAGS else codes.astype(np.int64)
        # Ids of one length: the header's size is fixed before they are known.
        kind = (stored.shape, () if codes is None else (CODE_TAGS[codes.dtype], codes.shape), len(sample))
        with self._lock:
            if not self._kind:  # the first row shows what all are like, and so every row's place
                if not 2 <= stored.ndim <= 4 or not stored.size or not sample or "," in sample:
                    raise LaryError(f"Tokens {stored.shape} of a sample {sample!r} can't be stored in a shard.")
                self._kind, self._row_bytes = kind, stored.nbytes
                self._start = len(self._header(self._rows, [sample] * len(self._rows), [0] * len(self._rows)))
        if kind != self._kind:
            raise LaryError(
                f"Row {row} has tokens, codes and letters of its id {kind}, the rows before {self._kind}: a store of "
                "shards holds latents of one shape."
            )
        write_at(self._handle, stored.data.cast("B"), self._start + (row - self._rows[0]) * self._row_bytes)
        self._done[row] = (sample, checksum_of(stored, codes), codes)

    def _header(self, rows: Sequence[int], samples: Sequence[str], checksums: Sequence[int]) -> bytes:
        identity, (shape, codes, _) = self._store.identity, self._kind
        metadata = {
            "format": VERSION,
            "store": identity.key,
            "model": identity.model,
            "pool": identity.pool,
            "rows": ",".join(map(str, rows)),
            "samples": ",".join(samples),
            "checksums": ",".join(f"{value:08x}" for value in checksums),
        }
        tag = next(tag for tag, name in TOKEN_TYPES.items() if name == identity.dtype)
        tensors = {"tokens": (tag, (len(rows), *shape))}
        if codes:
            tensors["codes"] = codes[0], (len(rows), *codes[1])
        return header_bytes(metadata, tensors, self._start)

    def seal(self) -> Path | None:
        """Close gaps, write codes and header; returns the path or None.

        It is None without rows, or if a shard of the unit has them already.
        """
        if not self._done:
            return None
        rows, end = sorted(self._done), self._start
        for row in rows:
            source = self._start + (row - self._rows[0]) * self._row_bytes
            if source > end:
                write_at(self._handle, memoryview(os.pread(self._handle, self._row_bytes, source)), end)
            end += self._row_bytes
        samples, checksums, codes = zip(*(self._done[row] for row in rows), strict=True)
        for each in codes:
            if each is not None:
                write_at(self._handle, each.reshape(-1).data.cast("B"), end)
                end += each.nbytes
        os.ftruncate(self._handle, end)
        write_at(self._handle, memoryview(self._header(rows, samples, checksums)), 0)
        os.fsync(self._handle)
        for further in count():
            file = self._store.file(self._unit, further)
            try:
                header = read_shard(file)
            except LaryError:
                return file  # there is none, or a torn one
            own, there = self._store.identity, header.positions()
            if (header.store, header.dtype) != (own.key, own.dtype):
                return file
            if all(there.get(row, ("",))[0] == sample for row, sample in zip(rows, samples, strict=True)):
                return None
        raise AssertionError


def checksum_of(stored: Array, codes: Array | None) -> int:
    """The CRC-32 of a row's bytes, which finds damage but no forgery."""
    checksum = zlib.crc32(stored.reshape(-1).data.cast("B"))
    return checksum if codes is None else zlib.crc32(codes.reshape(-1).data.cast("B"), checksum)


def write_at(handle: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(handle, data, place)
        data, place = data[written:], place + written
