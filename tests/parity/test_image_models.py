"""The image backbones against what the published code computes, loaded from a checkpoint folder as users have it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from lary.models.preprocess import mix_planes
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.types import BenchmarkProtocol
from tests.parity.conftest import Case, load_case, model_cases

CASES = model_cases("*-origin")


def published_prefix(name: Any) -> str:
    """What the keys of a case's published file begin with, empty if nothing; `name` may be a marked parameter."""
    backbone = load_case(getattr(name, "values", (name,))[0]).about["backbone"]
    return (backbone.get("prefix_in_published_file") or " ").split(" ")[0]


def save_checkpoint(case: Case, folder: Path, prefix: str = "") -> None:
    """The case's backbone on disk: config.json and model.safetensors under the published key names."""
    config_class = getattr(transformers, case.about["backbone"]["class"].split()[0].split(".")[-1]).config_class
    folder.mkdir()
    config = {"model_type": config_class.model_type, **case.config["backbone"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({prefix + key: value for key, value in case.weights().items()}, folder / "model.safetensors")


def clips_of(case: Case) -> npt.NDArray[np.float32]:
    """The case's frames (B, T, 3, H, W) in [0, 1)."""
    return np.ascontiguousarray(case.draw("x", "none: (B, 3, F, H, W) in [0, 1)").swapaxes(1, 2))


def of_size(spec: ModelSpec, size: int) -> ModelSpec:
    """The record for images as small as the case's."""
    paper = spec.preprocessing("paper")
    return replace(
        spec, preprocess=replace(spec.preprocess, size=size), preprocess_paper=replace(paper, size=size)
    )  # fmt: skip


def encode(case: Case, folder: Path, protocol: BenchmarkProtocol, clips: npt.NDArray[np.float32]) -> torch.Tensor:
    """Tokens of clips (B, T, 3, H, W) in [0, 1], normalised as the published code does."""
    spec = of_size(MODELS.get(case.about["model"]), clips.shape[-1])
    paper = spec.preprocessing("paper")
    mean, std = (np.float32(value)[:, None, None] for value in (paper.mean, paper.std))
    encoder = build(spec, ModelContext("cpu", protocol, weights=str(folder)))
    return encoder.encode(torch.from_numpy((clips - mean) / std)).tokens


@pytest.mark.parametrize("name", CASES)
def test_paper_tokens_and_planes_equal_the_published_ones(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    save_checkpoint(case, tmp_path / "weights")
    clips = clips_of(case)
    case.check("mixed_images_corner", mix_planes(clips)[..., :4, :4].reshape(-1, 3, 4, 4))
    case.check("tokens", encode(case, tmp_path / "weights", "paper", clips))


@pytest.mark.parametrize("name", CASES)
def test_corrected_tokens_are_those_of_single_frames(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    save_checkpoint(case, tmp_path / "weights")
    clips = clips_of(case)
    tokens = encode(case, tmp_path / "weights", "corrected", clips)
    assert tokens.shape == case.arrays["tokens"].shape
    case.check("tokens_unmixed_first_image", tokens[:, :1])


@pytest.mark.parametrize("name", [name for name in CASES if published_prefix(name)])
def test_published_file_with_a_prefix_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    save_checkpoint(case, tmp_path / "weights", published_prefix(name))
    clips = clips_of(case)
    case.check("tokens", encode(case, tmp_path / "weights", "paper", clips))
