"""The tools of actions: statistics per robot type, and relative actions, one file per pair.

Statistics take one pass over the action files: every step of every file is one observation, in float64, and deviations
are those of the population. The file is the published JSON with the sums of squared deviations (``m2``), so that
statistics of parts can be merged into those of the whole. Relative actions of both frames (`motion`) have folders of
their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from lary.arrays import npy_bytes
from lary.data.actions import DEFINITIONS, Floats, Pose, arms_of, in_frame, motion, read_numbers
from lary.data.configs import RelativeConfig, StatsConfig
from lary.data.normalisation import Moments, merged, relative_stats_file
from lary.data.spec import DATASETS, NO_ROBOT, DatasetSpec
from lary.data.splits import find_table
from lary.data.tables import ACTION_FOLDER, TARGET_COLUMN, embodiment_column, places, read_csv
from lary.files import inside, read_json, write_bytes, write_failures, write_json
from lary.runtime import in_threads, log, progress
from lary.settings import Settings
from lary.types import Failure, LaryError, MediaError, UsageError

EXAMPLES = 20
BATCH = 32
"""Files per task of a thread: one is read in less time than a task takes."""

SPLIT_NAMES = ("seen_train", "seen_val", "unseen", "train", "val")
"""Words in the name of a table that name its split, in this order; without any: training."""


# Rows of a table of actions


@dataclass(frozen=True)
class ActionRow:
    """A row of a table of actions: the cell, where its file may be, and the robot type (`NO_ROBOT` if empty)."""

    row: int
    cell: str
    paths: tuple[Path, ...]
    relative: str
    robot: str

    def find(self) -> Path | None:
        """The file, or None."""
        return next((path for path in self.paths if path.is_file()), None)


def action_rows(spec: DatasetSpec, table: Path, root: Path, *, robots: bool) -> list[ActionRow]:
    """The actions that a table names; absolute paths are taken as they are, relative ones start from `root`.

    Args:
        robots: the table needs the column of robot types.

    Raises:
        UsageError: a column is missing, or a path is empty or leaves the root.
    """
    columns, rows = read_csv(table)
    robot_column = embodiment_column(spec, columns)
    for name in (TARGET_COLUMN, *([robot_column] if robots and robot_column else [])):
        if name not in columns:
            raise UsageError(f"{table} has no column '{name}'; it has: {', '.join(columns)}.")
    at = columns.index(TARGET_COLUMN)
    robot_at = columns.index(robot_column) if robot_column in columns else None
    found = []
    for number, row in enumerate(rows):
        cell = row[at].strip()
        robot = spec.embodiment if robot_at is None else row[robot_at].strip() or NO_ROBOT
        if PurePath(cell).is_absolute():
            path = Path(cell)
            inner = path.relative_to(root).as_posix() if path.is_relative_to(root) else f"{ACTION_FOLDER}/{path.name}"
            found.append(ActionRow(number, cell, (path,), inner, robot))
            continue
        try:
            relative = places(spec, cell, ACTION_FOLDER)
            found.append(ActionRow(number, cell, tuple(inside(root, each) for each in relative), relative[0], robot))
        except UsageError as error:
            raise UsageError(f"{table}, row {number + 1}: {error}") from None
    return found


def read_steps(path: Path, size: int) -> Floats:
    """The steps of an action file, (n, A) float32, however many there are.

    Raises:
        MediaError: the file can't be read, holds no numbers, or not a multiple of A of them.
    """
    values = read_numbers(path)
    if not values.size or values.size % size:
        raise MediaError(f"The action file {path} holds {values.size} values, no multiple of {size} action dimensions.")
    return values.reshape(-1, size)


# Statistics


@dataclass(frozen=True)
class StatisticsReport:
    """What was written: the file, its robot types with their counts, and how many files are missing."""

    out: Path
    robots: dict[str, int]
    missing: int


def write_statistics(config: StatsConfig, settings: Settings) -> StatisticsReport:
    """Measure the actions of a training split, or merge the statistics of its parts. Raises as those two do."""
    spec = DATASETS.get(config.dataset)
    if config.merge:
        if config.output is None:
            raise UsageError("Name with --output where the merged statistics go.")
        return merge_statistics(spec, config.merge, config.output)
    table = find_table(spec, spec.train, settings.path("LARY_ROOT"), explicit=config.csv)
    return measure_table(spec, table, settings.path("DATA_DIR"), config.output, config.workers)


def measure_table(
    spec: DatasetSpec, table: Path, data_dir: Path, out: Path | None = None, workers: int = 8
) -> StatisticsReport:
    """Measure the actions of a table per robot type and write the statistics file that ``lary regress`` reads.

    Args:
        table: CSV of the training split.
        data_dir: ``$DATA_DIR``.
        out: file to write; by default that of the record.

    Raises:
        UsageError: the data set holds no actions, or no file is known for its statistics.
        LaryError: a file is broken, or all are missing.
    """
    space, root = spec.actions, data_dir / spec.split(spec.train).root
    if out is None and space.normalisation.stats_file is None:
        raise UsageError(f"Data set '{spec.name}' is normalised without a statistics file; name one with --output.")
    target = out or data_dir / str(space.normalisation.stats_file)
    size = len(space.dims)

    def measure_row(row: ActionRow) -> dict[str, Moments]:
        path = row.find()
        return {} if path is None else {row.robot: Moments.of(read_steps(path, size))}

    rows = action_rows(spec, table, root, robots=True)
    with progress(len(rows), f"statistics of {spec.name}", "file") as bar:
        found = list(in_threads(measure_row, rows, workers, batch=BATCH, bar=bar))
    robots = merged(merged(found[start : start + BATCH]) for start in range(0, len(found), BATCH))
    missing = [str(row.paths[0]) for row, moments in zip(rows, found, strict=True) if not moments]
    if not robots:
        raise LaryError(
            f"All {len(missing)} action files of {table} are missing, such as {missing[0]}. Check --data-dir."
        )
    examples = [_below(path, data_dir) for path in missing[:EXAMPLES]]
    header = {"source_csv": str(table), "action_root": str(root)}
    write_json(target, _document(spec.name, header, robots, len(missing), examples))
    return StatisticsReport(target, {robot: robots[robot].count for robot in sorted(robots)}, len(missing))


def merge_statistics(spec: DatasetSpec, files: Sequence[Path], out: Path) -> StatisticsReport:
    """Merge statistics files of parts of a table into those of the whole.

    Raises:
        LaryError: a file isn't one of `measure_table`, or is of another data set.
    """
    parts, missing, examples = [], 0, []
    for path in files:
        found = read_json(path, "statistics file")
        entries = found.get("robot_stats") if isinstance(found, dict) else None
        if not isinstance(entries, dict) or found.get("dataset") != spec.name:
            raise LaryError(f"{path} holds no statistics per robot type of {spec.name}.")
        parts.append({robot: Moments.from_entry(entry, f"of '{robot}' in {path}") for robot, entry in entries.items()})
        if any(moments.mean.shape != (len(spec.actions.dims),) for moments in parts[-1].values()):
            raise LaryError(f"{path} holds statistics of another number of dimensions than {spec.name} has.")
        missing += int(found.get("missing_actions", 0))
        examples += list(found.get("missing_action_examples", []))
    robots, source = merged(parts), ", ".join(str(path) for path in files)
    write_json(out, _document(spec.name, {"source_csv": source, "action_root": ""}, robots, missing, examples))
    return StatisticsReport(out, {robot: robots[robot].count for robot in sorted(robots)}, missing)


def _document(
    dataset: str, header: dict[str, str], robots: Mapping[str, Moments], missing: int, examples: Sequence[str]
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "action_mode": "absolute",
        "action_dim": len(next(iter(robots.values())).mean),
        **header,
        "missing_actions": missing,
        "missing_action_examples": list(examples[:EXAMPLES]),
        "global": merged([{"": moments} for moments in robots.values()])[""].entry(),
        "robot_stats": {robot: robots[robot].entry() for robot in sorted(robots)},
    }


def _below(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


# Relative actions


@dataclass(frozen=True)
class TableReport:
    """One table: its split, files written now, files that were there, rows that failed and where they are listed."""

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
    """The split that a table's name contains; training if it contains none."""
    name = table.name
    words = re.split(r"[_.\-]", name)
    found = [split for split in SPLIT_NAMES if f"_{split}_" in f"_{'_'.join(words)}_"]
    found = found or [split for split in SPLIT_NAMES if split in name]
    split = found[0] if found else spec.train
    return split if split in spec.splits else spec.validation if split.endswith("val") else spec.train


def write_relative(config: RelativeConfig, settings: Settings) -> RelativeReport:
    """Write the relative action of every row and the statistics of the training tables; existing files are kept.

    The statistics are those of the published tool: of the first training table, or per robot type, where a later
    table's numbers replace an earlier one's.

    Raises:
        UsageError: the data set holds no actions, or a table can't be read.
        LaryError: none of a training table's actions can be read.
    """
    spec = DATASETS.get(config.dataset)
    source, below = config.input_root or settings.path("DATA_DIR"), settings.path("LARY_ROOT")
    out, arms = config.output_root or source, arms_of(spec.actions, config.frame)
    shared: Moments | None = None
    robots: dict[str, Moments] = {}
    reports = []
    for path in config.csv:
        table = path if path.exists() or path.is_absolute() else below / path
        split = split_of(spec, table)
        report, found = convert_table(config, table, split, source, out, arms)
        reports.append(report)
        if split != spec.train:
            continue
        if not found:
            raise LaryError(f"None of the actions of {table} can be read, such as: {report.failures[0].reason}")
        if shared is not None:
            log.warning("%s is a second training table: its statistics aren't merged with the first one's", table)
        shared = shared or merged([{"": moments} for moments in found.values()])[""]
        robots.update(found)
    if shared is None:
        return RelativeReport(tuple(reports), None)
    header = {"action_mode": "relative", "definition": DEFINITIONS[config.frame], "dataset": spec.name}
    per_robot = spec.actions.normalisation.stats_file is not None
    body = {"robot_stats": {name: each.entry() for name, each in robots.items()}} if per_robot else shared.entry()
    file = out / relative_stats_file(spec, config.frame)
    write_json(file, header | body)
    return RelativeReport(tuple(reports), file)


def convert_table(
    config: RelativeConfig, table: Path, split: str, source: Path, out: Path, arms: Sequence[Pose]
) -> tuple[TableReport, dict[str, Moments]]:
    """Convert one table; returns what was done and the moments by robot type, one observation per row."""
    spec = DATASETS.get(config.dataset)
    root = spec.split(split).root
    target, size = out / in_frame(root, config.frame), len(spec.actions.dims)

    def convert(row: ActionRow) -> tuple[Floats | Failure, bool]:
        path = inside(target, row.relative)
        try:
            if (known := read_moved(path, size)) is not None:
                return known, False
            file = row.find()
            if file is None:
                raise MediaError(f"The action file {row.paths[0]} does not exist.")
            moved = motion(read_steps(file, size), arms)
        except (MediaError, UsageError, ValueError) as error:
            return Failure(row.row, row.cell, str(error)), False
        write_bytes(path, npy_bytes(moved))
        return moved, True

    rows = action_rows(spec, table, source / root, robots=spec.actions.normalisation.stats_file is not None)
    values: dict[str, list[Floats]] = {}
    failures, written = [], 0
    with progress(len(rows), table.name, "file") as bar:
        found = in_threads(convert, rows, config.workers, batch=BATCH, bar=bar)
        for row, (result, fresh) in zip(rows, found, strict=True):
            if isinstance(result, Failure):
                failures.append(result)
                continue
            written += fresh
            values.setdefault(row.robot, []).append(result)
    moments = {robot: Moments.of(np.stack(each)) for robot, each in values.items()}
    skipped = len(rows) - written - len(failures)
    listed = (out / relative_stats_file(spec, config.frame)).parent / f"relative_failures_{table.stem}.csv"
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
