"""Normalisation of action chunks: statistics, targets, and relative actions.

As published, the target is float32, mean and std are float64, and the result
is rounded to float32 once. Unlike there, a robot type without statistics is an
error, never mean 0 and std 1. The files are the published JSON; ``m2`` is
ours.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lary.arrays import Array, Doubles, Floats, npy_bytes
from lary.data import actions
from lary.data.actions import ActionMode, Frame, Moments, measure, read_actions, total
from lary.data.configs import RelativeConfig, StatsConfig
from lary.data.spec import DATASETS, NO_ROBOT, DatasetSpec
from lary.data.splits import find_table
from lary.data.tables import TARGET_COLUMN, SampleTable, read_table
from lary.files import digest, inside, read_json, remove_torn, write_bytes, write_failures, write_json
from lary.locks import locked
from lary.runtime import in_threads, progress
from lary.settings import Settings
from lary.types import Failure, JsonDict, LaryError, MediaError, UsageError

SLICE = 4096
"""Rows that are normalised at once: bounds the float64 copies."""
EXAMPLES = 20
"""Missing files that a statistics file names."""
SPLIT_NAMES = ("seen_train", "seen_val", "unseen", "train", "val")
"""Words in a table's name that name its split, in this order."""


class Statistics(NamedTuple):
    """Mean and standard deviation of dimensions, (A,) float64 each; a tiny std is 1."""

    mean: Doubles
    std: Doubles


def statistics_of(entry: Mapping[str, Any], size: int, where: str, advice: str = "") -> Statistics:
    """Statistics from ``mean`` and ``std``. Raises LaryError, with the `advice`."""
    try:
        mean, std = (np.array(entry[name], np.float64) for name in ("mean", "std"))
    except (TypeError, ValueError):
        mean = std = np.zeros(0)
    if not mean.shape == std.shape == (size,) or not np.isfinite([mean, std]).all() or (std < 0).any():
        wrong = f"are not {size} finite means and deviations, but {mean.size}"
        raise LaryError(f"The statistics of {where} {wrong}.{advice}")
    return Statistics(mean, np.where(std < actions.SMALLEST_STD, 1.0, std))


@dataclass(frozen=True)
class Normaliser:
    """``(value - mean) / std``, for all samples alike or per robot type."""

    source: str
    command: str = ""
    shared: Statistics | None = None
    robots: Mapping[str, Statistics] = field(default_factory=dict)

    def statistics(self, robot_type: str) -> Statistics:
        """The numbers for a robot type. Raises LaryError if there are none."""
        if found := self.shared or self.robots.get(robot_type):
            return found
        what = f"of robot type '{robot_type}'" if robot_type else "for samples without a robot type"
        known = ", ".join(map(repr, self.robots)) or "none"
        advice = self.command or "check the robot types of the training split."
        if not robot_type:
            advice = f"Fill the column of robot types in the tables, then: {advice}"
        raise LaryError(f"There are no action statistics {what} in {self.source}, which has: {known}. {advice}")

    def normalise(self, chunk: Floats, robot_type: str) -> Floats:
        """Chunks (..., A) to normalised ones, float32. Raises LaryError (`statistics`)."""
        numbers = self.statistics(robot_type)
        return ((chunk.astype(np.float32) - numbers.mean) / numbers.std).astype(np.float32)


def load_normaliser(
    spec: DatasetSpec,
    data_dir: Path,
    mode: ActionMode = "absolute",
    train: SampleTable | None = None,
    frame: Frame = "world",
) -> Normaliser:
    """The normaliser of a record: constants, statistics file, or measured on `train`.

    Raises LaryError with the command that makes the numbers.
    """
    rule, size = spec.actions.normalisation, len(spec.actions.dims)
    if mode == "relative":
        usual = f"lary data relative --dataset {spec.name} --csv data/{spec.table_name(spec.train)}"
        command = (rule.relative_command or usual) + ("" if frame == "world" else f" --frame {frame}")
        return read_statistics(data_dir / relative_stats_file(spec, frame), spec, command)
    if rule.stats_file:
        return read_statistics(data_dir / rule.stats_file, spec, rule.command)
    if rule.mean:
        where = f"the record of {spec.name}"
        return Normaliser(where, shared=statistics_of({"mean": rule.mean, "std": rule.std}, size, where))
    if train is None:
        raise UsageError(f"Data set '{spec.name}' has no normalisation: give it constants or a statistics file.")
    robots, _ = measure(train.embodiments, read_actions(train))
    if not robots:
        raise LaryError(f"None of the action files of {train.path} can be read, so nothing can be normalised.")
    where = f"the training split {train.path}"
    measured = {name: statistics_of(robots[name].entry(), size, where) for name in sorted(robots)}
    return Normaliser(where, robots=measured)


def relative_stats_file(spec: DatasetSpec, frame: Frame = "world") -> str:
    """The statistics file of relative actions under ``DATA_DIR``, beside these."""
    folder = next(iter(spec.splits.values())).root.split("/")[:2][-1]
    return f"{actions.FOLDERS[frame]}/{folder}/relative_action_stats_{spec.name}.json"


def read_statistics(path: Path, spec: DatasetSpec, command: str) -> Normaliser:
    """Read a statistics file: ``robot_stats`` (or its content alone), or ``mean`` and ``std``.

    Entries without both are passed over; the record's unnamed robot takes
    those of `NO_ROBOT`, unless it has its own. Raises LaryError.
    """
    make = f" Make them with: {command}" if command else ""
    if not path.is_file():
        raise LaryError(f"The action statistics {path} do not exist.{make}")
    found, robots = read_json(path, "statistics file"), dict[str, Statistics]()
    per_robot = spec.actions.normalisation.stats_file
    entries = found.get("robot_stats", found) if isinstance(found, dict) and per_robot else {"": found}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and {"mean", "std"} <= set(entry):
            where = f"{path}, robot type '{name}'," if name else str(path)
            robots[name] = statistics_of(entry, len(spec.actions.dims), where, make)
    if not robots:
        what = "name no robot type with mean and std" if per_robot else "have no mean and std"
        raise LaryError(f"The action statistics {path} {what}.{make}")
    if not per_robot:
        return Normaliser(str(path), command, shared=robots[""])
    if spec.unnamed_robot and NO_ROBOT in robots:
        robots = {spec.unnamed_robot[1]: robots[NO_ROBOT], **robots}
    return Normaliser(str(path), command, robots=robots)


class Targets(NamedTuple):
    """Normalised targets of a split: values (n, K, A) float32, NaN in failed rows.

    K is 1 for relative actions; mean and std (n, A) restore units; `digest` is
    of values before.
    """

    values: Floats
    mean: Floats
    std: Floats
    failures: tuple[Failure, ...]
    digest: str = ""

    @property
    def readable(self) -> Array:
        """(n,) which rows have a target."""
        return np.asarray(~np.isnan(self.values).any((1, 2)))


def load_targets(
    table: SampleTable, normaliser: Normaliser, mode: ActionMode = "absolute", frame: Frame = "world"
) -> Targets:
    """Read and normalise the actions of a split. Raises LaryError for unknown robots."""
    space, robots = table.spec.actions, table.embodiments
    shape = (len(table), 1 if mode == "relative" else space.horizon, len(space.dims))
    mean, std = np.empty((2, *shape[::2]), np.float32)
    rows_of = {robot: np.flatnonzero([name == robot for name in robots]) for robot in dict.fromkeys(robots)}
    for robot, rows in rows_of.items():
        try:
            mean[rows], std[rows] = normaliser.statistics(robot)
        except LaryError as error:
            first, others = table.rows[rows[0]] + 1, len(rows) - 1
            raise LaryError(f"{table.path}, row {first} and {others} others: {error}") from None
    values, failures = np.full(shape, np.nan, np.float32), []
    for position, chunk in enumerate(read_actions(table, mode, frame)):
        if isinstance(chunk, Failure):
            failures.append(chunk)
        else:
            values[position] = chunk
    read = digest(values.tobytes())
    for robot, rows in rows_of.items():
        for part in np.array_split(rows, len(table) // SLICE + 1):
            values[part] = normaliser.normalise(values[part], robot)
    return Targets(values, mean, std, tuple(failures), read)


def write_statistics(config: StatsConfig, settings: Settings) -> tuple[Path, JsonDict]:
    """Measure the actions of a training split, as `measure_table`."""
    spec = DATASETS.get(config.dataset)
    table = find_table(spec, spec.train, settings.path("LARY_ROOT"), explicit=config.csv)
    return measure_table(spec, table, settings.path("DATA_DIR"), config.output, config.workers)


def measure_table(
    spec: DatasetSpec, csv: Path, data_dir: Path, out: Path | None = None, workers: int = 8
) -> tuple[Path, JsonDict]:
    """Measure a table's actions per robot type; the statistics file and its content.

    Raises LaryError for a broken action file, or if all are missing.
    """
    space = spec.actions
    if not (out or space.normalisation.stats_file):
        raise UsageError(f"Data set '{spec.name}' is normalised without a statistics file; name one with --output.")
    table = read_table(spec, spec.train, path=csv, data_dir=data_dir, media=False)
    with progress(len(table), f"statistics of {spec.name}", "file") as bar:
        robots, missing = measure(table.robots(NO_ROBOT), read_actions(table, threads=workers, bar=bar))
    for failure in missing:
        if (table.root / failure.path).is_file():
            raise MediaError(failure.reason)
    if not robots:
        first = table.root / missing[0].path
        raise LaryError(f"All {len(missing)} action files of {csv} are missing, such as {first}. Check --data-dir.")
    content = {
        "dataset": spec.name,
        "action_mode": "absolute",
        "action_dim": len(space.dims),
        "source_csv": str(csv),
        "action_root": str(table.root),
        "missing_actions": len(missing),
        "missing_action_examples": [f"{spec.split(spec.train).root}/{each.path}" for each in missing[:EXAMPLES]],
        "global": total(robots).entry(),
        "robot_stats": {robot: robots[robot].entry() for robot in sorted(robots)},
    }
    target = out or data_dir / str(space.normalisation.stats_file)
    write_json(target, content)
    return target, content


class TableReport(NamedTuple):
    table: Path
    split: str
    written: int
    skipped: int
    failures: tuple[Failure, ...]
    listed: Path


class RelativeReport(NamedTuple):
    tables: tuple[TableReport, ...]
    statistics: Path | None


def split_of(spec: DatasetSpec, table: Path) -> str:
    """The split that a table's name contains; training if it contains none."""
    words = "_" + re.sub(r"[.\-]", "_", table.name) + "_"
    found = (split for split in SPLIT_NAMES if f"_{split}_" in words or split in table.name)
    split = min(found, key=lambda split: f"_{split}_" not in words, default=spec.train)  # whole words first
    return split if split in spec.splits else spec.validation if split.endswith("val") else spec.train


def write_relative(config: RelativeConfig, settings: Settings) -> RelativeReport:
    """Write the relative action of every row and the statistics; existing files are kept.

    As published, statistics are of the first training table, or per robot type
    of the last with it.
    """
    spec = DATASETS.get(config.dataset)
    per_robot = spec.actions.normalisation.stats_file
    source = config.input_root or settings.path("DATA_DIR")
    out = config.output_root or source
    file = out / relative_stats_file(spec, config.frame)
    header = {"action_mode": "relative", "definition": actions.DEFINITIONS[config.frame], "dataset": spec.name}
    body: JsonDict = {}
    reports = []
    for path in config.csv:
        csv = path if path.exists() else settings.path("LARY_ROOT") / path
        table = read_table(spec, split_of(spec, csv), path=csv, data_dir=source, media=False)
        report, found = convert_table(config, table, out, file.parent)
        reports.append(report)
        if table.split != spec.train:
            continue
        if not found:
            raise LaryError(f"None of the actions of {csv} can be read, such as: {report.failures[0].reason}")
        if per_robot:
            body.setdefault("robot_stats", {}).update({name: found[name].entry() for name in found})
        else:
            body = body or total(found).entry()
    if body:
        write_json(file, header | body)
    return RelativeReport(tuple(reports), file if body else None)


def convert_table(
    config: RelativeConfig, table: SampleTable, out: Path, lists: Path
) -> tuple[TableReport, dict[str, Moments]]:
    space, written = table.spec.actions, list[Path]()
    arms = actions.poses(space, config.frame)
    target = out / actions.in_frame(table.spec.split(table.split).root, config.frame)

    def convert(position: int) -> Floats | Failure:
        place = table.shown(position, TARGET_COLUMN)
        path = inside(target, place)
        with suppress(MediaError):  # none, or a broken one, is made anew
            known = actions.read_numbers(path)
            if known.shape == (len(space.dims),):
                return known[None]
        try:
            moved = actions.read_relative(table.action_path(position), space, arms)
        except MediaError as error:
            return Failure(position, place, str(error))
        write_bytes(path, npy_bytes(moved[0]))
        written.append(path)
        return moved

    with locked(target), progress(len(table), table.path.name, "file") as bar:
        remove_torn(target, below=True)
        moved = in_threads(convert, range(len(table)), config.workers, batch=actions.BATCH, bar=bar)
        robots, failures = measure(table.robots(NO_ROBOT), moved)
    listed = lists / f"relative_failures_{table.path.stem}.csv"
    write_failures(listed, failures)
    skipped = len(table) - len(written) - len(failures)
    return TableReport(table.path, table.split, len(written), skipped, tuple(failures), listed), robots
