"""The commands about data: ``lary data clip | stats | relative | check | split`` and ``lary indices``.

The scripts in ``utils/`` are the same commands under the benchmark's own names (`script`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from lary.cli.places import PLACES
from lary.registry import load_plugin
from lary.runtime import setup_logging
from lary.settings import Settings, load_settings
from lary.types import Failure, UsageError

if TYPE_CHECKING:
    from lary.data.spec import DatasetSpec

Star = Parameter(name="*")
SHOWN = 20
"""Failures that are printed; all of them stand in a file or report."""

data_app = App(name="data", help="Prepare, measure, check and split data.", help_format="plaintext")


@Parameter(name="*", group=PLACES)
@dataclass(frozen=True, kw_only=True)
class Tables:
    """Settings that these commands take.

    Attributes:
        lary_root: Folder whose data/ holds the tables (LARY_ROOT).
        config: Configuration file; default: lary.yaml in this folder.
        plugin: Python file that registers data sets; may be repeated.
    """

    lary_root: str | None = None
    config: Path | None = None
    plugin: Annotated[tuple[Path, ...], Parameter(negative=())] = ()

    def settings(self, data_dir: Path | None = None) -> Settings:
        """The resolved settings; `data_dir` is the command's own option for DATA_DIR."""
        for plugin in self.plugin:
            load_plugin(plugin)
        given = {"LARY_ROOT": self.lary_root, "DATA_DIR": None if data_dir is None else str(data_dir)}
        return load_settings(given, config=self.config)


TABLES_DEFAULT = Tables()


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Clips of SSv2 and EgoDex.

    Attributes:
        ssv2_root: Folder of the SSv2 videos; without it SSv2 is left out.
        egodex_root: Folder of the EgoDex videos; without it EgoDex is left out.
        output_dir: Folder to write to; default: DATA_DIR/classification.
        workers: Clips that are cut at the same time; at most four per core.
        metadata: Table that names the clips; may be repeated. Default: all human_1st tables.
        seed_ssv2: Table of SSv2 recordings; default: LARY_ROOT/data/seed_ssv2.csv.
        seed_egodex: Table of EgoDex recordings; default: LARY_ROOT/data/seed_egodex.csv.
        times: clock reads mm:ss; published reads only seconds, as the published tool does.
        backend: ffmpeg, pyav, or auto: the ffmpeg executable where there is one.
    """

    ssv2_root: Path | None = None
    egodex_root: Path | None = None
    output_dir: Path | None = None
    workers: int = 8
    metadata: Annotated[tuple[Path, ...], Parameter(negative=())] = ()
    seed_ssv2: Path | None = None
    seed_egodex: Path | None = None
    times: Literal["clock", "published"] = "clock"
    backend: Literal["auto", "ffmpeg", "pyav"] = "auto"


@data_app.command
def clip(config: Annotated[ClipConfig, Star] = ClipConfig(), tables: Tables = TABLES_DEFAULT) -> int:
    """Cut the clips of SSv2 and EgoDex out of their recordings; clips that are there are kept."""
    from lary.data.clips import CLIP_TABLES, SOURCES, ClipRequest, prepare_clips

    settings = tables.settings()
    folder = settings.path("LARY_ROOT") / "data"
    roots = {name: root for name, root in zip(SOURCES, (config.ssv2_root, config.egodex_root), strict=True) if root}
    if not roots:
        raise UsageError("Name --ssv2-root, --egodex-root or both: the folders of the recordings.")
    for name, root in roots.items():
        if not root.is_dir():
            raise UsageError(f"The {name} folder {root} does not exist.")
    seeds = (config.seed_ssv2 or folder / "seed_ssv2.csv", config.seed_egodex or folder / "seed_egodex.csv")
    named = config.metadata or tuple(path for name in CLIP_TABLES if (path := folder / name).is_file())
    if not named:
        raise UsageError(f"There is none of {', '.join(CLIP_TABLES)} in {folder}: set LARY_ROOT or pass --metadata.")
    report = prepare_clips(
        ClipRequest(
            roots=roots,
            seeds=dict(zip(SOURCES, seeds, strict=True)),
            tables=named,
            out=config.output_dir or settings.path("DATA_DIR") / "classification",
            workers=config.workers,
            times=config.times,
            backend=config.backend,
        )
    )
    show_failures(report.failures, f"all in {report.listed}")
    print(f"{report.wanted} clips asked for: {report.made} made, {report.kept} kept, {len(report.failures)} failed")
    return 1 if report.failures else 0


@data_app.command
def stats(
    *,
    dataset: str,
    data_root: Path | None = None,
    csv: Path | None = None,
    output: Path | None = None,
    workers: int = 8,
    merge: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    tables: Tables = TABLES_DEFAULT,
) -> int:
    """Measure the actions of a training split per robot type, for normalisation.

    Args:
        dataset: Data set key.
        data_root: DATA_DIR.
        csv: Table in place of that of the training split.
        output: File to write; default: the place where regress looks for it.
        workers: Threads.
        merge: Merge these statistics files of parts into --output, and read no actions; may be repeated.
    """
    from lary.data.splits import find_table
    from lary.data.statistics import merge_statistics, write_statistics

    settings = tables.settings(data_root)
    spec = find_dataset(dataset)
    if merge:
        if output is None:
            raise UsageError("Name with --output where the merged statistics go.")
        report = merge_statistics(spec, merge, output)
    else:
        table = find_table(spec, spec.train, settings.path("LARY_ROOT"), explicit=csv)
        report = write_statistics(spec, table, settings.path("DATA_DIR"), output, workers)
    for robot, count in report.robots.items():
        print(f"{robot}: {count} steps")
    print(f"{report.out}: {len(report.robots)} robot types, {report.missing} action files missing")
    return 1 if report.missing else 0


@data_app.command
def relative(
    *,
    dataset: str,
    csv: Annotated[tuple[Path, ...], Parameter(negative=())],
    input_root: Path | None = None,
    output_root: Path | None = None,
    workers: int = 8,
    frame: Literal["world", "local"] = "world",
    tables: Tables = TABLES_DEFAULT,
) -> int:
    """Write the motion between the images of every pair, and its statistics; files that are there are kept.

    Args:
        dataset: Data set key.
        csv: Table of pairs, of any split; may be repeated.
        input_root: DATA_DIR to read from.
        output_root: DATA_DIR to write to; default: the input's.
        workers: Threads.
        frame: world: last step minus first, as published; local: the last pose seen from the first one.
    """
    from lary.data.statistics import RelativeRequest, write_relative

    settings = tables.settings(input_root)
    source = settings.path("DATA_DIR")
    below = settings.path("LARY_ROOT")
    report = write_relative(
        RelativeRequest(
            spec=find_dataset(dataset),
            tables=tuple(path if path.exists() or path.is_absolute() else below / path for path in csv),
            input_root=source,
            output_root=output_root or source,
            frame=frame,
            workers=workers,
        )
    )
    for each in report.tables:
        show_failures(each.failures, f"all in {each.listed}")
        failed = len(each.failures)
        print(f"{each.table} ({each.split}): {each.written} written, {each.skipped} there before, {failed} failed")
    print(f"Statistics: {report.statistics or 'none, since no training table was given'}")
    return 1 if any(each.failures for each in report.tables) else 0


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """The integrity checker.

    Attributes:
        data_root: DATA_DIR.
        groups: Names of the report (CALVIN) or data set keys; default: the published ones and all with a table.
        output: Text report; the same as JSON stands beside it.
        workers: Processes, at most four per core.
        timeout: Seconds per file.
        depth: decode reads all of every file; headers looks at what the published checker looks at.
        manifest: File of digests: known files are compared with it and not decoded, new whole ones are added.
        restart: Forget what an interrupted run found.
    """

    data_root: Path | None = None
    groups: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = ()
    output: Path = Path("dataset_integrity_report.txt")
    workers: int = 64
    timeout: float = 5.0
    depth: Literal["decode", "headers"] = "decode"
    manifest: Path | None = None
    restart: Annotated[bool, Parameter(negative=())] = False


@data_app.command
def check(config: Annotated[CheckConfig, Star] = CheckConfig(), tables: Tables = TABLES_DEFAULT) -> int:
    """Check that every file the tables name is there, whole, and of the shape that the data set has."""
    from lary.data.verify import VerifyRequest, verify

    settings = tables.settings(config.data_root)
    report = verify(
        VerifyRequest(
            data_root=settings.path("DATA_DIR"),
            table_root=settings.path("LARY_ROOT"),
            groups=config.groups,
            output=config.output,
            workers=config.workers,
            timeout=config.timeout,
            depth=config.depth,
            manifest=config.manifest,
            restart=config.restart,
        )
    )
    compared = f", {report.by_manifest} by the manifest" if config.manifest is not None else ""
    print(f"{report.files} files checked{compared}: {report.issues} issues, see {report.output} and {report.json}")
    return 1 if report.issues else 0


@data_app.command
def split(
    table: Path,
    *,
    by: Literal["row", "video", "episode", "segment"] = "row",
    dataset: str | None = None,
    test_size: float | None = None,
    stratify: str | None = None,
    seed: int = 42,
    train: Path | None = None,
    val: Path | None = None,
    tables: Tables = TABLES_DEFAULT,
) -> int:
    """Split a table into training and validation.

    Args:
        table: CSV of all samples.
        by: What stays together: row as published (neighbours get into both parts), video, episode or segment.
        dataset: Data set key, whose record names videos and episodes.
        test_size: Share of validation; default: the paper's 0.3 for clips, 0.25 for image pairs.
        stratify: Column whose values keep their shares; default: the class of a clip or of a labelled pair.
        seed: Of the shuffle.
        train: CSV to write; default: the table's name with train_ in place of all_.
        val: CSV to write; default: likewise with val_.
    """
    from lary.data.splits import SplitRequest, write_split

    tables.settings()
    report = write_split(
        SplitRequest(
            table=table,
            by=by,
            spec=None if dataset is None else find_dataset(dataset),
            share=test_size,
            stratify=stratify,
            seed=seed,
            train=train,
            val=val,
        )
    )
    for path, rows, groups in zip((report.train, report.val), report.rows, report.groups, strict=True):
        print(f"{path}: {rows} rows" + ("" if by == "row" else f" of {groups} {by}s"))
    return 0


@dataclass(frozen=True, kw_only=True)
class IndicesConfig:
    """Sampling of clips.

    Attributes:
        data_root: DATA_DIR; paths start from its classification folder.
        root: Folder that the table's paths start from, in place of DATA_DIR/classification.
        out: Table to write; default: TABLE_indices.csv beside the table.
        method: motion picks frames where something moves (MGSampler), uniform at equal distances.
        frames: Indices per clip.
        cache: Folder that keeps the motion of clips by the content of their files.
        workers: Threads.
    """

    data_root: Path | None = None
    root: Path | None = None
    out: Path | None = None
    method: Literal["motion", "uniform"] = "motion"
    frames: int = 9
    cache: Path | None = None
    workers: int = 4


def indices(
    table: Path, config: Annotated[IndicesConfig, Star] = IndicesConfig(), tables: Tables = TABLES_DEFAULT
) -> int:
    """Choose the frames of each clip of a table: write its column sample_indices.

    Args:
        table: CSV with the column video_path.
    """
    from lary.data.sampling import IndexRequest, write_indices

    settings = tables.settings(config.data_root)
    report = write_indices(
        IndexRequest(
            table=table,
            root=config.root or settings.path("DATA_DIR") / "classification",
            out=config.out,
            method=config.method,
            frames=config.frames,
            cache=config.cache,
            workers=config.workers,
        )
    )
    show_failures(report.failures, "left out of the table")
    print(f"{report.out}: {report.rows} rows, {len(report.failures)} failed")
    return 1 if report.failures else 0


def find_dataset(name: str) -> DatasetSpec:
    """The record of a data set. Raises UsageError with a suggestion if there is none."""
    from lary.data.spec import DATASETS

    return DATASETS.get(name)


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
