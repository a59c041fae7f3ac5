"""One writer at a time per store: a lock that ends with its process, also when that is killed.

Where the file system has locks (``flock``; on NFS since version 4 also between machines) the kernel frees them. Where
it has none, the file itself is the lock, and one whose process is gone from this machine doesn't count.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lary.files import cannot_write
from lary.types import LaryError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it isn't there.

    Raises:
        LaryError: another process holds it, the folder can't be written to, or the lock is no file of its own.
    """
    file = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(file)
    except OSError as error:
        raise cannot_write(file, error) from error
    try:
        yield
    finally:
        if _is_still(handle, file):  # else the folder was exchanged meanwhile
            with suppress(OSError):
                file.unlink()
        os.close(handle)


def _take(file: Path) -> int:
    while True:
        handle = _open(file)
        try:
            if not _hold(handle):
                raise LaryError(f"{file.parent} is being written {_holder(file)}: wait for it, or stop it first.")
            if _is_still(handle, file):
                _sign(handle, file)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it meanwhile: the file of this name is another one


def _open(file: Path) -> int:
    """Open or make the file of a lock. Raises LaryError for a link, since what it leads to would be overwritten."""
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_lock(file) from None
        raise
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        os.close(handle)
        raise _no_lock(file)
    return handle


def _no_lock(file: Path) -> LaryError:
    return LaryError(f"{file} is a link or no regular file, so it can't be a lock: remove it.")


def _sign(handle: int, file: Path) -> None:
    """Write who holds the lock into its file, which goes again where the disk has no room for that."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)
    except OSError:
        file.unlink(missing_ok=True)
        raise


def _hold(handle: int) -> bool:
    """Lock an open file; by what stands in it where there are no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:
            pass  # no locks on this file system
    try:
        about = json.loads(os.pread(handle, 4096, 0) or b"{}")
    except ValueError:
        return True
    if not about:
        return True
    return about.get("host") == socket.gethostname() and not _alive(int(about.get("pid", 0)))


def _alive(pid: int) -> bool:
    if pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_still(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False


def _holder(file: Path) -> str:
    try:
        about = json.loads(file.read_text())
        return f"by process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by another process"
