"""Unpacking untrusted archives: regular files and folders below the target, nothing else, within limits.

Tar (plain, gzip, bzip2, xz) and zip, also split into parts. Every member is validated before its first byte is
written, and what is written is counted, whatever the headers announce. All is written into a new temporary folder
beside the target, and moved into place only once the whole archive was read to its end.
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
import zlib
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from lary.types import LaryError, Progress

SUFFIX = r"\.(?:tar|tgz|tar\.gz|tar\.bz2|tar\.xz|tar\.zst|zip)"
KINDS = re.compile(rf"{SUFFIX}$", re.IGNORECASE)
PART = re.compile(rf"^(?P<whole>.+{SUFFIX})[._-]?(?:part)?[._-]?(?P<number>\d{{1,5}}|[a-z]{{2,3}})$", re.IGNORECASE)
SCRATCH = ".lary_unpack_"
"""Prefix of the temporary folders."""
BLOCK = 1 << 20
LARGEST_HEADER = 1 << 24
"""Bytes of an extended tar header: tarfile reads one into memory at the length that it announces."""
HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
CONTENT = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE)
REFUSED = "it is refused, and nothing of it was written."
UNREADABLE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError,
)  # fmt: skip
"""What the readers of a torn or odd archive raise."""


@dataclass(frozen=True)
class Limits:
    """What an archive may grow to.

    Attributes:
        members: files and folders.
        total_bytes: of all files.
        ratio: bytes out per byte in; PNG, MP4 and NPY stay near 1.
        free_bytes: bytes that may come out before the ratio counts, since small archives of zeros are no attack.
    """

    members: int = 20_000_000
    total_bytes: int = 2 << 40
    ratio: float = 200.0
    free_bytes: int = 1 << 28


USUAL = Limits()


class Member(NamedTuple):
    """A file of an archive with its content, or a folder, which has none."""

    name: str
    size: int
    content: IO[bytes] | None


# Names


def is_archive(name: str) -> bool:
    """Whether a file's name is that of an archive or of a part of one."""
    return bool(KINDS.search(name) or PART.match(name))


def whole_name(name: str) -> str:
    """The name of the archive that a file is, or is a part of: ``a.tar`` for ``a.tar.part-aa`` or ``a.tar.001``."""
    found = PART.match(name)
    return name if found is None or KINDS.search(name) else found["whole"]


def group_parts(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Archives by whole name with their parts in order.

    Raises:
        LaryError: the numbers or letters of the parts have a gap. A missing end can't be seen here.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if is_archive(name):
            groups.setdefault(whole_name(name), []).append(name)
    for whole, parts in groups.items():
        if parts == [whole]:
            continue
        if whole in parts:
            raise LaryError(f"There are both {whole} and parts of it, such as {parts[-1]}: remove one of them.")
        labels = [cast("re.Match[str]", PART.match(part))["number"].lower() for part in parts]
        # Letters count in base 26, as `split` names its parts: aa, ab, ..., ba.
        numbers = [
            int(label) if label.isdigit() else sum((ord(c) - 97) * 26**at for at, c in enumerate(reversed(label)))
            for label in labels
        ]
        ranked = sorted(zip(numbers, parts, strict=True))
        if min(numbers) > 1 or sorted(numbers) != list(range(min(numbers), min(numbers) + len(parts))):
            raise LaryError(f"The parts of {whole} have a gap: there are {', '.join(labels)}. Fetch the missing ones.")
        groups[whole] = [part for _, part in ranked]
    return {whole: tuple(parts) for whole, parts in groups.items()}


def safe_name(name: str) -> str | None:
    """A member's path without ``.`` and doubled slashes, empty for the root; None if it isn't one below it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    try:
        too_long = len(name.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        return None
    if too_long or ".." in parts or name.startswith("/") or re.search(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:", name):
        return None
    return "/".join(parts)


def _shown(name: str) -> str:
    """A name from an archive, safe to print."""
    return name.encode("ascii", "backslashreplace").decode("ascii")[:200].translate(dict.fromkeys(range(32), "?"))


# Reading


class _Joined(io.RawIOBase):
    """The parts of a split archive as one binary file that can be read and sought."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._paths = parts
        self._starts = [0, *accumulate(path.stat().st_size for path in parts)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise OSError("negative position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._starts[-1]:
            return 0
        index = bisect_right(self._starts, self._position) - 1
        with self._paths[index].open("rb") as stream:
            stream.seek(self._position - self._starts[index])
            count = stream.readinto(memoryview(buffer)[: self._starts[index + 1] - self._position])
        if not count:
            raise OSError(f"{self._paths[index]} became shorter")
        self._position += count
        return int(count)


class _Counted:
    """A decompressed stream that is refused once it has grown out of proportion to what was read for it."""

    def __init__(self, name: str, stream: IO[bytes], packed: IO[bytes], limits: Limits) -> None:
        self._name, self._stream, self._packed, self._limits = name, stream, packed, limits
        self._count = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        _check_growth(self._name, self._count, self._packed.tell(), self._limits)
        return data


def _check_growth(name: str, size: int, packed: int, limits: Limits) -> None:
    if size > limits.free_bytes and size > limits.ratio * max(packed, 1):
        raise LaryError(f"The archive {name} unpacks to more than {limits.ratio:g} times its size: {REFUSED}")


def _header_class(name: str) -> type[tarfile.TarInfo]:
    """The class of an archive's headers, which refuses before tarfile acts on one."""

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            try:
                header = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the mark of the end
                    raise
                # tarfile takes a torn or changed header for the end.
                raise LaryError(
                    f"The archive {name} ends early or is damaged: a header is wrong. Fetch it again."
                ) from None
            if header.type in HEADERS:
                if not 0 <= header.size <= LARGEST_HEADER:
                    raise LaryError(f"The archive {name} has a header that is too large: {REFUSED}")
            elif header.type not in CONTENT:
                kinds = {tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a link", tarfile.GNUTYPE_SPARSE: "a sparse file"}
                kind = kinds.get(header.type) or ("a device" if header.isdev() else f"a member of type {header.type!r}")
                raise LaryError(f"The archive {name} holds {kind}, '{_shown(header.name)}': {REFUSED}")
            return header

    return Header


@contextmanager
def _opened(parts: Sequence[Path], limits: Limits) -> Iterator[Iterator[Member]]:
    """The members of an archive, validated one by one; whatever its reader raises becomes one sentence."""
    name = whole_name(parts[0].name)
    try:
        with (
            io.BufferedReader(_Joined(parts), BLOCK) as packed,
            closing((_zip_members if name.lower().endswith(".zip") else _tar_members)(name, packed, limits)) as members,
        ):
            yield members
    except LaryError:
        raise
    except UNREADABLE as error:
        raise LaryError(f"The archive {name} can't be unpacked: {error}. Fetch it again.") from error


def _tar_members(name: str, packed: Any, limits: Limits) -> Generator[Member, None, None]:
    lower, stream = name.lower(), cast("IO[bytes]", packed)
    if lower.endswith(("gz", "bz2", "xz")):
        opener: Any = gzip.open if lower.endswith("gz") else bz2.open if lower.endswith("bz2") else lzma.open
        stream = opener(packed)
    elif lower.endswith(".zst"):
        raise LaryError(f"The archive {name} is packed by zstd, which is not read: unpack it with 'zstd -d' first.")
    guard: Any = _Counted(name, stream, packed, limits)
    with stream, tarfile.open(fileobj=guard, mode="r|", errorlevel=2, tarinfo=_header_class(name)) as tar:
        while (member := tar.next()) is not None:
            cast("Any", tar).members = []  # tarfile keeps every header otherwise: gigabytes for millions of files
            if member.issparse():
                raise LaryError(f"The archive {name} holds a sparse file, '{_shown(member.name)}': {REFUSED}")
            yield Member(member.name, member.size, None if member.isdir() else tar.extractfile(member))
        rest = cast("IO[bytes]", tar.fileobj)
        while block := rest.read(BLOCK):
            if block.strip(b"\0"):
                raise LaryError(f"The archive {name} has data behind its end: {REFUSED}")


def _zip_members(name: str, packed: Any, limits: Limits) -> Generator[Member, None, None]:
    with zipfile.ZipFile(packed) as archive:
        # zipfile reads no more of a member than its announced size, so the sum is what can come out.
        size = sum(entry.file_size for entry in archive.infolist())
        _check_growth(name, size, packed.seek(0, os.SEEK_END), limits)
        for entry in archive.infolist():
            mode = stat.S_IFMT(entry.external_attr >> 16)
            if entry.orig_filename != entry.filename:
                raise LaryError(f"The archive {name} holds the odd name '{_shown(entry.orig_filename)}': {REFUSED}")
            if entry.flag_bits & 1:
                raise LaryError(f"The archive {name} is encrypted: unpack it by hand.")
            if mode not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
                kind = "a link" if mode == stat.S_IFLNK else "a special file"
                raise LaryError(f"The archive {name} holds {kind}, '{_shown(entry.filename)}': {REFUSED}")
            if entry.is_dir():
                yield Member(entry.filename, 0, None)
            else:
                with archive.open(entry) as content:
                    yield Member(entry.filename, entry.file_size, content)


def member_names(parts: Sequence[Path], count: int = 50) -> list[str]:
    """The first paths in an archive, for finding out where it belongs. Raises LaryError if it can't be read."""
    with _opened(parts, USUAL) as members:
        return [member.name for member in islice(members, count)]


# Writing


def unpack(
    parts: Sequence[Path],
    place: Callable[[str], str],
    target: Path,
    limits: Limits = USUAL,
    progress: Progress | None = None,
) -> None:
    """Unpack an archive, whole or in parts, below `target`.

    Args:
        parts: its files in order; one for an archive that is not split.
        place: path below `target` for the path of a member in the archive, with forward slashes.
        progress: advanced by the bytes that are written.

    Raises:
        LaryError: the archive is torn, has a member that is no file or folder or leaves the target, exceeds a limit, or
            would replace a file of other content. Nothing is left behind then.
    """
    name = whole_name(parts[0].name)
    target.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=target)).resolve()
    free, total = shutil.disk_usage(target).free, 0
    try:
        with _opened(parts, limits) as members:
            for number, member in enumerate(members, 1):
                shown, total = _shown(member.name), total + member.size
                if number > limits.members:
                    raise LaryError(f"The archive {name} holds more than {limits.members} members: {REFUSED}")
                if not 0 <= member.size <= total <= limits.total_bytes:
                    raise LaryError(
                        f"The archive {name} is larger than allowed: '{shown}' has {member.size} bytes, {total} with "
                        f"what comes before; {REFUSED}"
                    )
                if total > free:
                    raise LaryError(f"There is no space for {name}: {total} bytes or more, and {free} are free.")
                clean = safe_name(member.name)
                if clean is None:
                    raise LaryError(f"The archive {name} holds the path '{shown}', which leaves the target or is no "
                                    f"plain name: {REFUSED}")  # fmt: skip
                if clean:
                    placed = safe_name(place(clean))
                    assert placed, f"'{clean}' must be placed below the target"
                    _write(name, member, scratch / placed, progress)
                elif member.content is not None:
                    raise LaryError(f"The archive {name} holds a file without a name: {REFUSED}")
        _move(name, scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(name: str, member: Member, path: Path, progress: Progress | None) -> None:
    shown, folder = _shown(member.name), path.parent if member.content is not None else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise LaryError(f"'{shown}' in {name} is both a file and a folder: {REFUSED}") from None
    if folder.resolve() != folder:  # another process has put a link in its place
        raise LaryError(f"The folder {folder} was exchanged while {name} was unpacked: {REFUSED}")
    if member.content is None:
        return
    written = 0
    try:
        with path.open("xb") as out:
            while block := member.content.read(BLOCK):
                written += out.write(block)
                if progress is not None:
                    progress.advance(len(block))
    except FileExistsError:
        raise LaryError(f"The archive {name} holds '{shown}' twice: {REFUSED}") from None
    if written != member.size:
        raise LaryError(f"The archive {name} ends early, in '{shown}'. Fetch it again.")


def _move(name: str, source: Path, target: Path) -> None:
    """Move a tree into another by renaming; files that are there with the same content stay."""
    for path, there in _pairs(source, target):  # all conflicts are found before the first rename
        if path.is_dir() != there.is_dir() or (path.is_file() and not filecmp.cmp(path, there, shallow=False)):
            raise LaryError(f"{there} exists with other content than in {name}: move it away and start again.")
    for path, there in list(_pairs(source, target, renaming=True)):
        if there.exists():
            path.unlink()
        else:
            os.replace(path, there)


def _pairs(source: Path, target: Path, *, renaming: bool = False) -> Iterator[tuple[Path, Path]]:
    """Paths that exist on both sides; with `renaming` also the topmost ones that are new."""
    for path in sorted(source.iterdir()):
        if path.is_symlink():
            raise LaryError(f"{path} became a link while the archive was unpacked: it is refused.")
        there = target / path.name
        if not there.exists():
            if renaming:
                yield path, there
        elif path.is_dir() and there.is_dir():
            yield from _pairs(path, there, renaming=renaming)
        else:
            yield path, there
