"""Videos that several LeRobot episodes share: drifting starts, lost frames, clocks, damaged pictures; what is read."""

import json
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lary.data.images import read_image
from lary.importers.lerobot_reader import LeRobot, frame_numbers, open_lerobot
from lary.types import LaryError, MediaError
from tests.helpers import fails
from tests.importers.test_lerobot import STRIDE, failed, rows, run
from tests.lerobot_files import (
    CODECS,
    FPS,
    FRONT,
    LENGTHS,
    WRIST,
    episode_rows,
    info_of,
    picture,
    told,
    write_lerobot,
    write_parquet,
)
from tests.tree import write_video

FILM = f"source/videos/{FRONT}/chunk-000/file-000.mp4"
TABLE = "source/data/chunk-000/file-000.parquet"


def write_joined(root: Path, frames: Any = LENGTHS, late: Any = 0, jitter: float = 0, codec: str = "h264") -> None:
    """Four episodes in one video with so many `frames` of each; their starts are `late` by some frames."""
    info, begins = info_of("v3.0", None, splits={"val": "0:1"}), np.cumsum([0, *frames])[:4]
    parts = [episode_rows(episode, length, 0, None) for episode, length in enumerate(LENGTHS)]
    for episode, part in enumerate(parts):
        noise = np.random.default_rng(episode).normal(0, jitter, LENGTHS[episode])
        part["timestamp"] = pa.array(part["timestamp"].to_numpy() + np.cumsum(noise).astype(np.float32))
    write_parquet(root / TABLE, {key: pa.concat_arrays([part[key] for part in parts]) for key in parts[0]})
    shown = [picture(FRONT, episode, at) for episode, length in enumerate(frames) for at in range(length)]
    write_video(root / FILM, shown, **CODECS[codec])
    whole = {key: [0] * 4 for key in ("data/chunk_index", "data/file_index")}
    film = {f"videos/{FRONT}/{key}": [0] * 4 for key in ("chunk_index", "file_index")}
    film[f"videos/{FRONT}/from_timestamp"] = ((begins + late) / FPS).tolist()
    episodes = {"episode_index": range(4), "length": LENGTHS, "tasks": [["pick"]] * 4}
    write_parquet(root / "source/meta/episodes/chunk-000/file-000.parquet", {**episodes, **whole, **film})
    (root / "source/meta/info.json").write_text(json.dumps(info))


def right_episodes(root: Path) -> set[int]:
    """The imported episodes, whose images have to be those of their rows."""
    found = rows(root)
    for row in found:
        for name in ("src_img", "tgt_img"):
            image = root / "data/regression/arm" / row[name]
            assert told(read_image(image)) == (FRONT, int(row["episode"]), int(image.stem.removeprefix("frame_")))
    return {int(row["episode"]) for row in found}


@pytest.mark.parametrize(
    ("frames", "late", "wrong"),
    [
        (LENGTHS, (0, 0.7, 0.7, 0), {1, 2}),
        (LENGTHS, (0, -0.7, -0.7, 0), {1, 2}),
        (LENGTHS, (0, 0, 1, 0), {2}),
        (LENGTHS, (0, 0, 2, 2), {2, 3}),
        (LENGTHS, (0, 0.4, -0.4, 0.3), set()),
        ((13, 7, 11, 12), (0, 0, 0, 0), {1}),
        ((13, 8, 9, 12), (0, 0, 0, 0), {1, 2}),
        ((15, 9, 12, 14), (0, 0, 0, 0), set()),
    ],
)  # fmt: skip
def test_no_image_is_of_another_row(tmp_path: Path, frames: Any, late: Any, wrong: set[int]) -> None:
    """Drift of less than half a frame and frames between episodes cost nothing; the rest costs its own episodes."""
    write_joined(tmp_path, frames, late)
    text = run(tmp_path, *STRIDE, code=int(bool(wrong)))
    assert right_episodes(tmp_path) == {0, 1, 2, 3} - wrong
    assert set(map(int, failed(tmp_path))) == wrong if wrong else "0 episodes failed" in text


@pytest.mark.parametrize(("lost", "late", "right"), [(2, (0, 0, 2, 2), ""), (1, (0, 0, 3, 3), "0")])
def test_a_video_that_lost_frames_anywhere_is_left_out(tmp_path: Path, lost: int, late: Any, right: str) -> None:
    """Starts that count rows, or that drift too, do not tell which episode lost them."""
    write_joined(tmp_path, (13, 9 - lost, 11, 12), late)
    assert f"contradict each other or its {45 - lost} frames" in run(tmp_path, *STRIDE, code=1)
    assert "".join(failed(tmp_path)) == "0123".replace(right, "")


@pytest.mark.parametrize("kind", ["joined", "v2.1"])
def test_times_of_a_real_clock(tmp_path: Path, kind: str) -> None:
    if kind == "joined":
        write_joined(tmp_path, jitter=0.03)
    else:
        source = write_lerobot(tmp_path / "source", "v2.1")
        for path in source.glob("data/*/*.parquet"):
            table = pq.read_table(path)
            place = table.column_names.index("timestamp")
            times = pa.array((np.arange(len(table)) * 0.15).astype(np.float32))
            pq.write_table(table.set_column(place, "timestamp", times), path)
    words = "taken in order (episodes 0, 1, 2, 3)"
    assert words in run(tmp_path, *STRIDE)
    assert right_episodes(tmp_path) == {0, 1, 2, 3}
    assert words in run(tmp_path, *STRIDE), "a resumed import says so, too"


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_damaged_picture_costs_its_own_episode(tmp_path: Path, codec: str) -> None:
    write_joined(tmp_path, codec=codec)
    with av.open(str(tmp_path / FILM)) as container:
        packet = sorted((item for item in container.demux(video=0) if item.size), key=lambda item: item.pts)[16]
    content = bytearray((tmp_path / FILM).read_bytes())
    content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    (tmp_path / FILM).write_bytes(content)
    run(tmp_path, *STRIDE, code=1)
    assert (right_episodes(tmp_path), list(failed(tmp_path))) == ({0, 2, 3}, ["1"])


def test_depth_is_no_default(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    path = source / "meta/info.json"
    info = json.loads(path.read_text())
    kinds = {key: kind for key, kind in info["features"].items() if key not in (FRONT, WRIST)}
    camera, top = info["features"][FRONT], "observation.images.top"
    marks: list[Any] = [{"info": {"video.is_depth_map": True}}, {"info": {"is_depth_map": True}}, {"is_depth_map": 1}]
    names = ["observation.depth.top", "observation.images.front_Depth", "depth_cam.image"]
    for key, mark in [*((FRONT, mark) for mark in marks), *((name, {}) for name in names)]:
        seen = {"info": {"is_depth_map": False}}
        path.write_text(json.dumps({**info, "features": {key: camera | mark, top: camera | seen, **kinds}}))
        text = run(tmp_path, "--preview")
        assert f"camera * {top} (64 x 80 x 3)" in text
        assert f"camera   {key} (64 x 80 x 3, depth)" in text
        path.write_text(json.dumps({**info, "features": {key: camera | mark, **kinds}}))
        assert "depth alone" in run(tmp_path, "--preview", code=2)
        assert f"camera * {key}" in run(tmp_path, "--preview", "--camera", key)


def test_actions_of_any_form(tmp_path: Path) -> None:
    """Read, or refused by name; the state in their place is announced."""
    source = write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    path, tables = source / "meta/info.json", sorted(source.glob("data/*/*.parquet"))
    info, kept = json.loads(path.read_text()), [pq.read_table(table) for table in tables]

    def change(name: str, dtype: str, shape: list[int], value: Any) -> None:
        kinds = {key: kind for key, kind in info["features"].items() if key != "action"}
        kinds |= {name: {"dtype": dtype, "shape": shape, "names": None}} if name else {}
        path.write_text(json.dumps({**info, "features": kinds}))
        for file, table in zip(tables, kept, strict=True):
            cells = pa.array([value] * len(table))
            pq.write_table(table.drop_columns("action").append_column(name or "none", cells), file)

    forms = [("actions", "float32", [2], [1.5, 2.0]), ("action", "bool", [2], [True, False]),
             ("action", "uint8", [1], 7), ("action", "int64", [2], [3, -4]),
             ("action", "float32", [2, 3], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])]  # fmt: skip
    for form in forms:
        change(*form)
        assert f"values * {form[0]} (" in run(tmp_path, *STRIDE, "--overwrite")
        chunk = np.load(tmp_path / "data/regression/arm" / rows(tmp_path)[0]["action"])
        np.testing.assert_array_equal(chunk, [np.ravel(form[3])] * 3)
    change("action", "int64", [1], 2**24 + 1)
    assert "float32 does not hold" in run(tmp_path, *STRIDE, "--overwrite", code=1)
    change("action", "string", [1], "left")
    assert "--actions action: it is 'string'" in run(tmp_path, "--preview", code=2)
    change("", "", [], 0)
    assert "observation.state is decoded in its place" in run(tmp_path, "--preview")
    assert "in its place" not in run(tmp_path, "--preview", "--actions", "observation.state")


# What is read


def described(root: Path, **info: Any) -> LeRobot:
    (root / "meta").mkdir(exist_ok=True)
    usual = {"codebase_version": "v2.1", "fps": 10, "features": {}, "data_path": ""}
    (root / "meta/info.json").write_text(json.dumps({**usual, **info}))
    return LeRobot(root)


def test_what_is_no_lerobot_data_set(tmp_path: Path) -> None:
    for source, words in ((tmp_path, "no meta/info.json"), ("nowhere", "owner/name")):
        fails(LaryError, words, open_lerobot, str(source))
    for name, values in {"codebase_version": ("v1.6", "v4.0", None), "fps": (0, "fast", None)}.items():
        for value in values:
            fails(LaryError, f"wrong at '{name}'", described, tmp_path, **{name: value})
    row = '{"episode_index": 0, "length": 5}\n'
    for text in ("", "{", '{"episode_index": 0}', row.replace("5", "1e30"), "[1]", row * 2):
        (tmp_path / "meta/episodes.jsonl").write_text(text)
        with pytest.raises(LaryError, match="The list of episodes"):
            _ = described(tmp_path).episodes


def test_names_of_dimensions(tmp_path: Path) -> None:
    groups = {"left": ["a"], "right": ["b"]}
    forms = (["a", "b"], {"motors": ["a", "b"]}, groups, {"b": 1, "a": 0}, ["a", "a"], ["a"], None)
    found = []
    for names in forms:
        features = {"action": {"dtype": "float32", "shape": [2], "names": names}}
        found.append(described(tmp_path, features=features).dimension_names(["action"]))
    assert found == [("a", "b")] * 4 + [("a", "action_1_a")] + [("action_0", "action_1")] * 2


def test_time_stamps_find_frames() -> None:
    seconds = np.arange(10) / 10
    assert frame_numbers(seconds, 0.3, [0.0, 0.1001, 0.2], 10).tolist() == [3, 4, 5]
    away = [(0.9, [0.0, 0.1]), (-0.2, [0.0, 0.3]), (0.0, [0.0, float("nan")])]
    for start, stamps in (*away, (0.0, [0.0, 0.04])):
        words = "No frame" if (start, stamps) in away else "same frame"
        fails(MediaError, words, frame_numbers, seconds, start, stamps, 10)


def test_files_that_are_none(tmp_path: Path) -> None:
    """A pipe would be waited for without end."""
    source = write_lerobot(tmp_path / "source", "v2.1", splits={"val": "0:1"})
    film, table = (next(source.glob(name)) for name in (f"videos/*/{FRONT}/*01.mp4", "data/*/*02.parquet"))
    for path in (film, table):
        path.unlink()
        os.mkfifo(path)
    run(tmp_path, *STRIDE, code=1)
    assert ["no regular file" in reason for reason in failed(tmp_path).values()] == [True, True]
    table.unlink()
    run(tmp_path, *STRIDE, code=1)
    assert "does not exist" in failed(tmp_path)["2"]
