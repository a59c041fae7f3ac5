"""Presets of the probes, what replaces their numbers, and schedules."""

import numpy as np
import pytest

from lary.probes.presets import PRESETS
from lary.probes.regress import RegressorTraining
from lary.probes.training import Session
from tests.probes.made import TINY, regressor_inputs


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_are_whole(name: str) -> None:
    preset = PRESETS.get(name)
    assert (preset.classifier.model_dim % preset.classifier.num_heads, len(preset.classifier.heads)) == (0, 5)
    dit = preset.settings("dit", epochs=3, batch_size=7, sampler_steps=9)
    assert (dit.epochs, dit.batch_size, dit.sampler_steps, dit.lr) == (3, 7, 9, preset.dit.lr)
    assert preset.settings("mlp", epochs=None, batch_size=None) == preset.regressor


def test_warmup_rises_over_the_first_tenth() -> None:
    settings = TINY.settings("mlp", epochs=50, batch_size=120)  # one update per epoch
    training = RegressorTraining(regressor_inputs(), settings, Session(protocol="paper", seed=0))
    rates = np.array([training.rate(update) for update in range(50)]) / settings.lr
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6, 0.8, *[1.0] * 45])
