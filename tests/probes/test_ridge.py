"""The ridge probe on made-up latents."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lary.probes.outcome import mse
from lary.types import LaryError, UsageError
from tests.probes.made import InMemory, regressor_inputs, ridge


def test_a_linear_map_is_read_down_to_its_noise(tmp_path: Path) -> None:
    inputs = regressor_inputs(noise=0.05)
    outcome = ridge(inputs, folder=tmp_path)
    for split in outcome.splits.values():
        assert 0.05**2 * 0.5 < mse(split.selections["held_out"].values, split.targets) < 0.05**2 * 2
    saved = {key: value.numpy() for key, value in torch.load(tmp_path / "best_model.pth", weights_only=True).items()}
    tokens = inputs.evaluated["seen"].latents.read(np.arange(40)).reshape(40, -1)
    predicted = (tokens - saved["mean"]) / saved["std"] @ saved["coef"] + saved["intercept"]
    chosen = outcome.splits["seen"].selections["held_out"].values
    np.testing.assert_allclose(predicted.reshape(chosen.shape), chosen, atol=1e-5)
    assert outcome.warnings == ("The smallest penalty of 8 was picked: an even smaller one might do better.",)


def test_the_penalty_is_picked_on_the_held_out_tenth() -> None:
    outcome = ridge(regressor_inputs(noise=3.0))
    errors = [row["held_out_mse"] for row in outcome.history]
    assert outcome.splits["seen"].selections["held_out"].epoch == 1 + int(np.argmin(errors))
    seen = [row["seen_mse"] for row in outcome.history]
    assert outcome.splits["seen"].selections["best_on_validation"].epoch == 1 + int(np.argmin(seen))
    train = [row["train_mse"] for row in outcome.history]
    assert train == sorted(train), "a larger penalty fits worse"
    only = ridge(regressor_inputs(), protocol="paper")
    assert list(only.splits["seen"].selections) == ["best_on_validation"]


def test_a_value_that_is_still_in_training_does_not_blow_up() -> None:
    inputs = regressor_inputs()
    for source in (inputs.train, *(split.latents for split in inputs.evaluated.values())):
        assert isinstance(source, InMemory)
        source.tokens[:, 0, 0, 0] *= 1e-5
    inputs.evaluated["seen"].latents.tokens[:, 0, 0, 0] = 1.0  # type: ignore[attr-defined]
    split = ridge(inputs).splits["seen"]
    error = mse(split.selections["held_out"].values, split.targets)
    assert error < mse(split.controls["mean_action"], split.targets)


def test_wrong_latents_and_too_many_of_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = regressor_inputs()
    broken = inputs.evaluated["seen"].latents.read(np.arange(40)).copy()
    broken[7] = np.nan
    seen = replace(inputs.evaluated["seen"], latents=InMemory(broken))
    with pytest.raises(LaryError, match="row 7 "):
        ridge(replace(inputs, evaluated={"seen": seen}))
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # pages of 100 bytes, and 100 of them
    with pytest.raises(UsageError, match="project them with --project"):
        ridge(inputs)
