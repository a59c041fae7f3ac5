"""Frames of LeRobot's rows by their time stamps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lary.importers.lerobot_reader import frame_numbers, video_seconds
from lary.types import MediaError
from tests.lerobot_files import FPS, FRONT, LENGTHS, write_lerobot


def test_time_stamps_find_frames() -> None:
    seconds = np.arange(10) / 10
    assert frame_numbers(seconds, 0.3, [0.0, 0.1001, 0.2], 10).tolist() == [3, 4, 5]
    for start, stamps, words in (
        (0.9, [0.0, 0.1], "No frame"), (-0.2, [0.0, 0.3], "No frame"), (0.0, [0.0, float("nan")], "No frame"),
        (0.0, [0.0, 0.04], "same frame"),
    ):  # fmt: skip
        with pytest.raises(MediaError, match=words):
            frame_numbers(seconds, start, stamps, 10)


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_seconds_of_a_video(tmp_path: Path, codec: str) -> None:
    source = write_lerobot(tmp_path / "source", "v3.0", codec)
    path = next(source.glob(f"videos/{FRONT}/*/file-001.mp4"))
    np.testing.assert_allclose(video_seconds(path), np.arange(sum(LENGTHS[2:])) / FPS, atol=1e-6)
