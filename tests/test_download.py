"""Downloading: terms first, then files, checked, resumed, unpacked into the layout. Hubs are played by the tests."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
import types
import urllib.parse
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from cyclopts import App

from lary.cli import data as cli_data
from lary.cli import inspect as cli_inspect
from lary.data import download as module
from lary.data.download import (
    MANIFEST,
    DownloadReport,
    DownloadRequest,
    accept,
    belongs,
    choose,
    download,
    downloadable,
    find_place,
    in_words,
    known_folders,
    licence_text,
)
from lary.data.hubs import HuggingFace, ModelScope, RemoteFile, content_problem, open_hub
from lary.data.spec import DATASETS, dataset_text, datasets_table
from lary.types import LaryError, UsageError

COMMIT = "c0ffee" + "0" * 34


def tar_of(files: dict[str, bytes], *, link: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo("calvin/out")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/"
            tar.addfile(entry)
    return out.getvalue()


CALVIN = tar_of({"calvin/train_stride5/images/ep_0/frame_000000.png": b"pixels"})
AGIBOT = tar_of({"task_1/images/ep_1/frame_000000.png": b"agibot"})
CONTENT = {
    "README.md": b"card",
    ".gitattributes": b"",
    "regression/calvin.tar": CALVIN,
    "regression/agibot_45.tar.part-aa": AGIBOT[:700],
    "regression/agibot_45.tar.part-ab": AGIBOT[700:],
    "classification/AgiBotWorld-Beta/1.mp4": b"video",
    "data/calvin_metadata_train.csv": b"src_img,tgt_img,action\n",
}


class FakeHub:
    """A repository in memory; `broken` paths arrive damaged that many times."""

    def __init__(self, content: dict[str, bytes] = CONTENT, revision: str = COMMIT) -> None:
        self.content, self.revision = dict(content), revision
        self.fetched: list[str] = []
        self.asked: list[str | None] = []
        self.broken: dict[str, int] = {}

    def resolve(self, revision: str | None) -> str:
        self.asked.append(revision)
        return revision or self.revision

    def files(self, revision: str) -> list[RemoteFile]:
        return [RemoteFile(path, len(c), hashlib.sha256(c).hexdigest()) for path, c in self.content.items()]

    def fetch(self, file: RemoteFile, revision: str, folder: Path) -> Path:
        self.fetched.append(file.path)
        content = self.content[file.path]
        if self.broken.get(file.path, 0):
            self.broken[file.path] -= 1
            content = content[:-1] + b"?"
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def request_of(tmp_path: Path, *keys: str, **changes: Any) -> DownloadRequest:
    values: dict[str, Any] = {
        "specs": downloadable(keys), "data_dir": tmp_path / "DATA", "tables": tmp_path / "root" / "data",
        "source": "huggingface", "repository": "meituan-longcat/LARYBench", "whole": not keys,
    }  # fmt: skip
    return DownloadRequest(**{**values, **changes})


def run(tmp_path: Path, hub: FakeHub, *keys: str, **changes: Any) -> DownloadReport:
    return download(request_of(tmp_path, *keys, **changes), hub)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Terms


def test_terms_name_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    text = licence_text(downloadable(["human_1st", "robot_1st", "agibotbeta"]))
    for source in ("EPIC-KITCHENS", "TACO", "Ego4D", "HoloAssist", "EgoDex", "Something-Something V2"):
        assert source in text
    assert text.count("AgiBotWorld-Beta: CC BY-NC-SA 4.0; no commercial use") == 1
    assert "TACO: CC BY 4.0; commercial use allowed" in text


@pytest.mark.parametrize(("answer", "fine"), [("yes", True), (" YES ", True), ("y", False), ("", False)])
def test_terms_are_asked_for(answer: str, fine: bool, capsys: pytest.CaptureFixture[str]) -> None:
    specs = downloadable(["calvin"])
    if fine:
        accept(specs, False, lambda _: answer)
    else:
        with pytest.raises(UsageError, match="not accepted"):
            accept(specs, False, lambda _: answer)
    assert "CALVIN: MIT" in capsys.readouterr().out


def test_scripts_accept_by_option() -> None:
    specs = downloadable(["calvin"])
    accept(specs, True, None)
    with pytest.raises(UsageError, match="--accept-licenses"):
        accept(specs, False, None)


def test_made_data_sets_are_not_downloaded() -> None:
    with pytest.raises(UsageError, match="not published"):
        downloadable(["simarm"])
    assert {"calvin", "human_1st"} <= {spec.name for spec in downloadable([])}
    assert all(spec.repository and spec.citation for spec in downloadable([]))


# Choosing and placing


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("regression/calvin.tar.gz", {"calvin"}),
        ("calvin/train_stride5.tar.part-aa", {"calvin"}),
        ("regression/vlabench.tar", {"vlabench", "vlabench_15", "vlabench_30"}),
        ("regression/agibot_45/part1.tar", {"agibotbeta"}),
        ("classification/AgiBotWorld-Beta.tar.001", {"robot_1st"}),
        ("classification/LIBERO.zip", {"libero"}),
        ("classification/EPIC_KITCHENS.tar", {"human_1st"}),
        ("Ego4D.tar", {"human_1st"}),
        ("regression_robocoin_10.tar", {"robocoin"}),
        ("README.md", set()),
    ],
)
def test_files_belong_to_data_sets(path: str, keys: set[str]) -> None:
    assert {spec.name for spec in downloadable([]) if belongs(path, spec)} == keys


@pytest.mark.parametrize(
    ("archive", "name", "place"),
    [
        ("regression/calvin.tar", "regression/calvin/train_stride5/a.png", "regression/calvin/train_stride5/a.png"),
        ("calvin.tar", "LARYBench/data/regression/calvin/a.png", "regression/calvin/a.png"),
        ("calvin.tar", "calvin/train_stride5/a.png", "regression/calvin/train_stride5/a.png"),
        ("calvin.tar.gz.part-aa", "train_stride5/a.png", "regression/calvin/train_stride5/a.png"),
        ("regression/calvin.tar", "train_stride5/a.png", "regression/calvin/train_stride5/a.png"),
        ("regression/calvin/train_stride5.tar", "images/a.png", "regression/calvin/train_stride5/images/a.png"),
        ("regression/calvin/train_stride5.tar", "train_stride5/a.png", "regression/calvin/train_stride5/a.png"),
        ("data/regression/robocoin_10/part3.tar", "task/images/a.png", "regression/robocoin_10/task/images/a.png"),
        ("classification/TACO.tar", "TACO/1.mp4", "classification/TACO/1.mp4"),
        ("classification/TACO.tar", "sub/1.mp4", "classification/TACO/sub/1.mp4"),
        ("TACO.zip", "TACO/1.mp4", "classification/TACO/1.mp4"),
        ("LIBERO.tar", "libero_10_clean/a.png", "classification/LIBERO/libero_10_clean/a.png"),
    ],
)
def test_archives_find_their_place(archive: str, name: str, place: str) -> None:
    found = find_place(archive, [name], known_folders(downloadable([])))
    assert found is not None
    assert found(name) == place


def test_members_that_were_not_looked_at_go_beside_the_others() -> None:
    found = find_place("x.tar", ["calvin/a.png"], known_folders(downloadable([])))
    assert found is not None
    assert found("notes.txt") == "regression/notes.txt"
    assert found("TACO/1.mp4") == "classification/TACO/1.mp4"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "DATA" / ".lary_unpack_abc" / "calvin").mkdir(parents=True)
    run(tmp_path, FakeHub())
    assert not list((tmp_path / "DATA").glob(".lary*"))


def test_an_archive_that_nothing_places_is_left(tmp_path: Path) -> None:
    assert find_place("misc.tar", ["stuff/a"], known_folders(downloadable([]))) is None
    hub = FakeHub({**CONTENT, "misc.tar": tar_of({"stuff/a": b"x"})})
    report = run(tmp_path, hub)
    assert [failure.path for failure in report.failures] == ["misc.tar"]
    assert "by hand" in report.failures[0].reason
    assert report.unpacked == 2


def test_choice_by_key_pattern_and_neither(tmp_path: Path) -> None:
    files = FakeHub().files("")
    assert [f.path for f in choose(files, request_of(tmp_path, "calvin"))] == [
        "regression/calvin.tar", "data/calvin_metadata_train.csv",
    ]  # fmt: skip
    assert len(choose(files, request_of(tmp_path))) == 5, "documents of the repository are no data"
    chosen = choose(files, request_of(tmp_path, "calvin", patterns=("*agibot*",)))
    assert len(chosen) == 2
    with pytest.raises(UsageError, match=r"no files of libero.*regression/calvin\.tar"):
        choose(files, request_of(tmp_path, "libero"))
    with pytest.raises(UsageError, match="matches --files"):
        choose(files, request_of(tmp_path, "calvin", patterns=("nothing*",)))


# The download


def test_everything_ends_in_its_place(tmp_path: Path) -> None:
    report = run(tmp_path, FakeHub())
    assert (report.revision, report.fetched, report.unpacked, report.failures) == (COMMIT, 5, 2, ())
    data = tree(tmp_path / "DATA")
    manifest = json.loads(data.pop(MANIFEST))
    assert data == {
        "regression/calvin/train_stride5/images/ep_0/frame_000000.png": b"pixels",
        "regression/agibot_45/task_1/images/ep_1/frame_000000.png": b"agibot",
        "classification/AgiBotWorld-Beta/1.mp4": b"video",
    }
    assert tree(tmp_path / "root") == {"data/calvin_metadata_train.csv": b"src_img,tgt_img,action\n"}
    assert manifest["revision"] == COMMIT
    assert manifest["files"]["regression/calvin.tar"] == {
        "size": len(CALVIN), "sha256": hashlib.sha256(CALVIN).hexdigest(), "git": "", "state": "done",
    }  # fmt: skip


def test_a_second_run_fetches_nothing_and_keeps_the_revision(tmp_path: Path) -> None:
    hub = FakeHub()
    run(tmp_path, hub)
    hub.fetched.clear()
    hub.revision = "newer"
    report = run(tmp_path, hub)
    assert hub.fetched == []
    assert hub.asked[-1] == COMMIT, "the pinned revision is asked for, not the newest"
    assert (report.kept, report.fetched) == (5, 0)


def test_another_revision_fetches_what_changed(tmp_path: Path) -> None:
    hub = FakeHub()
    run(tmp_path, hub)
    hub.content["classification/AgiBotWorld-Beta/2.mp4"] = b"new"
    hub.fetched.clear()
    assert run(tmp_path, hub, revision="v2").revision == "v2"
    assert hub.fetched == ["classification/AgiBotWorld-Beta/2.mp4"]


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "unpack_archive", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, hub)
    assert len(hub.fetched) == 5
    report = run(tmp_path, hub)
    assert len(hub.fetched) == 5, "what was fetched and checked is not fetched again"
    assert report.unpacked == 2
    assert not (tmp_path / "DATA" / ".lary_download").exists()


def test_damage_is_fetched_again_and_then_told(tmp_path: Path) -> None:
    hub = FakeHub()
    hub.broken = {"regression/calvin.tar": 1, "regression/agibot_45.tar.part-ab": 2}
    report = run(tmp_path, hub)
    assert [failure.path for failure in report.failures] == ["regression/agibot_45.tar.part-ab"]
    assert "digest differs" in report.failures[0].reason
    assert report.unpacked == 1, "an archive with a part missing is not touched"
    assert run(tmp_path, hub).unpacked == 1
    assert (tmp_path / "DATA/regression/agibot_45/task_1/images/ep_1/frame_000000.png").read_bytes() == b"agibot"


def test_a_hostile_archive_costs_itself_alone(tmp_path: Path) -> None:
    evil = tar_of({"calvin/a.png": b"x"}, link=True)
    report = run(tmp_path, FakeHub({**CONTENT, "regression/calvin.tar": evil}))
    assert [failure.path for failure in report.failures] == ["regression/calvin.tar"]
    assert "a link" in report.failures[0].reason
    assert not (tmp_path / "DATA" / "regression" / "calvin").exists()
    assert (tmp_path / "DATA" / "regression" / "agibot_45").exists()


@pytest.mark.parametrize("path", ["../evil.tar", "/tmp/evil.tar", "regression/../../evil.csv"])
def test_paths_of_the_hub_stay_inside(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("asked for it"))
    with pytest.raises(LaryError, match="leaves its root"):
        HuggingFace("a/b").fetch(RemoteFile(path, 1), COMMIT, tmp_path)
    with pytest.raises(LaryError, match="leaves its root"):
        ModelScope("a/b", "http://127.0.0.1:9").fetch(RemoteFile(path, 1), COMMIT, tmp_path)


def test_tables_of_ones_own_are_not_replaced(tmp_path: Path) -> None:
    own = tmp_path / "root" / "data" / "calvin_metadata_train.csv"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    report = run(tmp_path, FakeHub())
    assert own.read_bytes() == b"mine"
    assert ["other content" in failure.reason for failure in report.failures] == [True]


def test_no_space_is_told_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    hub = FakeHub()
    with pytest.raises(LaryError, match="10 bytes free"):
        run(tmp_path, hub)
    assert hub.fetched == []


def test_a_folder_holds_one_repository(tmp_path: Path) -> None:
    run(tmp_path, FakeHub())
    with pytest.raises(UsageError, match="another DATA_DIR"):
        run(tmp_path, FakeHub(), repository="other/name")
    (tmp_path / "DATA" / MANIFEST).write_text("[]")
    with pytest.raises(LaryError, match="damaged"):
        run(tmp_path, FakeHub())


def test_archives_can_be_kept(tmp_path: Path) -> None:
    run(tmp_path, FakeHub(), keep_archives=True)
    assert (tmp_path / "DATA" / ".lary_download" / "regression" / "calvin.tar").read_bytes() == CALVIN


def test_sizes_in_words() -> None:
    assert [in_words(size) for size in (0, 999, 1000, 1_234_567, 5e12)] == ["0 bytes", "999 bytes", "1 kB", "1.23 MB",
                                                                           "5 TB"]  # fmt: skip


# Hubs


def test_huggingface_is_asked_as_its_library_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"hello"
    calls: list[Any] = []

    class Api:
        def dataset_info(self, repository: str, revision: str | None, timeout: float) -> Any:
            calls.append((repository, revision))
            return types.SimpleNamespace(sha=COMMIT)

        def list_repo_tree(self, repository: str, recursive: bool, revision: str, repo_type: str) -> Iterator[Any]:
            assert (recursive, revision, repo_type) == (True, COMMIT, "dataset")
            lfs = {"size": 5, "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 1}
            yield huggingface_hub.hf_api.RepoFile(path="a.tar", size=5, oid="pointer", lfs=lfs)
            yield huggingface_hub.hf_api.RepoFolder(path="x", oid="tree")
            git = hashlib.sha1(b"blob 5\0hello").hexdigest()
            yield huggingface_hub.hf_api.RepoFile(path="x/b.csv", size=5, oid=git)

    def fetch(repository: str, name: str, revision: str, repo_type: str, local_dir: Path) -> None:
        assert (revision, repo_type) == (COMMIT, "dataset")
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(content)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    hub = open_hub("huggingface", "a/b")
    assert hub.resolve(None) == COMMIT
    first, second = hub.files(COMMIT)
    assert first.sha256
    assert not first.git
    assert second.git
    for file in (first, second):
        path = hub.fetch(file, COMMIT, tmp_path)
        assert content_problem(path, file) == ""
        path.write_bytes(b"hallo")
        assert content_problem(path, file) == "its digest differs"
        path.write_bytes(b"hell")
        assert content_problem(path, file) == "it has 4 bytes, not 5"


def test_what_a_hub_raises_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, *_: object, **__: object) -> None:
            raise ConnectionError("no route\nlong trace")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(LaryError, match=r"Hugging Face doesn't give a/b: no route\. Check"):
        HuggingFace("a/b").resolve(None)


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "../b", "/b", "a/"])
def test_repositories_are_owner_and_name(name: str) -> None:
    with pytest.raises(UsageError, match="owner/name"):
        open_hub("huggingface", name)


class Scope(BaseHTTPRequestHandler):
    """ModelScope's interface, as far as it is used."""

    ranges: list[str]

    def do_GET(self) -> None:
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        assert query["Revision"] == "master"
        if url.path.endswith("/repo/tree"):
            names = (
                CONTENT if query["Root"] == "" else {n: c for n, c in CONTENT.items() if n.startswith(query["Root"])}
            )
            depth = query["Root"].count("/") + (query["Root"] != "")
            entries: dict[str, Any] = {}
            for name, content in names.items():
                parts = name.split("/")
                path = "/".join(parts[: depth + 1])
                entries[path] = (
                    {"Path": path, "Type": "tree"} if len(parts) > depth + 1 else
                    {"Path": path, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
                )  # fmt: skip
            page = int(query["PageNumber"]) - 1
            shown = list(entries.values())[page * 2 : page * 2 + 2]
            self.answer(200, json.dumps({"Code": 200, "Data": {"Files": shown}}).encode())
            return
        content = CONTENT[query["FilePath"]]
        start = self.headers.get("Range")
        if start:
            self.ranges.append(start)
            self.answer(206, content[int(start.removeprefix("bytes=").rstrip("-")) :])
        else:
            self.answer(200, content)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("lary.data.hubs.PAGE", 2)
    Scope.ranges = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Scope) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield ModelScope("meituan-longcat/LARYBench", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_modelscope_lists_folders_page_by_page(scope: ModelScope) -> None:
    assert {file.path: file.size for file in scope.files("master")} == {n: len(c) for n, c in CONTENT.items()}


def test_modelscope_goes_on_where_it_stopped(tmp_path: Path, scope: ModelScope) -> None:
    file = next(file for file in scope.files("master") if file.path == "regression/calvin.tar")
    (tmp_path / "regression").mkdir()
    (tmp_path / "regression" / ".calvin.tar.part").write_bytes(CALVIN[:4000])
    assert scope.fetch(file, "master", tmp_path).read_bytes() == CALVIN
    assert Scope.ranges == ["bytes=4000-"]


def test_modelscope_runs_the_whole_way(tmp_path: Path, scope: ModelScope) -> None:
    report = download(request_of(tmp_path, source="modelscope"), scope)
    assert (report.revision, report.unpacked, report.failures) == ("master", 2, ())


def test_modelscope_that_is_away_is_told() -> None:
    with pytest.raises(LaryError, match="ModelScope doesn't give a/b"):
        ModelScope("a/b", "http://127.0.0.1:9").files("master")


# Commands


def call(tokens: Sequence[str]) -> Any:
    app = App(name="lary")
    app.command(cli_data.download)
    app.command(cli_inspect.datasets)
    return app(list(tokens), exit_on_error=False, result_action="return_value")


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hub = FakeHub()
    monkeypatch.setattr("lary.data.hubs.open_hub", lambda source, repository: hub)
    places = ["--lary-root", str(tmp_path / "root"), "--data-dir", str(tmp_path / "DATA")]
    assert call(["download", "--include", "calvin,agibotbeta", "--dry-run", *places]) == 0
    assert "regression/calvin.tar" in capsys.readouterr().out
    assert hub.fetched == []
    with pytest.raises(UsageError, match="--accept-licenses"):
        call(["download", "--include", "calvin", *places])
    assert hub.fetched == []
    capsys.readouterr()
    assert call(["download", "--include", "calvin", "--accept-licenses", *places]) == 0
    out = capsys.readouterr().out
    assert out.index("CALVIN: MIT") < out.index("2 files fetched, 0 were there, 1 archives unpacked, 0 failed")


def test_list_of_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["datasets"]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert text == datasets_table()
    listed, _, notes = text.partition("\n\n")
    assert "citation" in notes
    lines = {line.split()[0]: line for line in listed.splitlines()}
    assert set(lines) == {"key", *DATASETS.names()}
    assert "538,423 samples" in lines["robot_1st"]
    assert "  no  " in lines["robot_1st"]
    assert "  in part  " in lines["human_1st"]
    assert "  yes  " in lines["calvin"]
    assert call(["datasets", "calvin"]) == 0
    text = capsys.readouterr().out
    assert "eprint={2604.11689}" in text
    assert "size:        209,921 samples" in text
    assert call(["datasets", "libero"]) == 0
    text = capsys.readouterr().out
    assert "train_by_segment, val_by_segment: drawn anew from these tables, for --splits by-segment" in text


@pytest.mark.parametrize("asked", [["datasets"], ["datasets", "human_1st"]])
def test_list_loads_no_heavy_library(asked: list[str]) -> None:
    """The whole command: what it doesn't import decides how fast it answers."""
    heavy = ("torch", "pandas", "numpy", "pyarrow", "cv2", "av", "PIL", "huggingface_hub", "scipy", "sklearn",
             "pydantic", "requests", "httpx", "yaml", "mujoco")  # fmt: skip
    code = f"""
import sys
from lary.cli import main
try:
    main({asked!r})
except SystemExit as stop:
    assert not stop.code
found = [name for name in {heavy!r} if name in sys.modules]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_record_can_be_shown() -> None:
    for spec in DATASETS:
        text = dataset_text(spec)
        assert all(split.root in text for split in spec.splits.values())
        assert all(licence.source in text for licence in spec.licences)
        assert max(map(len, text.splitlines())) <= 160
