"""Weights: where they are searched, what is printed where they are missing, the hub, and what names them."""

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

from lary.files import write_bytes
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, Weights, locate_weights
from lary.types import RANDOM, LaryError, UsageError
from tests.helpers import fails
from tests.hostile.harness import refused
from tests.tiny import save_tiny
from tests.tiny_networks import PUBLISHED

NEWEST = "f" * 40
DINOV2 = MODELS.get("dinov2-origin")
HUB_OF = {spec.name: spec.weights.hub for spec in MODELS if spec.weights is not None and spec.weights.hub}
CLIPS = torch.randn(1, 2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def make(name: str, weights: Path | str | None, revision: str | None = None) -> Any:
    return build(MODELS.get(name), ModelContext("cpu", "corrected", weights and str(weights), revision))


def test_weights_are_searched_in_their_order(tmp_path: Path) -> None:
    override, variable, models = (str(tmp_path / name) for name in ("override", "variable", "models"))
    for folder in (override, variable, f"{models}/DINOv2"):
        Path(folder).mkdir(parents=True)
    values, pixels = {"DINO_V2_PATH": variable, "MODEL_DIR": models}, MODELS.get("pixels")
    assert locate_weights(DINOV2, values, override) == override
    assert locate_weights(DINOV2, values) == variable
    assert locate_weights(DINOV2, {"MODEL_DIR": models}) == f"{models}/DINOv2"
    assert locate_weights(DINOV2, {"MODEL_DIR": str(tmp_path)}) == HUB_OF["dinov2-origin"]
    for given in ("someone/dinov2-tiny", RANDOM):
        assert locate_weights(DINOV2, {}, given) == given
    assert locate_weights(pixels, values) is None
    unnamed = replace(DINOV2, weights=Weights(variable="DINO_V2_PATH"))
    for spec, given, weights, named in (
        (DINOV2, {"DINO_V2_PATH": "/nowhere"}, None, "DINO_V2_PATH points to /nowhere, which does not exist"),
        (DINOV2, {"DINO_V2_PATH": RANDOM}, None, "DINO_V2_PATH points to random, which does not exist"),
        (unnamed, {}, None, "Set DINO_V2_PATH to them, or pass --weights PATH"),
        (pixels, {}, RANDOM, "'pixels' has no weights; leave the option out"),
        (pixels, {}, override, "'pixels' has no weights; leave the option out"),
    ):
        fails(UsageError, named, locate_weights, spec, given, weights)


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
    absent = str(tmp_path / "absent.pt")
    fails(UsageError, "holds no ", make, name, tmp_path)
    fails(UsageError, r"--weights points to .*/absent\.pt, which does not", locate_weights, spec, {}, absent)
    fails(UsageError, f"--revision v2: the weights of '{name}' are on disk, .*Leave the", make, name, tmp_path, "v2")


# Folders of transformers


@pytest.fixture
def dinov2(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "DINOv2", "dinov2")


def test_safetensors_pickled_tensors_and_shards_give_the_same(dinov2: Path) -> None:
    expected, safe, pickle = make("dinov2-origin", dinov2), dinov2 / "model.safetensors", dinov2 / "pytorch_model.bin"
    tensors, index = load_file(safe), dinov2 / "model.safetensors.index.json"
    pickle.write_bytes(b"no weights")
    assert make("dinov2-origin", dinov2).identity == expected.identity, "safetensors come first"
    safe.unlink()
    torch.save(tensors, pickle)
    pickled = make("dinov2-origin", dinov2)
    pickle.unlink()
    shards = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({key: value for key, value in tensors.items() if shards[key] == shard}, dinov2 / shard)
    fails(UsageError, r"holds 2 \.safetensors files and no model\.safetensors\.index\.", make, "dinov2-origin", dinov2)
    index.write_text(json.dumps({"weight_map": shards}))
    for encoder in (pickled, make("dinov2-origin", dinov2)):
        assert torch.equal(encoder.encode(CLIPS).tokens, expected.encode(CLIPS).tokens)
    (dinov2 / "model-0.safetensors").unlink()
    for names, named in ((shards, r"names files that are not there: model-0\.saf"), ({}, "lists no weight files")):
        index.write_text(json.dumps({"weight_map": names}))
        fails(LaryError, named, make, "dinov2-origin", dinov2)


def test_identity_names_content_configuration_and_form(dinov2: Path) -> None:
    first, safe = make("dinov2-origin", dinov2).identity, dinov2 / "model.safetensors"
    assert make("dinov2-origin", dinov2 / "config.json").identity == first
    safe.rename(dinov2 / "only.safetensors")
    assert make("dinov2-origin", dinov2).identity != first, "the name of a file is part of it"
    (dinov2 / "only.safetensors").rename(safe)
    tensors = load_file(safe)
    save_file({**tensors, "layernorm.bias": tensors["layernorm.bias"] + 1e-3}, safe)
    second = make("dinov2-origin", dinov2).identity
    config = json.loads((dinov2 / "config.json").read_text())
    (dinov2 / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    third = make("dinov2-origin", dinov2).identity
    torch.save(load_file(safe), dinov2 / "pytorch_model.bin")
    safe.unlink()
    assert len({first, second, third, make("dinov2-origin", dinov2).identity}) == 4
    assert (first.random, first.revision) == (False, None)


def test_a_file_that_is_named_is_the_one_that_is_read(dinov2: Path) -> None:
    torch.save({"pickled": torch.zeros(1)}, dinov2 / "mine.pt")
    (dinov2 / "cat.png").write_bytes(b"png")
    fails(LaryError, "1 unexpected: pickled", make, "dinov2-origin", dinov2 / "mine.pt")
    fails(LaryError, r"cat\.png is no weight file .*Set DINO_V2_PATH", make, "dinov2-origin", dinov2 / "cat.png")
    (dinov2 / "config.json").unlink()
    fails(LaryError, r"config\.json does not exist", make, "dinov2-origin", dinov2 / "model.safetensors")


# The hub


def kind_of(error: type[Exception]) -> Exception:
    """An error of the hub's library, which otherwise wants a response to be made of."""
    return error.__new__(error)


class FakeHub:
    """A hub with one repository, whatever it is called, and a cache that lasts as long as the test."""

    def __init__(self, repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository, self.cache = repository, cache
        self.failure: Exception | None = None
        self.gated = False
        self.downloads: list[tuple[str, str | None, list[str]]] = []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", self.auth_check)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repository: str, *, revision: str | None, timeout: float) -> Any:
        if self.failure is not None:
            raise self.failure
        files = [file for file in self.repository.rglob("*") if file.is_file()]
        siblings = [SimpleNamespace(rfilename=file.relative_to(self.repository).as_posix()) for file in files]
        return SimpleNamespace(sha=self.folder(revision).name, gated=self.gated, siblings=siblings)

    def auth_check(self, repository: str) -> None:
        raise kind_of(errors.GatedRepoError)

    def folder(self, revision: str | None) -> Path:
        return self.cache / (revision if revision and len(revision) == 40 else NEWEST)

    def snapshot_download(self, repository: str, *, revision: str | None, **options: Any) -> str:
        folder = self.folder(revision)
        if options.get("local_files_only"):
            if not folder.exists():
                raise errors.LocalEntryNotFoundError("Not in the cache.\nMore about it.")
            return str(folder)
        self.downloads.append((repository, revision, options["allow_patterns"]))
        for pattern in options["allow_patterns"]:
            for file in self.repository.glob(pattern):
                write_bytes(folder / file.relative_to(self.repository), file.read_bytes())
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(save_tiny(tmp_path / "repository", "dinov2"), tmp_path / "cache", monkeypatch)


def test_a_pinned_commit_is_fetched_once(hub: FakeHub) -> None:
    weights = DINOV2.weights
    assert weights is not None
    write_bytes(hub.repository / "pytorch_model.bin", b"not asked for where safetensors are")
    for hub.failure in (None, OSError("no network"), kind_of(errors.RepositoryNotFoundError)):  # nor is the hub
        assert make("dinov2-origin", weights.hub).identity.revision == weights.revision
    assert hub.downloads == [(weights.hub, weights.revision, ["config.json", "*.safetensors*"])]
    hub.failure = None
    (hub.cache / str(weights.revision) / "config.json").unlink()
    make("dinov2-origin", weights.hub)
    assert len(hub.downloads) == 2, "a download that was interrupted"
    assert make("dinov2-origin", weights.hub, "main").identity.revision == NEWEST, "a revision that is asked for"


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
    fails(UsageError, "nor a public repository", make, "dinov2-origin", "someone/else", revision)  # though cached


@pytest.mark.parametrize(
    ("name", "file"), [("lapa", "laq_openx.pt"), ("vjepa2", "original/model.pth"), ("villa-x", "lam/model_config.json")]
)
def test_the_file_of_a_record_alone_is_fetched(hub: FakeHub, name: str, file: str) -> None:
    shutil.rmtree(hub.repository)
    write_bytes(hub.repository / file, b"no weights")
    fails(LaryError, "", make, name, HUB_OF[name])
    asked = [file, (Path(file).parent / "config.json").as_posix()]
    assert (hub.downloads[0][0], hub.downloads[0][2]) == (HUB_OF[name], asked)


@pytest.mark.parametrize(("failure", "named"), [
    ("gated", r"is gated: ask for access at https://huggingface\.co/some/one, .*HF_TOKEN"),
    ("offline", r"is not in the hub's cache, and HF_HUB_OFFLINE forbids .*pass --weights"),
    (kind_of(errors.RevisionNotFoundError), r"has no revision 'v9': name a commit, branch or tag of it, or leave"),
    (OSError("No network.\nMore about it."), r"can't be fetched from the hub \(No network\)\. Set DINO_V3_PATH"),
    (errors.HFValidationError("Repo id"), "is neither on this machine nor the name of a repository"),
    (None, r"holds no model\.safetensors beside config\.json\. Set DINO_V3_PATH"),
])  # fmt: skip
def test_refusals_precede_downloads(hub: FakeHub, failure: Any, named: str, tmp_path: Path, monkeypatch: Any) -> None:
    hub.gated = failure == "gated"
    hub.failure = failure if isinstance(failure, Exception) else None
    if not hub.gated:
        (hub.repository / "model.safetensors").unlink()
    if failure == "offline":
        monkeypatch.undo()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fails(UsageError, f"'dinov3-origin': some/one {named}", make, "dinov3-origin", "some/one", "v9")
    assert not hub.downloads


# Names that lead elsewhere, and broken files


def test_names_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "does not exist|neither on this|no weight file|no home folder|holds no weights"
    for name in ("../outside", "a/..", "/etc/passwd", "a/b/../../c", "~nobody/x"):
        refused(tmp_path, lambda name=name: make("dinov2-origin", locate_weights(DINOV2, {}, name)), words)
    for revision in ("../../../outside", "a\nb", "/etc"):
        refused(tmp_path, lambda revision=revision: make("dinov2-origin", "a/b", revision), "expected a branch")


def test_broken_configurations_and_indices(tmp_path: Path) -> None:
    folder, config = tmp_path / "model", tmp_path / "model" / "config.json"
    folder.mkdir()
    config.write_text('{"model_type": "dinov2"}')
    for name in ("../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "C:\\x.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        refused(tmp_path, lambda: make("dinov2-origin", folder), "leaves its root")
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    for content in ("[" * 100_000, '{"model_type": ' + "9" * 10_000 + "}", "[1, 2]", "\x00\x01", '{"model_type": 3}'):
        config.write_text(content)
        words = "nested too deeply|can't be read|no model_type"
        assert str(folder) in refused(tmp_path, lambda: make("dinov2-origin", folder), words)
