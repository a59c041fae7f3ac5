"""The lock of a folder: one writer, also where the file system has no locks; dead holders don't count."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from lary.locks import LOCK, WITHOUT_FLOCK, locked
from lary.types import LaryError

DIE = "import os, sys, pathlib\nfrom lary.locks import locked\nwith locked(pathlib.Path(sys.argv[1])): os._exit(0)"
LACKING = "import fcntl, errno\ndef lacking(*_): raise OSError(errno.ENOLCK, 'no locks')\nfcntl.flock = lacking\n"
lacking = Mock(side_effect=OSError(errno.ENOLCK, "no locks available"))


@pytest.fixture(params=[True, False], ids=["flock", "no-flock"])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(fcntl, "flock", lacking)
    return bool(request.param)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(LaryError, match=message), locked(folder):
        pytest.fail("it was locked")


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path, flock: bool) -> None:
    with locked(tmp_path / "new"):
        refused(tmp_path / "new", f"by process {os.getpid()} on {socket.gethostname()} since")
    assert not list((tmp_path / "new").iterdir())
    with locked(tmp_path / "new"):
        pass


def test_the_lock_of_a_dead_process_does_not_block(tmp_path: Path, flock: bool) -> None:
    code = DIE if flock else LACKING + DIE
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60).returncode == 0
    for content in (None, "", "torn", '{"pid": 999999999, "host": "here", "since": "then"}'):
        if content is not None:
            (tmp_path / LOCK).write_text(content)
        assert list(tmp_path.iterdir())
        with locked(tmp_path):
            pass
        assert not list(tmp_path.iterdir())


def test_without_flock_another_machine_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lacking)
    content = "999999999\nanother-machine\n"
    (tmp_path / WITHOUT_FLOCK).write_text(content)
    refused(tmp_path, "is being written by process 999999999")
    assert (tmp_path / WITHOUT_FLOCK).read_text() == content


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        refused(tmp_path, "Free space")
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("make", [
    lambda lock, victim: lock.symlink_to(victim),
    lambda lock, victim: lock.symlink_to(victim.with_name("new")),
    lambda lock, victim: os.link(victim, lock),
    lambda lock, victim: os.mkfifo(lock),
    lambda lock, victim: lock.symlink_to("/dev/zero"),
    lambda lock, victim: lock.mkdir(),
])  # fmt: skip
def test_a_lock_that_leads_elsewhere_is_refused(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder" / LOCK, victim)
    refused(tmp_path / "folder", "can't be a lock|Is a directory")
    assert (victim.read_text(), (tmp_path / "new").exists()) == ("precious", False)
