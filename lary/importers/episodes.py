"""What an episode becomes: image pairs with action chunks, or labelled atomic motions, in the published layouts.

Files of a cut are named by frame: ``images/ep_0/frame_000005.png`` and ``actions/ep_0/action_000005to000009.npy`` for
pairs (the layout of CALVIN), ``ep_0/action_03/action_start.png`` for motions (the layout of LIBERO).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.arrays import npy_bytes
from lary.data.images import Image
from lary.importers.motions import INVERSE, AtomicRule, Segment, atomic_segments
from lary.types import Failure, UsageError

Values = npt.NDArray[np.floating[Any]]
LABELS = "labels.json"


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
