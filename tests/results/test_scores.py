"""Metrics as functions of sums: by hand, compared with scikit-learn, and their slopes with numerical ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from lary.results import scores, statistics


def test_macro_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 60), rng.integers(0, 5, 60)  # class 4 is predicted only, class 5 never
    sums = scores.class_sums(labels, predicted, 6, np.arange(60) % 7)
    recall, f1 = scores.macro_scores(sums.sum(axis=0, keepdims=True))[0]
    assert recall == pytest.approx(recall_score(labels, predicted, labels=range(4), average="macro"))
    assert f1 == pytest.approx(f1_score(labels, predicted, labels=range(5), average="macro"))


def test_error_scores_by_hand() -> None:
    target = np.array([[[0.0, 1.0]], [[2.0, 1.0]]])
    guess = np.array([[[0.0, 1.0]], [[1.0, 3.0]]])
    found = scores.error_scores(scores.error_columns(guess, target).sum(axis=0, keepdims=True))[0]
    assert found[:3] == pytest.approx([0.5, 2.0, 1.25])
    assert found[3] == pytest.approx(1 - 1 / 2)
    assert np.isnan(found[4]), "a constant target has no variance to explain"
    assert found[5] == pytest.approx(1 - 5 / 2)


def totals_of(name: str) -> np.ndarray:
    """Sums (G, M) for each statistic."""
    rng = np.random.default_rng(0)
    if name == "macro_scores":
        labels, predicted = rng.integers(0, 4, 300), rng.integers(0, 5, 300)
        return scores.class_sums(labels, predicted, 6, np.arange(300) % 12)
    if name == "error_scores":
        target = rng.normal(size=(300, 2, 3))
        return statistics.cluster_sums(scores.error_columns(target + 0.4, target * 2), np.arange(300) % 12)
    return rng.random((12, 6)) + 0.5


@pytest.mark.parametrize("name", ["ratio", "macro_scores", "error_scores"])
def test_slopes_are_the_derivatives(name: str) -> None:
    statistic, sums = getattr(scores, name), totals_of(name)
    totals = np.stack([sums.sum(axis=0), sums[:7].sum(axis=0)])
    numerical = scores.statistic_of(lambda values: statistic(values), sums)
    pairs = list(zip(statistic.slopes(totals), numerical.slopes(totals), strict=True))
    assert len(pairs) == statistic(totals).shape[1]
    for (columns, exact), (used, derivatives) in pairs:
        full, every = np.zeros_like(totals), np.zeros_like(totals)
        full[:, columns], every[:, used] = exact, derivatives
        np.testing.assert_allclose(full * sums.any(axis=0), every, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose((full * totals).sum(axis=1), 0, atol=1e-9)  # doubling all sums changes nothing


def test_a_plain_function_gets_the_interval_of_the_same_statistic() -> None:
    sums = totals_of("ratio")
    ours = statistics.bootstrap(sums, scores.ratio)
    plain = statistics.bootstrap(sums, lambda totals: totals[:, :3] / totals[:, 3:])
    np.testing.assert_allclose(np.array([plain.low, plain.high]), np.array([ours.low, ours.high]), rtol=1e-6)
