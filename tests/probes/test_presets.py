"""Presets of the probes, what replaces their numbers, and schedules."""

import math
from dataclasses import astuple, replace
from unittest.mock import Mock

import numpy as np
import pytest

from lary.probes.presets import PRESETS
from lary.probes.regress import RegressorTraining
from lary.probes.training import Session
from lary.types import UsageError
from tests.helpers import fails
from tests.probes.made import TINY, regressor_inputs


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_are_whole(name: str) -> None:
    preset = PRESETS.get(name)
    heads = {"paper": 5, "demo": 2}[name]
    assert (preset.classifier.model_dim % preset.classifier.num_heads, len(preset.classifier.heads)) == (0, heads)
    dit = preset.settings("dit", epochs=3, batch_size=7, sampler_steps=1000)
    assert (dit.epochs, dit.batch_size, dit.sampler_steps, dit.lr) == (3, 7, 1000, preset.dit.lr)
    fails(UsageError, "--sampler-steps 1001: must be from 1 to 1000", preset.settings, "dit", None, None, 1001)
    assert preset.settings("mlp", epochs=None, batch_size=None) == preset.regressor


def test_the_paper_preset_is_the_published_setting() -> None:
    paper = PRESETS.get("paper")
    assert astuple(replace(paper.classifier, heads=())) == (768, 16, 4, 20, 256, (), 128, 0.1, True, False)
    assert astuple(paper.regressor) == (4096, 2, 20, 256, 1e-4, 1e-4, 0.1)
    assert astuple(paper.dit) == (512, 6, 8, 20, 256, 1e-4, 1e-4, 0.1, 500)


def test_warmup_rises_over_the_first_tenth_and_numbers_alone_are_tracked() -> None:
    settings = TINY.settings("mlp", epochs=50, batch_size=120)  # one update per epoch
    session = Session(protocol="paper", seed=0, tracker=Mock())
    training = RegressorTraining(regressor_inputs(), settings, session)
    assert training.build()[1].param_groups[0]["weight_decay"] == settings.weight_decay == 1e-4
    assert [training.offer("a", [rank]) for rank in (1.0, 1.0, 2.0)] == [True, False, True], "the first of equals"
    training.log({"a": [1.0, math.nan, None], "b": math.inf})
    session.tracker.log.assert_called_once_with({"a/0": 1.0}, step=0)
    rates = np.array([training.rate(update) for update in range(50)]) / settings.lr
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6, 0.8, *[1.0] * 45])
