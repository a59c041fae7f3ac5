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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lary.data.configs import VideosConfig
from lary.data.frames import read_clip
from lary.data.sampling import Method, sample_video
from lary.data.spec import DatasetSpec, LabelSpace, Licence, Split
from lary.data.splits import split_groups
from lary.data.tables import EMBODIMENT_COLUMN, INDEX_COLUMN, INDICES, read_csv, write_csv
from lary.files import digest, file_digest, inside, write_failures
from lary.importers.episodes import ImportReport
from lary.importers.records import check_name, save_record
from lary.runtime import progress
from lary.settings import Settings
from lary.types import Failure, LaryError, UsageError

VIDEO_NAMES = ("video_path", "video", "path", "file", "filename")
LABEL_NAMES = ("action", "label", "class", "verb")
SPLIT_COLUMN = "split"
GROUP = r"^(.+?)(?:_rev)?\.[^./]+$"
"""Group of a clip: its path without ``_rev`` and extension, so that a clip and its reversal stay together."""
VALIDATION = {"val": "val", "valid": "val", "validation": "val", "test": "val", "train": "train"}


@dataclass(frozen=True)
class Clip:
    """One row of the labels: its number, the video's path below the folder, and its cells."""

    row: int
    path: str
    label: str
    split: str
    embodiment: str
    indices: tuple[int, ...]


def import_videos(folder: Path, config: VideosConfig, settings: Settings) -> ImportReport:
    """Link, sample and list videos; those that can't be read are left out and named.

    Raises:
        UsageError: the name is taken; or the table lacks a column, names a path outside the folder, an unknown split,
            fewer than two classes, or can't be split.
        LaryError: no video could be read.
    """
    name = check_name(config.name or folder.resolve().name)
    if not folder.is_dir():
        raise UsageError(f"The folder of videos {folder} does not exist.")
    clips = read_clips(folder, config)
    root, tables = settings.path("DATA_DIR") / "classification" / name, settings.path("LARY_ROOT") / "data"
    failures: list[Failure] = []
    found: list[Clip] = []
    with progress(len(clips), f"importing {name}", "clip") as bar, ThreadPoolExecutor(config.workers) as pool:
        done = pool.map(lambda clip: import_clip(folder / clip.path, root / clip.path, clip, config.method), clips)
        for clip, result in zip(clips, done, strict=True):
            if isinstance(result, str):
                failures.append(Failure(clip.row, clip.path, result))
            else:
                found.append(replace(clip, indices=result))
            bar.advance()
    write_failures(tables / f"{name}_import_failures.csv", failures)
    if not found:
        raise LaryError(f"None of the {len(clips)} videos of {config.table} could be imported: {failures[0].reason}")
    parts = split_clips(config, found)
    spec = clips_record(name, folder, config, found)
    columns = ["dataset", "video_path", INDEX_COLUMN, "action"] + [EMBODIMENT_COLUMN] * bool(spec.embodiment_column)
    for split, chosen in parts.items():
        listed = [
            [name, clip.path, ",".join(map(str, clip.indices)), clip.label, clip.embodiment][: len(columns)]
            for clip in chosen
        ]
        write_csv(tables / spec.table_name(split), columns, listed)
    counts = {split: len(chosen) for split, chosen in parts.items()}
    return ImportReport(save_record(spec, tables), counts, tuple(failures))


def read_clips(folder: Path, config: VideosConfig) -> list[Clip]:
    """The rows of the table of labels. Raises UsageError as `import_videos`."""
    columns, rows = read_csv(config.table)
    video = pick_column(config.table, columns, config.video_column, VIDEO_NAMES, "--video-column")
    label = pick_column(config.table, columns, config.label_column, LABEL_NAMES, "--label-column")
    clips = []
    for number, cells in enumerate(rows):
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        where = f"{config.table}, row {number + 1}"
        split, indices = row.get(SPLIT_COLUMN, ""), row.get(INDEX_COLUMN, "")
        if not row[video] or not row[label]:
            raise UsageError(f"{where}: the video or the label is empty.")
        if split and split.lower() not in VALIDATION:
            raise UsageError(f"{where}: '{split}' is no split; expected train or val.")
        if indices and not INDICES.fullmatch(indices):
            raise UsageError(f"{where}: '{indices}' is no list of frame numbers such as '3,9,20'.")
        path = inside(folder, row[video]).relative_to(folder).as_posix()
        clips.append(
            Clip(
                number,
                path,
                row[label],
                VALIDATION.get(split.lower(), ""),
                row.get(EMBODIMENT_COLUMN, ""),
                tuple(int(part) for part in indices.split(",")) if indices else (),
            )
        )
    if len({clip.label for clip in clips}) < 2:
        raise UsageError(f"{config.table} has one class only, '{clips[0].label}': there is nothing to distinguish.")
    if len({bool(clip.split) for clip in clips}) > 1:
        raise UsageError(f"{config.table} names the split of some rows only: fill the column 'split', or drop it.")
    return clips


def pick_column(table: Path, columns: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> str:
    """The column that an option names, or the first with a usual name. Raises UsageError if there is none."""
    wanted = [given] if given is not None else [name for name in usual if name in columns]
    if not wanted or wanted[0] not in columns:
        raise UsageError(f"{table} has no column '{given or usual[0]}'; name it with {option}: {', '.join(columns)}.")
    return wanted[0]


def import_clip(source: Path, target: Path, clip: Clip, method: Method) -> tuple[int, ...] | str:
    """Frame indices of a video that is now linked to its target, or why it can't be imported."""
    try:
        indices = clip.indices or sample_video(source, method=method).indices
        read_clip([source], indices, clamp=False)
        link_file(source, target)
    except LaryError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return indices


def link_file(source: Path, target: Path) -> None:
    """Link a file to its target, or copy it where links are not possible; one that is there must be the same.

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


def clips_record(name: str, folder: Path, config: VideosConfig, clips: Sequence[Clip]) -> DatasetSpec:
    """The record of the imported data set."""
    root, origin = f"classification/{name}", folder.resolve().name
    return DatasetSpec(
        name=name,
        title=name,
        media="clip",
        target=LabelSpace(tuple(sorted({clip.label for clip in clips}))),
        splits={"train": Split(root), "val": Split(root)},
        licences=(Licence(origin, config.licence, config.commercial),),
        group_pattern=GROUP,
        embodiment="not stated",
        embodiment_column=EMBODIMENT_COLUMN if any(clip.embodiment for clip in clips) else None,
        samples=len(clips),
        revision=digest(*(f"{clip.path} {clip.label} {clip.split} {clip.indices}" for clip in clips)),
        description=f"Imported from the videos in {origin}; split by video.",
    )


def split_clips(config: VideosConfig, clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Clips by split: as the table says, or by class with whole videos in either."""
    if clips[0].split:
        parts = {split: [clip for clip in clips if clip.split == split] for split in ("train", "val")}
    else:
        groups = [found[1] if (found := re.match(GROUP, clip.path)) else clip.path for clip in clips]
        chosen = split_groups(groups, config.share, [clip.label for clip in clips], config.seed)
        train, val = ([clips[int(row)] for row in np.sort(rows)] for rows in chosen)
        parts = {"train": train, "val": val}
    for split, part in parts.items():
        if not part:
            raise UsageError(f"{config.table} has no readable video in split '{split}'.")
    return parts
