"""Relative actions: the motion between the two images of a pair, one file per pair, with statistics.

As published (``frame="world"``): last step minus first step, dimension by dimension. With ``frame="local"``: the last
pose seen from the first one. Position and orientation are composed as rigid motions (rotations by SciPy), so that
angles don't jump at +-pi and a quaternion's two signs mean the same; other dimensions are differences.

Local motion goes to ``regression_relative_local``, beside the published ``regression_relative``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from lary import fileio
from lary.data.actions import relative_stats_file
from lary.data.samples import write_failures
from lary.data.spec import ActionSpace, DatasetSpec
from lary.data.statistics import ActionRow, Moments, action_rows, in_batches, merged, read_steps
from lary.runtime import log
from lary.types import Failure, LaryError, MediaError, UsageError

Floats = npt.NDArray[np.float32]
Frame = Literal["world", "local"]

SPLIT_NAMES = ("seen_train", "seen_val", "unseen", "train", "val")
"""Looked for in the name of a table, in this order; none found: training."""

DEFINITIONS: dict[Frame, str] = {
    "world": "last action step minus first action step",
    "local": "last pose in the frame of the first pose, other dimensions last minus first",
}
FOLDERS: dict[Frame, str] = {"world": "regression_relative", "local": "regression_relative_local"}

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
        raise UsageError(f"--frame local needs poses (x y z with roll pitch yaw or qx qy qz qw), not {space.dims}.")
    return tuple(found)


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


@dataclass(frozen=True, kw_only=True)
class RelativeRequest:
    """What to make relative: tables of any split, actions below `input_root`, files below `output_root`."""

    spec: DatasetSpec
    tables: tuple[Path, ...]
    input_root: Path
    output_root: Path
    frame: Frame = "world"
    workers: int = 8


@dataclass(frozen=True)
class TableReport:
    """Of one table: its split, files written now, files that were there, rows that failed and where they are listed."""

    table: Path
    split: str
    written: int
    skipped: int
    failures: tuple[Failure, ...]
    listed: Path


@dataclass(frozen=True)
class RelativeReport:
    """What was done: per table, and the statistics file if a training table was among them."""

    tables: tuple[TableReport, ...]
    statistics: Path | None


def split_of(spec: DatasetSpec, table: Path) -> str:
    """The split that a table's name tells; training if it tells none."""
    name = table.name
    words = re.split(r"[_.\-]", name)
    found = [split for split in SPLIT_NAMES if f"_{split}_" in f"_{'_'.join(words)}_"]
    found = found or [split for split in SPLIT_NAMES if split in name]
    split = found[0] if found else spec.train
    return split if split in spec.splits else spec.validation if split.endswith("val") else spec.train


def write_relative(request: RelativeRequest) -> RelativeReport:
    """Write the relative action of every row and the statistics of the training tables; existing files are kept.

    The statistics are those of the published tool: of the first training table, or per robot type, where a later
    table's numbers replace an earlier one's.

    Raises:
        UsageError: the data set holds no actions, or a table can't be read.
        LaryError: none of a training table's actions can be read.
    """
    arms = poses(request.spec.actions) if request.frame == "local" else ()
    shared: Moments | None = None
    robots: dict[str, Moments] = {}
    reports = []
    for table in request.tables:
        split = split_of(request.spec, table)
        report, found = convert_table(request, table, split, arms)
        reports.append(report)
        if split != request.spec.train:
            continue
        if not found:
            raise LaryError(f"None of the actions of {table} can be read, such as: {report.failures[0].reason}")
        if shared is not None:
            log.warning("%s is a second training table: its statistics aren't merged with the first one's", table)
        shared = shared or merged([{"": moments} for moments in found.values()])[""]
        robots.update(found)
    if shared is None:
        return RelativeReport(tuple(reports), None)
    header = {"action_mode": "relative", "definition": DEFINITIONS[request.frame], "dataset": request.spec.name}
    per_robot = request.spec.actions.normalisation.stats_file is not None
    body = {"robot_stats": {name: each.entry() for name, each in robots.items()}} if per_robot else shared.entry()
    path = request.output_root / in_frame(relative_stats_file(request.spec), request.frame)
    fileio.write_json(path, header | body)
    return RelativeReport(tuple(reports), path)


def in_frame(place: str, frame: Frame) -> str:
    """A path below ``regression_relative`` (or another folder of absolute data) for motion of a kind."""
    return str(PurePosixPath(FOLDERS[frame], *PurePosixPath(place).parts[1:]))


def convert_table(
    request: RelativeRequest, table: Path, split: str, arms: Sequence[Pose]
) -> tuple[TableReport, dict[str, Moments]]:
    """Convert one table; returns what was done and the moments by robot type, one observation per row."""
    spec = request.spec
    root = spec.split(split).root
    target, size = request.output_root / in_frame(root, request.frame), len(spec.actions.dims)

    def convert(row: ActionRow) -> tuple[Floats | Failure, bool]:
        path = fileio.inside(target, row.relative)
        try:
            if (known := read_moved(path, size)) is not None:
                return known, False
            source = row.find()
            if source is None:
                raise MediaError(f"The action file {row.places[0]} does not exist.")
            moved = motion(read_steps(source, size), arms)
        except (MediaError, UsageError, ValueError) as error:
            return Failure(row.row, row.cell, str(error)), False
        data = io.BytesIO()
        np.save(data, moved, allow_pickle=False)
        fileio.write_bytes(path, data.getvalue())
        return moved, True

    rows = action_rows(spec, table, request.input_root / root, robots=spec.actions.normalisation.stats_file is not None)
    values: dict[str, list[Floats]] = {}
    failures, written, batches = (
        [],
        0,
        in_batches(rows, lambda part: [convert(row) for row in part], request.workers, table.name),
    )
    for row, (result, fresh) in zip(rows, (item for batch in batches for item in batch), strict=True):
        if isinstance(result, Failure):
            failures.append(result)
            continue
        written += fresh
        values.setdefault(row.robot, []).append(result)
    moments = {robot: Moments.of(np.stack(each)) for robot, each in values.items()}
    skipped = len(rows) - written - len(failures)
    place = PurePosixPath(in_frame(relative_stats_file(spec), request.frame)).parent
    listed = request.output_root / place / f"relative_failures_{table.stem}.csv"
    write_failures(listed, failures)
    return TableReport(table, split, written, skipped, tuple(failures), listed), moments


def read_moved(path: Path, size: int) -> Floats | None:
    """A relative action (A,) that is there already; None for none, or a broken one, which is then made anew."""
    if not path.is_file():
        return None
    try:
        steps = read_steps(path, size)
    except MediaError:
        return None
    return steps[0] if len(steps) == 1 else None
