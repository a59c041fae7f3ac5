"""The regression probes on made-up latents: MLP, DiT and ridge."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from lary.probes.nets import ActionExpertMLP
from lary.probes.outcome import huber_loss, mse
from lary.probes.regress import RegressorTraining
from lary.probes.training import Session
from lary.types import LaryError, UsageError
from tests.helpers import fails
from tests.probes.made import TINY, assert_same, changed, numbers, regressor_inputs, train


@pytest.mark.parametrize(("probe", "noise"), [("mlp", 0.05), ("ridge", 3.0)])
def test_an_mlp_averages_last_epochs_and_a_ridge_is_cross_validated(probe: str, noise: float, tmp_path: Path) -> None:
    inputs = regressor_inputs(noise)
    outcome = train(probe, inputs, folder=tmp_path)
    for role in ("seen", "unseen"):
        split = outcome.splits[role]
        errors = {name: mse(chosen.values, split.targets) for name, chosen in split.selections.items()}
        assert list(errors) == ["held_out", "best_on_validation"]
        assert probe == "ridge" or max(errors.values()) < 0.5 * mse(split.controls["mean_action"], split.targets)
        for name, chosen in split.selections.items():
            row = outcome.history[chosen.epoch - 1]
            averaged = (probe, name) == ("mlp", "held_out")
            assert (row[f"{role}_mse"] == errors[name]) != averaged
            batch = getattr(TINY, "regressor" if probe == "mlp" else "ridge").batch_size
            assert split.loss[name] == huber_loss(chosen.values, split.targets, batch)
    columns = {"best_on_validation": "seen_mse"} | ({"held_out": "held_out_mse"} if probe == "ridge" else {})
    for name, column in columns.items():
        best = min(outcome.history, key=lambda row, column=column: row[column])["epoch"]
        assert outcome.splits["unseen"].selections[name].epoch == best
    assert outcome.settings["fit_samples"] == 120
    saved = torch.load(tmp_path / "best_model.pth", weights_only=True)
    tokens = torch.from_numpy(inputs.evaluated["seen"].latents.read(np.arange(40)))
    if probe == "mlp":
        network = ActionExpertMLP(24, 3, 2, hidden_dim=32, num_blocks=1)
        network.load_state_dict(saved, strict=True)
        values = network.requires_grad_(False)(tokens)
    else:
        values = (tokens.flatten(1) - saved["mean"]) / saved["std"] @ saved["coef"] + saved["intercept"]
        train_errors = [row["train_mse"] for row in outcome.history]
        assert train_errors == sorted(train_errors), "a larger penalty fits worse"
    chosen = outcome.splits["seen"].selections["held_out"].values
    assert chosen.shape == (40, 2, 3)
    np.testing.assert_allclose(values.reshape(40, 2, 3), chosen, atol=1e-5)


def test_the_dit_learns_and_warns_of_what_its_sampler_clips() -> None:
    outcome = train("dit", epochs=8, sampler_steps=3)
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
    assert np.abs(outcome.splits["seen"].selections["held_out"].values).max() <= 1 + 1e-5
    assert outcome.settings["sampler_steps"] == 3
    beyond = 100 * np.mean(np.abs(outcome.splits["seen"].targets) > 1)
    assert f"within one standard deviation, as published; {beyond:.1f} % of the targets" in outcome.warnings[0]


class Recorded(RegressorTraining):
    """A training that keeps its weights of every epoch."""

    def close_epoch(self, epoch: int) -> None:
        own = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        self.kept = [*getattr(self, "kept", []), own]
        super().close_epoch(epoch)


@pytest.mark.parametrize(("epochs", "averaged"), [(3, 1), (9, 2)])
def test_the_reported_weights_are_the_mean_of_the_last_quarter_of_the_epochs(epochs: int, averaged: int) -> None:
    session = Session(protocol="corrected", seed=42)
    training = Recorded(regressor_inputs(), replace(TINY.regressor, epochs=epochs), session)
    training.run()
    for name, weight in training.network.state_dict().items():
        mean = torch.stack([own[name] for own in training.kept[-averaged:]]).mean(dim=0)
        torch.testing.assert_close(weight, mean)


@pytest.mark.parametrize("probe", ["mlp", "ridge"])
def test_it_is_deterministic_and_its_choice_reads_no_reported_target(probe: str) -> None:
    inputs, other = regressor_inputs(), regressor_inputs()
    for split in other.evaluated.values():
        split.targets[:] = 5.0
    epochs = None if probe == "ridge" else 3
    first, again, third = (train(probe, given, epochs=epochs) for given in (inputs, inputs, other))
    assert_same(numbers(first), numbers(again))
    for role, split in first.splits.items():
        own, changed_targets = split.selections["held_out"], third.splits[role].selections["held_out"]
        assert own.epoch == changed_targets.epoch
        np.testing.assert_array_equal(own.values, changed_targets.values)


@pytest.mark.parametrize("probe", ["mlp", "dit", "ridge"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (24,)])
def test_tokens_of_every_shape_and_precision_are_the_same_values(probe: str, shape: tuple[int, ...]) -> None:
    half = changed(regressor_inputs(), lambda tokens: tokens.astype("float16"))
    whole = changed(half, lambda tokens: tokens.astype("float32"))
    formed = changed(half, lambda tokens: tokens.reshape(-1, *shape))
    epochs = None if probe == "ridge" else 2
    first, second = (numbers(train(probe, given, epochs=epochs)) for given in (whole, formed))
    for name in first.keys() - {"history"}:  # ridge scales by channel, and so depends on the shape in its last digits
        np.testing.assert_allclose(first[name], second[name], atol=0.1 if probe == "ridge" and len(shape) == 1 else 0)


def test_divergence_is_an_error_and_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(TINY, regressor=replace(TINY.regressor, lr=1e30, epochs=4))
    fails(LaryError, r"diverged in epoch 1, update \d+ \(learning rate .* of 1e\+30\)", train, "mlp", preset=preset)
    (inputs := regressor_inputs()).evaluated["unseen"].latents.tokens[0] = np.nan  # type: ignore[attr-defined]
    fails(LaryError, "diverged in epoch 1, .*its predictions are not finite", train, "mlp", inputs)
    inputs = replace(regressor_inputs(), train_groups=("one episode",) * 120)
    fails(UsageError, "of one episode or video, so no penalty can be chosen", train, "ridge", inputs)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10_000))
    fails(UsageError, r"The ridge probe needs .*--pool or --project", train, "ridge")


def test_a_ridge_reads_down_to_the_noise_and_says_that_its_smallest_penalty_was_best() -> None:
    outcome = train("ridge", device="cuda:3")
    for split in outcome.splits.values():
        assert 0.05**2 * 0.5 < mse(split.selections["held_out"].values, split.targets) < 0.05**2 * 2
    assert outcome.warnings == ()
    (warning,) = train("ridge", regressor_inputs(noise=0.0)).warnings
    assert warning == "The smallest penalty of 8 was picked: a smaller one might do better."
    assert outcome.settings["device"] == "cpu"


def test_a_value_that_is_still_in_training_does_not_blow_up() -> None:
    inputs = regressor_inputs()
    for source in (inputs.train, *(split.latents for split in inputs.evaluated.values())):
        source.tokens[:, 0, 0, 0] *= 1e-5  # type: ignore[attr-defined]
        source.tokens[..., 3] = 2.0  # type: ignore[attr-defined]
    inputs.evaluated["seen"].latents.tokens[:, 0, 0, 0] = 1.0  # type: ignore[attr-defined]
    split = train("ridge", inputs).splits["seen"]
    error = mse(split.selections["held_out"].values, split.targets)
    assert error < mse(split.controls["mean_action"], split.targets)
