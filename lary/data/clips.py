"""Clips of SSv2 and EgoDex: which ones the tables name, and cutting and reversing them out of their recordings.

Both sources may not be redistributed, so the benchmark ships seed tables (``seed_ssv2.csv``, ``seed_egodex.csv``)
from which users cut the clips: the column ``video_path`` and, in ``seed_output``, lines such as ``0.5 - 2.0 pick up``.
A clip's name holds the row of its seed table and the line; ``_rev`` marks the reversed clip.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from lary.data.configs import ClipConfig
from lary.data.cutting import cut_forward, cut_reversed, find_ffmpeg
from lary.data.tables import read_csv
from lary.files import inside, write_failures
from lary.runtime import log, progress
from lary.settings import Settings
from lary.types import Failure, MediaError, UsageError

Times = Literal["clock", "published"]

NUMBER = r"(\d+(?:\.\d*)?)"
SECONDS = re.compile(rf"{NUMBER}\s*-\s*{NUMBER}")
CLOCK_TIME = r"((?:\d+:)?\d{1,2}:\d{2}(?:\.\d*)?)"
CLOCK = re.compile(rf"{CLOCK_TIME}\s*-\s*{CLOCK_TIME}")
"""``mm:ss`` or ``h:mm:ss``, with decimals."""

UNPACKED = "unzipped/"
"""EgoDex paths of the seed table are those behind this folder."""

SUFFIX, REVERSED = ".mp4", "_rev"
CLIP_TABLES = ("human_1st_metadata_train.csv", "human_1st_metadata_val.csv")
"""Tables that name the clips."""

SOURCES = ("SSv2", "EgoDex")
"""Values of the column ``dataset``, and first folders of the clips."""


class Span(NamedTuple):
    """A part of a recording: the line that names it (from 0), its start and duration in seconds."""

    line: int
    start: float
    duration: float


class Task(NamedTuple):
    """A clip to make: recording, start and duration in seconds, file, and whether time runs backwards."""

    source: Path
    start: float
    duration: float
    out: Path
    reverse: bool

    @property
    def forward(self) -> Path:
        """The file of the forward clip."""
        return self.out.with_name(self.out.name.removesuffix(REVERSED + SUFFIX) + SUFFIX) if self.reverse else self.out


def parse_clips(value: object, times: Times = "clock") -> list[Span]:
    """The spans of a cell of the seed table, in the order of its lines; lines without a usable span are skipped.

    The first range of a line counts. Under ``clock``, a line whose times have colons is read as minutes and seconds;
    ``published`` reads the numbers at the colons' edges, as the published tool does (``00:01 - 00:05`` gives nothing).
    """
    found = []
    for number, line in enumerate(str(value).replace("\\n", "\n").strip().split("\n")):
        clock = CLOCK.search(line) if times == "clock" else None
        match = clock or SECONDS.search(line)
        if match is None:
            continue
        start, end = (seconds(text) for text in match.groups())
        duration = round(end - start, 2)
        if duration > 0:
            found.append(Span(number, start, duration))
    return found


def seconds(text: str) -> float:
    """Seconds of ``12.5``, ``1:02.5`` or ``1:00:02``."""
    return functools.reduce(lambda total, part: total * 60 + float(part), text.split(":"), 0.0)


def ssv2_tasks(
    seeds: Iterable[Sequence[str]], root: Path, out: Path, wanted: frozenset[str], times: Times = "clock"
) -> list[Task]:
    """The clips among `wanted` that seed rows (video_path, seed_output) give: ``SSv2/<row>_<line>[_rev].mp4``."""
    tasks = []
    for row, (video, text) in enumerate(seeds):
        name = PurePosixPath(video.replace("\\", "/")).name
        tasks += named_tasks(f"{SOURCES[0]}/{row}", name, text, root, out, wanted, times)
    return tasks


def egodex_tasks(
    seeds: Iterable[Sequence[str]], root: Path, out: Path, wanted: frozenset[str], times: Times = "clock"
) -> list[Task]:
    """Likewise ``EgoDex/<video>/<row>_<line>[_rev].mp4``."""
    tasks = []
    for row, (video, text) in enumerate(seeds):
        path = video.replace("\\", "/")
        inner = path.split(UNPACKED, 1)[1] if UNPACKED in path else PurePosixPath(path).name
        tasks += named_tasks(f"{SOURCES[1]}/{PurePosixPath(path).stem}/{row}", inner, text, root, out, wanted, times)
    return tasks


def named_tasks(
    stem: str, video: str, text: str, root: Path, out: Path, wanted: frozenset[str], times: Times
) -> list[Task]:
    """The clips of one seed row, forward before reversed."""
    tasks = []
    for span in parse_clips(text, times):
        for ending, reverse in ((SUFFIX, False), (REVERSED + SUFFIX, True)):
            name = f"{stem}_{span.line}{ending}"
            if name in wanted:
                # Both come from tables, which are untrusted: neither may lead out of its folder.
                source, target = inside(root, video), inside(out, name)
                tasks.append(Task(source, span.start, span.duration, target, reverse))
    return tasks


@dataclass(frozen=True)
class ClipReport:
    """What was done: clips asked for, made now, and there before, the failures, and the file that lists them."""

    wanted: int
    made: int
    kept: int
    failures: tuple[Failure, ...]
    listed: Path


def prepare_clips(config: ClipConfig, settings: Settings) -> ClipReport:
    """Cut every clip that the tables name and that isn't there yet; every clip that fails is named with its reason.

    A reversed clip is made of its finished forward clip, which is cut too where only the reversed one is named.

    Raises:
        UsageError: a folder, table or column is missing, or ffmpeg is asked for and missing.
    """
    folder = settings.path("LARY_ROOT") / "data"
    roots = {name: root for name, root in zip(SOURCES, (config.ssv2_root, config.egodex_root), strict=True) if root}
    if not roots:
        raise UsageError("Name --ssv2-root, --egodex-root or both: the folders of the recordings.")
    for name, root in roots.items():
        if not root.is_dir():
            raise UsageError(f"The {name} folder {root} does not exist.")
    seeds = (config.seed_ssv2 or folder / "seed_ssv2.csv", config.seed_egodex or folder / "seed_egodex.csv")
    tables = config.metadata or tuple(path for name in CLIP_TABLES if (path := folder / name).is_file())
    if not tables:
        raise UsageError(f"There is none of {', '.join(CLIP_TABLES)} in {folder}: set LARY_ROOT or pass --metadata.")
    out = config.output_dir or settings.path("DATA_DIR") / "classification"
    ffmpeg = find_ffmpeg(config.backend)
    rows = [row for table in tables for row in read_columns(table, ("dataset", "video_path"))]
    wanted = frozenset(path.strip().replace("\\", "/") for source, path in rows if source.strip() in roots)
    log.info("cutting with %s", ffmpeg or "PyAV")
    tasks = []
    for source, table, make in zip(SOURCES, seeds, (ssv2_tasks, egodex_tasks), strict=True):
        if source in roots:
            pairs = read_columns(table, ("video_path", "seed_output"))
            tasks += make(pairs, roots[source], out, wanted, config.times)
    failures = [
        Failure(None, name, "no line of the seed table gives this clip")
        for name in sorted(wanted - {task.out.relative_to(out).as_posix() for task in tasks})
    ]
    groups: dict[Path, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.forward, []).append(task)
    made = kept = 0
    workers = min(config.workers, 4 * (os.cpu_count() or 1))
    with progress(len(tasks), "cutting", "clip") as bar, ThreadPoolExecutor(workers) as pool:
        for done in as_completed([pool.submit(make_clips, group, ffmpeg) for group in groups.values()]):
            for task, result in done.result():
                made, kept = made + (result == "made"), kept + (result == "kept")
                if result not in ("made", "kept"):
                    failures.append(Failure(None, task.out.relative_to(out).as_posix(), result))
                bar.advance()
    failures.sort(key=lambda item: item.path)
    listed = out / "clip_failures.csv"
    write_failures(listed, failures)
    return ClipReport(len(wanted), made, kept, tuple(failures), listed)


def read_columns(table: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Some columns of a CSV. Raises UsageError if there is none of a name."""
    columns, rows = read_csv(table)
    for name in names:
        if name not in columns:
            raise UsageError(f"{table} has no column '{name}'; it has: {', '.join(columns)}.")
    at = [columns.index(name) for name in names]
    return [tuple(row[column] for column in at) for row in rows]


def make_clips(tasks: Sequence[Task], ffmpeg: str | None) -> list[tuple[Task, str]]:
    """Make the forward and the reversed clip of one span; each task with ``made``, ``kept`` or why it failed."""
    done = []
    for task in sorted(tasks, key=lambda task: task.reverse):
        try:
            if present(task.out):
                done.append((task, "kept"))
                continue
            if not present(task.forward):
                if not task.source.is_file():
                    raise MediaError(f"The recording {task.source} does not exist.")
                cut_forward(task.source, task.start, task.duration, task.forward, ffmpeg)
            if task.reverse:
                cut_reversed(task.forward, task.out)
            done.append((task, "made"))
        except (MediaError, OSError) as error:
            done.append((task, str(error)))
    return done


def present(path: Path) -> bool:
    """Whether a clip was made before: clips take their names when complete, so one that isn't empty is whole."""
    return path.is_file() and path.stat().st_size > 0
