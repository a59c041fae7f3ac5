"""The LAQ family against what the published code computes: every step of the network, and files as users have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.models import lapa
from lary.models import lapa as laq
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.models.tensors import layout_of
from lary.models.weights import Checkpoint
from lary.nets.lam import LatentActionModel
from lary.types import LaryError, WeightsIdentity
from tests.parity.conftest import Case, load_case, model_cases

CASES = model_cases("lapa", "dinov2", "dinov3", "siglip2", "magvit2", "dinov3-cs*")
DRAWN = Checkpoint((Path("drawn"),), None, WeightsIdentity())
SMALL = [name for name in CASES if isinstance(name, str)]


def record(case: Case) -> ModelSpec:
    """The record that the case names, with the case's sizes."""
    spec = MODELS.get(case.about["model"])
    options, config = dict(spec.options), dict(case.config)
    if options["features"]:
        backbone = case.about["backbone"]
        assert options["features"]["prefix"] == backbone["prefix"]
        sizes = dict(backbone["config"])
        if "ddconfig" in sizes:
            sizes = {**tokenizer_sizes(sizes), "model_type": config.pop("model_type")}
        changes = {"config": sizes}
        if "library" in options["features"]:
            changes["library"] = backbone["class"].split()[0].removeprefix("transformers.")
        options["features"] = {**options["features"], **changes}
    flags = {key: value for key, value in options["network"].items() if key in ("patch_input", "pixel_output")}
    options["network"] = {**config, **flags}
    return replace(spec, options=options, preprocess=replace(spec.preprocess, size=config["image_size"]))


def tokenizer_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a tokenizer's configuration on which its network depends; a field that nobody knows fails."""
    sizes = dict(config["ddconfig"])
    for unused in ("resolution", "double_z"):
        sizes.pop(unused, None)
    return {**sizes, "use_ema": config["use_ema"]}


def tensors_of(case: Case) -> dict[str, torch.Tensor]:
    """The case's weights, and its whole numbers as a model has them at first."""
    weights = {key: torch.from_numpy(value) for key, value in case.weights(without=layout_of("laq").unused).items()}
    return weights | {key: torch.tensor(0) for key in case.about["integer_keys"]}


def frames_of(case: Case, spec: ModelSpec) -> torch.Tensor:
    """The case's pairs (B, 2, 3, H, W), normalised as the record says."""
    mean, std = (np.float32(value)[:, None, None] for value in (spec.preprocess.mean, spec.preprocess.std))
    video = case.draw("video", "none: values in [0, 1) are fed as they are, (B, C, T=2, H, W)")
    return torch.from_numpy((np.ascontiguousarray(video.swapaxes(1, 2)) - mean) / std)


def outputs(network: LatentActionModel, pairs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every output that the cases describe."""
    vq, out = network.vq, {}
    with torch.inference_mode():
        embedded = network.embed(pairs.flatten(0, 1))
        out["embedded"] = embedded = embedded.reshape(*pairs.shape[:2], *embedded.shape[1:])
        out["first_tokens"], out["last_tokens"] = network.encode(embedded)
        out["input_data"] = latent = vq.latent(out["first_tokens"], out["last_tokens"])
        out["indices"] = codes = vq.codes(latent)
        out["tokens_hard"] = vq.tokens(vq.quantized(codes))
        out["tokens_no_noise"] = vq.tokens(latent)
        draw = torch.randn(latent.flatten(0, 1).shape, generator=torch.Generator().manual_seed(0)).reshape(latent.shape)
        out["random_vector_seed0"] = draw
        out["tokens_seed0"] = vq.tokens(vq.with_noise(latent, codes, draw))
    return out


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_the_published_one(name: str) -> None:
    case = load_case(name)
    spec = record(case)
    network, _ = laq.load_network(spec, spec.options, DRAWN, tensors_of(case), {})
    case.check_all(**outputs(network, frames_of(case, spec)))


@pytest.mark.parametrize("name", [name for name in CASES if not isinstance(name, str)])
def test_record_has_the_published_sizes(name: str) -> None:
    case = load_case(name)
    published = MODELS.get(case.about["model"])
    assert record(case).options == published.options
    assert case.config["image_size"] == published.preprocess.size


def wrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in tensors.items()}


FORMS: dict[str, Any] = {
    "flat": lambda tensors: tensors,
    "flat, wrapped": wrapped,
    "under model": lambda tensors: {"model": tensors, "step": 7},
    "under model, wrapped": lambda tensors: {"model": wrapped(tensors)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMALL)
def test_encoder_from_a_file_gives_the_published_tokens(name: str, form: str, tmp_path: Path) -> None:
    case = load_case(name)
    spec = record(case)
    assert spec.weights is not None
    assert spec.weights.folder is not None
    file = tmp_path / spec.weights.folder
    torch.save(FORMS[form](tensors_of(case)), file)
    encoder = build(spec, ModelContext("cpu", "corrected", weights=str(file))).author
    assert isinstance(encoder, lapa.LatentActions)
    latents = encoder.encode(frames_of(case, spec))
    case.check("tokens_no_noise", latents.tokens)
    case.check("indices", latents.codes)


@pytest.mark.parametrize("name", SMALL)
def test_keys_have_to_be_exactly_those_of_the_case(name: str) -> None:
    case = load_case(name)
    spec, tensors = record(case), tensors_of(case)
    for key in list(tensors)[:: max(1, len(tensors) // 12)]:
        with pytest.raises(LaryError, match="1 missing"):
            laq.load_network(spec, spec.options, DRAWN, {k: v for k, v in tensors.items() if k != key}, {})
    for beginning in ("", case.about.get("backbone", {}).get("prefix", "vq.")):
        with pytest.raises(LaryError, match=r"1 unexpected.*surprise"):
            laq.load_network(spec, spec.options, DRAWN, {**tensors, f"{beginning}surprise": torch.ones(1)}, {})
