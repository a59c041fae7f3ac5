"""Baselines against values by hand."""

import cv2
import numpy as np
import torch

from lary.models.baselines import PLACE
from lary.models.preprocess import prepare
from lary.models.spec import MODELS
from tests.models.test_running import drawn


def test_frame_difference_sees_change_alone() -> None:
    clips = torch.rand(1, 1, 3, 64, 64).repeat(1, 3, 1, 1, 1)
    clips[:, 2, 0, :8, 8:16] -= 0.5  # red of cell 1
    tokens = drawn("frame-difference").encode(clips).tokens[..., :-PLACE].reshape(2, 64, 4, 16)
    assert (tokens[0] == 0).all()
    torch.testing.assert_close(tokens[1, 1], torch.tensor([-0.5, 0, 0, 0.5 / 3])[:, None].expand(4, 16))
    assert (tokens[1, [0, *range(2, 64)]] == 0).all()


def test_optical_flow_finds_a_shift() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    clip = np.stack([image, np.roll(image, 3, axis=1), np.roll(image, (-2, 3), axis=(0, 1))])
    clips = torch.from_numpy(prepare(clip, MODELS.get("optical-flow").preprocess))[None]
    inner = drawn("optical-flow").encode(clips).tokens[0].reshape(2, 8, 8, -1)[:, 2:-2, 2:-2, :4]
    torch.testing.assert_close(inner[0].mean(dim=(0, 1)), torch.tensor([3.0, 0, 0, 0]), rtol=0, atol=0.25)
    torch.testing.assert_close(inner[1].mean(dim=(0, 1)), torch.tensor([0, -2.0, 0, 0]), rtol=0, atol=0.25)
