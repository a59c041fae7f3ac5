"""Baselines against values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lary.models.baselines import GRID, PLACE
from lary.models.preprocess import prepare
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext
from lary.types import WeightsIdentity

WEIGHTLESS = [spec.name for spec in MODELS if spec.weights is None]


def make(name: str, seed: int = 0) -> LoadedEncoder:
    return build(MODELS.get(name), ModelContext("cpu", "corrected", seed=seed))


def batch_for(name: str, frames: int) -> torch.Tensor:
    """Smooth noise that moves a little from frame to frame, three clips."""
    import cv2

    clips = []
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        image = cv2.resize(noise, (80, 60), interpolation=cv2.INTER_CUBIC)
        clips.append(np.stack([np.roll(image, (step, 2 * step), axis=(0, 1)) for step in range(frames)]))
    return torch.from_numpy(np.stack([prepare(clip, MODELS.get(name).preprocess) for clip in clips]))


@pytest.mark.parametrize("name", WEIGHTLESS)
@pytest.mark.parametrize("frames", [2, 3, 9])
def test_tokens_are_those_of_the_record_whatever_the_batch(name: str, frames: int) -> None:
    spec, clips = MODELS.get(name), batch_for(name, frames)
    encoder = make(name)
    tokens = encoder.encode(clips).tokens
    steps = frames - 1 if name in ("frame-difference", "optical-flow") else frames
    assert tokens.shape == (3, steps, GRID * GRID, spec.dim)
    assert torch.isfinite(tokens).all()
    alone = torch.cat([encoder.encode(clip[None]).tokens for clip in clips])
    torch.testing.assert_close(alone, tokens, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3), "two clips have the same tokens"
    assert encoder.identity.digest == ""


@pytest.mark.parametrize("name", ["pixels", "frame-difference", "optical-flow"])
def test_tokens_end_with_the_place_of_their_cell(name: str) -> None:
    place = make(name).encode(batch_for(name, 2)).tokens[..., -PLACE:]
    assert place[0, 0, 0].tolist() == [-0.875, -0.875]
    assert place[0, 0, 1].tolist() == [-0.875, -0.625]
    assert place[2, -1, 63].tolist() == [0.875, 0.875]


def test_pixels_are_the_means_of_their_blocks() -> None:
    clip = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    clip[0, 0:2, 2:4] = (255, 0, 51)  # one of the 32 x 32 pixels: cell 0, row 0, column 1
    tokens = make("pixels").encode(torch.from_numpy(prepare(clip, MODELS.get("pixels").preprocess))[None]).tokens
    colours = tokens[0, 0, 0, :-PLACE].reshape(3, 4, 4)
    torch.testing.assert_close(colours[:, 0, 1], torch.tensor([2.0, -2.0, (0.2 - 0.5) * 4]))
    assert (colours[:, 1:] == -2).all()


def test_frame_difference_sees_change_alone() -> None:
    clips = torch.rand(1, 1, 3, 64, 64).repeat(1, 3, 1, 1, 1)
    clips[:, 2, 0, :8, 8:16] -= 0.5  # red of cell 1
    tokens = make("frame-difference").encode(clips).tokens[..., :-PLACE].reshape(2, 64, 4, 16)
    assert (tokens[0] == 0).all()
    torch.testing.assert_close(tokens[1, 1], torch.tensor([-0.5, 0, 0, 0.5 / 3])[:, None].expand(4, 16))
    assert (tokens[1, [0, *range(2, 64)]] == 0).all()


def test_optical_flow_finds_a_shift() -> None:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    clip = np.stack([image, np.roll(image, 3, axis=1), np.roll(image, (-2, 3), axis=(0, 1))])
    clips = torch.from_numpy(prepare(clip, MODELS.get("optical-flow").preprocess))[None]
    inner = make("optical-flow").encode(clips).tokens[0].reshape(2, 8, 8, -1)[:, 2:-2, 2:-2, :4]
    torch.testing.assert_close(inner[0].mean(dim=(0, 1)), torch.tensor([3.0, 0, 0, 0]), rtol=0, atol=0.25)
    torch.testing.assert_close(inner[1].mean(dim=(0, 1)), torch.tensor([0, -2.0, 0, 0]), rtol=0, atol=0.25)


def test_random_vit_follows_the_seed_alone() -> None:
    clips = batch_for("random-vit", 2)
    state = torch.get_rng_state()
    first = make("random-vit", seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator was used"
    torch.manual_seed(2)
    again, other = make("random-vit", seed=3), make("random-vit", seed=4)
    assert first.identity == WeightsIdentity(random=True)
    assert torch.equal(first.encode(clips).tokens, again.encode(clips).tokens)
    assert not torch.allclose(first.encode(clips).tokens, other.encode(clips).tokens, atol=0.1)
