"""Data sets from trajectories: pairs on a grid, atomic motions and their labels, and the files that come out."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lary.cli.data import atomic, pairs
from lary.data.actions import read_chunk
from lary.data.audit import AuditRequest, audit
from lary.data.configs import AtomicConfig, TrajectoryConfig
from lary.data.frames import read_clip
from lary.data.spec import DATASETS, DatasetSpec
from lary.data.tables import SampleTable, read_table
from lary.importers.motions import (
    ATOMIC_CLASSES,
    INVERSE,
    AtomicRule,
    Segment,
    atomic_segments,
    both_directions,
    label_of,
    pairs_at,
)
from lary.importers.trajectories import TrajectoryReport, TrajectoryRequest, natural, write_atomic, write_pairs
from lary.types import LaryError, UsageError
from tests.tree import frame, write_image, write_video

RULE = AtomicRule(threshold=0.03, reach=0.05, settle=2)


def path_of(*steps: tuple[float, float, float], start: tuple[float, float, float] = (1, 2, 3)) -> np.ndarray:
    return np.cumsum([start, *steps], axis=0)


def test_pairs_lie_on_a_grid() -> None:
    assert pairs_at(11, 5) == [(0, 5), (5, 10)]
    assert pairs_at(10, 5) == [(0, 5)]
    assert pairs_at(5, 5) == []
    with pytest.raises(UsageError, match="--stride 0"):
        pairs_at(5, 0)


def test_classes_are_those_of_libero_and_have_inverses() -> None:
    assert DATASETS.get("libero").labels.classes == ATOMIC_CLASSES
    assert set(INVERSE) == set(ATOMIC_CLASSES)
    assert all(INVERSE[INVERSE[name]] == name != INVERSE[name] for name in ATOMIC_CLASSES)
    assert (label_of((1, 0, 1)), INVERSE["Forward_Right_Up"]) == ("Forward_Up", "Backward_Left_Down")


def test_motion_ends_at_its_reach_and_names_the_axes_over_the_threshold() -> None:
    ahead = [(0.02, -0.012, 0.001)] * 3  # after three steps x has 0.06, y -0.036, z 0.003
    down = [(0, 0, -0.03)] * 2
    assert atomic_segments(path_of(*ahead, *down), None, RULE) == [
        Segment(0, 3, "Forward_Right"), Segment(3, 5, "Down"),
    ]  # fmt: skip


def test_motion_below_the_threshold_has_no_label() -> None:
    assert atomic_segments(path_of(*[(0.005, 0, 0)] * 5), None, RULE) == []
    assert atomic_segments(path_of(*[(0.0051, 0, 0)] * 6), None, RULE) == [Segment(0, 6, "Forward")]


def test_gripper_cuts_motions() -> None:
    places = path_of(*[(0.0, 0.02, 0.0)] * 9)
    opening = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 1.0])
    assert atomic_segments(places, opening, RULE) == [
        Segment(0, 2, "Left"), Segment(2, 4, "Close"), Segment(4, 6, "Left"), Segment(6, 8, "Open"),
    ]  # fmt: skip
    turned = AtomicRule(threshold=0.03, reach=0.05, settle=2, open_high=False)
    assert [item.label for item in atomic_segments(places, opening, turned)][1::2] == ["Open", "Close"]


def test_displacements_are_summed_up() -> None:
    """The same motion told by places and by the displacement that follows each."""
    rng = np.random.default_rng(2)
    steps = rng.normal(0, 0.02, (40, 3))
    places = np.cumsum(steps, axis=0) - steps
    rule = AtomicRule(threshold=0.03, reach=0.08)
    told = atomic_segments(places, None, rule)
    assert len(told) > 3
    assert atomic_segments(steps, None, replace(rule, deltas=True)) == told


def test_axes_turn_and_swap() -> None:
    rule = AtomicRule(threshold=0.03, reach=0.05, axes=("-y", "+x", "+z"))
    assert [item.label for item in atomic_segments(path_of((0, 0.06, 0), (0.06, 0, 0)), None, rule)] == [
        "Backward", "Left",
    ]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-0.04, 0.04)] * 3), min_size=1, max_size=30), st.integers(0, 2**31))
def test_segments_are_in_order_and_their_labels_right(steps: list[tuple[float, float, float]], seed: int) -> None:
    places = path_of(*steps)
    opening = np.random.default_rng(seed).integers(0, 2, len(places)).astype(float)
    segments = atomic_segments(places, opening, RULE)
    for before, after in pairwise(segments):
        assert before.end <= after.start
    for item in segments:
        assert 0 <= item.start < item.end < len(places)
        if item.label not in ("Open", "Close"):
            moved = places[item.end] - places[item.start]
            assert (
                label_of(np.where(abs(moved) >= RULE.threshold, np.sign(moved), 0).astype(int).tolist()) == item.label
            )
    turned = both_directions(segments)
    assert [(item.end, item.start) for item in turned[::2]] == [(item.start, item.end) for item in turned[1::2]]


def test_mirrored_motion_has_the_inverse_label() -> None:
    places = path_of(*np.random.default_rng(0).normal(0, 0.02, (60, 3)).tolist(), start=(0, 0, 0))
    there, back = (atomic_segments(each, None, RULE) for each in (places, -places))
    assert [(item.start, item.end, INVERSE[item.label]) for item in there] == [
        (item.start, item.end, item.label) for item in back
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.0}, "--threshold 0"),
        ({"threshold": 0.2, "reach": 0.1}, "at most --reach 0.1"),
        ({"settle": 0}, "--settle 0"),
        ({"axes": ("+x", "+x", "+z")}, "--axes"),
        ({"axes": ("x", "y", "z")}, "--axes"),
    ],
)
def test_wrong_rules(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AtomicRule(**options)  # type: ignore[arg-type]


# Files


def make_episode(folder: Path, number: int, length: int = 13, video: bool = False) -> np.ndarray:
    """Moves forward, closes the gripper, moves up; the square in the picture goes with it."""
    actions = np.zeros((length, 4))
    actions[:, 0] = 0.02 * np.minimum(np.arange(length), 4)
    actions[:, 2] = 0.02 * np.maximum(np.arange(length) - 7, 0)
    actions[:, 3] = np.arange(length) < 5
    pictures = [frame(5 * x, 5 * z, (200, 250 * int(grip), 20 * number)) for x, _, z, grip in actions]
    if video:
        write_video(folder / "camera.mp4", pictures)
    else:
        for index, picture in enumerate(pictures):
            write_image(folder / f"{index}.png", picture)
    np.save(folder / "actions.npy", actions)
    return actions


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(4):
        make_episode(tmp_path / "in" / str(number), number, video=number == 3)
    return tmp_path / "in"


def spec_of(report: TrajectoryReport, monkeypatch: pytest.MonkeyPatch) -> DatasetSpec:
    """The record that was written, without a trace in the registry."""
    found: list[DatasetSpec] = []
    monkeypatch.setattr("lary.data.spec.register_dataset", found.append)
    loaded = importlib.util.spec_from_file_location("record", report.record)
    assert loaded is not None
    assert loaded.loader is not None
    loaded.loader.exec_module(importlib.util.module_from_spec(loaded))
    return found[0]


def tables_of(report: TrajectoryReport, spec: DatasetSpec) -> dict[str, SampleTable]:
    data = report.record.parent / "data"
    return {
        path.stem.rpartition("_")[2]: read_table(spec, path.stem.rpartition("_")[2], path=path, data_dir=data)
        for path in report.rows
    }


def test_pairs_are_frames_and_actions_of_the_trajectory(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = write_pairs(
        TrajectoryRequest(source=source, out=tmp_path / "out", name="mine"), 4, ("x", "y", "z", "grip")
    )
    spec = spec_of(report, monkeypatch)
    tables = tables_of(report, spec)
    assert {name: len(table) for name, table in tables.items()} == {"train": 9, "val": 3}
    assert not set(tables["train"].groups()) & set(tables["val"].groups())
    for table in tables.values():
        for sample in table:
            number, start = int(sample.group[3:]), int(sample.media[0][-10:-4])
            actions = np.load(source / str(number) / "actions.npy")
            assert np.array_equal(
                read_chunk(table.action_path(sample), spec.actions), actions[start : start + 4].astype(np.float32)
            )
            clip = read_clip(table.media_path(sample), sample.frame_index)
            if number < 3:
                wanted = [source / str(number) / f"{at}.png" for at in (start, start + 4)]
            else:
                wanted = [source / "3" / "camera.mp4"]
            assert np.array_equal(clip, read_clip(wanted, () if number < 3 else (start, start + 4)))
    assert not audit(AuditRequest(spec=spec, table_root=tmp_path / "out", data_dir=tmp_path / "out/data")).leaks


def test_both_directions_of_a_motion_stay_in_one_split(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = TrajectoryRequest(source=source, out=tmp_path / "out", name="atoms", embodiment="arm")
    report = write_atomic(request, AtomicRule(threshold=0.03, reach=0.08, settle=2), gripper=3)
    spec = spec_of(report, monkeypatch)
    tables = tables_of(report, spec)
    assert {name: len(table) for name, table in tables.items()} == {"train": 18, "val": 6}
    assert spec.labels.classes == ATOMIC_CLASSES
    for table in tables.values():
        seen = {sample.media: sample.target for sample in table}
        assert {INVERSE[seen[target, start]] == label for (start, target), label in seen.items()} == {True}
        assert set(seen.values()) == {"Forward", "Backward", "Close", "Open", "Up", "Down"}
        assert set(table.embodiments()) == {"arm"}
    first = next(iter(tables["train"]))
    assert first.target == "Forward"
    episode = source / first.group[3:]
    if not (episode / "camera.mp4").exists():
        images = read_clip(tables["train"].media_path(first), ())
        assert np.array_equal(images, read_clip([episode / "0.png", episode / "4.png"], ()))
    assert not audit(AuditRequest(spec=spec, table_root=tmp_path / "out", data_dir=tmp_path / "out/data")).leaks


def test_broken_episodes_are_named_and_left_out(source: Path, tmp_path: Path) -> None:
    np.save(source / "0" / "actions.npy", np.zeros((5, 4)))
    np.save(source / "1" / "actions.npy", np.full((13, 4), np.nan))
    (source / "4").mkdir()
    np.save(source / "4" / "actions.npy", np.zeros((13, 4)))
    make_episode(source / "5", 5, length=9, video=True)
    np.save(source / "5" / "actions.npy", np.zeros((13, 4)))
    make_episode(source / "ep_2", 6)
    report = write_pairs(TrajectoryRequest(source=source, out=tmp_path / "out", name="mine", share=0), 4)
    reasons = {Path(failure.path).name: failure.reason for failure in report.failures}
    assert list(reasons) == ["0", "1", "4", "5", "ep_2"]
    assert "13 images but 5 rows" in reasons["0"]
    assert "NaN" in reasons["1"]
    assert "0 images and 0 videos" in reasons["4"]
    assert "9 frames but 13 rows" in reasons["5"]
    assert "twice" in reasons["ep_2"]
    assert list(report.rows.values()) == [6]


def test_requests_that_are_refused(source: Path, tmp_path: Path) -> None:
    def request(**options: object) -> TrajectoryRequest:
        given = {"source": source, "out": tmp_path / "out", "name": "mine", **options}
        return TrajectoryRequest(**given)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="--name a b"):
        write_pairs(request(name="a b"), 4)
    with pytest.raises(UsageError, match="holds no episodes"):
        write_pairs(request(source=tmp_path), 4)
    with pytest.raises(UsageError, match="--test-size 1"):
        write_pairs(request(share=1.0), 4)
    with pytest.raises(LaryError, match="too short for the stride"):
        write_pairs(request(), 20)
    with pytest.raises(LaryError, match="no column 9"):
        write_atomic(request(), RULE, gripper=9)
    assert not list((tmp_path / "out").glob("data/*.csv"))
    write_pairs(request(), 4)
    with pytest.raises(UsageError, match="--overwrite"):
        write_pairs(request(), 4)
    assert sum(write_pairs(request(overwrite=True, share=0), 6).rows.values()) == 8
    assert not (tmp_path / "out" / "data" / "mine_metadata_val.csv").exists()


def test_commands(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pairs(source, tmp_path / "out", TrajectoryConfig(name="mine"), stride=4) == 0
    assert "mine_metadata_train.csv: 9 rows" in capsys.readouterr().out
    (source / "0" / "4.png").write_bytes(b"")
    assert atomic(source, tmp_path / "out", AtomicConfig(name="atoms", share=0, settle=2, gripper=3)) == 1
    assert "is broken" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--position 0,b"):
        atomic(source, tmp_path / "out", AtomicConfig(name="more", position="0,b"))


def test_names_are_sorted_by_their_numbers() -> None:
    assert sorted(["10.png", "2.png", "a1", "a01b", "1.png"], key=natural) == ["1.png", "2.png", "10.png", "a1", "a01b"]
