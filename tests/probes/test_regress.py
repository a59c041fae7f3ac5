"""The regression probes on made-up latents: MLP and DiT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lary.probes.nets import ActionExpertMLP
from lary.probes.outcome import huber_loss, mse
from lary.probes.sources import hold_out
from lary.types import LaryError, UsageError
from tests.probes.made import TINY, InMemory, assert_same, numbers, regress, regressor_inputs, ridge


def test_a_linear_map_is_read(tmp_path: Path) -> None:
    inputs = regressor_inputs()
    outcome = regress(inputs, folder=tmp_path)
    for role in ("seen", "unseen"):
        split = outcome.splits[role]
        errors = {name: mse(chosen.values, split.targets) for name, chosen in split.selections.items()}
        assert list(errors) == ["held_out", "best_on_validation"]
        assert max(errors.values()) < 0.5 * mse(split.controls["mean_action"], split.targets)
        assert split.selections["held_out"].values.shape == (40, 2, 3)
        for name, chosen in split.selections.items():
            row = outcome.history[chosen.epoch - 1]
            assert row[f"{role}_mse"] == errors[name]
            assert split.loss[name] == row[f"{role}_loss"] == huber_loss(chosen.values, split.targets, 16)
    best = min(outcome.history, key=lambda row: row["seen_mse"])["epoch"]
    assert outcome.splits["seen"].selections["best_on_validation"].epoch == best
    held = min(outcome.history, key=lambda row: row["held_out_mse"])["epoch"]
    assert outcome.splits["unseen"].selections["held_out"].epoch == held
    network = ActionExpertMLP(24, 3, 2, hidden_dim=32, num_blocks=1)
    network.load_state_dict(torch.load(tmp_path / "best_model.pth", weights_only=True), strict=True)
    with torch.no_grad():
        values = network(torch.from_numpy(inputs.evaluated["seen"].latents.read(np.arange(40)))).numpy()
    chosen = outcome.splits["seen"].selections["held_out"].values
    np.testing.assert_allclose(values.reshape(40, 2, 3), chosen, atol=1e-5)


def test_the_dit_learns_and_warns_of_what_its_sampler_clips() -> None:
    outcome = regress(regressor_inputs(), probe="dit", epochs=8, sampler_steps=3)
    losses = [row["train_loss"] for row in outcome.history]
    assert losses[-1] < losses[0]
    assert np.abs(outcome.splits["seen"].selections["held_out"].values).max() <= 1 + 1e-5
    assert outcome.settings["sampler_steps"] == 3
    assert "within one standard deviation" in outcome.warnings[0]


def test_it_is_deterministic_and_holds_rows_out() -> None:
    inputs, changed = regressor_inputs(), regressor_inputs()
    _, held_rows = hold_out(inputs.train_groups, seed=42)
    changed.train_targets[held_rows] = 5.0
    first, again, other = (regress(given, epochs=3) for given in (inputs, inputs, changed))
    assert_same(numbers(first), numbers(again))
    for name in ("train_loss", "seen_mse"):
        assert [row[name] for row in first.history] == [row[name] for row in other.history]
    assert first.history[0]["held_out_mse"] != other.history[0]["held_out_mse"]
    assert first.settings["fit_samples"] == 120 - len(held_rows)
    paper = regress(inputs, protocol="paper", epochs=1)
    assert list(paper.splits["seen"].selections) == ["best_on_validation"]
    assert paper.settings["fit_samples"] == 120
    control = paper.splits["unseen"].controls["mean_action"]
    np.testing.assert_allclose(control, np.broadcast_to(inputs.train_targets.mean(axis=0), (40, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("probe", ["mlp", "dit", "ridge"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (24,)])
def test_tokens_of_every_shape_and_precision_are_the_same_values(probe: str, shape: tuple[int, ...]) -> None:
    inputs = regressor_inputs()
    found = []
    for form, dtype in (((2, 3, 4), "float32"), (shape, "float16")):

        def given(source, form=form, dtype=dtype):  # type: ignore[no-untyped-def]
            tokens = source.read(range(len(source))).astype("float16").reshape(-1, *form)
            return InMemory(tokens.astype(dtype))

        splits = {role: replace(split, latents=given(split.latents)) for role, split in inputs.evaluated.items()}
        own = replace(inputs, train=given(inputs.train), evaluated=splits)
        found.append(numbers(ridge(own) if probe == "ridge" else regress(own, probe=probe, epochs=2)))
    first, second = found
    for name in first.keys() - {"history"}:  # ridge scales by channel, and so depends on the shape in its last digits
        np.testing.assert_allclose(first[name], second[name], atol=0.1 if probe == "ridge" and len(shape) == 1 else 0)


def test_divergence_is_an_error() -> None:
    with pytest.raises(LaryError, match=r"diverged in epoch 1, update \d+ \(learning rate .* of 1e\+30\)"):
        regress(regressor_inputs(), replace(TINY, regressor=replace(TINY.regressor, lr=1e30, epochs=4)))


def test_wrong_requests_are_refused() -> None:
    inputs = regressor_inputs()
    seen = inputs.evaluated["seen"]
    short = replace(seen, latents=InMemory(np.zeros((39, 2, 3, 4), np.float32)))
    wide = replace(seen, latents=InMemory(np.zeros((40, 2, 3, 5), np.float32)))
    chunks = replace(seen, targets=np.zeros((40, 3, 3), np.float32))
    none = replace(seen, latents=InMemory(np.zeros((0, 2, 3, 4), np.float32)), targets=seen.targets[:0])
    none = replace(none, samples=replace(seen.samples, ids=()))
    wrong = [
        (replace(inputs, train_groups=("one episode",) * 120), "none can be held out"),
        (replace(inputs, train_groups=("a", "b")), "of the training split differ in number"),
        (replace(inputs, evaluated={"unseen": seen}), "'seen'"),
        (replace(inputs, evaluated={"seen": short}), "of the seen split differ in number"),
        (replace(inputs, evaluated={"seen": wide}), r"\(2, 3, 4\), seen latents \(2, 3, 5\)"),
        (replace(inputs, evaluated={"seen": chunks}), "differ in length or dimensions"),
        (replace(inputs, evaluated={"seen": none}), "at least one sample in every split"),
    ]
    for given, message in wrong:
        with pytest.raises(UsageError, match=message):
            regress(given)
    with pytest.raises(UsageError, match="--sampler-steps 5: only the probe dit draws samples"):
        regress(inputs, sampler_steps=5)
    with pytest.raises(UsageError, match="--sampler-steps 0: must be from 1 to 1000"):
        regress(inputs, probe="dit", sampler_steps=0)
