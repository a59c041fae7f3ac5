"""villa-X against what the published code computes, loaded from a checkpoint folder as users have it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lary.models.embodied import DERIVED, VillaX
from lary.models.preprocess import normalise
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.nets.spacetime import VillaConfig, VillaNetwork
from tests.parity import fill
from tests.parity.conftest import Case, load_case, model_cases
from tests.parity.training_shapes import villa_training_shapes as training_shapes

pytestmark = pytest.mark.timeout(1200)  # full sizes take minutes on a busy machine
VILLA_X = MODELS.get("villa-x")
CASES = model_cases("villa-x")


def load_encoder(case: Case, folder: Path) -> VillaX:
    """The encoder from the case's weights on disk; small cases come with the training decoder, too."""
    weights = case.weights(without=tuple(case.about["ignored_keys"]) if case.about["size"] != "small" else ())
    config = {"architecture": case.about["upstream_class"], "description": "", "version": 0, "config": case.config}
    (folder / "model_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    encoder = build(MODELS.get(VILLA_X.name), ModelContext("cpu", "corrected", weights=str(folder))).author
    assert isinstance(encoder, VillaX)
    return encoder


def clips_of(case: Case) -> torch.Tensor:
    """The case's input as the record prepares it, without a resize."""
    frames = np.floor(case.draw("clips", "floor(draw * 255) as uint8, (B, T, H, W, 3)") * np.float32(255))
    return torch.from_numpy(normalise(np.moveaxis(frames.astype(np.uint8), -1, -3), VILLA_X.preprocess))


@pytest.mark.parametrize("name", CASES)
def test_every_output_equals_the_published_one(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    encoder, clips = load_encoder(case, tmp_path), clips_of(case)
    latents, network = encoder.encode(clips), encoder.network
    clips = encoder.fitted(clips)
    probe = fill.uniform(f"{case.about['input']['clips']['draw']}/vq_probe", (64, encoder.dim))
    with torch.inference_mode():
        continuous = network.latents(clips)
        window = network.encoder.tokens(network.encoder.patches(clips[:, : network.window]))
        _, nearest = network.quantize(torch.from_numpy(2 * probe - 1))
    case.check_all(
        encoder_tokens=window.flatten(0, 1),
        latent=continuous.flatten(2).unsqueeze(2),
        tokens=latents.tokens,
        indices=latents.codes,
        vq_probe_indices=nearest,
        preprocessed_corner=clips[..., :4, :4],
    )


@pytest.mark.parametrize("name", CASES)
def test_keys_shapes_and_fields_are_the_published_ones(name: str) -> None:
    case = load_case(name)
    known = {field.name for field in fields(VillaConfig)}
    config = VillaConfig(**{key: value for key, value in case.config.items() if key not in DERIVED})
    complete = case.about["config_complete"]
    assert {key: complete[key] for key in known} == {
        key: list(value) if isinstance(value := getattr(config, key), tuple) else value for key in known
    }
    assert complete.keys() == known | set(DERIVED)
    assert config.embed_tokens == complete["embed_tokens"]
    with torch.device("meta"):
        own = {key: list(value.shape) for key, value in VillaNetwork(config).state_dict().items()}
    unused = {key: list(shape) for key, shape in training_shapes(config).items()}
    assert own | unused == case.about["keys"]
    assert unused.keys() == set(case.about["ignored_keys"])
    assert not case.about["integer_keys"]


@pytest.mark.parametrize("name", [name for name in CASES if isinstance(name, str)])
def test_tokens_do_not_depend_on_the_batch(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    encoder, clips = load_encoder(case, tmp_path), clips_of(case)
    whole = encoder.encode(clips)
    single = [encoder.encode(clip[None]) for clip in clips]
    assert torch.equal(torch.cat([part.tokens for part in single]), whole.tokens)
    assert torch.equal(torch.cat([part.codes for part in single]), whole.codes)
