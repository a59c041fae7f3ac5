"""The LAQ family against what the published code computes: every step of the network, and files as users have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lary.models.lapa import load_network
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.models.tensors import weight_layout
from lary.models.weights import Checkpoint
from lary.nets.lam import LatentActionModel
from lary.types import WeightsIdentity
from tests.parity.conftest import Case, load_case, model_cases, video_of

CASES = model_cases("lapa", "dinov2", "dinov3", "siglip2", "magvit2", "dinov3-cs*")
SMALL = [name for name in CASES if isinstance(name, str)]
FULL = [name for name in CASES if not isinstance(name, str)]
DRAWN = Checkpoint((Path("drawn"),), None, WeightsIdentity())


def record(case: Case) -> ModelSpec:
    """The record that the case names, with the case's sizes."""
    spec = MODELS.get(case.about["model"])
    options, config = dict(spec.options), dict(case.config)
    if options["features"]:
        backbone = case.about["backbone"]
        assert options["features"]["prefix"] == backbone["prefix"]
        changes: dict[str, Any] = {"config": dict(backbone["config"])}
        if "library" in options["features"]:
            changes["library"] = backbone["class"].split()[0].removeprefix("transformers.")
        else:  # a field that nobody knows fails
            sizes = {k: v for k, v in backbone["config"]["ddconfig"].items() if k not in ("resolution", "double_z")}
            kind = config.pop("model_type")
            changes = {"config": {**sizes, "use_ema": backbone["config"]["use_ema"], "model_type": kind}}
        options["features"] = {**options["features"], **changes}
    flags = {key: value for key, value in options["network"].items() if key in ("patch_input", "pixel_output")}
    options["network"] = {**config, **flags}
    return replace(spec, options=options, preprocess=replace(spec.preprocess, size=config["image_size"]))


def tensors_of(case: Case, unused: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The case's weights, and its whole numbers as a model has them at first."""
    weights = {key: torch.from_numpy(value) for key, value in case.weights(without=unused).items()}
    integers = [key for key in case.about["integer_keys"] if not (unused and key.startswith(unused))]
    return weights | dict.fromkeys(integers, torch.tensor(0))


def load(case: Case, tensors: dict[str, torch.Tensor]) -> LatentActionModel:
    spec = record(case)
    return load_network(spec, spec.options, DRAWN, tensors, {})[0]


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_the_published_one(name: str) -> None:
    case = load_case(name)
    network = load(case, tensors_of(case, weight_layout("laq").unused))
    vq, pairs = network.vq, video_of(case, record(case).preprocess)
    with torch.inference_mode():
        embedded = network.embed(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        first, last = network.encode(embedded)
        latent = vq.latent(first, last)
        codes = vq.codes(latent)
        draw = torch.randn(latent.flatten(0, 1).shape, generator=torch.Generator().manual_seed(0)).reshape(latent.shape)
        case.check_all(
            embedded=embedded, first_tokens=first, last_tokens=last, input_data=latent, indices=codes,
            tokens_hard=vq.tokens(vq.quantized(codes)), tokens_no_noise=vq.tokens(latent), random_vector_seed0=draw,
            tokens_seed0=vq.tokens(vq.with_noise(latent, codes, draw)),
        )  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_record_has_the_published_sizes(name: str) -> None:
    case = load_case(name)
    published = MODELS.get(case.about["model"])
    assert record(case).options == published.options
    assert case.config["image_size"] == published.preprocess.size


def wrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize("name", SMALL)
def test_encoder_from_a_file_gives_the_published_tokens(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    spec, tensors, file = record(case), tensors_of(case), tmp_path / "weights.pt"
    for form in (tensors, wrapped(tensors), {"model": tensors, "step": 7}, {"model": wrapped(tensors)}):
        torch.save(form, file)
        latents = build(spec, ModelContext("cpu", "corrected", str(file))).encode(video_of(case, spec.preprocess))
        case.check("tokens_no_noise", latents.tokens)
        case.check("indices", latents.codes)
