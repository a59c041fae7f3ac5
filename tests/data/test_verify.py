"""The integrity checker: planted defects are found, good files are not accused, a killed run resumes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import lary
from tests.tree import frame, make_calvin, make_robot, write_image, write_table

HANDICAP = """
import os, signal, sys, time
real = os.stat

def stat(path, *given, **options):
    name = os.path.basename(path) if isinstance(path, (str, os.PathLike)) else ""
    if name.endswith((".png", ".npy", ".mp4")):
        with open(os.environ["ASKED"], "a") as log:
            log.write(f"{path}\\n")
        time.sleep(float(os.environ.get("PAUSE", "0")))
        if name == "hangs.npy":
            time.sleep(600)
        if name == "crashes.npy":
            os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *given, **options)

os.stat = stat
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that workers open, where the system hangs or kills them at files of certain names."""
    (tmp_path / "sitecustomize.py").write_text(HANDICAP)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)]))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.txt"))
    return tmp_path / "asked.txt"


def check(root: Path, *words: str | Path, code: int = 0) -> tuple[dict[str, dict[str, Any]], str]:
    """Issues by file name, or by table and column for those of a table; and what the command prints."""
    usual = [] if "--timeout" in words else ["--timeout", "60"]
    done = lary("data", "check", "--output", root / "report.txt", *usual, *words, root=root)
    assert done.code == code, done
    found: dict[str, dict[str, Any]] = {}
    if code < 2:
        for group in json.loads((root / "report.json").read_text())["groups"].values():
            for item in group["issues"]:
                table = f"{item['table']}:{item['column']}"
                name = table if item["kind"] == "table" else Path(item["path"]).name
                assert name not in found
                found[name] = item
        assert f": {len(found)} issues" in done.out
    return found, done.out + done.err


def chunk() -> np.ndarray:
    return np.zeros((5, 7), np.float32)


def image(path: Path) -> None:
    write_image(path, frame(0.5, 0.5, (250, 9, 9)))


def video(path: Path, codec: str = "libx264", file_format: str | None = None, **options: str) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=file_format) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for step in range(24):
            picture = frame(0.1 * (step % 8), 0.5, (9, 200, 9))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def changed(make: Callable[[Path], object], change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """A file that is made and then damaged."""

    def plant(path: Path) -> None:
        make(path)
        path.write_bytes(change(path.read_bytes()))

    return plant


def renamed(make: Callable[[Path], object], suffix: str) -> Callable[[Path], object]:
    """A file that is made with another extension."""

    def plant(path: Path) -> None:
        make(path.with_suffix(suffix))
        path.with_suffix(suffix).rename(path)

    return plant


def sound_only(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def without_packets(data: bytes) -> bytes:
    """A complete container whose video stream has no packet."""
    at = data.index(b"stsz") + 12
    return data[:at] + b"\0\0\0\0" + data[at + 4 :]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def array(*shape: int, dtype: Any = np.float32) -> Callable[[Path], object]:
    return lambda path: np.save(path, np.zeros(shape, dtype))


Defects = dict[str, tuple[Callable[[Path], object], str]]
ABSENT = "file does not exist"
IMAGES: Defects = {
    "torn.png": (changed(image, lambda data: data[: len(data) // 2]), "ends early"),
    "flipped.png": (changed(image, flipped), "checksum"),
    "empty.png": (lambda path: path.write_bytes(b""), "empty"),
    "text.png": (lambda path: path.write_text("no picture"), "broken"),
    "jpeg.png": (renamed(image, ".jpg"), "wrong extension: the file is JPEG"),
    "size.png": (lambda path: write_image(path, np.zeros((30, 40, 3), np.uint8)), "40x30 pixels"),
    "folder.png": (lambda path: path.mkdir(), "path is not a file"),
    "loop.png": (lambda path: path.symlink_to(path), "OSError"),
    "dangling.png": (lambda path: path.symlink_to(path.with_name("nowhere")), ABSENT),
    "absent.png": (lambda path: None, ABSENT),
}
ARRAYS: Defects = {
    "empty.npy": (lambda path: path.write_bytes(b""), "can't be read"),
    "torn.npy": (changed(array(5, 7), lambda data: data[:-30]), "ends early"),
    "objects.npy": (lambda path: np.save(path, np.array([{}, 1], dtype=object)), "pickled objects"),
    "shape.npy": (array(7, 5), "(7, 5), expected (5, 7)"),
    "nan.npy": (lambda path: np.save(path, chunk() * np.nan), "NaN"),
    "words.npy": (lambda path: np.save(path, np.array(["a", "b"])), "no array of numbers"),
    "image.npy": (renamed(image, ".png"), "can't be read"),
    "pipe.npy": (lambda path: os.mkfifo(path), "path is not a file"),
    "hangs.npy": (array(5, 7), "no answer within"),
    "crashes.npy": (array(5, 7), "crashed (signal 9)"),
    "absent.npy": (lambda path: None, ABSENT),
}
VIDEOS: Defects = {
    "torn.mp4": (changed(video, lambda data: data[: len(data) // 2]), ""),
    "sound.mp4": (sound_only, "no video stream"),
    "frames.mp4": (changed(video, without_packets), "no frames"),
    "text.mp4": (lambda path: path.write_text("no video"), "Invalid data"),
    "webm.mp4": (lambda path: video(path, "libvpx-vp9", "webm"), "wrong extension"),
    "absent.mp4": (lambda path: None, ABSENT),
}
OTHERS = {
    "outside.npy": "leaves its root",
    "calvin_metadata_train.csv:tgt_img": "columns swapped",
    "robot_1st_metadata_train.csv:action": "'juggle' is no class",
    "robot_1st_metadata_train.csv:sample_indices": "no list of frame numbers",
    "robot_1st_metadata_train.csv:video_path": "cell is empty",
}


def extend(table: Path, column: str, cells: Sequence[str], *more: dict[str, str]) -> None:
    """Add rows to a table: its first one with another cell in a column each, and with `more` changes."""
    with table.open() as file:
        rows = list(csv.DictReader(file))
    write_table(table, [*rows, *({**rows[0], column: cell} for cell in cells), *({**rows[0], **row} for row in more)])


def test_every_planted_defect_is_found_and_no_good_file_accused(tmp_path: Path, asked: Path) -> None:
    make_calvin(tmp_path, {"train": 2, "val": 1})
    make_robot(tmp_path, {"train": 4})
    table, clips = (tmp_path / "data" / f"{name}_metadata_train.csv" for name in ("calvin", "robot_1st"))
    folder = tmp_path / "data" / "regression" / "calvin" / "train_stride5"
    planted = IMAGES | ARRAYS | VIDEOS
    with table.open() as file:
        good = next(csv.DictReader(file))
    for places, defects in ((folder / "images", IMAGES), (folder / "actions", ARRAYS)):
        for name, (make, _) in defects.items():
            make(places / name)
    for name, (make, _) in VIDEOS.items():
        make(tmp_path / "data" / "classification" / name)
    extend(table, "tgt_img", [f"images/{name}" for name in IMAGES])
    swapped = {"src_img": good["tgt_img"], "tgt_img": good["src_img"]}
    extend(table, "action", [*(f"actions/{name}" for name in ARRAYS), "../../outside.npy"], swapped)
    extend(clips, "video_path", [*VIDEOS, ""], {"action": "juggle"}, {"sample_indices": "one,two"})

    found, _ = check(tmp_path, "--groups", "CALVIN", "Robot_1st", "--timeout", "1", code=1)
    for name, reason in {**{name: reason for name, (_, reason) in planted.items()}, **OTHERS}.items():
        assert name in found, f"{name} was not found"
        assert reason in found[name]["reason"], name
        assert found[name]["status"] == ("missing" if reason == ABSENT else "corrupt"), name
    assert set(found) == set(planted) | set(OTHERS)
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert "[CALVIN] issue_count=23" in lines
    assert "  robot_1st_metadata_val.csv: missing, rows=0" in lines
    assert not list(tmp_path.glob(".report.txt*"))


def test_good_and_unusual_files_are_accepted_in_every_published_path_form(tmp_path: Path) -> None:
    from PIL import Image

    make_calvin(tmp_path, {"train": 1, "val": 1}, pairs=1)
    make_robot(tmp_path, {"train": 1})
    folder = tmp_path / "data" / "regression" / "calvin" / "train_stride5"
    values = np.linspace(-1, 1, 35).reshape(5, 7)
    picture = Image.fromarray(frame(0.5, 0.5, (250, 9, 9)))
    images = {
        "gray.png": picture.convert("L"), "palette.png": picture.convert("P"), "alpha.png": picture.convert("RGBA"),
        "deep.png": Image.fromarray(np.full((48, 48), 999, np.uint16)), "photo.jpg": picture, "photo.JPEG": picture,
        "photo.webp": picture, "photo.bmp": picture, "photo.tiff": picture,
    }  # fmt: skip
    arrays = {
        "flat": values.astype(np.float32).ravel(), "fortran": np.asfortranarray(values),
        "whole": values.astype(np.int64), "half": values.astype(np.float16),
    }  # fmt: skip
    for name, content in images.items():
        content.save(folder / "images" / name)
    for name, numbers in arrays.items():
        np.save(folder / "actions" / f"{name}.npy", numbers)
    videos = {
        "b.mp4": ("libx264", {"bf": "3"}), "m.mp4": ("mpeg4", {}), "v.webm": ("libvpx-vp9", {"cpu-used": "8"}),
        "k.mkv": ("libx264", {}), "o.mov": ("libx264", {"tune": "zerolatency"}), "a.avi": ("mpeg4", {}),
    }  # fmt: skip
    for name, (codec, options) in videos.items():
        video(tmp_path / "data" / "classification" / name, codec, **options)
    extend(tmp_path / "data" / "calvin_metadata_train.csv", "tgt_img", [f"images/{name}" for name in images])
    extend(tmp_path / "data" / "calvin_metadata_train.csv", "action", [f"actions/{name}.npy" for name in arrays])
    extend(tmp_path / "data" / "robot_1st_metadata_train.csv", "video_path", list(videos))
    table = tmp_path / "data" / "calvin_metadata_val.csv"
    table.write_text(table.read_text().replace("images/", "").replace("actions/", ""))
    found, printed = check(tmp_path)
    assert found == {}
    assert f"{3 + 3 + 9 + 4 + 1 + 6} files checked: 0 issues" in printed


def test_a_killed_run_resumes(tmp_path: Path, asked: Path) -> None:
    make_calvin(tmp_path, {"train": 3})
    journal = tmp_path / ".report.txt.journal"
    words = [f"--lary-root={tmp_path}", f"--data-dir={tmp_path / 'data'}", f"--output={tmp_path / 'report.txt'}"]
    first = subprocess.Popen(
        [sys.executable, "-m", "lary.cli", "data", "check", "--workers=1", "--timeout=60", *words],
        env={**os.environ, "PAUSE": "0.3", "ASKED": os.devnull}, cwd=tmp_path,
    )  # fmt: skip
    for _ in range(600):
        if journal.exists() and len(journal.read_text().splitlines()) > 4:
            break
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (tmp_path / "report.txt").exists()
    with journal.open("a") as file:
        file.write('["torn')
    known = {json.loads(json.loads(line)[0])[1] for line in journal.read_text().splitlines()[1:-1]}
    assert len(known) >= 3
    check(tmp_path)
    again, text = set(asked.read_text().splitlines()), (tmp_path / "report.txt").read_text()
    assert len(again) + len(known) == 3 * 4 + 3 * 3
    assert not again & known
    (tmp_path / "report.txt").unlink()
    check(tmp_path)
    assert (tmp_path / "report.txt").read_text() == text


def test_manifest_spares_decoding_and_finds_changes(tmp_path: Path) -> None:
    assert "is no folder" in check(tmp_path, code=2)[1]
    (tmp_path / "data").mkdir()
    assert "no table" in check(tmp_path, code=2)[1]
    make_calvin(tmp_path, {"train": 1})
    manifest = tmp_path / "manifest.jsonl"
    assert "7 files checked, 0 by the manifest" in check(tmp_path, "--manifest", manifest)[1]
    before = manifest.read_bytes()
    assert "7 files checked, 7 by the manifest" in check(tmp_path, "--manifest", manifest)[1]
    assert manifest.read_bytes() == before
    action = sorted((tmp_path / "data" / "regression").rglob("*.npy"))[0]
    np.save(action, chunk() + 1)
    found, _ = check(tmp_path, "--manifest", manifest, code=1)
    assert list(found) == [action.name]
    assert "differs from the manifest" in found[action.name]["reason"]
    for text, words in (("something else", "no manifest"), ('{"manifest": 9}', "another version")):
        manifest.write_text(text)
        assert words in check(tmp_path, "--manifest", manifest, code=2)[1]
    for wrong, words in (
        ("--groups CALVINO", "Did you mean CALVIN"), ("--workers 0", "at least 1"),
        (f"--manifest {manifest} --depth headers", "leave out --depth"),
    ):  # fmt: skip
        assert words in check(tmp_path, *wrong.split(), code=2)[1]


def test_a_slow_file_gets_a_second_chance(tmp_path: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_calvin(tmp_path, {"train": 1}, pairs=1)
    monkeypatch.setenv("PAUSE", "0.8")
    check(tmp_path, "--timeout", "0.6", "--workers", "1")
    assert len(asked.read_text().splitlines()) > 3
