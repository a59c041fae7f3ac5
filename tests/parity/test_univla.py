"""UniVLA against what the published code computes, loaded from a Lightning file as users have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lary.models.embodied import BACKBONE, UniVLA
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.nets.spacetime import UniVLANetwork
from tests.parity.conftest import Case, load_case, model_cases
from tests.parity.training_shapes import univla_training_shapes as training_shapes

pytestmark = pytest.mark.timeout(1200)  # full sizes take minutes on a busy machine
UNIVLA, WRAPPER = MODELS.get("univla"), "lam."
CASES = model_cases("univla")


def load_encoder(case: Case, folder: Path) -> UniVLA:
    """The encoder from a Lightning file with the case's weights; small cases come with the training decoder, too."""
    ignored = tuple(case.about["ignored_keys"]) if case.about["size"] != "small" else ()
    state = {WRAPPER + key: torch.from_numpy(value) for key, value in case.weights(without=ignored).items()}
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"stage": "stage-2"}}, folder / "lam-stage-2.ckpt")
    del state
    backbone = {key: value for key, value in case.about["backbone"]["config"].items() if key not in ("hub", "name")}
    assert backbone.keys() == UNIVLA.options["backbone"].keys()
    spec = replace(MODELS.get(UNIVLA.name), options={"network": case.config, "backbone": backbone})
    encoder = build(spec, ModelContext("cpu", "corrected", weights=str(folder))).author
    assert isinstance(encoder, UniVLA)
    return encoder


def clips_of(case: Case) -> torch.Tensor:
    """The case's input, which the published model normalises inside, as the record prepares it: (B, T, 3, H, W)."""
    video = case.draw("video", "none: values in [0, 1), (B, C, T=2, H, W); normalised inside the model")
    mean, std = (np.float32(value)[:, None, None] for value in (UNIVLA.preprocess.mean, UNIVLA.preprocess.std))
    return torch.from_numpy(np.ascontiguousarray((video.swapaxes(1, 2) - mean) / std))


@pytest.mark.parametrize("name", CASES)
def test_every_output_equals_the_published_one(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    encoder, clips = load_encoder(case, tmp_path), clips_of(case)
    latents, network = encoder.encode(clips), encoder.network
    with torch.inference_mode():
        features = encoder.features(clips)
        encoded = network.encode(features)
        controllable, uncontrollable = network.controllable(encoded), network.uncontrollable(encoded)
    case.check_all(
        patches=features,
        latent=controllable.latent,
        indices=latents.codes,
        tokens=latents.tokens,
        latent_uncontrol=uncontrollable.latent,
        indices_uncontrol=uncontrollable.codes,
        encoder_output_codes=encoded,
    )
    assert torch.equal(network(features).tokens, latents.tokens)


@pytest.mark.parametrize("name", CASES)
def test_keys_and_shapes_are_the_published_ones(name: str) -> None:
    case = load_case(name)
    config = case.config
    with torch.device("meta"):
        own = {key: list(value.shape) for key, value in UniVLANetwork(**config).state_dict().items()}
    unused = {key: list(shape) for key, shape in training_shapes(config).items()}
    keys = {key: shape for key, shape in case.about["keys"].items() if not key.startswith(BACKBONE)}
    assert own | unused == keys
    assert {*unused, f"{BACKBONE}mask_token"} == set(case.about["ignored_keys"])
    assert not case.about["integer_keys"]


@pytest.mark.parametrize("name", [name for name in CASES if isinstance(name, str)])
def test_tokens_do_not_depend_on_the_batch(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    encoder, clips = load_encoder(case, tmp_path), clips_of(case)
    whole = encoder.encode(clips)
    single = [encoder.encode(clip[None]) for clip in clips]
    assert torch.equal(torch.cat([part.tokens for part in single]), whole.tokens)
    assert torch.equal(torch.cat([part.codes for part in single]), whole.codes)
