"""The commands about data: ``lary data ...`` and ``lary indices``.

The scripts in ``utils/`` are four of them under the benchmark's own names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from lary.configs import Paths, add_help
from lary.data import configs
from lary.data.splits import offer_folds
from lary.types import Failure

if TYPE_CHECKING:
    from lary.importers.records import ImportReport

SHOWN = 20
"""Failures that are printed; a file or report lists all of them."""


def show_failures(failures: Sequence[Failure], where: str) -> int:
    for failure in failures[:SHOWN]:
        print(f"failed: {failure.path}: {failure.reason}")
    if len(failures) > SHOWN:
        print(f"and {len(failures) - SHOWN} more failures, {where}")
    return 1 if failures else 0


def clip(config: configs.ClipConfig = configs.ClipConfig(), paths: Paths = Paths()) -> int:
    report = paths.call("lary.data.clips:prepare_clips", config)
    code = show_failures(report.failures, f"all in {report.listed}")
    print(f"{report.wanted} clips asked for: {report.made} made, {report.kept} kept, {len(report.failures)} failed")
    return code


def stats(config: configs.StatsConfig, paths: Paths = Paths()) -> int:
    out, found = paths.call("lary.data.normalisation:write_statistics", config)
    robots = found["robot_stats"]
    missing = found["missing_actions"]
    for robot, entry in robots.items():
        print(f"{robot}: {entry['count']} steps")
    print(f"{out}: {len(robots)} robot types, {missing} action files missing")
    return 1 if missing else 0


def relative(config: configs.RelativeConfig, paths: Paths = Paths()) -> int:
    report = paths.call("lary.data.normalisation:write_relative", config)
    code = 0
    for each in report.tables:
        code |= show_failures(each.failures, f"all in {each.listed}")
        failed = len(each.failures)
        print(f"{each.table} ({each.split}): {each.written} written, {each.skipped} there before, {failed} failed")
    print(f"Statistics: {report.statistics or 'none, since no training table was given'}")
    return code


def check(config: configs.CheckConfig = configs.CheckConfig(), paths: Paths = Paths()) -> int:
    report = paths.call("lary.data.verify:verify", config)
    listed = config.output.with_suffix(".json")
    compared = f", {report.by_manifest} by the manifest" if config.manifest is not None else ""
    print(f"{report.files} files checked{compared}: {report.issues} issues, see {report.output} and {listed}")
    return 1 if report.issues else 0


def split(table: Path, *, config: configs.SplitConfig = configs.SplitConfig(), paths: Paths = Paths()) -> None:
    paths.settings()
    from lary.data.splits import write_split

    report = write_split(table, config)
    for path, rows, groups in zip((report.train, report.val), report.rows, report.groups, strict=True):
        print(f"{path}: {rows} rows" + ("" if config.by == "row" else f" of {groups} {config.by}s"))


def indices(table: Path, config: configs.IndicesConfig = configs.IndicesConfig(), paths: Paths = Paths()) -> int:
    report = paths.call("lary.data.sampling:write_indices", table, config)
    code = show_failures(report.failures, "left out of the table")
    print(f"{report.out}: {report.rows} rows, {len(report.failures)} failed")
    return code


def audit(dataset: str, config: configs.AuditConfig = configs.AuditConfig(), paths: Paths = Paths()) -> int:
    from lary.data.audit import audit as work
    from lary.data.spec import DATASETS
    from lary.files import write_json, write_text

    settings = paths.settings()  # runs the plug-ins, one of which may register the data set
    report = work(DATASETS.get(dataset), config, settings)
    if config.json is not None:
        write_json(config.json, report.json())
    if config.output is not None:
        write_text(config.output, report.text() + "\n")
    print(report.text())
    return 1 if report.leaks else 0


def pairs(
    source: Path,
    out: Path,
    config: configs.TrajectoryConfig,
    *,
    stride: int = 5,
    dims: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
) -> int:
    from lary.importers.episodes import PairCut
    from lary.importers.plain import import_trajectories

    return show_import(import_trajectories(source, out, config, PairCut(stride), dims), config.name, out)


def atomic(source: Path, out: Path, config: configs.AtomicConfig) -> int:
    from lary.importers.plain import columns_cut, import_trajectories

    return show_import(import_trajectories(source, out, config, columns_cut(config)), config.name, out)


def download(config: configs.DownloadConfig = configs.DownloadConfig(), paths: Paths = Paths()) -> int:
    ask = input if sys.stdin is not None and sys.stdin.isatty() else None
    report = paths.call("lary.data.fetch:download", config, ask=ask)
    origin = f"{report.repository} at {report.revision}"
    if config.dry_run:
        for file in report.files:
            print(f"{file.size / 1e9:10.3f} GB  {file.path}")
        print(f"{origin}: {len(report.files)} files, {sum(file.size for file in report.files) / 1e9:.3f} GB")
        return 0
    code = show_failures(report.failures, "start the same command again to resume")
    print(
        f"{origin}: {report.fetched} files fetched, {report.kept} were there, {report.unpacked} archives unpacked, "
        f"{len(report.failures)} failed"
    )
    return code


def import_lerobot(source: str, config: configs.LeRobotConfig = configs.LeRobotConfig(), paths: Paths = Paths()) -> int:
    settings = paths.settings()
    from lary.importers.lerobot import LeRobotImport
    from lary.importers.lerobot_reader import open_lerobot

    plan = LeRobotImport(open_lerobot(source, config.revision), config, config.name or Path(source).name, settings)
    print(plan.preview())
    return 0 if config.preview else show_import(plan.run(), plan.name, settings.path("LARY_ROOT"))


def import_videos(folder: Path, config: configs.VideosConfig, paths: Paths = Paths()) -> int:
    settings = paths.settings()
    from lary.importers.plain import import_videos as work

    name = config.name or folder.resolve().name
    root = settings.path("LARY_ROOT")
    return show_import(work(folder, config, settings), name, root, "clips", "")


def show_import(report: ImportReport, name: str, root: Path, what: str = "pairs", of: str = "episodes ") -> int:
    code = show_failures(report.failures, f"all in {root / 'data' / f'{name}_import_failures.csv'}")
    counts = ", ".join(f"{count} {part}" for part, count in report.rows.items())
    print(
        f"{name}: {counts} {what}, {len(report.failures)} {of}failed; use it with --dataset {name} --lary-root {root}"
    )
    if offer := offer_folds(report.validating):
        print(offer)
    return code


add_help(globals())
