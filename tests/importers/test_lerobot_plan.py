"""Names of the values of a LeRobot data set, and the position of the end effector among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lary.importers.lerobot_plan import dimension_names, find_position
from lary.importers.lerobot_reader import LeRobot


@pytest.mark.parametrize(
    ("names", "dims"),
    [
        (["a", "b"], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"left": ["a"], "right": ["b"]}, ("a", "b")),
        ({"b": 1, "a": 0}, ("a", "b")),
        (["a", "a"], ("a", "action_1_a")),
        (["a"], ("action_0", "action_1")),
        (None, ("action_0", "action_1")),
    ],
)
def test_names_of_dimensions(tmp_path: Path, names: object, dims: tuple[str, ...]) -> None:
    features = {"action": {"dtype": "float32", "shape": [2], "names": names}}
    (tmp_path / "meta").mkdir()
    info = {"codebase_version": "v2.1", "fps": 10, "features": features}
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    assert dimension_names(LeRobot(tmp_path), ["action"]) == dims


@pytest.mark.parametrize(
    ("dims", "position"),
    [
        (("a", "left_x", "left_y", "left_z", "right_x", "right_y", "right_z"), (1, 2, 3)),
        (("x", "z", "Y", "gripper.pos"), (0, 2, 1)),
        (("ee.x", "ee.y", "ee.z"), (0, 1, 2)),
    ],
)
def test_position_under_other_names(dims: tuple[str, ...], position: tuple[int, ...]) -> None:
    assert find_position(None, dims) == position
