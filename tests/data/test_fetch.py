"""Download of data sets: terms first, then files, checked, resumed, unpacked; hubs are replaced at their libraries."""

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace as Entry
from typing import Any

import huggingface_hub
import pytest

from lary.data.fetch import MANIFEST, accept, belongs, downloadable, find_place, known_folders
from lary.types import LaryError, UsageError
from tests.data.test_archives import member, packed
from tests.helpers import INPUTS, contents, fails, lary, printed
from tests.hostile.harness import bounded

COMMIT = "c0ffee" + "0" * 34
CALVIN = packed(member("calvin/train_stride5/images/ep_0/frame_000000.png", b"pixels"))
AGIBOT = packed(member("task_1/images/ep_1/frame_000000.png", b"agibot"))
LINK = packed(member("calvin/a.png", b"x"), member("calvin/out", kind=tarfile.SYMTYPE))
TABLE, CLIP = "data/calvin_metadata_train.csv", "classification/AgiBotWorld-Beta/1.mp4"
CONTENT = {
    "README.md": b"card", ".gitattributes": b"", "regression/calvin.tar": CALVIN, CLIP: b"video",
    "regression/agibot_45.tar.part2": AGIBOT[:700], "regression/agibot_45.tar.part10": AGIBOT[700:],
    TABLE: b"src_img,tgt_img,action\n",
}  # fmt: skip
WHOLE = {
    "regression/calvin/train_stride5/images/ep_0/frame_000000.png": b"pixels",
    "regression/agibot_45/task_1/images/ep_1/frame_000000.png": b"agibot",
    CLIP: b"video",
    "calvin_metadata_train.csv": b"src_img,tgt_img,action\n",
}


class FakeHub:
    """A repository in memory, by the functions of both hubs; `broken` paths arrive damaged that often."""

    def __init__(self) -> None:
        self.content, self.newest = {**CONTENT}, COMMIT
        self.fetched: list[str] = []
        self.asked: list[str | None] = []
        self.broken: dict[str, int] = {}

    def dataset_info(self, repository: str, revision: str | None, timeout: float) -> Any:
        if self.newest == "away":
            raise ConnectionError("no route\nlong trace")
        self.asked.append(revision)
        return Entry(sha=revision or self.newest)

    def list_repo_tree(self, repository: str, recursive: bool, revision: str, repo_type: str) -> Iterator[Any]:
        api: Any = huggingface_hub.hf_api
        yield api.RepoFolder(path="regression", oid="tree")
        for path, content in self.content.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 1}
            yield api.RepoFile(path=path, size=len(content), oid=git, lfs=None if path.endswith(".csv") else lfs)

    def hf_hub_download(self, repository: str, path: str, *, local_dir: Path, **_: str) -> None:
        self.fetched.append(path)
        content, torn = self.content[path], self.broken.get(path, 0)
        self.broken[path] = max(torn - 1, 0)
        (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / path).write_bytes(content[:-1] + b"?" if torn else content)

    def list_repo_files(self, repository: str, kind: str, revision: str) -> Iterator[Any]:
        assert (kind, revision) == ("dataset", "master")
        yield Entry(path="regression", is_dir=True)
        for path, content in CONTENT.items():
            yield Entry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest(), is_dir=False)

    def download_file(self, repository: str, kind: str, path: str, **options: Any) -> None:
        self.hf_hub_download(repository, path, **options)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    return hub


def download(root: Path, *words: str, code: int = 0, accept: bool = True, has: Iterable[str] = ()) -> str:
    """What ``lary data download`` prints."""
    terms = ["--accept-licenses"] if accept else []
    return printed("data", "download", *words, *terms, root=root, code=code, has=has)


def test_terms_of_every_source_are_accepted(tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    download(tmp_path, "--include", "calvin", code=2, accept=False, has=("CALVIN: MIT", "--accept-licenses"))
    assert [hub.asked, hub.fetched, list(tmp_path.iterdir())] == [[], [], []]
    accept(downloadable(["human_1st", "robot_1st", "agibotbeta"]), False, lambda _: " YES ")
    text = capsys.readouterr().out
    sources = ("EPIC-KITCHENS", "TACO: CC BY 4.0; commercial use", "Ego4D", "HoloAssist", "EgoDex", "Something-")
    assert [source for source in sources if source not in text] == []
    assert text.count("AgiBotWorld-Beta: CC BY-NC-SA 4.0; no commercial use") == 1
    for answer in ("y", ""):
        with pytest.raises(UsageError, match="nothing was downloaded"):
            accept(downloadable(["calvin"]), False, lambda _, answer=answer: answer)  # type: ignore[misc]
    assert "not published" in download(tmp_path, "--include", "simarm", code=2)
    assert all(spec.repository and spec.citation for spec in downloadable())


def test_files_belong_to_data_sets_and_archives_find_their_place() -> None:
    for path, names in INPUTS["belongs"].items():
        assert [spec.name for spec in downloadable() if belongs(path, spec)] == names
    folders = known_folders(downloadable())
    for archive, name, place in INPUTS["places"]:
        assert find_place(archive, folders)(name) == place
    fails(LaryError, r"misc\.tar belongs, which holds stuff/a", find_place("misc.tar", folders), "stuff/a")


def test_choice_by_key_pattern_and_neither(tmp_path: Path, hub: FakeHub) -> None:
    def listed(*words: str) -> list[str]:
        out = download(tmp_path, "--dry-run", *words, accept=False)
        return [line.split()[-1] for line in out.splitlines()[:-1]]

    assert listed("--include", "calvin") == ["regression/calvin.tar", TABLE]
    download(tmp_path, "--dry-run", accept=False, has=(f"at {COMMIT}: 5 files, 0.000 GB", " 0.000 GB  regression/"))
    assert len(listed("--include", "calvin,agibotbeta")) == 4
    assert len(listed()) == 5, "documents of the repository are no data"
    assert len(listed("--include", "calvin", "--files", "*agibot*")) == 2
    for words in (("--include", "libero"), ("--files", "nothing*")):
        download(tmp_path, *words, "--dry-run", code=2, has=(f"no files of {words[1]}", "regression/calvin.tar"))
    for name in ("nothing", "a/b/c", "../b", "/b", "a/"):
        assert "owner/name" in download(tmp_path, "--repo", name, code=2)
    assert hub.fetched == []


def test_everything_ends_in_its_place_and_stays_pinned(tmp_path: Path, hub: FakeHub) -> None:
    (tmp_path / "data" / ".lary_unpack_abc" / "calvin").mkdir(parents=True)  # left by a killed run
    assert "5 files fetched, 0 were there, 2 archives unpacked, 0 failed" in download(tmp_path)
    data = contents(tmp_path / "data")
    manifest = json.loads(data.pop(MANIFEST))
    assert (data, list((tmp_path / "data").glob(".lary*"))) == (WHOLE, [])
    entry, digest = manifest["files"]["regression/calvin.tar"], hashlib.sha256(CALVIN).hexdigest()
    assert (manifest["revision"], bool(manifest["files"][TABLE]["git"])) == (COMMIT, True)
    assert (entry["state"], entry["size"], entry["sha256"]) == ("done", len(CALVIN), digest)
    hub.fetched, hub.newest = [], "newer"
    assert "0 files fetched, 5 were there, 0 archives" in download(tmp_path)
    assert hub.asked[-1] == COMMIT, "the pinned revision is asked for, not the newest"
    hub.content["classification/AgiBotWorld-Beta/2.mp4"] = b"new"
    assert "at v2: 1 files fetched" in download(tmp_path, "--revision", "v2")
    assert hub.fetched == ["classification/AgiBotWorld-Beta/2.mp4"]
    hub.content[CLIP] = b"other"
    download(tmp_path, "--revision", "v3", code=1, has=(f"{CLIP} exists with other content than in ", "1 failed"))


def test_a_stopped_run_resumes(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lary("data", "download", "--accept-licenses", root=tmp_path).code != 0
    assert "2 archives unpacked" in download(tmp_path)
    assert sorted(hub.fetched) == sorted({*CONTENT} - {"README.md", ".gitattributes"}), "each is fetched once"
    assert not (tmp_path / "data" / ".lary_download").exists()


def test_what_is_damaged_or_refused_costs_itself_alone(tmp_path: Path, hub: FakeHub) -> None:
    hub.broken = {"regression/calvin.tar": 1, "regression/agibot_45.tar.part10": 2, TABLE: 2}
    damaged = ("part10 arrived damaged 2 times: its digest differs", "train.csv arrived damaged")
    download(tmp_path, code=1, has=(*damaged, "1 archives unpacked, 2 failed"))
    assert "2 files fetched, 2 were there, 1 archives" in download(tmp_path)
    assert {path: data for path, data in contents(tmp_path / "data").items() if path != MANIFEST} == WHOLE
    hub.content["regression/calvin.tar"], hub.content["misc.tar"] = LINK, packed(member("stuff/a", b"x"))
    hub.content |= {"../evil.tar": b"", "regression/../../evil.csv": b""}
    refused = ("regression/calvin.tar: The archive calvin.tar holds a link", "leaves its root")
    misplaced = "misc.tar belongs, which holds stuff/a: unpack"
    download(tmp_path, code=1, has=(*refused, misplaced, "0 archives unpacked, 4 failed"))
    assert ("evil" in "".join(hub.fetched), (tmp_path / "data/regression/calvin/a.png").exists()) == (False, False)


def test_what_stops_a_download(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: Entry(free=10))
        assert "0.000 GB free" in download(tmp_path, code=1)
    hub.newest = "away"
    assert "doesn't give meituan-longcat/LARYBench: no route. Check" in download(tmp_path, code=1)
    assert hub.fetched == []
    hub.newest, own = COMMIT, tmp_path / TABLE
    own.write_bytes(b"mine")
    assert "other content" in download(tmp_path, "--include", "calvin", code=1)
    assert own.read_bytes() == b"mine", "a table of one's own is not replaced"


def test_a_folder_holds_one_repository(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelScope is another one, and is read by its own library."""
    download(tmp_path, "--keep-archives")
    assert (tmp_path / "data" / ".lary_download" / "regression" / "calvin.tar").read_bytes() == CALVIN
    assert "another DATA_DIR" in download(tmp_path, "--repo", "other/name", code=2)
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    assert "pip install 'lary[modelscope]'" in download(tmp_path, "--source", "modelscope", code=2)
    monkeypatch.setitem(sys.modules, "modelscope_hub", Entry(HubApi=lambda: hub))
    assert "another DATA_DIR" in download(tmp_path, "--source", "modelscope", code=2)
    assert "at master: 5 files fetched" in download(tmp_path / "own", "--source", "modelscope")
    for text, code, words in (("[]", 1, "damaged"), ('{"version": 9, "files": {}}', 2, "update lary")):
        (tmp_path / "data" / MANIFEST).write_text(text)
        assert words in download(tmp_path, code=code)


@pytest.mark.parametrize("odd", [{"size": "x"}, {"size": None}, {"path": 5}, {"blob_id": 5}, "endless", "still"])
def test_odd_lists_and_lists_without_end(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any] | str
) -> None:
    def listed(*_: Any, **__: Any) -> Iterator[Any]:
        file = huggingface_hub.hf_api.RepoFile(path="regression/calvin/a", size=1, oid="0" * 40)
        for _ in range(1) if isinstance(odd, dict) else iter(int, 1):
            vars(file).update(odd if isinstance(odd, dict) else {})
            if odd != "still":  # pages without a file
                yield file
            elif ended:
                return

    ended: list[None] = []
    monkeypatch.setattr(hub, "list_repo_tree", listed)
    monkeypatch.setattr("lary.data.fetch.SECONDS_TO_LIST", 1 if odd == "still" else 120)
    with bounded():
        download(tmp_path, "--include", "calvin", code=1, has=["huggingface doesn't give meituan"])
    ended.append(None)
