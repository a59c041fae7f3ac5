"""Tables for notebooks: a row per run and selection, and a row per sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lary.results.folder import writing
from lary.results.load import load_results, load_samples
from lary.results.published import action_scores, class_scores, write_classification_files, write_scores
from lary.results.summarise import classification_result, regression_result
from lary.types import LaryError, UsageError
from tests import fake_results as fake


def test_every_run_and_selection_has_a_row_with_intervals(tmp_path: Path) -> None:
    fake.write_runs(tmp_path)
    table = load_results(tmp_path)
    assert len(table) == 6 * 2
    assert set(table["selection"]) == {"held_out", "best_on_validation"}
    own = table[(table["model"] == "acme") & (table["task"] == "regression") & table["headline"]]
    assert list(own["seeds"]) == [(0, 1, 2)]
    assert (own["seen_mse_low"] < own["seen_mse"]).all()
    assert (own["seen_mse"] < own["seen_mse_high"]).all()
    assert own["top1"].isna().all()
    with pytest.raises(UsageError, match="no folder"):
        load_results(tmp_path / "missing")


@pytest.mark.usefixtures("no_figures")
def test_every_sample_has_a_row(tmp_path: Path) -> None:
    outcome = fake.class_outcome(2.0)
    with writing(tmp_path / "one", "1f") as run:
        write_classification_files(run.work, outcome)
        write_scores(run.work, class_scores([outcome]), [0])
        result = run.publish(classification_result(outcome, fake.facts("pixels", "verbs", seeds=(0,))))
    table = load_samples(tmp_path / "one" / "result.json")
    assert len(table) == len(outcome.labels)
    assert table["score"].mean() == pytest.approx(result.score.value)
    assert ((table["predicted"] == table["true"]) == (table["score_0"] == 1)).all()
    (tmp_path / "one" / "case.txt").write_text("another")
    with pytest.raises(LaryError, match="digest differs"):
        load_samples(tmp_path / "one")


def test_samples_of_unseen_splits_and_seeds(tmp_path: Path) -> None:
    runs = [fake.action_outcome(error) for error in (0.3, 0.4)]
    with writing(tmp_path, "1f") as run:
        write_scores(run.work, action_scores(runs), (3, 1))
        run.publish(regression_result(runs[0], fake.facts("pixels", "arm", seeds=(3, 1)), runs[1:]))
    table = load_samples(tmp_path)
    assert dict(table["split"].value_counts()) == {"seen": 96, "unseen": 40}
    np.testing.assert_allclose(table["score"], table[["score_3", "score_1"]].mean(axis=1), rtol=1e-6)
