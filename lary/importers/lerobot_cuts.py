"""What an episode of a LeRobot data set becomes on disk: image pairs with action chunks, or labelled atomic motions.

An episode's folder is filled under another name and takes its own when it is complete, so that an import that was
stopped goes on with the next episode.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lary.data.catalog import EPISODE
from lary.data.spec import ActionSpace, LabelSpace, Normalisation
from lary.files import read_json
from lary.importers.lerobot_atomic import AtomicPlan, segments_of
from lary.importers.lerobot_plan import Plan, sources
from lary.importers.lerobot_reader import Episode
from lary.importers.motions import ATOMIC_CLASSES, Segment, both_directions
from lary.types import LaryError

Floats = npt.NDArray[np.float32]
Names = Mapping[int, tuple[str, ...]]
"""Frames of an episode that are wanted, each with the names of its files below the episode's folder, no suffix."""

LABELS = "labels.json"


class Cut(Protocol):
    """How episodes become samples. ``images`` is the folder that holds an episode's images, below the data set's."""

    images: str

    def is_done(self, root: Path, episode: Episode) -> bool:
        """Whether all files of an episode are there."""
        ...

    def begin(self, root: Path, episode: Episode, values: Floats) -> Names:
        """Write what is told by the values (frames, A) alone; returns the frames that are wanted."""
        ...

    def rows(self, root: Path, episode: Episode) -> list[list[str]]:
        """Source image, target image and action of every sample of an episode that is done."""
        ...

    def choices(self) -> dict[str, Any]:
        """What decides the files, besides source and camera."""
        ...

    def record(self, name: str, root: str, plugin: Path) -> dict[str, Any]:
        """The fields of the data set's record that this cut decides."""
        ...


def cut_of(plan: Plan) -> Cut:
    """The cut that a plan asks for."""
    return PairCut(plan) if plan.atomic is None else AtomicCut(plan, plan.atomic)


@dataclass(frozen=True)
class PairCut:
    """Image pairs at a stride with their action chunks, in CALVIN's layout."""

    plan: Plan
    images = "images"

    def is_done(self, root: Path, episode: Episode) -> bool:
        return all(folder_of(root, kind, episode).is_dir() for kind in ("images", "actions"))

    def begin(self, root: Path, episode: Episode, values: Floats) -> Names:
        stride = self.plan.stride
        shutil.rmtree(folder_of(root, "actions", episode), ignore_errors=True)
        starts = sources(episode, stride)
        for at in starts:
            content = io.BytesIO()
            np.save(content, values[at : at + stride], allow_pickle=False)
            write_file(part_of(root, "actions", episode) / action_name(at, stride), content.getvalue())
        finish_part(root, "actions", episode)
        return {at: (f"frame_{at:06d}",) for at in range(0, starts[-1] + stride + 1, stride)}

    def rows(self, root: Path, episode: Episode) -> list[list[str]]:
        files = {path.stem: path.name for path in folder_of(root, "images", episode).iterdir()}
        place, stride = f"ep_{episode.index}", self.plan.stride
        return [
            [
                f"images/{place}/{files[f'frame_{at:06d}']}",
                f"images/{place}/{files[f'frame_{at + stride:06d}']}",
                f"actions/{place}/{action_name(at, stride)}",
            ]
            for at in sources(episode, stride)
        ]

    def choices(self) -> dict[str, Any]:
        return {"actions": list(self.plan.actions), "stride": self.plan.stride}

    def record(self, name: str, root: str, plugin: Path) -> dict[str, Any]:
        normalisation = Normalisation(
            stats_file=f"{root}/{name}_stats.json",
            command=f"lary data stats --dataset {name} --plugin {plugin}",
            relative_command=(
                f"lary data relative --dataset {name} --csv data/{name}_metadata_train.csv --plugin {plugin}"
            ),
        )
        return {
            "stride": self.plan.stride,
            "target": ActionSpace(self.plan.dims, self.plan.stride, normalisation),
            "group_pattern": EPISODE,
            "media_depth": 0,
        }


@dataclass(frozen=True)
class AtomicCut:
    """First and last image of each atomic motion, in both directions of time, in LIBERO's layout."""

    plan: Plan
    atomic: AtomicPlan
    images = ""

    def is_done(self, root: Path, episode: Episode) -> bool:
        return folder_of(root, "", episode).is_dir()

    def begin(self, root: Path, episode: Episode, values: Floats) -> Names:
        segments = segments_of(self.atomic, values)
        listed = json.dumps([[item.start, item.end, item.label] for item in segments])
        write_file(part_of(root, "", episode) / LABELS, listed.encode())
        names: dict[int, tuple[str, ...]] = {}
        for number, item in enumerate(segments):
            for end, frame in (("start", item.start), ("end", item.end)):
                names[frame] = (*names.get(frame, ()), f"action_{number:02d}/action_{end}")
        return names

    def rows(self, root: Path, episode: Episode) -> list[list[str]]:
        folder = folder_of(root, "", episode)
        try:
            found = read_json(folder / LABELS, "list of motions")
            segments = [Segment(int(start), int(end), str(label)) for start, end, label in found]
        except (TypeError, ValueError) as error:
            raise LaryError(f"{folder / LABELS} is torn: remove {folder} and import again.") from error
        files = {path.relative_to(folder).with_suffix("").as_posix(): path.suffix for path in folder.glob("*/*")}
        places: dict[tuple[int, int], list[str]] = {}
        for number, item in enumerate(segments):
            stems = [f"action_{number:02d}/action_{end}" for end in ("start", "end")]
            ends = [f"ep_{episode.index}/{stem}{files[stem]}" for stem in stems]
            places[item.start, item.end], places[item.end, item.start] = ends, ends[::-1]
        return [[*places[item.start, item.end], item.label] for item in both_directions(segments)]

    def choices(self) -> dict[str, Any]:
        return {"actions": list(self.plan.actions), "atomic": json.loads(json.dumps(asdict(self.atomic)))}

    def record(self, name: str, root: str, plugin: Path) -> dict[str, Any]:
        return {"target": LabelSpace(ATOMIC_CLASSES), "group_pattern": r"^([^/]+)/"}


# Files


def write_file(path: Path, content: bytes) -> None:
    """A file in the unfinished folder of an episode, which takes its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def action_name(at: int, stride: int) -> str:
    """``action_000005to000009.npy``: first and last frame of the chunk."""
    return f"action_{at:06d}to{at + stride - 1:06d}.npy"


def folder_of(root: Path, kind: str, episode: Episode) -> Path:
    """Where a kind of an episode's files goes."""
    return root / kind / f"ep_{episode.index}"


def part_of(root: Path, kind: str, episode: Episode) -> Path:
    """Where they are until they are complete."""
    return root / kind / f".ep_{episode.index}.part"


def finish_part(root: Path, kind: str, episode: Episode) -> None:
    """Give the finished folder of an episode its name."""
    target = folder_of(root, kind, episode)
    shutil.rmtree(target, ignore_errors=True)
    part_of(root, kind, episode).rename(target)
