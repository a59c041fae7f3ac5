"""Clips and frame indices: cut frame-exact and reversed, sampled where something moves, failures by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.data.clips import cut_forward, find_ffmpeg, parse_clips, prepare_clips
from lary.data.configs import ClipConfig, IndicesConfig
from lary.data.frames import announced_frames, decode_video, to_rgb
from lary.data.sampling import MotionCache, sample_video, write_indices
from lary.types import MediaError, UsageError
from tests.data.test_frames import cut_short, encode
from tests.helpers import rows_of, settings_of
from tests.tree import write_table, write_video

CASES = Path(__file__).parents[1] / "parity" / "cases"


def recording(path: Path, frames: int = 30) -> None:
    """Ten frames a second, whose brightness is their number."""
    write_video(path, [np.full((48, 48, 3), 8 * number, np.uint8) for number in range(frames)])


def brightness(path: Path) -> list[int]:
    """Frame numbers of a clip of `recording`."""
    return [round(float(to_rgb(frame).mean()) / 8) for frame in decode_video(path)]


def clip_config(root: Path, videos: dict[str, str], wanted: list[str], **options: Any) -> ClipConfig:
    """SSv2 recordings by name with their seed text; `wanted` clips by name."""
    write_table(root / "seed.csv", [{"video_path": name, "seed_output": text} for name, text in videos.items()])
    write_table(root / "wanted.csv", [{"dataset": "SSv2", "video_path": name} for name in wanted])
    given = {"ssv2_root": root / "raw", "seed_ssv2": root / "seed.csv", "metadata": (root / "wanted.csv",)}
    return ClipConfig(**{**given, "output_dir": root / "out", "workers": 2, "backend": "pyav", **options})


def test_clips_are_cut_frame_exact_and_reversed(tmp_path: Path) -> None:
    recording(tmp_path / "raw" / "a.mp4")
    wanted = ["SSv2/0_0.mp4", "SSv2/0_1_rev.mp4"]
    config = clip_config(tmp_path, {"a.mp4": "0.5 - 1.5 push\\n00:01.2 - 00:02.4 pull"}, wanted)
    report = prepare_clips(config, settings_of(tmp_path))
    assert (report.made, report.kept, report.failures) == (2, 0, ())
    assert brightness(tmp_path / "out/SSv2/0_0.mp4") == list(range(5, 15))
    assert brightness(tmp_path / "out/SSv2/0_1.mp4") == list(range(12, 24)), "the forward clip is made as well"
    assert brightness(tmp_path / "out/SSv2/0_1_rev.mp4") == list(range(23, 11, -1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    (tmp_path / "out/SSv2/0_0.mp4").unlink()
    again = prepare_clips(config, settings_of(tmp_path))
    assert (again.made, again.kept) == (1, 1)
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.name != "0_0.mp4")


def test_every_clip_that_fails_is_named(tmp_path: Path) -> None:
    recording(tmp_path / "raw" / "a.mp4")
    (tmp_path / "raw" / "torn.mp4").write_bytes((tmp_path / "raw" / "a.mp4").read_bytes()[:200])
    videos = {"a.mp4": "0 - 1\n9 - 10", "torn.mp4": "0 - 1", "absent.mp4": "0 - 1"}
    wanted = ["SSv2/0_0.mp4", "SSv2/0_1.mp4", "SSv2/1_0.mp4", "SSv2/2_0_rev.mp4", "SSv2/7_0.mp4"]
    report = prepare_clips(clip_config(tmp_path, videos, wanted), settings_of(tmp_path))
    reasons = {item.path: item.reason for item in report.failures}
    assert set(reasons) == set(wanted[1:])
    assert "no frame from 9.0 s on" in reasons["SSv2/0_1.mp4"]
    assert "torn.mp4 can't be cut" in reasons["SSv2/1_0.mp4"]
    assert "absent.mp4 does not exist" in reasons["SSv2/2_0_rev.mp4"]
    assert "no line of the seed table" in reasons["SSv2/7_0.mp4"]
    assert {row["path"] for row in rows_of(report.listed)} == set(reasons)
    assert sorted(path.name for path in (tmp_path / "out/SSv2").iterdir()) == ["0_0.mp4"]


def test_recording_that_ends_within_a_frame_gives_no_clip(tmp_path: Path) -> None:
    encode(tmp_path / "a.avi", "mpeg4", {})
    (tmp_path / "torn.avi").write_bytes(cut_short(tmp_path / "a.avi"))
    with pytest.raises(MediaError, match=r"torn\.avi can't be cut: the file ends within a frame"):
        cut_forward(tmp_path / "torn.avi", 0, 9, tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*.mp4"))


def test_wrong_clip_requests_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    recording(tmp_path / "raw" / "a.mp4", 2)
    config = clip_config(tmp_path, {"../../secret.mp4": "0 - 1"}, ["SSv2/0_0.mp4"])
    prepare = {"absent": {"ssv2_root": tmp_path / "none"}, "ffmpeg": {"backend": "ffmpeg"}, "tables": {"metadata": ()}}
    for name, words in (
        ("absent", "The SSv2 folder .*none does not exist"), ("ffmpeg", "no ffmpeg executable in PATH"),
        ("tables", "none of human_1st_metadata_train.csv, .* or pass --metadata"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            prepare_clips(ClipConfig(**{**vars(config), **prepare[name]}), settings_of(tmp_path))
    with pytest.raises(UsageError, match="Name --ssv2-root, --egodex-root or both"):
        prepare_clips(ClipConfig(), settings_of(tmp_path))
    write_table(tmp_path / "wanted.csv", [{"video_path": "SSv2/0_0.mp4"}])
    with pytest.raises(UsageError, match="no column 'dataset'; it has: video_path"):
        prepare_clips(config, settings_of(tmp_path))


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "odd.webm"), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 51, 37, "yuv420p"
        for number in range(6):
            picture = np.full((37, 51, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    cut_forward(tmp_path / "odd.webm", 0.2, 0.3, tmp_path / "out.mp4")
    frames = [to_rgb(frame) for frame in decode_video(tmp_path / "out.mp4")]
    assert [frame.shape for frame in frames] == [(38, 52, 3)] * 3
    assert [round(float(frame[:36, :50].mean()) / 8) for frame in frames] == [2, 3, 4]
    assert frames[2][-1].mean() < 4, "the added line is black"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg executable in PATH; PyAV cuts instead")
@pytest.mark.parametrize(("start", "duration"), [(0.0, 1.0), (0.75, 0.5), (1.05, 1.33)])
def test_ffmpeg_and_pyav_cut_the_same_frames(tmp_path: Path, start: float, duration: float) -> None:
    recording(tmp_path / "a.mp4")
    for name, ffmpeg in (("pyav", None), ("ffmpeg", find_ffmpeg())):
        cut_forward(tmp_path / "a.mp4", start, duration, tmp_path / f"{name}.mp4", ffmpeg)
    assert brightness(tmp_path / "pyav.mp4") == brightness(tmp_path / "ffmpeg.mp4")


@pytest.mark.parametrize(
    ("line", "clock", "published"),
    [
        ("00:01 - 00:05 open", (1.0, 4.0), None),
        ("1:02.5 - 1:04 close", (62.5, 1.5), None),
        ("1:00:00-1:00:02", (3600.0, 2.0), (0.0, 1.0)),
        ("00:01 - 05:00 misread", (1.0, 299.0), (1.0, 4.0)),
        ("1.0 - 2.0 push", (1.0, 1.0), (1.0, 1.0)),
    ],
)
def test_minutes_and_seconds(line: str, clock: tuple[float, float], published: tuple[float, float] | None) -> None:
    assert [span[1:] for span in parse_clips(line)] == [clock]
    assert [span[1:] for span in parse_clips(line, "published")] == ([published] if published else [])


# Frame indices


def test_indices_of_a_table(tmp_path: Path) -> None:
    for name in ("sampling_motion.mp4", "sampling_short.mp4"):
        shutil.copy(CASES / name, tmp_path / name)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write_video(tmp_path / "one.mp4", [np.zeros((48, 48, 3), np.uint8)])
    names = ["sampling_motion.mp4", "broken.mp4", "sampling_short.mp4", "one.mp4", "../escapes.mp4"]
    table = tmp_path / "clips.csv"
    write_table(table, [{"video_path": name, "action": "a,b"} for name in names])
    settings = settings_of(tmp_path)
    report = write_indices(table, IndicesConfig(root=tmp_path, out=tmp_path / "out.csv", workers=1), settings)
    rows = rows_of(report.out)
    assert [row["video_path"] for row in rows] == ["sampling_motion.mp4", "sampling_short.mp4"]
    assert rows[0] == {
        "video_path": "sampling_motion.mp4", "action": "a,b", "sample_indices": "3,9,20,24,27,30,34,39,44",
    }  # fmt: skip
    assert [item.row for item in report.failures] == [1, 3, 4]
    assert [row["path"] for row in rows_of(tmp_path / "out_failures.csv")] == [names[1], names[3], names[4]]
    assert write_indices(report.out, IndicesConfig(root=tmp_path), settings).out == tmp_path / "out_indices.csv"
    for config, words in (
        (IndicesConfig(root=tmp_path, out=table), "input itself"),
        (IndicesConfig(root=tmp_path, frames=0), "must be at least 1"),
    ):
        with pytest.raises(UsageError, match=words):
            write_indices(table, config, settings)


def test_indices_that_need_no_decoding(tmp_path: Path) -> None:
    clip = CASES / "sampling_motion.mp4"
    assert announced_frames(clip) == 48
    assert sample_video(clip, 4, "uniform").indices == (0, 12, 24, 36)
    encode(tmp_path / "a.mkv", "libx264", {"bf": "0"}, count=12, varied=True)
    assert announced_frames(tmp_path / "a.mkv") > 18, "more than it holds"
    assert sample_video(tmp_path / "a.mkv").differences is None, "sampled uniformly"


def test_motion_is_kept_by_content(tmp_path: Path) -> None:
    clip, cache = tmp_path / "a.mp4", MotionCache(tmp_path / "cache")
    shutil.copy(CASES / "sampling_motion.mp4", clip)
    first = cache.get(clip)
    (stored,) = (tmp_path / "cache").rglob("*.npy")
    np.save(stored, first + 1)
    np.testing.assert_array_equal(cache.get(clip.rename(tmp_path / "renamed.mp4")), first + 1)
    stored.write_bytes(stored.read_bytes()[:40])
    np.testing.assert_array_equal(cache.get(tmp_path / "renamed.mp4"), first, "a torn entry is computed anew")
