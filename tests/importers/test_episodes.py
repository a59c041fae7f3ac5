"""Pairs on a grid, atomic motions and their labels."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lary.data.spec import DATASETS
from lary.importers.episodes import ATOMIC_CLASSES, INVERSE, AtomicRule, PairCut, atomic_segments, label_of

RULE = AtomicRule(threshold=0.03, reach=0.05, settle=2)
OPENING = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 1.0])
LEFT = [(0.0, 0.02, 0.0)] * 9
Steps = list[tuple[float, float, float]]


def test_pairs_are_on_a_grid() -> None:
    ends = [[item[:2] for item in PairCut(5).segments(np.zeros((length, 1)))] for length in (11, 10, 5)]
    assert ends == [[(0, 5), (5, 10)], [(0, 5)], []]


def test_classes_are_those_of_libero_and_have_inverses() -> None:
    assert DATASETS.get("libero").labels.classes == ATOMIC_CLASSES
    assert all(INVERSE[INVERSE[name]] == name != INVERSE[name] for name in ATOMIC_CLASSES)
    assert (label_of((1, 0, 1)), INVERSE["Forward_Right_Up"]) == ("Forward_Up", "Backward_Left_Down")


@pytest.mark.parametrize(
    ("steps", "opening", "rule", "segments"),
    [
        # A motion ends at its reach and names the axes over the threshold: after three steps 0.06, -0.036, 0.003.
        ([(0.02, -0.012, 0.001)] * 3 + [(0, 0, -0.03)] * 2, None, RULE, [(0, 3, "Forward_Right"), (3, 5, "Down")]),
        ([(0.005, 0, 0)] * 5, None, RULE, []),
        ([(0.0051, 0, 0)] * 6, None, RULE, [(0, 6, "Forward")]),
        (LEFT, OPENING, RULE, [(0, 2, "Left"), (2, 4, "Close"), (4, 6, "Left"), (6, 8, "Open")]),
        (LEFT, OPENING, replace(RULE, open_high=False, grip=0.9, settle=9), [(0, 2, "Left"), (2, 9, "Open")]),
        (
            [(0, 0.06, 0), (0.06, 0, 0)], None, replace(RULE, axes=("-y", "+x", "+z")),
            [(0, 1, "Backward"), (1, 2, "Left")],
        ),
    ],
)  # fmt: skip
def test_segments(steps: Steps, opening: Any, rule: AtomicRule, segments: list[tuple[int, int, str]]) -> None:
    assert atomic_segments(np.cumsum([(1, 2, 3), *steps], axis=0), opening, rule) == segments


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-0.04, 0.04)] * 3), min_size=1, max_size=30), st.integers(0, 2**31))
def test_segments_are_in_order_and_their_labels_right(steps: Steps, seed: int) -> None:
    points = np.cumsum([(0, 0, 0), *steps], axis=0)
    opening = np.random.default_rng(seed).integers(0, 2, len(points)).astype(float)
    segments = atomic_segments(points, opening, RULE)
    assert all(before.end <= after.start for before, after in pairwise(segments))
    for item in segments:
        assert 0 <= item.start < item.end < len(points)
        moved = points[item.end] - points[item.start]
        signs = np.where(abs(moved) >= RULE.threshold, np.sign(moved), 0).astype(int)
        assert item.label in ("Open", "Close", label_of(signs.tolist()))
    turned = [item._replace(label=INVERSE[item.label]) for item in segments]
    assert atomic_segments(-points, 1 - opening, RULE) == turned
    # The same motion from the displacement that follows each position; its sums are rounded otherwise.
    deltas = np.concatenate([np.diff(points, axis=0), np.zeros((1, 3))])
    again = np.concatenate([np.zeros((1, 3)), np.cumsum(deltas[:-1], axis=0)])
    summed = atomic_segments(deltas, opening, replace(RULE, deltas=True))
    assert summed == atomic_segments(again, opening, RULE)
