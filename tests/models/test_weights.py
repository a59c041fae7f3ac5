"""Weights: where they are searched, what is printed where they are missing, the hub, and what names them."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file

from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, Weights, locate_weights
from lary.types import RANDOM, LaryError, UsageError
from tests.helpers import lary
from tests.hostile.harness import refused
from tests.tiny import save_tiny
from tests.tiny_networks import PUBLISHED
from tests.tree import make_calvin

NEWEST = "f" * 40
DINOV2 = MODELS.get("dinov2-origin")
HUB_OF = {spec.name: spec.weights.hub for spec in MODELS if spec.weights is not None and spec.weights.hub}


def make(name: str, weights: Path | str | None, revision: str | None = None) -> Any:
    return build(MODELS.get(name), ModelContext("cpu", "corrected", weights and str(weights), revision))


# Where weights come from


def test_weights_are_searched_in_their_order(tmp_path: Path) -> None:
    override, variable, models = tmp_path / "override", tmp_path / "variable", tmp_path / "models"
    for folder in (override, variable, models / "DINOv2"):
        folder.mkdir(parents=True)
    values = {"DINO_V2_PATH": str(variable), "MODEL_DIR": str(models)}
    hub = HUB_OF["dinov2-origin"]
    assert locate_weights(DINOV2, values, str(override)) == str(override)
    assert locate_weights(DINOV2, values) == str(variable)
    assert locate_weights(DINOV2, {"MODEL_DIR": str(models)}) == str(models / "DINOv2")
    assert locate_weights(DINOV2, {"MODEL_DIR": str(tmp_path)}) == locate_weights(DINOV2, {}) == hub
    assert locate_weights(DINOV2, {}, "someone/dinov2-tiny") == "someone/dinov2-tiny"
    assert locate_weights(DINOV2, {}, RANDOM) == RANDOM
    assert locate_weights(MODELS.get("pixels"), values) is None
    for value in ("/nowhere/at/all", RANDOM):
        with pytest.raises(UsageError, match=rf"DINO_V2_PATH points to {value}, which does not exist"):
            locate_weights(DINOV2, {**values, "DINO_V2_PATH": value})
    with pytest.raises(UsageError, match="Set DINO_V2_PATH to them, or pass --weights PATH"):
        locate_weights(replace(DINOV2, weights=Weights(variable="DINO_V2_PATH")), {})
    for weights in (RANDOM, str(tmp_path)):
        with pytest.raises(UsageError, match="'pixels' has no weights; leave the option out"):
            locate_weights(MODELS.get("pixels"), {}, weights)


@pytest.mark.parametrize("name", PUBLISHED)
def test_absent_weights_name_every_variable_of_the_description(name: str, tmp_path: Path) -> None:
    spec = MODELS.get(name)
    assert spec.weights is not None
    extra = {
        "dinov2": ["DINO_V2_PATH"], "dinov3": ["DINO_V3_PATH"], "siglip2": ["SIGLIP2_PATH"],
        "magvit2": ["MAGVIT2_TOKENIZER_PATH", "MAGVIT2_CONFIG_PATH"], "villa-x": ["VILLA_X_DIR", "VILLA_X_CKPT_PATH"],
    }.get(name, [])  # fmt: skip
    with pytest.raises(UsageError, match="pass --weights PATH") as caught:
        make(name, None)
    for place in (spec.weights.variable, spec.weights.folder, *extra):
        assert place is None or place in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no "):
        make(name, tmp_path / "empty")
    with pytest.raises(UsageError, match=r"--weights points to .*/absent\.pt, which does not exist"):
        locate_weights(spec, {}, str(tmp_path / "absent.pt"))
    with pytest.raises(UsageError, match=rf"--revision v2: the weights of '{name}' are on disk, .*Leave the option"):
        make(name, tmp_path, "v2")


# Folders of transformers


@pytest.fixture
def dinov2(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "DINOv2", "dinov2")


CLIPS = torch.randn(1, 2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_safetensors_pickled_tensors_and_shards_give_the_same(dinov2: Path) -> None:
    expected = make("dinov2-origin", dinov2)
    tensors = load_file(dinov2 / "model.safetensors")
    (dinov2 / "pytorch_model.bin").write_bytes(b"no weights")
    assert make("dinov2-origin", dinov2).identity == expected.identity, "safetensors come first"

    (dinov2 / "model.safetensors").unlink()
    torch.save(tensors, dinov2 / "pytorch_model.bin")
    pickled = make("dinov2-origin", dinov2)

    (dinov2 / "pytorch_model.bin").unlink()
    shards = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({key: value for key, value in tensors.items() if shards[key] == shard}, dinov2 / shard)
    index = dinov2 / "model.safetensors.index.json"
    with pytest.raises(UsageError, match=r"holds 2 \.safetensors files and no model\.safetensors\.index\.json"):
        make("dinov2-origin", dinov2)
    index.write_text(json.dumps({"weight_map": shards}))
    sharded = make("dinov2-origin", dinov2)
    for encoder in (pickled, sharded):
        assert torch.equal(encoder.encode(CLIPS).tokens, expected.encode(CLIPS).tokens)
    assert len({expected.identity, pickled.identity, sharded.identity}) == 3

    (dinov2 / "model-0.safetensors").unlink()
    with pytest.raises(LaryError, match=r"names files that are not there: model-0\.safetensors"):
        make("dinov2-origin", dinov2)
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(LaryError, match="lists no weight files"):
        make("dinov2-origin", dinov2)


def test_identity_names_content_and_configuration(dinov2: Path) -> None:
    first = make("dinov2-origin", dinov2).identity
    tensors = load_file(dinov2 / "model.safetensors")
    save_file({**tensors, "layernorm.bias": tensors["layernorm.bias"] + 1e-3}, dinov2 / "model.safetensors")
    second = make("dinov2-origin", dinov2).identity
    config = json.loads((dinov2 / "config.json").read_text())
    (dinov2 / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    assert len({first, second, make("dinov2-origin", dinov2).identity}) == 3
    assert (first.random, first.revision) == (False, None)


def test_a_file_that_is_named_is_the_one_that_is_read(dinov2: Path) -> None:
    torch.save({"pickled": torch.zeros(1)}, dinov2 / "mine.pt")
    with pytest.raises(LaryError, match="1 unexpected: pickled"):
        make("dinov2-origin", dinov2 / "mine.pt")
    (dinov2 / "cat.png").write_bytes(b"png")
    with pytest.raises(UsageError, match=r"cat\.png is no weight file .*Set DINO_V2_PATH"):
        make("dinov2-origin", dinov2 / "cat.png")
    (dinov2 / "config.json").unlink()
    with pytest.raises(LaryError, match=r"config\.json does not exist"):
        make("dinov2-origin", dinov2)


# The hub


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


def test_a_pinned_commit_is_fetched_once(hub: FakeHub) -> None:
    weights = DINOV2.weights
    assert weights is not None
    for failure in (None, OSError("no network")):
        hub.failure = failure
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
    hub.failure = kind_of(errors.RepositoryNotFoundError)
    with pytest.raises(UsageError, match="nor a public repository"):  # a denial is not hidden by the cache
        make("dinov2-origin", "someone/else", revision)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lapa", "laq_openx.pt"), ("wan2-2", "vae/diffusion_pytorch_model.safetensors"),
        ("vjepa2", "original/model.pth"), ("villa-x", "lam/model_config.json"),
    ],
)  # fmt: skip
def test_the_file_of_a_record_alone_is_fetched(hub: FakeHub, name: str, file: str) -> None:
    shutil.rmtree(hub.repository)
    (hub.repository / file).parent.mkdir(parents=True)
    (hub.repository / file).write_text("no weights")
    with pytest.raises(LaryError):
        make(name, HUB_OF[name])
    asked = [file, (Path(file).parent / "config.json").as_posix()]
    assert (hub.downloads[0][0], hub.downloads[0][2]) == (HUB_OF[name], asked)
    (hub.repository / file).unlink()
    with pytest.raises(UsageError, match=r"some/one holds no .*pass --weights PATH"):
        make(name, "some/one")


@pytest.mark.parametrize("name", HUB_OF)
def test_refusals_of_the_hub_come_before_any_download(
    name: str, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated, hub.allowed, repository = "manual", False, HUB_OF[name]
    gated = rf"'{name}': {repository} is gated: ask for access at https://huggingface\.co/{repository}, .*HF_TOKEN"
    with pytest.raises(UsageError, match=gated):
        make(name, repository)
    assert not hub.downloads
    hub.allowed = True
    if name == "dinov2-origin":
        assert make(name, "some/one").identity.revision == NEWEST
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"is not in the hub's cache, and HF_HUB_OFFLINE forbids .*pass --weights"):
        make(name, repository)


def test_extraction_from_a_gated_repository_writes_nothing(hub: FakeHub, tmp_path: Path) -> None:
    make_calvin(tmp_path / "root", {"val": 2})
    before = sorted((tmp_path / "root").rglob("*"))
    hub.gated, hub.allowed = "auto", False
    done = lary("extract", "--model", "dinov3-origin", "--dataset", "calvin", "--split", "val", root=tmp_path / "root")
    assert (done.code, sorted((tmp_path / "root").rglob("*"))) == (2, before)
    assert "is gated" in done.err


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        (kind_of(errors.RepositoryNotFoundError), r"neither on this machine nor a public repository of the hub\. Set"),
        (kind_of(errors.RevisionNotFoundError), r"has no revision 'v9': name a commit, branch or tag of it, or leave"),
        (OSError("No network.\nMore about it."), r"can't be fetched from the hub \(No network\)\. Set DINO_V3_PATH"),
        (errors.HFValidationError("Repo id"), "neither on this machine nor the name of a repository"),
        (None, r"some/one holds no model\.safetensors beside config\.json\. Set DINO_V3_PATH"),
    ],
)
def test_what_the_hub_refuses_is_named_in_a_sentence(hub: FakeHub, failure: Exception | None, named: str) -> None:
    hub.failure = failure
    (hub.repository / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=named):
        make("dinov3-origin", "some/one", "v9")


# Names that lead elsewhere


@pytest.mark.parametrize("name", ["../outside", "a/..", "../../etc/passwd", "/etc/passwd", "a/b/../../c", "~nobody/x"])
def test_hub_ids_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    words = "does not exist|neither on this|no weight file|no home folder|holds no weights"
    refused(tmp_path, lambda: make("dinov2-origin", locate_weights(DINOV2, {}, name)), words)


@pytest.mark.parametrize("revision", ["../../../outside", "a\nb", "/etc"])
def test_revisions_that_lead_elsewhere(tmp_path: Path, revision: str) -> None:
    refused(tmp_path, lambda: make("dinov2-origin", "a/b", revision), "expected a branch")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "C:\\x.safetensors"])
def test_index_that_names_files_elsewhere(tmp_path: Path, name: str) -> None:
    save_file({"w": torch.zeros(4)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    refused(tmp_path, lambda: make("dinov2-origin", folder), "leaves its root")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"model_type": ' + "9" * 10_000 + "}", "[1, 2]", "\x00\x01",
                                     '{"model_type": 3}'])  # fmt: skip
def test_broken_configurations(tmp_path: Path, content: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    words = "nested too deeply|can't be read|no model_type"
    assert str(tmp_path) in refused(tmp_path, lambda: make("dinov2-origin", tmp_path), words)
