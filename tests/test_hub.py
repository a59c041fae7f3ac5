"""Weights from the hub: what is asked for and downloaded, what the cache saves, and how each refusal is told."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file

from lary.configs import ExtractConfig
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.runs.extract import extract
from lary.settings import load_settings
from lary.types import LaryError, UsageError
from tests.tiny import save_tiny
from tests.tree import make_calvin

NEWEST = "f" * 40
ON_THE_HUB = [spec.name for spec in MODELS if spec.weights is not None and spec.weights.hub]


def kind_of(error: type[Exception]) -> Exception:
    """An error of the hub's library, which otherwise wants a response to be made of."""
    return error.__new__(error)


class FakeHub:
    """A hub with one repository, whatever it is called, and a cache that lasts as long as the test."""

    def __init__(self, repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository, self.cache = repository, cache
        self.failure: Exception | None = None
        self.gated: bool | str = False
        self.allowed = True
        self.downloads: list[tuple[str, str | None, list[str]]] = []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", self.auth_check)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repository: str, *, revision: str | None, timeout: float) -> Any:
        if self.failure is not None:
            raise self.failure
        names = [file.relative_to(self.repository).as_posix() for file in self.repository.rglob("*") if file.is_file()]
        commit = revision if revision and len(revision) == 40 else NEWEST
        return SimpleNamespace(sha=commit, gated=self.gated, siblings=[SimpleNamespace(rfilename=n) for n in names])

    def auth_check(self, repository: str) -> None:
        if not self.allowed:
            raise kind_of(errors.GatedRepoError)

    def snapshot_download(self, repository: str, *, revision: str | None, **options: Any) -> str:
        folder = self.cache / (revision if revision and len(revision) == 40 else NEWEST)
        if options.get("local_files_only"):
            if not folder.exists():
                raise errors.LocalEntryNotFoundError("Not in the cache.\nMore about it.")
            return str(folder)
        self.downloads.append((repository, revision, options["allow_patterns"]))
        for pattern in options["allow_patterns"]:
            for file in self.repository.glob(pattern):
                target = folder / file.relative_to(self.repository)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(save_tiny(tmp_path / "repository", "dinov2"), tmp_path / "cache", monkeypatch)


def make(name: str, weights: str | None, revision: str | None = None) -> Any:
    return build(MODELS.get(name), ModelContext("cpu", "corrected", weights=weights, revision=revision))


def repository_of(name: str) -> str:
    weights = MODELS.get(name).weights
    assert weights is not None
    assert weights.hub is not None
    return weights.hub


def test_a_pinned_commit_is_fetched_once(hub: FakeHub) -> None:
    weights = MODELS.get("dinov2-origin").weights
    assert weights is not None
    assert make("dinov2-origin", weights.hub).identity.revision == weights.revision
    hub.failure = OSError("no network")
    assert make("dinov2-origin", weights.hub).identity.revision == weights.revision
    assert hub.downloads == [(weights.hub, weights.revision, ["config.json", "*.safetensors*"])]


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_branch_is_asked_for_its_newest(hub: FakeHub, revision: str | None, caplog: Any) -> None:
    safe = hub.repository / "model.safetensors"
    torch.save(load_file(safe), hub.repository / "pytorch_model.bin")
    safe.unlink()
    for _ in range(2):
        assert make("dinov2-origin", "someone/else", revision).identity.revision == NEWEST
    assert hub.downloads == [("someone/else", NEWEST, ["config.json", "*.bin*"])] * 2
    hub.failure = OSError("no network")
    with caplog.at_level(logging.INFO, logger="lary"):
        make("dinov2-origin", "someone/else", revision)
    assert "someone/else comes from its cache" in caplog.text


@pytest.mark.parametrize(
    ("name", "file", "asked"),
    [
        ("lapa", "laq_openx.pt", ["laq_openx.pt", "config.json"]),
        ("wan2-2", "vae/diffusion_pytorch_model.safetensors", ["vae/diffusion_pytorch_model.safetensors",
                                                               "vae/config.json"]),
        ("vjepa2", "original/model.pth", ["original/model.pth", "original/config.json"]),
        ("villa-x", "lam/model_config.json", ["lam/model_config.json", "lam/config.json"]),
    ],
)  # fmt: skip
def test_the_file_of_a_record_alone_is_fetched(hub: FakeHub, name: str, file: str, asked: list[str]) -> None:
    shutil.rmtree(hub.repository)
    (hub.repository / file).parent.mkdir(parents=True)
    (hub.repository / file).write_text("no weights")
    with pytest.raises(LaryError):
        make(name, repository_of(name))
    assert hub.downloads[0][0] == repository_of(name)
    assert hub.downloads[0][2] == asked
    (hub.repository / file).unlink()
    with pytest.raises(UsageError, match=r"some/one holds no .*pass --weights PATH"):
        make(name, "some/one")


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_gated_repository_is_said_to_be_gated_before_anything_is_fetched(name: str, hub: FakeHub) -> None:
    hub.gated, hub.allowed = "manual", False
    repository = repository_of(name)
    told = rf"'{name}': {repository} is gated: ask for access at https://huggingface\.co/{repository}, .*HF_TOKEN"
    with pytest.raises(UsageError, match=told):
        make(name, repository)
    assert not hub.downloads


def test_extraction_from_a_gated_repository_reads_and_writes_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_calvin(tmp_path / "root", {"val": 2})
    values = {"LARY_ROOT": str(tmp_path / "root"), "DATA_DIR": str(tmp_path / "root" / "data")}
    before = sorted((tmp_path / "root").rglob("*"))
    monkeypatch.setattr("lary.data.frames.read_frames", lambda *_: pytest.fail("frames were read"))
    hub.gated, hub.allowed = "auto", False
    with pytest.raises(UsageError, match=r"'dinov3-origin': facebook/dinov3-.* is gated"):
        extract(ExtractConfig(model="dinov3-origin", dataset="calvin", split="val"), load_settings(values))
    assert sorted((tmp_path / "root").rglob("*")) == before


def test_who_has_access_to_a_gated_repository_gets_its_files(hub: FakeHub) -> None:
    hub.gated = "manual"
    assert make("dinov2-origin", "some/one").identity.revision == NEWEST


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (kind_of(errors.RepositoryNotFoundError), r"neither on this machine nor a public repository of the hub\. Set"),
        (kind_of(errors.RevisionNotFoundError), r"has no revision 'v9': name a commit, branch or tag of it, or leave"),
        (OSError("No network.\nMore about it."), r"can't be fetched from the hub \(No network\)\. Set DINO_V3_PATH"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(hub: FakeHub, failure: Exception, told: str) -> None:
    hub.failure = failure
    with pytest.raises(UsageError, match=told):
        make("dinov3-origin", "some/one", "v9")


def test_a_denial_is_not_hidden_by_the_cache(hub: FakeHub) -> None:
    make("dinov2-origin", "some/one")
    hub.failure = kind_of(errors.RepositoryNotFoundError)
    with pytest.raises(UsageError, match="nor a public repository"):
        make("dinov2-origin", "some/one")


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_offline_with_nothing_cached_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"is not in the hub's cache, and HF_HUB_OFFLINE forbids .*pass --weights"):
        make(name, repository_of(name))


def test_any_backbone_offline_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"'hf:some/one': the hub can't be asked for its preprocessor_config\.json"):
        MODELS.get("hf:some/one")


def test_any_backbone_without_a_network_says_so_at_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("its library tries again"))
    hub.failure = OSError("No network.\nMore about it.")
    told = (
        r"'hf:some/one': the hub can't be asked .*: some/one can't be fetched .*\(No network\)\. Name a folder, or go"
    )
    with pytest.raises(UsageError, match=told):
        MODELS.get("hf:some/one")


@pytest.mark.parametrize("online", [True, False])
def test_preparation_of_any_backbone_comes_from_hub_or_cache(
    online: bool, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub.repository / "preprocessor_config.json").write_text('{"size": 40}')
    file = str(hub.repository / "preprocessor_config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None if online else file)
    asked: list[tuple[str, str, str]] = []

    def download(repository: str, name: str, *, revision: str) -> str:
        asked.append((repository, name, revision))
        return file

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    hub.failure = None if online else OSError("no network")
    assert MODELS.get("hf:some/one").preprocess.size == 40
    assert asked == ([("some/one", "preprocessor_config.json", NEWEST)] if online else [])
    (hub.repository / "preprocessor_config.json").unlink()
    if online:
        assert MODELS.get("hf:some/one").preprocess.size == 224


def test_a_name_that_is_no_repository(hub: FakeHub) -> None:
    hub.failure = errors.HFValidationError("Repo id must be in the form ...")
    with pytest.raises(UsageError, match="neither on this machine nor the name of a repository"):
        make("dinov2-origin", "/nowhere/at all")


@pytest.mark.parametrize("name", ["dinov2-origin", "lapa", "villa-x"])
def test_weights_on_disk_have_no_revision(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=rf"--revision v2: the weights of '{name}' are on disk, .*Leave the option out"
    ):
        make(name, str(tmp_path), "v2")


def test_a_repository_without_weights(hub: FakeHub) -> None:
    (hub.repository / "model.safetensors").unlink()
    with pytest.raises(
        UsageError, match=r"some/one holds no model\.safetensors beside config\.json\. Set DINO_V2_PATH"
    ):
        make("dinov2-origin", "some/one")
