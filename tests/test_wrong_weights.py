"""Files that are no weights, or those of something else: every model answers with a sentence and runs nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, locate_weights
from lary.nets.villa import VillaConfig
from lary.types import LaryError, UsageError
from tests.test_random_weights import VIT

NAMES = [spec.name for spec in MODELS if spec.weights is not None and not spec.ablation]
REMEDY = r"(Fetch it again|Is it the right file|Convert them to safetensors|belongs to this model|be of one checkpoint)"


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def place(name: str, folder: Path, suffix: str) -> Path:
    """Where the weights of a model stand, with the configuration beside them that it wants; the file is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    options = MODELS.get(name).options
    if "accepts" in options:
        (folder / "config.json").write_text(json.dumps({**options["config"], **VIT}))
        return folder / ("model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin")
    if MODELS.get(name).weights == MODELS.get("villa-x").weights:
        config = {"architecture": "IgorModel", "config": {"encoder_depth": VillaConfig.encoder_depth}}
        (folder / "model_config.json").write_text(json.dumps(config))
        return folder / ("model.safetensors" if suffix == ".safetensors" else "model.bin")
    return folder / f"weights{suffix}"


def picture(file: Path, mark: Path) -> None:
    import cv2

    cv2.imwrite(f"{file}.png", np.zeros((8, 8, 3), np.uint8))
    Path(f"{file}.png").rename(file)


def cut(file: Path, mark: Path) -> None:
    tensors = {"a": torch.zeros(3000)}
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)
    file.write_bytes(file.read_bytes()[:-4000])


def other(file: Path, mark: Path) -> None:
    """A checkpoint of another model."""
    tensors = {"conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "text": lambda file, mark: file.write_text("no weights"),
    "json": lambda file, mark: file.write_text('{"a": 1}'),
    "empty": lambda file, mark: file.write_bytes(b""),
    "picture": picture,
    "cut": cut,
    "other": other,
    "hostile": lambda file, mark: torch.save({"a": Hostile(mark)}, file),
    "list": lambda file, mark: torch.save([torch.zeros(2)], file),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_checkpoint_of_the_model_is_told(name: str, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pt"):
        for damage, make in DAMAGES.items():
            file = place(name, tmp_path / damage / suffix[1:], suffix)
            make(file, tmp_path / "ran")
            given = file.parent if file.name.startswith(("model", "pytorch")) else file
            with pytest.raises(LaryError, match=REMEDY) as caught:
                build(MODELS.get(name), ModelContext("cpu", "corrected", weights=str(given)))
            told = str(caught.value)
            assert str(file.parent) in told, damage
            assert "\n" not in told, f"{damage}: {told}"
            assert not (tmp_path / "ran").exists(), f"{damage} {suffix}: code of the file was run"
            if damage == "hostile" and suffix == ".pt":
                assert "mkdir" in told


@pytest.mark.parametrize("name", NAMES)
def test_absent_weights_say_where_they_go(name: str, tmp_path: Path) -> None:
    spec = MODELS.get(name)
    assert spec.weights is not None
    places = [text for text in (spec.weights.variable, spec.weights.folder) if text]
    empty = tmp_path / "empty"
    empty.mkdir()
    for weights in (None, str(empty)):
        with pytest.raises(UsageError, match=r"pass --weights PATH|holds no weights: expected") as caught:
            build(spec, ModelContext("cpu", "corrected", weights=weights))
        assert weights is not None or all(text in str(caught.value) for text in places)
    with pytest.raises(UsageError, match=r"--weights points to .*/absent\.pt, which does not exist"):
        locate_weights(spec, {}, str(tmp_path / "absent.pt"))


@pytest.mark.parametrize("name", ["dinov2-origin", "siglip2-origin", "villa-x", "wan2-2", "flux2", "vjepa2"])
@pytest.mark.parametrize("content", ['{"model_type": "dinov2', "[1, 2]", '{"model_type": 3}', "\x00\x01"])
def test_a_broken_configuration_is_told(name: str, content: str, tmp_path: Path) -> None:
    file = place(name, tmp_path, ".safetensors")
    save_file({"a": torch.zeros(1)}, file)
    config = tmp_path / ("model_config.json" if (tmp_path / "model_config.json").exists() else "config.json")
    config.write_text(content)
    given = tmp_path if file.name.startswith("model") else file
    with pytest.raises(LaryError) as caught:
        build(MODELS.get(name), ModelContext("cpu", "corrected", weights=str(given)))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dinov2-origin", {"hidden_size": "wide"}),
        ("dinov3-origin", {"num_attention_heads": 0}),
        ("siglip2-origin", {"hidden_size": 10, "num_attention_heads": 3}),
    ],
)
def test_a_configuration_of_no_network_is_told(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    file = place(name, tmp_path, ".safetensors")
    save_file({"a": torch.zeros(1)}, file)
    (tmp_path / "config.json").write_text(json.dumps({**MODELS.get(name).options["config"], **changes}))
    with pytest.raises(LaryError, match=rf"configuration of {tmp_path} describes no \w+Model"):
        build(MODELS.get(name), ModelContext("cpu", "corrected", weights=str(tmp_path)))


def test_a_configuration_of_no_tokenizer_is_told(tmp_path: Path) -> None:
    import yaml

    sizes = {"z_channels": 18, "ch": 33, "ch_mult": [1], "num_res_blocks": 1, "in_channels": 3, "out_ch": 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"ddconfig": sizes}}}))
    from lary.models.laq import LOADERS

    spec = MODELS.get("magvit2")
    settings = {"MAGVIT2_CONFIG_PATH": str(tmp_path / "c.yaml")}
    features = spec.options["features"]
    with pytest.raises(LaryError, match=r"c\.yaml describes no Open-MAGVIT2 tokenizer: num_channels"):
        LOADERS[features["kind"]](spec, features, {}, tmp_path, 14, settings)


def test_a_file_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    file = place("dinov2-origin", tmp_path, ".safetensors")
    save_file({"safe": torch.zeros(1)}, file)
    torch.save({"pickled": torch.zeros(1)}, tmp_path / "mine.pt")
    with pytest.raises(LaryError, match="1 unexpected: pickled"):
        build(MODELS.get("dinov2-origin"), ModelContext("cpu", "corrected", weights=str(tmp_path / "mine.pt")))
    (tmp_path / "cat.png").write_bytes(b"png")
    with pytest.raises(UsageError, match=r"cat\.png is no weight file .*Set DINO_V2_PATH"):
        build(MODELS.get("dinov2-origin"), ModelContext("cpu", "corrected", weights=str(tmp_path / "cat.png")))


def test_one_key_twice_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1), "module.a": torch.ones(1)}}, tmp_path / "w.pt")
    with pytest.raises(LaryError, match=r"w\.pt hold a twice"):
        build(MODELS.get("lapa"), ModelContext("cpu", "corrected", weights=str(tmp_path / "w.pt")))


def test_weights_for_a_model_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'pixels' has no weights; leave the option out"):
        locate_weights(MODELS.get("pixels"), {}, str(tmp_path))
