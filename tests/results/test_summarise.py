"""Results from what probes hand on: metrics compared with their definitions, controls, examples, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from lary.probes import outcome as metrics
from lary.probes.outcome import ActionPredictions, ClassPredictions
from lary.results.measure import headline
from lary.results.record import FILE_NAME, read_result, write_result
from lary.results.summarise import classification_result, example_rows, regression_result
from lary.types import LaryError
from tests import fake_results as fake


def test_classification_result_round_trips_and_counts_right(tmp_path: Path) -> None:
    outcome = fake.class_outcome(3.0)
    result = classification_result(outcome, fake.facts("pixels", "verbs"))
    write_result(tmp_path / FILE_NAME, result)
    assert read_result(tmp_path / FILE_NAME) == result
    assert next(iter(json.loads((tmp_path / FILE_NAME).read_text()))) == "schema_version"
    predicted = outcome.selections["held_out"].logits.argmax(axis=1)
    assert result.headline == "held_out"
    assert result.score.value == pytest.approx(np.mean(predicted == outcome.labels))
    assert result.score.low is not None
    assert result.score.low < result.score.value
    top5 = result.selections["held_out"].metrics["top5"].value
    assert top5 == pytest.approx(top_k_accuracy_score(outcome.labels, outcome.selections["held_out"].logits, k=5))
    control = result.controls["majority_class"]
    assert control.gain.value == pytest.approx(result.score.value - control.metrics["top1"].value)
    assert control.gain.low is not None
    assert control.gain.low > 0
    assert np.array(result.confusion).sum() == len(outcome.labels)
    assert sum(row.true for row in result.classes) == len(outcome.labels)
    assert result.history[0]["val_acc"] == [0.1, None], "JSON has no NaN"


def test_ties_the_paper_protocol_and_predictions_that_are_not_finite() -> None:
    outcome, facts = fake.class_outcome(1.0), fake.facts("pixels", "verbs")
    even = {"held_out": ClassPredictions(1, 0, np.ones_like(outcome.selections["held_out"].logits))}
    found = classification_result(replace(outcome, selections=even), facts).selections["held_out"]
    # Equal scores count in the order of the classes.
    assert found.metrics["top5"].value == pytest.approx(np.mean(outcome.labels < 5))
    only = replace(outcome, selections={"best_on_validation": outcome.selections["best_on_validation"]})
    assert headline(only.selections) == "best_on_validation"
    result = classification_result(only, fake.facts("pixels", "verbs", protocol="paper"))
    assert list(result.selections) == ["best_on_validation"] == [result.headline]
    actions = fake.action_outcome(0.3)
    for value in (np.nan, np.inf):
        even = {"held_out": ClassPredictions(1, 0, np.full_like(outcome.selections["held_out"].logits, value))}
        with pytest.raises(LaryError, match="diverged"):
            classification_result(replace(outcome, selections=even), facts)
        seen = actions.splits["seen"]
        broken = {"held_out": ActionPredictions(1, np.full_like(seen.targets, value))}
        with pytest.raises(LaryError, match="diverged"):
            regression_result(
                replace(actions, splits={"seen": replace(seen, selections=broken)}), fake.facts("pixels", "arm")
            )


def test_regression_result_round_trips_and_measures_right(tmp_path: Path) -> None:
    outcome = fake.action_outcome(0.3)
    result = regression_result(outcome, fake.facts("pixels", "arm", action_mode="absolute"))
    write_result(tmp_path / FILE_NAME, result)
    assert read_result(tmp_path / FILE_NAME) == result
    seen = outcome.splits["seen"]
    values = seen.selections["held_out"].values
    assert result.primary == "seen_mse"
    assert result.score.value == pytest.approx(metrics.mse(values, seen.targets), rel=1e-5)
    rows = [row for row in result.dimensions if row.split == "seen"]
    assert [row.mse.value for row in rows] == pytest.approx(metrics.mse_per_dim(values, seen.targets), rel=1e-5)
    errors = (values - seen.targets) * seen.std[:, None, :]
    assert [row.rmse for row in rows] == pytest.approx(np.sqrt((errors**2).mean(axis=(0, 1))), rel=1e-5)
    groups = {row.name: row.mse.value for row in result.dimension_groups if row.split == "unseen"}
    unseen = outcome.splits["unseen"]
    expected = metrics.mse_per_group(unseen.selections["held_out"].values, unseen.targets, fake.GROUPS)
    assert groups == pytest.approx(expected, rel=1e-5)
    gain = result.controls["mean_action"].gain
    assert gain.value == pytest.approx(result.score.value - result.controls["mean_action"].metrics["seen_mse"].value)
    assert gain.high is not None
    assert gain.high < 0


def test_examples_stand_at_fixed_ranks_of_the_error() -> None:
    split = fake.split_outcome(0.5)
    errors = ((split.selections["held_out"].values - split.targets) ** 2).mean(axis=(1, 2))
    for row, quantile, error in example_rows(split, "held_out"):
        assert error == pytest.approx(errors[row])
        assert np.mean(errors < error) == pytest.approx(quantile, abs=0.02)
