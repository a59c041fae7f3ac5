"""Unpacking archives of strangers: regular files and folders inside the target, nothing else, within limits.

Tar (plain, gzip, bzip2, xz) and zip, also split into parts. Every member is checked before its first byte is written,
and what comes out is counted as it comes, whatever the headers announce. All is written into a new temporary folder
beside the target, and moved into place only once the whole archive was read to its end.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from lary.data.archive_streams import BLOCK, FREE_RATIO, REFUSED, JoinedFile, Limits, open_tar
from lary.types import LaryError, Progress

KINDS = re.compile(r"\.(tar|tgz|tar\.gz|tar\.bz2|tar\.xz|tar\.zst|zip)$", re.IGNORECASE)
PART = re.compile(
    r"^(?P<whole>.+\.(?:tar|tgz|tar\.gz|tar\.bz2|tar\.xz|tar\.zst|zip))[._-]?(?:part)?[._-]?(?P<number>\d{1,5}|[a-z]{2,3})$",
    re.IGNORECASE,
)
USUAL = Limits()
SCRATCH = ".lary_unpack_"
"""How the temporary folders are called."""
DRIVE = re.compile(r"^[A-Za-z]:")
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError,
)  # fmt: skip
"""What the readers of a torn or odd archive raise."""


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive: numbers of files and bytes, and the files that were there already, unchanged."""

    files: int
    bytes: int
    kept: int


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
        LaryError: a part is missing, which numbers or letters tell, save for the last ones.
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
        numbers = [_part_number(label) for label in labels]
        order = sorted(range(len(parts)), key=numbers.__getitem__)
        found = [numbers[at] for at in order]
        if found[0] not in (0, 1) or found != list(range(found[0], found[0] + len(found))):
            raise LaryError(f"The parts of {whole} have a gap: there are {', '.join(labels)}. Fetch the missing ones.")
        groups[whole] = [parts[at] for at in order]
    return {whole: tuple(parts) for whole, parts in groups.items()}


def _part_number(label: str) -> int:
    if label.isdigit():
        return int(label)
    number = 0
    for letter in label:
        number = number * 26 + ord(letter) - ord("a")
    return number


def unpack(
    parts: Sequence[Path],
    place: Callable[[str], str],
    target: Path,
    limits: Limits = USUAL,
    progress: Progress | None = None,
) -> Unpacked:
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
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=target))
    try:
        writer = _Writer(name, scratch, place, limits, shutil.disk_usage(target).free, progress)
        with ExitStack() as stack:
            joined = stack.enter_context(JoinedFile(parts))
            try:
                (_read_zip if name.lower().endswith(".zip") else _read_tar)(name, joined, writer, stack)
            except BROKEN as error:
                raise LaryError(f"The archive {name} can't be unpacked: {error}. Fetch it again.") from error
        kept = _move(name, scratch, target)
        return Unpacked(writer.files, writer.total, kept)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def member_names(parts: Sequence[Path], count: int = 50) -> list[str]:
    """The first paths in an archive, as they stand there, for finding out where it belongs.

    Raises:
        LaryError: the archive can't be read.
    """
    name, names = whole_name(parts[0].name), []
    with ExitStack() as stack:
        joined = stack.enter_context(JoinedFile(parts))
        try:
            if name.lower().endswith(".zip"):
                return [entry.filename for entry in zipfile.ZipFile(cast("IO[bytes]", joined)).infolist()[:count]]
            tar = stack.enter_context(open_tar(name, joined, stack, Limits())[0])
            for member in tar:
                names.append(member.name + ("/" if member.isdir() else ""))
                if len(names) == count:
                    break
        except BROKEN as error:
            raise LaryError(f"The archive {name} can't be read: {error}. Fetch it again.") from error
    return names


# Reading


def _read_tar(name: str, joined: JoinedFile, writer: _Writer, stack: ExitStack) -> None:
    tar, guard = open_tar(name, joined, stack, writer.limits)
    stack.enter_context(tar)
    while (member := tar.next()) is not None:
        cast("Any", tar).members = []  # tarfile keeps every header otherwise: gigabytes for millions of files
        if member.isdir():
            writer.folder(member.name)
            continue
        if not member.isreg() or member.issparse():
            raise LaryError(f"The archive {name} holds {tar_kind(member)}, '{shown(member.name)}': {REFUSED}")
        content = tar.extractfile(member)
        assert content is not None, "a regular file has content"
        writer.file(member.name, member.size, content)
    # tarfile takes a torn or changed header for the end, so the end is looked at: zeros, and nothing behind them.
    guard.seek(tar.offset)
    end = guard.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise LaryError(f"The archive {name} ends early or is damaged at byte {tar.offset}. Fetch it again.")
    while block := guard.read(BLOCK):
        if any(block):
            raise LaryError(f"The archive {name} has data behind its end: {REFUSED}")


def _read_zip(name: str, joined: JoinedFile, writer: _Writer, stack: ExitStack) -> None:
    archive = stack.enter_context(zipfile.ZipFile(cast("IO[bytes]", joined)))
    for entry in archive.infolist():
        mode = stat.S_IFMT(entry.external_attr >> 16)
        if entry.orig_filename != entry.filename or "\\" in entry.orig_filename:
            raise LaryError(f"The archive {name} holds the odd name '{shown(entry.orig_filename)}': {REFUSED}")
        if entry.flag_bits & 1:
            raise LaryError(f"The archive {name} is encrypted: unpack it by hand.")
        if entry.is_dir():
            if mode not in (0, stat.S_IFDIR):
                raise LaryError(f"The archive {name} holds a special file, '{shown(entry.filename)}': {REFUSED}")
            writer.folder(entry.filename)
            continue
        if mode not in (0, stat.S_IFREG):
            kind = "a link" if mode == stat.S_IFLNK else "a special file"
            raise LaryError(f"The archive {name} holds {kind}, '{shown(entry.filename)}': {REFUSED}")
        if entry.file_size > FREE_RATIO and entry.file_size > writer.limits.ratio * max(entry.compress_size, 1):
            raise LaryError(f"The archive {name} unpacks '{shown(entry.filename)}' to more than "
                            f"{writer.limits.ratio:g} times its size: {REFUSED}")  # fmt: skip
        writer.packed = joined.size
        with archive.open(entry) as content:
            writer.file(entry.filename, entry.file_size, content)


def tar_kind(member: tarfile.TarInfo) -> str:
    """What a member of a tar is, in words."""
    if member.issym() or member.islnk():
        return "a link"
    if member.issparse():
        return "a sparse file"
    return "a device" if member.isdev() else f"a member of type {member.type!r}"


def shown(name: str) -> str:
    """A name from an archive, safe to print."""
    return name.encode("ascii", "backslashreplace").decode("ascii")[:200].translate(dict.fromkeys(range(32), "?"))


# Writing


class _Writer:
    """Writes members below a folder, after holding their names and sizes against the limits."""

    def __init__(
        self, name: str, folder: Path, place: Callable[[str], str], limits: Limits, free: int, progress: Progress | None
    ) -> None:
        self.name, self.limits = name, limits
        self.files = self.total = self._members = 0
        self.packed = 0
        self._made: dict[Path, tuple[int, int]] = {}
        self._folder, self._place, self._free, self._progress = folder, place, free, progress

    def folder(self, name: str) -> None:
        path = self._path(name.rstrip("/"))
        if path is not None:
            self._make(path, name)

    def file(self, name: str, size: int, content: IO[bytes]) -> None:
        path = self._path(name)
        if path is None:
            raise LaryError(f"The archive {self.name} holds a file without a name: {REFUSED}")
        self._allow(name, size)
        self._make(path.parent, name)
        written = 0
        try:
            with path.open("xb") as out:
                while block := content.read(BLOCK):
                    written += len(block)
                    if written > size:
                        raise LaryError(f"'{shown(name)}' in {self.name} is longer than it announces: {REFUSED}")
                    out.write(block)
                    if self._progress is not None:
                        self._progress.advance(len(block))
        except FileExistsError:
            raise LaryError(f"The archive {self.name} holds '{shown(name)}' twice: {REFUSED}") from None
        if written != size:
            raise LaryError(f"The archive {self.name} ends early, in '{shown(name)}'. Fetch it again.")
        self.files += 1
        self.total += written

    def _allow(self, name: str, size: int) -> None:
        total, limits = self.total + size, self.limits
        if size < 0 or size > limits.member_bytes or total > limits.total_bytes:
            raise LaryError(
                f"The archive {self.name} is larger than allowed: '{shown(name)}' has {size} bytes, {total} with what "
                f"comes before; {REFUSED}"
            )
        if total > self._free:
            raise LaryError(f"There is no space for {self.name}: {total} bytes or more, and {self._free} are free.")
        if self.packed and total > FREE_RATIO and total > limits.ratio * self.packed:
            raise LaryError(f"The archive {self.name} unpacks to more than {limits.ratio:g} times its size: {REFUSED}")

    def _make(self, path: Path, name: str) -> None:
        if path not in self._made:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise LaryError(f"'{shown(name)}' in {self.name} is both a file and a folder: {REFUSED}") from None
            self._made[path] = identity(path)
        if self._made[path] != identity(path):
            raise LaryError(f"The folder {path} was exchanged while {self.name} was unpacked: {REFUSED}")

    def _path(self, name: str) -> Path | None:
        """Where a member is written; None for the archive's own root."""
        self._members += 1
        if self._members > self.limits.members:
            raise LaryError(f"The archive {self.name} holds more than {self.limits.members} members: {REFUSED}")
        clean = safe_name(name, self.limits.name_bytes)
        if clean is None:
            raise LaryError(f"The archive {self.name} holds the path '{shown(name)}', which leaves the target or is "
                            f"no plain name: {REFUSED}")  # fmt: skip
        if not clean:
            return None
        placed = safe_name(self._place(clean), self.limits.name_bytes)
        assert placed, f"'{clean}' must be placed below the target"
        return self._folder / placed


def identity(path: Path) -> tuple[int, int]:
    """Device and number of a folder, none for a link in its place."""
    facts = path.lstat()
    return (facts.st_dev, facts.st_ino) if stat.S_ISDIR(facts.st_mode) else (-1, -1)


def safe_name(name: str, longest: int = 1024) -> str | None:
    """A member's path without ``.`` and doubled slashes, empty for the root; None if it isn't one below it."""
    try:
        data = name.encode("utf-8")
    except UnicodeEncodeError:
        return None
    if len(data) > longest or name.startswith("/") or "\\" in name or DRIVE.match(name):
        return None
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or any(len(part.encode("utf-8")) > 255 for part in parts):
        return None
    return "/".join(parts)


def _move(name: str, source: Path, target: Path) -> int:
    """Move a tree into another by renaming; counts files that were there with the same content.

    Conflicts are looked for before the first rename.
    """
    kept = 0
    for path, there in _pairs(source, target):
        if path.is_dir() != there.is_dir() or (path.is_file() and not _same(path, there)):
            raise LaryError(f"{there} exists with other content than in {name}: move it away and start again.")
        kept += path.is_file()
    for path, there in list(_pairs(source, target, renaming=True)):
        if there.exists():
            path.unlink()
        else:
            os.replace(path, there)
    return kept


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


def _same(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while block := one.read(BLOCK):
            if block != other.read(BLOCK):
                return False
    return True
