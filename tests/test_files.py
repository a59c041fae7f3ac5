"""Files that appear whole or not at all, full disks, and paths that stay inside their root."""

import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from lary import files
from lary.files import WriteError, create_temporary, inside, read_failures, read_json, remove_torn, write_text
from lary.types import Failure, LaryError, UsageError
from tests.helpers import fails


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, plain, numbers = tmp_path / "a.txt", tmp_path / "plain", {
        errno.ENOSPC: "Free space and start", errno.EDQUOT: "Free space and start", errno.EIO: "Check the disk",
        errno.EROFS: "another folder", errno.EFBIG: "no file of this size",
    }  # fmt: skip
    write_text(file, "before")
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode, "ordinary permissions"
    fails(LaryError, r"Cannot write .*plain/inner", write_text, plain / "inner", "x")
    for number, remedy in numbers.items():
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(number, os.strerror(number))))
        with pytest.raises(LaryError, match=f"^Cannot write {file}: {os.strerror(number)}. .*{remedy}") as caught:
            write_text(file, "after")
        assert isinstance(caught.value, OSError)  # for those who make a failed sample of it
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (our own; errors come from other processes)
        assert (type(again), str(again)) == (WriteError, str(caught.value))
        assert (sorted(os.listdir(tmp_path)), file.read_text()) == (["a.txt", "plain"], "before")


def test_what_a_library_makes_of_a_full_disk_is_a_full_disk(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(error: Exception, cause: Exception | None = None) -> None:
        with files.atomic_write(tmp_path / "a") as stream:
            stream.write(b"half")
            raise error from cause

    fails(WriteError, "No space left", fail, RuntimeError("unexpected pos 64 vs 0"), full)  # as torch doe)
    fails(ValueError, "mine", fail, ValueError("mine"))
    with pytest.raises(OSError, match="too large") as caught:
        fail(OSError(errno.EFBIG, "too large", "another file that was read"))
    assert (isinstance(caught.value, WriteError), list(tmp_path.iterdir())) == (False, [])


def test_only_torn_files_of_a_name_are_removed(tmp_path: Path) -> None:
    kept = {"a.csv", ".b.csv.x1.tmp", ".hidden", "c.tmp"}
    for name in (*kept, ".a.csv.x3.tmp"):
        (tmp_path / name).touch()
    remove_torn(tmp_path, "a.csv")
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_torn(tmp_path.parent, below=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", ".hidden", "c.tmp"}


def test_extractions_that_are_killed() -> None:
    """A short run of ``benchmarks/faults``."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.faults.kills", "--kills", "2", "--probe-kills", "0",
               "--rows", "32"]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 kills.* 0 differences", done.stdout.splitlines()[-1])


def test_json_refuses_nan_and_names_broken_files(tmp_path: Path) -> None:
    fails(ValueError, "JSON", files.write_json, tmp_path / "a.json", float("nan"))
    (tmp_path / "torn.json").write_text('{"a": ')
    for name, words in (("none.json", r"The record .*none.json does not exist"), ("torn.json", "can't be read")):
        fails(LaryError, words, read_json, tmp_path / name, "record")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\..\\x", "C:/x", "C:\\x"])
def test_paths_that_leave_their_root(path: str) -> None:
    fails(UsageError, "leaves its root", inside, Path("/data"), path)


def test_failures_file_is_one_row_per_failure(tmp_path: Path) -> None:
    odd = ('a\nb,"c"\r\n', "=cmd()", "\x1b[31m", "a;b\tc")
    for rows in (range(4), (None,) * 4):
        failures = [Failure(row, name, name) for row, name in zip(rows, odd, strict=True)]
        files.write_failures(tmp_path / "failures.csv", failures)
        assert read_failures(tmp_path / "failures.csv") == failures
    files.write_failures(tmp_path / "failures.csv", [])
    assert not (tmp_path / "failures.csv").exists()


def test_a_folder_that_takes_no_files_is_no_endless_loop() -> None:
    """As /proc, or a network folder that is stale."""
    fails(WriteError, "Cannot write .*its folder takes no files", create_temporary, Path("/proc/x.npy"))
