"""The motion between two steps of an action chunk: the plain difference as published, or the motion of the hand.

``world``: last step minus first step, dimension by dimension. ``local``: the last pose seen from the first one.
Position and orientation are composed as rigid motions (rotations by SciPy), so that angles don't jump at +-pi and a
quaternion's two signs mean the same; other dimensions are differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from lary.data.spec import ActionSpace
from lary.types import UsageError

Floats = npt.NDArray[np.float32]
Frame = Literal["world", "local"]

DEFINITIONS: dict[Frame, str] = {
    "world": "last action step minus first action step",
    "local": "last pose in the frame of the first pose, other dimensions last minus first",
}
FOLDERS: dict[Frame, str] = {"world": "regression_relative", "local": "regression_relative_local"}
"""Where motion of each kind lies below ``DATA_DIR``; the first one is the published place."""

EULER_ORDER: Final = "xyz"
"""Roll, pitch, yaw about the fixed axes, as PyBullet (CALVIN) and ROS have them."""


@dataclass(frozen=True)
class Pose:
    """Positions of a pose's values among the action dimensions; `quaternion` (x, y, z, w) or Euler angles."""

    position: tuple[int, ...]
    orientation: tuple[int, ...]

    @property
    def quaternion(self) -> bool:
        return len(self.orientation) == 4


def poses(space: ActionSpace) -> tuple[Pose, ...]:
    """The poses among the dimensions, found by their names: ``x y z`` with ``roll pitch yaw`` or ``qx qy qz qw``.

    A prefix such as ``l_`` tells several arms apart.

    Raises:
        UsageError: there are none.
    """
    at, found = {name: index for index, name in enumerate(space.dims)}, []
    for name in space.dims:
        if name != "x" and not name.endswith("_x"):
            continue
        prefix = name[:-1]
        for axes in (("roll", "pitch", "yaw"), ("qx", "qy", "qz", "qw")):
            wanted = [prefix + axis for axis in ("x", "y", "z", *axes)]
            if all(axis in at for axis in wanted):
                indices = tuple(at[axis] for axis in wanted)
                found.append(Pose(indices[:3], indices[3:]))
    if not found:
        raise UsageError(
            "Motion in the local frame needs poses (x y z with roll pitch yaw or qx qy qz qw); the action dimensions "
            f"are {', '.join(space.dims)}."
        )
    return tuple(found)


def arms_of(space: ActionSpace, frame: Frame) -> tuple[Pose, ...]:
    """The poses that `motion` composes in a frame: none in the world's. Raises UsageError as `poses`."""
    return poses(space) if frame == "local" else ()


def motion(steps: Floats, arms: Sequence[Pose] = ()) -> Floats:
    """The motion from the first to the last step (n, A), as (A,) float32; poses of `arms` in their first frame.

    Raises:
        ValueError: a quaternion is zero.
    """
    moved: npt.NDArray[Any] = steps[-1] - steps[0]
    if not arms:
        return moved
    from scipy.spatial.transform import Rotation

    moved, ends = moved.astype(np.float64), steps[[0, -1]].astype(np.float64)
    for arm in arms:
        angles = ends[:, arm.orientation]
        first, last = Rotation.from_quat(angles) if arm.quaternion else Rotation.from_euler(EULER_ORDER, angles)
        moved[list(arm.position)] = first.inv().apply(moved[list(arm.position)])
        turn = first.inv() * last
        if arm.quaternion:
            values = turn.as_quat()
            moved[list(arm.orientation)] = -values if values[3] < 0 else values
        else:
            moved[list(arm.orientation)] = turn.as_euler(EULER_ORDER)
    return moved.astype(np.float32)


def in_frame(place: str, frame: Frame) -> str:
    """A path below ``regression`` or ``regression_relative``, for motion of a kind."""
    return str(PurePosixPath(FOLDERS[frame], *PurePosixPath(place).parts[1:]))
