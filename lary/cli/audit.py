"""The commands ``lary data audit | pairs | atomic``: what is wrong with tables, and tables from trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from lary.cli.data import TABLES_DEFAULT, Tables, find_dataset, show_failures
from lary.types import UsageError

if TYPE_CHECKING:
    from lary.importers.motions import AtomicRule
    from lary.importers.trajectories import TrajectoryReport, TrajectoryRequest

Star = Parameter(name="*")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """An audit.

    Attributes:
        data_root: DATA_DIR.
        split: Split to audit; may be repeated. Default: those that are trained, validated and tested on.
        table: SPLIT=FILE, a table in place of the usual one; may be repeated.
        actions: Also open action files: dimensions that never change, pairs without motion.
        frames: Also decode and hash frames: equal or alike pictures under other names.
        distance: Bits of 256 in which the hashes of alike pictures differ at most, 0 to 7.
        still: Largest change of an action within a pair that counts as no motion.
        workers: Threads that read files.
        cache: File that keeps hashes of frames, so that a stopped audit goes on.
        json: File for the report as JSON.
        output: File for the report as text, which is printed as well.
    """

    data_root: Path | None = None
    split: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    table: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    actions: Annotated[bool, Parameter(negative=())] = False
    frames: Annotated[bool, Parameter(negative=())] = False
    distance: int = 4
    still: float = 1e-4
    workers: int = 4
    cache: Path | None = None
    json: Path | None = None
    output: Path | None = None


AUDIT_DEFAULT = AuditConfig()


def audit(dataset: str, config: Annotated[AuditConfig, Star] = AUDIT_DEFAULT, tables: Tables = TABLES_DEFAULT) -> int:
    """Find what the splits of a data set share, and what is odd in its tables; exit code 1 on a leak.

    Args:
        dataset: Data set key.
    """
    from lary.data.audit import AuditRequest
    from lary.data.audit import audit as run
    from lary.files import write_json, write_text

    settings = tables.settings(config.data_root)
    given = {}
    for entry in config.table:
        split, equals, file = entry.partition("=")
        if not equals or not file:
            raise UsageError(f"--table {entry}: expected SPLIT=FILE.")
        given[split] = Path(file)
    report = run(
        AuditRequest(
            spec=find_dataset(dataset),
            table_root=settings.path("LARY_ROOT"),
            # Without files to open, paths are only compared.
            data_dir=settings.path("DATA_DIR") if config.actions or config.frames else Path(),
            splits=config.split,
            tables=given,
            actions=config.actions,
            frames=config.frames,
            distance=config.distance,
            still=config.still,
            workers=config.workers,
            cache=config.cache,
        )
    )
    if config.json is not None:
        write_json(config.json, report.json())
    if config.output is not None:
        write_text(config.output, report.text() + "\n")
    print(report.text())
    return 1 if report.leaks else 0


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """The data set that trajectories become.

    Attributes:
        name: Key of the data set.
        test_size: Share of validation, by whole episodes; 0 for none.
        seed: Of the split.
        embodiment: Robot type to write into the tables.
        overwrite: Replace tables that are there.
    """

    name: str
    test_size: float = 0.25
    seed: int = 42
    embodiment: str | None = None
    overwrite: Annotated[bool, Parameter(negative=())] = False

    def request(self, source: Path, out: Path) -> TrajectoryRequest:
        """What the command's function takes."""
        from lary.importers.trajectories import TrajectoryRequest

        return TrajectoryRequest(
            source=source, out=out, name=self.name, share=self.test_size, seed=self.seed, embodiment=self.embodiment,
            overwrite=self.overwrite,
        )  # fmt: skip


def pairs(
    source: Path,
    out: Path,
    config: Annotated[TrajectoryConfig, Star],
    *,
    stride: int = 5,
    dims: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (),
) -> int:
    """Cut trajectories into image pairs and action chunks at a fixed stride.

    Args:
        source: Folder of episodes: folders with images or a video, and actions.npy with a row per frame.
        out: Folder to write to; it serves as LARY_ROOT, its data/ as DATA_DIR, and holds the record NAME.py.
        stride: Frames between source and target.
        dims: Names of the action dimensions; default: a0, a1 and so on.
    """
    from lary.importers.trajectories import write_pairs

    return told(write_pairs(config.request(source, out), stride, dims))


@dataclass(frozen=True, kw_only=True)
class AtomicColumns:
    """Where the hand's place stands in the actions.

    Attributes:
        position: Columns of actions.npy with the end effector's x, y and z.
        gripper: Column with the gripper's opening; -1 for none.
    """

    position: str = "0,1,2"
    gripper: int = 6


COLUMNS_DEFAULT = AtomicColumns()


@dataclass(frozen=True, kw_only=True)
class AtomicConfig:
    """How trajectories are cut into atomic motions.

    Attributes:
        threshold: Displacement from which an axis is part of the label, in the units of the positions.
        reach: Displacement along an axis that ends a motion.
        axes: Which of x, y and z point forward, left and up, and in which sense: such as +x,+y,+z.
        grip: Value between an open and a closed gripper; default: 0.5, of a LeRobot data set the middle of its range.
        gripper_high: Whether larger values are open or closed.
        deltas: Positions are displacements from frame to frame, which are summed up.
        settle: Frames that the gripper's motion takes.
    """

    threshold: float = 0.03
    reach: float = 0.08
    axes: str = "+x,+y,+z"
    grip: float | None = None
    gripper_high: Literal["open", "closed"] = "open"
    deltas: Annotated[bool, Parameter(negative=())] = False
    settle: int = 8

    def rule(self) -> AtomicRule:
        """What the functions take. Raises UsageError."""
        from lary.importers.motions import AtomicRule

        return AtomicRule(
            threshold=self.threshold,
            reach=self.reach,
            axes=tuple(part.strip() for part in self.axes.split(",")),
            grip=AtomicRule.grip if self.grip is None else self.grip,
            open_high=self.gripper_high == "open",
            deltas=self.deltas,
            settle=self.settle,
        )


ATOMIC_DEFAULT = AtomicConfig()


def atomic(
    source: Path,
    out: Path,
    config: Annotated[TrajectoryConfig, Star],
    rule: Annotated[AtomicConfig, Star] = ATOMIC_DEFAULT,
    columns: Annotated[AtomicColumns, Star] = COLUMNS_DEFAULT,
) -> int:
    """Cut trajectories into atomic motions: 26 directions, open and close, each in both directions of time.

    Args:
        source: Folder of episodes: folders with images or a video, and actions.npy with a row per frame.
        out: Folder to write to; it serves as LARY_ROOT, its data/ as DATA_DIR, and holds the record NAME.py.
    """
    from lary.importers.trajectories import write_atomic

    if not all(part.strip().isdecimal() for part in columns.position.split(",")):
        raise UsageError(f"--position {columns.position}: expected three columns, such as 0,1,2.")
    position = tuple(int(part) for part in columns.position.split(","))
    gripper = None if columns.gripper < 0 else columns.gripper
    return told(write_atomic(config.request(source, out), rule.rule(), position, gripper))


def told(report: TrajectoryReport) -> int:
    """Print what was written; the exit code."""
    show_failures(report.failures, "left out of the tables")
    for path, rows in report.rows.items():
        print(f"{path}: {rows} rows")
    print(f"{report.record}: use it with --plugin; {len(report.failures)} episodes failed")
    return 1 if report.failures else 0


COMMANDS = (audit, pairs, atomic)
"""What ``lary data`` takes from here."""
