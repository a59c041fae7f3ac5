"""V-JEPA 2 against what the published code computes, loaded from a file as it was released."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lary.models import released as vjepa
from lary.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.models.tensors import rename_keys
from lary.types import BenchmarkProtocol
from tests.parity.conftest import Case, load_case, model_cases
from tests.parity.tables import expand, table_names

CASES = model_cases("vjepa2")


def save_released(case: Case, folder: Path) -> Path:
    """The case's weights as the released file has them, beside the entries that training leaves there."""
    wrapped = {f"module.backbone.{key}": torch.from_numpy(value) for key, value in case.weights().items()}
    file = folder / "vitl.pt"
    torch.save({"target_encoder": wrapped, "encoder": {}, "epoch": 3, "opt": None}, file)
    return file


def normalised(case: Case, name: str) -> npt.NDArray[np.float32]:
    """Clips (B, T, 3, H, W) with ImageNet's statistics; the case has channels first."""
    clips = case.draw(name, "(x - mean) / std per channel on axis 1, ImageNet mean and std").swapaxes(1, 2)
    mean, std = (np.float32(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return np.ascontiguousarray((clips - mean) / std)


def encode(case: Case, file: Path, protocol: BenchmarkProtocol, clips: npt.NDArray[np.float32]) -> torch.Tensor:
    spec = MODELS.get(case.about["model"])
    spec = replace(
        spec,
        preprocess=replace(spec.preprocess, size=clips.shape[-1]),
        options={**spec.options, "config": case.config},
    )
    encoder = build(spec, ModelContext("cpu", protocol, weights=str(file)))
    return encoder.encode(torch.from_numpy(clips)).tokens


@pytest.mark.parametrize("name", CASES)
def test_tokens_equal_the_published_ones(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file, kinds = save_released(case, tmp_path), ("image", "video")
    clips = {kind: normalised(case, f"clip_{kind}") for kind in kinds}
    case.check_all(**{f"tokens_{kind}": encode(case, file, "paper", clips[kind]) for kind in kinds})


@pytest.mark.parametrize("name", CASES)
def test_corrected_tokens_repeat_the_last_frame(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file, clips = save_released(case, tmp_path), normalised(case, "clip_video")
    tubelet = case.config["tubelet_size"]
    padded = np.concatenate([clips, *[clips[:, -1:]] * (-clips.shape[1] % tubelet)], axis=1)
    tokens = encode(case, file, "corrected", clips)
    cells = (clips.shape[-1] // case.config["patch_size"]) ** 2
    assert tokens.shape == (len(clips), padded.shape[1] // tubelet * cells, case.config["embed_dim"])
    assert torch.equal(tokens, encode(case, file, "paper", padded))


@pytest.mark.parametrize("name", CASES)
def test_keys_are_those_of_the_table(name: str) -> None:
    case = load_case(name)
    table = dict(case.about["hf_mapping"])
    row = next(source for source in table if ".qkv." in source)
    joint = table.pop(row)
    assert "rows [0:D], [D:2D], [2D:3D] of the qkv tensor in that order" in joint
    keys = list(case.about["keys"])
    named = table_names(table, keys)
    assert set(keys) - set(named) == {key for key in keys if ".qkv." in key}
    weights = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    ours = rename_keys(weights, "vjepa2")
    for source, target in named.items():
        assert torch.equal(ours.pop(target), weights[source])
    targets = expand(joint)
    for key in set(keys) - set(named):
        block, kind = key.split(".")[1], key.split(".")[-1]
        places = [target.replace("<i>", block) for target in targets if target.endswith(kind)]
        assert torch.equal(torch.cat([ours.pop(place) for place in places]), weights[key])
    assert not ours
    network = vjepa.empty_vjepa(vjepa.vjepa_arguments(**case.config))
    assert len(network.encoder.layer) == case.config["depth"]
