"""The LAQ family against what the published code computes: every step of the network, and files as users have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.models import lapa, laq
from lary.models.spec import MODELS, ModelContext, ModelSpec, build
from lary.nets.lam import LatentActionModel
from lary.types import LaryError
from tests.parity import fill
from tests.parity.conftest import Case, case_names, load_case

KEYS = ("lapa", "dinov2", "dinov3", "siglip2", "magvit2", "dinov3-ablation", "dinov3-cs*")
CASES = [name for key in KEYS for name in case_names(f"{key}_*")]
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
            wanted = options["features"]["config"]
            sizes = {key: value for key, value in sizes["ddconfig"].items() if key in wanted}
            sizes["model_type"] = config.pop("model_type")
        changes = {"config": sizes}
        if "library" in options["features"]:
            changes["library"] = backbone["class"].split()[0].removeprefix("transformers.")
        options["features"] = {**options["features"], **changes}
    flags = {key: value for key, value in options["network"].items() if key in ("patch_input", "pixel_output")}
    options["network"] = {**config, **flags}
    return replace(spec, options=options, preprocess=replace(spec.preprocess, size=config["image_size"]))


def tensors_of(case: Case) -> dict[str, torch.Tensor]:
    """The case's weights; those of its backbone are drawn under their key without the prefix."""
    prefix = case.about.get("backbone", {}).get("prefix", "\0")
    overrides = case.about.get("fill_overrides", {})
    weights = {}
    for key, shape in case.about["keys"].items():
        value = overrides.get(key, fill.fill_tensor(key.removeprefix(prefix), tuple(shape)))
        weights[key] = torch.from_numpy(np.broadcast_to(np.float32(value), shape).copy())
    return weights | {key: torch.tensor(0) for key in case.about["integer_keys"]}


def frames_of(case: Case, spec: ModelSpec) -> torch.Tensor:
    """The case's pairs (B, 2, 3, H, W), normalised as the record says."""
    mean, std = (np.float32(value)[:, None, None] for value in (spec.preprocess.mean, spec.preprocess.std))
    return torch.from_numpy((np.ascontiguousarray(case.draw("video").swapaxes(1, 2)) - mean) / std)


def check(case: Case, name: str, value: torch.Tensor) -> None:
    """Hold an output against the case, whole or as its first values and statistics."""
    array = value.numpy()
    if name in case.arrays:
        case.check(name, array)
        return
    case.check(f"{name}.first4096", array.ravel()[:4096])
    wide = array.astype(np.float64)
    statistics = np.array([wide.mean(), wide.std(), np.linalg.norm(wide)])
    np.testing.assert_allclose(statistics, case.arrays[f"{name}.stats"], rtol=1e-5, atol=case.about["atol"])


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
    network, _ = laq.load_network(spec, spec.options, tensors_of(case), Path("drawn"), {})
    found = outputs(network, frames_of(case, spec))
    assert set(found) == {output.split(".")[0] for output in case.about["outputs"]}
    for output, value in found.items():
        check(case, output, value)


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
    encoder = build(spec, ModelContext("cpu", "corrected", weights=str(file)))
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
            laq.load_network(spec, spec.options, {k: v for k, v in tensors.items() if k != key}, Path("drawn"), {})
    for beginning in ("", case.about.get("backbone", {}).get("prefix", "vq.")):
        with pytest.raises(LaryError, match=r"1 unexpected.*surprise"):
            laq.load_network(spec, spec.options, {**tensors, f"{beginning}surprise": torch.ones(1)}, Path("drawn"), {})
