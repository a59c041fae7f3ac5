"""The ridge probe and the changed latents of the controls, on made-up latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lary.probes import metrics, ridge
from lary.probes.chunks import RegressorInputs
from lary.probes.outcome import RegressionOutcome
from lary.probes.ridge import fit_ridge
from lary.probes.sources import ProjectedSource, ShuffledOrderSource, StaticSource
from lary.types import LaryError, UsageError
from tests.test_probes import TINY, SpySource, regressor_inputs


def fit(inputs: RegressorInputs, folder: Path | None = None, protocol: str = "corrected") -> RegressionOutcome:
    return fit_ridge(inputs, TINY, protocol=protocol, seed=1, folder=folder, progress=None)  # type: ignore[arg-type]


def test_a_linear_map_is_read_down_to_its_noise(tmp_path: Path) -> None:
    inputs = regressor_inputs(noise=0.05)
    outcome = fit(inputs, tmp_path)
    for split in outcome.splits.values():
        error = metrics.mse(split.selections["held_out"].values, split.targets)
        assert 0.05**2 * 0.5 < error < 0.05**2 * 2
    saved = {key: value.numpy() for key, value in torch.load(tmp_path / "best_model.pth", weights_only=True).items()}
    tokens = inputs.evaluated["seen"].latents.read(np.arange(40)).reshape(40, -1)
    predicted = (tokens - saved["mean"]) / saved["std"] @ saved["coef"] + saved["intercept"]
    chosen = outcome.splits["seen"].selections["held_out"].values
    np.testing.assert_allclose(predicted.reshape(chosen.shape), chosen, atol=1e-5)


def test_the_penalty_is_picked_on_the_held_out_tenth() -> None:
    outcome = fit(regressor_inputs(noise=3.0))
    errors = [row["held_out_mse"] for row in outcome.history]
    assert outcome.splits["seen"].selections["held_out"].epoch == 1 + int(np.argmin(errors))
    seen = [row["seen_mse"] for row in outcome.history]
    assert outcome.splits["seen"].selections["best_on_validation"].epoch == 1 + int(np.argmin(seen))
    train = [row["train_mse"] for row in outcome.history]
    assert train == sorted(train), "a larger penalty fits worse"
    only = fit(regressor_inputs(), protocol="paper")
    assert list(only.splits["seen"].selections) == ["best_on_validation"]


def test_a_place_that_is_still_in_training_does_not_blow_up() -> None:
    inputs = regressor_inputs()
    for source in (inputs.train, *(split.latents for split in inputs.evaluated.values())):
        assert isinstance(source, SpySource)
        source.tokens[:, 0, 0, 0] = 1e-5 * source.tokens[:, 0, 0, 0]
    shown = inputs.evaluated["seen"].latents
    assert isinstance(shown, SpySource)
    shown.tokens[:, 0, 0, 0] = 1.0
    split = fit(inputs).splits["seen"]
    error = metrics.mse(split.selections["held_out"].values, split.targets)
    assert error < metrics.mse(split.controls["mean_action"], split.targets)


def test_wrong_latents_and_too_many_of_them_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = regressor_inputs()
    broken = inputs.evaluated["seen"].latents.read(np.arange(40)).copy()
    broken[7] = np.nan
    seen = replace(inputs.evaluated["seen"], latents=SpySource(broken))
    with pytest.raises(LaryError, match="row 7 "):
        fit(replace(inputs, evaluated={"seen": seen}))
    monkeypatch.setattr(ridge, "memory_bytes", lambda: 10_000)
    with pytest.raises(UsageError, match="project the latents with --project"):
        fit(inputs)


def test_sources_of_controls() -> None:
    tokens = np.random.default_rng(0).standard_normal((50, 2, 3, 4)).astype(np.float32)
    source, rows = SpySource(tokens), np.array([3, 11, 12])
    still = StaticSource(source)
    np.testing.assert_array_equal(still.read(rows), tokens[rows][:, [0, 0]])
    mixed = ShuffledOrderSource(source, seed=0)
    everything = mixed.read(np.arange(50))
    swapped = (everything == tokens[:, ::-1]).all(axis=(1, 2, 3))
    kept = (everything == tokens).all(axis=(1, 2, 3))
    assert (swapped ^ kept).all()
    assert 15 <= swapped.sum() <= 35
    np.testing.assert_array_equal(mixed.read(rows), everything[rows])
    small = ProjectedSource(source, 2, seed=0)
    assert small.shape == (2, 3, 2)
    both = small.read([1])[0] + small.read([2])[0]
    np.testing.assert_allclose(
        ProjectedSource(SpySource(tokens[1:2] + tokens[2:3]), 2, 0).read([0])[0], both, atol=1e-5
    )
    wide = SpySource(np.random.default_rng(1).standard_normal((200, 1, 1, 400)).astype(np.float32))
    lengths = np.square(ProjectedSource(wide, 100, 0).read(np.arange(200))).sum(axis=-1).mean()
    assert lengths == pytest.approx(400, rel=0.1)
