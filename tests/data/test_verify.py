"""The integrity checker: planted defects are found, good files are not accused, a killed run resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lary.files import file_digest
from tests.data.test_frames import encode
from tests.helpers import printed, rows_of
from tests.tree import frame, make_calvin, make_robot, write_image, write_table


def check(root: Path, *words: str | Path, code: int = 0) -> tuple[dict[str, dict[str, Any]], str]:
    """Issues by file name, or by table and column for those of a table; and what the command prints."""
    usual = [] if "--timeout" in words else ["--timeout", "60"]
    text = printed("data", "check", "--output", root / "report.txt", *usual, *words, root=root, code=code)
    found: dict[str, dict[str, Any]] = {}
    if code < 2:
        for group in json.loads((root / "report.json").read_text())["groups"].values():
            for item in group["issues"]:
                table = f"{item['table']}:{item['column']}"
                found[table if item["kind"] == "table" else Path(item["path"]).name] = item
        assert f": {len(found)} issues" in text
    return found, text


def array(*shape: int, value: float = 0) -> Callable[[Path], object]:
    return lambda path: np.save(path, np.full(shape, value, np.float32))


def halved(path: Path) -> None:
    write_image(path, frame(0.5, 0.5, (250, 9, 9)))
    path.write_bytes(path.read_bytes()[:90])


def without_packets(path: Path) -> None:
    """A complete container whose video stream has no packet."""
    encode(path, "libx264", {}, count=24)
    data = path.read_bytes()
    at = data.index(b"stsz") + 12
    path.write_bytes(data[:at] + b"\0\0\0\0" + data[at + 4 :])


Defects = dict[str, tuple[Callable[[Path], object], str]]
ABSENT = "file does not exist"
IMAGES: Defects = {
    "torn.png": (halved, "can't be decoded"),
    "text.png": (lambda path: path.write_text("no picture"), "broken"),
    "size.png": (lambda path: write_image(path, np.zeros((30, 40, 3), np.uint8)), "40x30 pixels"),
    "folder.png": (lambda path: path.mkdir(), "path is not a file"),
    "loop.png": (lambda path: path.symlink_to(path), "OSError"),
    "dangling.png": (lambda path: path.symlink_to(path.with_name("nowhere")), ABSENT),
}
ARRAYS: Defects = {
    "objects.npy": (lambda path: np.save(path, np.array([{}, 1], dtype=object)), "pickled objects"),
    "shape.npy": (array(7, 5), "(7, 5), expected (5, 7)"),
    "nan.npy": (array(5, 7, value=np.nan), "NaN"),
    "pipe.npy": (lambda path: os.mkfifo(path), "path is not a file"),
    "hangs.npy": (array(5, 7), "no answer within"),
    "crashes.npy": (array(5, 7), "crashed (signal 9)"),
    "absent.npy": (lambda path: None, ABSENT),
}
VIDEOS: Defects = {
    "frames.mp4": (without_packets, "no frames"),
    "text.mp4": (lambda path: path.write_text("no video"), "Invalid data"),
    "absent.mp4": (lambda path: None, ABSENT),
}
OTHERS = {
    "calvin_metadata_train.csv:action": "leaves its root",
    "robot_1st_metadata_train.csv:action": "'juggle' is no class",
    "robot_1st_metadata_train.csv:sample_indices": "no list of frame numbers",
    "robot_1st_metadata_train.csv:video_path": "is empty",
    "calvin_metadata_val.csv:tgt_img": "there is no column 'tgt_img'",
    "robot_1st_metadata_val.csv:": "2 cells under 3 column names",
}


def extend(table: Path, column: str, *cells: str) -> None:
    """Add rows to a table: its first one with another cell in a column each."""
    rows = rows_of(table)
    write_table(table, [*rows, *({**rows[0], column: cell} for cell in cells)])


def test_every_planted_defect_is_found_and_no_good_file_accused(tmp_path: Path, handicap: None) -> None:
    make_robot(make_calvin(tmp_path, {"train": 2, "val": 1}), {"train": 4})
    data = tmp_path / "data"
    calvin, clips = (data / f"{name}_metadata_train.csv" for name in ("calvin", "robot_1st"))
    folder, planted = data / "regression/calvin/train_stride5", IMAGES | ARRAYS | VIDEOS
    for place, defects in ("images", IMAGES), ("actions", ARRAYS), (data / "classification", VIDEOS):
        for name, (make, _) in defects.items():
            make(folder / place / name)
    extend(calvin, "tgt_img", *(f"images/{name}" for name in IMAGES))
    extend(calvin, "action", *(f"actions/{name}" for name in ARRAYS), "../../outside.npy")
    for column, cells in (("video_path", [*VIDEOS, ""]), ("action", ["juggle"]), ("sample_indices", ["one,two"])):
        extend(clips, column, *cells)
    table = data / "calvin_metadata_val.csv"
    table.write_text(table.read_text().replace("tgt_img", "target"))
    (data / "robot_1st_metadata_val.csv").write_text("video_path,action,sample_indices\na.mp4,pick\n")

    found, _ = check(tmp_path, "--groups", "CALVIN", "Robot_1st", "--timeout", "2", code=1)
    expected = {name: reason for name, (_, reason) in planted.items()} | OTHERS
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name]["reason"], name
        assert found[name]["status"] == ("missing" if reason == ABSENT else "corrupt"), name
    assert found["robot_1st_metadata_train.csv:action"]["reason"].startswith("row 9 (line 10)")
    assert "[CALVIN] issue_count=15" in (tmp_path / "report.txt").read_text().splitlines()
    assert not list(tmp_path.glob(".report.txt*"))


def test_frame_numbers_behind_the_end_of_a_clip_and_clips_that_are_cut_off(tmp_path: Path) -> None:
    """Each clip is held against the frames that can be decoded; also where a manifest spares decoding."""
    make_robot(tmp_path, {"train": 4})
    table = tmp_path / "data/robot_1st_metadata_train.csv"
    encode(tmp_path / "data/classification/vfr.webm", "libvpx-vp9", {}, count=40, varied=True)  # announces 99
    whole = (tmp_path / "data/classification/vfr.webm").read_bytes()
    (tmp_path / "data/classification/cut.webm").write_bytes(whole[: len(whole) * 6 // 10])
    extend(table, "sample_indices", "0,3,11", "0,900,3", "12")
    extend(table, "video_path", "vfr.webm", "cut.webm")
    rows = rows_of(table)
    write_table(table, [*rows, {**rows[-2], "sample_indices": "40"}, {**rows[-2], "sample_indices": "39"}])
    for _ in range(2):
        found, _ = check(tmp_path, "--manifest", tmp_path / "manifest.jsonl", code=1)
        assert set(found) == {"cut.webm", "robot_1st_metadata_train.csv:sample_indices"}
        assert "the file is cut off" in found["cut.webm"]["reason"]
        about = found["robot_1st_metadata_train.csv:sample_indices"]
        assert about["reason"].startswith("row 6 (line 7): frame 900 is asked for, and ")
        assert about["reason"].endswith("0.mp4 ends with frame 11, and 2 more rows")
        assert about["refs"] == 3


def test_good_and_unusual_files_are_accepted_in_every_published_path_form(tmp_path: Path) -> None:
    make_robot(make_calvin(tmp_path, {"train": 1, "val": 1}, pairs=1), {"train": 1})
    data, values = tmp_path / "data", np.linspace(-1, 1, 35, dtype=np.float32)
    folder = data / "regression" / "calvin" / "train_stride5"
    picture, deep = Image.fromarray(frame(0.5, 0.5, (250, 9, 9))), Image.fromarray(np.full((48, 48), 999, np.uint16))
    images = {"gray.png": picture.convert("L"), "photo.JPEG": picture, "deep.png": deep, "photo.webp": picture}
    for name, content in images.items():
        content.save(folder / "images" / name)
    np.save(folder / "actions/flat.npy", values)
    np.save(folder / "actions/fortran.npy", np.asfortranarray(values.reshape(5, 7)))
    encode(data / "classification/b.mp4", "libx264", {"bf": "3"}, count=24)
    extend(data / "calvin_metadata_train.csv", "tgt_img", *(f"images/{name}" for name in images))
    extend(data / "calvin_metadata_train.csv", "action", "actions/flat.npy", "actions/fortran.npy")
    extend(data / "robot_1st_metadata_train.csv", "video_path", "b.mp4")
    table = data / "calvin_metadata_val.csv"
    table.write_text(table.read_text().replace("images/", "").replace("actions/", ""))
    found, text = check(tmp_path)
    assert found == {}
    assert f"{3 + 3 + 4 + 2 + 1 + 1} files checked: 0 issues" in text


def test_a_killed_run_resumes(tmp_path: Path, handicap: None) -> None:
    make_calvin(tmp_path, {"train": 3})
    journal = tmp_path / ".report.txt.manifest"
    words = [f"--lary-root={tmp_path}", f"--data-dir={tmp_path / 'data'}", f"--output={tmp_path / 'report.txt'}"]
    words = [sys.executable, "-m", "lary.cli", "data", "check", "--workers=1", "--timeout=60", *words]
    first = subprocess.Popen(words, env={**os.environ, "PAUSE": "0.2"}, cwd=tmp_path)
    while not journal.exists() or len(journal.read_text().splitlines()) <= 3:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (tmp_path / "report.txt").exists()
    (name, *known), *others = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    torn = tmp_path / "data" / name
    torn.write_bytes(torn.read_bytes()[:-20])
    assert list(check(tmp_path, code=1)[0]) == [torn.name], "it has changed since"
    assert not journal.exists()
    # What the journal knows is compared and not decoded; a line that was torn is passed over.
    entries = [[name, file_digest(torn, 64), *known[1:]], *others]
    lines = [json.dumps(entry) for entry in ({"manifest": 1}, *entries)]
    journal.write_text("\n".join(lines) + '\n["torn')
    found, text = check(tmp_path)
    assert found == {}
    assert f"resuming after {len(entries)} files" in text


def test_manifest_spares_decoding_and_finds_changes(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 1})
    manifest = tmp_path / "manifest.jsonl"
    assert "7 files checked, 0 by the manifest" in check(tmp_path, "--manifest", manifest)[1]
    before = manifest.read_bytes()
    assert "7 files checked, 7 by the manifest" in check(tmp_path, "--manifest", manifest)[1]
    assert manifest.read_bytes() == before
    head, *entries = [json.loads(line) for line in before.decode().splitlines()]
    assert head == {"manifest": 1}
    action = sorted((tmp_path / "data" / "regression").rglob("*.npy"))[0]
    (entry,) = (entry for entry in entries if entry[0].endswith(action.name))
    assert entry[2:] == [action.stat().st_size, "npy", [5, 7]]
    array(5, 7, value=1)(action)
    found, _ = check(tmp_path, "--manifest", manifest, code=1)
    assert [found.pop(action.name)["reason"], found] == ["the content differs from the manifest", {}]
    for text, words in (("something else", "no manifest"), ("[]", "another version"), ('{"manifest": 9}', "another")):
        manifest.write_text(text)
        assert words in check(tmp_path, "--manifest", manifest, code=2)[1]


def test_a_slow_file_gets_a_second_chance(tmp_path: Path, handicap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make_calvin(tmp_path, {"train": 1}, pairs=1)
    monkeypatch.setenv("PAUSE", "1.2")
    check(tmp_path, "--timeout", "1", "--workers", "1")
