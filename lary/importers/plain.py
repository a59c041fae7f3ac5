"""Importing folders of episodes with their actions, and videos with a table of labels.

An episode is a folder with ``actions.npy``, a row of A numbers per frame, and
its frames: images by the numbers in their names, or one video. A table of
labels has columns with paths and labels, and maybe ``split``, ``embodiment``
and ``sample_indices``.
"""

import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lary.arrays import Doubles
from lary.data.actions import read_numbers
from lary.data.configs import AtomicConfig, TrajectoryConfig, VideosConfig
from lary.data.frames import count_frames, decode_video, read_frames
from lary.data.images import png_bytes, read_image
from lary.data.sampling import sample_video
from lary.data.spec import DatasetSpec, LabelSpace, Licence, Split
from lary.data.splits import own_groups, split_groups
from lary.data.tables import EMBODIMENT_COLUMN, INDEX_COLUMN, INDICES, REVERSED, read_csv
from lary.files import atomic_write, digest, inside
from lary.importers.episodes import (
    AtomicRule,
    Cut,
    MotionCut,
    PairCut,
    SourceEpisode,
    find_position,
    import_episodes,
    video_images,
)
from lary.importers.records import ImportReport, check_new, pair_record, save_import
from lary.runtime import in_threads, progress
from lary.settings import Settings
from lary.types import Failure, LaryError, MediaError, UsageError

ACTIONS = "actions.npy"
IMAGES, VIDEOS = (".png", ".jpg", ".jpeg"), (".mp4", ".mkv", ".avi", ".mov", ".webm")
EPISODE_NAME = re.compile(r"[\w .+-]+")
VIDEO_NAMES = ("video_path", "video", "path", "file", "filename")
LABEL_NAMES = ("action", "label", "class", "verb")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}

# Trajectories


def import_trajectories(
    source: Path, out: Path, config: TrajectoryConfig, cut: Cut, dims: Sequence[str] = ()
) -> ImportReport:
    """Write a data set below `out`; unusable episodes are left out and named.

    `dims` name the action dimensions of pairs, by default ``a0``, ``a1`` ...
    Raises UsageError for a wrong option, no episodes or an existing import;
    LaryError if no episode can be used.
    """
    data = out / "data"
    check_new(config.name, data)
    names = list(dims) if isinstance(cut, PairCut) else None
    plugin = data / f"{config.name}_dataset.py"
    if not 0 <= config.share < 1:
        raise UsageError(f"--test-size {config.share:g}: expected 0, or a share below 1.")
    if plugin.exists() and not config.overwrite:
        raise UsageError(f"{plugin} is there: pass --overwrite to replace it, or choose another --name.")
    folders = sorted((path.parent for path in source.glob(f"*/{ACTIONS}")), key=numbered)
    if not folders:
        raise UsageError(f"{source} holds no episodes: expected folders with frames and {ACTIONS}.")
    episodes, failures = {}, []
    for folder in folders:
        name = "ep_" + folder.name.removeprefix("ep_")
        if name in episodes or not EPISODE_NAME.fullmatch(name):
            reason = f"{folder} needs another name: letters, digits and ' .+-_', not {name} twice."
            failures.append(Failure(None, str(folder), reason))
            continue
        values, images = partial(read_values, folder, names), partial(find_images, folder)
        episodes[name] = SourceEpisode(name, str(folder), values, images)
    found, broken = import_episodes(list(episodes.values()), cut, data / cut.task / config.name)
    pairs = [(name, row) for name, rows in found.items() for row in rows]
    splits = ["train"] * len(pairs)
    if config.share and pairs:
        strata = [row[2] for _, row in pairs] if names is None else None
        splits = choose_splits([name for name, _ in pairs], strata, config)
    robot = [] if config.embodiment is None else [config.embodiment]
    columns = ["src_img", "tgt_img", "action", EMBODIMENT_COLUMN][: 3 + len(robot)]
    rows = [(split, [*row, *robot]) for split, (_, row) in zip(splits, pairs, strict=True)]
    spec = pair_record(config.name, cut, names or (), licences=())
    wanted = ("train", "val") if config.share else ("train",)
    return save_import(spec, data, data, columns, rows, [*failures, *broken], wanted)


def columns_cut(config: AtomicConfig) -> MotionCut:
    """The cut into atomic motions of a command. Raises UsageError."""
    gripper = None if config.gripper < 0 else config.gripper
    return MotionCut(find_position(config.position), gripper, AtomicRule.of(config))


def read_values(folder: Path, names: list[str] | None) -> Doubles:
    """The actions (T, A) of an episode; fills or compares the list of names."""
    path = folder / ACTIONS
    actions = read_numbers(path, np.float64)
    if actions.ndim != 2 or not actions.size:
        raise MediaError(f"{path} holds no numbers of shape (T, A).")
    if names is not None:
        names += [] if names else [f"a{index}" for index in range(actions.shape[1])]
        if len(names) != actions.shape[1]:
            raise MediaError(f"{path} has {actions.shape[1]} dimensions, expected {len(names)}: {', '.join(names)}.")
    return actions


def find_images(folder: Path, length: int, wanted: list[int]) -> Iterable[bytes]:
    """Image files of an episode with `length` actions. Raises MediaError."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=numbered)
    images = [path for path in files if path.suffix.lower() in IMAGES]
    videos = [path for path in files if path.suffix.lower() in VIDEOS]
    if bool(images) == bool(videos) or len(videos) > 1:
        raise MediaError(f"{folder} holds {len(images)} images and {len(videos)} videos: expected images or one video.")
    count = len(images) or count_frames(videos[0])
    if count != length:
        raise MediaError(f"{folder} holds {count} {'images' if images else 'frames'} but {length} rows of actions.")
    if images:
        return (png_bytes(read_image(images[at]), packing=1) for at in wanted)
    return video_images(enumerate(decode_video(videos[0])), wanted)


def numbered(path: Path) -> tuple[int, str]:
    """A key that sorts 2 before 10."""
    return len(path.stem), path.stem


def choose_splits(
    groups: Sequence[str], strata: Sequence[str] | None, config: TrajectoryConfig | VideosConfig
) -> list[str]:
    """The split of every row, with whole groups. Raises UsageError."""
    splits = np.full(len(groups), "train")
    splits[split_groups(groups, config.share, strata, config.seed)[1]] = "val"
    return [*splits.tolist()]


# Videos


class Clip(NamedTuple):
    """A row of the table of labels."""

    row: int
    path: str
    label: str
    split: str
    embodiment: str
    indices: tuple[int, ...]
    group: str


def import_videos(folder: Path, config: VideosConfig, settings: Settings) -> ImportReport:
    """Link or copy videos into ``DATA_DIR``; unreadable ones are left out and named.

    Raises UsageError for a taken name or a wrong table, LaryError if no video
    could be read.
    """
    tables = settings.path("LARY_ROOT") / "data"
    name = check_new(config.name or folder.resolve().name, tables)
    if not folder.is_dir():
        raise UsageError(f"The folder of videos {folder} does not exist.")
    clips, origin = read_clips(folder, config), folder.resolve().name
    data_dir, root = settings.path("DATA_DIR"), f"classification/{name}"

    def import_clip(clip: Clip) -> Clip | Failure:
        source, target = folder / clip.path, data_dir / root / clip.path
        try:
            indices = clip.indices or sample_video(source, method=config.method)
            read_frames([source], indices, clamp=False, fit=np.size)
            link_file(source, target)
        except LaryError as error:
            return Failure(clip.row, clip.path, str(error))
        except OSError as error:
            return Failure(clip.row, clip.path, f"{error.strerror}: {error.filename}")
        return clip._replace(indices=indices)

    with progress(len(clips), f"importing {name}", "clip") as bar:
        done = list(in_threads(import_clip, clips, config.workers, bar=bar))
    failures = [item for item in done if isinstance(item, Failure)]
    found = [item for item in done if isinstance(item, Clip)]
    robots = any(clip.embodiment for clip in found)
    spec = DatasetSpec(
        name=name,
        title=name,
        media="clip",
        target=LabelSpace(tuple(sorted({clip.label for clip in found}))),
        splits={"train": Split(root), "val": Split(root)},
        licences=(Licence(origin, config.licence, config.commercial),),
        group_column="group",
        embodiment="not stated",
        embodiment_column=EMBODIMENT_COLUMN if robots else None,
        samples=len(found),
        revision=digest(*(f"{clip.path} {clip.label} {clip.split} {clip.indices}" for clip in found)),
        description=f"Imported from the videos in {origin}; split by video.",
    )
    columns = ["dataset", "video_path", INDEX_COLUMN, "action", "group", EMBODIMENT_COLUMN][: 5 + robots]
    splits = [clip.split for clip in found]
    if found and not splits[0]:
        groups = [clip.group or REVERSED.sub("", clip.path) for clip in found]
        splits = choose_splits(groups, [clip.label for clip in found], config)
    rows = []
    for split, clip in zip(splits, found, strict=True):
        cells = [name, clip.path, ",".join(map(str, clip.indices)), clip.label, clip.group, clip.embodiment]
        rows.append((split, cells[: len(columns)]))
    return save_import(spec, tables, data_dir, columns, rows, failures)


def read_clips(folder: Path, config: VideosConfig) -> list[Clip]:
    """The rows of the table of labels. Raises UsageError as `import_videos`."""
    columns, rows = read_csv(config.table)
    video = config.video_column or next(filter(columns.__contains__, VIDEO_NAMES), VIDEO_NAMES[0])
    label = config.label_column or next(filter(columns.__contains__, LABEL_NAMES), LABEL_NAMES[0])
    for column, option in ((video, "--video-column"), (label, "--label-column")):
        if column not in columns:
            raise UsageError(f"{config.table} has no column '{column}'; name it with {option}: {', '.join(columns)}.")
    clips, groups = [], own_groups(config.table, config, video) or [""] * len(rows)
    for number, cells in enumerate(rows):
        row = dict(zip(columns, map(str.strip, cells), strict=True))
        where = f"{config.table}, row {number + 1}"
        split, indices = row.get("split", ""), row.get(INDEX_COLUMN, "")
        if not row[video] or not row[label]:
            raise UsageError(f"{where}: the video or the label is empty.")
        if split and split.lower() not in SPLITS:
            raise UsageError(f"{where}: '{split}' is no split; expected train or val.")
        if indices and not INDICES.fullmatch(indices):
            raise UsageError(f"{where}: '{indices}' is no list of frame numbers such as '3,9,20'.")
        path = inside(folder, row[video]).relative_to(folder).as_posix()
        numbers = tuple(map(int, indices.split(","))) if indices else ()
        robot = row.get(EMBODIMENT_COLUMN, "")
        clips.append(Clip(number, path, row[label], SPLITS.get(split.lower(), ""), robot, numbers, groups[number]))
    if len({clip.label for clip in clips}) < 2:
        raise UsageError(f"{config.table} has one class only, '{clips[0].label}': there is nothing to distinguish.")
    if len({bool(clip.split) for clip in clips}) > 1:
        raise UsageError(f"{config.table} names the split of some rows only: fill the column 'split', or drop it.")
    return clips


def link_file(source: Path, target: Path) -> None:
    """Link a file to its target, or copy it. Raises LaryError if another is there."""
    if target.exists():
        if not target.samefile(source) and not filecmp.cmp(source, target, shallow=False):
            raise LaryError(f"{target} exists with other content: choose another --name.")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # also where a row of the same video was quicker
        with source.open("rb") as file, atomic_write(target) as out:
            shutil.copyfileobj(file, out)
