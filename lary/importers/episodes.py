"""Episodes as image pairs with action chunks or labelled atomic motions.

Files of a cut are named by frame: ``images/ep_0/frame_000005.png`` and
``actions/ep_0/action_000005to000009.npy`` for pairs (the layout of CALVIN),
``ep_0/action_03/action_start.png`` for motions (the layout of LIBERO), which
are those of arXiv 2604.11689, section 3.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lary.arrays import Doubles, npy_bytes
from lary.data.configs import MotionOptions
from lary.data.frames import to_rgb
from lary.data.images import PNG, png_bytes
from lary.registry import suggest
from lary.runtime import progress
from lary.types import Failure, LaryError, MediaError, UsageError

Values = npt.NDArray[np.floating[Any]]
Rows = list[list[str]]
MOST_VALUES = 4096
"""Steps and dimensions of actions."""
PART = ".part"
"""The folder of an episode's images until it is complete."""


class Segment(NamedTuple):
    """First and last frame of a part of an episode, and its label or file of actions."""

    start: int
    end: int
    label: str


# Atomic motions

DIRECTIONS = (("Forward", "Backward"), ("Left", "Right"), ("Up", "Down"))
"""The axes of a label, each as (positive, negative), in its order."""

OPEN, CLOSE = "Open", "Close"


def label_of(signs: Sequence[int]) -> str:
    """The label of a motion, such as ``Forward_Up``, from its signs forward, left and up."""
    return "_".join(names[sign < 0] for names, sign in zip(DIRECTIONS, signs, strict=True) if sign)


INVERSE = {OPEN: CLOSE, CLOSE: OPEN} | {
    label_of(signs): label_of([-sign for sign in signs]) for signs in product((-1, 0, 1), repeat=3) if any(signs)
}
"""The label of the same segment seen from end to start."""

ATOMIC_CLASSES = tuple(sorted(INVERSE))
"""The 28 classes."""


@dataclass(frozen=True)
class AtomicRule:
    """How a trajectory is cut: `MotionOptions`, checked; `open_high`: larger values are open."""

    threshold: float = 0.03
    reach: float = 0.08
    axes: tuple[str, ...] = ("+x", "+y", "+z")  # forward, left and up in most simulators' world frame
    grip: float = 0.5
    open_high: bool = True
    deltas: bool = False
    settle: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= self.reach:
            raise UsageError(f"--threshold {self.threshold:g}: expected more than 0, at most --reach {self.reach:g}.")
        if self.settle < 1:
            raise UsageError(f"--settle {self.settle}: must be at least 1.")
        if sorted(axis[1:] for axis in self.axes) != ["x", "y", "z"] or any(axis[0] not in "+-" for axis in self.axes):
            raise UsageError(f"--axes {','.join(self.axes)}: expected x, y and z with signs, such as +x,+y,+z.")

    @classmethod
    def of(cls, options: MotionOptions, grip: float = 0.5) -> AtomicRule:
        """The rule of a command; `grip` is the middle of the gripper's range.

        Raises UsageError.
        """
        axes = tuple(map(str.strip, options.axes.split(",")))
        middle, opens = grip if options.grip is None else options.grip, options.gripper_high == "open"
        return cls(options.threshold, options.reach, axes, middle, opens, options.deltas, options.settle)


def atomic_segments(positions: Values, gripper: Values | None, rule: AtomicRule) -> list[Segment]:
    """Cut positions (T, 3) and gripper openings (T,) into motions in order, without overlap.

    A motion lasts until the hand is `reach` away along an axis, the gripper
    changes, or the end. One below `threshold` along all axes is left out.
    """
    columns = ["xyz".index(axis[1:]) for axis in rule.axes]
    signs = np.array([1.0 if axis[0] == "+" else -1.0 for axis in rule.axes])
    points = positions[:, columns].astype(np.float64) * signs
    if rule.deltas:  # a displacement shows in the next frame
        points = np.vstack([np.zeros(3), np.cumsum(points[:-1], 0)])
    opened = np.zeros(len(points), bool) if gripper is None else (gripper > rule.grip) == rule.open_high
    segments, start = [], 0
    for before in np.flatnonzero(opened[1:] != opened[:-1]).tolist():
        if before >= start:  # a change while the gripper still settles belongs to that motion
            segments += _motions(points, start, before, rule)
            start = min(before + rule.settle, len(points) - 1)
            segments.append(Segment(before, start, OPEN if opened[before + 1] else CLOSE))
    return segments + _motions(points, start, len(points) - 1, rule)


def _motions(points: Doubles, start: int, last: int, rule: AtomicRule) -> list[Segment]:
    """Motions of the hand from `start` to `last`; points (T, 3) are forward, left and up."""
    found = []
    while start < last:
        moved = points[start + 1 : last + 1] - points[start]
        far = np.flatnonzero(np.abs(moved).max(1) >= rule.reach)
        index = int(far[0]) if len(far) else len(moved) - 1
        signs = np.where(np.abs(moved[index]) >= rule.threshold, np.sign(moved[index]), 0).astype(int)
        if signs.any():
            found.append(Segment(start, start + 1 + index, label_of(signs.tolist())))
        start += 1 + index
    return found


# Cuts


@dataclass(frozen=True)
class PairCut:
    """Pairs that don't overlap, and the actions from source up to and excluding target."""

    stride: int
    task = "regression"

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UsageError(f"--stride {self.stride}: must be at least 1.")

    def segments(self, values: Values) -> list[Segment]:
        """The pairs of an episode with values (T, A)."""
        step, ends = self.stride, range(self.stride, len(values), self.stride)
        return [Segment(end - step, end, f"action_{end - step:06d}to{end - 1:06d}.npy") for end in ends]


@dataclass(frozen=True)
class MotionCut:
    """First and last image of each atomic motion, in both directions of time."""

    position: tuple[int, ...]
    gripper: int | None
    rule: AtomicRule
    stride = None
    task = "classification"

    def segments(self, values: Values) -> list[Segment]:
        """The motions of an episode with values (T, A). Raises MediaError."""
        last = max(*self.position, self.gripper or 0)
        if last >= values.shape[1]:
            raise MediaError(f"There are {values.shape[1]} action dimensions: no column {last}.")
        opening = None if self.gripper is None else values[:, self.gripper]
        return atomic_segments(values[:, list(self.position)], opening, self.rule)


@dataclass(frozen=True)
class TaskCut(PairCut):
    """Pairs with the text of the task as label."""

    task = "classification"


Cut = PairCut | MotionCut


def find_position(option: str, dims: Sequence[str] = ()) -> tuple[int, ...]:
    """The columns of x, y and z that ``--position`` names. Raises UsageError."""
    found = tuple(find_column("--position", part, dims) for part in option.split(","))
    if len(found) != 3 or len(set(found)) != 3:
        raise UsageError(f"--position {option}: expected three values, such as 0,1,2; --labels task needs none.")
    return found


def find_column(option: str, text: str, dims: Sequence[str]) -> int:
    """The column of a value by its name or number. Raises UsageError."""
    name = text.strip()
    if name in dims:
        return list(dims).index(name)
    if name.isdecimal() and (not dims or int(name) < len(dims)):
        return int(name)
    raise UsageError(f"{option} {text}: the values are {', '.join(dims) or 'numbers'}.{suggest(name, dims)}")


# Writing


class SourceEpisode(NamedTuple):
    """An episode to import: its folder, its name in messages, and its task in words.

    `values` reads its values (T, A); `images` gives for T the image files of
    ascending frames.
    """

    folder: str
    label: str
    values: Callable[[], Values]
    images: Callable[[int, list[int]], Iterable[bytes]]
    text: str = ""


def import_episodes(
    episodes: Sequence[SourceEpisode], cut: Cut, root: Path, *, resume: bool = False
) -> tuple[dict[str, Rows], list[Failure]]:
    """Write images and actions of episodes; returns rows by folder, and failures.

    `resume` keeps folders of images, which appear whole.
    """
    rows, failures = {}, []
    with progress(len(episodes), "importing", "episode") as bar:
        for item in episodes:
            images = root / ("images" if cut.stride else "") / item.folder
            try:
                rows[item.folder] = _import_episode(item, cut, root, images, keep=resume and images.is_dir())
            except (LaryError, ValueError) as error:  # PyAV's errors of damaged frames are ValueErrors
                failures.append(Failure(None, item.label, str(error)))
                for folder in (root / PART, root / "actions" / item.folder, images):
                    shutil.rmtree(folder, ignore_errors=True)
            bar.advance()
    return rows, failures


def _import_episode(item: SourceEpisode, cut: Cut, root: Path, images: Path, *, keep: bool) -> Rows:
    """Write the files of an episode; its rows. Raises MediaError."""
    values, part, actions = item.values(), root / PART, root / "actions" / item.folder
    if isinstance(cut, TaskCut) and not item.text:
        raise MediaError("The episode has no text of a task, or several.")
    segments, rows = cut.segments(values), []
    wanted: dict[int, set[str]] = {}  # names of image files by frame, without their endings
    for number, segment in enumerate(segments):
        if cut.stride:
            names = f"frame_{segment.start:06d}", f"frame_{segment.end:06d}"
            rows.append([*names, item.text or f"actions/{item.folder}/{segment.label}"])
        else:  # the second is the same seen from its end to its start
            names = f"action_{number:02d}/action_start", f"action_{number:02d}/action_end"
            rows += [[*names, segment.label], [*names[::-1], INVERSE[segment.label]]]
        for at, name in zip(segment[:2], names, strict=True):
            wanted.setdefault(at, set()).add(name)
    if not keep:
        for folder in (part, images, actions):  # also of a run that was killed
            shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(parents=True)
        if cut.stride and not item.text:
            actions.mkdir(parents=True)
            for segment in segments:
                chunk = values[segment.start : segment.end].astype(np.float32)
                (actions / segment.label).write_bytes(npy_bytes(chunk))
        frames = sorted(wanted)
        for at, content in zip(frames, item.images(len(values), frames) if frames else (), strict=True):
            for name in wanted[at]:
                path = part / f"{name}{'.png' if content.startswith(PNG) else '.jpg'}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        images.parent.mkdir(parents=True, exist_ok=True)
        part.rename(images)
    files = {}
    for path in images.rglob("*.*"):
        files[path.with_suffix("").relative_to(images).as_posix()] = path.relative_to(root).as_posix()
    return [[files[first], files[last], action] for first, last, action in rows]


def video_images(frames: Iterator[tuple[int, Any]], wanted: Iterable[int]) -> Iterator[bytes]:
    """The image files of ascending frames of a video. Raises MediaError."""
    for number in wanted:
        frame = next((frame for at, frame in frames if at == number), None)
        if frame is None:
            raise MediaError("The video is damaged, or ends before the last frame of the episode.")
        yield png_bytes(to_rgb(frame), packing=1)
