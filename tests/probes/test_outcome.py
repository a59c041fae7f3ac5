"""Metrics against scikit-learn, torch and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from lary.probes import outcome as metrics

labelled = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60),
    )
)


@settings(max_examples=40, deadline=None)
@given(labelled)
def test_class_metrics_are_those_of_scikit_learn(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = drawn
    labels, predicted = np.array(pairs, dtype=np.int64).T
    table = metrics.confusion_matrix(labels, predicted, classes)
    np.testing.assert_array_equal(table.T, confusion_matrix(labels, predicted, labels=range(classes)))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    ours = metrics.class_statistics(table)
    for own, theirs in zip((ours.precision, ours.recall, ours.f1, ours.support), expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-7)
    assert metrics.accuracy(labels, predicted) == pytest.approx(np.trace(table) / len(labels))


def test_action_errors_agree_with_each_other() -> None:
    rng = np.random.default_rng(0)
    predicted, targets = rng.standard_normal((2, 7, 5, 3)).astype(np.float32)
    total = metrics.mse(predicted, targets)
    assert metrics.mse_per_dim(predicted, targets).mean() == pytest.approx(total)
    assert metrics.mse_per_group(predicted, targets, {"all": (0, 1, 2)})["all"] == pytest.approx(total)
    uneven = [
        torch.nn.functional.huber_loss(*map(torch.from_numpy, (predicted[a:b], targets[a:b])))
        for a, b in ((0, 5), (5, 7))
    ]
    assert metrics.huber_loss(predicted, targets, 5) == pytest.approx(float(sum(uneven)) / 2)
