"""Normalisation of action chunks: statistics, their file, and the regression targets that they give.

Arithmetic as in the published code: the target is float32, mean and standard deviation are float64, and the result
is rounded to float32 once. Unlike there, a robot type without statistics is an error, never mean 0 and std 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lary.data.actions import FOLDERS, ActionMode, Floats, Frame, read_actions
from lary.data.spec import NO_ROBOT, DatasetSpec
from lary.data.tables import SampleTable
from lary.files import read_json
from lary.types import Failure, LaryError, Progress, UsageError

Doubles = npt.NDArray[np.float64]

SLICE = 4096
"""Rows that are normalised at once: bounds the float64 copies."""
SMALLEST_STD = 1e-6
"""Below it a dimension counts as constant and is only centred (std 1)."""


@dataclass(frozen=True)
class Moments:
    """Count, mean (A,) and sum of squared deviations (A,) of observations; float64.

    Merged group by group (Chan, Golub and LeVeque 1979), since a sum of squares loses the digits of small deviations.
    """

    count: int
    mean: Doubles
    m2: Doubles

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Moments:
        """The moments of values (n, A)."""
        wide = values.astype(np.float64)
        mean = wide.mean(axis=0)
        return cls(len(wide), mean, ((wide - mean) ** 2).sum(axis=0))

    def merge(self, other: Moments) -> Moments:
        """The moments of the observations of both."""
        total, step = self.count + other.count, other.mean - self.mean
        mean = self.mean + step * (other.count / total)
        return Moments(total, mean, self.m2 + other.m2 + step**2 * (self.count * other.count / total))

    @property
    def std(self) -> Doubles:
        """The deviation (A,) of a population."""
        return np.asarray(np.sqrt(self.m2 / self.count))

    def entry(self) -> dict[str, Any]:
        """The entry of a statistics file; the deviation of a constant dimension is 1."""
        std = np.where(self.std < SMALLEST_STD, 1.0, self.std)
        return {"count": self.count, "mean": self.mean.tolist(), "std": std.tolist(), "m2": self.m2.tolist()}

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


def merged(parts: Iterable[Mapping[str, Moments]]) -> dict[str, Moments]:
    """Moments by robot type over several parts, in order of first appearance."""
    whole: dict[str, Moments] = {}
    for part in parts:
        for robot, moments in part.items():
            whole[robot] = whole[robot].merge(moments) if robot in whole else moments
    return whole


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of an action dimension's values, (A,) float64 each; a tiny std is 1."""

    mean: Doubles
    std: Doubles

    @classmethod
    def of(cls, mean: Any, std: Any, size: int, where: str, make: str = "") -> Statistics:
        """Statistics from lists. Raises LaryError if they aren't A finite numbers each; `make` says how to."""
        try:
            pair = np.array(mean, dtype=np.float64), np.array(std, dtype=np.float64)
        except (TypeError, ValueError):
            pair = np.zeros(0), np.zeros(0)
        if any(values.shape != (size,) or not np.isfinite(values).all() for values in pair) or (pair[1] < 0).any():
            counts = {values.size for values in pair}
            other = f", but {counts.pop()}, as another data set has" if len(counts) == 1 and counts != {size} else ""
            raise LaryError(f"The statistics of {where} are not {size} finite means and deviations{other}.{make}")
        return cls(pair[0], np.where(pair[1] < SMALLEST_STD, 1.0, pair[1]))


@dataclass(frozen=True)
class Normaliser:
    """``(value - mean) / std`` per dimension, for all samples alike (`shared`) or per robot type (`robots`).

    ``source`` and ``command`` say where the numbers come from and what makes them, for errors and results.
    """

    source: str
    command: str = ""
    shared: Statistics | None = None
    robots: Mapping[str, Statistics] = field(default_factory=dict)

    def statistics(self, robot_type: str) -> Statistics:
        """The numbers for a robot type. Raises LaryError if there are none."""
        if self.shared is not None:
            return self.shared
        if robot_type not in self.robots:
            what = f"of robot type '{robot_type}'" if robot_type else "for samples without a robot type"
            known = ", ".join(map(repr, self.robots)) or "none"
            fill = "" if robot_type else "Fill the column of robot types in the tables, then make the statistics: "
            advice = self.command or "check the robot types of the training split."
            raise LaryError(
                f"There are no action statistics {what} in {self.source}, which has: {known}. {fill}{advice}"
            )
        return self.robots[robot_type]

    def normalise(self, chunk: Floats, robot_type: str) -> Floats:
        """Chunks (..., A) in the data set's units to normalised ones, float32. Raises LaryError (`statistics`)."""
        numbers = self.statistics(robot_type)
        return ((chunk.astype(np.float32) - numbers.mean) / numbers.std).astype(np.float32)


def load_normaliser(
    spec: DatasetSpec, data_dir: Path, mode: ActionMode = "absolute", train: SampleTable | None = None,
    frame: Frame = "world",
) -> Normaliser:  # fmt: skip
    """The normaliser that a record asks for: its constants, its statistics file, or measured on `train`.

    Relative actions always have a statistics file, beside the relative actions. A robot type that the record gives to
    rows without one (`DatasetSpec.unnamed_robot`) takes the numbers under `NO_ROBOT` where the file has none for it.

    Raises:
        LaryError: the statistics file is missing or holds no usable numbers; names the command that makes it.
        UsageError: the record has neither constants nor a file, and there is no `train`.
    """
    rule, size = spec.actions.normalisation, len(spec.actions.dims)
    if mode == "relative" or rule.stats_file is not None:
        file = relative_stats_file(spec, frame) if mode == "relative" else str(rule.stats_file)
        command = relative_command(spec, frame) if mode == "relative" else rule.command
        found = read_statistics(data_dir / file, size, command, per_robot=rule.stats_file is not None)
        if spec.unnamed_robot is not None and NO_ROBOT in found.robots:
            return replace(found, robots={spec.unnamed_robot[1]: found.robots[NO_ROBOT], **found.robots})
        return found
    if rule.mean:
        where = f"the record of {spec.name}"
        return Normaliser(where, shared=Statistics.of(rule.mean, rule.std, size, where))
    if train is None:
        raise UsageError(f"Data set '{spec.name}' has no normalisation: give it constants or a statistics file.")
    return measure(train)


def relative_stats_file(spec: DatasetSpec, frame: Frame = "world") -> str:
    """The statistics file of relative actions under ``DATA_DIR``, beside the relative actions themselves."""
    root = PurePosixPath(next(iter(spec.splits.values())).root)
    folder = root.parts[1] if len(root.parts) > 1 else root.parts[0]
    return f"{FOLDERS[frame]}/{folder}/relative_action_stats_{spec.name}.json"


def relative_command(spec: DatasetSpec, frame: Frame) -> str:
    """The command that makes relative actions and their statistics."""
    made = spec.actions.normalisation.relative_command
    made = made or f"lary data relative --dataset {spec.name} --csv data/{spec.table_name(spec.train)}"
    return made if frame == "world" else f"{made} --frame {frame}"


def read_statistics(path: Path, size: int, command: str, *, per_robot: bool) -> Normaliser:
    """Read a statistics file: ``robot_stats`` (or robot types at the top level), or ``mean`` and ``std``.

    Entries without mean and std are no robot types and are passed over.

    Raises:
        LaryError: the file is missing, isn't JSON or holds no usable numbers.
    """
    make = f" Make them with: {command}" if command else ""
    if not path.is_file():
        raise LaryError(f"The action statistics {path} do not exist.{make}")
    found = read_json(path, "statistics file")
    if not isinstance(found, dict):
        raise LaryError(f"The action statistics {path} are no JSON object.{make}")
    if not per_robot:
        if not {"mean", "std"} <= set(found):
            raise LaryError(f"The action statistics {path} have no mean and std.{make}")
        return Normaliser(str(path), command, shared=Statistics.of(found["mean"], found["std"], size, str(path), make))
    robots = {
        str(name): Statistics.of(entry["mean"], entry["std"], size, f"robot type '{name}' in {path}", make)
        for name, entry in (found["robot_stats"] if isinstance(found.get("robot_stats"), dict) else found).items()
        if isinstance(entry, dict) and {"mean", "std"} <= set(entry)
    }
    if not robots:
        raise LaryError(f"The action statistics {path} name no robot type with mean and std.{make}")
    return Normaliser(str(path), command, robots=robots)


def measure(table: SampleTable) -> Normaliser:
    """Statistics per robot type of all steps of a split's chunks (population deviation); skips unreadable files.

    Raises:
        LaryError: no action file can be read.
    """
    found = ((sample, chunk) for sample, chunk in read_actions(table, "absolute") if not isinstance(chunk, Failure))
    robots = merged({sample.embodiment: Moments.of(chunk)} for sample, chunk in found)
    if not robots:
        raise LaryError(f"None of the action files of {table.path} can be read, so nothing can be normalised.")
    source = f"the training split {table.path}"
    return Normaliser(
        source,
        robots={
            robot: Statistics.of(each.mean, each.std, len(each.mean), f"robot type '{robot}' in {source}")
            for robot, each in sorted(robots.items())
        },
    )


class Targets(NamedTuple):
    """Normalised targets of a split, n rows in the order of its table.

    values (n, K, A) float32, NaN in the rows that failed; K is 1 for relative actions. mean, std (n, A) float32
    take them back to the data set's units.
    """

    values: Floats
    mean: Floats
    std: Floats
    failures: tuple[Failure, ...]

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """(n,) which rows have a target."""
        return np.asarray(~np.isnan(self.values).any(axis=(1, 2)))


def load_targets(
    table: SampleTable, normaliser: Normaliser, progress: Progress | None = None, mode: ActionMode = "absolute",
    frame: Frame = "world",
) -> Targets:  # fmt: skip
    """Read and normalise the actions of a split.

    Raises:
        LaryError: a robot type has no statistics; names it and the first row with it, before any file is read.
    """
    space, robots = table.spec.actions, table.embodiments()
    for robot in dict.fromkeys(robots):
        try:
            normaliser.statistics(robot)
        except LaryError as error:
            position = robots.index(robot)
            raise LaryError(
                f"{table.path}, row {table[position].row + 1} and {robots.count(robot) - 1} others: {error}"
            ) from None
    shape = (len(table), 1 if mode == "relative" else space.horizon, len(space.dims))
    targets = Targets(
        np.full(shape, np.nan, np.float32), np.empty(shape[::2], np.float32), np.empty(shape[::2], np.float32), ()
    )
    failures, rows_of = [], {robot: np.array([name == robot for name in robots]) for robot in set(robots)}
    for position, (_, chunk) in enumerate(read_actions(table, mode, frame)):
        if isinstance(chunk, Failure):
            failures.append(chunk)
        else:
            targets.values[position] = chunk
        if progress is not None:
            progress.advance()
    for robot, rows in rows_of.items():
        numbers = normaliser.statistics(robot)
        targets.mean[rows], targets.std[rows] = numbers.mean, numbers.std
        for part in np.array_split(np.flatnonzero(rows), len(table) // SLICE + 1):
            targets.values[part] = normaliser.normalise(targets.values[part], robot)
    return targets._replace(failures=tuple(failures))
