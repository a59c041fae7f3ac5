"""The integrity checker: planted defects are found, good files are not accused, a killed run continues."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lary.data import verify
from lary.types import UsageError
from tests.tree import frame, make_calvin, make_robot, write_image, write_table, write_video

SLOW_WORKER = """
import os, signal, sys, time
from pathlib import Path
from lary.data import verify_worker as worker

real = worker.decode

def decode(path, media, shape):
    with open(os.environ["ASKED"], "a") as log:
        log.write(f"{path}\\n")
    time.sleep(float(os.environ.get("PAUSE", "0")))
    if path.name == "hangs.npy":
        time.sleep(600)
    if path.name == "crashes.npy":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, media, shape)

worker.decode = decode
worker.main()
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The real worker, which hangs or dies at files of certain names and notes what it decodes."""
    script = tmp_path / "worker.py"
    script.write_text(SLOW_WORKER)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.txt"))
    return (sys.executable, str(script))


def request(root: Path, worker: tuple[str, ...], **options: object) -> verify.VerifyRequest:
    given = {"output": root / "report.txt", "workers": 2, "timeout": 60.0, "command": worker, **options}
    return verify.VerifyRequest(data_root=root / "data", table_root=root, **given)


def issues(report: verify.VerifyReport) -> dict[str, verify.Reference]:
    """Issues by file name, or by column for those of a table."""
    found = {}
    for group in report.groups:
        for item in group.issues:
            name = f"{item.table}:{item.column}" if item.kind == "table" else Path(item.places[0]).name
            assert name not in found
            found[name] = item
    return found


def chunk() -> np.ndarray:
    return np.zeros((5, 7), np.float32)


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def good_image(path: Path) -> None:
    write_image(path, frame(0.5, 0.5, (250, 9, 9)))


def torn_image(path: Path) -> None:
    good_image(path)
    cut(path)


def flipped_image(path: Path) -> None:
    good_image(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def jpeg_named_png(path: Path) -> None:
    write_image(path.with_suffix(".jpg"), frame(0.5, 0.5, (250, 9, 9)))
    path.with_suffix(".jpg").rename(path)


def image_named_npy(path: Path) -> None:
    good_image(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)


def other_size(path: Path) -> None:
    write_image(path, np.zeros((30, 40, 3), np.uint8))


def torn_array(path: Path) -> None:
    np.save(path, chunk())
    cut(path, 0.8)


def loop(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


IMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "torn.png": (torn_image, "corrupt", "ends early"),
    "flipped.png": (flipped_image, "corrupt", "checksum"),
    "empty.png": (lambda path: path.write_bytes(b""), "corrupt", "empty"),
    "text.png": (lambda path: path.write_text("no picture"), "corrupt", "broken"),
    "jpeg.png": (jpeg_named_png, "corrupt", "wrong extension: the file is JPEG"),
    "size.png": (other_size, "corrupt", "40x30 pixels"),
    "folder.png": (lambda path: path.mkdir(), "corrupt", "path is not a file"),
    "loop.png": (loop, "corrupt", "OSError"),
    "dangling.png": (dangling, "missing", "file does not exist"),
    "absent.png": (lambda path: None, "missing", "file does not exist"),
}
ARRAYS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty.npy": (lambda path: path.write_bytes(b""), "corrupt", "can't be read"),
    "torn.npy": (torn_array, "corrupt", "too few"),
    "objects.npy": (lambda path: np.save(path, np.array([{}, 1], dtype=object)), "corrupt", "Object arrays"),
    "shape.npy": (lambda path: np.save(path, np.zeros((7, 5))), "corrupt", "(7, 5), expected (5, 7)"),
    "nan.npy": (lambda path: np.save(path, chunk() * np.nan), "corrupt", "NaN"),
    "words.npy": (lambda path: np.save(path, np.array(["a", "b"])), "corrupt", "no array of numbers"),
    "image.npy": (image_named_npy, "corrupt", "can't be read"),
    "pipe.npy": (lambda path: os.mkfifo(path), "corrupt", "path is not a file"),
    "hangs.npy": (lambda path: np.save(path, chunk()), "corrupt", "no answer within"),
    "crashes.npy": (lambda path: np.save(path, chunk()), "corrupt", "crashed (signal 9)"),
    "absent.npy": (lambda path: None, "missing", "file does not exist"),
}
FRAMES = [frame(0.1 * step, 0.5, (9, 200, 9)) for step in range(8)]


def torn_video(path: Path) -> None:
    write_video(path, FRAMES)
    cut(path, 0.5)


def sound_only(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def no_frames(path: Path) -> None:
    """A complete container whose video stream has no packet."""
    write_video(path, FRAMES)
    data = path.read_bytes()
    at = data.index(b"stsz") + 12
    path.write_bytes(data[:at] + b"\0\0\0\0" + data[at + 4 :])


def webm_named_mp4(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for picture in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


VIDEOS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "torn.mp4": (torn_video, "corrupt", ""),
    "sound.mp4": (sound_only, "corrupt", "no video stream"),
    "frames.mp4": (no_frames, "corrupt", "no frames"),
    "text.mp4": (lambda path: path.write_text("no video"), "corrupt", "Invalid data"),
    "webm.mp4": (webm_named_mp4, "corrupt", "wrong extension"),
    "absent.mp4": (lambda path: None, "missing", "file does not exist"),
}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def plant(root: Path) -> None:
    """Good pairs and clips with rows of defects among them; defect files stand beside good ones."""
    make_calvin(root, {"train": 2, "val": 1})
    make_robot(root, {"train": 4})
    table = root / "data" / "calvin_metadata_train.csv"
    folder = root / "data" / "regression" / "calvin" / "train_stride5"
    rows = read(table)
    good = rows[0]
    for name, (make, _, _) in IMAGES.items():
        make(folder / "images" / name)
        rows.append({**good, "tgt_img": f"images/{name}"})
    for name, (make, _, _) in ARRAYS.items():
        make(folder / "actions" / name)
        rows.append({**good, "action": f"actions/{name}"})
    rows.append({**good, "action": "../../outside.npy"})
    rows.append({**good, "src_img": good["tgt_img"], "tgt_img": good["src_img"]})
    write_table(table, rows)
    table = root / "data" / "robot_1st_metadata_train.csv"
    rows = read(table)
    for name, (make, _, _) in VIDEOS.items():
        make(root / "data" / "classification" / name)
        rows.append({**rows[0], "video_path": name})
    rows += [{**rows[0], "action": "juggle"}, {**rows[0], "sample_indices": "one,two"}, {**rows[0], "video_path": ""}]
    write_table(table, rows)


def test_every_planted_defect_is_found_and_no_good_file_accused(tmp_path: Path, worker: tuple[str, ...]) -> None:
    plant(tmp_path)
    report = verify.verify(request(tmp_path, worker, timeout=1.0, groups=("CALVIN", "Robot_1st")))
    found = issues(report)
    planted = IMAGES | ARRAYS | VIDEOS
    for name, (_, status, reason) in planted.items():
        assert name in found, f"{name} was not found"
        assert found[name].status == status, name
        assert reason in found[name].reason, f"{name}: {found[name].reason}"
    others = {
        "outside.npy": "leaves its root",
        "calvin_metadata_train.csv:tgt_img": "columns swapped",
        "robot_1st_metadata_train.csv:action": "'juggle' is no class",
        "robot_1st_metadata_train.csv:sample_indices": "no list of frame numbers",
        "robot_1st_metadata_train.csv:video_path": "cell is empty",
    }
    for name, reason in others.items():
        assert reason in found[name].reason
    assert set(found) == set(planted) | set(others)
    written = json.loads(report.json.read_text())
    assert sum(len(group["issues"]) for group in written["groups"].values()) == report.issues == len(found)
    lines = report.output.read_text().splitlines()
    assert "[CALVIN] issue_count=23" in lines
    assert "  robot_1st_metadata_val.csv: missing, rows=0" in lines
    assert not list(tmp_path.glob(".report.txt*"))


def test_good_tree_is_accepted_in_every_published_path_form(tmp_path: Path, worker: tuple[str, ...]) -> None:
    make_calvin(tmp_path, {"train": 1, "val": 1})
    table = tmp_path / "data" / "calvin_metadata_val.csv"
    table.write_text(table.read_text().replace("images/", "").replace("actions/", ""))
    report = verify.verify(request(tmp_path, worker))
    assert report.issues == 0
    assert report.files == 14  # the published groups without a table are reported, not failed


def video(path: Path, codec: str, **options: str) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for picture in FRAMES * 3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_unusual_files_that_are_whole_are_accepted(tmp_path: Path, worker: tuple[str, ...]) -> None:
    from PIL import Image

    make_calvin(tmp_path, {"train": 1}, pairs=1)
    make_robot(tmp_path, {"train": 1})
    table = tmp_path / "data" / "calvin_metadata_train.csv"
    folder = tmp_path / "data" / "regression" / "calvin" / "train_stride5"
    rows, values = read(table), np.linspace(-1, 1, 35).reshape(5, 7)
    picture = Image.fromarray(frame(0.5, 0.5, (250, 9, 9)))
    for name, image in {
        "gray.png": picture.convert("L"), "palette.png": picture.convert("P"), "alpha.png": picture.convert("RGBA"),
        "deep.png": Image.fromarray(np.full((48, 48), 999, np.uint16)), "photo.jpg": picture, "photo.JPEG": picture,
        "photo.webp": picture, "photo.bmp": picture, "photo.tiff": picture,
    }.items():  # fmt: skip
        image.save(folder / "images" / name)
        rows.append({**rows[0], "tgt_img": f"images/{name}"})
    for name, array in {
        "flat": values.astype(np.float32).ravel(), "fortran": np.asfortranarray(values),
        "whole": values.astype(np.int64),
        "half": values.astype(np.float16),
    }.items():  # fmt: skip
        np.save(folder / "actions" / f"{name}.npy", array)
        rows.append({**rows[0], "action": f"actions/{name}.npy"})
    write_table(table, rows)
    table = tmp_path / "data" / "robot_1st_metadata_train.csv"
    rows = read(table)
    for name, codec, options in (
        ("b.mp4", "libx264", {"bf": "3"}), ("m.mp4", "mpeg4", {}), ("v.webm", "libvpx-vp9", {"cpu-used": "8"}),
        ("k.mkv", "libx264", {}), ("o.mov", "libx264", {"tune": "zerolatency"}), ("a.avi", "mpeg4", {}),
    ):  # fmt: skip
        video(tmp_path / "data" / "classification" / name, codec, **options)
        rows.append({**rows[0], "video_path": name})
    write_table(table, rows)
    report = verify.verify(request(tmp_path, worker))
    assert {name: item.reason for name, item in issues(report).items()} == {}
    assert report.files == 2 + 9 + 1 + 4 + 1 + 6


def test_a_killed_run_continues(tmp_path: Path, worker: tuple[str, ...]) -> None:
    make_calvin(tmp_path, {"train": 3})
    journal, asked = tmp_path / ".report.txt.journal", tmp_path / "asked.txt"
    code = (
        f"from pathlib import Path; from lary.data import verify; root = Path(r'{tmp_path}'); "
        "verify.verify(verify.VerifyRequest(data_root=root / 'data', table_root=root, output=root / 'report.txt', "
        f"workers=1, timeout=60, command={worker!r}))"
    )
    first = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PAUSE": "0.3", "ASKED": os.devnull})
    for _ in range(600):
        if journal.exists() and len(journal.read_text().splitlines()) > 4:
            break
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (tmp_path / "report.txt").exists()
    with journal.open("a") as file:
        file.write('["torn')
    known = {json.loads(line)[0] for line in journal.read_text().splitlines()[1:-1]}
    assert len(known) >= 3
    report = verify.verify(request(tmp_path, worker))
    again = set(asked.read_text().splitlines())
    assert len(again) + len(known) == report.files
    assert not again & {json.loads(key)[1] for key in known}
    text = report.output.read_text()
    report.output.unlink()
    undisturbed = verify.verify(request(tmp_path, worker))
    assert undisturbed.output.read_text() == text
    assert undisturbed.issues == 0


def test_manifest_spares_decoding_and_finds_changes(tmp_path: Path, worker: tuple[str, ...]) -> None:
    make_calvin(tmp_path, {"train": 1})
    manifest, asked = tmp_path / "manifest.jsonl", tmp_path / "asked.txt"
    first = verify.verify(request(tmp_path, worker, manifest=manifest))
    assert (first.issues, first.by_manifest) == (0, 0)
    before = manifest.read_bytes()
    asked.write_text("")
    second = verify.verify(request(tmp_path, worker, manifest=manifest))
    assert (second.issues, second.by_manifest) == (0, second.files)
    assert asked.read_text() == ""
    assert manifest.read_bytes() == before
    folder = tmp_path / "data" / "regression" / "calvin" / "train_stride5"
    changed = sorted((folder / "actions").rglob("*.npy"))[0]
    np.save(changed, chunk() + 1)
    third = verify.verify(request(tmp_path, worker, manifest=manifest))
    assert list(issues(third)) == [changed.name]
    assert "differs from the manifest" in issues(third)[changed.name].reason
    manifest.write_text("something else")
    with pytest.raises(UsageError, match="no manifest"):
        verify.verify(request(tmp_path, worker, manifest=manifest))


def test_a_slow_file_gets_a_second_chance(
    tmp_path: Path, worker: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_calvin(tmp_path, {"train": 1}, pairs=1)
    monkeypatch.setenv("PAUSE", "0.8")
    assert verify.verify(request(tmp_path, worker, timeout=0.6, workers=1)).issues == 0


def test_wrong_requests_are_refused(tmp_path: Path, worker: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        verify.verify(request(tmp_path, worker))
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="no table"):
        verify.verify(request(tmp_path, worker))
    with pytest.raises(UsageError, match=r"no group 'CALVINO'.*Did you mean CALVIN"):
        verify.verify(request(tmp_path, worker, groups=("CALVINO",)))
    with pytest.raises(UsageError, match="leave out --depth"):
        verify.verify(request(tmp_path, worker, manifest=tmp_path / "m", depth="headers"))
