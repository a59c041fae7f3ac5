"""What a simulation consists of: every episode and clip, decided before the first ray is cast.

The tables follow from the plan alone, and so does everything in an episode: each draws from a
generator of its own, so that neither the number of processes nor an interruption changes a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lary.data.configs import SimulateConfig
from lary.files import digest
from lary.types import UsageError

VERBS = ("close", "lift", "lower", "open", "pour", "pull", "push", "reach", "rotate", "sweep")
HANDLING = ("lift", "lower", "pull", "push", "reach", "rotate")
"""The verbs that are about one loose object, and so can show objects that training never held."""
ROBOTS = ("heron", "badger")
STRIDE = 5
PAIRS_PER_EPISODE = 4
SAMPLED = 9
FEWEST = 10
PAIR_SPLITS = ("train", "val", "unseen")
PAIRS, CLIPS = "simarm_metadata_", "simarm_actions_metadata_"
"""How the names of the tables begin; the split follows."""
TABLES = (*(PAIRS + split for split in PAIR_SPLITS), f"{CLIPS}train", f"{CLIPS}val")


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
    def table(self) -> str:
        """The name of the table that lists it, without ``.csv``."""
        return (PAIRS if self.pairs else CLIPS) + self.split

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
    def actions(self) -> list[str]:
        """Its files of actions, under DATA_DIR."""
        return [f"{self.folder}/{self.action(frame)}" for frame in self.wanted[:-1]]

    @property
    def files(self) -> list[str]:
        """Every file that it leaves, under DATA_DIR."""
        if not self.pairs:
            return [f"{self.folder}/{self.name}"]
        names = [name for frame in self.wanted for name in (self.image(frame), self.state(frame))]
        return [*(f"{self.folder}/{name}" for name in names), *self.actions]

    @property
    def rows(self) -> list[dict[str, str]]:
        """Its rows in the table of its split, by column."""
        common = {"dataset": "SimArm", "robot_type": self.robot}
        if not self.pairs:
            indices = ",".join(map(str, sampled(self.frames)))
            return [common | {"video_path": f"SimArm/{self.name}", "action": self.verb, "sample_indices": indices}]
        return [
            {
                "dataset": "SimArm",
                "type": "robot",
                "perspective": "3rd",
                "robot_type": self.robot,
                "scene": self.room,
                "src_img": self.image(frame),
                "src_state": self.state(frame),
                "tgt_img": self.image(frame + STRIDE),
                "tgt_state": self.state(frame + STRIDE),
                "action": self.action(frame),
            }
            for frame in self.wanted[:-1]
        ]


def sampled(count: int) -> list[int]:
    """Nine of `count` frame numbers, evenly from the first to the last, ascending."""
    return [math.floor(step * (count - 1) / (SAMPLED - 1) + 0.5) for step in range(SAMPLED)]


def make_plan(config: SimulateConfig) -> list[Recording]:
    """All episodes, then all clips: 60, 20 and 20 % of the pairs train, validate and are unseen."""
    train, val = round(0.6 * config.pairs), round(0.2 * config.pairs)
    recordings = []
    for split, count in enumerate((train, val, config.pairs - train - val)):
        recordings += _episodes(config.seed, split, count)
    return recordings + [_clip(config.seed, number) for number in range(config.clips)]


def _episodes(seed: int, split: int, count: int) -> list[Recording]:
    """Episodes of a split: both robots by turns, each verb about as often as any other."""
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


def rows_of_tables(recordings: Sequence[Recording]) -> dict[str, list[dict[str, str]]]:
    """The rows of every table, clips in the order of their file names."""
    result: dict[str, list[dict[str, str]]] = {name: [] for name in TABLES}
    for recording in sorted(recordings, key=lambda recording: "" if recording.pairs else recording.name):
        result[recording.table] += recording.rows
    return result
