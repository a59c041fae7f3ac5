"""Large writes past the system's cache, where there is a way (Linux's O_DIRECT, open(2)).

Filling the cache costs more processor time than all else in a large write, and throws out what others could use. Data
go through a small aligned room of each thread's own, which stays in the processor's cache. Where the file system can't
do it, or only for other sizes, they are written as usual.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BLOCK = 4096
"""Places and sizes have to be multiples of it; the largest unit of common disks."""
LEAST = 1 << 20
"""Bytes of a write from which on it is worth it."""
PIECE = 1 << 20

FLAG = getattr(os, "O_DIRECT", 0)


class _Own(threading.local):
    """A thread's room: memory that begins at a page."""

    def __init__(self) -> None:
        self.room = mmap.mmap(-1, PIECE)


_own = _Own()


def switch(handle: int, on: bool) -> bool:
    """Have the writes of a descriptor go past the cache, or not; False where the system doesn't know how."""
    if not FLAG or fcntl is None:
        return False
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | FLAG if on else flags & ~FLAG)
    except OSError:
        return False
    return True


def write_past_cache(handle: int, parts: Iterable[memoryview], place: int) -> None:
    """Write bytes one behind the other from a place on, a multiple of `BLOCK`, of a descriptor that was switched on.

    What is written is filled up with zeros to whole blocks; the caller cuts the file.
    """
    import numpy as np

    room = np.frombuffer(_own.room, np.uint8)
    filled = 0
    for part in parts:
        data = np.frombuffer(part, np.uint8)
        while len(data):
            count = min(len(data), PIECE - filled)
            room[filled : filled + count] = data[:count]  # numpy lets other threads work meanwhile
            data, filled = data[count:], filled + count
            if filled == PIECE:
                _put(handle, room.data, place)
                place, filled = place + PIECE, 0
    if filled:
        whole = -(-filled // BLOCK) * BLOCK
        room[filled:whole] = 0
        _put(handle, room[:whole].data, place)


def _put(handle: int, data: memoryview, place: int) -> None:
    """Write one piece; by way of the cache what is left of it where the file system wants it so.

    A refusal counts once, whatever the descriptor says: another thread may have switched it off meanwhile.
    """
    refused = False
    while data:
        try:
            written = os.pwrite(handle, data, place)
        except OSError as error:
            if error.errno != errno.EINVAL or refused:
                raise
            written, refused = 0, True
        data, place = data[written:], place + written
        if data:
            switch(handle, on=False)
