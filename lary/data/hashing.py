"""Hashes of frames: equal for equal pixels, and near for pictures that look alike.

The perceptual hash keeps the signs of 256 low frequencies of a 64 x 64 grey picture, each taken against their median
(a cosine transform, as in Zauner 2010, "Implementation and benchmarking of perceptual image hash functions").
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.data.frames import read_clip
from lary.data.images import Image
from lary.types import Failure, LaryError, MediaError, Progress

Hashes = npt.NDArray[np.uint8]
"""(n, 32) uint8: n perceptual hashes of 256 bits."""

SIDE, KEPT = 64, 16
FLAT = 2.0
"""Deviation of grey values below which a picture shows nothing that could be compared."""

BANDS = 8
"""A hash is looked up by 8 bands of 32 bits: two hashes that differ in up to 7 bits share one whole band."""

FARTHEST = BANDS - 1
AT_ONCE = 1 << 18
"""Candidates that are compared at a time."""

ONES = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class FrameHash:
    """Hashes of one frame: of its pixels (16 bytes) and of its look (32 bytes, empty for a flat picture)."""

    content: bytes
    look: bytes


@dataclass(frozen=True, slots=True)
class FrameSource:
    """Where frames come from: an image (no frame index), or a video with the wanted frames."""

    path: Path
    frame_index: tuple[int, ...] = ()

    def key(self) -> str | None:
        """Name in a cache: the file with its size and time of change; None for a missing file."""
        try:
            facts = self.path.stat()
        except OSError:
            return None
        return f"{self.path}|{facts.st_size}|{facts.st_mtime_ns}|{','.join(map(str, self.frame_index))}"


def hash_frame(image: Image) -> FrameHash:
    """Hash a frame (H, W, 3) uint8 RGB."""
    state = hashlib.sha256(str(image.shape).encode())
    state.update(image.tobytes())
    return FrameHash(state.digest()[:16], look_of(image))


def look_of(image: Image) -> bytes:
    """The perceptual hash of a frame (H, W, 3) uint8 RGB, 32 bytes; empty for a flat picture."""
    import cv2

    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if float(grey.std()) < FLAT:
        return b""
    waves = np.asarray(cv2.dct(grey.astype(np.float32)))[:KEPT, :KEPT].ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False  # the mean brightness
    return np.packbits(bits).tobytes()


def hash_sources(
    sources: Sequence[FrameSource], *, workers: int = 4, cache: Path | None = None, progress: Progress | None = None
) -> Iterator[tuple[FrameHash, ...] | Failure]:
    """Hash the frames of many files, in their order.

    Args:
        cache: SQLite file that keeps hashes, so that an interrupted run resumes; made if it isn't there.

    Raises:
        LaryError: the cache can't be used.
    """

    def one(source: FrameSource) -> tuple[FrameHash, ...] | Failure:
        try:
            return tuple(hash_frame(image) for image in read_clip([source.path], source.frame_index))
        except MediaError as error:
            return Failure(None, str(source.path), str(error))

    with closing(open_cache(cache)) as base, ThreadPoolExecutor(max(workers, 1)) as pool:
        for start in range(0, len(sources), 256):
            part = sources[start : start + 256]
            found: list[tuple[FrameHash, ...] | Failure | None] = []
            for source in part:
                row = base.execute("SELECT hashes FROM frames WHERE key = ?", (source.key(),)).fetchone()
                found.append(None if row is None else unpacked(bytes(row[0])))
            missing = [index for index, hashes in enumerate(found) if hashes is None]
            for index, outcome in zip(missing, pool.map(one, [part[index] for index in missing]), strict=True):
                found[index] = outcome
                if not isinstance(outcome, Failure):
                    base.execute("INSERT OR REPLACE INTO frames VALUES (?, ?)", (part[index].key(), packed(outcome)))
            base.commit()
            for hashes in found:
                assert hashes is not None
                yield hashes
                if progress is not None:
                    progress.advance()


def open_cache(path: Path | None) -> sqlite3.Connection:
    """Hashes of files by path, size and time of change, in a file or (without one) in memory. Raises LaryError."""
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(path or ":memory:")
        try:
            base.execute("CREATE TABLE IF NOT EXISTS frames (key TEXT PRIMARY KEY, hashes BLOB)")
        except sqlite3.Error:
            base.close()
            raise
    except (OSError, sqlite3.Error) as error:
        raise LaryError(f"The cache of hashes {path} can't be used: {error}. Remove it.") from error
    return base


def packed(hashes: Sequence[FrameHash]) -> bytes:
    """49 bytes per frame: its content, whether it has a look, its look."""
    return b"".join(item.content + bytes([bool(item.look)]) + item.look.ljust(32, b"\0") for item in hashes)


def unpacked(data: bytes) -> tuple[FrameHash, ...]:
    """The inverse of `packed`."""
    entries = [data[at : at + 49] for at in range(0, len(data), 49)]
    return tuple(FrameHash(entry[:16], entry[17:] if entry[16] else b"") for entry in entries)


def nearest(queries: Hashes, base: Hashes, distance: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each query the nearest hash of the base and the bits in which they differ, both (n,) int64.

    Exact up to `distance` bits (at most 7); where nothing is that near, the position is -1 and the difference 257.
    """
    found = np.full(len(queries), -1, dtype=np.int64)
    bits = np.full(len(queries), 257, dtype=np.int64)
    if not len(queries) or not len(base):
        return found, bits
    wide, bands = (np.ascontiguousarray(hashes).view(np.uint32) for hashes in (queries, base))
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        column = bands[order, band]
        first, last = (np.searchsorted(column, wide[:, band], side) for side in ("left", "right"))
        ends = np.cumsum(last - first)
        start = 0
        while start < len(queries):
            taken = int(ends[start - 1]) if start else 0
            stop = max(int(np.searchsorted(ends, taken + AT_ONCE, "right")), start + 1)
            counts = (last - first)[start:stop]
            asked = np.repeat(np.arange(start, stop), counts)
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            offered = order[np.repeat(first[start:stop], counts) + offsets]
            differ = ONES[queries[asked] ^ base[offered]].sum(axis=1, dtype=np.int64)
            ranked = np.lexsort((offered, differ, asked))
            ranked = ranked[np.unique(asked[ranked], return_index=True)[1]]
            better = ranked[(differ[ranked] <= distance) & (differ[ranked] < bits[asked[ranked]])]
            found[asked[better]], bits[asked[better]] = offered[better], differ[better]
            start = stop
    return found, bits
