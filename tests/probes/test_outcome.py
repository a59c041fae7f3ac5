"""Metrics of classes against scikit-learn; those of actions are checked in tests/parity."""

from __future__ import annotations

import numpy as np
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
