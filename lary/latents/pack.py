"""Packing: latents in many ``.npz`` files, put into shards once so that probes read them at random.

The shards lie in ``packed/<key>/`` inside the store's folder. The key is made of the files' names, sizes and times of
change, so that a file that was replaced makes them stale. They can be removed at any time.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.configs import LatentDtype
from lary.files import digest, read_json, remove_torn, write_json
from lary.latents.npz import NpzSource
from lary.latents.npzfile import read_arrays, read_tokens
from lary.latents.reader import ShardSource
from lary.latents.shardfile import STORED, read_header
from lary.latents.shards import ShardStore, shard_name
from lary.latents.store import StoredLatents, StoreIdentity
from lary.runtime import log, progress
from lary.types import LaryError, MediaError

PACKED, DONE = "packed", "packed.json"
PACKED_ROWS = 1024
SPARE = 0.05
"""Share of a disk that packing leaves free."""

READERS = 4


def packed(source: NpzSource, folder: Path, mode: str) -> StoredLatents:
    """The latents of ``.npz`` files from shards, which are made now if they aren't there; or else `source` itself.

    Args:
        folder: of the store.
        mode: how to read the shards.

    Raises:
        LaryError: a file can't be read, or has another shape than the first.
    """
    key = key_of(source)
    place = folder / PACKED / key
    for own in (place.parent, place):
        if own.is_symlink():  # what lies where it leads would be overwritten and removed
            log.warning("%s is a link to another place: remove it; until then reading stays slow", own)
            return source
    if (found := open_pack(place, key, len(source), mode)) is not None:
        return found
    dtype: LatentDtype = "float16" if read_tokens(source.files[0]).dtype == np.float16 else "float32"
    size = len(source) * math.prod(source.shape) * np.dtype(STORED[dtype]).itemsize
    disk = shutil.disk_usage(folder)
    if disk.free - size < SPARE * disk.total:
        log.warning("%s: %.1f GB to pack these latents don't fit the disk; reading stays slow", folder, size / 1e9)
        return source
    try:
        write_pack(source, place, key, dtype)
    except MediaError:
        raise
    except LaryError as error:
        if (found := open_pack(place, key, len(source), mode)) is not None:  # another process was faster
            return found
        shutil.rmtree(place, ignore_errors=True)  # half of it would only take the room that others need
        log.warning("these latents can't be packed (%s); reading stays slow", error)
        return source
    for other in (folder / PACKED).iterdir():
        if other.name != key:
            shutil.rmtree(other, ignore_errors=True)
    return open_pack(place, key, len(source), mode) or source


def key_of(source: NpzSource) -> str:
    """A digest of names, sizes and times of change of all files."""
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(os.stat, source.files)
        facts = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in zip(source.files, found, strict=True)]
    return digest("\n".join(facts))


def open_pack(place: Path, key: str, count: int, mode: str) -> ShardSource | None:
    """The shards of a finished packing; None where there is none, or it is damaged."""
    done = place / DONE
    if not done.is_file():
        return None
    try:
        files = read_json(done, "note of a packing")["files"]
        headers = [read_header(place / shard_name(unit)) for unit in range(-(-count // PACKED_ROWS))]
        if files != count or sum(map(len, headers)) != count:
            return None
        rows = np.arange(count, dtype=np.int64)
        return ShardSource(headers, rows // PACKED_ROWS, rows % PACKED_ROWS, mode)
    except (LaryError, KeyError, TypeError) as error:
        log.warning("packing again: %s", error)
        return None


def write_pack(source: NpzSource, place: Path, key: str, dtype: LatentDtype) -> None:
    """Write all rows into shards, then the note that says that they are whole.

    Raises:
        MediaError: a file can't be read or holds values that aren't finite.
        LaryError: the disk is full, or files differ in shape.
    """
    store = ShardStore(place, StoreIdentity("packed", key, "", "", "", "", 0, dtype=dtype), PACKED_ROWS)
    with progress(len(source), f"packing {place.parent.parent.name} for reading at random") as bar:
        for unit in range(-(-len(source) // PACKED_ROWS)):
            rows = range(unit * PACKED_ROWS, min((unit + 1) * PACKED_ROWS, len(source)))
            with store.writer(unit) as writer:
                for row, tokens, codes in read_ahead(source, rows):
                    if dtype == "float16" and tokens.dtype != np.float16:
                        raise LaryError(f"{source.files[row]} holds {tokens.dtype}, files before it float16")
                    try:
                        writer.add(row, f"{row:012d}", np.asarray(tokens, dtype=np.float32), codes)
                    except MediaError as error:
                        raise MediaError(f"The latents {source.files[row]} can't be used: {error}") from error
                    bar.advance()
    write_json(place / DONE, {"files": len(source)})
    remove_torn(place)  # of packings that were killed


Item = tuple[int, npt.NDArray[Any], "npt.NDArray[Any] | None"]


def read_ahead(source: NpzSource, rows: range) -> Iterator[Item]:
    """Arrays of files in order, a few read ahead by threads."""

    def read(row: int) -> Item:
        tokens, codes = read_arrays(source.files[row], "tokens", "indices")
        if tokens is None:
            raise MediaError(f"The latents {source.files[row]} have no array 'tokens': extract them again.")
        return row, tokens, codes if codes is not None and codes.size else None

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(rows.start, rows.stop, 4 * READERS):
            yield from pool.map(read, range(start, min(start + 4 * READERS, rows.stop)))
