"""Writes tiny LeRobot data sets in the formats v2.1 and v3.0: videos in H.264 or AV1, or images; two cameras."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.tree import write_video

FPS, HEIGHT, WIDTH = 10, 64, 80
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
CAMERAS = (WRIST, FRONT)
NAMES = ["x", "y", "z", "gripper", "gripper"]
CODECS: dict[str, dict[str, Any]] = {
    "h264": {"codec": "libx264", "g": "4"},
    "av1": {"codec": "libsvtav1", "crf": "12", "preset": "12", "g": "4"},
}
LENGTHS = (13, 9, 11, 12)
PLACES = {
    "v2.1": ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
             "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
    "v3.0": ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
             "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
}  # fmt: skip
SQUARES = [(slice(at, at + 20), slice(4 + 19 * column, 19 + 19 * column)) for at in (8, 36) for column in range(4)]


def picture(camera: str, episode: int, frame: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 that tells camera, episode and frame: a binary number in large squares."""
    number = frame + 32 * episode + 128 * CAMERAS.index(camera)
    image = np.full((HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
    for bit, square in enumerate(SQUARES):
        image[square] = 230 if number >> bit & 1 else 20
    return image


def told(image: np.ndarray) -> tuple[str, int, int]:
    """Camera, episode and frame that a picture tells."""
    number = sum(int(image[square].mean() > 125) << bit for bit, square in enumerate(SQUARES))
    return CAMERAS[number >> 7], number >> 5 & 3, number & 31


def actions(episode: int, length: int) -> np.ndarray:
    """Values (length, 5) float32."""
    values = np.random.default_rng(episode).normal(size=(length, 5)).astype(np.float32)
    values[:, 0] = 100 * episode + np.arange(length)
    return values


def hand(episode: int, length: int) -> np.ndarray:
    """Values (length, 5) of a hand that goes forward, closes (90 to 10) and goes up; episodes differ in pace."""
    steps, pace, values = np.arange(length), 0.04 + 0.01 * episode, np.zeros((length, 5), dtype=np.float32)
    values[:, 0], values[:, 2] = pace * np.minimum(steps, 3), pace * np.maximum(steps - 6, 0)
    values[:, 3] = np.where(steps < 4, 90, 10)
    return values


def episode_rows(episode: int, length: int, start: int, images: str | None) -> dict[str, Any]:
    values, whole = actions(episode, length), pa.int64()
    rows: dict[str, Any] = {
        "action": pa.array(values.tolist(), pa.list_(pa.float32())),
        "observation.state": pa.array((-values[:, :2]).tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
        "frame_index": pa.array(range(length), whole), "episode_index": pa.array([episode] * length, whole),
        "index": pa.array(range(start, start + length), whole), "task_index": pa.array([0] * length, whole),
    }  # fmt: skip
    for camera in CAMERAS if images else ():
        files = [io.BytesIO() for _ in range(length)]
        for at, file in enumerate(files):
            Image.fromarray(picture(camera, episode, at)).save(file, format=images)
        rows[camera] = pa.array([{"bytes": file.getvalue(), "path": "frame.png"} for file in files])
    return rows


def info_of(version: str, images: str | None, **changes: Any) -> dict[str, Any]:
    vector, sides = {"dtype": "float32"}, ["height", "width", "channels"]
    camera = {"dtype": "image" if images else "video", "shape": [HEIGHT, WIDTH, 3], "names": sides}
    return {
        "codebase_version": version, "robot_type": "so100", "fps": FPS, "chunks_size": 3, "splits": {"train": "0:4"},
        "total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS),
        "data_path": PLACES[version][0], "video_path": None if images else PLACES[version][1],
        "features": {
            **dict.fromkeys(CAMERAS, camera),
            "action": {**vector, "shape": [5], "names": {"motors": NAMES}},
            "observation.state": {**vector, "shape": [2], "names": None},
            "timestamp": {**vector, "shape": [1], "names": None},
            "frame_index": {"dtype": "int64", "shape": [1], "names": None},
        },
        **changes,
    }  # fmt: skip


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_lerobot(root: Path, version: str, codec: str = "h264", images: str | None = None, **changes: Any) -> Path:
    """A data set of four episodes; in v3.0 two share a file. ``images`` is PNG or JPEG instead of videos."""
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info_of(version, images, **changes)))
    (root / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- LeRobot\n---\n# A data set\n")
    old, starts, listed = version == "v2.1", np.cumsum([0, *LENGTHS]).tolist(), []
    videos = [] if images else CAMERAS
    for file, members in enumerate([(0,), (1,), (2,), (3,)] if old else [(0, 1), (2, 3)]):
        where = {"episode_chunk": file // 3, "episode_index": file, "chunk_index": 0, "file_index": file}
        parts = [episode_rows(episode, LENGTHS[episode], starts[episode], images) for episode in members]
        joined = {key: pa.concat_arrays([part[key] for part in parts]) for key in parts[0]}
        write_parquet(root / PLACES[version][0].format(**where), joined)
        for camera in videos:
            frames = [picture(camera, episode, at) for episode in members for at in range(LENGTHS[episode])]
            write_video(root / PLACES[version][1].format(**where, video_key=camera), frames, **CODECS[codec])
        for episode in members:
            row = {"episode_index": episode, "tasks": ["pick, then place"], "length": LENGTHS[episode]}
            listed.append(row if old else row | {"data/chunk_index": 0, "data/file_index": file, "stats/mean": [0.0]})
            time = (starts[episode] - starts[members[0]]) / FPS
            for place in [] if old else [f"videos/{camera}/" for camera in videos]:
                listed[-1] |= {f"{place}chunk_index": 0, f"{place}file_index": file, f"{place}from_timestamp": time}
    if old:
        (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, listed)) + "\n")
    else:
        columns = {key: [row[key] for row in listed] for key in listed[0]}
        write_parquet(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", columns)
    return root
