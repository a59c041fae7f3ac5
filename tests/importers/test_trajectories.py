"""Data sets from plain trajectories: what the commands ``lary data pairs`` and ``lary data atomic`` write."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lary.data.frames import read_clip
from lary.data.images import read_image
from lary.importers.episodes import INVERSE
from lary.importers.trajectories import natural
from tests.golden.test_tools import trajectories
from tests.helpers import lary, rows_of
from tests.tree import frame, write_video

Rows = dict[str, list[dict[str, str]]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four episodes of 13 frames that move forward, close the gripper and move up; the last one is a video."""
    trajectories(tmp_path)
    return tmp_path / "episodes"


def run(source: Path, *words: str, code: int = 0) -> str:
    """Import `source` into the folder ``out`` beside it; what is printed."""
    done = lary("data", words[0], source, source.parent / "out", *words[1:])
    assert done.code == code, done.err
    return done.out + done.err


def tables(source: Path, name: str) -> Rows:
    paths = {split: source.parent / "out" / "data" / f"{name}_metadata_{split}.csv" for split in ("train", "val")}
    return {split: rows_of(path) for split, path in paths.items() if path.exists()}


def no_leaks(source: Path, name: str) -> bool:
    out = source.parent / "out"
    words = ("audit", name, "--plugin", out / f"{name}.py", "--lary-root", out, "--data-dir", out / "data")
    return lary("data", *words).code == 0


def test_pairs_are_frames_and_actions_of_the_trajectory(source: Path) -> None:
    dims = ("--dims", "x", "y", "z", "grip")
    assert "mine_metadata_train.csv: 9 rows" in run(source, "pairs", "--name", "mine", "--stride", "4", *dims)
    rows, data = tables(source, "mine"), source.parent / "out" / "data" / "regression" / "mine"
    assert {split: len(found) for split, found in rows.items()} == {"train": 9, "val": 3}
    for row in (*rows["train"], *rows["val"]):
        episode, start = row["src_img"].split("/")[1][3:], int(row["src_img"][-10:-4])
        chunk = np.load(data / row["action"])
        actions = np.load(source / episode / "actions.npy")
        assert chunk.dtype == np.float32
        assert np.array_equal(chunk, actions[start : start + 4].astype(np.float32))
        for name, at in (("src_img", start), ("tgt_img", start + 4)):
            image = source / episode / f"{at}.png"
            expected = read_image(image) if image.exists() else read_clip([source / "3" / "camera.mp4"], [at])[0]
            assert np.array_equal(read_image(data / row[name]), expected)
    assert no_leaks(source, "mine")


def test_both_directions_of_a_motion_stay_in_one_split(source: Path) -> None:
    run(source, "atomic", "--name", "atoms", "--embodiment", "arm", "--settle", "2", "--gripper", "3")
    rows = tables(source, "atoms")
    assert {split: len(found) for split, found in rows.items()} == {"train": 18, "val": 6}
    for found in rows.values():
        labels = {(row["src_img"], row["tgt_img"]): row["action"] for row in found}
        assert all(INVERSE[labels[target, start]] == label for (start, target), label in labels.items())
        assert set(labels.values()) == {"Forward", "Backward", "Close", "Open", "Up", "Down"}
        assert {row["embodiment"] for row in found} == {"arm"}
    first, data = rows["train"][0], source.parent / "out" / "data" / "classification" / "atoms"
    assert (first["action"], first["src_img"]) == ("Forward", "ep_0/action_00/action_start.png")
    for name, at in (("src_img", 0), ("tgt_img", 4)):
        assert np.array_equal(read_image(data / first[name]), read_image(source / "0" / f"{at}.png"))
    assert no_leaks(source, "atoms")


def test_broken_episodes_are_named_and_left_out(source: Path) -> None:
    np.save(source / "0" / "actions.npy", np.zeros((5, 4)))
    np.save(source / "1" / "actions.npy", np.full((13, 4), np.nan))
    shutil.copytree(source / "2", source / "ep_2")
    for number, length in (("4", 0), ("5", 9)):
        (source / number).mkdir()
        np.save(source / number / "actions.npy", np.zeros((13, 4)))
        if length:
            write_video(source / number / "camera.mp4", [frame(0.5, 0.5, (9, 9, 9))] * length)
    (source / "3" / "7.png").write_bytes(b"")
    text = run(source, "pairs", "--name", "mine", "--stride", "4", "--test-size", "0", code=1)
    reasons = ("13 images but 5 rows", "NaN", "1 images and 1 videos", "0 images and 0 videos", "9 frames but 13 rows",
               "ep_2 twice")  # fmt: skip
    assert [words for words in reasons if words not in text] == []
    assert "6 episodes failed" in text
    assert {split: len(found) for split, found in tables(source, "mine").items()} == {"train": 3}


def test_a_broken_image_costs_its_episode(source: Path) -> None:
    (source / "0" / "4.png").write_bytes(b"")
    text = run(source, "atomic", "--name", "atoms", "--test-size", "0", "--gripper", "3", "--settle", "2", code=1)
    assert "is broken" in text
    assert len(tables(source, "atoms")["train"]) == 18


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("pairs", "--name", "a b"), 2, "--name a b"),
        (("pairs", "--name", "mine", "--test-size", "1"), 2, "--test-size 1"),
        (("pairs", "--name", "mine", "--stride", "0"), 2, "--stride 0"),
        (("pairs", "--name", "mine", "--stride", "20"), 1, "too short for the stride"),
        (("atomic", "--name", "mine", "--gripper", "9"), 1, "no column 9"),
        (("atomic", "--name", "mine", "--position", "0,b,1"), 2, "--position 0,b,1"),
        (("atomic", "--name", "mine", "--position", "0,1"), 2, "--position 0,1"),
    ],
)
def test_requests_that_are_refused(source: Path, words: tuple[str, ...], code: int, message: str) -> None:
    assert message in run(source, *words, code=code)
    assert not list(source.parent.glob("out/data/*.csv"))


def test_tables_are_replaced_only_with_overwrite(source: Path) -> None:
    assert "holds no episodes" in run(source / "0", "pairs", "--name", "mine", code=2)
    run(source, "pairs", "--name", "mine", "--stride", "4")
    assert "--overwrite" in run(source, "pairs", "--name", "mine", "--stride", "4", code=2)
    run(source, "pairs", "--name", "mine", "--stride", "6", "--test-size", "0", "--overwrite")
    assert {split: len(found) for split, found in tables(source, "mine").items()} == {"train": 8}


def test_names_are_sorted_by_their_numbers() -> None:
    assert sorted(["10.png", "2.png", "a1", "a01b", "1.png"], key=natural) == ["1.png", "2.png", "10.png", "a1", "a01b"]
