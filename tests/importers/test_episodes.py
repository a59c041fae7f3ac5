"""Pairs on a grid, atomic motions and their labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.data.spec import DATASETS
from lary.importers.episodes import ATOMIC_CLASSES, INVERSE, AtomicRule, PairCut, atomic_segments, label_of
from lary.importers.records import load_record
from tests.hostile.harness import JSON, refused

RULE = AtomicRule(threshold=0.03, reach=0.05, settle=2)
OPENING = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 1.0])
TURNED = ("-y", "+x", "+z")
LEFT = [(0.0, 0.02, 0.0)] * 9
Steps = list[tuple[float, float, float]]


@pytest.mark.parametrize("case", ["nested lists", "list", "null", "fields", "huge whole number"])
def test_hostile_record_of_a_data_set(tmp_path: Path, case: str) -> None:
    (tmp_path / "a_dataset.json").write_text(JSON[case])
    refused(tmp_path, lambda: load_record(tmp_path / "a_dataset.json"), "a_dataset.json")


def test_pairs_are_on_a_grid() -> None:
    ends = [[item[:2] for item in PairCut(5).segments(np.zeros((length, 1)))] for length in (11, 10, 5)]
    assert ends == [[(0, 5), (5, 10)], [(0, 5)], []]


def test_classes_are_those_of_libero_and_have_inverses() -> None:
    assert DATASETS.get("libero").labels.classes == ATOMIC_CLASSES
    assert all(INVERSE[INVERSE[name]] == name != INVERSE[name] for name in ATOMIC_CLASSES)
    assert (label_of((1, 0, 1)), INVERSE["Forward_Right_Up"]) == ("Forward_Up", "Backward_Left_Down")


@pytest.mark.parametrize(("steps", "opening", "rule", "segments"), [
    # A motion ends at its reach and names the axes over the threshold: after three steps 0.06, -0.036, 0.003.
    ([(0.02, -0.012, 0.001)] * 3 + [(0, 0, -0.03)] * 2, None, RULE, [(0, 3, "Forward_Right"), (3, 5, "Down")]),
    ([(0.005, 0, 0)] * 5, None, RULE, []),
    ([(0.0051, 0, 0)] * 6, None, RULE, [(0, 6, "Forward")]),
    (LEFT, OPENING, RULE, [(0, 2, "Left"), (2, 4, "Close"), (4, 6, "Left"), (6, 8, "Open")]),
    (LEFT, OPENING, replace(RULE, open_high=False, grip=0.9, settle=9), [(0, 2, "Left"), (2, 9, "Open")]),
    ([(0, 0.06, 0), (0.06, 0, 0)], None, replace(RULE, axes=TURNED), [(0, 1, "Backward"), (1, 2, "Left")]),
])  # fmt: skip
def test_segments(steps: Steps, opening: Any, rule: AtomicRule, segments: list[tuple[int, int, str]]) -> None:
    """Also those of the motion turned round, and of the displacement that follows each position."""
    points, turned = np.cumsum([(1, 2, 3), *steps], axis=0), None if opening is None else 1 - opening
    assert atomic_segments(points, opening, rule) == segments
    inverse = [(start, end, INVERSE[label]) for start, end, label in segments]
    assert atomic_segments(-points, turned, rule) == inverse
    assert atomic_segments(np.array([*steps, (0, 0, 0)]), opening, replace(rule, deltas=True)) == segments
