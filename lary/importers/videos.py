"""Importing plain videos with a table of labels: clips for classification.

The table has a column with paths below the folder of videos and one with labels; where it has them, columns ``split``,
``embodiment`` and ``sample_indices`` are used too. Videos are linked into ``DATA_DIR/classification/<name>``, or copied
where the file system can't; table and record go to ``LARY_ROOT/data``.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lary.data.frames import read_clip
from lary.data.sampling import Method, sample_video
from lary.data.spec import DatasetSpec, LabelSpace, Licence, Split
from lary.data.splits import split_groups
from lary.data.tables import EMBODIMENT_COLUMN, INDEX_COLUMN, INDICES, read_csv, write_csv
from lary.files import digest, file_digest, inside, write_failures
from lary.importers.records import check_name, save_record
from lary.runtime import progress
from lary.types import Failure, LaryError, MediaError, UsageError

VIDEO_NAMES = ("video_path", "video", "path", "file", "filename")
LABEL_NAMES = ("action", "label", "class", "verb")
SPLIT_COLUMN = "split"
GROUP = r"^(.+?)(?:_rev)?\.[^./]+$"
"""Group of a clip: its path without ``_rev`` and extension, so that a clip and its reversal stay together."""
VALIDATION = {"val": "val", "valid": "val", "validation": "val", "test": "val", "train": "train"}


@dataclass(frozen=True, kw_only=True)
class VideosRequest:
    """What to import.

    Attributes:
        folder: of the videos.
        table: CSV of labels.
        name: key of the new data set.
        data_dir: ``$DATA_DIR``.
        tables: ``$LARY_ROOT/data``.
        video_column: column of paths; None takes the first of `VIDEO_NAMES` that there is.
        label_column: column of labels; None takes the first of `LABEL_NAMES`.
        method: how frames are chosen where the table doesn't say: motion, or uniform.
        share: of the videos that validate, by class, where the table doesn't say.
        seed: of the choice of these videos.
        licence: name of the licence.
        commercial: whether it allows commercial use.
        workers: videos that are read at the same time.
    """

    folder: Path
    table: Path
    name: str
    data_dir: Path
    tables: Path
    video_column: str | None = None
    label_column: str | None = None
    method: Method = "motion"
    share: float = 0.3
    seed: int = 0
    licence: str = "not stated"
    commercial: bool = False
    workers: int = 4


@dataclass(frozen=True)
class VideosReport:
    """What was imported: the plug-in to pass on, rows by split, failures."""

    plugin: Path
    rows: Mapping[str, int]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Clip:
    """One row of the labels: its number, the video below the folder, and what the table says of it."""

    row: int
    path: str
    label: str
    split: str
    embodiment: str
    indices: tuple[int, ...]


def import_videos(request: VideosRequest) -> VideosReport:
    """Link, sample and list videos; those that can't be read are left out and named.

    Raises:
        UsageError: the name is taken; or the table lacks a column, names a path outside the folder, an unknown split,
            fewer than two classes, or can't be split.
        LaryError: no video could be read.
    """
    check_name(request.name)
    if not request.folder.is_dir():
        raise UsageError(f"The folder of videos {request.folder} does not exist.")
    clips = read_clips(request)
    root = request.data_dir / "classification" / request.name
    failures: list[Failure] = []
    found: list[Clip] = []
    with (
        progress(len(clips), f"importing {request.name}", "clip") as bar,
        ThreadPoolExecutor(request.workers) as pool,
    ):
        for clip, result in zip(clips, pool.map(lambda clip: import_clip(request, root, clip), clips), strict=True):
            if isinstance(result, str):
                failures.append(Failure(clip.row, clip.path, result))
            else:
                found.append(Clip(clip.row, clip.path, clip.label, clip.split, clip.embodiment, result))
            bar.advance()
    write_failures(request.tables / f"{request.name}_import_failures.csv", failures)
    if not found:
        raise LaryError(f"None of the {len(clips)} videos of {request.table} could be imported: {failures[0].reason}")
    return write_tables(request, found, failures)


def read_clips(request: VideosRequest) -> list[Clip]:
    """The rows of the table of labels. Raises UsageError (`import_videos`)."""
    columns, rows = read_csv(request.table)
    video = pick_column(request.table, columns, request.video_column, VIDEO_NAMES, "--video-column")
    label = pick_column(request.table, columns, request.label_column, LABEL_NAMES, "--label-column")
    clips = []
    for number, cells in enumerate(rows):
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        where = f"{request.table}, row {number + 1}"
        split, indices = row.get(SPLIT_COLUMN, ""), row.get(INDEX_COLUMN, "")
        if not row[video] or not row[label]:
            raise UsageError(f"{where}: the video or the label is empty.")
        if split and split.lower() not in VALIDATION:
            raise UsageError(f"{where}: '{split}' is no split; expected train or val.")
        if indices and not INDICES.fullmatch(indices):
            raise UsageError(f"{where}: '{indices}' is no list of frame numbers such as '3,9,20'.")
        path = inside(request.folder, row[video]).relative_to(request.folder).as_posix()
        clips.append(
            Clip(number, path, row[label], VALIDATION.get(split.lower(), ""), row.get(EMBODIMENT_COLUMN, ""),
                 tuple(int(part) for part in indices.split(",")) if indices else ())
        )  # fmt: skip
    if len({clip.label for clip in clips}) < 2:
        raise UsageError(f"{request.table} has one class only, '{clips[0].label}': there is nothing to tell apart.")
    if len({bool(clip.split) for clip in clips}) > 1:
        raise UsageError(f"{request.table} names the split of some rows only: fill the column 'split', or drop it.")
    return clips


def pick_column(table: Path, columns: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> str:
    """The column that an option names, or the first with a usual name. Raises UsageError if there is none."""
    wanted = [given] if given is not None else [name for name in usual if name in columns]
    if not wanted or wanted[0] not in columns:
        raise UsageError(f"{table} has no column '{given or usual[0]}'; name it with {option}: {', '.join(columns)}.")
    return wanted[0]


def import_clip(request: VideosRequest, root: Path, clip: Clip) -> tuple[int, ...] | str:
    """Frame indices of a video that now lies in place, or why it can't be imported."""
    source, target = request.folder / clip.path, root / clip.path
    try:
        indices = clip.indices or sample_video(source, method=request.method).indices
        read_clip([source], indices, clamp=False)
        place_file(source, target)
    except (MediaError, LaryError) as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return indices


def place_file(source: Path, target: Path) -> None:
    """Link a file to its place, or copy it where that can't be; one that is there already must be the same.

    Raises:
        LaryError: another file is there.
    """
    if target.exists():
        if not target.samefile(source) and file_digest(target) != file_digest(source):
            raise LaryError(f"{target} exists with other content: choose another --name.")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{threading.get_ident()}.part")  # rows may share a video
    part.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)


def write_tables(request: VideosRequest, clips: Sequence[Clip], failures: Sequence[Failure]) -> VideosReport:
    """Split the clips, and write tables and record. Raises UsageError for a split without rows."""
    root = f"classification/{request.name}"
    spec = DatasetSpec(
        name=request.name,
        title=request.name,
        media="clip",
        target=LabelSpace(tuple(sorted({clip.label for clip in clips}))),
        splits={"train": Split(root), "val": Split(root)},
        licences=(Licence(request.folder.resolve().name, request.licence, request.commercial),),
        group_pattern=GROUP,
        embodiment="not stated",
        embodiment_column=EMBODIMENT_COLUMN if any(clip.embodiment for clip in clips) else None,
        samples=len(clips),
        revision=digest(*(f"{clip.path} {clip.label} {clip.split} {clip.indices}" for clip in clips)),
        description=f"Imported from the videos in {request.folder.resolve().name}; split by video.",
    )
    parts = split_clips(request, clips)
    columns = ["dataset", "video_path", INDEX_COLUMN, "action"] + [EMBODIMENT_COLUMN] * bool(spec.embodiment_column)
    for split, chosen in parts.items():
        listed = [
            [request.name, clip.path, ",".join(map(str, clip.indices)), clip.label, clip.embodiment][: len(columns)]
            for clip in chosen
        ]
        write_csv(request.tables / spec.table_name(split), columns, listed)
    plugin = save_record(spec, request.tables)
    return VideosReport(plugin, {split: len(chosen) for split, chosen in parts.items()}, tuple(failures))


def split_clips(request: VideosRequest, clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Clips by split: as the table says, or by class with whole videos in either."""
    if clips[0].split:
        parts = {split: [clip for clip in clips if clip.split == split] for split in ("train", "val")}
    else:
        groups = [found[1] if (found := re.match(GROUP, clip.path)) else clip.path for clip in clips]
        chosen = split_groups(groups, request.share, [clip.label for clip in clips], request.seed)
        train, val = ([clips[int(row)] for row in np.sort(rows)] for rows in chosen)
        parts = {"train": train, "val": val}
    for split, part in parts.items():
        if not part:
            raise UsageError(f"{request.table} has no readable video in split '{split}'.")
    return parts
