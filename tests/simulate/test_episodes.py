"""Episodes: balanced, verbs do what they say, frames show what is there; tests/golden has the numbers."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import cv2
import mujoco
import numpy as np
import pytest

from lary.data.configs import SimulateConfig
from lary.simulate import episodes, scene, shapes
from lary.simulate.behaviours import BEHAVIOURS, Placed, Stage
from lary.simulate.episodes import HANDLING, VERBS, make_plan
from lary.simulate.kinematics import rotation_vector
from lary.simulate.render import Renderer


@pytest.mark.parametrize("seed", range(3))
def test_verbs_do_what_they_say(seed: int) -> None:
    stages = (Stage(np.random.Generator(np.random.PCG64(seed)), shapes.TRAIN_THINGS, 1.0) for _ in VERBS)
    scripts = {verb: BEHAVIOURS[verb](stage) for verb, stage in zip(VERBS, stages, strict=True)}

    def change(verb: str, name: str = "target") -> tuple[np.ndarray, float]:
        """How far a thing moves, and by which angle it turns."""
        (before, begin), (after, end) = (scripts[verb].motions[name](time) for time in (0.0, 1.0))
        return after - before, float(np.linalg.norm(rotation_vector(end @ begin.T)))

    assert (change("lift")[0][2] > 0.2, change("lower")[0][2] < -0.2) == (True, True)
    assert scripts["lower"].motions["target"](1.0)[0][2] == pytest.approx(0, abs=1e-6), "put down on the table"
    assert (change("push")[0][0] > 0.12, abs(change("push")[0][2]) < 0.05) == (True, True)
    assert (change("pull")[0][0] < -0.12, change("pull")[0][2]) == (True, pytest.approx(0, abs=1e-6))
    assert change("rotate")[1] > 1.6
    reach, end = scripts["reach"], scripts["reach"].path.at(1.0)
    assert (reach.motions, end.command) == ({}, 1.0), "reaching moves nothing"
    assert np.hypot(*(end.position - reach.placed[0].pose[0])[:2]) < 0.01
    for verb in ("open", "close"):
        moved, turned = change(verb, "drawer" if "drawer" in scripts[verb].motions else "lid")
        assert np.linalg.norm(moved) > 0.1 or turned > 1.3
    dish = next(item.pose[0] for item in scripts["pour"].placed if item.thing.name == "bowl")
    beads = [motion(1.0)[0] for name, motion in scripts["pour"].motions.items() if "bead" in name]
    assert all(np.hypot(*(bead - dish)[:2]) < 0.06 for bead in beads)
    pieces = [name for name in scripts["sweep"].motions if "crumb" in name]
    assert np.mean([np.linalg.norm(change("sweep", name)[0][:2]) > 0.05 for name in pieces]) > 0.6


def test_rays_see_what_is_there() -> None:
    """A red block on a plain table: red where it projects to, its shadow darker than the table, nothing else red."""
    red, plain = shapes.Material((0.9, 0.05, 0.05)), shapes.Material((0.6, 0.6, 0.6), gloss=0.0)
    block = shapes.Thing("target", (shapes.Geom("box", (0.05, 0.05, 0.05), red, (0, 0, 0.05)),))
    room = replace(scene.ROOMS["A"], looks=dict.fromkeys(("table", "wall", "floor"), plain))
    place, arm = np.array([0.45, 0.0, 0.0]), scene.ARMS["heron"]
    view = scene.View(np.array([0.65, 0.0, 1.4]), place, math.radians(36))
    lamp = scene.Lamp(np.array([0.45, 1.5, 1.5]), np.full(3, 0.9), np.full(3, 0.3))
    built = scene.build_scene(arm, arm.palettes[0], room, [Placed(block, (place, np.eye(3)), moves=True)])
    built.data.qpos[:7] = [2.5, -0.5, 0, 0.5, 0, 0, 0]
    built.place("target", place, np.eye(3))
    mujoco.mj_kinematics(built.model, built.data)
    image = Renderer(built, view, lamp, 64).frame().astype(int)
    reddish = (image[..., 0] > 2 * image[..., 1]) & (image[..., 0] > 60)
    rows, columns = np.nonzero(reddish)
    assert (reddish[32, 32], 20 < len(rows) < 600) == (True, True)
    assert max(abs(rows.mean() - 32) - 2, abs(columns.mean() - 32)) < 4
    dark = image.sum(2) < 0.75 * np.median(image.sum(2))
    sides = sorted(int(side.sum()) for side in (dark[24:40, 36:46], dark[24:40, 18:28]))
    assert (sides[0], sides[1] > 8) == (0, True), "the shadow falls to one side only"


def test_the_same_frames_are_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):  # an encoder that reads what it must not does so now and then
        wide = cv2.resize(rng.integers(0, 255, (9, 9, 3), np.uint8), (240, 240), interpolation=cv2.INTER_CUBIC)
        frames = [np.ascontiguousarray(wide[at : at + 200, 2 * at : 2 * at + 200]) for at in range(20)]
        assert episodes.encode_video(frames) == episodes.encode_video(frames)


def test_plan_is_balanced() -> None:
    recordings = make_plan(SimulateConfig(clips=400))
    clips = Counter((each.verb, each.split) for each in recordings if not each.pairs)
    assert clips == {(verb, split): count for verb in VERBS for split, count in (("train", 28), ("val", 12))}
    robots = Counter((each.verb, each.split) for each in recordings if not each.pairs and each.robot == "heron")
    assert all(robots[verb, "train"] + robots[verb, "val"] == 20 and 4 <= robots[verb, "val"] <= 8 for verb in VERBS)
    assert sum(recording.pairs for recording in recordings) == 800
    for one, two in itertools.pairwise(recording for recording in recordings if recording.pairs):
        assert two.first == (one.first + one.frames if one.split == two.split else 0)


def test_unseen_objects_and_colours_are_not_trained_on() -> None:
    recordings = [recording for recording in make_plan(SimulateConfig(pairs=400, clips=40)) if recording.pairs]
    assert not {*shapes.TRAIN_THINGS, *shapes.TRAIN_COLOURS} & {*shapes.UNSEEN_THINGS, *shapes.UNSEEN_COLOURS}
    for arm in scene.ARMS.values():
        trained = {palette[role].first for palette in arm.palettes for role in ("main", "accent")}
        assert not trained & {arm.unseen_palette[role].first for role in ("main", "accent")}
    for split, colours in (("train", shapes.TRAIN_COLOURS), ("unseen", shapes.UNSEEN_COLOURS)):
        recording = next(each for each in recordings if each.split == split and each.verb in HANDLING)
        (script, staged, *_), painted = episodes.stage(recording), scene.ARMS[recording.robot].unseen_palette["main"]
        assert (painted in staged.materials) == (split == "unseen"), "the arm has a colour of its own, too"
        target = next(item.thing for item in script.placed if item.thing.name == "target")
        assert any({geom.material.first, geom.material.second} & set(colours) for geom in target.geoms)
