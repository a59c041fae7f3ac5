"""One episode or clip: staged, solved, drawn and written."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from lary.arrays import npy_bytes
from lary.files import write_bytes
from lary.simulate import scene as scenes
from lary.simulate import shapes
from lary.simulate.behaviours import BEHAVIOURS, Script, Stage
from lary.simulate.kinematics import Array, Solver, to_rpy
from lary.simulate.plan import STRIDE, Recording
from lary.simulate.render import Frame, Renderer
from lary.types import LaryError

FRAMES_PER_SECOND = 10
FARTHEST_MISS = 0.003
"""Metres that the tool may miss its path by; a situation that the arm can't reach is drawn anew."""
ATTEMPTS = 40
FINGER_PLAY = 0.006
"""Metres from the middle of a finger to its inner face."""
ENCODERS = ("libx264", "libopenh264", "h264")
X264 = {"crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1"}
"""Without the last option, machines disagree, and with AVX-512 even two encodings do."""


@dataclass(frozen=True)
class Staged:
    """A script in its scene, with the joints (T, 7) and tool poses (T, 6) that the arm goes through."""

    script: Script
    scene: scenes.Scene
    view: scenes.View
    lamp: scenes.Lamp
    joints: Array
    poses: Array


def follow(scene: scenes.Scene, script: Script, home: tuple[float, ...], frames: int) -> tuple[Array, Array] | None:
    """Joints (T, 7) and tool poses (T, 6) along a script, or None where the arm can't follow."""
    solver = Solver(scene.model, scene.data, home)
    joints, miss = solver.solve(script.path.at(0.0).pose, np.array(home), iterations=400)
    states, poses = [], []
    for time in np.linspace(0.0, 1.0, frames):
        joints, miss = solver.solve(script.path.at(float(time)).pose, joints)
        if miss > FARTHEST_MISS:
            return None
        position, rotation = solver.reached(joints)
        states.append(joints)
        poses.append(np.concatenate([position, to_rpy(rotation)]))
    return np.array(states), np.array(poses)


def stage(recording: Recording) -> Staged:
    """Draw situations for a recording until the arm can follow the script.

    Raises:
        LaryError: none could be reached, which only a changed behaviour or arm can cause.
    """
    arm, room = scenes.ARMS[recording.robot], scenes.ROOMS[recording.room]
    kinds = shapes.UNSEEN_THINGS if recording.unseen else shapes.TRAIN_THINGS
    for attempt in range(ATTEMPTS):
        rng = np.random.Generator(np.random.PCG64([*recording.key, attempt]))
        side = 1.0 if recording.pairs else math.copysign(1.0, room.camera[0])
        script = BEHAVIOURS[recording.verb](Stage(rng, kinds, side))
        taken = [item.pose[0] for item in script.placed]
        taken += [script.path.at(float(time)).position for time in np.linspace(0.0, 1.0, 9)]
        placed = script.placed + scenes.distractors(rng, kinds, taken)
        palette = arm.unseen_palette if recording.unseen else arm.palettes[rng.integers(len(arm.palettes))]
        view = scenes.view_of(room, rng, fixed=bool(recording.pairs))
        lamp = scenes.lamp_of(room, view, rng)
        scene = scenes.build_scene(arm, palette, scenes.tinted(room, rng), placed)
        solved = follow(scene, script, arm.home, recording.frames)
        if solved is not None:
            return Staged(script, scene, view, lamp, *solved)
    raise LaryError(
        f"The arm {recording.robot} reached none of {ATTEMPTS} situations of '{recording.verb}': check its behaviour."
    )


def play(recording: Recording, size: int) -> tuple[list[Frame], npt.NDArray[np.float32]]:
    """Stage a recording; returns the frames that it wants, and the states (T, 15) float32 of all.

    A state is: tool position x y z (metres) and roll pitch yaw (radians) in the robot's base frame,
    the gripper's opening (metres), the seven joints (radians; the first of ``badger`` is its rail,
    in metres), and the gripper's command (-1 closed, 1 open).
    """
    import mujoco

    staged = stage(recording)
    script, data = staged.script, staged.scene.data
    times = np.linspace(0.0, 1.0, recording.frames)
    tools = [script.path.at(float(time)) for time in times]
    renderer: Renderer | None = None
    frames = []
    for index in recording.wanted:
        data.qpos[:7], data.qpos[7:9] = staged.joints[index], tools[index].width / 2 + FINGER_PLAY
        for name, motion in script.motions.items():
            staged.scene.place(name, *motion(float(times[index])))
        mujoco.mj_kinematics(staged.scene.model, data)
        renderer = renderer or Renderer(staged.scene, staged.view, staged.lamp, size)
        frames.append(renderer.frame())
    command = np.array([[tool.command] for tool in tools])
    width = np.array([[tool.width] for tool in tools])
    return frames, np.concatenate([staged.poses, width, staged.joints, command], axis=1).astype(np.float32)


def perform(recording: Recording, data_dir: Path, size: int) -> None:
    """Play a recording and write its files.

    The action at frame t is the pose that the state at t + 1 has, and its command.
    """
    cv2.setNumThreads(1)
    root = data_dir / recording.folder
    images, states = play(recording, size)
    if not recording.pairs:
        write_bytes(root / recording.name, encode_video(images))
        return
    for image, frame in zip(images, recording.wanted, strict=True):
        write_bytes(root / recording.image(frame), encode_png(image))
        write_bytes(root / recording.state(frame), npy_bytes(states[frame]))
    actions = np.concatenate([states[1:, :6], states[1:, 14:]], axis=1)
    for frame in recording.wanted[:-1]:
        write_bytes(root / recording.action(frame), npy_bytes(actions[frame : frame + STRIDE]))


def encode_png(image: Frame) -> bytes:
    """An RGB image (H, W, 3) as PNG."""
    done, data = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise LaryError("OpenCV could not encode a PNG.")
    return data.tobytes()


def encode_video(frames: list[Frame]) -> bytes:
    """RGB frames (H, W, 3) as H.264 in MP4, by one thread, so that the bytes depend on nothing else.

    Raises:
        LaryError: this PyAV has no H.264 encoder.
    """
    import av

    encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise LaryError("This PyAV has no H.264 encoder: install the wheel of 'av' from PyPI.")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = X264 if encoder == "libx264" else {}
        stream: Any = container.add_stream(encoder, rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
