"""Action statistics per robot type: one pass over the action files, mergeable, in the published JSON.

Every step of every file is one observation, in float64; deviations are those of the population. Sums of squared
deviations are merged group by group (Chan, Golub and LeVeque 1979) and stand in the file (``m2``), so that
statistics of parts can be merged into those of the whole without reading an action again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lary.data.actions import SMALLEST_STD, read_numbers
from lary.data.samples import ACTION_FOLDER, TARGET_COLUMN, embodiment_column, places, read_csv
from lary.data.spec import NO_ROBOT, DatasetSpec
from lary.files import inside, read_json, write_json
from lary.runtime import progress
from lary.types import LaryError, MediaError, UsageError

Doubles = npt.NDArray[np.float64]
Values = npt.NDArray[Any]
Result = TypeVar("Result")

EXAMPLES = 20
BATCH = 32
"""Files per task of a thread: one is read in less time than a task takes."""


@dataclass(frozen=True)
class Moments:
    """Count, mean (A,) and sum of squared deviations (A,) of observations; float64."""

    count: int
    mean: Doubles
    m2: Doubles

    @classmethod
    def of(cls, values: Values) -> Moments:
        """Of values (n, A)."""
        wide = values.astype(np.float64)
        mean = wide.mean(axis=0)
        return cls(len(wide), mean, ((wide - mean) ** 2).sum(axis=0))

    def merge(self, other: Moments) -> Moments:
        """Of the observations of both."""
        total, step = self.count + other.count, other.mean - self.mean
        mean = self.mean + step * (other.count / total)
        return Moments(total, mean, self.m2 + other.m2 + step**2 * (self.count * other.count / total))

    def entry(self) -> dict[str, Any]:
        """As it stands in a statistics file; the deviation of a constant dimension is 1."""
        std = np.sqrt(self.m2 / self.count)
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "std": np.where(std < SMALLEST_STD, 1.0, std).tolist(),
            "m2": self.m2.tolist(),
        }

    @classmethod
    def from_entry(cls, entry: Any, where: str) -> Moments:
        """The inverse of `entry`. Raises LaryError for a file without ``m2`` (the published tool writes none)."""
        if not isinstance(entry, dict) or not {"count", "mean", "m2"} <= set(entry):
            raise LaryError(
                f"The statistics {where} hold no count, mean and m2, so they can't be merged: make them anew."
            )
        mean, m2 = np.array(entry["mean"], dtype=np.float64), np.array(entry["m2"], dtype=np.float64)
        if mean.shape != m2.shape or mean.ndim != 1 or entry["count"] < 1:
            raise LaryError(f"The statistics {where} are torn: mean and m2 differ in length, or the count is 0.")
        return cls(int(entry["count"]), mean, m2)


def merged(parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    """Moments by robot type over several parts, in order of first appearance."""
    whole: dict[str, Moments] = {}
    for part in parts:
        for robot, moments in part.items():
            whole[robot] = whole[robot].merge(moments) if robot in whole else moments
    return whole


@dataclass(frozen=True)
class ActionRow:
    """A row of a table of actions: the cell, where its file may lie, and the robot type (`NO_ROBOT` if empty)."""

    row: int
    cell: str
    places: tuple[Path, ...]
    relative: str
    robot: str

    def find(self) -> Path | None:
        """The file, or None."""
        return next((path for path in self.places if path.is_file()), None)


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
            found.append(ActionRow(number, cell, tuple(inside(root, place) for place in relative), relative[0], robot))
        except UsageError as error:
            raise UsageError(f"{table}, row {number + 1}: {error}") from None
    return found


def read_steps(path: Path, size: int) -> Values:
    """The steps of an action file, (n, A) float32, however many there are.

    Raises:
        MediaError: the file can't be read, holds no numbers, or not a multiple of A of them.
    """
    values = read_numbers(path)
    if not values.size or values.size % size:
        raise MediaError(f"The action file {path} holds {values.size} values, no multiple of {size} action dimensions.")
    return values.reshape(-1, size)


def in_batches(
    rows: Sequence[ActionRow], work: Callable[[Sequence[ActionRow]], Result], workers: int, title: str
) -> Iterator[Result]:
    """The results of `work` on batches of rows, in order, by threads, with a progress bar."""
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    with progress(len(rows), title, "file") as bar, ThreadPoolExecutor(workers) as pool:
        for batch, result in zip(batches, pool.map(work, batches), strict=True):
            yield result
            bar.advance(len(batch))


@dataclass
class Part:
    """What a batch of rows gives: moments by robot type, and the cells without a file."""

    robots: dict[str, Moments] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StatisticsReport:
    """What was written: the file, its robot types with their counts, and how many files are missing."""

    out: Path
    robots: dict[str, int]
    missing: int


def write_statistics(
    spec: DatasetSpec, table: Path, data_root: Path, out: Path | None = None, workers: int = 8
) -> StatisticsReport:
    """Measure the actions of a table per robot type and write the statistics file that ``lary regress`` reads.

    Args:
        table: CSV of the training split.
        data_root: ``$DATA_DIR``.
        out: file to write; the record's place by default.

    Raises:
        UsageError: the data set holds no actions, or no place is known for its statistics.
        LaryError: a file is broken, or all are missing.
    """
    space, root = spec.actions, data_root / spec.split(spec.train).root
    if out is None and space.normalisation.stats_file is None:
        raise UsageError(f"Data set '{spec.name}' is normalised without a statistics file; name one with --output.")
    target = out or data_root / str(space.normalisation.stats_file)
    size = len(space.dims)

    def measure(rows: Sequence[ActionRow]) -> Part:
        part = Part()
        for row in rows:
            path = row.find()
            if path is None:
                part.missing.append(str(row.places[0]))
                continue
            now = Moments.of(read_steps(path, size))
            part.robots[row.robot] = part.robots[row.robot].merge(now) if row.robot in part.robots else now
        return part

    rows = action_rows(spec, table, root, robots=True)
    parts = list(in_batches(rows, measure, workers, f"statistics of {spec.name}"))
    robots = merged([part.robots for part in parts])
    missing = [path for part in parts for path in part.missing]
    if not robots:
        raise LaryError(
            f"All {len(missing)} action files of {table} are missing, such as {missing[0]}. Check --data-root."
        )
    examples = [_below(path, data_root) for path in missing[:EXAMPLES]]
    header = {"source_csv": str(table), "action_root": str(root)}
    write_json(target, _document(spec.name, header, robots, len(missing), examples))
    return StatisticsReport(target, {robot: robots[robot].count for robot in sorted(robots)}, len(missing))


def merge_statistics(spec: DatasetSpec, files: Sequence[Path], out: Path) -> StatisticsReport:
    """Merge statistics files of parts of a table into those of the whole.

    Raises:
        LaryError: a file isn't one of `write_statistics`, or is of another data set.
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
