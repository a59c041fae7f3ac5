"""Archives whose target changes while they are unpacked; what stands in archives is in tests/test_archives.py."""

from __future__ import annotations

import shutil
from pathlib import Path

from lary.data.archives import SCRATCH, unpack
from tests.hostile.harness import refused
from tests.test_archives import member, write_tar


def test_folder_that_becomes_a_link_between_two_files(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    archive = write_tar(tmp_path / "a.tar", [member("calvin/a.txt", b"1"), member("calvin/b.txt", b"2")])

    def place(name: str) -> str:
        if name.endswith("b.txt"):
            (scratch,) = target.glob(f"{SCRATCH}*")
            shutil.rmtree(scratch / "calvin")
            (scratch / "calvin").symlink_to(outside)
        return name

    refused(outside, lambda: unpack([archive], place, target), "exchanged")
    assert list(outside.iterdir()) == []
    assert list(target.iterdir()) == []


def test_file_that_becomes_a_link_before_the_move(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "secret").write_text("secret")
    archive = write_tar(tmp_path / "a.tar", [member("a.txt", b"1"), member("b.txt", b"2")])

    def place(name: str) -> str:
        if name == "b.txt":
            (scratch,) = target.glob(f"{SCRATCH}*")
            (scratch / "a.txt").unlink()
            (scratch / "a.txt").symlink_to(tmp_path / "secret")
        return name

    refused(tmp_path / "secret", lambda: unpack([archive], place, target), "became a link")
    assert list(target.iterdir()) == []
