"""Episodes and clips: planned, staged, solved, drawn and written.

Each episode draws from a generator of its own, which the plan made before seeds:
neither the number of processes nor an interruption changes a byte.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import PCG64, Generator

from lary.arrays import Doubles, Floats, Pixels, npy_bytes
from lary.data.configs import SimulateConfig
from lary.data.images import png_bytes
from lary.files import digest, write_bytes
from lary.simulate import scene as scenes
from lary.simulate import shapes
from lary.simulate.behaviours import BEHAVIOURS, Script, Stage
from lary.simulate.kinematics import Solver, to_rpy
from lary.simulate.render import Renderer
from lary.types import LaryError

Rows = list[dict[str, str]]
VERBS = tuple(BEHAVIOURS)
HANDLING = ("lift", "lower", "pull", "push", "reach", "rotate")
"""Verbs about one loose object, which can be of a kind that training lacks."""
ROBOTS = ("heron", "badger")
STRIDE = 5
PAIRS_PER_EPISODE = 4
SAMPLED = 9
PAIR_SPLITS = ("train", "val", "unseen")
PAIRS, CLIPS = "simarm_metadata_", "simarm_actions_metadata_"
"""Beginnings of the names of the tables; the split follows."""
TABLES = (*(PAIRS + split for split in PAIR_SPLITS), f"{CLIPS}train", f"{CLIPS}val")
FRAMES_PER_SECOND = 7
FARTHEST_MISS = 0.003
"""Metres that the tool may miss its path by; beyond, the situation is drawn anew."""
ATTEMPTS = 40
FINGER_PLAY = 0.006
"""Metres from the middle of a finger to its inner face, half its thickness."""
ENCODER = "libx264"
X264 = {"crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1"}
"""The last keeps bytes independent of the processor, and with AVX-512 of chance."""


@dataclass(frozen=True)
class Recording:
    """One episode of image pairs, or one clip.

    Attributes:
        key: seeds all that is drawn for it.
        name: of the episode's folder, or the clip's file.
        frames: number T of frames, drawn or not.
        pairs: number of image pairs; 0 for a clip.
        first: number of its first frame in the split.
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

    @property
    def table(self) -> str:
        return (PAIRS if self.pairs else CLIPS) + self.split

    @property
    def folder(self) -> str:
        """The folder of its files, under DATA_DIR."""
        return f"regression/simarm/{self.split}_stride{STRIDE}" if self.pairs else "classification/SimArm"

    @property
    def wanted(self) -> list[int]:
        """The frames that are drawn, from 0."""
        return list(range(0, self.frames, STRIDE if self.pairs else 1))

    def image(self, frame: int) -> str:
        return f"images/{self.name}/frame_{self.first + frame:06d}.png"

    def state(self, frame: int) -> str:
        return f"states/{self.name}/state_{self.first + frame:06d}.npy"

    def action(self, frame: int) -> str:
        first, last = self.first + frame, self.first + frame + STRIDE - 1
        return f"actions/{self.name}/action_{first:06d}to{last:06d}.npy"

    @property
    def actions(self) -> list[str]:
        return [f"{self.folder}/{self.action(frame)}" for frame in self.wanted[:-1]]

    @property
    def files(self) -> list[str]:
        """Every file that it leaves, under DATA_DIR."""
        if not self.pairs:
            return [f"{self.folder}/{self.name}"]
        names = [*map(self.image, self.wanted), *map(self.state, self.wanted)]
        return [*(f"{self.folder}/{name}" for name in names), *self.actions]

    @property
    def rows(self) -> Rows:
        if not self.pairs:
            row = {"dataset": "SimArm", "robot_type": self.robot, "video_path": f"SimArm/{self.name}"}
            return [{**row, "action": self.verb, "sample_indices": ",".join(map(str, sampled(self.frames)))}]
        about = {"dataset": "SimArm", "type": "robot", "perspective": "3rd"}
        about |= {"robot_type": self.robot, "scene": self.room}
        return [
            {
                **about,
                "src_img": self.image(frame),
                "src_state": self.state(frame),
                "tgt_img": self.image(frame + STRIDE),
                "tgt_state": self.state(frame + STRIDE),
                "action": self.action(frame),
            }
            for frame in self.wanted[:-1]
        ]


def sampled(count: int) -> list[int]:
    """Nine of `count` frame numbers, evenly spaced."""
    return [math.floor(step * (count - 1) / (SAMPLED - 1) + 0.5) for step in range(SAMPLED)]


def make_plan(config: SimulateConfig) -> list[Recording]:
    """All episodes, with 60 % train, 20 % val and 20 % unseen pairs, then clips."""
    train, val = round(0.6 * config.pairs), round(0.2 * config.pairs)
    counts = (train, val, config.pairs - train - val)
    recordings = [each for split, count in enumerate(counts) for each in _episodes(config.seed, split, count)]
    return recordings + [_clip(config.seed, number) for number in range(config.clips)]


def _episodes(seed: int, split: int, count: int) -> list[Recording]:
    """Episodes of a split: both robots in turn, every verb about equally often."""
    name = PAIR_SPLITS[split]
    number = max(2, math.ceil(count / PAIRS_PER_EPISODE))
    rng = Generator(PCG64([seed, 0, split]))
    verbs = HANDLING if name == "unseen" else VERBS
    rooms = ("D",) if name == "val" else ("A", "B", "C")
    recordings, first, order = [], 0, np.array([], int)
    for index in range(number):
        if index % (2 * len(verbs)) == 0:
            order = rng.permutation(len(verbs))
        pairs = count // number + (index < count % number)
        recordings.append(
            Recording(
                key=(seed, 1, split, index),
                split=name,
                name=f"ep_{index}",
                robot=ROBOTS[index % 2],
                verb=verbs[order[index // 2 % len(verbs)]],
                room=rooms[rng.integers(len(rooms))],
                frames=STRIDE * pairs + 1,
                pairs=pairs,
                first=first,
            )
        )
        first += STRIDE * pairs + 1
    return recordings


def _clip(seed: int, number: int) -> Recording:
    """One clip: three in ten of a verb validate. The file name hides the verb."""
    turn, verb = divmod(number, len(VERBS))
    rng = Generator(PCG64([seed, 2, number]))
    return Recording(
        key=(seed, 3, number),
        split="val" if (turn + verb) * 3 % 10 < 3 else "train",
        name=f"clip_{digest(f'{seed}/{number}', length=12)}.mp4",
        robot=ROBOTS[(turn + verb // 2) % 2],
        verb=VERBS[verb],
        room="ABCD"[rng.integers(4)],
        frames=int(rng.integers(12, 16)),
    )


def rows_of_tables(recordings: Sequence[Recording]) -> dict[str, Rows]:
    """The rows of every table, clips in the order of their file names."""
    result: dict[str, Rows] = {name: [] for name in TABLES}
    for each in sorted(recordings, key=lambda each: "" if each.pairs else each.name):
        result[each.table] += each.rows
    return result


def follow(scene: scenes.Scene, script: Script, home: tuple[float, ...], frames: int) -> tuple[Doubles, Doubles] | None:
    """Joints (T, 7) and tool poses (T, 6) along a script; None out of reach."""
    solver = Solver(scene.model, scene.data, home)
    joints, _ = solver.solve(script.path.at(0.0), np.array(home), iterations=400)
    states, poses = [], []
    for time in np.linspace(0.0, 1.0, frames).tolist():
        joints, miss = solver.solve(script.path.at(time), joints)
        if miss > FARTHEST_MISS:
            return None
        position, rotation = solver.reached(joints)
        states.append(joints)
        poses.append(np.append(position, to_rpy(rotation)))
    return np.array(states), np.array(poses)


def stage(recording: Recording) -> tuple[Script, scenes.Scene, scenes.View, scenes.Lamp, Doubles, Doubles]:
    """Draw situations for a recording until the arm can follow the script.

    Returns the script in its scene, with joints (T, 7) and tool poses (T, 6).
    Raises LaryError where none is in reach, by a changed behaviour.
    """
    arm, room = scenes.ARMS[recording.robot], scenes.ROOMS[recording.room]
    unseen = recording.split == "unseen"
    kinds = shapes.UNSEEN_THINGS if unseen else shapes.TRAIN_THINGS
    for attempt in range(ATTEMPTS):
        rng = Generator(PCG64([*recording.key, attempt]))
        # The cameras of pairs are all on the side of +y.
        side = 1.0 if recording.pairs else math.copysign(1.0, room.camera[0])
        script = BEHAVIOURS[recording.verb](Stage(rng, kinds, side))
        taken = [item.pose[0] for item in script.placed]
        taken += [script.path.at(step / 8).position for step in range(9)]
        placed = script.placed + scenes.distractors(rng, kinds, taken)
        palette = arm.unseen_palette if unseen else shapes.draw(rng, arm.palettes)
        view = scenes.view_of(room, rng, fixed=bool(recording.pairs))
        lamp = scenes.lamp_of(room, view, rng)
        scene = scenes.build_scene(arm, palette, scenes.tinted(room, rng), placed)
        solved = follow(scene, script, arm.home, recording.frames)
        if solved:
            return script, scene, view, lamp, *solved
    raise LaryError(
        f"The arm {recording.robot} reached none of {ATTEMPTS} situations of '{recording.verb}': check its behaviour."
    )


def play(recording: Recording, size: int) -> tuple[list[Pixels], Floats]:
    """Stage a recording; returns frames that it wants, states (T, 15) float32 of all.

    A state is: tool position x y z (metres) and roll pitch yaw (radians) in
    the robot's base frame, the gripper's opening (metres), the seven joints
    (radians; the first of ``badger`` is its rail, in metres), and the
    gripper's command (-1 closed, 1 open). Raises LaryError.
    """
    import mujoco

    script, scene, view, lamp, joints, poses = stage(recording)
    times = np.linspace(0.0, 1.0, recording.frames).tolist()
    tools = [script.path.at(time) for time in times]
    renderer, frames = None, []
    for index in recording.wanted:
        scene.data.qpos[:7] = joints[index]
        scene.data.qpos[7:9] = tools[index].width / 2 + FINGER_PLAY
        for name, motion in script.motions.items():
            scene.place(name, *motion(times[index]))
        mujoco.mj_kinematics(scene.model, scene.data)
        # After the first placement: it draws what stands still at once.
        renderer = renderer or Renderer(scene, view, lamp, size)
        frames.append(renderer.frame())
    width, command = np.array([[tool.width, tool.command] for tool in tools]).T[..., None]
    return frames, np.hstack([poses, width, joints, command]).astype(np.float32)


def perform(recording: Recording, data_dir: Path, size: int) -> None:
    """Write a recording's files; action (7,) t is pose and command of state t + 1."""
    cv2.setNumThreads(1)
    root = data_dir / recording.folder
    images, states = play(recording, size)
    if not recording.pairs:
        write_bytes(root / recording.name, encode_video(images))
        return
    actions = np.hstack([states[1:, :6], states[1:, 14:]])
    for image, frame in zip(images, recording.wanted, strict=True):
        write_bytes(root / recording.image(frame), png_bytes(image, packing=4))
        write_bytes(root / recording.state(frame), npy_bytes(states[frame]))
        if frame < len(actions):
            write_bytes(root / recording.action(frame), npy_bytes(actions[frame : frame + STRIDE]))


def encode_video(frames: list[Pixels]) -> bytes:
    """RGB frames (H, W, 3) as H.264 in MP4. Raises LaryError where PyAV has no encoder."""
    import av

    if ENCODER not in av.codecs_available:
        raise LaryError(f"This PyAV has no encoder {ENCODER}: install the wheel of 'av' from PyPI.")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as video:
        stream: Any = video.add_stream(ENCODER, rate=FRAMES_PER_SECOND, options=X264)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode(None))
    return buffer.getvalue()
