"""Relative actions: the motion between the two images of a pair, one file per pair, with statistics.

What motion is says `poses`: the published difference goes to ``regression_relative``, local motion to
``regression_relative_local`` beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from lary.data.actions import relative_stats_file
from lary.data.poses import DEFINITIONS, Frame, Pose, arms_of, in_frame, motion
from lary.data.spec import DatasetSpec
from lary.data.statistics import ActionRow, Moments, action_rows, in_batches, merged, read_steps
from lary.files import inside, write_bytes, write_failures, write_json
from lary.runtime import log
from lary.types import Failure, LaryError, MediaError, UsageError

Floats = npt.NDArray[np.float32]

SPLIT_NAMES = ("seen_train", "seen_val", "unseen", "train", "val")
"""Looked for in the name of a table, in this order; none found: training."""


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
    arms = arms_of(request.spec.actions, request.frame)
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
    path = request.output_root / relative_stats_file(request.spec, request.frame)
    write_json(path, header | body)
    return RelativeReport(tuple(reports), path)


def convert_table(
    request: RelativeRequest, table: Path, split: str, arms: Sequence[Pose]
) -> tuple[TableReport, dict[str, Moments]]:
    """Convert one table; returns what was done and the moments by robot type, one observation per row."""
    spec = request.spec
    root = spec.split(split).root
    target, size = request.output_root / in_frame(root, request.frame), len(spec.actions.dims)

    def convert(row: ActionRow) -> tuple[Floats | Failure, bool]:
        path = inside(target, row.relative)
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
        write_bytes(path, data.getvalue())
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
    place = PurePosixPath(relative_stats_file(spec, request.frame)).parent
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
