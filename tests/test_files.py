"""Base modules: files that appear whole, paths that stay inside, registries, plug-ins."""

from __future__ import annotations

import csv
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lary.files import atomic_write, digest, inside, read_json, write_failures, write_json, write_text
from lary.registry import Registry, load_plugin
from lary.runtime import PlainFormatter
from lary.types import Failure, LaryError, UsageError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")

    def fail_halfway() -> None:
        with atomic_write(target) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_write_where_a_file_stands_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaryError, match=r"Cannot write .*file/inner"):
        write_text(tmp_path / "file" / "inner", "x")


def test_json_refuses_nan_and_names_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    with pytest.raises(LaryError, match=r"The record .*none.json does not exist"):
        read_json(tmp_path / "none.json", "record")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(LaryError, match="can't be read"):
        read_json(tmp_path / "torn.json", "record")


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


@dataclass(frozen=True)
class Thing:
    name: str


def test_registry_suggests_and_refuses_doubles() -> None:
    things: Registry[Thing] = Registry("thing")
    things.add(Thing("alpha"))
    things.add(Thing("beta"))
    with pytest.raises(UsageError, match=r"Unknown thing 'alhpa'. Did you mean alpha\?"):
        things.get("alhpa")
    with pytest.raises(UsageError, match="Known: alpha, beta"):
        things.get("zzz")
    with pytest.raises(UsageError, match="registered twice"):
        things.add(Thing("beta"))
    assert [thing.name for thing in things] == ["alpha", "beta"]


def test_plugin_runs_once_and_names_its_failures(tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text("import os\nos.environ['LARY_PLUGIN_RUNS'] = os.environ.get('LARY_PLUGIN_RUNS', '') + 'x'\n")
    load_plugin(good)
    load_plugin(good)
    assert os.environ.pop("LARY_PLUGIN_RUNS") == "x"
    bad = tmp_path / "bad.py"
    bad.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"bad.py failed: ZeroDivisionError"):
            load_plugin(bad)
    with pytest.raises(UsageError, match="not a Python file"):
        load_plugin(tmp_path)


def test_failures_file_is_one_row_per_failure(tmp_path: Path) -> None:
    odd = ('a\nb,"c"\r\n', "=cmd()", "\x1b[31m", "a;b\tc")
    write_failures(tmp_path / "failures.csv", [Failure(row, name, name) for row, name in enumerate(odd)])
    with (tmp_path / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(odd)


def test_log_lines_do_not_steer_the_terminal() -> None:
    record = logging.LogRecord("lary", logging.ERROR, "", 0, "%s", ("a\x1b]0;title\x07\x9b31m\0\rb",), None)
    assert PlainFormatter("lary: %(message)s").format(record) == "lary: a\\x1b]0;title\\x07\\x9b31m\\x00\\x0db"
