"""Unpacking untrusted archives: files and folders alone, below the target, within limits.

Tar (plain, gzip, bzip2, xz) and zip, also in parts. Files are written into a new folder and moved
into place once the archive was read to its end.
"""

from __future__ import annotations

import bz2
import filecmp
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from lary.files import inside
from lary.types import LaryError, Progress, UsageError

SUFFIX = r"\.(?:tar\.gz|tar\.bz2|tar\.xz|tar\.zst|tar|tgz|zip)"
PART = r"[._-]?(?:part)?[._-]?(?:\d{1,5}|[a-z]{2,3})"
ARCHIVE = re.compile(rf"(.+?{SUFFIX})(?:{PART})?", re.IGNORECASE)
"""Name of an archive, or of a part of one, which adds a number or letters."""
SCRATCH = ".lary_unpack_"
"""Prefix of the temporary folders."""
BLOCK = 1 << 20
LARGEST_EXTRA = 1 << 24
"""Bytes of an extended tar header, read into memory, and of a tar's padding."""
EXTENDED = (*b"LKxgX",)
"""Types of headers that hold more than their block: of GNU, pax and Solaris."""
CONTENT = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE)
# Readers that verify checksum and end of the compressed stream, which tarfile's own don't.
PACKINGS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
Member = tuple[str, int, int, "IO[bytes] | None"]
"""Path and size, all that is unpacked with it, and the content; None for a folder."""


class Limits(NamedTuple):
    """What an archive may grow to: files and folders, and bytes of all files.

    `ratio` is bytes out per byte in (PNG, MP4 and NPY stay near 1), and counts
    after `free_bytes`.
    """

    members: int = 20_000_000
    total_bytes: int = 2 << 40
    ratio: float = 200.0
    free_bytes: int = 1 << 28


class _Refused(Exception):
    """Why an archive is refused: the sentence after its name."""


def whole_name(name: str) -> str:
    """The archive that a file is or is a part of, ``a.tar`` for ``a.tar.part-aa``; else empty."""
    found = ARCHIVE.fullmatch(name)
    return found[1] if found else ""


def _shown(name: str) -> str:
    """A name from an archive, safe to print."""
    return ascii(name)[:200]


# Reading


class _Joined(io.RawIOBase):
    """The parts of a split archive as one stream."""

    def __init__(self, files: list[Any]) -> None:
        self._files = files

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._files:
            count: int = self._files[0].readinto(buffer)
            if count:
                return count
            self._files.pop(0)
        return 0


class _Header(tarfile.TarInfo):
    """A header of a tar that is validated before tarfile acts on it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the mark of the end
                raise
            # tarfile takes a torn or changed header for the end.
            raise ValueError("it ends early, or a header is wrong") from None
        if header.type[0] in EXTENDED:
            if not 0 <= header.size <= LARGEST_EXTRA:
                raise _Refused("has a header that is too large")
        elif header.type not in CONTENT:
            link = header.issym() or header.islnk()
            kind = "a link" if link else f"a special file of type {header.type!r}"
            raise _Refused(f"holds {kind}, {_shown(header.name)}")
        return header


def _members(parts: Sequence[Path]) -> Iterator[Member]:
    """The members of an archive; the content of each is read before the next."""
    with ExitStack() as stack:
        files: list[Any] = [stack.enter_context(path.open("rb")) for path in parts]
        whole, packed = files[0], io.BufferedReader(_Joined(files), BLOCK)
        if whole_name(parts[0].name).lower().endswith(".zip"):
            if len(parts) > 1:  # zipfile starts at the end, where the list of members is
                whole = stack.enter_context(tempfile.TemporaryFile(dir=parts[0].parent))
                shutil.copyfileobj(packed, whole)
            yield from _zip_members(stack.enter_context(zipfile.ZipFile(whole)))
            return
        head = packed.peek(8)
        stream: Any = next((read(packed) for mark, read in PACKINGS.items() if head.startswith(mark)), packed)
        yield from _tar_members(stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header)))


def _tar_members(tar: tarfile.TarFile) -> Iterator[Member]:
    reader: Any = tar
    while member := tar.next():
        reader.members = []  # tarfile keeps every header otherwise: gigabytes for millions of files
        if member.issparse():
            raise _Refused(f"holds a sparse file, {_shown(member.name)}")
        # The offset counts headers, too: millions of empty files are a bomb as well.
        yield member.name, member.size, tar.offset, None if member.isdir() else tar.extractfile(member)
    rest = reader.fileobj.read(LARGEST_EXTRA)  # up to the checksum of a compressed stream
    if rest.strip(b"\0") or len(rest) == LARGEST_EXTRA:
        raise _Refused("has data behind its end")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    end = 0
    for entry in archive.infolist():
        # The name as it is written: zipfile cuts it off at a zero byte.
        name, mode = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
        if mode not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            raise _Refused(f"holds {'a link' if mode == stat.S_IFLNK else 'a special file'}, {_shown(name)}")
        end += entry.file_size
        if entry.is_dir():
            yield name, 0, end, None
        else:  # zipfile reads no more of a member than its announced size
            with archive.open(entry) as content:
                yield name, entry.file_size, end, content


# Writing


def unpack(
    parts: Sequence[Path],
    place: Callable[[str], str],
    target: Path,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> None:
    """Unpack an archive, given its `parts` in order, below `target`.

    `place` gives the path of a member below `target`; `progress` counts bytes. Raises LaryError,
    leaving nothing behind, for a torn archive, links and special files, paths out of the target,
    more than the limits, or other content in the place of a file.
    """
    name, limits = whole_name(parts[0].name), limits or Limits()
    if name.lower().endswith(".tar.zst"):
        raise LaryError(f"The archive {name} is packed by zstd, which isn't read here: unpack it with 'zstd -d' first.")
    allowed = max(limits.free_bytes, limits.ratio * sum(path.stat().st_size for path in parts))
    target.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=target)).resolve()
    free, total = shutil.disk_usage(target).free, 0
    try:
        for number, (path, size, end, content) in enumerate(_members(parts), 1):
            total += size
            if number > limits.members or not 0 <= size <= total <= limits.total_bytes:
                raise _Refused(f"is larger than allowed, at member {number} of {size} bytes")
            if end > allowed:
                raise _Refused(f"unpacks to more than {limits.ratio:g} times its size")
            if total > free:
                raise LaryError(f"There is no space for {name}: {total} bytes or more, and {free} are free.")
            try:
                clean = inside(Path(), path).as_posix()
            except UsageError:
                raise _Refused(f"holds {_shown(path)}, which is no plain path below the target") from None
            if content:  # folders come with their files
                _write(content, size, _shown(path), scratch / place(clean), progress)
        _move(name, scratch, target)
    except LaryError:
        raise
    except _Refused as error:
        raise LaryError(f"The archive {name} {error}: it is refused, nothing of it was written.") from None
    except Exception as error:  # each reader has errors of its own
        raise LaryError(f"The archive {name} can't be unpacked: {error}. Fetch it again.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(content: IO[bytes], size: int, shown: str, path: Path, progress: Progress | None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.resolve() != path.parent:  # another process has put a link in its place
            raise _Refused(f"was being unpacked when the folder {path.parent} was exchanged")
        with path.open("xb") as out:
            while block := content.read(BLOCK):
                size -= out.write(block)
                if progress:
                    progress.advance(len(block))
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _Refused(f"holds {shown} twice, or as a file and as a folder") from None
    if size:
        raise ValueError(f"it ends early, in {shown}")


def _move(name: str, source: Path, target: Path) -> None:
    """Move a tree into another; a file that is there must have the same content."""
    for path in source.rglob("*"):  # all conflicts are found before the first rename
        there = target / path.relative_to(source)
        if path.is_symlink():
            raise _Refused(f"was being unpacked when {path} became a link")
        if not there.exists() or (path.is_dir() and there.is_dir()):
            continue
        if path.is_dir() or there.is_dir() or not filecmp.cmp(path, there, shallow=False):
            raise LaryError(f"{there} exists with other content than in {name}: move it away.")
    for top, folders, files in os.walk(source):
        there = target / Path(top).relative_to(source)
        for folder in folders:
            (there / folder).mkdir(exist_ok=True)
        for file in files:
            os.replace(Path(top, file), there / file)
