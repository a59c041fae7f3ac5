"""The commands about data: ``lary data ...`` and ``lary indices``.

The scripts in ``utils/`` are the same commands under the benchmark's own names (`script`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from lary.configs import Paths
from lary.data.configs import (
    AtomicConfig,
    AuditConfig,
    CheckConfig,
    ClipConfig,
    DownloadConfig,
    IndicesConfig,
    LeRobotConfig,
    RelativeConfig,
    SplitConfig,
    StatsConfig,
    TrajectoryConfig,
    VideosConfig,
)
from lary.runtime import setup_logging
from lary.settings import Settings
from lary.types import Failure

if TYPE_CHECKING:
    from lary.importers.episodes import ImportReport

Star = Parameter(name="*")
SHOWN = 20
"""Failures that are printed; a file or report lists all of them."""

data_app = App(
    name="data",
    help="Download, import, prepare, check, audit and split data.",
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)


@data_app.command
def clip(config: Annotated[ClipConfig, Star] = ClipConfig(), paths: Paths = Paths()) -> int:
    """Cut the clips of SSv2 and EgoDex out of their recordings; clips that are there are kept."""
    settings = paths.settings()
    from lary.data.clips import prepare_clips

    report = prepare_clips(config, settings)
    show_failures(report.failures, f"all in {report.listed}")
    print(f"{report.wanted} clips asked for: {report.made} made, {report.kept} kept, {len(report.failures)} failed")
    return 1 if report.failures else 0


@data_app.command
def stats(config: Annotated[StatsConfig, Star], paths: Paths = Paths()) -> int:
    """Measure the actions of a training split per robot type, for normalisation."""
    settings = paths.settings()
    from lary.data.statistics import write_statistics

    report = write_statistics(config, settings)
    for robot, count in report.robots.items():
        print(f"{robot}: {count} steps")
    print(f"{report.out}: {len(report.robots)} robot types, {report.missing} action files missing")
    return 1 if report.missing else 0


@data_app.command
def relative(config: Annotated[RelativeConfig, Star], paths: Paths = Paths()) -> int:
    """Write the motion between the images of every pair, and its statistics; files that are there are kept."""
    settings = paths.settings()
    from lary.data.statistics import write_relative

    report = write_relative(config, settings)
    for each in report.tables:
        show_failures(each.failures, f"all in {each.listed}")
        failed = len(each.failures)
        print(f"{each.table} ({each.split}): {each.written} written, {each.skipped} there before, {failed} failed")
    print(f"Statistics: {report.statistics or 'none, since no training table was given'}")
    return 1 if any(each.failures for each in report.tables) else 0


@data_app.command
def check(config: Annotated[CheckConfig, Star] = CheckConfig(), paths: Paths = Paths()) -> int:
    """Check that every file the tables name is there, whole, and of the shape that the data set has."""
    settings = paths.settings()
    from lary.data.verify import verify

    report, listed = verify(config, settings), config.output.with_suffix(".json")
    compared = f", {report.by_manifest} by the manifest" if config.manifest is not None else ""
    print(f"{report.files} files checked{compared}: {report.issues} issues, see {report.output} and {listed}")
    return 1 if report.issues else 0


@data_app.command
def split(table: Path, *, config: Annotated[SplitConfig, Star] = SplitConfig(), paths: Paths = Paths()) -> int:
    """Split a table into training and validation.

    Args:
        table: CSV of all samples.
    """
    paths.settings()
    from lary.data.splits import write_split

    report = write_split(table, config)
    for path, rows, groups in zip((report.train, report.val), report.rows, report.groups, strict=True):
        print(f"{path}: {rows} rows" + ("" if config.by == "row" else f" of {groups} {config.by}s"))
    return 0


def indices(table: Path, config: Annotated[IndicesConfig, Star] = IndicesConfig(), paths: Paths = Paths()) -> int:
    """Choose the frames of each clip of a table: write its column sample_indices.

    Args:
        table: CSV with the column video_path.
    """
    settings = paths.settings()
    from lary.data.sampling import write_indices

    report = write_indices(table, config, settings)
    show_failures(report.failures, "left out of the table")
    print(f"{report.out}: {report.rows} rows, {len(report.failures)} failed")
    return 1 if report.failures else 0


@data_app.command
def audit(dataset: str, config: Annotated[AuditConfig, Star] = AuditConfig(), paths: Paths = Paths()) -> int:
    """Find what the splits of a data set share, and what is odd in its tables; exit code 1 on a leak.

    Args:
        dataset: Data set key.
    """
    settings = paths.settings()
    from lary.data.audit import audit as run
    from lary.data.spec import DATASETS
    from lary.files import write_json, write_text

    report = run(DATASETS.get(dataset), config, settings)
    if config.json is not None:
        write_json(config.json, report.json())
    if config.output is not None:
        write_text(config.output, report.text() + "\n")
    print(report.text())
    return 1 if report.leaks else 0


@data_app.command
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
    from lary.importers.episodes import PairCut
    from lary.importers.trajectories import import_trajectories

    return show_trajectories(out, config.name, import_trajectories(source, out, config, PairCut(stride), dims))


@data_app.command
def atomic(source: Path, out: Path, config: Annotated[AtomicConfig, Star]) -> int:
    """Cut trajectories into atomic motions: 26 directions, open and close, each in both directions of time.

    Args:
        source: Folder of episodes: folders with images or a video, and actions.npy with a row per frame.
        out: Folder to write to; it serves as LARY_ROOT, its data/ as DATA_DIR, and holds the record NAME.py.
    """
    from lary.importers.trajectories import columns_cut, import_trajectories

    return show_trajectories(out, config.name, import_trajectories(source, out, config, columns_cut(config)))


def show_trajectories(out: Path, name: str, report: ImportReport) -> int:
    """Print what was written; the exit code."""
    from lary.importers.trajectories import table_path

    show_failures(report.failures, "left out of the tables")
    for split, rows in report.rows.items():
        print(f"{table_path(out, name, split)}: {rows} rows")
    print(f"{report.plugin}: use it with --plugin; {len(report.failures)} episodes failed")
    return 1 if report.failures else 0


@data_app.command
def download(config: Annotated[DownloadConfig, Star] = DownloadConfig(), paths: Paths = Paths()) -> int:
    """Download published data sets: terms first, then files, checked and unpacked into the benchmark's layout."""
    settings = paths.settings()
    from lary.data.fetch import download as run
    from lary.data.fetch import in_words

    report = run(config, settings, input if sys.stdin is not None and sys.stdin.isatty() else None)
    if config.dry_run:
        for file in report.files:
            print(f"{in_words(file.size):>10}  {file.path}")
        size = in_words(sum(file.size for file in report.files))
        print(f"{report.repository} at {report.revision}: {len(report.files)} files, {size}")
        return 0
    show_failures(report.failures, "start the same command again to resume")
    print(f"{report.repository} at {report.revision}: {report.fetched} files fetched, {report.kept} were there, "
          f"{report.unpacked} archives unpacked, {len(report.failures)} failed")  # fmt: skip
    return 1 if report.failures else 0


@data_app.command
def import_lerobot(
    source: str, config: Annotated[LeRobotConfig, Star] = LeRobotConfig(), paths: Paths = Paths()
) -> int:
    """Import a LeRobot data set (v2.0, v2.1, v3.0) as image pairs with action chunks or labels, split by episode.

    Args:
        source: Folder, or a data set on the hub, owner/name.
    """
    settings = paths.settings()
    from lary.importers.lerobot import import_lerobot as run
    from lary.importers.lerobot_plan import plan_lerobot
    from lary.importers.lerobot_reader import open_lerobot

    plan = plan_lerobot(open_lerobot(source, config.revision), config, config.name or Path(source).name, settings)
    print(plan.preview())
    return 0 if config.preview else show_import(run(plan), plan.name, settings, "pairs", "episodes ")


@data_app.command
def import_videos(folder: Path, config: Annotated[VideosConfig, Star], paths: Paths = Paths()) -> int:
    """Import a folder of videos with a table of labels as clips, split by video.

    Args:
        folder: Folder of the videos.
    """
    settings = paths.settings()
    from lary.importers.videos import import_videos as run

    return show_import(run(folder, config, settings), config.name or folder.resolve().name, settings, "clips", "")


def show_import(report: ImportReport, name: str, settings: Settings, what: str, of: str) -> int:
    """Print what was imported; the exit code."""
    show_failures(report.failures, f"all in {settings.path('LARY_ROOT') / 'data' / f'{name}_import_failures.csv'}")
    counts = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    failed = f"{len(report.failures)} {of}failed"
    print(f"{name}: {counts} {what}, {failed}; use it with --plugin {report.plugin}")
    return 1 if report.failures else 0


def show_failures(failures: Sequence[Failure], where: str) -> None:
    """Print the first failures."""
    for failure in failures[:SHOWN]:
        print(f"failed: {failure.path}: {failure.reason}")
    if len(failures) > SHOWN:
        print(f"and {len(failures) - SHOWN} more failures, {where}")


def script(command: str) -> None:
    """Entry point of a script in ``utils/``: one command with the arguments of the process."""
    from lary.cli.app import guarded

    setup_logging()
    tokens = [command, *sys.argv[1:]]
    code = guarded(lambda: data_app(tokens, exit_on_error=False, print_error=True, result_action="return_value"))
    sys.exit(code if isinstance(code, int) else 0)
