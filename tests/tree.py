"""A small tree in the published layout: image pairs in CALVIN's form, clips in Robot_1st's form, tables for both."""

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 48
VERBS = ("pick", "place", "pour", "open")


def frame(x: float, y: float, colour: Sequence[int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a bright square at (x, y) in [0, 1]."""
    picture = np.full((SIZE, SIZE, 3), 40, dtype=np.uint8)
    row, column = (int(4 + value * (SIZE - 16)) for value in (y, x))
    picture[row : row + 10, column : column + 10] = colour
    return picture


def write_image(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def write_array(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def write_video(path: Path, frames: Sequence[np.ndarray], codec: str = "libx264", rate: int = 10, **how: str) -> None:
    """A video in H.264 without loss, or in another codec with its options: "png" keeps the colours, too.

    With loss, x264 decides differently from run to run, and what is decoded would differ with it.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"qp": "0", **how} if codec == "libx264" else how
        stream: Any = container.add_stream(codec, rate=Fraction(rate), options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_calvin(root: Path, episodes: dict[str, int], pairs: int = 3) -> Path:
    """`episodes` per split, each with `pairs` pairs; the square's target position is in the action. Returns `root`."""
    rng = np.random.default_rng(7)
    for split, count in episodes.items():
        folder = root / "data" / "regression" / "calvin" / f"{split}_stride5"
        rows, number = [], 0
        for episode in range(count):
            points = rng.random((pairs + 1, 2))
            for index in range(pairs + 1):
                picture = frame(*points[index], (250, 200, 20 * episode))
                write_image(folder / "images" / f"ep_{episode}" / f"frame_{number + 5 * index:06d}.png", picture)
            for index in range(pairs):
                first = number + 5 * index
                chunk = np.zeros((5, 7), dtype=np.float32)
                chunk[:, :2] = np.linspace(points[index], points[index + 1], 5)
                chunk[:, 6] = 1
                action = f"ep_{episode}/action_{first:06d}to{first + 4:06d}.npy"
                write_array(folder / "actions" / action, chunk)
                row = {"dataset": "CALVIN", "type": "robot", "perspective": "1st"}
                for end, at in (("src", first), ("tgt", first + 5)):
                    row[f"{end}_img"] = f"images/ep_{episode}/frame_{at:06d}.png"
                    row[f"{end}_state"] = f"states/ep_{episode}/state_{at:06d}.npy"
                rows.append(row | {"action": f"actions/{action}"})
            number += 5 * (pairs + 1)
        write_table(root / "data" / f"calvin_metadata_{split}.csv", rows)
    return root


def make_robot(root: Path, clips: dict[str, int], codec: str = "libx264") -> Path:
    """`clips` per split: squares that move left, right, up or down, one verb each. Returns `root`."""
    rng = np.random.default_rng(8)
    moves = {"pick": (0, -1), "place": (0, 1), "pour": (1, 0), "open": (-1, 0)}
    folder = root / "data" / "classification"
    for split, count in clips.items():
        rows = []
        for index in range(count):
            verb = VERBS[index % len(VERBS)]
            start = 0.3 + 0.4 * rng.random(2)
            steps = [np.clip(start + 0.03 * step * np.array(moves[verb]), 0, 1) for step in range(12)]
            name = f"AgiBotWorld-Beta/{split}/{index}.mp4"
            write_video(folder / name, [frame(*point, (200, 60, 60)) for point in steps], codec)
            row = {"dataset": "AgiBotWorld-Beta", "video_path": name, "action": verb}
            rows.append(row | {"sample_indices": "0,1,2,4,5,7,8,10,11"})
        write_table(root / "data" / f"robot_1st_metadata_{split}.csv", rows)
    return root
