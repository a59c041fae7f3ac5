"""Presets of the probes, what replaces their numbers, and schedules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lary.probes.presets import PRESETS
from lary.probes.regress import RegressorTraining
from lary.probes.training import Session
from lary.types import UsageError
from tests.probes.made import TINY, regressor_inputs


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_are_whole(name: str) -> None:
    preset = PRESETS.get(name)
    assert preset.classifier.model_dim % preset.classifier.num_heads == 0
    assert len(preset.classifier.heads) == 5
    dit = preset.settings("dit", epochs=3, batch_size=7, sampler_steps=9)
    assert (dit.epochs, dit.batch_size, dit.sampler_steps, dit.lr) == (3, 7, 9, preset.dit.lr)
    assert preset.settings("mlp", epochs=None, batch_size=None) == preset.regressor


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mlp", {"sampler_steps": 5}, "--sampler-steps 5: the probe mlp takes none; leave it out"),
        ("dit", {"sampler_steps": 0}, "--sampler-steps 0: must be from 1 to 1000; 500 is published"),
        ("ridge", {"batch_size": 5}, "--probe-batch-size 5: the probe ridge takes none"),
    ],
)
def test_contradicting_numbers_are_refused(kind: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TINY.settings(kind, **{"epochs": None, "batch_size": None, **options})


def test_warmup_rises_over_the_first_tenth() -> None:
    settings = TINY.settings("mlp", epochs=50, batch_size=120)  # one update per epoch
    training = RegressorTraining(regressor_inputs(), settings, Session(protocol="paper", seed=0))
    rates = np.array([training.rate(update) for update in range(50)]) / settings.lr
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6, 0.8, *[1.0] * 45])
