"""One writer at a time per folder, by a lock that ends with its process.

The kernel frees a process's locks when it ends, also when it is killed
(``flock``; on NFS since version 4 also between machines). Elsewhere a file
with the process's number is the lock, while that process runs.
"""

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from lary.files import cannot_write
from lary.types import LaryError

LOCK, WITHOUT_FLOCK = "lock", "lock.pid"
PATIENCE = 0.2
"""Seconds to wait for a lock, whose holder may just be leaving."""
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without ``flock``."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it isn't there.

    Raises LaryError where another process holds it, the folder can't be
    written to, or a link is in place of the lock.
    """
    file = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_own(file)
        lock = _taken(file)
    except filelock.Timeout:
        who = _holder(file)
        raise LaryError(f"{folder} is being written {who}: wait for it, or stop it first.") from None
    except OSError as error:
        raise cannot_write(file, error) from error
    own = file.lstat() if file.exists() else None
    try:
        _sign(file)
        yield
    finally:
        # The folder may have been replaced: another writer's lock has to stay.
        with suppress(OSError):
            if own is not None and os.path.samestat(own, file.lstat()):
                file.unlink()
        lock.release()


def _check_own(file: Path) -> None:
    """Refuse links and folders: the file behind a link would be overwritten."""
    with suppress(FileNotFoundError):
        facts = file.lstat()
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise LaryError(f"{file} is a link or no regular file, so it can't be a lock: remove it.")


def _taken(file: Path) -> filelock.BaseFileLock:
    """The kernel's lock, or where there is none a file with the process's number."""
    lock: filelock.BaseFileLock = filelock.FileLock(file, PATIENCE)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_FLOCK:
            raise
        lock = filelock.SoftFileLock(file.with_name(WITHOUT_FLOCK), PATIENCE)
        lock.acquire()
    return lock


def _sign(file: Path) -> None:
    """Write who holds the lock into its file, unless it is the library's own."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        handle = os.open(file, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if os.pread(handle, 1, 0) in (b"", b"{"):
                os.truncate(handle, 0)
                os.pwrite(handle, json.dumps(about).encode(), 0)
        finally:
            os.close(handle)
    except OSError as error:
        raise cannot_write(file, error) from error


def _holder(file: Path) -> str:
    try:
        about = json.loads(file.read_text())
        return f"by process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        pid = filelock.SoftFileLock(file.with_name(WITHOUT_FLOCK)).pid
        return f"by process {pid}" if pid else "by another process"
