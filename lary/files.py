"""Files that appear whole or not at all, and paths that stay inside their root."""

import csv
import errno
import functools
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from lary.types import Failure, LaryError, UsageError

Kind = TypeVar("Kind")
LARGEST_JSON = 1 << 26
"""In memory, JSON takes up to 20 times its size."""
LARGEST_FAILURES = 1 << 30
LARGEST_YAML = 1 << 17
"""Most bytes of a file that people write: about a hundred pages."""
DEEPEST_YAML = 16
ATTEMPTS = 16  # at a temporary file
PIECE = 1 << 18
"""Bytes of each of the 16 pieces by which a large media file is known."""
LONGEST_PATH, LONGEST_NAME = 4096, 255
CONTROL = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udc7f\\udd00-\\udfff]")
"""Characters that no path should have: controls, and lone surrogates.

U+DC80 to U+DCFF stay: by them, Python's paths hold bytes that aren't UTF-8
(PEP 383).
"""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of data sets and splits."""
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
"""Relative paths that are valid everywhere unless too long: a fast check."""

NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
REMEDIES = {
    **dict.fromkeys(NO_ROOM, "Free space and start the same command again."),
    errno.EFBIG: "Its file system or a limit of this account allows no file of this size.",
    errno.EROFS: "Choose another folder.",
    errno.EIO: "Check the disk, then start the same command again.",
}
"""Errors that would stop every other write too, and what to do."""


class WriteError(LaryError, OSError):
    """An `OSError`, too, for callers that count one as a failed sample."""


# Writing


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The error for a file that can't be written, and what to do."""
    remedy = REMEDIES.get(error.errno or 0, "Check the folder and its permissions.")
    return WriteError(f"Cannot write {path}: {error.strerror or error}. {remedy}")


def create_temporary(path: Path) -> tuple[int, str]:
    """Make a file beside `path` that `remove_torn` knows; returns descriptor and name. Raises WriteError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        for _ in range(ATTEMPTS):
            name = f"{path.parent}{os.sep}.{path.name}.{os.urandom(4).hex()}.tmp"
            try:
                return os.open(name, flags, 0o666), name  # less what this process's umask takes away
            except FileExistsError:
                continue
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
        raise OSError(errno.ENOENT, "its folder takes no files")
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary stream into a file that appears once it is complete.

    A temporary file beside it is synced to disk and renamed, or removed if the block fails.
    Raises WriteError where the folder takes no files, or the disk is full or broken.
    """
    handle, name = create_temporary(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(handle)
        os.replace(name, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(name)
        cause: BaseException | None = error  # libraries turn the error of a full disk into their own
        while cause is not None:
            # An error that names another file comes from reading that one.
            if isinstance(cause, OSError) and cause.errno in REMEDIES and cause.filename in (None, name):
                raise cannot_write(path, cause) from error
            cause = cause.__cause__ or cause.__context__
        raise


def remove_torn(folder: Path, name: str = "*", *, below: bool = False) -> None:
    """Remove what killed writers left of files of a name or pattern, in `folder` or anywhere `below` it.

    No other process may write there.
    """
    for file in (folder.rglob if below else folder.glob)(f".{name}.*.tmp"):
        with suppress(OSError):
            file.unlink()


def refuse_link(folder: Path) -> None:
    """Raise LaryError for a link in place of a folder: lary never makes one."""
    if folder.is_symlink():
        raise LaryError(f"{folder} is a link, which lary never makes: remove it.")


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; ValueError as `json_text`."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Lines of JSON; ValueError for NaN and infinity, which JSON lacks."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """The text of a CSV; the first of the lines names the columns."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def write_failures(file: Path, failures: Sequence[Failure]) -> None:
    """Write failures as CSV with row, path and reason.

    Without any, the list of an earlier run is removed. Rows count from 1, as
    in messages; there is no such column where no failure has one.
    """
    if not failures:
        file.unlink(missing_ok=True)
        return
    numbered = any(item.row is not None for item in failures)
    rows = (("" if item.row is None else item.row + 1, item.path, item.reason) for item in failures)
    text = csv_text(line[not numbered :] for line in (("row", "path", "reason"), *rows))
    write_bytes(file, text.encode("utf-8", "surrogateescape"))


# Reading


@contextmanager
def regular_handle(path: Path) -> Iterator[int]:
    """Open a regular file for reading; a pipe or device might never end.

    It is inspected once it is open, so that nothing is swapped in between.
    Raises OSError, ValueError for a null in it.
    """
    # O_NONBLOCK: to open a pipe would wait for its writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        yield handle
    finally:
        os.close(handle)


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """Open a stream of a regular file. Raises as `regular_handle`."""
    with regular_handle(path) as handle, os.fdopen(handle, "rb", closefd=False) as stream:
        yield stream


def read_limited(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises as `open_regular`."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than the {limit} allowed", str(path))
        return stream.read(size)


def read_json(path: Path, what: str) -> Any:
    """Read JSON; `what` names it in the LaryError for a missing or broken one."""
    return _parsed(path, what, LARGEST_JSON, json.loads, LaryError)


def first_error(error: Any) -> tuple[str, str]:
    """Where pydantic first rejects a value (``splits.train``), and why."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"]


@functools.cache  # to make one takes 8 ms
def adapter(kind: Any) -> Any:
    """The TypeAdapter of a type."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def parsed(kind: type[Kind], value: Any, what: str) -> Kind:
    """JSON as a type of pydantic. Raises LaryError."""
    from pydantic import ValidationError

    try:
        found: Kind = adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        where, why = first_error(error)
        raise LaryError(f"{what} is wrong at '{where}': {why}.") from error
    return found


def reason_of(error: BaseException) -> str:
    """The first line of a library's message; the next, too, below a heading."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if first.endswith(":") and rest:
        first = f"{first} {rest[0]}"
    return first.rstrip(".:")


def read_yaml(path: Path, what: str) -> Any:
    """Read a small YAML file of plain values.

    Raises UsageError for tags, for anchors, whose aliases can grow without end, and
    for a file that is missing, too large, too deeply nested, or not YAML.
    """
    return _parsed(path, what, LARGEST_YAML, _plain_yaml, UsageError)


def _parsed(path: Path, what: str, limit: int, parse: Callable[[bytes], Any], kind: type[LaryError]) -> Any:
    try:
        return parse(read_limited(path, limit))
    except FileNotFoundError:
        raise kind(f"The {what} {path} does not exist.") from None
    except RecursionError:
        raise kind(f"The {what} {path} can't be read: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise kind(f"The {what} {path} can't be read: {' '.join(str(error).split()).rstrip('.')}.") from error


def read_text(path: Path, what: str) -> str:
    """Read a small text; errors as `read_yaml`."""
    return str(_parsed(path, what, LARGEST_YAML, bytes.decode, UsageError))


def _plain_yaml(content: bytes) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """As in YAML 1.2, 1e-4 is a number."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+e[-+]?\d+$", re.I), None)
    text, depth = content.decode("utf-8-sig"), 0
    try:
        for event in yaml.parse(text, Loader):
            if getattr(event, "anchor", None):
                raise ValueError("anchors and aliases are not allowed: write the values out")
            if tag := getattr(event, "tag", None):
                raise ValueError(f"the tag {tag} is not allowed: write plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise RecursionError
        return Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def read_failures(file: Path) -> list[Failure]:
    """Read the failures of `write_failures`. Raises OSError, ValueError."""
    text = io.StringIO(read_limited(file, LARGEST_FAILURES).decode("utf-8", "surrogateescape"), newline="")
    try:
        lines = [(line.get("row"), line["path"], line["reason"]) for line in csv.DictReader(text)]
        return [Failure(int(row) - 1 if row else None, path, reason) for row, path, reason in lines]
    except (csv.Error, KeyError) as error:
        raise ValueError(f"it is no list of failures: {error}") from error


# Paths and digests


def path_problem(text: str) -> str:
    """Why no system takes a text as a path, in words; empty where one does."""
    if CONTROL.search(text):
        return "it holds control characters"
    if len(text) <= LONGEST_NAME // 4:  # UTF-8 has up to four bytes per character
        return ""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in data.split(b"/")):
        return "it is too long for a path"
    return ""


def inside(root: Path, relative: str) -> Path:
    """Join `relative` to `root`, refusing absolute paths, drives and ``..``.

    Tables are untrusted. Raises UsageError for a path that would leave the
    root, or that can't be a path.
    """
    if len(relative) <= LONGEST_NAME and PLAIN.fullmatch(relative):
        return root / relative
    pure = PurePosixPath(relative.replace("\\", "/"))
    if not relative or pure.is_absolute() or ".." in pure.parts or (pure.parts and ":" in pure.parts[0]):
        raise UsageError(f"The path '{relative}' leaves its root {root}: paths in tables are relative and inside it.")
    if problem := path_problem(relative):
        raise UsageError(f"{relative[:60]!r} is no path below {root}: {problem}.")
    return root / pure


def check_name(name: str, what: str) -> None:
    """Raise UsageError for what is no `NAME`."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{what} {name[:80]!r}: use at most 64 letters, digits, '.', '-' and '_'.")


def digest(*parts: str | bytes, length: int = 16) -> str:
    """A hexadecimal SHA-256 prefix over parts, each with its length: ("ab", "c") and ("a", "bc") differ."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(str(len(data)).encode() + b":" + data)
    return state.hexdigest()[:length]


def media_facts(path: Path) -> str:
    """A digest of a file's content, its size and time of change: 16, 16 and 20 letters.

    Above 4 MiB, the digest is that of 16 pieces at equal distances, head and
    tail among them. Raises OSError, ValueError.
    """
    with open_regular(path) as file:
        about = os.fstat(file.fileno())
        size, state = about.st_size, hashlib.sha256()
        for place in range(0, size, max(PIECE, -(-(size - PIECE) // 15))):
            file.seek(place)
            state.update(file.read(PIECE))
    return f"{state.hexdigest()[:16]} {size:016d} {about.st_mtime_ns:020d}"


def file_digest(path: Path, length: int = 16, state: Any = None) -> str:
    """A hexadecimal prefix of a file's SHA-256, or of another hash, `state`. Raises OSError."""
    state = state or hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            state.update(block)
    return str(state.hexdigest()[:length])
