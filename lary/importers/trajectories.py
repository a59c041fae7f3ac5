"""Data sets from plain trajectories: a folder per episode with its frames and ``actions.npy``.

Frames are the images in the episode's folder in the order of the numbers in their names, or its one video.
``actions.npy`` holds one row of A numbers per frame. Files come out in the published layouts, with a record.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lary.arrays import array_of
from lary.data.actions import LARGEST_ACTIONS
from lary.data.frames import decode_video, to_rgb
from lary.data.images import Image, read_image
from lary.data.splits import split_groups
from lary.data.tables import EMBODIMENT_COLUMN, write_csv
from lary.files import atomic_write, read_limited, write_bytes, write_text
from lary.importers.motions import ATOMIC_CLASSES, AtomicRule, atomic_segments, both_directions, pairs_at
from lary.runtime import progress
from lary.types import Failure, LaryError, MediaError, UsageError

Rows = list[list[str]]
ACTIONS = "actions.npy"
IMAGES, VIDEOS = (".png", ".jpg", ".jpeg"), (".mp4", ".mkv", ".avi", ".mov", ".webm")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
EPISODE_NAME = re.compile(r"[\w .+-]+")
PARTS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class TrajectoryRequest:
    """Which trajectories become which data set.

    Attributes:
        source: folder of episodes.
        out: folder to write to: it serves as ``LARY_ROOT``, its data/ as ``DATA_DIR``.
        name: of the data set.
        share: of validation, by episode; 0 puts everything into the training split.
        seed: of the split.
        embodiment: robot type to write into the tables; None writes no such column.
        overwrite: replace tables that are there.
    """

    source: Path
    out: Path
    name: str
    share: float = 0.25
    seed: int = 42
    embodiment: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class TrajectoryReport:
    """What was written: rows per table, the file with the record, episodes that could not be used."""

    rows: Mapping[Path, int]
    record: Path
    failures: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """An episode: its frames (image files, or one video) and its actions (T, A) float64."""

    name: str
    frames: tuple[Path, ...]
    actions: npt.NDArray[np.float64]


def write_pairs(request: TrajectoryRequest, stride: int, dims: Sequence[str] = ()) -> TrajectoryReport:
    """Write image pairs and action chunks at a fixed stride, in CALVIN's layout.

    Args:
        dims: names of the action dimensions; by default ``a0``, ``a1`` and so on.

    Raises:
        UsageError: a wrong option, no episodes, or tables that are there already.
        LaryError: no episode can be used.
    """
    pairs_at(0, stride)
    root = request.out / "data" / "regression" / request.name
    names = list(dims)

    def cut(episode: Trajectory) -> Rows:
        size = episode.actions.shape[1]
        names[:] = names or [f"a{index}" for index in range(size)]
        if size != len(names):
            raise MediaError(f"{episode.name} has {size} action dimensions, expected {len(names)}: {', '.join(names)}.")
        folder, rows = episode_folder(episode.name), []
        pairs = pairs_at(len(episode.actions), stride)
        wanted = sorted({frame for pair in pairs for frame in pair})
        files = save_frames(episode, {at: root / "images" / folder / f"frame_{at:06d}" for at in wanted})
        for start, end in pairs:
            action = f"actions/{folder}/action_{start:06d}to{end - 1:06d}.npy"
            save_array(root / action, episode.actions[start:end].astype(np.float32))
            images = [f"images/{folder}/{files[at]}" for at in (start, end)]
            rows.append([*images, action])
        return rows

    rows, failures = cut_all(request, cut)
    target = f"ActionSpace(dims={tuple(names)!r}, horizon={stride})"
    record = record_text(request, target, f"regression/{request.name}", stride)
    return write_set(request, rows, failures, record, stratify=False)


def write_atomic(
    request: TrajectoryRequest, rule: AtomicRule, position: tuple[int, ...] = (0, 1, 2), gripper: int | None = 6
) -> TrajectoryReport:
    """Write the first and last image of each atomic motion, in both directions, in LIBERO's layout.

    Both directions come from one episode, and episodes are split whole.

    Args:
        position: columns of the actions that hold the end effector's x, y and z.
        gripper: column that holds its opening; None for none.

    Raises:
        UsageError, LaryError: as `write_pairs`.
    """
    if len(position) != 3:
        raise UsageError(f"--position {','.join(map(str, position))}: expected three columns, such as 0,1,2.")
    columns = [*position, *([] if gripper is None else [gripper])]
    root = request.out / "data" / "classification" / request.name

    def cut(episode: Trajectory) -> Rows:
        if not all(0 <= column < episode.actions.shape[1] for column in columns):
            raise MediaError(
                f"{episode.name} has {episode.actions.shape[1]} action dimensions: no column {max(columns)}."
            )
        opening = None if gripper is None else episode.actions[:, gripper]
        segments = atomic_segments(episode.actions[:, list(position)], opening, rule)
        folder, rows = episode_folder(episode.name), []
        frames = read_frames(episode, {frame for item in segments for frame in (item.start, item.end)})
        places: dict[tuple[int, int], tuple[str, str]] = {}
        for number, item in enumerate(segments):
            names = [f"{folder}/action_{number:02d}/action_{end}.png" for end in ("start", "end")]
            for name, frame in zip(names, (item.start, item.end), strict=True):
                write_bytes(root / name, encode(frames[frame]))
            places[item.start, item.end], places[item.end, item.start] = (names[0], names[1]), (names[1], names[0])
        for item in both_directions(segments):
            rows.append([*places[item.start, item.end], item.label])
        return rows

    rows, failures = cut_all(request, cut)
    target = f"LabelSpace({ATOMIC_CLASSES!r})"
    record = record_text(request, target, f"classification/{request.name}", None)
    return write_set(request, rows, failures, record, stratify=True)


def cut_all(request: TrajectoryRequest, cut: Callable[[Trajectory], Rows]) -> tuple[dict[str, Rows], list[Failure]]:
    """The rows of every episode that can be read, by its name. Raises UsageError or LaryError, see `write_pairs`."""
    if not NAME.fullmatch(request.name):
        raise UsageError(f"--name {request.name}: expected letters, digits, '_' and '-'.")
    if not 0 <= request.share < 1:
        raise UsageError(f"--test-size {request.share:g}: expected 0, or a share below 1.")
    tables = [path for part in PARTS if (path := table_path(request, part)).exists()]
    if tables and not request.overwrite:
        raise UsageError(f"{tables[0]} is there already: pass --overwrite to replace it, or choose another --name.")
    folders = sorted((path.parent for path in request.source.glob(f"*/{ACTIONS}")), key=lambda path: natural(path.name))
    if not folders:
        raise UsageError(f"{request.source} holds no episodes: expected folders with frames and {ACTIONS}.")
    rows: dict[str, Rows] = {}
    failures = []
    with progress(len(folders), "episodes", "episode") as bar:
        for folder in folders:
            name = episode_folder(folder.name)
            try:
                if name in rows or not EPISODE_NAME.fullmatch(name):
                    raise MediaError(f"{folder} needs another name: letters, digits and ' .+-_', not {name} twice.")
                rows[name] = cut(read_trajectory(folder))
            except MediaError as error:
                failures.append(Failure(None, str(folder), str(error)))
            bar.advance()
    if not any(rows.values()):
        reason = failures[0].reason if failures else "they are too short for the stride, or nothing moves far enough."
        raise LaryError(f"None of the {len(folders)} episodes in {request.source} gave a row: {reason}")
    return rows, failures


def write_set(
    request: TrajectoryRequest, rows: Mapping[str, Rows], failures: list[Failure], record: str, *, stratify: bool
) -> TrajectoryReport:
    """Write tables and record, last of all, so that tables name only what is there."""
    listed = [(episode, row) for episode, found in rows.items() for row in found]
    parts: list[Sequence[int]] = [range(len(listed)), []]
    if request.share:
        strata = [row[2] for _, row in listed] if stratify else None
        parts = [
            part.tolist() for part in split_groups([name for name, _ in listed], request.share, strata, request.seed)
        ]
    columns, extra = ["src_img", "tgt_img", "action"], []
    if request.embodiment is not None:
        columns, extra = [*columns, EMBODIMENT_COLUMN], [request.embodiment]
    counts = {}
    for name, part in zip(PARTS, parts, strict=True):
        path = table_path(request, name)
        if part:
            write_csv(path, columns, [[*listed[index][1], *extra] for index in part])
            counts[path] = len(part)
        else:
            path.unlink(missing_ok=True)
    path = request.out / f"{request.name}.py"
    write_text(path, record)
    return TrajectoryReport(counts, path, tuple(failures))


def record_text(request: TrajectoryRequest, target: str, root: str, stride: int | None) -> str:
    """The Python file that registers the data set, for ``--plugin``."""
    kind: Literal["ActionSpace", "LabelSpace"] = "LabelSpace" if stride is None else "ActionSpace"
    pattern = r"^([^/]+)/" if stride is None else r"^(.*?ep_[^/]+)/"
    return (
        f'"""The record of {request.name}: load it with --plugin."""\n\n'
        f"from lary.data.spec import {kind}, DatasetSpec, Split, register_dataset\n\n"
        "register_dataset(\n    DatasetSpec(\n"
        f"        name={request.name!r},\n        title={request.name!r},\n        media=\"pair\",\n"
        f"        stride={stride},\n        target={target},\n"
        f"        splits={{name: Split({root!r}) for name in ('train', 'val')}},\n"
        "        licences=(),  # name the terms of your data here\n"
        f"        group_pattern=r\"{pattern}\",\n        media_depth={None if stride is None else 0},\n"
        "    )\n)\n"
    )  # fmt: skip


def table_path(request: TrajectoryRequest, part: str) -> Path:
    """Where the table of a split goes."""
    return request.out / "data" / f"{request.name}_metadata_{part}.csv"


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


def read_frames(episode: Trajectory, wanted: set[int]) -> dict[int, Image]:
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


def save_frames(episode: Trajectory, wanted: Mapping[int, Path]) -> dict[int, str]:
    """Write frames under the given names as PNG; returns their file names."""
    names = {}
    for at, image in read_frames(episode, set(wanted)).items():
        path = wanted[at].with_suffix(".png")
        write_bytes(path, encode(image))
        names[at] = path.name
    return names


def encode(image: Image) -> bytes:
    """A frame (H, W, 3) uint8 RGB as PNG."""
    import cv2

    written, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not written:
        raise MediaError("A frame can't be written as PNG.")
    return data.tobytes()


def save_array(path: Path, values: npt.NDArray[np.float32]) -> None:
    """Write an array as .npy, whole or not at all."""
    with atomic_write(path) as stream:
        np.save(stream, values, allow_pickle=False)
