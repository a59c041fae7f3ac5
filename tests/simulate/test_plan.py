"""The plan of a simulation: shares of verbs, robots and splits, and what training never shows."""

from __future__ import annotations

import itertools

from lary.data.configs import SimulateConfig
from lary.simulate import shapes
from lary.simulate.episodes import stage
from lary.simulate.plan import HANDLING, PAIR_SPLITS, VERBS, make_plan
from lary.simulate.scene import ARMS


def test_plan_is_balanced() -> None:
    recordings = make_plan(SimulateConfig())
    for verb in VERBS:
        chosen = [recording for recording in recordings if not recording.pairs and recording.verb == verb]
        val = [recording for recording in chosen if recording.split == "val"]
        assert (len(chosen), len(val), sum(recording.robot == "heron" for recording in chosen)) == (40, 12, 20)
        assert 4 <= sum(recording.robot == "heron" for recording in val) <= 8
    assert sum(recording.pairs for recording in recordings) == 800
    for split in PAIR_SPLITS:
        chosen = [recording for recording in recordings if recording.pairs and recording.split == split]
        assert all(one.first + one.frames == two.first for one, two in itertools.pairwise(chosen))


def test_unseen_objects_and_colours_are_not_trained_on() -> None:
    recordings = [recording for recording in make_plan(SimulateConfig(pairs=400, clips=40)) if recording.pairs]
    assert {recording.split for recording in recordings if recording.unseen} == {"unseen"}
    assert not set(shapes.TRAIN_THINGS) & set(shapes.UNSEEN_THINGS)
    assert not set(shapes.TRAIN_COLOURS) & set(shapes.UNSEEN_COLOURS)
    for arm in ARMS.values():
        trained = {palette[role].first for palette in arm.palettes for role in ("main", "accent")}
        assert not trained & {arm.unseen_palette[role].first for role in ("main", "accent")}
    for split, colours in (("train", shapes.TRAIN_COLOURS), ("unseen", shapes.UNSEEN_COLOURS)):
        recording = next(each for each in recordings if each.split == split and each.verb in HANDLING)
        target = next(item.thing for item in stage(recording).script.placed if item.thing.name == "target")
        assert any({geom.material.first, geom.material.second} & set(colours) for geom in target.geoms)
