"""What an episode becomes: image pairs with action chunks, or labelled atomic motions, in the published layouts.

Files of a cut are named by frame: ``images/ep_0/frame_000005.png`` and ``actions/ep_0/action_000005to000009.npy`` for
pairs (the layout of CALVIN), ``ep_0/action_03/action_start.png`` for motions (the layout of LIBERO).

Atomic motions and their labels are the deterministic half of the benchmark's data engine (arXiv 2604.11689, section 3):
the 26 combinations of forward/backward, left/right and up/down, and the opening and closing of the gripper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.arrays import npy_bytes
from lary.data.configs import MotionOptions
from lary.data.images import Image
from lary.types import Failure, UsageError

Values = npt.NDArray[np.floating[Any]]
LABELS = "labels.json"

# Atomic motions

DIRECTIONS = (("Forward", "Backward"), ("Left", "Right"), ("Up", "Down"))
"""The axes of a label, each as (positive, negative), in the order in which a label names them."""

OPEN, CLOSE = "Open", "Close"


def label_of(signs: Sequence[int]) -> str:
    """The label of a motion, such as ``Forward_Up``, from its signs (-1, 0 or 1) forward, left and up."""
    return "_".join(names[sign < 0] for names, sign in zip(DIRECTIONS, signs, strict=True) if sign)


ATOMIC_CLASSES = tuple(sorted([*filter(None, map(label_of, product((-1, 0, 1), repeat=3))), OPEN, CLOSE]))
"""The 28 classes."""

INVERSE = {
    **{label_of(signs): label_of([-sign for sign in signs]) for signs in product((-1, 0, 1), repeat=3) if any(signs)},
    OPEN: CLOSE,
    CLOSE: OPEN,
}
"""The label of the same segment seen from end to start."""


@dataclass(frozen=True, kw_only=True)
class AtomicRule:
    """How a trajectory is cut into atomic motions: `MotionOptions`, checked.

    ``axes`` are three signed names, ``grip`` is a number, and ``open_high`` says whether larger values are open.
    """

    threshold: float = 0.03
    reach: float = 0.08
    axes: tuple[str, ...] = ("+x", "+y", "+z")  # forward, left and up in most simulators' world frame
    grip: float = 0.5
    open_high: bool = True
    deltas: bool = False
    settle: int = 8

    @classmethod
    def of(cls, options: MotionOptions) -> AtomicRule:
        """The rule that a command asks for. Raises UsageError."""
        return cls(
            threshold=options.threshold,
            reach=options.reach,
            settle=options.settle,
            deltas=options.deltas,
            axes=tuple(part.strip() for part in options.axes.split(",")),
            grip=cls.grip if options.grip is None else options.grip,
            open_high=options.gripper_high == "open",
        )

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= self.reach:
            limits = f"expected more than 0 and at most --reach {self.reach:g}"
            raise UsageError(f"--threshold {self.threshold:g}: {limits}.")
        if self.settle < 1:
            raise UsageError(f"--settle {self.settle}: must be at least 1.")
        if sorted(axis[1:] for axis in self.axes) != ["x", "y", "z"] or any(axis[0] not in "+-" for axis in self.axes):
            raise UsageError(f"--axes {','.join(self.axes)}: expected x, y and z with signs, such as +x,+y,+z.")


@dataclass(frozen=True, slots=True)
class Segment:
    """An atomic motion: its first and last frame, and its label."""

    start: int
    end: int
    label: str


def atomic_segments(
    positions: npt.NDArray[np.floating], gripper: npt.NDArray[np.floating] | None, rule: AtomicRule
) -> list[Segment]:
    """Cut a trajectory into atomic motions, in order of time and without overlap.

    A motion lasts until the hand is `reach` away from its start along some axis, the gripper changes, or the
    trajectory ends. What has not moved by `threshold` along any axis by then gets no label and is left out.

    Args:
        positions: of the end effector, (T, 3).
        gripper: its opening, (T,); None for an arm without one.
    """
    picks = ["xyz".index(axis[1:]) for axis in rule.axes]
    senses = np.array([1.0 if axis[0] == "+" else -1.0 for axis in rule.axes])
    places = positions[:, picks].astype(np.float64) * senses
    if rule.deltas:  # a displacement shows in the next frame
        places = np.concatenate([np.zeros((1, 3)), np.cumsum(places[:-1], axis=0)])
    segments, start = [], 0
    for before, label in _gripper_changes(gripper, rule):
        if before >= start:  # a change while the gripper still settles belongs to that motion
            segments += _motions(places, start, before, rule)
            start = min(before + rule.settle, len(places) - 1)
            segments.append(Segment(before, start, label))
    return segments + _motions(places, start, len(places) - 1, rule)


def _gripper_changes(gripper: npt.NDArray[np.floating] | None, rule: AtomicRule) -> list[tuple[int, str]]:
    """The last frame before each change of the gripper's state, and what it does."""
    if gripper is None:
        return []
    opened = (gripper > rule.grip) == rule.open_high
    return [(int(at), OPEN if opened[at + 1] else CLOSE) for at in np.flatnonzero(opened[1:] != opened[:-1])]


def _motions(places: npt.NDArray[np.float64], start: int, last: int, rule: AtomicRule) -> list[Segment]:
    """Motions of the hand from frame `start` to frame `last`; places (T, 3) are forward, left and up."""
    found = []
    while start < last:
        moved = places[start + 1 : last + 1] - places[start]
        far = np.flatnonzero(np.abs(moved).max(axis=1) >= rule.reach)
        index = int(far[0]) if len(far) else len(moved) - 1
        signs = np.where(np.abs(moved[index]) >= rule.threshold, np.sign(moved[index]), 0).astype(int)
        if signs.any():
            found.append(Segment(start, start + 1 + index, label_of(signs.tolist())))
        start += 1 + index
    return found


# What is written of an episode


@dataclass(frozen=True)
class ImportReport:
    """What was imported: the plug-in for ``--plugin``, the number of rows by split, and what could not be used."""

    plugin: Path
    rows: Mapping[str, int]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class PairCut:
    """Image pairs at a stride with their action chunks; the label of a segment is the name of its chunk's file."""

    stride: int
    task = "regression"
    folders = ("actions", "images")
    """Folders that hold files of an episode, the one with the images last."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UsageError(f"--stride {self.stride}: must be at least 1.")

    def grid(self, length: int) -> list[Segment]:
        """The pairs of an episode of `length` frames: a grid from frame 0, pairs don't overlap.

        A pair's chunk is the actions of its source frame up to and excluding its target frame.
        """
        pairs = [(start, start + self.stride) for start in range(0, length - self.stride, self.stride)]
        return [Segment(start, end, f"action_{start:06d}to{end - 1:06d}.npy") for start, end in pairs]

    def segments(self, values: Values) -> list[Segment]:
        """The pairs of an episode with values (T, A)."""
        return self.grid(len(values))

    def stems(self, number: int, item: Segment) -> tuple[str, str]:
        """Names of the two images of a segment, without suffix."""
        return f"frame_{item.start:06d}", f"frame_{item.end:06d}"

    def files(self, values: Values, segments: Sequence[Segment]) -> dict[str, bytes]:
        """The content of the action files, (stride, A) float32, by path."""
        chunks = {item.label: values[item.start : item.end].astype(np.float32) for item in segments}
        return {f"actions/{name}": npy_bytes(chunk) for name, chunk in chunks.items()}

    def rows(self, folder: str, segments: Sequence[Segment], files: Mapping[str, str]) -> list[list[str]]:
        """Source image, target image and action of every sample; `files` are the names of the images by stem."""
        found = []
        for number, item in enumerate(segments):
            images = [f"images/{folder}/{files[stem]}" for stem in self.stems(number, item)]
            found.append([*images, f"actions/{folder}/{item.label}"])
        return found


@dataclass(frozen=True)
class MotionCut:
    """First and last image of each atomic motion, in both directions of time.

    Attributes:
        position: columns of the values with the end effector's x, y and z.
        gripper: column with the gripper's opening; None for an arm without one.
    """

    position: tuple[int, ...]
    gripper: int | None
    rule: AtomicRule
    stride = None
    task = "classification"
    folders = ("",)

    def segments(self, values: Values) -> list[Segment]:
        """The motions of an episode with values (T, A)."""
        opening = None if self.gripper is None else values[:, self.gripper]
        return atomic_segments(values[:, list(self.position)], opening, self.rule)

    def stems(self, number: int, item: Segment) -> tuple[str, str]:
        """Names of the two images of a segment, without suffix."""
        return f"action_{number:02d}/action_start", f"action_{number:02d}/action_end"

    def files(self, values: Values, segments: Sequence[Segment]) -> dict[str, bytes]:
        """The list of motions, by path: what a resumed import reads in place of the values."""
        return {LABELS: json.dumps([[item.start, item.end, item.label] for item in segments]).encode()}

    def rows(self, folder: str, segments: Sequence[Segment], files: Mapping[str, str]) -> list[list[str]]:
        """First image, last image and label of every motion, followed by itself seen from its end to its start."""
        found = []
        for number, item in enumerate(segments):
            images = [f"{folder}/{files[stem]}" for stem in self.stems(number, item)]
            found += [[*images, item.label], [*images[::-1], INVERSE[item.label]]]
        return found


Cut = PairCut | MotionCut


def image_stems(cut: Cut, segments: Sequence[Segment]) -> dict[int, tuple[str, ...]]:
    """The frames that segments need, each with the names of its image files, without suffix."""
    names: dict[int, tuple[str, ...]] = {}
    for number, item in enumerate(segments):
        for frame, stem in zip((item.start, item.end), cut.stems(number, item), strict=True):
            names[frame] = tuple(dict.fromkeys((*names.get(frame, ()), stem)))
    return names


def image_bytes(image: Image) -> bytes:
    """A frame (H, W, 3) uint8 RGB in the format of PNG files; packed fast rather than small."""
    import cv2

    _, content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return content.tobytes()
