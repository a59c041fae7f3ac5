"""Plain trajectories become pairs and motions, videos with a table of labels become clips."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lary.data.spec import Licence
from lary.data.tables import read_table
from lary.importers.records import load_record
from tests.golden.test_tools import trajectories, videos
from tests.helpers import INPUTS, lary, printed, rows_of
from tests.tree import frame, write_video

LABELS = ("push", "pull")


def tables(folder: Path, name: str) -> list[list[dict[str, str]]]:
    """The rows of the tables of training and validation, where there are such."""
    paths = [folder / f"{name}_metadata_{split}.csv" for split in ("train", "val")]
    return [rows_of(path) for path in paths if path.exists()]


# Trajectories


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four episodes of 13 frames that move forward, close the gripper and move up; the last one is a video."""
    trajectories(tmp_path)
    return tmp_path / "episodes"


def cut(source: Path, *words: str, code: int = 0) -> str:
    """Import `source` into the folder ``out`` beside it; what is printed."""
    return printed("data", words[0], source, source.parent / "out", *words[1:], code=code)


def test_an_import_is_read_as_a_plug_in_and_leaks_nothing(source: Path) -> None:
    """Rows, frames, actions and labels are compared with those of the golden outputs."""
    out = source.parent / "out"
    for words in (("pairs", "--name", "steps", "--stride", "4"), ("atomic", "--name", "moves", "--gripper", "3")):
        cut(source, *words, "--embodiment", "arm")
        folders = ("--lary-root", out, "--data-dir", out / "data")  # the record there is known by its name
        assert lary("data", "audit", words[2], *folders).code == 0
        assert lary("data", "audit", words[2], "--data-dir", out / "data", "--lary-root", source).code == 2
        plugin = ("--lary-root", source, "--plugin", out / "data" / f"{words[2]}_dataset.py")
        assert f"LARY_ROOT/data/{words[2]}_metadata_train.csv" in lary("datasets", words[2], *plugin).out
        assert {row["embodiment"] for row in tables(out / "data", words[2])[1]} == {"arm"}
    assert load_record(out / "data" / "steps_dataset.json").actions.dims == ("a0", "a1", "a2", "a3")


def test_broken_episodes_are_named_and_left_out(source: Path) -> None:
    np.save(source / "0" / "actions.npy", np.zeros((5, 4)))
    np.save(source / "1" / "actions.npy", np.full((13, 4), np.nan))
    shutil.copytree(source / "2", source / "ep_2")
    for number in "4567":
        (source / number).mkdir()
        np.save(source / number / "actions.npy", np.zeros((13, 5 if number == "6" else 4)))
    write_video(source / "5" / "camera.mp4", [frame(0.5, 0.5, (9, 9, 9))] * 9)
    for place in (*(f"7/{at}.png" for at in range(13)), "3/7.png"):
        (source / place).write_bytes(b"")
    text = cut(source, "pairs", "--name", "mine", "--stride", "4", "--test-size", "0", code=1)
    reasons = ("13 images but 5 rows", "NaN", "1 images and 1 videos", "0 images and 0 videos", "9 frames but 13 rows",
               "ep_2 twice", "5 dimensions, expected 4", "is broken", "8 episodes failed")  # fmt: skip
    assert [words for words in reasons if words not in text] == []
    assert list(map(len, tables(source.parent / "out/data", "mine"))) == [3]


def test_tables_are_replaced_only_with_overwrite(source: Path) -> None:
    words = ("pairs", "--name", "mine", "--stride")
    cut(source, *words, "4")
    assert "--overwrite" in cut(source, *words, "4", code=2)
    cut(source, *words, "6", "--test-size", "0", "--overwrite")
    assert list(map(len, tables(source.parent / "out/data", "mine"))) == [8]


# Videos


def run(root: Path, *words: str | Path, code: int = 0) -> str:
    """Import the videos of `videos` as `own`; what is printed."""
    name = () if "--name" in words else ("--name", "own")
    options = ("--labels", root / "labels.csv", "--val-share", "0.25", *name)
    return printed("data", "import-videos", root / "videos", *options, *words, root=root, code=code)


def test_videos_become_clips(tmp_path: Path) -> None:
    """Classes keep their shares; videos are linked; a second import changes nothing; the clips can be extracted."""
    folder = videos(tmp_path, 8)
    assert "6 train, 2 val clips, 0 failed" in run(tmp_path)
    rows, target = tables(tmp_path / "data", "own"), tmp_path / "data/classification/own/day0/0.mp4"
    assert [{row["action"] for row in part} for part in rows] == [set(LABELS)] * 2
    assert target.samefile(folder / "day0/0.mp4")
    run(tmp_path)
    assert tables(tmp_path / "data", "own") == rows
    target.unlink()
    target.write_bytes(b"another video")
    assert "other content" in run(tmp_path, code=1)
    assert target.read_bytes() == b"another video"
    words = ("--model", "pixels", "--dataset", "own", "--split", "val", "--lary-la-dir", tmp_path / "latents")
    assert lary("extract", *words, "--plugin", tmp_path / "data/own_dataset.py", root=tmp_path).code == 0


def test_columns_of_the_table_are_used(tmp_path: Path) -> None:
    splits = ["train", "test"] * 2 + ["train", "VAL", "train", "train"]
    videos(tmp_path, 8, split=splits, embodiment=["arm", "hand"] * 4, sample_indices=["0,3,11"] * 8)
    table = tmp_path / "labels.csv"
    for renamed in (False, True):
        table.write_text(table.read_text().replace("file,label", "clip,kind" if renamed else "file,label"))
        terms = ("--licence", "CC BY 4.0", "--commercial")
        run(tmp_path, *terms, *(("--video-column", "clip", "--label-column", "kind") if renamed else ()))
        train, val = tables(tmp_path / "data", "own")
        assert (len(train), len(val)) == (5, 3)
        assert {row["embodiment"] for row in train} == {"arm", "hand"}
        assert {row["sample_indices"] for row in val} == {"0,3,11"}
    spec = load_record(tmp_path / "data/own_dataset.json")
    assert (spec.embodiment_column, spec.licences) == ("embodiment", (Licence("videos", "CC BY 4.0", True),))


def test_a_video_and_its_reversal_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, lines = videos(tmp_path, 8), ["video_path,action"]
    for path in sorted(folder.rglob("*.mp4")):
        shutil.copy(path, path.with_name(f"{path.stem}_rev.mp4"))
        for end, label in (("", LABELS[int(path.stem) % 2]), ("_rev", LABELS[1 - int(path.stem) % 2])):
            lines.append(f"{path.parent.name}/{path.stem}{end}.mp4,{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    run(tmp_path, "--seed", "1")  # with seed 0 they stay together by chance
    rows = tables(tmp_path / "data", "own")
    names = [{row["video_path"].replace("_rev", "") for row in part} for part in rows]
    assert (len(names[0] | names[1]), len(names[0] & names[1])) == (8, 0)
    copy = tmp_path / "data/classification/own/day0/0.mp4"
    assert copy.read_bytes() == (folder / "day0/0.mp4").read_bytes()
    assert not copy.samefile(folder / "day0/0.mp4")


@pytest.mark.parametrize("option", [("--group-column", "day"), ("--group-pattern", r"^(day\d)/")])
def test_clips_of_one_source_stay_together(tmp_path: Path, option: tuple[str, str]) -> None:
    videos(tmp_path, 8, day=[f"day{number // 2}" for number in range(8)])
    run(tmp_path)
    spec, path = load_record(tmp_path / "data/own_dataset.json"), tmp_path / "data/own_metadata_train.csv"
    assert read_table(spec, "train", path=path, data_dir=tmp_path).unit == "clips", "nothing names a source"
    run(tmp_path, *option)
    spec = load_record(tmp_path / "data/own_dataset.json")
    assert read_table(spec, "train", path=path, data_dir=tmp_path).unit == "videos"
    parts = [{row["group"] for row in part} for part in tables(tmp_path / "data", "own")]
    assert (parts[0] & parts[1], {"day0", "day1", "day2"} <= parts[0] | parts[1]) == (set(), True)


def test_broken_videos_are_named_and_left_out(tmp_path: Path) -> None:
    folder = videos(tmp_path, 12, sample_indices=[""] * 7 + ["0,12"] + [""] * 4)
    (folder / "day0" / "0.mp4").write_bytes(b"no video")
    (folder / "day1" / "1.mp4").unlink()
    write_video(folder / "day2" / "2.mp4", [frame(0.5, 0.5, (9, 9, 9))])
    run(tmp_path, code=1)
    failed = [row["row"] for row in rows_of(tmp_path / "data/own_import_failures.csv")]
    assert failed == ["1", "2", "3", "8"], "the last one ends before its index"
    assert sum(map(len, tables(tmp_path / "data", "own"))) == 8
    assert not (tmp_path / "data/classification/own/day0/0.mp4").exists()
    for path in folder.rglob("*.mp4"):
        path.write_bytes(b"")
    assert "Nothing of the train split of none" in run(tmp_path, "--name", "none", code=1)
    assert "exists already" in run(tmp_path, "--name", "human_1st", code=2)


def test_wrong_tables(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for text, message in INPUTS["wrong labels"].items():
        (tmp_path / "labels.csv").write_text(text)
        assert message in run(tmp_path, code=2)
    assert not (tmp_path / "data").exists()
