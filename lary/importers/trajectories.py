"""Importing plain trajectories: a folder per episode with its frames and ``actions.npy``.

Frames are the images in the episode's folder in the order of the numbers in their names, or its one video.
``actions.npy`` holds one row of A numbers per frame. The record is a Python file for ``--plugin``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.arrays import array_of
from lary.data.actions import LARGEST_ACTIONS
from lary.data.configs import AtomicConfig, TrajectoryConfig
from lary.data.frames import decode_video, to_rgb
from lary.data.images import Image, read_image
from lary.data.splits import split_groups
from lary.data.tables import EMBODIMENT_COLUMN, write_csv
from lary.files import read_limited, write_bytes, write_text
from lary.importers.episodes import (
    ATOMIC_CLASSES,
    AtomicRule,
    Cut,
    ImportReport,
    MotionCut,
    PairCut,
    image_bytes,
    image_stems,
)
from lary.runtime import progress
from lary.types import Failure, LaryError, MediaError, UsageError

Rows = list[list[str]]
ACTIONS = "actions.npy"
IMAGES, VIDEOS = (".png", ".jpg", ".jpeg"), (".mp4", ".mkv", ".avi", ".mov", ".webm")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
EPISODE_NAME = re.compile(r"[\w .+-]+")
PARTS = ("train", "val")
RECORD = '''"""The record of {name}: load it with --plugin."""

from lary.data.spec import {kind}, DatasetSpec, Split, register_dataset

register_dataset(
    DatasetSpec(
        name={name!r},
        title={name!r},
        media="pair",
        stride={stride},
        target={target},
        splits={{name: Split({root!r}) for name in ('train', 'val')}},
        licences=(),  # name the terms of your data here
        group_pattern=r"{pattern}",
        media_depth={depth},
    )
)
'''


@dataclass(frozen=True, eq=False)
class Trajectory:
    """An episode: its frames (image files, or one video) and its actions (T, A) float64."""

    name: str
    frames: tuple[Path, ...]
    actions: npt.NDArray[np.float64]


def import_trajectories(
    source: Path, out: Path, config: TrajectoryConfig, cut: Cut, dims: Sequence[str] = ()
) -> ImportReport:
    """Write images, actions, tables and record; episodes that can't be used are left out and named.

    Tables come last, so that they name only what is there. Episodes are split whole.

    Args:
        source: folder of episodes.
        out: folder to write to: it serves as ``LARY_ROOT``, its data/ as ``DATA_DIR``.
        dims: names of the action dimensions of pairs; by default ``a0``, ``a1`` and so on.

    Raises:
        UsageError: a wrong option, no episodes, or tables that are there already.
        LaryError: no episode can be used.
    """
    folders = find_episodes(source, out, config)
    root, names = out / "data" / cut.task / config.name, list(dims)
    rows: dict[str, Rows] = {}
    failures = []
    with progress(len(folders), "episodes", "episode") as bar:
        for folder in folders:
            name = episode_folder(folder.name)
            try:
                if name in rows or not EPISODE_NAME.fullmatch(name):
                    raise MediaError(f"{folder} needs another name: letters, digits and ' .+-_', not {name} twice.")
                episode = read_trajectory(folder)
                size = episode.actions.shape[1]
                names = names or [f"a{index}" for index in range(size)]
                if isinstance(cut, PairCut) and size != len(names):
                    raise MediaError(
                        f"{folder.name} has {size} action dimensions, expected {len(names)}: {', '.join(names)}."
                    )
                rows[name] = write_episode(root, name, episode, cut)
            except MediaError as error:
                failures.append(Failure(None, str(folder), str(error)))
            bar.advance()
    if not any(rows.values()):
        reason = failures[0].reason if failures else "they are too short for the stride, or nothing moves far enough."
        raise LaryError(f"None of the {len(folders)} episodes in {source} gave a row: {reason}")
    counts = write_tables(out, config, rows, by_label=isinstance(cut, MotionCut))
    plugin = out / f"{config.name}.py"
    write_text(plugin, record_text(config.name, cut, names))
    return ImportReport(plugin, counts, tuple(failures))


def columns_cut(config: AtomicConfig) -> MotionCut:
    """The cut into atomic motions that a command asks for. Raises UsageError."""
    columns = [part.strip() for part in config.position.split(",")]
    if len(columns) != 3 or not all(part.isdecimal() for part in columns):
        raise UsageError(f"--position {config.position}: expected three columns, such as 0,1,2.")
    gripper = None if config.gripper < 0 else config.gripper
    return MotionCut(tuple(map(int, columns)), gripper, AtomicRule.of(config))


def find_episodes(source: Path, out: Path, config: TrajectoryConfig) -> list[Path]:
    """The folders of the episodes, by the numbers in their names. Raises UsageError as `import_trajectories`."""
    if not NAME.fullmatch(config.name):
        raise UsageError(f"--name {config.name}: expected letters, digits, '_' and '-'.")
    if not 0 <= config.share < 1:
        raise UsageError(f"--test-size {config.share:g}: expected 0, or a share below 1.")
    tables = [path for part in PARTS if (path := table_path(out, config.name, part)).exists()]
    if tables and not config.overwrite:
        raise UsageError(f"{tables[0]} is there already: pass --overwrite to replace it, or choose another --name.")
    folders = sorted((path.parent for path in source.glob(f"*/{ACTIONS}")), key=lambda path: natural(path.name))
    if not folders:
        raise UsageError(f"{source} holds no episodes: expected folders with frames and {ACTIONS}.")
    return folders


def write_episode(root: Path, folder: str, episode: Trajectory, cut: Cut) -> Rows:
    """Write the images and actions of an episode; returns its rows. Raises MediaError."""
    if isinstance(cut, MotionCut):
        last = max(*cut.position, cut.gripper or 0)
        if last >= episode.actions.shape[1]:
            raise MediaError(f"{episode.name} has {episode.actions.shape[1]} action dimensions: no column {last}.")
    segments = cut.segments(episode.actions)
    stems = image_stems(cut, segments)
    for at, image in wanted_frames(episode, set(stems)).items():
        content = image_bytes(image)
        for stem in stems[at]:
            write_bytes(root / cut.folders[-1] / folder / f"{stem}.png", content)
    for name, content in cut.files(episode.actions, segments).items() if isinstance(cut, PairCut) else ():
        write_bytes(root / "actions" / folder / Path(name).name, content)
    return cut.rows(folder, segments, {stem: f"{stem}.png" for found in stems.values() for stem in found})


def write_tables(out: Path, config: TrajectoryConfig, rows: Mapping[str, Rows], *, by_label: bool) -> dict[str, int]:
    """Split the episodes and write a table for each part; returns the number of rows by split."""
    listed = [(episode, row) for episode, found in rows.items() for row in found]
    parts: list[Sequence[int]] = [range(len(listed)), []]
    if config.share:
        strata = [row[2] for _, row in listed] if by_label else None
        parts = [
            part.tolist() for part in split_groups([name for name, _ in listed], config.share, strata, config.seed)
        ]
    columns, extra = ["src_img", "tgt_img", "action"], []
    if config.embodiment is not None:
        columns, extra = [*columns, EMBODIMENT_COLUMN], [config.embodiment]
    for split, part in zip(PARTS, parts, strict=True):
        path = table_path(out, config.name, split)
        if part:
            write_csv(path, columns, [[*listed[index][1], *extra] for index in part])
        else:
            path.unlink(missing_ok=True)
    return {split: len(part) for split, part in zip(PARTS, parts, strict=True) if part}


def record_text(name: str, cut: Cut, dims: Sequence[str]) -> str:
    """The Python file that registers the data set, for ``--plugin``."""
    fields = {"name": name, "root": f"{cut.task}/{name}"}
    if isinstance(cut, MotionCut):
        target, pattern = f"LabelSpace({ATOMIC_CLASSES!r})", r"^([^/]+)/"
        return RECORD.format(kind="LabelSpace", stride=None, target=target, pattern=pattern, depth=None, **fields)
    target, pattern = f"ActionSpace(dims={tuple(dims)!r}, horizon={cut.stride})", r"^(.*?ep_[^/]+)/"
    return RECORD.format(kind="ActionSpace", stride=cut.stride, target=target, pattern=pattern, depth=0, **fields)


def table_path(out: Path, name: str, split: str) -> Path:
    """The table of a split."""
    return out / "data" / f"{name}_metadata_{split}.csv"


def episode_folder(name: str) -> str:
    """The folder of an episode's files: ``ep_<name>``."""
    return name if name.startswith("ep_") else f"ep_{name}"


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_trajectory(folder: Path) -> Trajectory:
    """Read an episode's actions and find its frames.

    Raises:
        MediaError: no frames, both images and videos or several videos; actions that are no finite (T, A) numbers, or
            not one row per image.
    """
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: natural(path.name))
    images = tuple(path for path in files if path.suffix.lower() in IMAGES)
    videos = tuple(path for path in files if path.suffix.lower() in VIDEOS)
    if bool(images) == bool(videos) or len(videos) > 1:
        raise MediaError(f"{folder} holds {len(images)} images and {len(videos)} videos: expected images or one video.")
    try:
        data = read_limited(folder / ACTIONS, LARGEST_ACTIONS)
        actions = array_of(io.BytesIO(data), len(data))
    except (OSError, ValueError, EOFError) as error:
        raise MediaError(f"{folder / ACTIONS} can't be read: {error}.") from error
    if actions.ndim != 2 or actions.dtype.kind not in "fiu" or not actions.size:
        raise MediaError(f"{folder / ACTIONS} holds no numbers of shape (T, A).")
    if not np.isfinite(actions).all():
        raise MediaError(f"{folder / ACTIONS} holds NaN or infinity.")
    if images and len(images) != len(actions):
        raise MediaError(f"{folder} holds {len(images)} images but {len(actions)} rows of actions.")
    return Trajectory(folder.name, images or videos, actions.astype(np.float64))


def wanted_frames(episode: Trajectory, wanted: set[int]) -> dict[int, Image]:
    """Frames (H, W, 3) uint8 RGB of an episode by number. Raises MediaError, also if a video's length isn't T."""
    if len(episode.frames) > 1 or episode.frames[0].suffix.lower() in IMAGES:
        return {at: read_image(episode.frames[at]) for at in sorted(wanted)}
    found, count = {}, 0
    try:
        for count, frame in enumerate(decode_video(episode.frames[0]), 1):
            if count - 1 in wanted:
                found[count - 1] = to_rgb(frame)
    except ValueError as error:
        raise MediaError(f"The video {episode.frames[0]} can't be read: {error}.") from error
    if count != len(episode.actions):
        raise MediaError(f"{episode.frames[0]} has {count} frames but {len(episode.actions)} rows of actions.")
    return found
