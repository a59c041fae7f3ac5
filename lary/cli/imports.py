"""The commands that bring data in: ``lary data download | import-lerobot | import-videos``, and ``lary datasets``.

Plain functions: the command line mounts them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from lary.cli.audit import ATOMIC_DEFAULT, AtomicConfig
from lary.cli.data import TABLES_DEFAULT, Star, Tables, show_failures
from lary.types import UsageError

if TYPE_CHECKING:
    from lary.importers.lerobot_atomic import AtomicRequest

Flag = Parameter(negative=())


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """What to download.

    Attributes:
        include: Data set key; may be repeated. Default: all published ones.
        files: Only files whose path matches this shell pattern; may be repeated.
        repo: Repository, owner/name; default: that of the records.
        source: huggingface or modelscope.
        revision: Branch, tag or commit; default: the one fetched before, or else the newest.
        data_dir: Folder to write to (DATA_DIR).
        accept_licenses: Accept the terms of every source, for scripts.
        dry_run: List the files and their sizes, and fetch nothing.
        keep_archives: Keep archives once they are unpacked.
    """

    include: Annotated[tuple[str, ...], Flag] = ()
    files: Annotated[tuple[str, ...], Flag] = ()
    repo: str | None = None
    source: Literal["huggingface", "modelscope"] = "huggingface"
    revision: str | None = None
    data_dir: Path | None = None
    accept_licenses: Annotated[bool, Flag] = False
    dry_run: Annotated[bool, Flag] = False
    keep_archives: Annotated[bool, Flag] = False


def download(config: Annotated[DownloadConfig, Star] = DownloadConfig(), tables: Tables = TABLES_DEFAULT) -> int:
    """Download published data sets: terms first, then files, checked and unpacked into the benchmark's layout."""
    settings = tables.settings(config.data_dir)
    from lary.data.download import DownloadRequest, accept, choose, downloadable, in_words
    from lary.data.download import download as run
    from lary.data.hubs import open_hub

    keys = tuple(key for part in config.include for key in part.split(",") if key)
    specs = downloadable(keys)
    repositories = {config.repo} if config.repo else {spec.repository for spec in specs}
    if len(repositories) != 1:
        raise UsageError(f"These data sets lie in several repositories, {', '.join(sorted(map(str, repositories)))}: "
                         "download them one by one.")  # fmt: skip
    repository = str(repositories.pop())
    hub = open_hub(config.source, repository)
    request = DownloadRequest(
        specs=specs,
        data_dir=settings.path("DATA_DIR"),
        tables=settings.path("LARY_ROOT") / "data",
        source=config.source,
        repository=repository,
        revision=config.revision,
        patterns=config.files,
        whole=not keys,
        keep_archives=config.keep_archives,
    )
    if config.dry_run:
        revision = hub.resolve(config.revision)
        chosen = choose(hub.files(revision), request)
        for file in chosen:
            print(f"{in_words(file.size):>10}  {file.path}")
        print(f"{repository} at {revision}: {len(chosen)} files, {in_words(sum(file.size for file in chosen))}")
        return 0
    accept(specs, config.accept_licenses, input if sys.stdin is not None and sys.stdin.isatty() else None)
    report = run(request, hub)
    show_failures(report.failures, "start the same command again to go on")
    print(f"{repository} at {report.revision}: {report.fetched} files fetched, {report.kept} were there, "
          f"{report.unpacked} archives unpacked, {len(report.failures)} failed")  # fmt: skip
    return 1 if report.failures else 0


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig:
    """How to import a LeRobot data set.

    Attributes:
        name: Key of the new data set; default: the name of the source.
        camera: Camera; default: the first that is not on a wrist.
        actions: Feature to decode, such as action or observation.state; may be repeated. Default: action.
        stride: Frames between source and target image; default: a third of a second.
        labels: atomic makes labels of atomic motions from the actions, in place of action chunks.
        position: Names or numbers of the values with the end effector's x, y and z; default: those of these names.
        gripper: Name or number of the value with the gripper's opening, or none; default: found by its name.
        robot: Robot type; default: the data set's.
        val_share: Share of the episodes that validate, where the data set declares none.
        seed: Seed of their choice.
        episodes: Only the first episodes.
        licence: Licence; default: that of the data set's card.
        revision: Revision of a data set on the hub.
        data_dir: Folder for images and actions (DATA_DIR).
        preview: Show what would be imported, and write nothing.
        overwrite: Replace an import of the same name.
    """

    name: str | None = None
    camera: str | None = None
    actions: Annotated[tuple[str, ...], Flag] = ()
    stride: int | None = None
    labels: Literal["atomic"] | None = None
    position: str | None = None
    gripper: str | None = None
    robot: str | None = None
    val_share: float = 0.25
    seed: int = 0
    episodes: int | None = None
    licence: str | None = None
    revision: str | None = None
    data_dir: Path | None = None
    preview: Annotated[bool, Flag] = False
    overwrite: Annotated[bool, Flag] = False


def import_lerobot(
    source: str,
    config: Annotated[LeRobotConfig, Star] = LeRobotConfig(),
    rule: Annotated[AtomicConfig, Star] = ATOMIC_DEFAULT,
    tables: Tables = TABLES_DEFAULT,
) -> int:
    """Import a LeRobot data set (v2.0, v2.1, v3.0) as image pairs with action chunks or labels, split by episode.

    Args:
        source: Folder, or a data set on the hub, owner/name.
    """
    settings = tables.settings(config.data_dir)
    from lary.importers.lerobot import import_lerobot as run
    from lary.importers.lerobot_plan import LeRobotRequest, make_plan, preview
    from lary.importers.lerobot_reader import LeRobot
    from lary.importers.lerobot_source import fetch_content, fetch_tables, find_source

    folder, revision = find_source(source, config.revision)
    request = LeRobotRequest(
        source=folder,
        name=config.name or Path(source).name,
        data_dir=settings.path("DATA_DIR"),
        tables=settings.path("LARY_ROOT") / "data",
        camera=config.camera,
        actions=config.actions,
        stride=config.stride,
        atomic=atomic_request(config, rule),
        robot=config.robot,
        share=config.val_share,
        seed=config.seed,
        episodes=config.episodes,
        licence=config.licence,
        origin=source if revision else "",
        overwrite=config.overwrite,
    )
    data = LeRobot(folder)
    if revision and request.atomic is not None:
        fetch_tables(source, revision, data, data.episodes[: config.episodes])
    plan = make_plan(data, request)
    print(preview(data, plan, request))
    if config.preview:
        return 0
    if revision:
        fetch_content(source, revision, data, plan)
    report = run(data, plan, request)
    show_failures(report.failures, f"all in {request.tables / f'{request.name}_import_failures.csv'}")
    counts = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    print(
        f"{request.name}: {counts} pairs, {len(report.failures)} episodes failed; use it with --plugin {report.plugin}"
    )
    return 1 if report.failures else 0


def atomic_request(config: LeRobotConfig, rule: AtomicConfig) -> AtomicRequest | None:
    """What labels were asked for. Raises UsageError for options of labels without them."""
    if config.labels is None:
        if rule != ATOMIC_DEFAULT or config.position is not None or config.gripper is not None:
            raise UsageError(
                "--position, --gripper, --threshold and so on say how labels are made: add --labels atomic."
            )
        return None
    from lary.importers.lerobot_atomic import AtomicRequest

    return AtomicRequest(
        rule=rule.rule(), position=config.position, gripper=config.gripper, measure_grip=rule.grip is None
    )


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """How to import videos.

    Attributes:
        labels: CSV with a column of paths below the folder and a column of labels; it may have the columns split
            (train or val), embodiment and sample_indices.
        name: Key of the new data set; default: the folder's name.
        video_column: Column of paths; default: video_path, video, path, file or filename.
        label_column: Column of labels; default: action, label, class or verb.
        method: How frames are chosen: motion, or uniform.
        val_share: Share of the videos that validate, where the table doesn't say.
        seed: Seed of their choice.
        licence: Licence of the videos.
        commercial: The licence allows commercial use.
        workers: Videos that are read at the same time.
        data_dir: Folder for the videos (DATA_DIR).
    """

    labels: Path
    name: str | None = None
    video_column: str | None = None
    label_column: str | None = None
    method: Literal["motion", "uniform"] = "motion"
    val_share: float = 0.3
    seed: int = 0
    licence: str = "not stated"
    commercial: Annotated[bool, Flag] = False
    workers: int = 4
    data_dir: Path | None = None


def import_videos(folder: Path, config: Annotated[VideosConfig, Star], tables: Tables = TABLES_DEFAULT) -> int:
    """Import a folder of videos with a table of labels as clips, split by video.

    Args:
        folder: Folder of the videos.
    """
    settings = tables.settings(config.data_dir)
    from lary.importers.videos import VideosRequest
    from lary.importers.videos import import_videos as run

    request = VideosRequest(
        folder=folder,
        table=config.labels,
        name=config.name or folder.resolve().name,
        data_dir=settings.path("DATA_DIR"),
        tables=settings.path("LARY_ROOT") / "data",
        video_column=config.video_column,
        label_column=config.label_column,
        method=config.method,
        share=config.val_share,
        seed=config.seed,
        licence=config.licence,
        commercial=config.commercial,
        workers=config.workers,
    )
    report = run(request)
    show_failures(report.failures, f"all in {request.tables / f'{request.name}_import_failures.csv'}")
    counts = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    print(f"{request.name}: {counts} clips, {len(report.failures)} failed; use it with --plugin {report.plugin}")
    return 1 if report.failures else 0


def datasets(key: str | None = None, *, tables: Tables = TABLES_DEFAULT) -> int:
    """List the data sets with their terms, or show the record of one and how to cite it.

    Args:
        key: Data set to show.
    """
    tables.settings()
    from lary.data.spec import DATASETS, dataset_text, datasets_table

    print(dataset_text(DATASETS.get(key)) if key else datasets_table())
    return 0
