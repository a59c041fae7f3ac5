"""Frame indices: sampled where something moves; clips that fail are named."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lary.data.configs import IndicesConfig
from lary.data.frames import count_frames
from lary.data.sampling import sample_video, write_indices
from tests.data.test_frames import encode
from tests.helpers import printed, rows_of, settings_of
from tests.tree import write_table, write_video

CASES = Path(__file__).parents[1] / "parity" / "cases"
CLIP = CASES / "sampling_motion.mp4"


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
    assert (rows[0]["action"], rows[0]["sample_indices"]) == ("a,b", "3,9,20,24,27,30,34,39,44")
    assert [item.row for item in report.failures] == [1, 3, 4]
    assert [row["path"] for row in rows_of(tmp_path / "out_failures.csv")] == [names[1], names[3], names[4]]
    assert write_indices(report.out, IndicesConfig(root=tmp_path), settings).out == tmp_path / "out_indices.csv"
    assert not (tmp_path / "out_indices_failures.csv").exists()
    write_table(table, [{"video_path": name, "action": "a,b"} for name in names * 7])
    words = ("one.mp4 has 1 frame, at least two", "and 1 more failures, left out of the table", "14 rows, 21 failed")
    text = printed("indices", table, "--root", tmp_path, root=tmp_path, code=1, has=words)
    assert text.count("failed: ") == 20


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "libvpx-vp9"), ("mkv", "libx264"), ("mpg", "mpeg2video")])
def test_uniform_indices_end_with_the_clip_whatever_is_announced(tmp_path: Path, suffix: str, codec: str) -> None:
    """Variable rates, and a container without a number of frames: both announce another one."""
    path = tmp_path / f"a.{suffix}"
    encode(path, codec, {"bf": "2"} if suffix == "mpg" else {}, count=40, varied=suffix != "mpg")
    assert count_frames(path) == 40
    assert sample_video(path, method="uniform") == (0, 4, 8, 13, 17, 22, 26, 31, 35)


def test_indices_are_kept_by_content(tmp_path: Path) -> None:
    folder, cache, table = tmp_path / "data/classification", tmp_path / "cache", tmp_path / "clips.csv"
    folder.mkdir(parents=True)
    clip = Path(shutil.copy(CLIP, folder / "a.mp4"))
    for name in ("a.mp4", "renamed.mp4"):
        write_table(table, [{"video_path": name, "action": "push"}])
        report = write_indices(table, IndicesConfig(cache=cache), settings_of(tmp_path))
        assert rows_of(report.out)[0]["sample_indices"] == ("3,9,20,24,27,30,34,39,44" if name == "a.mp4" else "7,8")
        (kept,) = cache.iterdir()
        kept.write_text("7,8")
        clip.rename(folder / "renamed.mp4") if name == "a.mp4" else None
    for count, options in ((2, {"frames": 4}), (3, {"method": "uniform"})):
        write_indices(table, IndicesConfig(cache=cache, **options), settings_of(tmp_path))  # type: ignore[arg-type]
        assert len(list(cache.iterdir())) == count
