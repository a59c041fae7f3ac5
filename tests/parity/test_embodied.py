"""UniVLA and villa-X against what the published code computes, loaded from files as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.models.preprocess import normalise
from lary.models.spec import MODELS
from lary.nets.spacetime import VillaConfig
from tests.parity import fill
from tests.parity.conftest import Case, load_case, load_univla, load_villa, model_cases, video_of

pytestmark = pytest.mark.timeout(1200)  # full sizes take minutes on a busy machine
UNIVLA_CASES, VILLA_CASES = model_cases("univla"), model_cases("villa-x")


def assert_alone(encoder: Any, clips: torch.Tensor) -> None:
    """Tokens and codes don't depend on the batch."""
    whole, single = encoder.encode(clips), [encoder.encode(clip[None]) for clip in clips]
    assert torch.equal(torch.cat([part.tokens for part in single]), whole.tokens)
    assert torch.equal(torch.cat([part.codes for part in single]), whole.codes)


@pytest.mark.parametrize("name", UNIVLA_CASES)
def test_every_output_of_univla_equals_the_published_one(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    encoder, clips = load_univla(case, tmp_path).author, video_of(case, MODELS.get("univla").preprocess)
    latents, network = encoder.encode(clips), encoder.network
    with torch.inference_mode():
        features = encoder.features(clips)
        encoded = network.encode(features)
        controllable, uncontrollable = network.controllable(encoded), network.uncontrollable(encoded)
    case.check_all(
        patches=features, latent=controllable.latent, indices=latents.codes, tokens=latents.tokens,
        latent_uncontrol=uncontrollable.latent, indices_uncontrol=uncontrollable.codes, encoder_output_codes=encoded,
    )  # fmt: skip
    if case.about["size"] == "small":
        assert_alone(encoder, clips)


def villa_clips(case: Case) -> torch.Tensor:
    """The case's input as the record prepares it, without a resize."""
    frames = np.floor(case.draw("clips", "floor(draw * 255) as uint8, (B, T, H, W, 3)") * np.float32(255))
    return torch.from_numpy(normalise(np.moveaxis(frames.astype(np.uint8), -1, -3), MODELS.get("villa-x").preprocess))


@pytest.mark.parametrize("name", VILLA_CASES)
def test_every_output_of_villa_equals_the_published_one(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    encoder, clips = load_villa(case, tmp_path).author, villa_clips(case)
    latents, network = encoder.encode(clips), encoder.network
    if case.about["size"] == "small":
        assert_alone(encoder, clips)
    clips = encoder.fitted(clips)
    probe = fill.uniform(f"{case.about['input']['clips']['draw']}/vq_probe", (64, encoder.dim))
    with torch.inference_mode():
        continuous = network.latents(clips)
        window = network.encoder.tokens(network.encoder.patches(clips[:, : network.window]))
        _, nearest = network.quantize(torch.from_numpy(2 * probe - 1))
    case.check_all(
        encoder_tokens=window.flatten(0, 1), latent=continuous.flatten(2).unsqueeze(2), tokens=latents.tokens,
        indices=latents.codes, vq_probe_indices=nearest, preprocessed_corner=clips[..., :4, :4],
    )  # fmt: skip


@pytest.mark.parametrize("name", VILLA_CASES)
def test_fields_of_villa_and_their_defaults_are_the_published_ones(name: str) -> None:
    case = load_case(name)
    config, complete = VillaConfig(**case.config), dict(case.about["config_complete"])
    patches = complete.pop("embed_tokens")
    assert complete.pop("grid_size") ** 2 == patches == (config.resolution // config.patch_size) ** 2
    assert {key: getattr(config, key) for key in VillaConfig.model_fields} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in complete.items()
    }
