"""Pairs on a grid, atomic motions and their labels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lary.data.spec import DATASETS
from lary.importers.episodes import ATOMIC_CLASSES, INVERSE, AtomicRule, PairCut, Segment, atomic_segments, label_of
from lary.types import UsageError

RULE = AtomicRule(threshold=0.03, reach=0.05, settle=2)


def path_of(*steps: tuple[float, float, float], start: tuple[float, float, float] = (1, 2, 3)) -> np.ndarray:
    return np.cumsum([start, *steps], axis=0)


def test_pairs_are_on_a_grid() -> None:
    ends = [[(item.start, item.end) for item in PairCut(5).grid(length)] for length in (11, 10, 5)]
    assert ends == [[(0, 5), (5, 10)], [(0, 5)], []]


def test_classes_are_those_of_libero_and_have_inverses() -> None:
    assert DATASETS.get("libero").labels.classes == ATOMIC_CLASSES
    assert set(INVERSE) == set(ATOMIC_CLASSES)
    assert all(INVERSE[INVERSE[name]] == name != INVERSE[name] for name in ATOMIC_CLASSES)
    assert (label_of((1, 0, 1)), INVERSE["Forward_Right_Up"]) == ("Forward_Up", "Backward_Left_Down")


@pytest.mark.parametrize(
    ("steps", "segments"),
    [
        # A motion ends at its reach and names the axes over the threshold: after three steps 0.06, -0.036, 0.003.
        ([(0.02, -0.012, 0.001)] * 3 + [(0, 0, -0.03)] * 2, [Segment(0, 3, "Forward_Right"), Segment(3, 5, "Down")]),
        ([(0.005, 0, 0)] * 5, []),
        ([(0.0051, 0, 0)] * 6, [Segment(0, 6, "Forward")]),
    ],
)
def test_reach_and_threshold(steps: list[tuple[float, float, float]], segments: list[Segment]) -> None:
    assert atomic_segments(path_of(*steps), None, RULE) == segments


def test_gripper_cuts_motions() -> None:
    places = path_of(*[(0.0, 0.02, 0.0)] * 9)
    opening = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 1.0])
    assert atomic_segments(places, opening, RULE) == [
        Segment(0, 2, "Left"), Segment(2, 4, "Close"), Segment(4, 6, "Left"), Segment(6, 8, "Open"),
    ]  # fmt: skip
    turned = atomic_segments(places, opening, replace(RULE, open_high=False))
    assert [item.label for item in turned][1::2] == ["Open", "Close"]


def test_displacements_are_summed_up() -> None:
    """The same motion from positions and from the displacement that follows each."""
    steps = np.random.default_rng(2).normal(0, 0.02, (40, 3))
    rule = AtomicRule(threshold=0.03, reach=0.08)
    found = atomic_segments(np.cumsum(steps, axis=0) - steps, None, rule)
    assert len(found) > 3
    assert atomic_segments(steps, None, replace(rule, deltas=True)) == found


def test_axes_turn_and_swap() -> None:
    rule = AtomicRule(threshold=0.03, reach=0.05, axes=("-y", "+x", "+z"))
    found = atomic_segments(path_of((0, 0.06, 0), (0.06, 0, 0)), None, rule)
    assert [item.label for item in found] == ["Backward", "Left"]


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-0.04, 0.04)] * 3), min_size=1, max_size=30), st.integers(0, 2**31))
def test_segments_are_in_order_and_their_labels_right(steps: list[tuple[float, float, float]], seed: int) -> None:
    places = path_of(*steps)
    opening = np.random.default_rng(seed).integers(0, 2, len(places)).astype(float)
    segments = atomic_segments(places, opening, RULE)
    for before, after in pairwise(segments):
        assert before.end <= after.start
    for item in segments:
        assert 0 <= item.start < item.end < len(places)
        moved = places[item.end] - places[item.start]
        signs = np.where(abs(moved) >= RULE.threshold, np.sign(moved), 0).astype(int)
        assert item.label in ("Open", "Close", label_of(signs.tolist()))


def test_mirrored_motion_has_the_inverse_label() -> None:
    places = path_of(*np.random.default_rng(0).normal(0, 0.02, (60, 3)).tolist(), start=(0, 0, 0))
    there, back = (atomic_segments(each, None, RULE) for each in (places, -places))
    assert [replace(item, label=INVERSE[item.label]) for item in there] == back


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.0}, "--threshold 0"),
        ({"threshold": 0.2, "reach": 0.1}, "at most --reach 0.1"),
        ({"settle": 0}, "--settle 0"),
        ({"axes": ("+x", "+x", "+z")}, "--axes"),
        ({"axes": ("x", "y", "z")}, "--axes"),
    ],
)
def test_wrong_rules(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AtomicRule(**options)  # type: ignore[arg-type]
