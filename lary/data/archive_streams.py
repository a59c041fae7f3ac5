"""Archives as streams: parts joined to one file, and a tar that only comes forward, counted and bounded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, cast

from lary.types import LaryError

BLOCK = 1 << 20
HEADER_READ = 1 << 24
"""No single read that a tar needs is longer; a longer one is a header made to fill the memory."""
KEPT = 1024
"""Bytes behind the position that can be read again: tarfile looks back by one byte, the check of the end by 512."""
FREE_RATIO = 1 << 28
"""Bytes that may come out before the ratio counts: small archives of zeros are no attack."""

REFUSED = "it is refused, and nothing of it was written."


@dataclass(frozen=True)
class Limits:
    """What an archive may grow to.

    Attributes:
        members: files and folders.
        member_bytes: of one file.
        total_bytes: of all files.
        ratio: bytes out per byte in; PNG, MP4 and NPY stay near 1.
        name_bytes: of a member's path in UTF-8.
    """

    members: int = 20_000_000
    member_bytes: int = 64 << 30
    total_bytes: int = 2 << 40
    ratio: float = 200.0
    name_bytes: int = 1024


class JoinedFile:
    """The parts of a split archive as one binary file that can be read and sought."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._paths = list(parts)
        self._starts = [0, *accumulate(path.stat().st_size for path in self._paths)]
        self.size = self._starts[-1]
        self._position = 0
        self._open: tuple[int, IO[bytes]] | None = None

    def __enter__(self) -> JoinedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("negative position")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        wanted = self.size - self._position if size is None or size < 0 else size
        found: list[bytes] = []
        while wanted > 0 and self._position < self.size:
            index = bisect_right(self._starts, self._position) - 1
            stream = self._part(index)
            stream.seek(self._position - self._starts[index])
            block = stream.read(min(wanted, self._starts[index + 1] - self._position))
            if not block:
                raise OSError(f"{self._paths[index]} became shorter")
            found.append(block)
            self._position += len(block)
            wanted -= len(block)
        return b"".join(found)

    def _part(self, index: int) -> IO[bytes]:
        if self._open is None or self._open[0] != index:
            self.close()
            self._open = (index, self._paths[index].open("rb"))
        return self._open[1]


class Guard:
    """A stream that only goes forward, counts what comes out, and refuses long reads and high ratios.

    tarfile reads extended headers into memory at the length that they announce, so the length of a read is bounded.
    """

    def __init__(self, name: str, stream: Any, packed: JoinedFile, limits: Limits) -> None:
        self._name, self._stream, self._packed, self._limits = name, stream, packed, limits
        self._position = 0
        self._kept = b""
        self._back = 0

    def tell(self) -> int:
        return self._position - self._back

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise OSError("only positions from the start")
        if offset < self._position - len(self._kept):
            raise OSError("the archive refers to an earlier place")
        while offset > self._position:
            self._back = 0
            if not self._take(min(BLOCK, offset - self._position)):
                break
        self._back = max(0, self._position - offset)
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > HEADER_READ:
            raise LaryError(f"The archive {self._name} has a header that is too large: {REFUSED}")
        again = b""
        if self._back:
            at = len(self._kept) - self._back
            again = self._kept[at : at + size]
            self._back -= len(again)
        return again + self._take(size - len(again)) if size > len(again) else again

    def _take(self, size: int) -> bytes:
        data = bytes(self._stream.read(size))
        self._position += len(data)
        self._kept = (self._kept + data)[-KEPT:] if len(data) < KEPT else data[-KEPT:]
        if self._position > FREE_RATIO and self._position > self._limits.ratio * max(self._packed.tell(), 1):
            raise LaryError(
                f"The archive {self._name} unpacks to more than {self._limits.ratio:g} times its size: {REFUSED}"
            )
        return data


def open_tar(name: str, joined: JoinedFile, stack: ExitStack, limits: Limits) -> tuple[tarfile.TarFile, Guard]:
    """A tar for reading, and the stream below it; `stack` closes both. Raises LaryError, tarfile.TarError."""
    lower = name.lower()
    stream: Any = joined
    if lower.endswith((".tar.gz", ".tgz")):
        stream = stack.enter_context(gzip.GzipFile(fileobj=cast("IO[bytes]", joined), mode="rb"))
    elif lower.endswith(".tar.bz2"):
        stream = stack.enter_context(bz2.BZ2File(cast("IO[bytes]", joined)))
    elif lower.endswith(".tar.xz"):
        stream = stack.enter_context(lzma.LZMAFile(cast("IO[bytes]", joined)))  # noqa: SIM115 (the stack closes it)
    elif lower.endswith(".tar.zst"):
        raise LaryError(
            f"The archive {name} is packed by zstd, which is not read here: unpack it with 'zstd -d' first."
        )
    guard = Guard(name, stream, joined, limits)
    return tarfile.open(fileobj=cast("IO[bytes]", guard), mode="r:", errorlevel=2), guard
