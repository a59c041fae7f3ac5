"""Image backbones on tiny checkpoints: tokens, protocols, strict keys; and any backbone of transformers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file

from lary.models.image import backbone_of, image_tower
from lary.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, Preprocess
from lary.types import LaryError, UsageError
from tests.helpers import fails, lary, printed
from tests.models.test_weights import NEWEST, FakeHub, kind_of, make
from tests.tiny import KINDS, save_tiny

CLIPS = torch.randn(3, 2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(KINDS))
def test_full_backbones_have_the_parameters_of_their_records(name: str) -> None:
    config = MODELS.get(name).options["config"]
    model_class: Any = getattr(transformers, backbone_of(config["model_type"]).model)
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(image_tower(config)))
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 2) == MODELS.get(name).parameters_m


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_unused_keys_change_nothing(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dinov2", "dinov2")
    expected = make("dinov2-origin", folder).encode(CLIPS).tokens
    edit(folder, lambda tensors: tensors.pop("embeddings.mask_token"))
    assert torch.equal(make("dinov2-origin", folder).encode(CLIPS).tokens, expected)
    whole, tower = save_tiny(tmp_path / "whole", "siglip2"), tmp_path / "tower"
    tower.mkdir()
    config = json.loads((whole / "config.json").read_text())["vision_config"]
    (tower / "config.json").write_text(json.dumps({**config, "model_type": "siglip_vision_model"}))
    tensors = load_file(whole / "model.safetensors")
    kept = {key.removeprefix("vision_model."): value for key, value in tensors.items() if key.startswith("vision_m")}
    assert len(kept) < len(tensors)
    save_file({key: value for key, value in kept.items() if not key.startswith("head.")}, tower / "model.safetensors")
    assert torch.equal(*(make("siglip2-origin", folder).encode(CLIPS).tokens for folder in (whole, tower)))


def test_checkpoints_of_something_else_are_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "siglip2", "siglip2")
    fails(UsageError, r"holds a siglip model, expected dinov3_vit", make, "dinov3-origin", folder)
    spec = MODELS.get("siglip2-origin")
    other = replace(spec, preprocess=replace(spec.preprocess, size=256))
    with pytest.raises(UsageError, match=r"images of 224 pixels, the record prepares 256"):
        build(other, ModelContext("cpu", "corrected", weights=str(folder)))
    for name, changes in (
        ("dinov2-origin", {"hidden_size": "wide"}),
        ("dinov3-origin", {"num_attention_heads": 0}),
        ("siglip2-origin", {"hidden_size": 10, "num_attention_heads": 3}),
    ):
        (folder / "config.json").write_text(json.dumps({**MODELS.get(name).options["config"], **changes}))
        fails(LaryError, rf"configuration of {folder} describes no \w+Model", make, name, folder)


# Any backbone


def test_any_transformers_backbone(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
    folder, processor = tmp_path / "vit", tmp_path / "vit" / "preprocessor_config.json"
    config = transformers.ViTConfig(num_hidden_layers=1, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor.write_text(json.dumps({"size": size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}))
    record = MODELS.get(f"hf:{folder}").preprocess
    assert (record.size, record.resize, record.mean, record.std) == (32, "pil_bicubic", (0.5,) * 3, (0.25,) * 3)
    printed("check-model", f"hf:{folder}", has=["2 x 16 x 16"])
    edges = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32}, "do_center_crop": True}
    lanczos = Preprocess(40, "pil_lanczos", None, 2.0, IMAGENET_MEAN, IMAGENET_STD, "pil")
    for changes, expected in (
        (edges | {"do_normalize": False, "do_rescale": False}, Preprocess(32, "pil_bilinear", 40, 1.0, reader="pil")),
        ({"size": 40, "crop_size": 32, "rescale_factor": 0.5, "resample": 1}, lanczos),
    ):
        processor.write_text(json.dumps(changes))
        assert MODELS.get(f"hf:{folder}").preprocess == expected
    processor.write_text("{")
    printed("check-model", f"hf:{folder}", code=2, has=["can't be used"])
    for model in ("", "random"):
        printed("check-model", f"hf:{model}", code=2, has=["name a folder or a hub"])


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
    hub.failure = kind_of(errors.RepositoryNotFoundError)  # the weights are asked for next, and their error says so
    assert MODELS.get("hf:some/one").preprocess.size == 224


def test_preparation_of_any_backbone_comes_from_hub_or_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path / "repository", tmp_path / "cache", monkeypatch)
    hub.repository.mkdir()
    file = hub.repository / "preprocessor_config.json"
    file.write_text('{"size": 40}')
    for size in (40, 224):
        for hub.failure in (None, OSError("no network")):
            assert MODELS.get("hf:some/one").preprocess.size == size
        assert [(name, revision) for name, revision, _ in hub.downloads] == [("some/one", NEWEST)]
        for place in (file, hub.cache / NEWEST / file.name):  # then the cache knows a repository without such a file
            place.unlink(missing_ok=True)
