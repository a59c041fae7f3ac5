"""``lary export`` and ``lary board``: what a file holds, and what a site refuses."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lary.results.record import FILE_NAME, read_result, write_result
from tests import fake_results as fake
from tests.helpers import lary, printed

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """A file with a regression and a classification of the model `acme`, whose probe ran with a plug-in."""
    plugin = tmp_path / "home" / "acme.py"
    plugin.parent.mkdir()
    plugin.write_text("# the model\n")
    about = {"provenance": {"command": ["/opt/bin/lary", "run"], "probe_command": ["lary", "--plugin", str(plugin)]}}
    for name, kind in (("c", "classification"), ("r", "regression")):
        fake.write_whole(tmp_path / name, kind, "acme", probe="mlp" if name == "r" else "attentive", **about)
    (tmp_path / "in").mkdir()
    printed("export", tmp_path / "c", tmp_path / "r", "-o", tmp_path / "in" / "acme.zip", has=["plugins/acme.py"])
    return tmp_path / "in" / "acme.zip"


def test_a_file_has_no_path_of_the_machine(submission: Path) -> None:
    with zipfile.ZipFile(submission) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, data in content.items() if str(submission.parent.parent).encode() in data]
    result = json.loads(content["runs/0/result.json"])
    assert result["provenance"]["command"] == ["lary", "run"]
    assert result["provenance"]["probe_command"][1:] == ["--plugin", "acme.py"]
    assert content["plugins/acme.py"] == b"# the model\n"
    assert set(result["files"]) == {"predictions.npz"}


def test_a_site_shows_what_is_sound(submission: Path, tmp_path: Path) -> None:
    out = printed("board", submission.parent, "--out", tmp_path / "site", has=["acme.zip", "2 of 2"])
    assert "refused because" in out
    page = (tmp_path / "site" / "index.html").read_text()
    assert page.count("acme") > 4
    assert read_result(tmp_path / "site" / "runs" / "acme" / "1" / FILE_NAME).task == "regression"
    bare = submission.with_name("bare.zip")
    printed("export", tmp_path / "c", "--out", bare, "--no-predictions")
    printed("board", submission.parent, "--out", tmp_path / "site", has=["0 of 1"])


def rewrite(file: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Replace a member of an archive."""
    with zipfile.ZipFile(file) as archive:
        content = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for each, data in content.items():
            archive.writestr(each, change(data) if each == name else data)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("runs/0/result.json", lambda data: data.replace(b"2026-01-02", b"2026-01-03"), "digest differs"),
        ("runs/0/result.json", lambda data: b"{}", "schema_version"),
        ("runs/0/predictions.npz", lambda data: data[:-1] + b"x", "digest differs"),
        ("submission.json", lambda data: b"[]", "no submission of format 1"),
        ("submission.json", lambda data: data.replace(b"acme", b"other"), "its runs don't"),
    ],
)
def test_a_changed_file_is_refused(
    submission: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    rewrite(submission, name, change)
    done = lary("board", submission.parent, "--out", tmp_path / "site")
    assert (done.code, reason in done.out) == (1, True), done.out


def test_a_better_number_under_a_new_seal_is_found(submission: Path, tmp_path: Path) -> None:
    def better(data: bytes) -> bytes:
        (tmp_path / "result.json").write_bytes(data)
        result = read_result(tmp_path / "result.json")
        selection = result.selections[result.headline]
        top = selection.metrics["top1"].model_copy(update={"value": 0.99})
        own = selection.model_copy(update={"metrics": {**selection.metrics, "top1": top}})
        write_result(tmp_path / "result.json", result.model_copy(update={"selections": {result.headline: own}}))
        return (tmp_path / "result.json").read_bytes()

    rewrite(submission, "runs/0/result.json", better)
    done = lary("board", submission.parent, "--out", tmp_path / "site")
    assert (done.code, "top1 is not what was recorded" in done.out) == (1, True), done.out


def test_several_models_are_refused(submission: Path, tmp_path: Path) -> None:
    fake.write_regression(tmp_path / "other", "other", 0.3)
    words = ("export", tmp_path / "c", tmp_path / "other", "-o", tmp_path / "x.zip")
    assert "export one model at a time" in lary(*words).err
    shutil.rmtree(submission.parent)
    submission.parent.mkdir()
    assert lary("board", submission.parent).code == 2
