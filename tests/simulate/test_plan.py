"""The plan of a simulation: shares of verbs, robots and splits, and what training never shows."""

from __future__ import annotations

import itertools

from lary.data.configs import SimulateConfig
from lary.simulate import shapes
from lary.simulate.arms import ARMS
from lary.simulate.episodes import stage
from lary.simulate.plan import HANDLING, PAIR_SPLITS, VERBS, make_plan


def test_plan_is_balanced() -> None:
    jobs = make_plan(SimulateConfig())
    clips = [job for job in jobs if not job.pairs]
    for verb in VERBS:
        chosen = [job for job in clips if job.verb == verb]
        val = [job for job in chosen if job.split == "val"]
        assert (len(chosen), len(val), sum(job.robot == "heron" for job in chosen)) == (40, 12, 20)
        assert 4 <= sum(job.robot == "heron" for job in val) <= 8
    assert sum(job.pairs for job in jobs) == 800
    for split in PAIR_SPLITS:
        chosen = [job for job in jobs if job.pairs and job.split == split]
        spans = [(job.first, job.first + job.frames) for job in chosen]
        assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_unseen_objects_and_colours_are_not_trained_on() -> None:
    jobs = make_plan(SimulateConfig(pairs=400, clips=40))
    assert {job.unseen for job in jobs if job.split != "unseen"} == {False}
    assert not set(shapes.TRAIN_THINGS) & set(shapes.UNSEEN_THINGS)
    assert not set(shapes.TRAIN_COLOURS) & set(shapes.UNSEEN_COLOURS)
    for arm in ARMS.values():
        trained = {palette[role].first for palette in arm.palettes for role in ("main", "accent")}
        assert not trained & {arm.unseen_palette[role].first for role in ("main", "accent")}
    for split, colours in (("train", shapes.TRAIN_COLOURS), ("unseen", shapes.UNSEEN_COLOURS)):
        job = next(job for job in jobs if job.split == split and job.pairs and job.verb in HANDLING)
        target = next(item.thing for item in stage(job).script.placed if item.thing.name == "target")
        assert any(geom.material.first in colours or geom.material.second in colours for geom in target.geoms)
