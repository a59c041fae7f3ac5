"""Action chunks: reading their files, and the motion between their steps."""

from pathlib import Path

import numpy as np

from lary.data.actions import motion, poses, read_chunk, read_relative
from lary.data.spec import DATASETS
from lary.types import MediaError, UsageError
from tests.data.arm import SPACE, draw
from tests.helpers import fails


def test_chunk_is_step_major_in_every_layout(tmp_path: Path) -> None:
    flat, path = np.arange(12.0), tmp_path / "a.npy"
    whole = flat.reshape(4, 3)
    for values in (whole, flat, np.asfortranarray(whole), whole.astype(">f8"), np.arange(12), np.ones((4, 3), bool)):
        np.save(path, values)
        chunk = read_chunk(path, SPACE)
        assert chunk.dtype == np.float32
        np.testing.assert_array_equal(chunk, values.reshape(4, 3))
        np.testing.assert_array_equal(read_relative(path, SPACE), chunk[-1:] - chunk[:1])
    for shape in ((3,), (1, 3)):
        np.save(path, np.arange(3.0).reshape(shape))
        np.testing.assert_array_equal(read_relative(path, SPACE), [[0, 1, 2]])
        fails(MediaError, r"a\.npy has shape .*expected \(4, 3\) or \(12,\)", read_chunk, path, SPACE)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    fails(MediaError, "No such file", read_chunk, path, SPACE)
    for values, words in (
        (draw(3, 4), r"shape \(3, 4\)"), (np.full((4, 3), np.inf), "NaN or infinity"),
        (np.full((4, 3), 1e300), "NaN or infinity"), (np.full((4, 3), "x"), "no array of numbers"),
    ):  # fmt: skip
        np.save(path, values)
        fails(MediaError, words, read_chunk, path, SPACE)
    np.save(path, draw(4, 3))
    for content in (path.read_bytes()[:-8], path.read_bytes()[:40], b""):
        path.write_bytes(content)
        fails(MediaError, r"a\.npy", read_chunk, path, SPACE)


def test_local_motion_jumps_neither_at_half_a_turn_nor_with_a_sign() -> None:
    steps = np.zeros((2, 7), np.float32)
    steps[:, 5], steps[:, 6] = (3.1, -3.1), (1, -1)
    arms = poses(DATASETS.get("calvin").actions)
    np.testing.assert_allclose(motion(steps), [0, 0, 0, 0, 0, -6.2, -2], rtol=1e-6)
    np.testing.assert_allclose(motion(steps, arms), [0, 0, 0, 0, 0, 2 * np.pi - 6.2, -2], atol=1e-6)
    space = DATASETS.get("agibotbeta").actions
    arms, steps = poses(space), draw(4, len(space.dims))
    local = motion(steps, arms)
    for arm in arms:  # both signs of a quaternion mean one rotation
        steps[-1, arm.orientation] *= -1
    np.testing.assert_allclose(motion(steps, arms), local, atol=2e-6)
    fails(UsageError, r"needs poses .*the action dimensions are x, y, gripper", poses, SPACE)
