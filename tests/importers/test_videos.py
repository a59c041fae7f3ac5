"""Plain videos with a table of labels become clips that the benchmark reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lary.data.frames import read_clip
from lary.importers.records import load_record
from tests.helpers import lary, rows_of
from tests.tree import frame, write_table, write_video

LABELS = ("push", "pull")
Rows = dict[str, list[dict[str, str]]]


def write_videos(root: Path, count: int = 8, **columns: Sequence[str]) -> Path:
    """`count` videos of 12 frames in which a square moves, labels by turns; the folder of the videos."""
    rows = []
    for number in range(count):
        sign, path = 1 if number % 2 else -1, f"day{number % 3}/{number}.mp4"
        steps = [frame(0.5 + sign * 0.03 * step, 0.1 + 0.8 * number / count, (220, 60, 60)) for step in range(12)]
        write_video(root / "videos" / path, steps)
        row = {"file": path, "label": LABELS[number % 2]}
        rows.append(row | {name: values[number] for name, values in columns.items()})
    write_table(root / "labels.csv", rows)
    return root / "videos"


def run(root: Path, *words: str | Path, code: int = 0) -> str:
    """Import the videos of `write_videos` as `own`; what is printed."""
    name = () if "--name" in words else ("--name", "own")
    options = ("--labels", root / "labels.csv", "--val-share", "0.25", *name)
    done = lary("data", "import-videos", root / "videos", *options, *words, root=root)
    assert done.code == code, done.err
    return done.out + done.err


def tables(root: Path) -> Rows:
    return {split: rows_of(root / "data" / f"own_metadata_{split}.csv") for split in ("train", "val")}


def failures(root: Path) -> dict[str, str]:
    """Reasons by row, of the list of failures."""
    return {row["row"]: row["reason"] for row in rows_of(root / "data" / "own_import_failures.csv")}


def test_videos_become_clips(tmp_path: Path) -> None:
    folder = write_videos(tmp_path)
    assert "6 train, 2 val clips, 0 failed" in run(tmp_path)
    assert load_record(tmp_path / "data" / "own_dataset.json").labels.classes == ("pull", "push")
    days = []
    for rows in tables(tmp_path).values():
        assert {row["action"] for row in rows} == set(LABELS), "classes keep their shares"
        days.append({row["video_path"] for row in rows})
        for row in rows:
            indices = [int(index) for index in row["sample_indices"].split(",")]
            path = tmp_path / "data" / "classification" / "own" / row["video_path"]
            assert path.samefile(folder / row["video_path"]), "linked, not copied"
            assert read_clip([path], indices, clamp=False).shape == (9, 48, 48, 3)
    assert not days[0] & days[1]


def test_columns_of_the_table_are_used(tmp_path: Path) -> None:
    splits = ["train", "test"] * 2 + ["train", "VAL", "train", "train"]
    write_videos(tmp_path, split=splits, embodiment=["arm", "hand"] * 4, sample_indices=["0,3,11"] * 8)
    run(tmp_path)
    rows = tables(tmp_path)
    assert {split: len(found) for split, found in rows.items()} == {"train": 5, "val": 3}
    assert load_record(tmp_path / "data" / "own_dataset.json").embodiment_column == "embodiment"
    assert {row["embodiment"] for row in rows["train"]} == {"arm", "hand"}
    assert {row["sample_indices"] for row in rows["val"]} == {"0,3,11"}
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace("file,label", "clip,kind"))
    run(tmp_path, "--video-column", "clip", "--label-column", "kind")
    assert tables(tmp_path) == rows


def test_a_video_and_its_reversal_stay_together(tmp_path: Path) -> None:
    folder = write_videos(tmp_path)
    lines = ["video_path,action"]
    for number in range(8):
        path = folder / f"day{number % 3}" / f"{number}.mp4"
        path.with_name(f"{number}_rev.mp4").write_bytes(path.read_bytes())
        for end, label in (("", LABELS[number % 2]), ("_rev", LABELS[1 - number % 2])):
            lines.append(f"day{number % 3}/{number}{end}.mp4,{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    run(tmp_path)
    rows = tables(tmp_path)
    names = [{row["video_path"].replace("_rev", "") for row in rows[split]} for split in rows]
    assert not names[0] & names[1]
    assert sum(map(len, rows.values())) == 16


def test_broken_videos_are_named_and_left_out(tmp_path: Path) -> None:
    folder = write_videos(tmp_path, 12, sample_indices=[""] * 7 + ["0,12"] + [""] * 4)
    (folder / "day0" / "0.mp4").write_bytes(b"no video")
    (folder / "day1" / "1.mp4").unlink()
    write_video(folder / "day2" / "2.mp4", [frame(0.5, 0.5, (9, 9, 9))])
    run(tmp_path, code=1)
    assert list(failures(tmp_path)) == ["1", "2", "3", "8"], "the last one ends before its index"
    assert sum(map(len, tables(tmp_path).values())) == 8
    assert not (tmp_path / "data" / "classification" / "own" / "day0" / "0.mp4").exists()


def test_a_second_import_keeps_what_is_there(tmp_path: Path) -> None:
    write_videos(tmp_path)
    run(tmp_path)
    first = tables(tmp_path)
    run(tmp_path)
    assert tables(tmp_path) == first
    target = tmp_path / "data" / "classification" / "own" / "day0" / "0.mp4"
    target.unlink()
    target.write_bytes(b"another video")
    run(tmp_path, code=1)
    assert ["other content" in reason for reason in failures(tmp_path).values()] == [True]
    assert target.read_bytes() == b"another video"


def test_copied_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    folder = write_videos(tmp_path)
    run(tmp_path)
    target = tmp_path / "data" / "classification" / "own" / "day0" / "0.mp4"
    assert target.read_bytes() == (folder / "day0" / "0.mp4").read_bytes()
    assert not target.samefile(folder / "day0" / "0.mp4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n../evil.mp4,push\nb.mp4,pull", "leaves its root"),
        ("file,label\n/etc/passwd,push\nb.mp4,pull", "leaves its root"),
        ("file,label\na.mp4,push\nb.mp4,push", "one class only"),
        ("file,label\na.mp4,\nb.mp4,push", "row 1: the video or the label is empty"),
        ("file,label,split\na.mp4,push,dev\nb.mp4,pull,val", "no split"),
        ("file,label,split\na.mp4,push,\nb.mp4,pull,val", "some rows only"),
        ("file,label,sample_indices\na.mp4,push,x\nb.mp4,pull,1", "no list of frame numbers"),
        ("clip,label\na.mp4,push", "--video-column"),
        ("file,kind\na.mp4,push", "--label-column"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    write_videos(tmp_path, 2)
    (tmp_path / "labels.csv").write_text(text)
    assert message in run(tmp_path, code=2)
    assert not (tmp_path / "data").exists()


def test_wrong_requests(tmp_path: Path) -> None:
    folder = write_videos(tmp_path, 2)
    assert "exists already" in run(tmp_path, "--name", "human_1st", code=2)
    nowhere = lary("data", "import-videos", tmp_path / "gone", "--labels", tmp_path / "labels.csv", root=tmp_path)
    assert (nowhere.code, "does not exist" in nowhere.err) == (2, True)
    for path in folder.rglob("*.mp4"):
        path.write_bytes(b"")
    assert "None of the 2 videos" in run(tmp_path, code=1)


def test_imported_videos_run_through_extraction(tmp_path: Path) -> None:
    write_videos(tmp_path)
    run(tmp_path, "--method", "uniform")
    words = ("--model", "pixels", "--dataset", "own", "--split", "val", "--lary-la-dir", tmp_path / "latents")
    assert lary("extract", *words, "--plugin", tmp_path / "data" / "own_dataset.py", root=tmp_path).code == 0
    assert all(row["la_path"] for row in rows_of(tmp_path / "data" / "val_la_own_pixels.csv"))
