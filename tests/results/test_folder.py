"""The folder of a run: files appear together, a kill at any moment loses nothing, and readers use what is named."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lary.files import write_text
from lary.results.folder import FinishedRun, find_results, publish, settle, writing
from lary.results.record import EvalResult, NamedDigest, read_result, run_identity
from lary.results.summarise import classification_result
from lary.types import LaryError
from tests import fake_results as fake
from tests.helpers import contents, fails


def do_run(folder: Path, text: str, *names: str, identity: str = "one") -> EvalResult:
    with writing(folder, identity) as work:
        for name in names:
            write_text(work / name, text)
        write_text(work / "training_state.pt", "state")
        return publish(work, classification_result(fake.class_outcome(1.0), fake.facts("pixels", "verbs")))


def test_a_run_publishes_its_files_with_their_digests_and_has_an_identity(tmp_path: Path) -> None:
    result = do_run(tmp_path, "text", "case.txt", "seed_1/latest.pt")
    assert sorted(contents(tmp_path)) == ["case.txt", "result.json", "seed_1/latest.pt"]
    assert read_result(tmp_path / "result.json") == result
    assert result.files == dict.fromkeys(["case.txt", "seed_1/latest.pt"], hashlib.sha256(b"text").hexdigest())
    again = do_run(tmp_path, "text", "other.txt", identity="two")
    assert sorted(contents(tmp_path)) == ["other.txt", "result.json"], "files of the run that was replaced are gone"
    assert list(again.files) == ["other.txt"]
    parts = [NamedDigest(name="options", digest="1f"), NamedDigest(name="latents train", digest="2f")]
    assert run_identity(parts) == run_identity(list(parts))
    assert len({run_identity(found) for found in (parts, parts[:1], parts[::-1], [])}) == 4


def test_unfinished_files_are_kept_for_the_same_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("training_state.pt", "seed_1/training_state.pt"):
        write_text(tmp_path / name, "of version 0.1")
    for identity, resume, version, expected in (
        ("one", True, "1", False), ("one", True, "1", True), ("one", False, "1", False), ("one", True, "1", True),
        ("one", True, "2", False), ("two", True, "2", False),
    ):  # fmt: skip
        monkeypatch.setattr("lary.results.folder.__version__", version)
        with writing(tmp_path, identity, resume=resume) as work:
            assert (work / "state").exists() is expected
            write_text(work / "state", "half")
            (work / ".state.x1.tmp").write_text("torn")
    assert sorted(contents(tmp_path)) == [".work/.state.x1.tmp", ".work/identity", ".work/state"]


def test_one_process_writes_a_run(tmp_path: Path) -> None:
    with writing(tmp_path, "one"), pytest.raises(LaryError, match="being written"), writing(tmp_path, "one"):
        pass
    with writing(tmp_path, "one"), writing(tmp_path, "one", leads=False) as second:
        assert second == tmp_path / ".work"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".work").symlink_to(tmp_path)
    fails(LaryError, "is a link, which lary never makes", do_run, tmp_path / "other", "text")


@pytest.mark.parametrize("kill", range(10))
def test_a_publication_that_was_killed_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int) -> None:
    do_run(tmp_path, "old", "case.txt", "log.csv")
    calls = iter(range(100))

    def fragile(call: Callable[..., None]) -> Callable[..., None]:
        def killed(path: Any, *more: Any, **options: Any) -> None:
            if not str(path).endswith((".tmp", "/lock")) and next(calls) == kill:
                raise KeyboardInterrupt
            call(path, *more, **options)

        return killed

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(os, name, fragile(getattr(os, name)))
        with suppress(KeyboardInterrupt):
            do_run(tmp_path, "new", "case.txt", "log.csv", "latest.pt", identity="two")
    for run in find_results(tmp_path)[0]:
        assert run.folder == tmp_path, "what is staged is no run"
        for name in run.result.files:
            assert run.file(name).exists(), "the old result is removed before its files are replaced"
    settle(tmp_path)
    found = {name: data for name, data in contents(tmp_path).items() if not name.startswith(".work/")}
    result = read_result(tmp_path / "result.json")
    assert set(found) == {*result.files, "result.json"}
    assert len({found[name] for name in result.files}) == 1, "files of two runs"
    assert all(FinishedRun(tmp_path, result).file(name).exists() for name in result.files)
    assert ("latest.pt" in found) is (kill > 0), "a kill before anything was published leaves the old run"


def test_readers_use_files_that_are_named_and_unchanged(tmp_path: Path) -> None:
    result = do_run(tmp_path, "text", "case.txt", "log.csv")
    usual = FinishedRun(tmp_path, result.model_copy(update={"preset": "paper", "action_mode": "absolute"}))
    other = FinishedRun(tmp_path, result.model_copy(update={"action_mode": "relative", "probe": "ridge"}))
    assert (usual.suffix, other.suffix) == ("", "_demo_relative_ridge")
    assert other.about == "protocol corrected, preset demo, actions relative, probe ridge"
    assert FinishedRun(tmp_path, result).file("case.txt").read_text() == "text"
    (tmp_path / "case.txt").write_text("tex")
    (tmp_path / "log.csv").unlink()
    (tmp_path / "old.txt").write_text("left by another run")
    for name, message in (("case.txt", "digest differs"), ("log.csv", "can't be read"), ("old.txt", "names no file")):
        fails(LaryError, message, FinishedRun(tmp_path, result).file, name)
    before = result.model_copy(update={"files": {"case.txt": ""}})
    assert FinishedRun(tmp_path, before).file("old.txt").exists(), "results of version 0.1 name no digests"


def test_a_run_that_was_finished_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Two commands both find no result; the second waits for the lock until the first is done."""
    result = do_run(tmp_path, "first", "case.txt")
    before = contents(tmp_path)

    def second() -> None:
        with writing(tmp_path, "two", check=lambda: read_result(tmp_path / "result.json")):
            pytest.fail("the finished result would be replaced")

    fails(LaryError, "was just finished by another process", second)
    assert contents(tmp_path) == before
    assert all(FinishedRun(tmp_path, result).file(name).exists() for name in result.files)
