"""The data tools: clips, statistics, relative actions, splits, frame indices, and their command lines."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lary.data import actions, clips, cutting, sampling, splits, statistics
from lary.data.frames import announced_frames, decode_video, to_rgb
from lary.data.sampling import IndexRequest, write_indices
from lary.data.spec import DATASETS
from lary.types import LaryError, MediaError, UsageError
from tests.tree import make_calvin, make_robot, write_table, write_video

REPOSITORY = Path(__file__).parent.parent
CASES = Path(__file__).parent / "parity" / "cases"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Clips


def recording(path: Path, frames: int = 30) -> None:
    """Ten frames a second; the brightness tells the frame."""
    write_video(path, [np.full((48, 48, 3), 8 * number, np.uint8) for number in range(frames)])


def brightness(path: Path) -> list[int]:
    """Frame numbers of a clip of `recording`."""
    return [round(float(to_rgb(frame).mean()) / 8) for frame in decode_video(path)]


def clip_request(root: Path, videos: dict[str, str], wanted: list[str], **options: object) -> clips.ClipRequest:
    """SSv2 recordings by name with their seed text; `wanted` clips by name."""
    write_table(root / "seed.csv", [{"video_path": name, "seed_output": text} for name, text in videos.items()])
    write_table(root / "wanted.csv", [{"dataset": "SSv2", "video_path": name} for name in wanted])
    return clips.ClipRequest(
        roots={"SSv2": root / "raw"}, seeds={"SSv2": root / "seed.csv"}, tables=(root / "wanted.csv",),
        out=root / "out", workers=2, backend="pyav", **options,
    )  # fmt: skip


def test_clips_are_cut_frame_exact_and_reversed(tmp_path: Path) -> None:
    recording(tmp_path / "raw" / "a.mp4")
    wanted = ["SSv2/0_0.mp4", "SSv2/0_1_rev.mp4"]
    request = clip_request(tmp_path, {"a.mp4": "0.5 - 1.5 push\\n00:01.2 - 00:02.4 pull"}, wanted)
    report = clips.prepare_clips(request)
    assert (report.made, report.kept, report.failures) == (2, 0, ())
    assert brightness(tmp_path / "out/SSv2/0_0.mp4") == list(range(5, 15))
    assert brightness(tmp_path / "out/SSv2/0_1.mp4") == list(range(12, 24)), "the forward clip is made as well"
    assert brightness(tmp_path / "out/SSv2/0_1_rev.mp4") == list(range(23, 11, -1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    (tmp_path / "out/SSv2/0_0.mp4").unlink()
    again = clips.prepare_clips(request)
    assert (again.made, again.kept) == (1, 1)
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.name != "0_0.mp4")


def test_every_clip_that_fails_is_named(tmp_path: Path) -> None:
    recording(tmp_path / "raw" / "a.mp4")
    (tmp_path / "raw" / "torn.mp4").write_bytes((tmp_path / "raw" / "a.mp4").read_bytes()[:200])
    videos = {"a.mp4": "0 - 1\n9 - 10", "torn.mp4": "0 - 1", "absent.mp4": "0 - 1"}
    wanted = ["SSv2/0_0.mp4", "SSv2/0_1.mp4", "SSv2/1_0.mp4", "SSv2/2_0_rev.mp4", "SSv2/7_0.mp4"]
    report = clips.prepare_clips(clip_request(tmp_path, videos, wanted))
    reasons = {item.path: item.reason for item in report.failures}
    assert set(reasons) == set(wanted[1:])
    assert "no frame from 9.0 s on" in reasons["SSv2/0_1.mp4"]
    assert "torn.mp4 can't be cut" in reasons["SSv2/1_0.mp4"]
    assert "absent.mp4 does not exist" in reasons["SSv2/2_0_rev.mp4"]
    assert "no line of the seed table" in reasons["SSv2/7_0.mp4"]
    assert {row["path"] for row in read(report.listed)} == set(reasons)
    assert sorted(path.name for path in (tmp_path / "out/SSv2").iterdir()) == ["0_0.mp4"]


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "odd.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 51, 37, "yuv420p"
        for number in range(6):
            picture = np.full((37, 51, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    cutting.cut_forward(tmp_path / "odd.webm", 0.2, 0.3, tmp_path / "out.mp4")
    frames = [to_rgb(frame) for frame in decode_video(tmp_path / "out.mp4")]
    assert [frame.shape for frame in frames] == [(38, 52, 3)] * 3
    assert [round(float(frame[:36, :50].mean()) / 8) for frame in frames] == [2, 3, 4]
    assert frames[2][-1].mean() < 4, "the added line is black"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg executable in PATH; PyAV cuts instead")
@pytest.mark.parametrize(("start", "duration"), [(0.0, 1.0), (0.75, 0.5), (1.05, 1.33)])
def test_ffmpeg_and_pyav_cut_the_same_frames(tmp_path: Path, start: float, duration: float) -> None:
    recording(tmp_path / "a.mp4")
    for backend in ("pyav", "ffmpeg"):
        cutting.cut_forward(
            tmp_path / "a.mp4", start, duration, tmp_path / f"{backend}.mp4", cutting.find_ffmpeg(backend)
        )
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
    assert [span[1:] for span in clips.parse_clips(line)] == [clock]
    assert [span[1:] for span in clips.parse_clips(line, "published")] == ([published] if published else [])


# Statistics


def save_actions(root: Path, rows: list[tuple[str, str, np.ndarray]]) -> None:
    """Files and table of robocoin's training split: robot type, path, chunk."""
    for _, path, values in rows:
        place = root / "data" / "regression" / "robocoin_10" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, values)
    cells = [{"robot_type": robot, "action": path, "src_img": "a.png", "tgt_img": "b.png"} for robot, path, _ in rows]
    write_table(root / "data" / "robocoin_metadata_seen_train.csv", cells)


def chunks(count: int, shape: tuple[int, int] = (10, 12)) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [(rng.normal(size=shape) * 1e-3 + 100 * rng.random()).astype(np.float32) for _ in range(count)]


def test_statistics_of_parts_merge_into_those_of_the_whole(tmp_path: Path) -> None:
    spec = DATASETS.get("robocoin")
    rows = [("ab"[number % 2], f"t/actions/ep_0/{number}.npy", values) for number, values in enumerate(chunks(80))]
    parts = []
    for name, some in (("first", rows[:50]), ("second", rows[50:]), ("whole", rows)):
        save_actions(tmp_path, some)
        table = tmp_path / "data" / "robocoin_metadata_seen_train.csv"
        out = tmp_path / f"{name}.json"
        parts.append(statistics.write_statistics(spec, table, tmp_path / "data", out, workers=2).out)
    statistics.merge_statistics(spec, parts[:2], tmp_path / "merged.json")
    merged, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("merged", "whole"))
    for robot in "ab":
        values = np.concatenate([chunk for name, _, chunk in rows if name == robot]).astype(np.float64)
        for found in (merged["robot_stats"][robot], whole["robot_stats"][robot]):
            assert found["count"] == len(values)
            np.testing.assert_allclose(found["mean"], values.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(found["std"], values.std(axis=0), rtol=1e-9)
    assert merged["global"]["count"] == 800
    with pytest.raises(LaryError, match="no statistics per robot type of agibotbeta"):
        statistics.merge_statistics(DATASETS.get("agibotbeta"), parts[:2], tmp_path / "no.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 5), np.float32), "no multiple of 12"),
        (np.full((10, 12), np.nan), "NaN"),
        (np.array(["x"]), "no array of numbers"),
    ],
)
def test_a_broken_action_file_stops_the_statistics(tmp_path: Path, values: np.ndarray, message: str) -> None:
    save_actions(tmp_path, [("a", "t/actions/0.npy", np.zeros((10, 12))), ("a", "t/actions/1.npy", values)])
    table = tmp_path / "data" / "robocoin_metadata_seen_train.csv"
    with pytest.raises(MediaError, match=message):
        statistics.write_statistics(DATASETS.get("robocoin"), table, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.json"))


# Relative actions


@pytest.mark.parametrize("name", ["calvin", "robocoin", "agibotbeta"])
def test_local_motion_is_the_same_wherever_it_starts(name: str) -> None:
    """Moving the whole trajectory as a rigid body leaves local motion as it is, and composing it gives the end."""
    from scipy.spatial.transform import Rotation

    space = DATASETS.get(name).actions
    arms, rng = actions.poses(space), np.random.default_rng(3)
    steps = rng.uniform(-1, 1, (4, len(space.dims))).astype(np.float32)
    moved, turn, shift = steps.copy(), Rotation.random(random_state=4), rng.normal(size=3)

    def read(values: np.ndarray, arm: actions.Pose) -> Rotation:
        angles = values[list(arm.orientation)].astype(np.float64)
        return Rotation.from_quat(angles) if arm.quaternion else Rotation.from_euler("xyz", angles)

    for arm in arms:
        place, angles = list(arm.position), list(arm.orientation)
        for step in range(len(steps)):
            moved[step, place] = turn.apply(steps[step, place]) + shift
            pose = turn * read(steps[step], arm)
            moved[step, angles] = -pose.as_quat() if arm.quaternion else pose.as_euler("xyz")
    local = actions.motion(steps, arms)
    np.testing.assert_allclose(actions.motion(moved, arms), local, atol=2e-6)
    for arm in arms:
        first, last = read(steps[0], arm), read(steps[-1], arm)
        end = steps[0, list(arm.position)] + first.apply(local[list(arm.position)])
        np.testing.assert_allclose(end, steps[-1, list(arm.position)], atol=1e-6)
        assert (first * read(local, arm) * last.inv()).magnitude() < 1e-6
    assert len(arms) == (1 if name == "calvin" else 2)


def test_local_angles_do_not_jump_at_half_a_turn() -> None:
    steps = np.zeros((2, 7), np.float32)
    steps[:, 5], steps[:, 6] = (3.1, -3.1), (1, -1)
    arms = actions.poses(DATASETS.get("calvin").actions)
    np.testing.assert_allclose(actions.motion(steps), [0, 0, 0, 0, 0, -6.2, -2], rtol=1e-6)
    np.testing.assert_allclose(actions.motion(steps, arms), [0, 0, 0, 0, 0, 2 * np.pi - 6.2, -2], atol=1e-6)


def test_relative_actions_keep_frames_apart_and_name_failures(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 1})
    data, table = tmp_path / "data", tmp_path / "data" / "calvin_metadata_train.csv"
    broken = sorted((data / "regression").rglob("*.npy"))[1]
    broken.write_bytes(b"")
    spec = DATASETS.get("calvin")
    for frame in ("world", "local"):
        request = statistics.RelativeRequest(
            spec=spec, tables=(table,), input_root=data, output_root=data, frame=frame, workers=1
        )
        report = statistics.write_relative(request)
        assert [item.row for item in report.tables[0].failures] == [1]
        assert [row["row"] for row in read(report.tables[0].listed)] == ["2"]
        assert report.statistics is not None
        assert json.loads(report.statistics.read_text())["count"] == 2
    world, local = ((data / folder).rglob("*.npy") for folder in actions.FOLDERS.values())
    assert len(list(world)) == len(list(local)) == 2
    with pytest.raises(UsageError, match="holds classes"):
        statistics.write_relative(statistics.RelativeRequest(
            spec=DATASETS.get("libero"), tables=(table,), input_root=data, output_root=data,
        ))  # fmt: skip


@pytest.mark.parametrize(
    ("table", "dataset", "split"),
    [
        ("train_la_calvin_5_dinov2.csv", "calvin", "train"),
        ("val_la_calvin_5_x.csv", "calvin", "val"),
        ("seen_val_la_robocoin_10_x.csv", "robocoin", "seen_val"),
        ("unseen_la_robocoin_10_x.csv", "robocoin", "unseen"),
        ("constrained_val.csv", "calvin", "val"),
        ("pairs.csv", "robocoin", "seen_train"),
    ],
)
def test_split_of_a_table(table: str, dataset: str, split: str) -> None:
    assert statistics.split_of(DATASETS.get(dataset), Path(table)) == split


# Splits


def pairs_table(path: Path) -> Path:
    """Segments of demonstrations in both directions, three unequal classes."""
    rows = []
    for demo in range(120):
        for segment in range(1 + demo % 4):
            folder = f"suite/task_demo/demo_{demo}/action_{segment:02d}"
            for source, target in (("start", "end"), ("end", "start")):
                label = ("Open", "Open", "Close", "Up")[(demo + segment) % 4]
                rows.append({"src_img": f"{folder}/{source}.png", "tgt_img": f"{folder}/{target}.png", "action": label})
    write_table(path, rows)
    return path


@pytest.mark.parametrize(("by", "levels"), [("episode", 3), ("segment", 4)])
def test_groups_stay_together_and_classes_keep_their_share(tmp_path: Path, by: splits.Unit, levels: int) -> None:
    table = pairs_table(tmp_path / "all_pairs.csv")
    request = splits.SplitRequest(table=table, by=by, spec=DATASETS.get("libero"))
    report = splits.write_split(request)
    train, val = read(report.train), read(report.val)
    assert len(train) + len(val) == len(read(table))
    units = [{"/".join(row["src_img"].split("/")[:levels]) for row in part} for part in (train, val)]
    assert not units[0] & units[1]
    assert report.groups == (len(units[0]), len(units[1]))
    counts, whole = Counter(row["action"] for row in val), Counter(row["action"] for row in read(table))
    for label, number in whole.items():
        assert abs(counts[label] - 0.25 * number) <= 6
    first = report.val.read_bytes()
    assert splits.write_split(request).val.read_bytes() == first


def test_reversed_clips_stay_with_their_own(tmp_path: Path) -> None:
    rows = [
        {"video_path": f"SSv2/{video}_{line}{ending}.mp4", "action": "push"}
        for video in range(30) for line in range(2) for ending in ("", "_rev")
    ]  # fmt: skip
    write_table(tmp_path / "all_clips.csv", rows)
    report = splits.write_split(splits.SplitRequest(table=tmp_path / "all_clips.csv", by="video"))
    videos = [{row["video_path"].split("_")[0] for row in read(path)} for path in (report.train, report.val)]
    assert not videos[0] & videos[1]
    assert report.rows == (84, 36), "70:30 for clips"


def test_a_split_never_overwrites_its_table(tmp_path: Path) -> None:
    table = pairs_table(tmp_path / "pairs.csv")
    with pytest.raises(UsageError, match="has no 'all_'"):
        splits.write_split(splits.SplitRequest(table=table))
    with pytest.raises(UsageError, match="three files"):
        splits.write_split(splits.SplitRequest(table=table, train=table, val=tmp_path / "val.csv"))
    with pytest.raises(UsageError, match="can't be split so"):
        splits.write_split(
            splits.SplitRequest(table=table, stratify="src_img", train=tmp_path / "t.csv", val=tmp_path / "v.csv")
        )


# Frame indices


def test_motion_is_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tmp_path / "a.mp4"
    shutil.copy(CASES / "sampling_motion.mp4", clip)
    cache = sampling.MotionCache(tmp_path / "cache")
    first = cache.get(clip)
    clip.rename(tmp_path / "renamed.mp4")
    decoded = []
    monkeypatch.setattr(sampling, "gray_frames", lambda path: decoded.append(path) or iter(()))
    np.testing.assert_array_equal(cache.get(tmp_path / "renamed.mp4"), first)
    assert not decoded
    stored = next((tmp_path / "cache").rglob("*.npy"))
    stored.write_bytes(stored.read_bytes()[:40])
    cache.get(tmp_path / "renamed.mp4")
    assert decoded, "a torn entry is computed anew"


def test_indices_of_a_table_with_sheets(tmp_path: Path) -> None:
    for name in ("sampling_motion.mp4", "sampling_short.mp4"):
        shutil.copy(CASES / name, tmp_path / name)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write_video(tmp_path / "one.mp4", [np.zeros((48, 48, 3), np.uint8)])
    names = ["sampling_motion.mp4", "broken.mp4", "sampling_short.mp4", "one.mp4", "../escapes.mp4"]
    write_table(tmp_path / "clips.csv", [{"video_path": name, "action": "a,b"} for name in names])
    request = IndexRequest(
        table=tmp_path / "clips.csv", root=tmp_path, out=tmp_path / "out.csv", workers=1,
    )  # fmt: skip
    report = write_indices(request)
    rows = read(report.out)
    assert [row["video_path"] for row in rows] == ["sampling_motion.mp4", "sampling_short.mp4"]
    assert rows[0] == {
        "video_path": "sampling_motion.mp4", "action": "a,b", "sample_indices": "3,9,20,24,27,30,34,39,44",
    }  # fmt: skip
    assert [item.row for item in report.failures] == [1, 3, 4]
    assert [row["path"] for row in read(tmp_path / "out_failures.csv")] == [names[1], names[3], names[4]]
    with pytest.raises(UsageError, match="input itself"):
        write_indices(IndexRequest(table=tmp_path / "clips.csv", root=tmp_path, out=tmp_path / "clips.csv"))


def test_uniform_indices_ask_the_container_only(tmp_path: Path) -> None:
    clip = CASES / "sampling_motion.mp4"
    assert announced_frames(clip) == 48
    assert sampling.sample_video(clip, 4, "uniform").indices == (0, 12, 24, 36)


# The command lines of the benchmark's description

SEED = {
    "clip": """python utils/prepare_ssv2_egodex.py \\
        --ssv2-root raw/20bn-something-something-v2 \\
        --egodex-root raw/EgoDex \\
        --output-dir $DATA_DIR/classification \\
        --workers 16""",
    "stats": """python utils/compute_robot_action_stats.py \\
        --dataset robocoin \\
        --data-root $DATA_DIR""",
    "check": """python utils/check_dataset_integrity.py \\
        --data-root $DATA_DIR \\
        --output dataset_integrity_report.txt \\
        --workers 64 \\
        --timeout 3""",
    "check one group": """python utils/check_dataset_integrity.py \\
        --data-root $DATA_DIR \\
        --groups CALVIN \\
        --output dataset_integrity_calvin.txt \\
        --workers 64 \\
        --timeout 3""",
    "relative": """python utils/prepare_relative_actions.py \\
        --dataset calvin \\
        --input-root $DATA_DIR \\
        --output-root $DATA_DIR \\
        --csv data/train_la_calvin_5_dinov2.csv \\
        --csv data/val_la_calvin_5_dinov2.csv \\
        --workers 32""",
}


def run(root: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command of the description in a folder with the repository's scripts and data."""
    (root / "utils").symlink_to(REPOSITORY / "utils")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DATA_DIR": str(root / "data"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", command], cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip


def test_seed_clip_command(tmp_path: Path) -> None:
    recording(tmp_path / "raw/20bn-something-something-v2/7.mp4", 12)
    recording(tmp_path / "raw/EgoDex/part1/lid/9.mp4", 12)
    for name, video in (("ssv2", "/x/7.mp4"), ("egodex", "/d/unzipped/part1/lid/9.mp4")):
        write_table(tmp_path / f"data/seed_{name}.csv", [{"video_path": video, "seed_output": "0 - 0.5"}])
    wanted = [{"dataset": "SSv2", "video_path": "SSv2/0_0.mp4"}, {"dataset": "TACO", "video_path": "TACO/1.mp4"}]
    write_table(tmp_path / "data/human_1st_metadata_train.csv", wanted)
    wanted = [{"dataset": "EgoDex", "video_path": "EgoDex/9/0_0_rev.mp4"}]
    write_table(tmp_path / "data/human_1st_metadata_val.csv", wanted)
    done = run(tmp_path, SEED["clip"])
    assert done.returncode == 0, done.stderr
    assert "2 clips asked for: 2 made, 0 kept, 0 failed" in done.stdout
    assert brightness(tmp_path / "data/classification/EgoDex/9/0_0_rev.mp4") == [4, 3, 2, 1, 0]


def test_seed_statistics_command(tmp_path: Path) -> None:
    save_actions(tmp_path, [("a", f"t/actions/{number}.npy", values) for number, values in enumerate(chunks(3))])
    done = run(tmp_path, SEED["stats"])
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "data/regression/robocoin_10/robocoin_stats.json").read_text())
    assert found["robot_stats"]["a"]["count"] == 30


@pytest.mark.parametrize(("name", "report"), [("check", "report"), ("check one group", "calvin")])
def test_seed_check_commands(tmp_path: Path, name: str, report: str) -> None:
    make_calvin(tmp_path, {"train": 1, "val": 1}, pairs=1)
    make_robot(tmp_path, {"train": 1})
    (tmp_path / "data/classification/AgiBotWorld-Beta/train/0.mp4").unlink()
    done = run(tmp_path, SEED[name])
    lines = (tmp_path / f"dataset_integrity_{report}.txt").read_text().splitlines()
    assert "  image: total=4 ok=4 missing=0 corrupt=0" in lines
    if report == "calvin":
        assert done.returncode == 0, done.stderr
        assert not any("Robot_1st" in line for line in lines)
    else:
        assert done.returncode == 1, done.stderr
        assert "[Robot_1st] issue_count=1" in lines


def test_seed_relative_command(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 1, "val": 1})
    for split in ("train", "val"):
        rows = read(tmp_path / f"data/calvin_metadata_{split}.csv")
        table = tmp_path / f"data/{split}_la_calvin_5_dinov2.csv"
        write_table(table, [{**row, "la_path": "x.npz"} for row in rows])
    done = run(tmp_path, SEED["relative"])
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data/regression_relative/calvin"
    assert json.loads((folder / "relative_action_stats_calvin.json").read_text())["count"] == 3
    moved = np.load(folder / "val_stride5/actions/ep_0/action_000000to000004.npy")
    chunk = np.load(tmp_path / "data/regression/calvin/val_stride5/actions/ep_0/action_000000to000004.npy")
    np.testing.assert_array_equal(moved, chunk[-1] - chunk[0])


def test_a_wrong_command_is_answered_in_a_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "python utils/compute_robot_action_stats.py --dataset robocoinn --data-root .")
    assert done.returncode == 2
    assert done.stderr.strip() == "lary: Unknown data set 'robocoinn'. Did you mean robocoin?"
