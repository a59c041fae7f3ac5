"""The tool's way through an episode, as a function of time, and how objects follow it.

Time runs from 0 to 1 over an episode. A path is a row of phases, each with a share of the time and eased so that it
starts and ends at rest; because it is a function, the same behaviour can be sampled slowly or fast.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lary.simulate.kinematics import Array, Pose, compose, invert, rotation_vector, turn

Motion = Callable[[float], Pose]
"""Pose of an object at a time."""
OPEN, CLOSED = 1.0, -1.0


@dataclass(frozen=True)
class ToolState:
    """Where the tool is: position (3,) metres, rotation (3, 3), opening in metres, command (-1 closed, 1 open)."""

    position: Array
    rotation: Array
    width: float
    command: float

    @property
    def pose(self) -> Pose:
        return self.position, self.rotation


def ease(s: float) -> float:
    """Minimum jerk from 0 to 1."""
    s = min(max(s, 0.0), 1.0)
    return s**3 * (10 - 15 * s + 6 * s * s)


class Path:
    """Built phase by phase; `at` gives the tool at any time."""

    def __init__(
        self, position: Array, rotation: Array, width: float, command: float, rng: np.random.Generator
    ) -> None:
        self._state = ToolState(np.asarray(position, dtype=float), rotation, width, command)
        self._phases: list[Callable[[float], ToolState]] = []
        self._ends: list[float] = []
        self._rng = rng

    @property
    def state(self) -> ToolState:
        """Where the path has got to."""
        return self._state

    def mark(self) -> int:
        """The number of phases so far; `time` makes it a time once the path is complete."""
        return len(self._phases)

    def time(self, mark: int) -> float:
        """The time at which a mark was reached."""
        return self._ends[mark - 1] / self._ends[-1] if mark else 0.0

    def _add(self, phase: Callable[[float], ToolState], share: float) -> None:
        share *= float(self._rng.uniform(0.85, 1.15))
        self._phases.append(phase)
        self._ends.append((self._ends[-1] if self._ends else 0.0) + share)
        self._state = phase(1.0)

    def move(self, position: Array, share: float, rotation: Array | None = None) -> None:
        """In a straight line to a position, turning on the way."""
        begin, end = self._state, np.asarray(position, dtype=float)
        vector = rotation_vector(rotation @ begin.rotation.T) if rotation is not None else np.zeros(3)
        angle = float(np.linalg.norm(vector))

        def phase(s: float) -> ToolState:
            turned = turn(vector, s * angle) @ begin.rotation if angle > 1e-9 else begin.rotation
            return ToolState(begin.position + s * (end - begin.position), turned, begin.width, begin.command)

        self._add(phase, share)

    def swing(self, centre: Array, axis: Array, angle: float, share: float, hand: float = 1.0) -> None:
        """On an arc about an axis through a point; the hand turns by the fraction `hand` of the angle."""
        begin = self._state

        def phase(s: float) -> ToolState:
            position = centre + turn(axis, s * angle) @ (begin.position - centre)
            return ToolState(position, turn(axis, s * angle * hand) @ begin.rotation, begin.width, begin.command)

        self._add(phase, share)

    def grip(self, width: float, command: float, share: float) -> None:
        """Open or close the gripper in place."""
        begin = self._state

        def phase(s: float) -> ToolState:
            return ToolState(begin.position, begin.rotation, begin.width + s * (width - begin.width), command)

        self._add(phase, share)

    def wait(self, share: float) -> None:
        """Stay."""
        begin = self._state
        self._add(lambda _s: begin, share)

    def at(self, time: float) -> ToolState:
        """The tool at a time in [0, 1]."""
        moment = min(max(time, 0.0), 1.0) * self._ends[-1]
        index = min(bisect_right(self._ends, moment), len(self._ends) - 1)
        begin = self._ends[index - 1] if index else 0.0
        return self._phases[index](ease((moment - begin) / (self._ends[index] - begin)))


def carried(path: Path, rest: Pose, first: float, last: float = 1.0) -> Motion:
    """An object at `rest` that moves with the tool from time `first` to time `last` and stays there."""
    offset = compose(invert(path.at(first).pose), rest)

    def motion(time: float) -> Pose:
        return rest if time <= first else compose(path.at(min(time, last)).pose, offset)

    return motion
