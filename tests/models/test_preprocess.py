"""The preparation of frames: axes, crops, clips that can't be prepared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lary.models.preprocess import mix_planes, neighbour_pairs, prepare
from lary.models.spec import MODELS, Preprocess
from lary.types import LaryError

VJEPA2 = MODELS.get("vjepa2").preprocess


def test_pairs_and_mixed_planes_are_the_same_in_both_libraries() -> None:
    clips = np.random.default_rng(0).random((2, 9, 3, 2, 2), dtype=np.float32)
    pairs, mixed = neighbour_pairs(clips), mix_planes(clips)
    assert pairs.shape == (2, 8, 2, 3, 2, 2)
    np.testing.assert_array_equal(pairs[:, 7], clips[:, 7:9])
    np.testing.assert_array_equal(neighbour_pairs(torch.from_numpy(clips)), pairs)
    np.testing.assert_array_equal(mixed[:, 1], clips[:, 3:6, 0])  # images 0 to 2 are red of frames 0 to 8
    np.testing.assert_array_equal(mixed[:, 8], clips[:, 6:9, 2])
    np.testing.assert_array_equal(mix_planes(torch.from_numpy(clips)), mixed)
    with pytest.raises(LaryError, match="at least two"):
        neighbour_pairs(clips[:, :1])


def test_clips_that_cannot_be_prepared_are_named() -> None:
    clip = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    for wrong in (clip.astype(np.float32), clip[0]):
        with pytest.raises(LaryError, match="uint8 frames"):
            prepare(wrong, Preprocess())
    with pytest.raises(LaryError, match=r"8 x 8 pixels is too small for the record's crop of 300"):
        prepare(clip, replace(VJEPA2, size=300))
    with pytest.raises(LaryError, match="'cubic', which is no known method"):
        prepare(clip, Preprocess(resize="cubic"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(300, 260), (256, 400)])
def test_the_centre_is_cut_from_tall_and_wide_frames(height: int, width: int) -> None:
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    clip = np.repeat(ramp.astype(np.uint8)[None, ..., None], 3, axis=-1)
    out = prepare(clip, replace(VJEPA2, mean=(0, 0, 0), std=(1, 1, 1), scale=1))
    assert out.shape == (1, 3, 224, 224)
    assert abs(out[0, 0].mean() - ramp.mean()) < 1.5
