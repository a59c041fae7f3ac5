"""Action chunks as regression targets: reading, relative motion, and normalisation with its inverse.

Arithmetic as in the published code: the target is float32, mean and standard deviation are float64, and the result
is rounded to float32 once. Unlike there, a robot type without statistics is an error, never mean 0 and std 1.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lary.arrays import array_of, header_of
from lary.data.poses import FOLDERS, Frame, Pose, arms_of, motion
from lary.data.samples import THREADS, SampleTable
from lary.data.spec import NO_ROBOT, ActionSpace, DatasetSpec
from lary.files import read_json, read_limited
from lary.types import Failure, LaryError, MediaError, Progress, Sample, UsageError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
ActionMode = Literal["absolute", "relative"]

SMALLEST_STD = 1e-6
"""Below it a dimension counts as constant and is only centred (std 1)."""

LARGEST_ACTIONS = 1 << 28
"""Bytes of one action file; a chunk has thousands."""

SLICE = 4096
"""Rows that are worked on at once: bounds the queue of reads and the float64 copies."""


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
        values = parse_npy(read_limited(path, LARGEST_ACTIONS))
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The action file {path} can't be read: {reason}.") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise MediaError(f"The action file {path} holds no array of numbers.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise MediaError(f"The action file {path} holds NaN or infinity.")
    return values


def parse_npy(data: bytes) -> Any:
    """What a .npy file of these bytes holds; several times as fast as ``np.load`` for many files of one kind.

    Raises:
        ValueError: the bytes end early, are no .npy, or hold pickled objects.
    """
    if data[:8] != b"\x93NUMPY\x01\x00":  # format 1.0; others are rare
        return array_of(io.BytesIO(data), len(data))
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _npy_header(data[8:start])
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    size = math.prod(shape)
    if any(side < 0 for side in shape) or len(data) < start + size * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are too few for an array of shape {shape}")
    return np.frombuffer(data, dtype, size, start).reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; parsing is what reading a small file costs, and files of one data set share it."""
    return header_of(io.BytesIO(header), (1, 0))


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of an action dimension's values, (A,) float64 each; a tiny std is 1."""

    mean: Doubles
    std: Doubles

    @classmethod
    def of(cls, mean: Any, std: Any, size: int, where: str, make: str = "") -> Statistics:
        """From lists of numbers. Raises LaryError if they aren't A finite ones; `make` says how to make them."""
        try:
            pair = np.array(mean, dtype=np.float64), np.array(std, dtype=np.float64)
        except (TypeError, ValueError):
            pair = np.zeros(0), np.zeros(0)
        if any(values.shape != (size,) or not np.isfinite(values).all() for values in pair) or (pair[1] < 0).any():
            counts = {values.size for values in pair}
            told = f", but {counts.pop()}, as another data set has" if len(counts) == 1 and counts != {size} else ""
            raise LaryError(f"The statistics of {where} are not {size} finite means and deviations{told}.{make}")
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
            raise LaryError(
                f"There are no action statistics {what} in {self.source}, which has: "
                f"{', '.join(map(repr, self.robots)) or 'none'}. {self._advice(robot_type)}"
            )
        return self.robots[robot_type]

    def normalise(self, chunk: Floats, robot_type: str) -> Floats:
        """Chunks (..., A) in the data set's units to normalised ones, float32. Raises LaryError (`statistics`)."""
        numbers = self.statistics(robot_type)
        return ((chunk.astype(np.float32) - numbers.mean) / numbers.std).astype(np.float32)

    def denormalise(self, chunk: Floats, robot_type: str) -> Floats:
        """The inverse of `normalise`: (..., A) float32 in the data set's units."""
        numbers = self.statistics(robot_type)
        return (chunk * numbers.std + numbers.mean).astype(np.float32)

    def _advice(self, robot_type: str) -> str:
        fill = "" if robot_type else "Fill the column of robot types in the tables, then make the statistics: "
        return f"{fill}{self.command}" if self.command else f"{fill}check the robot types of the training split."


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
        place = relative_stats_file(spec, frame) if mode == "relative" else str(rule.stats_file)
        command = relative_command(spec, frame) if mode == "relative" else rule.command
        found = read_statistics(data_dir / place, size, command, per_robot=rule.stats_file is not None)
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
    """Where the statistics of relative actions lie under ``DATA_DIR``, beside the relative actions themselves."""
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
    sums: dict[str, tuple[int, Doubles, Doubles]] = {}
    for sample, chunk in _read_all(table, "absolute"):
        if isinstance(chunk, Failure):
            continue
        values = chunk.astype(np.float64)
        count, mean, spread = sums.get(sample.embodiment, (0, np.zeros(values.shape[1]), np.zeros(values.shape[1])))
        # Merged group by group (Chan et al. 1979), since a sum of squares loses the digits of small deviations.
        total, step = count + len(values), values.mean(axis=0) - mean
        spread = spread + ((values - values.mean(axis=0)) ** 2).sum(axis=0) + step**2 * count * len(values) / total
        sums[sample.embodiment] = (total, mean + step * len(values) / total, spread)
    if not sums:
        raise LaryError(f"None of the action files of {table.path} can be read, so nothing can be normalised.")
    source = f"the training split {table.path}"
    robots = {
        robot: Statistics.of(mean, np.sqrt(spread / count), len(mean), f"robot type '{robot}' in {source}")
        for robot, (count, mean, spread) in sorted(sums.items())
    }
    return Normaliser(source, robots=robots)


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
    for position, (_, chunk) in enumerate(_read_all(table, mode, frame)):
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


def _read_all(
    table: SampleTable, mode: ActionMode, frame: Frame = "world"
) -> Iterator[tuple[Sample, Floats | Failure]]:
    """Every sample with its actions, in order, read ahead by threads; a file that can't be read is a Failure."""
    read: Callable[[Path, ActionSpace], Floats] = read_chunk
    if mode == "relative":
        read = functools.partial(read_relative, arms=arms_of(table.spec.actions, frame))

    def one(position: int) -> tuple[Sample, Floats | Failure]:
        sample = table[position]
        try:
            return sample, read(table.action_path(sample), table.spec.actions)
        except MediaError as error:
            return sample, Failure(sample.row, sample.target, str(error))

    def some(positions: range) -> list[tuple[Sample, Floats | Failure]]:
        return [one(position) for position in positions]

    # A task is many files, since one is read in less time than a task takes; and the queue is bounded.
    tasks = [range(start, min(start + 32, len(table))) for start in range(0, len(table), 32)]
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(tasks), SLICE // 32):
            for done in pool.map(some, tasks[start : start + SLICE // 32]):
                yield from done
