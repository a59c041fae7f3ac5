"""Rows that are drawn and held out, and the course of learning rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lary.probes.presets import PRESETS
from lary.probes.sampling import balanced_indices, class_weights, hold_out, split_training_rows, warmup_factor
from lary.types import UsageError


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.integers(0, 5))
def test_draws_are_balanced_over_classes(labels: list[int], epoch: int) -> None:
    weights = class_weights(np.array(labels))
    assert weights.sum() == pytest.approx(1.0)
    sums = [weights[np.array(labels) == label].sum() for label in set(labels)]
    assert sums == pytest.approx([1 / len(sums)] * len(sums))
    drawn = balanced_indices(weights, epoch)
    assert len(drawn) == len(labels)
    assert set(drawn.tolist()) <= set(range(len(labels)))
    np.testing.assert_array_equal(drawn, balanced_indices(weights, epoch))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 3)), min_size=2, max_size=120), st.integers(0, 3))
def test_hold_out_keeps_groups_whole_and_classes_alive(rows: list[tuple[int, int]], seed: int) -> None:
    groups, labels = tuple(str(group) for group, _ in rows), np.array([label for _, label in rows])
    try:
        kept, held = hold_out(groups, labels, seed=seed)
    except UsageError:
        whole = {
            g: {k for k in set(labels.tolist()) if all(h == g for h, label in rows if label == k)} for g, _ in rows
        }
        assert all(whole.values())
        return
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(rows)))
    assert len(held)
    assert {groups[row] for row in kept}.isdisjoint(groups[row] for row in held)
    assert set(labels[kept].tolist()) == set(labels.tolist())
    turned = np.arange(len(rows))[::-1]
    again = hold_out([groups[row] for row in turned], labels[turned], seed=seed)[1]
    assert {groups[turned[row]] for row in again} == {groups[row] for row in held}


def test_hold_out_takes_a_tenth_of_every_class() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(5, size=2000, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    groups = [str(index // 2) for index in range(2000)]
    _, held = hold_out(groups, labels, seed=0)
    np.testing.assert_allclose(np.bincount(labels[held]) / np.bincount(labels), 0.1, atol=0.02)
    assert set(hold_out(groups, labels, seed=1)[1].tolist()) != set(held.tolist())
    kept, none = split_training_rows("paper", groups, labels, seed=0)
    assert (len(kept), len(none)) == (2000, 0)


def test_warmup_rises_over_the_first_tenth() -> None:
    factors = [warmup_factor(update, 50, 0.1) for update in range(50)]
    np.testing.assert_allclose(factors[:6], [0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(factors[5:]) == {1.0}


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_are_whole(name: str) -> None:
    preset = PRESETS.get(name)
    assert preset.classifier.model_dim % preset.classifier.num_heads == 0
    assert len(preset.classifier.heads) == 5
