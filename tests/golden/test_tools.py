"""What the tools for data and latents write: every new file, the numbers that they print, and what they refuse."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.golden import CASES, COMMANDS, Golden, Place, sha256, summaries
from tests.helpers import rows_of
from tests.lerobot_files import write_lerobot
from tests.tree import frame, make_calvin, make_robot, write_array, write_image, write_table, write_video

GOLDEN = Golden("tools")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
VOLATILE = re.compile(r'"(created|seconds)": ("[^"]*"|[\d.]+)')
SECONDS = re.compile(r"\b\d+(\.\d+)? (s|ms|seconds)\b")


# What the tools start from


def recordings(root: Path) -> None:
    """Recordings whose brightness tells the frame, one of them absent, and the tables that name their clips."""
    for name in ("ssv2/7.mp4", "egodex/part1/lid/9.mp4"):
        write_video(root / "raw" / name, [np.full((48, 48, 3), 8 * number, np.uint8) for number in range(30)])
    lines = "0.5 - 1.5 push\\n00:01.2 - 00:02.4 pull"
    seeds = {"ssv2": [("/x/7.mp4", lines), ("gone.mp4", "0 - 1")], "egodex": [("/d/unzipped/part1/lid/9.mp4", "0-1")]}
    for name, rows in seeds.items():
        cells = [{"video_path": path, "seed_output": text} for path, text in rows]
        write_table(root / "data" / f"seed_{name}.csv", cells)
    wanted = {"train": ("SSv2/0_0.mp4", "SSv2/0_1_rev.mp4", "SSv2/1_0.mp4"), "val": ("EgoDex/9/0_0_rev.mp4",)}
    for split, paths in wanted.items():
        cells = [{"dataset": path.split("/")[0], "video_path": path} for path in paths]
        write_table(root / "data" / f"human_1st_metadata_{split}.csv", cells)


def calvin(root: Path) -> None:
    make_calvin(root, {"train": 2, "val": 1}, pairs=2)


def damaged(root: Path) -> None:
    """Both layouts with a file absent, one torn and an action of the wrong shape."""
    calvin(root)
    make_robot(root, {"train": 2, "val": 1})
    (root / "data/classification/AgiBotWorld-Beta/train/0.mp4").unlink()
    folder = root / "data/regression/calvin/train_stride5"
    image, action = (sorted(folder.rglob(pattern)) for pattern in ("*.png", "*.npy"))
    image[1].write_bytes(image[1].read_bytes()[:60])
    np.save(action[2], np.zeros((5, 3), np.float32))


def shared(root: Path) -> None:
    """Splits that share an episode, frames and an action that never changes."""
    calvin(root)
    rows: list[dict[str, Any]] = [*rows_of(root / "data" / "calvin_metadata_train.csv")]
    write_table(root / "data" / "calvin_metadata_val.csv", rows[:2])
    data = root / "data" / "regression" / "calvin"
    shutil.rmtree(data / "val_stride5")
    shutil.copytree(data / "train_stride5", data / "val_stride5")


def clips(root: Path) -> None:
    make_robot(root, {"train": 4})
    folder = root / "data" / "classification"
    for name in ("motion", "short"):
        shutil.copy(CASES / f"sampling_{name}.mp4", folder / f"{name}.mp4")
    names = [f"AgiBotWorld-Beta/train/{number}.mp4" for number in range(2)] + ["motion.mp4", "short.mp4"]
    write_table(root / "clips.csv", [{"video_path": name, "action": "push"} for name in names])


def tables(root: Path) -> None:
    """Tables to split: clips with their reversals, and pairs of episodes and segments."""
    names = [f"SSv2/{row}_{line}{end}.mp4" for row in range(12) for line in range(2) for end in ("", "_rev")]
    cells = [{"video_path": name, "action": ("push", "pull")[len(name) % 2]} for name in names]
    write_table(root / "all_clips.csv", cells)
    cells = []
    for number in range(48):
        demo, segment = divmod(number // 2, 3)
        images = [f"task/demo_{demo}/seg_{segment}/{10 * number + step}.png" for step in (0, 5)]
        cells.append({"src_img": images[0], "tgt_img": images[1], "action": ("up", "down", "left")[number % 3]})
    for name in ("all_pairs", "pairs"):
        write_table(root / f"{name}.csv", cells)
    write_table(root / "all_x.csv", [{"a": 1}])


def trajectories(root: Path) -> None:
    """Episodes that move forward, close the gripper and move up; the last one is a video."""
    for number in range(4):
        folder, actions = root / "episodes" / str(number), np.zeros((13, 4))
        actions[:, 0] = 0.02 * np.minimum(np.arange(13), 4)
        actions[:, 2] = 0.02 * np.maximum(np.arange(13) - 7, 0)
        actions[:, 3] = np.arange(13) < 5
        pictures = [frame(5 * x, 5 * z, (200, 250 * int(grip), 20 * number)) for x, _, z, grip in actions]
        for index, picture in enumerate(pictures):
            if number < 3:
                write_image(folder / f"{index}.png", picture)
        if number == 3:
            write_video(folder / "camera.mp4", pictures)
        np.save(folder / "actions.npy", actions)


def videos(root: Path, count: int = 6, **columns: Sequence[str]) -> Path:
    """Videos of 12 frames in which a square moves, labels by turns; the folder of the videos."""
    rows = []
    for number in range(count):
        sign = 1 if number % 2 else -1
        steps = [frame(0.5 + sign * 0.03 * step, 0.1 + 0.1 * number, (220, 60, 60)) for step in range(12)]
        write_video(root / "videos" / f"day{number % 3}" / f"{number}.mp4", steps)
        row = {"file": f"day{number % 3}/{number}.mp4", "label": ("push", "pull")[number % 2]}
        rows.append(row | {name: values[number] for name, values in columns.items()})
    write_table(root / "labels.csv", rows)
    return root / "videos"


def lerobot(root: Path) -> None:
    write_lerobot(root / "old", "v2.1", "h264")
    write_lerobot(root / "new", "v3.0", images="PNG")


def robots(root: Path, count: int = 40) -> None:
    rng, rows = np.random.default_rng(5), []
    for number in range(count):
        path = f"t/actions/ep_0/{number}.npy"
        values = rng.normal(size=(10, 12)) * 1e-3 + 100 * rng.random()
        write_array(root / "data/regression/robocoin_10" / path, values.astype(np.float32))
        rows.append({"robot_type": "ab"[number % 2], "action": path, "src_img": "a.png", "tgt_img": "b.png"})
    for name, part in (("one", rows[:25]), ("two", rows[25:] or rows)):
        write_table(root / f"{name}.csv", part)


# What they write and print


def numbers(text: str) -> list[float]:
    """The numbers in a text, but for digests."""
    return [float(value) for value in NUMBER.findall(re.sub(r"\b[0-9a-f]{12,}\b", "", text))]


def plain(text: str, folder: Path) -> str:
    """A text without what differs from run to run: the temporary folder, and times."""
    return SECONDS.sub("<time>", text.replace(str(folder), "<0>"))


STARTS = {
    "clip": recordings, "stats": robots, "relative": calvin, "check": damaged, "split": tables, "pairs": trajectories,
    "atomic": trajectories, "import-videos": videos, "import-lerobot": lerobot, "audit": shared, "indices": clips,
    "latents": calvin,
}  # fmt: skip


def content(path: Path, root: Path) -> Any:
    """What a file holds, in a form that is the same wherever it was written."""
    if path.suffix in (".csv", ".txt"):
        text = plain(path.read_bytes().decode(), root)
        return text if len(text) < 1500 else sha256(text.encode())
    if path.suffix in (".json", ".jsonl"):
        text = VOLATILE.sub(r'"\1": ""', plain(path.read_text(), root))
        form = sha256(NUMBER.sub("0", text).encode())[:16]
        values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
        return {"form": form, "values": values}
    if path.suffix == ".npy" and "simarm" in path.parts:  # the last bits of a simulated motion depend on the processor
        return np.load(path).astype(float).tolist()
    if path.suffix == ".png":
        from PIL import Image

        return sha256(np.asarray(Image.open(path)).tobytes())[:16]
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as film:
            frames = [picture.to_ndarray(format="rgb24") for picture in film.decode(video=0)]
        brightness = [round(float(picture.mean()) / 8) for picture in frames]
        return {"shape": list(frames[0].shape), "brightness / 8": brightness}
    if path.suffix == ".npz":
        return summaries(path)
    return "" if path.suffix in (".py", ".lock") else sha256(path.read_bytes())[:32]


@pytest.mark.parametrize("name", COMMANDS["tools"])
def test_files_and_numbers(name: str, tmp_path: Path) -> None:
    if name == "simulate":
        pytest.importorskip("mujoco", reason="the simulator is part of the extra 'demo'")
    else:
        STARTS[name](tmp_path)
    place = Place(tmp_path)
    before = set(tmp_path.rglob("*"))
    for number, command in enumerate(COMMANDS["tools"][name]):
        code, words = re.fullmatch(r"(?:!(\d) )?(.*)", command).groups()  # type: ignore[union-attr]
        done = place(words, code=int(code or 0))
        GOLDEN.check(f"{name}, printed {number}", numbers(SECONDS.sub("<time>", re.sub(r"\bROOT\b", "<0>", done.out))))
    files = "**/*.[cjn][spu]*" if name == "simulate" else "**/*"
    new = sorted(path for path in set(tmp_path.glob(files)) - before if path.is_file() and "media_" not in path.name)
    GOLDEN.check(f"{name}, files", {path.relative_to(tmp_path).as_posix(): content(path, tmp_path) for path in new})


@pytest.mark.parametrize("name", COMMANDS["refused"])
def test_what_is_refused_or_shown_leaves_nothing(name: str, tmp_path: Path) -> None:
    STARTS.get(name, Place)(tmp_path)
    place = Place(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for command, texts in COMMANDS["refused"][name].items():
        code, words = re.fullmatch(r"(?:!(\d) )?(.*)", command).groups()  # type: ignore[union-attr]
        done = place(words, code=int(code or 2))
        assert [text for text in texts if text not in done.out + done.err] == [], done
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.name for path in left} <= {"mine_import_failures.csv"}
