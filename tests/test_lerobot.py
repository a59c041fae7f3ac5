"""LeRobot data sets in each format come back frame by frame, and run through extraction and a probe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cyclopts import App

from lary.cli import benchmark as cli_run
from lary.cli import data as cli_data
from lary.data.audit import AuditRequest, audit
from lary.data.frames import read_clip
from lary.data.images import read_image
from lary.data.normalisation import load_normaliser
from lary.data.spec import DATASETS, DatasetSpec
from lary.data.tables import SampleTable, read_table
from lary.importers import lerobot
from lary.importers.lerobot import ImportReport, import_lerobot
from lary.importers.lerobot_atomic import AtomicPlan, AtomicRequest, plan_atomic
from lary.importers.lerobot_plan import LeRobotRequest, dimension_names, make_plan, preview
from lary.importers.lerobot_reader import LeRobot, frame_numbers, video_seconds
from lary.importers.motions import ATOMIC_CLASSES, INVERSE, AtomicRule
from lary.importers.records import load_record
from lary.types import LaryError, MediaError, UsageError
from tests.lerobot_files import FPS, FRONT, LENGTHS, WRIST, actions, told, write_lerobot

FORMATS = [("v2.1", "h264", None), ("v2.1", "av1", None), ("v3.0", "h264", None), ("v3.0", "av1", None),
           ("v2.1", "", "PNG"), ("v3.0", "", "JPEG")]  # fmt: skip


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    DATASETS.names()
    monkeypatch.setattr(DATASETS, "_records", dict(DATASETS._records))


def request_of(tmp_path: Path, **changes: Any) -> LeRobotRequest:
    values: dict[str, Any] = {
        "source": tmp_path / "source", "name": "arm", "stride": 3,
        "data_dir": tmp_path / "data", "tables": tmp_path / "root" / "data",
    }  # fmt: skip
    return LeRobotRequest(**{**values, **changes})


def run(tmp_path: Path, **changes: Any) -> ImportReport:
    request = request_of(tmp_path, **changes)
    data = LeRobot(request.source)
    return import_lerobot(data, make_plan(data, request), request)


def tables(tmp_path: Path, report: ImportReport) -> tuple[DatasetSpec, dict[str, SampleTable]]:
    spec = load_record(report.plugin.with_suffix(".json"))
    folder = report.plugin.parent
    return spec, {
        split: read_table(spec, split, path=folder / spec.table_name(split), data_dir=tmp_path / "data")
        for split in spec.splits
    }


@pytest.mark.parametrize(("version", "codec", "images"), FORMATS)
@pytest.mark.parametrize("camera", [FRONT, WRIST])
def test_frames_and_actions_come_back_exactly(
    tmp_path: Path, version: str, codec: str, images: str | None, camera: str
) -> None:
    source = write_lerobot(tmp_path / "source", version, codec, images)
    report = run(tmp_path, camera=camera)
    assert report.failures == ()
    spec, splits = tables(tmp_path, report)
    assert {split: len(table) for split, table in splits.items()} == dict(report.rows)
    seen = []
    for table in splits.values():
        for sample in table:
            first, second = (read_image(path) for path in table.media_path(sample))
            chunk = np.load(table.action_path(sample), allow_pickle=False)
            _, episode, at = told(first)
            assert told(first) == (camera, episode, at)
            assert told(second) == (camera, episode, at + 3)
            assert sample.group == f"images/ep_{episode}" or sample.group == f"ep_{episode}"
            assert sample.embodiment == "so100"
            np.testing.assert_array_equal(chunk, actions(episode, LENGTHS[episode])[at : at + 3])
            if not images:
                joined = version == "v3.0"
                name = f"file-{episode // 2:03d}" if joined else f"episode_{episode:06d}"
                path = next((source / "videos").glob(f"**/{camera}/**/{name}.mp4"))
                number = at + (LENGTHS[episode - 1] if joined and episode % 2 else 0)
                np.testing.assert_array_equal(first, read_clip([path], [number])[0])
            seen.append((episode, at))
    assert sorted(seen) == [(e, at) for e, n in enumerate(LENGTHS) for at in range(0, n - 3, 3)]
    assert spec.actions.dims == ("x", "y", "z", "gripper", "action_4_gripper")
    assert (spec.actions.horizon, spec.stride, spec.samples) == (3, 3, len(seen))
    assert spec.licences[0].name == "apache-2.0"
    assert spec.licences[0].commercial


def test_splits_are_by_episode_and_statistics_of_training(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    spec, splits = tables(tmp_path, run(tmp_path))
    train, val = ({sample.group for sample in splits[split]} for split in ("train", "val"))
    assert len(train) == 3
    assert len(val) == 1
    assert not train & val
    chunks = [np.load(splits["train"].action_path(sample)) for sample in splits["train"]]
    normaliser = load_normaliser(spec, tmp_path / "data")
    np.testing.assert_allclose(normaliser.statistics("so100").mean, np.concatenate(chunks).mean(axis=0), rtol=1e-5)


def test_declared_validation_is_used(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source", "v3.0", images="PNG", splits={"train": "0:2", "val": "2:4"})
    _, splits = tables(tmp_path, run(tmp_path))
    assert {sample.group.rsplit("_", 1)[-1] for sample in splits["val"]} == {"2", "3"}


def test_choices_and_preview(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    data = LeRobot(source)
    request = request_of(tmp_path, stride=None)
    plan = make_plan(data, request)
    assert (plan.camera, plan.actions, plan.stride, plan.robot) == (FRONT, ("action",), 3, "so100")
    text = preview(data, plan, request)
    assert f"* {FRONT}" in text
    assert f"  {WRIST}" in text
    assert "licence: apache-2.0" in text
    both = make_plan(data, replace(request, actions=("observation.state", "action"), robot="mine"))
    assert both.dims == ("state_0", "state_1", "x", "y", "z", "gripper", "action_4_gripper")
    assert both.robot == "mine"
    assert not (tmp_path / "data").exists(), "a plan writes nothing"


@pytest.mark.parametrize(
    ("names", "dims"),
    [
        (["a", "b"], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"left": ["a"], "right": ["b"]}, ("a", "b")),
        ({"b": 1, "a": 0}, ("a", "b")),
        (["a", "a"], ("a", "action_1_a")),
        (["a"], ("action_0", "action_1")),
        (None, ("action_0", "action_1")),
    ],
)
def test_names_of_dimensions(tmp_path: Path, names: object, dims: tuple[str, ...]) -> None:
    (tmp_path / "meta").mkdir()
    features = {"action": {"dtype": "float32", "shape": [2], "names": names}}
    (tmp_path / "meta" / "info.json").write_text(
        json.dumps({"codebase_version": "v2.1", "fps": 10, "features": features})
    )
    assert dimension_names(LeRobot(tmp_path), ["action"]) == dims


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"camera": "observation.images.frnt"}, "Did you mean observation.images.front"),
        ({"actions": ("acton",)}, "Did you mean action"),
        ({"actions": ("timestamp",)}, "none of this name"),
        ({"stride": 0}, "--stride"),
        ({"stride": 12}, "at least two"),
        ({"episodes": 1}, "--episodes"),
        ({"share": 1.0}, "--val-share"),
        ({"name": "../evil"}, "--name"),
        ({"name": "calvin"}, "exists already"),
    ],
)
def test_wrong_requests(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    with pytest.raises(UsageError, match=words):
        run(tmp_path, **changes)
    assert not (tmp_path / "data").exists()


def test_what_is_no_lerobot_data_set(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    with pytest.raises(UsageError, match=r"no meta/info\.json"):
        LeRobot(tmp_path)
    for version in ("v1.6", "v4.0", None):
        (tmp_path / "meta" / "info.json").write_text(json.dumps({"codebase_version": version, "fps": 10}))
        with pytest.raises(UsageError, match="version"):
            LeRobot(tmp_path)


@pytest.mark.parametrize("template", ["../{episode_index}.parquet", "/etc/passwd", "{video_key.__class__}", "{other}"])
def test_templates_reach_nothing_else(tmp_path: Path, template: str) -> None:
    write_lerobot(tmp_path / "source", "v2.1", images="PNG", data_path=template)
    with pytest.raises(LaryError):
        run(tmp_path)
    assert not (tmp_path / "root" / "data" / "arm_dataset.py").exists()


def test_one_damaged_video_costs_its_episode(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", "v2.1", "h264", splits={"val": "1:2"})
    path = next(source.glob(f"videos/*/{FRONT}/episode_000002.mp4"))
    path.write_bytes(path.read_bytes()[:900])
    report = run(tmp_path)
    assert [failure.path for failure in report.failures] == ["episode 2"]
    assert (tmp_path / "root" / "data" / "arm_import_failures.csv").is_file()
    _, splits = tables(tmp_path, report)
    assert not any("ep_2" in sample.group for table in splits.values() for sample in table)


def test_rows_that_lack_a_frame_are_told(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", "v3.0", "h264", splits={"val": "0:1"})
    path = source / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path)
    at = rows.column_names.index(f"videos/{FRONT}/from_timestamp")
    times = rows.column(at).to_pylist()
    times[3] += 5.0
    pq.write_table(rows.set_column(at, rows.column_names[at], pa.array(times)), path)
    report = run(tmp_path)
    assert [failure.path for failure in report.failures] == ["episode 3"]
    assert "No frame is shown at" in report.failures[0].reason


def test_broken_tables_cost_their_episode(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", "v2.1", images="PNG", splits={"val": "1:2"})
    data = source / "data"
    (data / "chunk-000" / "episode_000000.parquet").write_bytes(b"PAR1")
    rows = pq.read_table(data / "chunk-001" / "episode_000003.parquet")
    pq.write_table(rows.slice(0, 7), data / "chunk-001" / "episode_000003.parquet")
    report = run(tmp_path)
    assert {failure.path for failure in report.failures} == {"episode 0", "episode 3"}
    assert any("7 rows" in failure.reason for failure in report.failures)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", "v2.1", images="PNG", splits={"val": "0:1"})
    path = source / "data" / "chunk-000" / "episode_000001.parquet"
    rows = pq.read_table(path)
    values = rows.column("action").to_pylist()
    values[4][2] = float("nan")
    at = rows.column_names.index("action")
    pq.write_table(rows.set_column(at, "action", pa.array(values, pa.list_(pa.float32()))), path)
    report = run(tmp_path)
    assert [(failure.path, "finite" in failure.reason) for failure in report.failures] == [("episode 1", True)]


def test_a_stopped_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot(tmp_path / "source", "v2.1", "h264")
    count, real = 0, lerobot.write_file

    def stop(path: Path, content: bytes) -> None:
        nonlocal count
        count += path.suffix == ".png"
        if count == 8:
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(lerobot, "write_file", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    images = tmp_path / "data" / "regression" / "arm" / "images"
    done = next(images.glob("ep_0/frame_000000.png"))
    stamp = done.stat().st_mtime_ns
    report = run(tmp_path)
    assert report.failures == ()
    assert done.stat().st_mtime_ns == stamp, "a finished episode is not decoded again"
    assert sorted(path.name for path in images.iterdir()) == [f"ep_{number}" for number in range(4)]
    assert sum(report.rows.values()) == sum(len(range(0, n - 3, 3)) for n in LENGTHS)


def test_an_import_is_not_mixed_with_another(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    run(tmp_path)
    with pytest.raises(UsageError, match="other choices"):
        run(tmp_path, camera=WRIST)
    assert run(tmp_path, camera=WRIST, overwrite=True).failures == ()
    foreign = tmp_path / "data" / "regression" / "own"
    foreign.mkdir()
    (foreign / "work.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError):
            run(tmp_path, name="own", overwrite=overwrite)
    assert (foreign / "work.txt").read_text() == "mine"


def test_time_stamps_find_frames() -> None:
    seconds = np.arange(10) / 10
    assert frame_numbers(seconds, 0.3, [0.0, 0.1001, 0.2], 10).tolist() == [3, 4, 5]
    with pytest.raises(MediaError, match="No frame"):
        frame_numbers(seconds, 0.9, [0.0, 0.1], 10)
    with pytest.raises(MediaError, match="same frame"):
        frame_numbers(seconds, 0.0, [0.0, 0.04], 10)


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_seconds_of_a_video(tmp_path: Path, codec: str) -> None:
    source = write_lerobot(tmp_path / "source", "v3.0", codec)
    path = next(source.glob(f"videos/{FRONT}/*/file-001.mp4"))
    np.testing.assert_allclose(video_seconds(path), np.arange(sum(LENGTHS[2:])) / FPS, atol=1e-6)


# Commands


def call(tokens: Sequence[str]) -> Any:
    app = App(name="lary")
    for command in (cli_run.extract, cli_run.regress, cli_data.import_lerobot):
        app.command(command)
    return app(list(tokens), exit_on_error=False, result_action="return_value")


def test_imported_data_run_through_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lerobot(tmp_path / "source", "v3.0", "h264")
    places = ["--lary-root", str(tmp_path / "root"), "--data-dir", str(tmp_path / "data")]
    source = str(tmp_path / "source")
    assert call(["import-lerobot", source, "--name", "arm", "--preview", *places]) == 0
    assert not (tmp_path / "root" / "data").exists()
    assert call(["import-lerobot", source, "--name", "arm", "--stride", "2", *places]) == 0
    assert "0 episodes failed" in capsys.readouterr().out
    plugin = ["--plugin", str(tmp_path / "root" / "data" / "arm_dataset.py")]
    more = ["--lary-la-dir", str(tmp_path / "la"), "--lary-log-dir", str(tmp_path / "logs")]
    for split in ("train", "val"):
        asked = ["extract", "--model", "pixels", "--dataset", "arm", "--split", split]
        assert call([*asked, *places, *more, *plugin]) == 0
    asked = ["regress", "--model", "pixels", "--dataset", "arm", "--probe-preset", "demo", "--epochs", "1"]
    assert call([*asked, *places, *more, *plugin]) == 0
    result = next((tmp_path / "logs").glob("**/result.json"))
    assert json.loads(result.read_text())


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata first, then only the files of the chosen camera, all of one commit."""
    import types

    import huggingface_hub

    source = write_lerobot(tmp_path / "hub", "v3.0", "h264")
    asked: list[list[str]] = []

    class Api:
        def dataset_info(self, name: str, revision: str | None, timeout: float) -> Any:
            return types.SimpleNamespace(sha="abc")

    def snapshot(name: str, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert (name, repo_type, revision) == ("own/er.set", "dataset", "abc")
        asked.append(allow_patterns)
        chosen = ["meta", "README.md"] if "meta/*" in allow_patterns else allow_patterns
        for place in chosen:
            target = tmp_path / "cache" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / place).is_dir():
                shutil.copytree(source / place, target, dirs_exist_ok=True)
            else:
                shutil.copy(source / place, target)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    places = ["--lary-root", str(tmp_path / "root"), "--data-dir", str(tmp_path / "data")]
    assert call(["import-lerobot", "own/er.set", "--stride", "3", *places]) == 0
    assert asked[1] == [
        "data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet",
        f"videos/{FRONT}/chunk-000/file-000.mp4", f"videos/{FRONT}/chunk-000/file-001.mp4",
    ]  # fmt: skip
    spec = load_record(tmp_path / "root" / "data" / "er.set_dataset.json")
    assert spec.licences[0].url == "https://huggingface.co/datasets/own/er.set"
    with pytest.raises(UsageError, match="owner/name"):
        call(["import-lerobot", "nowhere", *places])
    shutil.rmtree(tmp_path / "cache")
    del asked[:]
    labels = ["--name", "atoms", "--labels", "atomic", "--threshold", "0.1", "--reach", "1"]
    assert call(["import-lerobot", "own/er.set", *labels, *places]) == 0
    assert asked[1] == ["data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet"]


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    path = run(tmp_path).plugin.with_suffix(".json")
    record = json.loads(path.read_text())
    record["media"] = "film"
    path.write_text(json.dumps(record))
    with pytest.raises(LaryError, match="wrong at 'media'"):
        load_record(path)


# Labels of atomic motions


def hand(episode: int, length: int) -> np.ndarray:
    """Places, a gripper from 10 to 90, and one more value: goes forward, closes, goes up; episodes differ in pace."""
    values = np.zeros((length, 5), dtype=np.float32)
    pace = 0.04 + 0.01 * episode
    values[:, 0] = pace * np.minimum(np.arange(length), 3)
    values[:, 2] = pace * np.maximum(np.arange(length) - 6, 0)
    values[:, 3] = np.where(np.arange(length) < 4, 90, 10)
    return values


def atomic(**changes: Any) -> AtomicRequest:
    rule = AtomicRule(threshold=0.03, reach=0.08, settle=2)
    return AtomicRequest(**{"rule": rule, **changes})


@pytest.mark.parametrize(("version", "codec", "images"), [FORMATS[0], FORMATS[3], FORMATS[5]])
def test_labels_of_atomic_motions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, codec: str, images: str | None
) -> None:
    """Images of each motion's ends, both directions with inverse labels, in the split of their episode."""
    monkeypatch.setattr("tests.lerobot_files.actions", hand)
    source = write_lerobot(tmp_path / "source", version, codec, images)
    report = run(tmp_path, stride=None, atomic=atomic())
    assert report.failures == ()
    spec, splits = tables(tmp_path, report)
    assert spec.labels.classes == ATOMIC_CLASSES
    assert (spec.stride, spec.splits["train"].root) == (None, "classification/arm")
    assert spec.samples == sum(report.rows.values()) == sum(len(table) for table in splits.values())
    told_labels = set()
    for table in splits.values():
        seen = {sample.media: sample.target for sample in table}
        assert all(INVERSE[seen[target, first]] == label for (first, target), label in seen.items())
        told_labels |= set(seen.values())
        for sample in table:
            ends = [told(read_image(path)) for path in table.media_path(sample)]
            assert [end[:2] for end in ends] == [(FRONT, int(sample.group[3:]))] * 2
            values = hand(ends[0][1], LENGTHS[ends[0][1]])
            moved = values[ends[1][2]] - values[ends[0][2]]
            if sample.target == "Forward_Up" or sample.target == "Up":
                assert moved[2] > 0.03
            elif sample.target == "Close":
                assert moved[3] < 0
    assert {"Forward", "Backward", "Close", "Open", "Up", "Down"} <= told_labels
    groups = [set(table.groups()) for table in splits.values()]
    assert not groups[0] & groups[1]
    assert len(groups[0] | groups[1]) == 4
    request = AuditRequest(spec=spec, table_root=tmp_path / "root", data_dir=tmp_path / "data")
    assert not audit(request).leaks
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.png")}
    assert run(tmp_path, stride=None, atomic=atomic()).rows == report.rows
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "nothing is decoded again"
    with pytest.raises(UsageError, match="other choices"):
        run(tmp_path, stride=None, atomic=atomic(rule=AtomicRule(threshold=0.02, reach=0.08)))
    assert source.is_dir()


def test_values_of_labels_are_found_by_name_or_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lerobot_files.actions", hand)
    write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    data = LeRobot(tmp_path / "source")

    def plan(**changes: Any) -> AtomicPlan:
        found = make_plan(data, request_of(tmp_path, stride=None, atomic=atomic(**changes))).atomic
        assert found is not None
        return found

    usual = plan()
    assert (usual.position, usual.gripper, usual.rule.grip) == ((0, 1, 2), 3, 50.0)
    assert plan(measure_grip=False).rule.grip == 0.5
    assert plan(gripper="none").gripper is None
    other = plan(position="z, 0,y", gripper="4")
    assert (other.position, other.gripper) == ((2, 0, 1), 4)
    for changes, words in (
        ({"position": "x,y"}, "three values"),
        ({"position": "x,y,w"}, "--position w: the values are x, y, z"),
        ({"gripper": "9"}, "--gripper 9"),
    ):
        with pytest.raises(UsageError, match=words):
            plan(**changes)
    with pytest.raises(UsageError, match=r"None of the values is called x, y and z \(state_0"):
        make_plan(data, request_of(tmp_path, stride=None, actions=("observation.state",), atomic=atomic()))
    with pytest.raises(UsageError, match="--stride 3"):
        make_plan(data, request_of(tmp_path, atomic=atomic()))


@pytest.mark.parametrize(
    ("dims", "position"),
    [
        (("a", "left_x", "left_y", "left_z", "right_x", "right_y", "right_z"), (1, 2, 3)),
        (("x", "z", "Y", "gripper.pos"), (0, 2, 1)),
        (("ee.x", "ee.y", "ee.z"), (0, 1, 2)),
    ],
)
def test_places_under_other_names(dims: tuple[str, ...], position: tuple[int, ...]) -> None:
    assert plan_atomic(atomic(measure_grip=False), dims, dict).position == position


def test_labels_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.lerobot_files.actions", hand)
    write_lerobot(tmp_path / "source", "v3.0", "h264")
    places = ["--lary-root", str(tmp_path / "root"), "--data-dir", str(tmp_path / "data")]
    asked = ["import-lerobot", str(tmp_path / "source"), "--name", "atoms", *places]
    labels = ["--labels", "atomic", "--settle", "2"]
    assert call([*asked, *labels, "--preview"]) == 0
    text = capsys.readouterr().out
    assert "labels: atomic motions of x, y, z; gripper: gripper, open above 50" in text
    assert "Close 4" in text
    assert "labelled pairs, both directions" in text
    assert not (tmp_path / "data").exists()
    assert call([*asked, *labels]) == 0
    assert "0 episodes failed" in capsys.readouterr().out
    plugin = ["--plugin", str(tmp_path / "root" / "data" / "atoms_dataset.py")]
    more = ["--lary-la-dir", str(tmp_path / "la"), "--lary-log-dir", str(tmp_path / "logs")]
    for split in ("train", "val"):
        parts = ["extract", "--model", "pixels", "--dataset", "atoms", "--split", split]
        assert call([*parts, *places, *more, *plugin]) == 0
    with pytest.raises(UsageError, match="add --labels atomic"):
        call([*asked, "--threshold", "0.01"])
    with pytest.raises(LaryError, match="nothing in them moves"):
        call([*asked[:3], "still", *places, *labels, "--gripper", "none", "--threshold", "9", "--reach", "9"])
