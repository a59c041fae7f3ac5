"""Simulated data: layout, sameness of bytes, what the numbers mean, and that the arms do what they are told."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the simulator is part of the extra 'demo'")

import itertools

import cv2

from lary.simulate import (
    VERBS,
    SimulateConfig,
    contact_sheet,
    episodes,
    plan,
    scene,
    shapes,
    simulate,
    write_sheets,
)
from lary.simulate.arms import ARMS
from lary.simulate.behaviours import BEHAVIOURS, Stage
from lary.simulate.episodes import encode_video
from lary.simulate.kinematics import Solver, from_rpy, quaternion, rotation_vector, to_rpy, turn
from lary.simulate.render import Renderer
from lary.types import UsageError

TINY = {"seed": 3, "pairs": 12, "clips": 10, "size": 48, "processes": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    simulate(SimulateConfig(out=out, **TINY))
    return out


def hashes(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "data" / f"{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def array(out: Path, split: str, name: str) -> np.ndarray:
    return np.load(out / "data" / "regression" / "simarm" / f"{split}_stride5" / name, allow_pickle=False)


def test_layout(made: Path) -> None:
    import cv2

    counts = {split: len(table(made, f"simarm_metadata_{split}")) for split in plan.PAIR_SPLITS}
    assert counts == {"train": 7, "val": 2, "unseen": 3}
    for split in plan.PAIR_SPLITS:
        root = made / "data" / "regression" / "simarm" / f"{split}_stride5"
        rows = table(made, f"simarm_metadata_{split}")
        assert list(rows[0]) == list(plan.PAIR_COLUMNS)
        for row in rows:
            begin = int(row["src_img"][-10:-4])
            folder = row["src_img"].split("/")[1]
            assert row["tgt_img"] == f"images/{folder}/frame_{begin + 5:06d}.png"
            assert row["src_state"] == f"states/{folder}/state_{begin:06d}.npy"
            assert row["action"] == f"actions/{folder}/action_{begin:06d}to{begin + 4:06d}.npy"
            assert cv2.imread(str(root / row["src_img"])).shape == (48, 48, 3)
            chunk = array(made, split, row["action"])
            assert (chunk.shape, chunk.dtype) == ((5, 7), np.float32)
            assert set(np.unique(chunk[:, 6])) <= {-1.0, 1.0}
        assert {row["scene"] for row in rows} <= ({"D"} if split == "val" else {"A", "B", "C"})
    assert (made / "lary.yaml").read_text().splitlines()[1] == "DATA_DIR: data"
    assert json.loads((made / "simulation.json").read_text())["config"] == {
        k: TINY[k] for k in ("seed", "pairs", "clips", "size")
    }


def test_clips_decode_and_do_not_tell_their_verb(made: Path) -> None:
    import av

    rows = [row for split in ("train", "val") for row in table(made, f"simarm_actions_metadata_{split}")]
    assert sorted(row["action"] for row in rows) == list(VERBS)
    for row in rows:
        assert not any(verb in row["video_path"] for verb in VERBS)
        with av.open(str(made / "data" / "classification" / row["video_path"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        indices = [int(index) for index in row["sample_indices"].split(",")]
        assert len(indices) == 9
        assert indices[0] == 0
        assert indices[-1] == len(frames) - 1
        assert indices == sorted(set(indices))
        assert frames[0].shape == (48, 48, 3)
        assert np.abs(frames[0].astype(int) - frames[-1]).max() > 30, "something moved"


def test_same_bytes_with_two_processes_and_after_an_interruption(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert not out.exists()
    simulate(SimulateConfig(out=out, **{**TINY, "processes": 2}))
    first = hashes(made)
    assert hashes(out) == first
    doomed = [name for number, name in enumerate(first) if number % 7 == 0] + ["simulation.json"]
    for name in doomed:
        (out / name).unlink(missing_ok=True)
    (out / "data" / "classification" / "SimArm" / ".clip.mp4.abc.tmp").write_bytes(b"half")
    (out / ".simulation-unfinished.json").write_bytes((made / "simulation.json").read_bytes())
    simulate(SimulateConfig(out=out, **TINY))
    assert hashes(out) == first


def test_a_finished_simulation_is_left_alone(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    with caplog.at_level("INFO", logger="lary"):
        rows = simulate(SimulateConfig(out=made, **TINY))
    assert rows["simarm_metadata_train"] == 7
    assert rows["simarm_actions_metadata_val"] == 3
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == before
    assert "nothing to do" in caplog.text


def test_another_simulation_is_refused_unless_overwritten(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        simulate(SimulateConfig(out=made, **{**TINY, "seed": 4}))
    out = tmp_path / "other"
    stray = out / "data" / "regression" / "simarm" / "train_stride5" / "stray.png"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of another simulation")
    with pytest.raises(UsageError, match="without a record"):
        simulate(SimulateConfig(out=out, **TINY))
    (out / "data" / "mine.csv").write_text("stays")
    simulate(SimulateConfig(out=out, **TINY, overwrite=True))
    (out / "data" / "mine.csv").unlink()
    assert hashes(out) == hashes(made)


def test_mujoco_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'lary\[demo\]'"):
        simulate(SimulateConfig(out=tmp_path / "none", **TINY))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "wrong", [{"pairs": 9}, {"clips": 3}, {"size": 49}, {"size": 8}, {"processes": 0}, {"seed": -1}]
)
def test_numbers_that_make_no_data_set(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        simulate(SimulateConfig(out=tmp_path / "none", **{**TINY, **wrong}))
    assert not (tmp_path / "none").exists()


def test_statistics_are_those_of_the_training_steps_of_each_robot(made: Path) -> None:
    stats = json.loads((made / "data/regression/simarm/simarm_stats.json").read_text())["robot_stats"]
    rows = table(made, "simarm_metadata_train")
    for split in ("val", "unseen"):
        assert {row["robot_type"] for row in table(made, f"simarm_metadata_{split}")} <= set(stats)
    assert set(stats) == {"heron", "badger"}
    for robot, numbers in stats.items():
        steps = np.concatenate([array(made, "train", row["action"]) for row in rows if row["robot_type"] == robot])
        assert numbers["count"] == len(steps)
        np.testing.assert_allclose(numbers["mean"], steps.mean(0, dtype=float), rtol=1e-9, atol=1e-9)
        spread = np.sqrt(((steps.astype(float) - steps.mean(0, dtype=float)) ** 2).mean(0))
        moving = spread > 1e-6
        np.testing.assert_allclose(np.array(numbers["std"])[moving], spread[moving], rtol=1e-9)
        assert (np.array(numbers["std"])[~moving] == 1).all()


def test_actions_are_the_states_one_step_later(made: Path) -> None:
    for split in plan.PAIR_SPLITS:
        for row in table(made, f"simarm_metadata_{split}"):
            chunk, target = array(made, split, row["action"]), array(made, split, row["tgt_state"])
            assert target.shape == (15,)
            np.testing.assert_array_equal(chunk[-1], np.append(target[:6], target[14]))
    job = replace(plan.make_plan(SimulateConfig(out=made, **TINY))[0], frames=11, pairs=2)
    take = episodes.play(job, 32)
    np.testing.assert_array_equal(take.actions[:, :6], take.states[1:, :6])
    np.testing.assert_array_equal(take.actions[:, 6], take.states[1:, 14])


def test_states_hold_the_pose_that_their_joints_give() -> None:
    job = next(job for job in plan.make_plan(SimulateConfig(out=Path())) if job.verb == "pour" and job.pairs)
    staged = episodes.stage(job)
    solver = Solver(staged.scene.model, staged.scene.data, ARMS[job.robot].home)
    for joints, pose in list(zip(staged.joints, staged.poses, strict=True))[::8]:
        position, rotation = solver.reached(joints)
        np.testing.assert_allclose(pose[:3], position, atol=1e-9)
        np.testing.assert_allclose(from_rpy(*pose[3:]), rotation, atol=1e-9)
    assert np.abs(np.diff(staged.poses[:, 3:], axis=0)).max() < 0.6, "angles never jump by a whole turn"


@pytest.mark.parametrize("robot", sorted(ARMS))
def test_inverse_kinematics_reaches_the_workspace(robot: str) -> None:
    arm = ARMS[robot]
    built = scene.build(arm, arm.palettes[0], scene.ROOMS["A"], [])
    solver = Solver(built.model, built.data, arm.home)
    rng = np.random.Generator(np.random.PCG64(5))
    for _ in range(20):
        target = np.array([rng.uniform(0.35, 0.58), rng.uniform(-0.2, 0.2), rng.uniform(0.03, 0.30)])
        rotation = from_rpy(0.0, 0.0, float(rng.uniform(-0.8, 0.8)))
        joints, miss = solver.solve((target, rotation), np.array(arm.home), iterations=300)
        reached = solver.reached(joints)
        assert miss < 0.01
        assert np.linalg.norm(reached[0] - target) < 0.01
        assert np.linalg.norm(rotation_vector(reached[1] @ rotation.T)) < 0.02
        assert (joints >= solver.low).all()
        assert (joints <= solver.high).all()


def test_rotations_by_hand() -> None:
    np.testing.assert_allclose(turn((0, 0, 1), math.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(to_rpy(from_rpy(0.3, -0.5, 2.0)), [0.3, -0.5, 2.0], atol=1e-12)
    np.testing.assert_allclose(rotation_vector(turn((1, 0, 0), 3.0)), [3.0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(quaternion(turn((0, 1, 0), 1.0)), [math.cos(0.5), 0, math.sin(0.5), 0], atol=1e-12)


def stage(seed: int = 0) -> Stage:
    return Stage(np.random.Generator(np.random.PCG64(seed)), shapes.TRAIN_THINGS, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_verbs_do_what_they_say(seed: int) -> None:
    ends = {}
    for verb in VERBS:
        script = BEHAVIOURS[verb](stage(seed))
        ends[verb] = (script, {name: (motion(0.0), motion(1.0)) for name, motion in script.motions.items()})

    def change(verb: str, name: str = "target") -> np.ndarray:
        before, after = ends[verb][1][name]
        return np.asarray(after[0] - before[0])

    assert change("lift")[2] > 0.2
    assert change("lower")[2] < -0.2
    assert ends["lower"][1]["target"][1][0][2] == pytest.approx(0, abs=1e-6), "put down on the table"
    assert change("push")[0] > 0.12
    assert abs(change("push")[2]) < 0.05
    assert change("pull")[0] < -0.12
    assert change("pull")[2] == pytest.approx(0, abs=1e-6)
    before, after = ends["rotate"][1]["target"]
    assert np.linalg.norm(rotation_vector(after[1] @ before[1].T)) > 1.6
    assert not ends["reach"][1], "reaching moves nothing"
    script = ends["reach"][0]
    assert np.hypot(*(script.path.at(1.0).position - script.placed[0].pose[0])[:2]) < 0.01
    assert script.path.at(1.0).command == 1.0
    for verb in ("open", "close"):
        part = "drawer" if "drawer" in ends[verb][1] else "lid"
        (place, turned), (moved, tilted) = ends[verb][1][part]
        assert np.linalg.norm(moved - place) > 0.1 or np.linalg.norm(rotation_vector(tilted @ turned.T)) > 1.3
    dish = next(item.pose[0] for item in ends["pour"][0].placed if item.thing.name == "bowl")
    assert all(
        np.hypot(*(after[0] - dish)[:2]) < 0.06 for name, (_, after) in ends["pour"][1].items() if "bead" in name
    )
    pieces = [name for name in ends["sweep"][1] if "crumb" in name]
    assert np.mean([np.linalg.norm(change("sweep", name)[:2]) > 0.05 for name in pieces]) > 0.6


def test_unseen_objects_and_colours_are_not_trained_on() -> None:
    jobs = plan.make_plan(SimulateConfig(out=Path(), pairs=400, clips=40))
    assert {job.unseen for job in jobs if job.split != "unseen"} == {False}
    assert not set(shapes.TRAIN_THINGS) & set(shapes.UNSEEN_THINGS)
    assert not set(shapes.TRAIN_COLOURS) & set(shapes.UNSEEN_COLOURS)
    for arm in ARMS.values():
        trained = {
            material.first
            for palette in arm.palettes
            for role, material in palette.items()
            if role in ("main", "accent")
        }
        assert not trained & {arm.unseen_palette[role].first for role in ("main", "accent")}
    for split, colours in (("train", shapes.TRAIN_COLOURS), ("unseen", shapes.UNSEEN_COLOURS)):
        job = next(job for job in jobs if job.split == split and job.pairs and job.verb in plan.HANDLING)
        staged = episodes.stage(job)
        target = next(item.thing for item in staged.script.placed if item.thing.name == "target")
        assert any(geom.material.first in colours or geom.material.second in colours for geom in target.geoms)


def test_plan_is_balanced() -> None:
    jobs = plan.make_plan(SimulateConfig(out=Path()))
    clips = [job for job in jobs if not job.pairs]
    for verb in VERBS:
        chosen = [job for job in clips if job.verb == verb]
        assert len(chosen) == 40
        assert sum(job.split == "val" for job in chosen) == 12
        assert sum(job.robot == "heron" for job in chosen) == 20
        assert 4 <= sum(job.robot == "heron" for job in chosen if job.split == "val") <= 8
    assert sum(job.pairs for job in jobs) == 800
    for split in plan.PAIR_SPLITS:
        chosen = [job for job in jobs if job.pairs and job.split == split]
        spans = [(job.first, job.first + job.frames) for job in chosen]
        assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_rays_see_what_stands_there() -> None:
    """A red block on a plain table: red where it projects to, its shadow darker than the table, nothing else red."""
    red = shapes.Thing(
        "target", (shapes.Geom("box", (0.05, 0.05, 0.05), shapes.Material((0.9, 0.05, 0.05)), (0, 0, 0.05)),)
    )
    plain = shapes.Material((0.6, 0.6, 0.6), gloss=0.0)
    room = replace(scene.ROOMS["A"], table=plain, wall=plain, floor=plain)
    place = np.array([0.45, 0.0, 0.0])
    view = scene.View(np.array([0.65, 0.0, 1.4]), place, math.radians(36))
    lamp = scene.Lamp(np.array([0.45, 1.5, 1.5]), np.full(3, 0.9), np.full(3, 0.3))
    import mujoco

    from lary.simulate.behaviours import Placed

    arm = ARMS["heron"]
    built = scene.build(arm, arm.palettes[0], room, [Placed(red, (place, np.eye(3)), moves=True)])
    built.data.qpos[:7] = [2.5, -0.5, 0, 0.5, 0, 0, 0]
    built.place("target", place, np.eye(3))
    mujoco.mj_kinematics(built.model, built.data)
    image = Renderer(built, view, lamp, 64).frame().astype(int)
    reddish = (image[..., 0] > 2 * image[..., 1]) & (image[..., 0] > 60)
    rows, columns = np.nonzero(reddish)
    assert reddish[32, 32]
    assert 20 < len(rows) < 600
    assert abs(rows.mean() - 32) < 6
    assert abs(columns.mean() - 32) < 4
    dark = image.sum(2) < 0.75 * np.median(image.sum(2))
    sides = sorted(int(side.sum()) for side in (dark[24:40, 36:46], dark[24:40, 18:28]))
    assert sides[0] == 0
    assert sides[1] > 8, "the shadow falls to one side only"


def test_contact_sheet(made: Path, tmp_path: Path) -> None:
    import shutil

    import cv2

    rows = contact_sheet(made, "simarm_actions_metadata_train", tmp_path / "sheet.png", rows=1)
    image = cv2.imread(str(tmp_path / "sheet.png"))
    assert rows == 7
    assert image.shape[0] == 7 * 48
    assert image.shape[1] > 9 * 48
    assert contact_sheet(made, "simarm_metadata_val", tmp_path / "pairs.png", rows=1) == 2
    shutil.copytree(made, tmp_path / "copy")
    assert [path.name for path in write_sheets(tmp_path / "copy", rows=1)][-1] == "simarm_metadata_unseen.png"
    with pytest.raises(UsageError, match="no table"):
        contact_sheet(made, "nothing", tmp_path / "none.png")


def test_records_agree_with_what_is_made(made: Path) -> None:
    from lary.data.spec import DATASETS

    assert DATASETS.get("simarm_actions").labels.classes == VERBS
    pairs = DATASETS.get("simarm")
    assert pairs.stride == plan.STRIDE == pairs.actions.horizon
    assert len(pairs.actions.dims) == 7
    for name in ("simarm", "simarm_unseen", "simarm_actions"):
        record = DATASETS.get(name)
        for split, place in record.splits.items():
            assert (made / "data" / record.table_name(split)).is_file()
            assert (made / "data" / place.root).is_dir()


def test_the_same_frames_are_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):  # an encoder that reads what it must not does so now and then
        scene = cv2.resize(rng.integers(0, 255, (9, 9, 3), np.uint8), (240, 240), interpolation=cv2.INTER_CUBIC)
        frames = [np.ascontiguousarray(scene[at : at + 200, 2 * at : 2 * at + 200]) for at in range(20)]
        assert encode_video(frames) == encode_video(frames)
