"""Descriptions and lists of LeRobot data sets, and frames of their rows by time stamps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.importers.lerobot_reader import LeRobot, frame_numbers, open_lerobot
from lary.types import LaryError, MediaError
from tests.helpers import fails


def described(root: Path, **info: Any) -> LeRobot:
    (root / "meta").mkdir(exist_ok=True)
    usual = {"codebase_version": "v2.1", "fps": 10, "features": {}, "data_path": ""}
    (root / "meta/info.json").write_text(json.dumps({**usual, **info}))
    return LeRobot(root)


def test_what_is_no_lerobot_data_set(tmp_path: Path) -> None:
    for source, words in ((tmp_path, "no meta/info.json"), ("nowhere", "owner/name")):
        fails(LaryError, words, open_lerobot, str(source))
    for name, values in {"codebase_version": ("v1.6", "v4.0", None), "fps": (0, "fast", None)}.items():
        for value in values:
            fails(LaryError, f"wrong at '{name}'", described, tmp_path, **{name: value})
    row = '{"episode_index": 0, "length": 5}\n'
    for text in ("", "{", '{"episode_index": 0}', row.replace("5", "1e30"), "[1]", row * 2):
        (tmp_path / "meta/episodes.jsonl").write_text(text)
        with pytest.raises(LaryError, match="The list of episodes"):
            _ = described(tmp_path).episodes


def test_names_of_dimensions(tmp_path: Path) -> None:
    groups = {"left": ["a"], "right": ["b"]}
    forms = (["a", "b"], {"motors": ["a", "b"]}, groups, {"b": 1, "a": 0}, ["a", "a"], ["a"], None)
    found = []
    for names in forms:
        features = {"action": {"dtype": "float32", "shape": [2], "names": names}}
        found.append(described(tmp_path, features=features).dimension_names(["action"]))
    assert found == [("a", "b")] * 4 + [("a", "action_1_a")] + [("action_0", "action_1")] * 2


def test_time_stamps_find_frames() -> None:
    seconds = np.arange(10) / 10
    assert frame_numbers(seconds, 0.3, [0.0, 0.1001, 0.2], 10).tolist() == [3, 4, 5]
    away = [(0.9, [0.0, 0.1]), (-0.2, [0.0, 0.3]), (0.0, [0.0, float("nan")])]
    for start, stamps in (*away, (0.0, [0.0, 0.04])):
        words = "No frame" if (start, stamps) in away else "same frame"
        fails(MediaError, words, frame_numbers, seconds, start, stamps, 10)
