"""The image backbones against what the published code computes, loaded from a checkpoint folder as users have it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from lary.models.preprocess import mix_planes
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.types import BenchmarkProtocol
from tests.parity.conftest import Case, load_case, model_cases


def save_checkpoint(case: Case, folder: Path, prefix: str) -> Path:
    """The case's backbone on disk: config.json and model.safetensors under the published key names."""
    config_class = getattr(transformers, case.about["backbone"]["class"].split()[0].split(".")[-1]).config_class
    folder.mkdir()
    config = {"model_type": config_class.model_type, **case.config["backbone"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({prefix + key: value for key, value in case.weights().items()}, folder / "model.safetensors")
    return folder


def encode(case: Case, folder: Path, protocol: BenchmarkProtocol, clips: np.ndarray) -> torch.Tensor:
    """Tokens of clips (B, T, 3, H, W) in [0, 1], normalised as the published code does."""
    spec = MODELS.get(case.about["model"])
    paper, size = spec.preprocessing("paper"), clips.shape[-1]
    spec = replace(spec, preprocess=replace(spec.preprocess, size=size), preprocess_paper=replace(paper, size=size))
    mean, std = (np.float32(value)[:, None, None] for value in (paper.mean, paper.std))
    encoder = build(spec, ModelContext("cpu", protocol, weights=str(folder)))
    return encoder.encode(torch.from_numpy((clips - mean) / std)).tokens


@pytest.mark.parametrize("name", model_cases("*-origin"))
def test_tokens_and_planes_equal_the_published_ones(name: Any, tmp_path: Path) -> None:
    """Under ``corrected`` they are those of single frames; keys may have the prefix of the published file."""
    case = load_case(name)
    clips = np.ascontiguousarray(case.draw("x", "none: (B, 3, F, H, W) in [0, 1)").swapaxes(1, 2))
    case.check("mixed_images_corner", mix_planes(clips)[..., :4, :4].reshape(-1, 3, 4, 4))
    folder = save_checkpoint(case, tmp_path / "bare", "")
    case.check("tokens", encode(case, folder, "paper", clips))
    tokens = encode(case, folder, "corrected", clips)
    assert tokens.shape == case.arrays["tokens"].shape
    case.check("tokens_unmixed_first_image", tokens[:, :1])
    if prefix := case.about["backbone"].get("prefix_in_published_file", "").split(" ")[0]:
        case.check("tokens", encode(case, save_checkpoint(case, tmp_path / "published", prefix), "paper", clips))
