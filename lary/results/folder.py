"""The one writer of a run's folder, and the readers that find finished runs.

A run writes below ``.work/``; once complete, its files move to the run's
folder, and ``result.json`` with their SHA-256 comes last. A kill leaves no
result, or a staged one that the next command publishes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lary import __version__
from lary.files import file_digest, inside, read_limited, refuse_link, remove_torn, write_text
from lary.locks import locked
from lary.results.record import FILE_NAME, USUAL_PROBES, EvalResult, read_result, write_result
from lary.runtime import log
from lary.types import LaryError, UsageError

WORK = ".work"
IDENTITY = "identity"
STATE = "training_state.pt"
"""A file that only an interrupted run needs."""
AGAIN = "Run the probe again with --overwrite."
NO_RUN = "There is no finished run below {}: run 'lary classify' or 'lary regress' first."

Broken = tuple[Path, str]
"""A file that can't be read, and the reason."""


def publish(work: Path, result: EvalResult) -> EvalResult:
    """Move all files out of ``.work/``, the result last; returns it with digests."""
    remove_torn(work, below=True)
    digests = {
        path.relative_to(work).as_posix(): file_digest(path, 64)
        for path in sorted(work.rglob("*"))
        if path.is_file() and path.name != STATE and path not in (work / IDENTITY, work / FILE_NAME)
    }
    result = result.model_copy(update={"files": digests})
    write_result(work / FILE_NAME, result)
    _move(work.parent)
    return result


@contextmanager
def writing(
    folder: Path, identity: str, check: Callable[[], object] = bool, *, resume: bool = True, leads: bool = True
) -> Iterator[Path]:
    """Hold a run's folder for writing in its ``.work/``; files of the same `identity` are kept to `resume`.

    Of processes that train together only the one that `leads` takes the lock.
    Raises LaryError where another process writes there, or where `check`, under
    the lock, finds or raises of a result that is new.
    """
    work = folder / WORK
    if not leads:
        yield work
        return
    with locked(folder):
        refuse_link(work)
        _move(folder)
        if check():
            raise LaryError(f"{folder} was just finished by another process: start this command again.")
        mark = work / IDENTITY
        wanted = f"{identity} {__version__}"
        known = ""
        with suppress(OSError):
            known = read_limited(mark, 1 << 12).decode(errors="replace")
        if work.exists() and not (resume and known == wanted):
            shutil.rmtree(work)
        # Version 0.1 kept states beside the results; none fits a newer identity.
        for old in (folder / STATE, *folder.glob(f"seed_*/{STATE}")):
            old.unlink(missing_ok=True)
        remove_torn(work, below=True)
        write_text(mark, wanted)
        yield work


def settle(folder: Path) -> None:
    """Complete an interrupted publication. Raises LaryError as `writing` does."""
    if (folder / WORK / FILE_NAME).is_file():
        with locked(folder):
            _move(folder)


def _move(folder: Path) -> None:
    """Move the files of a staged result, if there is one, to their folder."""
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
        source = inside(work, name)
        target = inside(folder, name)
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


# --- finished runs ---


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, with its number among those that were found."""

    folder: Path
    result: EvalResult
    number: int = 0

    @property
    def settings(self) -> tuple[str, ...]:
        """What runs must share to be in one figure, besides the data set."""
        own = self.result
        probe = [own.probe] * (own.probe not in USUAL_PROBES) + [f"{own.folds}-folds"] * bool(own.folds)
        return own.protocol, own.preset, own.action_mode or "", "-".join(probe)

    @property
    def suffix(self) -> str:
        """The settings that aren't the usual ones, for file names."""
        usual = ("corrected", "paper", "absolute", "")
        pairs = zip(self.settings, usual, strict=True)
        return "".join(f"_{own}" for own, common in pairs if own not in (common, ""))

    @property
    def about(self) -> str:
        """The settings for the title of a figure."""
        names = ("protocol", "preset", "actions", "probe")
        return ", ".join(f"{name} {own}" for name, own in zip(names, self.settings, strict=True) if own)

    def file(self, name: str) -> Path:
        """A file that the result names, checked against its digest. Raises LaryError.

        Results of version 0.1 have no digests, and are believed.
        """
        path = inside(self.folder, name)
        digests = self.result.files
        if not any(digests.values()):
            return path
        if name not in digests:
            where = self.folder / FILE_NAME
            raise LaryError(f"{where} names no file {name}, so none there belongs to this run. {AGAIN}")
        try:
            found = file_digest(path, 64)
        except OSError as error:
            raise LaryError(f"{path} can't be read: {error.strerror or error}. {AGAIN}") from error
        if found != digests[name]:
            raise LaryError(f"{path} is not the file that the run wrote: its digest differs. {AGAIN}")
        return path


def choice_of(result: EvalResult) -> str:
    """How the reported epoch came about."""
    older = result.protocol == "corrected" and "choice" not in result.options
    return "picked on a held-out tenth" if older else "averaged"


def finished_run(place: Path) -> FinishedRun:
    """The run of a folder or ``result.json``. Raises UsageError without one."""
    folder = place.parent if place.name == FILE_NAME else place
    if not (folder / FILE_NAME).exists():
        raise UsageError(f"{folder} holds no {FILE_NAME}: name the folder of a finished run, below $LARY_LOG_DIR.")
    return FinishedRun(folder, read_result(folder / FILE_NAME))


def find_results(folder: Path) -> tuple[list[FinishedRun], list[Broken]]:
    """Finished runs below a folder, and unreadable results. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: name the folder that holds the runs, such as $LARY_LOG_DIR.")
    runs: list[FinishedRun] = []
    broken: list[Broken] = []
    for path in sorted(folder.rglob(FILE_NAME)):
        if path.parent.name == WORK:  # staged, not published
            continue
        try:
            runs.append(FinishedRun(path.parent, read_result(path), len(runs) + 1))
        except LaryError as error:
            log.warning("left out: %s", error)
            broken.append((path.relative_to(folder), str(error).replace(str(path), path.name)))
    return runs, broken
