"""Action chunks: reading their files, and the motion between the first and the last step.

Motion in the frame ``world`` is the published one: last step minus first step, dimension by dimension. ``local`` is the
last pose seen from the first one: position and orientation are composed as rigid motions (rotations by SciPy), so that
angles don't jump at +-pi and a quaternion's two signs mean the same; other dimensions are differences.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from lary.arrays import array_of
from lary.data.spec import ActionSpace
from lary.data.tables import THREADS, SampleTable
from lary.files import read_limited
from lary.runtime import in_threads
from lary.types import Failure, MediaError, Sample, UsageError

Floats = npt.NDArray[np.float32]
ActionMode = Literal["absolute", "relative"]
Frame = Literal["world", "local"]

DEFINITIONS: dict[Frame, str] = {
    "world": "last action step minus first action step",
    "local": "last pose in the frame of the first pose, other dimensions last minus first",
}
FOLDERS: dict[Frame, str] = {"world": "regression_relative", "local": "regression_relative_local"}
"""Folder of the motion of each kind below ``DATA_DIR``; the first one is the published path."""

EULER_ORDER: Final = "xyz"
"""Roll, pitch, yaw about the fixed axes, as PyBullet (CALVIN) and ROS have them."""

LARGEST_ACTIONS = 1 << 28
"""Bytes of one action file; a chunk has thousands."""


def read_chunk(path: Path, space: ActionSpace) -> Floats:
    """The action chunk of a pair, (K, A) float32; a file with K*A values in one row is taken as step-major.

    Raises:
        MediaError: the file is missing, no .npy of numbers, of another shape, or holds NaN or infinity.
    """
    values, size = read_numbers(path), len(space.dims)
    if values.shape not in ((space.horizon, size), (space.horizon * size,)):
        raise MediaError(
            f"The action file {path} has shape {values.shape}, expected ({space.horizon}, {size}) or "
            f"({space.horizon * size},)."
        )
    return values.reshape(space.horizon, size)


def read_relative(path: Path, space: ActionSpace, arms: Sequence[Pose] = ()) -> Floats:
    """The motion between the two images, (1, A) float32: of a chunk (`motion`), or a file that holds it already.

    Raises:
        MediaError: as `read_chunk`, or a pose has no orientation.
    """
    values, size = read_numbers(path), len(space.dims)
    if values.size == size and values.shape in ((size,), (1, size)):
        return values.reshape(1, size)
    try:
        return motion(read_chunk(path, space), arms)[None]
    except ValueError as error:
        raise MediaError(f"The action file {path} holds no poses: {error}.") from error


def read_numbers(path: Path) -> Floats:
    """The array of a .npy file as float32, of any shape.

    Raises:
        MediaError: the file is missing, no .npy of numbers, or holds NaN or infinity.
    """
    try:
        data = read_limited(path, LARGEST_ACTIONS)
        values = array_of(io.BytesIO(data), len(data))
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The action file {path} can't be read: {reason}.") from error
    if values.dtype.kind not in "fiub":
        raise MediaError(f"The action file {path} holds no array of numbers.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise MediaError(f"The action file {path} holds NaN or infinity.")
    return values


def read_actions(
    table: SampleTable, mode: ActionMode, frame: Frame = "world"
) -> Iterator[tuple[Sample, Floats | Failure]]:
    """Every sample of a table with its actions, in order, read ahead by threads; an unreadable file is a Failure."""
    read: Callable[[Path, ActionSpace], Floats] = read_chunk
    if mode == "relative":
        read = functools.partial(read_relative, arms=arms_of(table.spec.actions, frame))

    def one(position: int) -> tuple[Sample, Floats | Failure]:
        sample = table[position]
        try:
            return sample, read(table.action_path(sample), table.spec.actions)
        except MediaError as error:
            return sample, Failure(sample.row, sample.target, str(error))

    yield from in_threads(one, range(len(table)), THREADS, batch=32)


# Motion


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

    A prefix such as ``l_`` distinguishes several arms.

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


def in_frame(folder: str, frame: Frame) -> str:
    """A path below ``regression`` or ``regression_relative``, for the motion of a frame."""
    return str(PurePosixPath(FOLDERS[frame], *PurePosixPath(folder).parts[1:]))
