"""The one writer of a run's folder: work in progress in ``.work/``, and finished files that ``result.json`` names.

A run writes everything below ``.work/``. When it is complete, its result is staged there with the SHA-256 of every
other file, the files move to the run's folder, and ``result.json`` comes last. A kill at any moment leaves either no
result, or a staged one whose publication the next command completes. Readers use only files that the result names and
whose digest is still that of the result.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lary import __version__
from lary.files import file_digest, inside, read_limited, refuse_link, remove_torn, write_text
from lary.locks import locked
from lary.results.record import FILE_NAME, EvalResult, read_result, write_result
from lary.types import LaryError

WORK = ".work"
IDENTITY = "identity"
STATES = ("training_state.pt",)
"""Files that only an interrupted run needs."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run that is being written; `work` is where its files go until they are published."""

    folder: Path

    @property
    def work(self) -> Path:
        """The folder of unfinished files."""
        return self.folder / WORK

    def publish(self, result: EvalResult) -> EvalResult:
        """Move all files out of ``.work/`` and write the result behind them; returns the result with their digests."""
        remove_torn(self.work, below=True)
        names = sorted(path.relative_to(self.work).as_posix() for path in self.work.rglob("*") if path.is_file())
        own = (name for name in names if name not in (IDENTITY, FILE_NAME) and name.split("/")[-1] not in STATES)
        result = result.model_copy(update={"files": {name: file_digest(self.work / name, 64) for name in own}})
        write_result(self.work / FILE_NAME, result)
        _move(self.folder)
        return result


@contextmanager
def writing(folder: Path, identity: str, *, resume: bool = True, leads: bool = True) -> Iterator[RunFolder]:
    """Hold a run's folder for writing; unfinished files of the same `identity` are kept to `resume` from.

    Of several processes that train together only the one that `leads` takes the lock and prepares ``.work/``.

    Raises:
        LaryError: another process writes to the folder, or it can't be written to.
    """
    run = RunFolder(folder)
    if not leads:
        yield run
        return
    with locked(folder):
        refuse_link(run.work)
        _move(folder)
        mark, wanted = run.work / IDENTITY, f"{identity} {__version__}"
        if run.work.exists() and not (resume and _text(mark) == wanted):
            shutil.rmtree(run.work)
        for state in STATES:  # version 0.1 kept states beside the results; none fits a newer identity
            for old in (folder / state, *folder.glob(f"seed_*/{state}")):
                old.unlink(missing_ok=True)
        remove_torn(run.work, below=True)
        write_text(mark, wanted)
        yield run


def settle(folder: Path) -> None:
    """Complete a publication that was interrupted. Raises LaryError as `writing` does."""
    if (folder / WORK / FILE_NAME).is_file():
        with locked(folder):
            _move(folder)


def _move(folder: Path) -> None:
    """Move the files of a staged result to their folder, the result last; nothing without one."""
    work = folder / WORK
    staged, final = work / FILE_NAME, folder / FILE_NAME
    if not staged.is_file():
        return
    result = read_result(staged)
    stale: set[str] = set()
    with suppress(LaryError):
        stale = set(read_result(final).files) - set(result.files)
    final.unlink(missing_ok=True)  # it names files that change from here on
    for name in stale:
        inside(folder, name).unlink(missing_ok=True)
    for name in result.files:
        source, target = inside(work, name), inside(folder, name)
        if os.path.lexists(source):  # else it was moved before the interruption
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for path in work.iterdir():  # all but the result, so that a kill leaves nothing without one
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != staged:
            path.unlink()
    os.replace(staged, final)
    work.rmdir()


def run_file(folder: Path, result: EvalResult, name: str) -> Path:
    """A file that a result names, checked against its digest; results of version 0.1 have none, and are believed.

    Raises:
        LaryError: the result doesn't name the file, it is missing, or its content is another one.
    """
    path = inside(folder, name)
    if not any(result.files.values()):
        return path
    advice = "Run the probe again with --overwrite."
    if name not in result.files:
        raise LaryError(f"{folder / FILE_NAME} names no file {name}, so none there belongs to this run. {advice}")
    try:
        found = file_digest(path, 64)
    except OSError as error:
        raise LaryError(f"{path} can't be read: {error.strerror or error}. {advice}") from error
    if found != result.files[name]:
        raise LaryError(f"{path} is not the file that the run wrote: its digest differs. {advice}")
    return path


def _text(path: Path) -> str:
    """The content of a small file; empty where there is none."""
    try:
        return read_limited(path, 1 << 12).decode(errors="replace")
    except OSError:
        return ""
