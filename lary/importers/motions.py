"""Atomic motions of a trajectory and their labels.

The deterministic half of the benchmark's data engine (arXiv 2604.11689, section 3). Atomic motions are the 26
combinations of forward/backward, left/right and up/down, and the opening and closing of the gripper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from lary.data.configs import MotionOptions
from lary.types import UsageError

DIRECTIONS = (("Forward", "Backward"), ("Left", "Right"), ("Up", "Down"))
"""The axes of a label, each as (positive, negative), in the order in which a label names them."""

OPEN, CLOSE = "Open", "Close"


def label_of(signs: Sequence[int]) -> str:
    """The label of a motion, such as ``Forward_Up``, from its signs (-1, 0 or 1) forward, left and up."""
    return "_".join(names[sign < 0] for names, sign in zip(DIRECTIONS, signs, strict=True) if sign)


ATOMIC_CLASSES = tuple(sorted([*filter(None, map(label_of, product((-1, 0, 1), repeat=3))), OPEN, CLOSE]))
"""The 28 classes."""

INVERSE = {
    **{label_of(signs): label_of([-sign for sign in signs]) for signs in product((-1, 0, 1), repeat=3) if any(signs)},
    OPEN: CLOSE,
    CLOSE: OPEN,
}
"""The label of the same segment seen from end to start."""


@dataclass(frozen=True, kw_only=True)
class AtomicRule:
    """How a trajectory is cut into atomic motions: `MotionOptions`, checked.

    ``axes`` are three signed names, ``grip`` is a number, and ``open_high`` says whether larger values are open.
    """

    threshold: float = 0.03
    reach: float = 0.08
    axes: tuple[str, ...] = ("+x", "+y", "+z")  # forward, left and up in most simulators' world frame
    grip: float = 0.5
    open_high: bool = True
    deltas: bool = False
    settle: int = 8

    @classmethod
    def of(cls, options: MotionOptions) -> AtomicRule:
        """The rule that a command asks for. Raises UsageError."""
        return cls(
            threshold=options.threshold, reach=options.reach, settle=options.settle, deltas=options.deltas,
            axes=tuple(part.strip() for part in options.axes.split(",")),
            grip=cls.grip if options.grip is None else options.grip, open_high=options.gripper_high == "open",
        )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= self.reach:
            limits = f"expected more than 0 and at most --reach {self.reach:g}"
            raise UsageError(f"--threshold {self.threshold:g}: {limits}.")
        if self.settle < 1:
            raise UsageError(f"--settle {self.settle}: must be at least 1.")
        if sorted(axis[1:] for axis in self.axes) != ["x", "y", "z"] or any(axis[0] not in "+-" for axis in self.axes):
            raise UsageError(f"--axes {','.join(self.axes)}: expected x, y and z with signs, such as +x,+y,+z.")


@dataclass(frozen=True, slots=True)
class Segment:
    """An atomic motion: its first and last frame, and its label."""

    start: int
    end: int
    label: str


def atomic_segments(
    positions: npt.NDArray[np.floating], gripper: npt.NDArray[np.floating] | None, rule: AtomicRule
) -> list[Segment]:
    """Cut a trajectory into atomic motions, in order of time and without overlap.

    A motion lasts until the hand is `reach` away from its start along some axis, the gripper changes, or the
    trajectory ends. What has not moved by `threshold` along any axis by then gets no label and is left out.

    Args:
        positions: of the end effector, (T, 3).
        gripper: its opening, (T,); None for an arm without one.
    """
    picks = ["xyz".index(axis[1:]) for axis in rule.axes]
    senses = np.array([1.0 if axis[0] == "+" else -1.0 for axis in rule.axes])
    places = positions[:, picks].astype(np.float64) * senses
    if rule.deltas:  # a displacement shows in the next frame
        places = np.concatenate([np.zeros((1, 3)), np.cumsum(places[:-1], axis=0)])
    segments, start = [], 0
    for before, label in _gripper_changes(gripper, rule):
        if before >= start:  # a change while the gripper still settles belongs to that motion
            segments += _motions(places, start, before, rule)
            start = min(before + rule.settle, len(places) - 1)
            segments.append(Segment(before, start, label))
    return segments + _motions(places, start, len(places) - 1, rule)


def _gripper_changes(gripper: npt.NDArray[np.floating] | None, rule: AtomicRule) -> list[tuple[int, str]]:
    """The last frame before each change of the gripper's state, and what it does."""
    if gripper is None:
        return []
    opened = (gripper > rule.grip) == rule.open_high
    return [(int(at), OPEN if opened[at + 1] else CLOSE) for at in np.flatnonzero(opened[1:] != opened[:-1])]


def _motions(places: npt.NDArray[np.float64], start: int, last: int, rule: AtomicRule) -> list[Segment]:
    """Motions of the hand from frame `start` to frame `last`; places (T, 3) are forward, left and up."""
    found = []
    while start < last:
        moved = places[start + 1 : last + 1] - places[start]
        far = np.flatnonzero(np.abs(moved).max(axis=1) >= rule.reach)
        index = int(far[0]) if len(far) else len(moved) - 1
        signs = np.where(np.abs(moved[index]) >= rule.threshold, np.sign(moved[index]), 0).astype(int)
        if signs.any():
            found.append(Segment(start, start + 1 + index, label_of(signs.tolist())))
        start += 1 + index
    return found
