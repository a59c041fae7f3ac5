"""Action chunks: their files, moments, and motion from the first to the last step.

The published motion is that of the frame ``world``. In ``local`` it is composed
of rigid motions, so that angles don't jump at +-pi and a quaternion's two signs
mean the same.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lary.arrays import Array, Doubles, Floats, array_of
from lary.data.spec import ActionSpace
from lary.data.tables import TARGET_COLUMN, THREADS, SampleTable
from lary.files import read_limited
from lary.runtime import in_threads
from lary.types import Failure, JsonDict, MediaError, Progress, UsageError

ActionMode = Literal["absolute", "relative"]
Frame = Literal["world", "local"]

DEFINITIONS: dict[Frame, str] = {
    "world": "last action step minus first action step",
    "local": "last pose in the frame of the first pose, other dimensions last minus first",
}
FOLDERS: dict[Frame, str] = {"world": "regression_relative", "local": "regression_relative_local"}
"""Folder of each motion below ``DATA_DIR``; the first is as published."""
ORIENTATIONS = (("roll", "pitch", "yaw"), ("qx", "qy", "qz", "qw"))
LARGEST_ACTIONS = 1 << 28
"""Bytes of one action file; a chunk has thousands."""
SMALLEST_STD = 1e-6
"""Below it a dimension counts as constant and is only centred (std 1)."""
BATCH = 32
"""Files per task of a thread: one is read in less time than a task takes."""


def read_numbers(path: Path, dtype: npt.DTypeLike = np.float32) -> Array:
    """The finite numbers of a .npy file, float32 or another type. Raises MediaError."""
    try:
        data = read_limited(path, LARGEST_ACTIONS)
        values = array_of(io.BytesIO(data), len(data))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The action file {path} can't be read: {reason}.") from error
    if values.dtype.kind not in "fiub":
        raise MediaError(f"The action file {path} holds no array of numbers.")
    with np.errstate(over="ignore"):
        values = values.astype(dtype)
    if not np.isfinite(values).all():
        raise MediaError(f"The action file {path} holds NaN or infinity.")
    return values


def read_chunk(path: Path, space: ActionSpace) -> Floats:
    """A pair's chunk (K, A) float32, also from K*A step-major values.

    Raises MediaError.
    """
    values, steps, size = read_numbers(path), space.horizon, len(space.dims)
    if values.shape not in ((steps, size), (steps * size,)):
        expected = f"({steps}, {size}) or ({steps * size},)"
        raise MediaError(f"The action file {path} has shape {values.shape}, expected {expected}.")
    return values.reshape(steps, size)


def read_relative(path: Path, space: ActionSpace, arms: tuple[Pose, ...] = ()) -> Floats:
    """The motion between two images, (1, A) float32, of a chunk or a file of motion.

    Raises MediaError.
    """
    values, size = read_numbers(path), len(space.dims)
    if values.shape in ((size,), (1, size)):
        return values.reshape(1, size)
    try:
        return motion(read_chunk(path, space), arms)[None]
    except ValueError as error:
        raise MediaError(f"The action file {path} holds no poses: {error}.") from error


def read_actions(
    table: SampleTable,
    mode: ActionMode = "absolute",
    frame: Frame = "world",
    *,
    threads: int = THREADS,
    bar: Progress | None = None,
) -> Iterator[Floats | Failure]:
    """The actions of all rows in order, or a Failure, read ahead."""
    space = table.spec.actions
    arms = poses(space, frame) if mode == "relative" else ()

    def one(position: int) -> Floats | Failure:
        try:
            path = table.action_path(position)
            return read_chunk(path, space) if mode == "absolute" else read_relative(path, space, arms)
        except MediaError as error:
            return Failure(table.rows[position], table.shown(position, TARGET_COLUMN), str(error))

    yield from in_threads(one, range(len(table)), threads, batch=BATCH, bar=bar)


class Pose(NamedTuple):
    """Positions of a pose's values among the dimensions; a quaternion or Euler angles."""

    position: list[int]
    orientation: list[int]


def poses(space: ActionSpace, frame: Frame = "local") -> tuple[Pose, ...]:
    """The poses that `motion` composes, by names of dimensions; none in the frame ``world``.

    A prefix such as ``l_`` distinguishes several arms. Raises UsageError where
    there are none.
    """
    if frame == "world":
        return ()
    at, found = {name: index for index, name in enumerate(space.dims)}, []
    for name in space.dims:
        if f"_{name}".endswith("_x"):
            for axes in ORIENTATIONS:
                known = [at[name[:-1] + axis] for axis in ("x", "y", "z", *axes) if name[:-1] + axis in at]
                if len(known) == 3 + len(axes):
                    found.append(Pose(known[:3], known[3:]))
    if not found:
        needed, there = "poses (x y z with roll pitch yaw or qx qy qz qw)", ", ".join(space.dims)
        raise UsageError(f"Motion in the local frame needs {needed}; the action dimensions are {there}.")
    return tuple(found)


def motion(steps: Floats, arms: tuple[Pose, ...] = ()) -> Floats:
    """The motion from the first to the last step (n, A), as (A,); `arms` in their first frame.

    Raises ValueError for a quaternion of zeros.
    """
    moved: Array = steps[-1] - steps[0]
    if not arms:
        return moved
    from scipy.spatial.transform import Rotation

    moved, ends = moved.astype(np.float64), steps[[0, -1]].astype(np.float64)
    for position, orientation in arms:
        angles, quaternion = ends[:, orientation], len(orientation) == 4
        # Roll, pitch and yaw turn about the fixed axes, as PyBullet (CALVIN) and ROS have them.
        first, last = Rotation.from_quat(angles) if quaternion else Rotation.from_euler("xyz", angles)
        moved[position] = first.inv().apply(moved[position])
        turn = first.inv() * last
        moved[orientation] = turn.as_quat(canonical=True) if quaternion else turn.as_euler("xyz")
    return moved.astype(np.float32)


def in_frame(folder: str, frame: Frame) -> str:
    """A path below ``regression`` or ``regression_relative``, for a frame's motion."""
    return "/".join([FOLDERS[frame], *folder.split("/")[1:]])


class Moments(NamedTuple):
    """Count, mean (A,) and sum of squared deviations (A,) of observations; float64.

    Merged by Chan, Golub and LeVeque (1979): sums of squares lose small
    deviations.
    """

    steps: int
    mean: Doubles
    m2: Doubles

    @classmethod
    def of(cls, values: Array) -> Moments:
        """The moments of values (n, A)."""
        wide = values.astype(np.float64)
        mean = wide.mean(0)
        return cls(len(wide), mean, ((wide - mean) ** 2).sum(0))

    def merge(self, other: Moments) -> Moments:
        count, step = self.steps + other.steps, other.mean - self.mean
        mean = self.mean + step * (other.steps / count)
        return Moments(count, mean, self.m2 + other.m2 + step**2 * (self.steps * other.steps / count))

    def entry(self) -> JsonDict:
        """The entry of a statistics file: population deviation, 1 for a constant dimension."""
        std = np.sqrt(self.m2 / self.steps)
        std[std < SMALLEST_STD] = 1.0
        return {"count": self.steps, "mean": self.mean.tolist(), "std": std.tolist(), "m2": self.m2.tolist()}


def measure(robots: Sequence[str], chunks: Iterable[Floats | Failure]) -> tuple[dict[str, Moments], list[Failure]]:
    """Moments by robot type of chunks (n, A), and the unreadable files."""
    whole, failures = dict[str, Moments](), []
    for robot, chunk in zip(robots, chunks, strict=True):
        if isinstance(chunk, Failure):
            failures.append(chunk)
        else:
            moments = Moments.of(chunk)
            whole[robot] = whole[robot].merge(moments) if robot in whole else moments
    return whole, failures


def total(robots: Mapping[str, Moments]) -> Moments:
    return functools.reduce(Moments.merge, robots.values())
