"""Image backbones on tiny checkpoints: tokens, protocols, strict keys; and any backbone of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lary.models.image import backbone_of, image_tower
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext
from lary.types import BenchmarkProtocol, LaryError, UsageError
from tests.helpers import lary
from tests.models.test_weights import NEWEST, FakeHub
from tests.tiny import KINDS, save_tiny

CLIPS = torch.randn(3, 2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of every kind."""
    root = tmp_path_factory.mktemp("weights")
    return {kind: save_tiny(root / kind, kind) for kind in [*KINDS.values(), "dinov2-registers"]}


def make(name: str, folder: Path, protocol: BenchmarkProtocol = "corrected") -> LoadedEncoder:
    return build(MODELS.get(name), ModelContext("cpu", protocol, weights=str(folder)))


@pytest.mark.parametrize("name", list(KINDS))
def test_full_backbones_have_the_parameters_of_their_records(name: str) -> None:
    import transformers

    config = MODELS.get(name).options["config"]
    model_class: Any = getattr(transformers, backbone_of(config["model_type"]).model)
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(image_tower(config)))
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 2) == MODELS.get(name).parameters_m


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("layernorm.bias"), "1 missing: layernorm.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "1 unexpected: extra"),
        (lambda tensors: tensors.update({"layernorm.bias": torch.zeros(7)}), "1 misshaped: .*layernorm.bias"),
        (lambda tensors: tensors.clear() or tensors.update(a=torch.zeros(1)), r"\d missing: .* and \d+ more; 1 unexp"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_stop_with_their_names(tmp_path: Path, change: Any, named: str) -> None:
    edit(save_tiny(tmp_path / "DINOv2", "dinov2"), change)
    with pytest.raises(LaryError, match=named) as caught:
        make("dinov2-origin", tmp_path / "DINOv2")
    assert str(tmp_path / "DINOv2") in str(caught.value)


def test_unused_keys_and_half_precision_change_nothing(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dinov2", "dinov2")
    expected = make("dinov2-origin", checkpoints["dinov2"]).encode(CLIPS).tokens
    edit(folder, lambda tensors: tensors.pop("embeddings.mask_token"))
    assert torch.equal(make("dinov2-origin", folder).encode(CLIPS).tokens, expected)
    edit(folder, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    assert make("dinov2-origin", folder).encode(CLIPS).tokens.dtype == torch.float32

    whole, tower = checkpoints["siglip2"], tmp_path / "tower"
    tower.mkdir()
    config = json.loads((whole / "config.json").read_text())["vision_config"]
    (tower / "config.json").write_text(json.dumps({**config, "model_type": "siglip_vision_model"}))
    tensors = load_file(whole / "model.safetensors")
    assert any(key.startswith("text_model.") for key in tensors)
    kept = {key.removeprefix("vision_model."): value for key, value in tensors.items() if key.startswith("vision_m")}
    save_file({key: value for key, value in kept.items() if not key.startswith("head.")}, tower / "model.safetensors")
    assert torch.equal(*(make("siglip2-origin", folder).encode(CLIPS).tokens for folder in (whole, tower)))


def test_checkpoints_of_something_else_are_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a siglip model, expected dinov3_vit"):
        make("dinov3-origin", checkpoints["siglip2"])
    spec = MODELS.get("siglip2-origin")
    other = replace(spec, preprocess=replace(spec.preprocess, size=256))
    with pytest.raises(UsageError, match=r"images of 224 pixels, the record prepares 256"):
        build(other, ModelContext("cpu", "corrected", weights=str(checkpoints["siglip2"])))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    for name, changes in (
        ("dinov2-origin", {"hidden_size": "wide"}),
        ("dinov3-origin", {"num_attention_heads": 0}),
        ("siglip2-origin", {"hidden_size": 10, "num_attention_heads": 3}),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**MODELS.get(name).options["config"], **changes}))
        with pytest.raises(LaryError, match=rf"configuration of {tmp_path} describes no \w+Model"):
            make(name, tmp_path)


# Any backbone


def test_any_transformers_backbone(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    folder, processor = tmp_path / "vit", tmp_path / "vit" / "preprocessor_config.json"
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor.write_text(json.dumps({"size": size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}))
    record = MODELS.get(f"hf:{folder}").preprocess
    assert (record.size, record.resize, record.mean, record.std) == (32, "pil_bicubic", (0.5,) * 3, (0.25,) * 3)
    done = lary("check-model", f"hf:{folder}")
    assert (done.code, "2 x 16 x 16" in done.out) == (0, True)
    processor.write_text("{")
    for model, named in ((f"hf:{folder}", "can't be used"), ("hf:", "name a folder or a hub id"),
                         ("hf:random", "name a folder or a hub id")):  # fmt: skip
        done = lary("check-model", model)
        assert (done.code, named in done.err) == (2, True)


@pytest.mark.parametrize("name", ["hf:../../etc", "hf:a/../../b", "hf:/etc/passwd"])
def test_backbones_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = lary("extract", "--model", name, "--dataset", "calvin", "--split", "val", root=tmp_path)
    assert done.code in (1, 2)
    assert not list(tmp_path.iterdir())


def test_any_backbone_without_a_network_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        offline.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UsageError, match=r"'hf:some/one': the hub can't be asked for its preprocessor_config\."):
            MODELS.get("hf:some/one")
    hub = FakeHub(tmp_path, tmp_path / "cache", monkeypatch)
    hub.failure = OSError("No network.\nMore about it.")
    with pytest.raises(UsageError, match=r"some/one can't be fetched .*\(No network\)\. Name a folder, or go online"):
        MODELS.get("hf:some/one")


def test_preparation_of_any_backbone_comes_from_hub_or_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path / "repository", tmp_path / "cache", monkeypatch)
    hub.repository.mkdir()
    file = hub.repository / "preprocessor_config.json"
    file.write_text('{"size": 40}')
    for failure in (None, OSError("no network")):
        hub.failure = failure
        assert MODELS.get("hf:some/one").preprocess.size == 40
    assert [(name, revision) for name, revision, _ in hub.downloads] == [("some/one", NEWEST)]
    file.unlink()
    (hub.cache / NEWEST / file.name).unlink()
    for failure in (None, OSError("no network")):  # the cache knows the repository, which has no such file
        hub.failure = failure
        assert MODELS.get("hf:some/one").preprocess.size == 224
