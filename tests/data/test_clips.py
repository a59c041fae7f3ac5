"""Clips are cut frame-exact and reversed; failures are named."""

from pathlib import Path

import numpy as np
import pytest

from lary.data.clips import cut_forward, parse_clips, prepare_clips
from lary.data.configs import ClipConfig
from lary.data.frames import decode_video, to_rgb
from lary.types import MediaError
from tests.data.test_frames import cut_short, encode
from tests.helpers import fails, rows_of, settings_of
from tests.tree import write_table, write_video


def brightness(path: Path) -> list[int]:
    """Frame numbers of a clip of a recording whose brightness is their number."""
    return [round(float(to_rgb(frame).mean()) / 8) for frame in decode_video(path)]


def test_clips_are_exact_and_turned_and_failures_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lary.data.clips.BLOCK", 5 * 48 * 48)  # a clip is turned in several
    write_video(tmp_path / "raw" / "a.mp4", [np.full((48, 48, 3), 8 * number, np.uint8) for number in range(30)])
    (tmp_path / "raw" / "torn.mp4").write_bytes((tmp_path / "raw" / "a.mp4").read_bytes()[:200])
    text = "0.5 - 1.5 push\\n00:01.2 - 00:02.4 pull\\n9 - 10"
    videos = {"a.mp4": text, "torn.mp4": "0 - 1", "absent.mp4": "0 - 1"}
    failing = ["SSv2/0_2.mp4", "SSv2/1_0.mp4", "SSv2/2_0_rev.mp4", "SSv2/7_0.mp4"]
    seeds, wanted = tmp_path / "seeds.csv", tmp_path / "wanted.csv"
    write_table(seeds, [{"video_path": name, "seed_output": text} for name, text in videos.items()])
    names = ["SSv2/0_0.mp4", "SSv2/0_1_rev.mp4", *failing]
    names.append("EgoDex/a/0_0.mp4")  # its folder is not named
    write_table(wanted, [{"dataset": name.split("/")[0], "video_path": name} for name in names])
    folders = {"ssv2_root": tmp_path / "raw", "output_dir": tmp_path / "out"}
    config = ClipConfig(**folders, seed_ssv2=seeds, metadata=(wanted,), workers=2)  # type: ignore[arg-type]
    report = prepare_clips(config, settings_of(tmp_path))
    assert (report.wanted, report.made, report.kept) == (6, 2, 0)
    shown = [brightness(tmp_path / f"out/SSv2/{name}.mp4") for name in ("0_0", "0_1", "0_1_rev")]
    assert shown == [list(range(5, 15)), list(range(12, 24)), list(range(23, 11, -1))], "also the one that was turned"
    reasons = ("no frame from 9 s on", "torn.mp4 can't be read", "absent.mp4 does not exist", "no line of the seed")
    assert [words for words, item in zip(reasons, report.failures, strict=True) if words not in item.reason] == []
    assert [row["path"] for row in rows_of(report.listed)] == failing
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    assert len(made) == 3
    (tmp_path / "out/SSv2/0_0.mp4").unlink()
    again = prepare_clips(config, settings_of(tmp_path))
    assert (again.made, again.kept) == (1, 1)
    assert all(path.stat().st_mtime_ns == before for path, before in made.items() if path.name != "0_0.mp4")


def test_torn_recording_makes_no_clip(tmp_path: Path) -> None:
    encode(tmp_path / "a.avi", "mpeg4", {})
    (tmp_path / "torn.avi").write_bytes(cut_short(tmp_path / "a.avi"))
    words = r"torn\.avi can't be read: the file ends within a frame"
    fails(MediaError, words, cut_forward, tmp_path / "torn.avi", 0, 9, tmp_path / "out.mp4")
    encode(tmp_path / "b.avi", "libx264", {"bf": "3"})
    fails(MediaError, "stamps of its frames don't rise", cut_forward, tmp_path / "b.avi", 0.5, 1, tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*.mp4"))


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mov", [np.full((37, 51, 3), 8 * number, np.uint8) for number in range(6)], "png")
    cut_forward(tmp_path / "odd.mov", 0.2, 0.3, tmp_path / "out.mp4")
    frames = [to_rgb(frame) for frame in decode_video(tmp_path / "out.mp4")]
    assert [frame.shape for frame in frames] == [(38, 52, 3)] * 3
    assert [round(float(frame[:36, :50].mean()) / 8) for frame in frames] == [2, 3, 4]
    assert frames[2][-1].mean() < 4, "the added line is black"


def test_minutes_and_seconds() -> None:
    for line, clock, published in (
        ("00:01 - 00:05 open", (1.0, 4.0), []), ("1:02.5 - 1:04 close", (62.5, 1.5), []),
        ("1:00:00-1:00:02", (3600.0, 2.0), [(0.0, 1.0)]), ("00:01 - 05:00 misread", (1.0, 299.0), [(1.0, 4.0)]),
        ("1.0 - 2.0 push", (1.0, 1.0), [(1.0, 1.0)]),
    ):  # fmt: skip
        assert [span[1:] for span in parse_clips(line)] == [clock]
        assert [span[1:] for span in parse_clips(line, "published")] == published
