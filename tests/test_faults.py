"""Full disks and kills: a short run of ``benchmarks/faults``, and the sentences of a full disk."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from lary.files import WriteError, atomic_write, remove_torn, write_text
from lary.types import LaryError

REPOSITORY = Path(__file__).parent.parent


def test_extractions_that_are_killed() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.faults.kills", "--kills", "2", "--probe-kills", "0",
               "--rows", "32"]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert "2 kills" in last, last
    assert " 0 differences" in last, last


def test_a_disk_that_takes_nothing_more_is_reported_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, numbers = tmp_path / "a.txt", {
        errno.ENOSPC: "Free space and start", errno.EDQUOT: "Free space and start", errno.EIO: "Check the disk",
        errno.EROFS: "another folder", errno.EFBIG: "no file of this size",
    }  # fmt: skip
    write_text(file, "before")
    for number, remedy in numbers.items():
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(number, os.strerror(number))))
        with pytest.raises(LaryError, match=f"^Cannot write {file}: {os.strerror(number)}. .*{remedy}") as caught:
            write_text(file, "after")
        assert isinstance(caught.value, OSError)  # for those who make a failed sample of it
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (our own; errors come from other processes)
        assert (type(again), str(again)) == (WriteError, str(caught.value))
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "before")]


def test_what_a_library_makes_of_a_full_disk_is_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No space left"), atomic_write(tmp_path / "a"):  # noqa: PT012
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (as torch does)
    with pytest.raises(ValueError, match="mine"), atomic_write(tmp_path / "a"):
        raise ValueError("mine")
    with pytest.raises(OSError, match="too large") as caught, atomic_write(tmp_path / "a"):
        raise OSError(errno.EFBIG, "too large", "another file that was read")
    assert not isinstance(caught.value, WriteError)
    assert not list(tmp_path.iterdir())


def test_only_torn_files_of_a_name_are_removed(tmp_path: Path) -> None:
    kept = {"a.csv", ".b.csv.x1.tmp", ".hidden", "c.tmp"}
    for name in (*kept, ".a.csv.x3.tmp"):
        (tmp_path / name).touch()
    remove_torn(tmp_path, "a.csv")
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_torn(tmp_path.parent, below=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", ".hidden", "c.tmp"}
