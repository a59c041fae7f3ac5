"""Clips that can't be prepared; what is prepared is in the parity cases."""

from dataclasses import replace

import numpy as np
import pytest

from lary.models.preprocess import prepare
from lary.models.spec import MODELS, Preprocess
from lary.types import LaryError
from tests.helpers import fails

VJEPA2 = MODELS.get("vjepa2").preprocess


def test_clips_that_cannot_be_prepared_are_named() -> None:
    clip = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    for wrong in (clip.astype(np.float32), clip[0]):
        fails(LaryError, "uint8 frames", prepare, wrong, Preprocess())
    with pytest.raises(LaryError, match=r"8 x 8 pixels is too small for the record's crop of 300"):
        prepare(clip, replace(VJEPA2, size=300))
    with pytest.raises(LaryError, match="'cubic', which is no known method"):
        prepare(clip, Preprocess(resize="cubic"))  # type: ignore[arg-type]


def test_the_centre_is_cut_from_tall_and_wide_frames() -> None:
    tall = np.zeros((1, 80, 40, 3), dtype=np.uint8)
    tall[:, 20:60] = 255
    for frames in (tall, tall.swapaxes(1, 2)):
        assert prepare(frames, Preprocess(size=18, short_side=20, resize="cv2_area")).mean() == 1
