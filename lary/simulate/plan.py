"""What a simulation consists of: every episode and clip, decided before the first ray is cast.

The tables follow from the plan alone, and so does everything in an episode: each draws from a generator of its own,
so that neither the number of processes nor an interruption changes a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lary.data.configs import SimulateConfig
from lary.files import digest
from lary.types import UsageError

GENERATOR = "1"
"""Version of what is drawn: another one makes other bytes from the same seed."""
VERBS = ("close", "lift", "lower", "open", "pour", "pull", "push", "reach", "rotate", "sweep")
HANDLING = ("lift", "lower", "pull", "push", "reach", "rotate")
"""The verbs that are about one loose object, and so can show objects that training never held."""
ROBOTS = ("heron", "badger")
STRIDE = 5
PAIRS_PER_EPISODE = 4
SAMPLED = 9
FEWEST = 10
PAIR_COLUMNS = (
    "dataset", "type", "perspective", "robot_type", "scene", "src_img", "src_state", "tgt_img", "tgt_state", "action",
)  # fmt: skip
CLIP_COLUMNS = ("dataset", "robot_type", "video_path", "action", "sample_indices")
PAIR_SPLITS = ("train", "val", "unseen")


def check_numbers(config: SimulateConfig) -> None:
    """Raise UsageError for numbers that make no data set."""
    if config.pairs < FEWEST or config.clips < FEWEST:
        raise UsageError(
            f"A simulation needs at least {FEWEST} pairs and {FEWEST} clips, not {config.pairs} and {config.clips}."
        )
    if config.size % 2 or not 32 <= config.size <= 1024:
        raise UsageError(f"Frames of {config.size} pixels: expected an even number from 32 to 1024.")
    if config.processes < 1 or config.seed < 0:
        raise UsageError("The number of processes is at least 1 and the seed at least 0.")


@dataclass(frozen=True)
class Recording:
    """One episode of image pairs, or one clip (then `pairs` is 0 and `name` the clip's file name).

    `key` seeds all that is drawn for it; `first` is the number of its first frame in the split.
    """

    key: tuple[int, ...]
    split: str
    name: str
    robot: str
    verb: str
    room: str
    frames: int
    pairs: int = 0
    first: int = 0
    unseen: bool = False

    @property
    def folder(self) -> str:
        """Where its files go, under DATA_DIR."""
        return f"regression/simarm/{self.split}_stride{STRIDE}" if self.pairs else "classification/SimArm"

    @property
    def wanted(self) -> list[int]:
        """The frames that are drawn, counted from the start of the episode."""
        return list(range(0, self.frames, STRIDE)) if self.pairs else list(range(self.frames))

    def image(self, frame: int) -> str:
        return f"images/{self.name}/frame_{self.first + frame:06d}.png"

    def state(self, frame: int) -> str:
        return f"states/{self.name}/state_{self.first + frame:06d}.npy"

    def action(self, frame: int) -> str:
        begin = self.first + frame
        return f"actions/{self.name}/action_{begin:06d}to{begin + STRIDE - 1:06d}.npy"

    @property
    def files(self) -> list[str]:
        """Every file that it leaves, under DATA_DIR."""
        if not self.pairs:
            return [f"{self.folder}/{self.name}"]
        names = [name for frame in self.wanted for name in (self.image(frame), self.state(frame))]
        names += [self.action(frame) for frame in self.wanted[:-1]]
        return [f"{self.folder}/{name}" for name in names]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Its rows in the table of its split."""
        if not self.pairs:
            indices = ",".join(str(index) for index in sample_indices(self.frames))
            return [("SimArm", self.robot, f"SimArm/{self.name}", self.verb, indices)]
        return [
            ("SimArm", "robot", "3rd", self.robot, self.room, self.image(frame), self.state(frame),
             self.image(frame + STRIDE), self.state(frame + STRIDE), self.action(frame))
            for frame in self.wanted[:-1]
        ]  # fmt: skip


def sample_indices(frames: int) -> list[int]:
    """Nine frame numbers, evenly from the first to the last, ascending."""
    return [math.floor(step * (frames - 1) / (SAMPLED - 1) + 0.5) for step in range(SAMPLED)]


def make_plan(config: SimulateConfig) -> list[Recording]:
    """All episodes, then all clips: 60, 20 and 20 % of the pairs train, validate and are unseen."""
    train, val = round(0.6 * config.pairs), round(0.2 * config.pairs)
    counts = (train, val, config.pairs - train - val)
    recordings = [
        recording for number, count in enumerate(counts) for recording in _episodes(config.seed, number, count)
    ]
    return recordings + [_clip(config.seed, number) for number in range(config.clips)]


def _episodes(seed: int, split: int, count: int) -> list[Recording]:
    """Episodes of a split: both robots by turns, each verb as often as any other as far as the number allows."""
    name = PAIR_SPLITS[split]
    number = max(2, math.ceil(count / PAIRS_PER_EPISODE))
    rng = np.random.Generator(np.random.PCG64([seed, 0, split]))
    verbs = HANDLING if name == "unseen" else VERBS
    rooms = ("D",) if name == "val" else ("A", "B", "C")
    recordings, first, order = [], 0, np.array([], dtype=int)
    for index in range(number):
        if index // 2 % len(verbs) == 0 and index % 2 == 0:
            order = rng.permutation(len(verbs))
        pairs = count // number + (index < count % number)
        recordings.append(Recording(
            key=(seed, 1, split, index), split=name, name=f"ep_{index}", robot=ROBOTS[index % 2],
            verb=verbs[order[index // 2 % len(verbs)]], room=rooms[rng.integers(len(rooms))], frames=STRIDE * pairs + 1,
            pairs=pairs, first=first, unseen=name == "unseen",
        ))  # fmt: skip
        first += STRIDE * pairs + 1
    return recordings


def _clip(seed: int, number: int) -> Recording:
    """One clip. Three of ten of every verb validate; the file's name says nothing about the verb."""
    turn, verb = divmod(number, len(VERBS))
    rng = np.random.Generator(np.random.PCG64([seed, 2, number]))
    return Recording(
        key=(seed, 3, number), split="val" if (turn + verb) * 3 % 10 < 3 else "train",
        name=f"clip_{digest(f'{seed}/{number}', length=12)}.mp4", robot=ROBOTS[(turn + verb // 2) % 2],
        verb=VERBS[verb], room="ABCD"[rng.integers(4)], frames=int(rng.integers(18, 23)),
    )  # fmt: skip


def tables(recordings: list[Recording]) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Columns and rows by table name, clips in the order of their file names."""
    result: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {}
    for split in PAIR_SPLITS:
        rows = [
            row for recording in recordings if recording.pairs and recording.split == split for row in recording.rows
        ]
        result[f"simarm_metadata_{split}"] = PAIR_COLUMNS, rows
    clips = sorted((recording for recording in recordings if not recording.pairs), key=lambda recording: recording.name)
    for split in ("train", "val"):
        rows = [row for recording in clips if recording.split == split for row in recording.rows]
        result[f"simarm_actions_metadata_{split}"] = CLIP_COLUMNS, rows
    return result
