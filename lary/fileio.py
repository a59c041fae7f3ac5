"""Files that appear whole or not at all, and paths that stay inside their root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lary.types import LaryError, UsageError


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _read_umask()
"""Read once: asking for it changes it for a moment, which threads would see."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name only once it is complete and on disk.

    Written to a temporary file in the same folder, flushed, fsynced and renamed; removed if the block fails.

    Raises:
        LaryError: the folder can't be made or written to.
    """
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise LaryError(f"Cannot write {path}: {error.strerror}. Check the folder and its permissions.") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~UMASK)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has none."""
    import json

    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file that `what` names for the user.

    Raises:
        LaryError: the file is missing or isn't JSON.
    """
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LaryError(f"The {what} {path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise LaryError(f"The {what} {path} can't be read: {error}.") from error


def inside(root: Path, relative: str) -> Path:
    """`relative` under `root`, refusing absolute paths and ``..`` (a table is data, not to be trusted).

    Raises:
        UsageError: the path would leave the root.
    """
    pure = PurePosixPath(relative.replace("\\", "/"))
    if not relative or pure.is_absolute() or ".." in pure.parts or (pure.parts and ":" in pure.parts[0]):
        raise UsageError(f"The path '{relative}' leaves its root {root}: paths in tables are relative and inside it.")
    return root / pure


def digest(*parts: str | bytes, length: int = 16) -> str:
    """A hexadecimal SHA-256 prefix over parts, each counted with its length so that borders matter."""
    import hashlib

    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(str(len(data)).encode() + b":" + data)
    return state.hexdigest()[:length]
