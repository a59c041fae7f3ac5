"""The autoencoders of Wan2.2 and FLUX.2 against what the published code computes, loaded from released files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save_file

from lary.models import released as autoencoders
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.models.tensors import layout_of, rename
from lary.types import BenchmarkProtocol
from tests.parity.conftest import Case, load_case, model_cases
from tests.parity.tables import table_names

WAN_CASES = model_cases("wan2-2")
FLUX_CASES = model_cases("flux2")
METADATA = {"scale_factor_temporal", "scale_factor_spatial", "sample_size"}
"""Arguments of diffusers that only tell pipelines about sizes."""


def ignored(case: Case) -> tuple[str, ...]:
    """Beginnings of the keys that take no part."""
    return tuple(pattern.rstrip("*") for pattern in case.about["ignored_keys"])


def recorded(case: Case) -> ModelSpec:
    """The model's record with the case's configuration."""
    spec = MODELS.get(case.about["model"])
    constants = {name: case.about[name] for name in ("latents_mean", "latents_std") if name in case.about}
    return replace(spec, options={**spec.options, "config": case.config, **constants})


def encode(case: Case, file: Path, protocol: BenchmarkProtocol, clips: npt.NDArray[np.float32]) -> torch.Tensor:
    encoder = build(recorded(case), ModelContext("cpu", protocol, weights=str(file)))
    return encoder.encode(torch.from_numpy(np.ascontiguousarray(clips))).tokens


def save_wan(case: Case, folder: Path) -> Path:
    file = folder / "Wan2.2_VAE.pth"
    torch.save({key: torch.from_numpy(value) for key, value in case.weights(without=ignored(case)).items()}, file)
    return file


def save_flux(case: Case, folder: Path) -> Path:
    file = folder / "ae.safetensors"
    save_file(case.weights(without=ignored(case)), file)
    return file


def wan_clip(case: Case, name: str) -> npt.NDArray[np.float32]:
    """One sample (1, T, 3, H, W) in [-1, 1]; the case has channels first."""
    return (case.draw(name, "x * 2 - 1") * 2 - 1).swapaxes(0, 1)[None]


@pytest.mark.parametrize("name", WAN_CASES)
def test_wan_tokens_equal_the_published_ones(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file, kinds = save_wan(case, tmp_path), ("image", "video")
    clips = {kind: wan_clip(case, f"clip_{kind}") for kind in kinds}
    case.check_all(**{f"tokens_{kind}": encode(case, file, "paper", clips[kind])[0] for kind in kinds})


@pytest.mark.parametrize("name", WAN_CASES)
def test_wan_frames_of_a_corrected_pair_are_images(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file, pair = save_wan(case, tmp_path), wan_clip(case, "clip_image")
    tokens = encode(case, file, "corrected", pair)
    assert tokens.shape[1] == pair.shape[1] == 2
    case.check("tokens_image", tokens[0, :1])  # all that the published code sees
    swapped = encode(case, file, "corrected", pair[:, ::-1])
    assert torch.equal(tokens.flip(1), swapped)
    assert not torch.equal(tokens[:, 0], tokens[:, 1])


def flux_clips(case: Case, protocol: BenchmarkProtocol, name: str) -> npt.NDArray[np.float32]:
    """The case's frames, normalised as the record or, for clips, the published code does: (B, T, 3, H, W)."""
    if name == "video":
        frames = case.draw(name, "x in [0,1) stands for the resized frames / 255, (B, T, H, W, 3)") * 2 - 1
    else:
        rule = recorded(case).preprocessing(protocol, "pair")
        drawn = case.draw(name, "uint8 = floor(x * 256), (B, T=2, H, W, 3), already resized")
        pixels = np.floor(drawn * 256).astype(np.float32)
        frames = (pixels / np.float32(rule.scale) - np.float32(rule.mean)) / np.float32(rule.std)
    return np.moveaxis(frames, -1, 2)


def flux_latents(case: Case, file: Path) -> torch.Tensor:
    """Latents of the case's images on their grid, (N, D, H / cell, W / cell)."""
    images = case.draw("pixels", "x * 2 - 1 (N, 3, H, W)") * 2 - 1
    cells = [side // 2 ** len(case.config["ch_mult"]) for side in images.shape[2:]]
    return encode(case, file, "corrected", images[:, None])[:, 0].transpose(1, 2).unflatten(2, cells)


@pytest.mark.parametrize("name", FLUX_CASES)
def test_flux_latents_and_tokens_equal_the_published_and_the_corrected_ones(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file = save_flux(case, tmp_path)
    found = {"latents": flux_latents(case, file)}
    for kind in ("image_pair", "video"):
        output = kind.removesuffix("_pair")
        found[f"tokens_{output}_upstream"] = encode(case, file, "paper", flux_clips(case, "paper", kind))
        found[f"tokens_{output}_fixed"] = encode(case, file, "corrected", flux_clips(case, "corrected", kind))
    case.check_all(**found)


def test_flux_pixels_of_a_published_pair_reach_509() -> None:
    rule = MODELS.get("flux2").preprocessing("paper")
    assert [(value / rule.scale - rule.mean[0]) / rule.std[0] for value in (0, 255)] == [-1, 509]


@pytest.mark.parametrize("name", [*WAN_CASES, *FLUX_CASES])
def test_keys_arguments_and_constants_are_those_of_the_case(name: str) -> None:
    case = load_case(name)
    layout, arguments, library = {
        "wan2-2": (layout_of("wan2-2"), autoencoders.wan_arguments, "AutoencoderKLWan"),
        "flux2": (layout_of("flux2"), autoencoders.flux_arguments, "AutoencoderKLFlux2"),
    }[case.about["model"]]
    used = [key for key in case.about["keys"] if not key.startswith(ignored(case))]
    named = table_names(case.about["diffusers_mapping"], used, num_res_blocks=case.config["num_res_blocks"])
    assert {key: rename(key, case.about["model"]) for key in used} == named
    assert [key for key in case.about["keys"] if not key.startswith(layout.unused)] == used
    network = autoencoders.empty_autoencoder(library, arguments(**case.config))
    expected = {key: value for key, value in case.about["diffusers_config"].items() if key not in METADATA}
    assert json.loads(json.dumps({key: network.config[key] for key in expected})) == expected
    options = MODELS.get(case.about["model"]).options
    for constant in ("latents_mean", "latents_std"):
        if len(case.about.get(constant, ())) == case.config.get("z_dim") == 48:
            assert list(options[constant]) == case.about[constant]
