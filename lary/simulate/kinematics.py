"""Rotations, inverse kinematics, paths of the tool and objects that follow.

Rotations are matrices (3, 3) float64; a pose is a position in metres and a
rotation, both in the robot's base frame, which is the world. Roll, pitch and
yaw are turns about the fixed x, y and z axes in that order, in radians.
Time runs from 0 to 1; phases of a path start and end at rest.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from lary.arrays import Doubles

Pose = tuple[Doubles, Doubles]
Motion = Callable[[float], Pose]
"""The pose of an object as a function of time in [0, 1]."""
UP = np.array([0.0, 0.0, 1.0])
OPEN, CLOSED = 1.0, -1.0
"""Commands of the gripper."""

POSITION_TOLERANCE = 2e-4
"""Metres, about a tenth of what one pixel of a frame shows."""
ROTATION_TOLERANCE = 2e-3
"""Radians."""
DAMPING = 0.03
"""Damping of least squares far from the target; near it there is less."""
RAIL = 0.15
"""Weight of a metre on a rail against a radian of a joint."""
LARGEST_STEP = 0.25
"""Radians (metres on a rail) that a joint may move in one iteration."""


def turn(axis: tuple[float, float, float] | Doubles, angle: float) -> Doubles:
    """Rotation (3, 3) by `angle` about `axis` (3,), by Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross))


def to_rpy(rotation: Doubles) -> Doubles:
    """Roll, pitch, yaw (3,) of a rotation; pitch in [-pi/2, pi/2]."""
    pitch = math.asin(np.clip(-rotation[2, 0], -1, 1))
    roll, yaw = math.atan2(rotation[2, 1], rotation[2, 2]), math.atan2(rotation[1, 0], rotation[0, 0])
    return np.array([roll, pitch, yaw])


def rotation_vector(rotation: Doubles) -> Doubles:
    """Axis times angle (3,) of a rotation by less than pi; zero by pi."""
    skew = rotation - rotation.T
    vector = 0.5 * np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    sine, cosine = np.linalg.norm(vector), 0.5 * (np.trace(rotation) - 1)
    if sine < 1e-9:
        return np.zeros(3)
    return vector * (math.atan2(sine, cosine) / sine)


def quaternion(rotation: Doubles) -> Doubles:
    """Unit quaternion (w, x, y, z) of a rotation."""
    import mujoco

    result = np.empty(4)
    mujoco.mju_mat2Quat(result, np.ascontiguousarray(rotation).ravel())
    return result


@dataclass(frozen=True)
class ToolState:
    """Position (3,), rotation (3, 3), opening in metres, and command of the tool."""

    position: Doubles
    rotation: Doubles
    width: float
    command: float


class Solver:
    """Damped least squares for seven joints; what is left free is drawn `home`."""

    def __init__(self, model: Any, data: Any, home: tuple[float, ...]) -> None:
        import mujoco

        self.model, self.data, self.home = model, data, np.array(home)
        self.site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "tool")
        self.low, self.high = model.jnt_range[:7].T.copy()
        self.willing = np.where(model.jnt_type[:7] == mujoco.mjtJoint.mjJNT_SLIDE, RAIL, 1.0)

    def reached(self, joints: Doubles) -> Pose:
        """Forward kinematics: the tool's pose at joints (7,)."""
        import mujoco

        self.data.qpos[:7] = joints
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.site].copy(), self.data.site_xmat[self.site].reshape(3, 3).copy()

    def solve(self, target: ToolState, start: Doubles, iterations: int = 80) -> tuple[Doubles, float]:
        """Joints (7,) that bring the tool to `target`, and the metres it misses by."""
        import mujoco

        joints = start
        moves, turns = np.empty((2, 3, self.model.nv))
        for step in range(iterations + 1):
            position, rotation = self.reached(joints)
            error = np.append(target.position - position, rotation_vector(target.rotation @ rotation.T))
            miss, angle = float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))
            if step == iterations or (miss < POSITION_TOLERANCE and angle < ROTATION_TOLERANCE):
                break
            # Linear only in small steps: at most 0.2 metres and 0.5 radians.
            error[:3] *= min(1.0, 0.2 / max(miss, 1e-9))
            error[3:] *= min(1.0, 0.5 / max(angle, 1e-9))
            mujoco.mj_comPos(self.model, self.data)
            mujoco.mj_jacSite(self.model, self.data, moves, turns, self.site)
            jacobian = np.vstack([moves[:, :7], turns[:, :7]])
            joints = self._step(jacobian, error, joints, DAMPING**2 * min(1.0, miss + angle) + 1e-9)
        return joints, miss

    def _step(self, jacobian: Doubles, error: Doubles, joints: Doubles, damping: float) -> Doubles:
        """One damped step; joints beyond a limit stop there."""
        free = np.ones(7)
        rest = 0.05 * (self.home - joints)
        for _ in range(3):
            used = jacobian * free
            square = (used * self.willing) @ used.T
            inverse = self.willing[:, None] * np.linalg.solve(square + damping * np.eye(6), used).T
            # The pull home is projected onto what doesn't move the tool.
            change = inverse @ error + free * rest - inverse @ (used @ rest)
            change *= min(1.0, LARGEST_STEP / (np.abs(change).max() + 1e-12))
            wanted = joints + change
            beyond = (free > 0) & ((wanted < self.low) | (wanted > self.high))
            if not beyond.any():
                break
            free[beyond] = 0.0
        return np.asarray(np.clip(wanted, self.low, self.high))


# Paths


Phase = Callable[[float], ToolState]
"""The tool as a function of progress, from 0 at the start of a phase to 1."""


def ease(s: float) -> float:
    """Progress from 0 to 1 with minimum jerk, for `s` in [0, 1]."""
    s = min(max(s, 0.0), 1.0)
    return s**3 * (10 - 15 * s + 6 * s * s)


class Path:
    """A path of the tool, built phase by phase.

    `state` is the tool at its end, `at` the tool at any time. A phase takes a
    share of the time, varied by up to 15 %; shares need no particular sum.
    """

    def __init__(self, position: Doubles, rotation: Doubles, width: float, command: float, rng: Generator) -> None:
        self.state = ToolState(position, rotation, width, command)
        self._phases: list[Phase] = []
        self._ends = [0.0]
        self._rng = rng

    def mark(self) -> int:
        """The number of phases so far, which `time` later makes a time."""
        return len(self._phases)

    def time(self, mark: int) -> float:
        return self._ends[mark] / self._ends[-1]

    def _add(self, share: float, phase: Phase) -> None:
        share *= self._rng.uniform(0.85, 1.15)
        self._phases.append(phase)
        self._ends.append(self._ends[-1] + share)
        self.state = phase(1.0)

    def move(self, position: Doubles, share: float, rotation: Doubles | None = None) -> None:
        """Add a straight line, with a turn to any `rotation` on the way."""
        begin, way = self.state, position - self.state.position
        vector = np.zeros(3) if rotation is None else rotation_vector(rotation @ begin.rotation.T)
        angle = float(np.linalg.norm(vector))

        def phase(s: float) -> ToolState:
            turned = turn(vector, s * angle) @ begin.rotation if angle > 1e-9 else begin.rotation
            return replace(begin, position=begin.position + s * way, rotation=turned)

        self._add(share, phase)

    def shift(self, way: Doubles, share: float) -> None:
        self.move(self.state.position + way, share)

    def swing(self, centre: Doubles, axis: Doubles, angle: float, share: float, hand: float = 1.0) -> None:
        """Add an arc about an axis; the tool turns by the fraction `hand` of it."""
        begin = self.state

        def phase(s: float) -> ToolState:
            position = centre + turn(axis, s * angle) @ (begin.position - centre)
            return replace(begin, position=position, rotation=turn(axis, s * angle * hand) @ begin.rotation)

        self._add(share, phase)

    def grip(self, width: float, command: float, share: float) -> None:
        begin, way = self.state, width - self.state.width
        self._add(share, lambda s: replace(begin, width=begin.width + s * way, command=command))

    def wait(self, share: float) -> None:
        begin = self.state
        self._add(share, lambda _: begin)

    def at(self, time: float) -> ToolState:
        moment = min(max(time, 0.0), 1.0) * self._ends[-1]
        index = min(bisect_right(self._ends, moment), len(self._phases))
        begin, end = self._ends[index - 1 : index + 1]
        return self._phases[index - 1](ease((moment - begin) / (end - begin)))


def carried(path: Path, rest: Pose, first: float, last: float) -> Motion:
    """The motion of an object that moves with the tool from time `first` to `last`."""
    begin = path.at(first)
    back = begin.rotation.T
    place, turned = back @ rest[0] - back @ begin.position, back @ rest[1]

    def motion(time: float) -> Pose:
        if time <= first:
            return rest
        tool = path.at(min(time, last))
        return tool.position + tool.rotation @ place, tool.rotation @ turned

    return motion
