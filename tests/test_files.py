"""Files that appear whole or not at all, and paths that stay inside their root."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lary.files import (
    atomic_write,
    digest,
    inside,
    read_failures,
    read_json,
    remove_torn,
    write_failures,
    write_json,
    write_text,
)
from lary.types import Failure, LaryError, UsageError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target, plain = tmp_path / "file.txt", tmp_path / "plain"
    plain.touch()
    write_text(target, "old")
    assert target.stat().st_mode == plain.stat().st_mode, "ordinary permissions"
    full = OSError(errno.ENOSPC, "No space left on device")

    def write_half(failure: Exception, cause: Exception | None) -> None:
        with atomic_write(target) as stream:
            stream.write(b"half")
            raise failure from cause

    for failure, cause, words in ((RuntimeError("own"), None, "own"), (ValueError(), full, "Free space and start")):
        with pytest.raises((RuntimeError, LaryError), match=words):
            write_half(failure, cause)
    assert target.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "plain"]
    (tmp_path / ".file.txt.0a1b.tmp").touch()  # of a killed writer
    remove_torn(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "plain"]
    with pytest.raises(LaryError, match=r"Cannot write .*plain/inner"):
        write_text(plain / "inner", "x")


def test_json_refuses_nan_and_names_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    (tmp_path / "torn.json").write_text('{"a": ')
    for name, words in (("none.json", r"The record .*none.json does not exist"), ("torn.json", "can't be read")):
        with pytest.raises(LaryError, match=words):
            read_json(tmp_path / name, "record")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\..\\x", "C:/x", "C:\\x"])
def test_paths_that_leave_their_root(path: str) -> None:
    with pytest.raises(UsageError, match="leaves its root"):
        inside(Path("/data"), path)


@given(st.text(max_size=30))
def test_no_text_leads_outside(text: str) -> None:
    root = Path("/some/root")
    try:
        path = inside(root, text)
    except UsageError:
        return
    assert os.path.normpath(path).startswith(str(root))


def test_digest_sees_borders() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest(b"ab")


def test_failures_file_is_one_row_per_failure(tmp_path: Path) -> None:
    odd = ('a\nb,"c"\r\n', "=cmd()", "\x1b[31m", "a;b\tc")
    for rows in (range(4), (None,) * 4):
        failures = [Failure(row, name, name) for row, name in zip(rows, odd, strict=True)]
        write_failures(tmp_path / "failures.csv", failures)
        assert read_failures(tmp_path / "failures.csv") == failures
    write_failures(tmp_path / "failures.csv", [])
    assert not (tmp_path / "failures.csv").exists()
