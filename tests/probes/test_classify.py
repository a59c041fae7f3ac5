"""The classification probe end to end on made-up latents."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lary.probes.classify import ClassifierTraining
from lary.probes.outcome import ClassificationOutcome
from lary.probes.presets import HeadSettings, ProbePreset
from lary.probes.training import Session, chosen_precision
from lary.types import LaryError, UsageError
from tests.helpers import fails
from tests.probes.made import TINY, InMemory, assert_same, changed, classifier_inputs, numbers, train


def accuracy(outcome: ClassificationOutcome) -> float:
    return float(np.mean(outcome.labels == outcome.selections["held_out"].logits.argmax(axis=1)))


def with_heads(*heads: HeadSettings, **more: Any) -> ProbePreset:
    return replace(TINY, classifier=replace(TINY.classifier, **{"heads": heads} if heads else {}, **more))


@pytest.mark.parametrize(("shape", "scale"), [((12, 6), 1e-3), ((72,), 1e3)])
def test_tokens_of_every_shape_are_read_and_every_scale_where_a_preset_standardises(shape: Any, scale: float) -> None:
    inputs = changed(classifier_inputs(), lambda tokens: np.float32(scale) * tokens.reshape(-1, *shape))
    outcome = train("attentive", inputs)
    assert (outcome.settings["tokens"], accuracy(outcome) > 0.8) == (list(shape), True)


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_heads_are_averaged_and_the_best_stands_beside(protocol: Any) -> None:
    """What is reported under ``corrected`` is the mean probability of all heads, and reads no reported label."""
    inputs = classifier_inputs(signal=1.0)
    training = ClassifierTraining(inputs, TINY.classifier, Session(protocol=protocol, seed=42))
    training.run()
    outcome = training.outcome()
    last = training.score({}, inputs.labels)
    best = outcome.selections["best_on_validation"]
    right = [row["validation_accuracy"] for row in outcome.history]
    if protocol == "paper":
        assert (list(outcome.selections), best.epoch, best.head) == (["best_on_validation"], 10, np.argmax(right[-1]))
        return
    assert list(outcome.selections) == ["held_out", "best_on_validation"]
    assert (best.epoch - 1, best.head) == np.unravel_index(np.argmax(right), np.shape(right))
    chosen = outcome.selections["held_out"]
    np.testing.assert_allclose(np.exp(chosen.logits), last.softmax(dim=-1).mean(dim=0), rtol=1e-5)
    assert (chosen.epoch, chosen.head, outcome.settings["fit_samples"]) == (10, None, 80)
    other = train("attentive", replace(inputs, labels=np.roll(inputs.labels, 1)))
    np.testing.assert_array_equal(other.selections["held_out"].logits, chosen.logits)


def test_a_head_that_diverges_is_never_picked_and_named() -> None:
    outcome = train("attentive", preset=with_heads(HeadSettings(1e30, 0.01), HeadSettings(1e-2, 0.01)))
    assert ([chosen.head for chosen in outcome.selections.values()], accuracy(outcome) > 0.8) == ([None, 1], True)
    (warning,) = outcome.warnings
    assert warning.startswith("Head 0 (learning rate 1e+30) diverged in epoch 1: its outputs were not finite.")
    names = ("train_accuracy", "validation_accuracy", "train_loss", "validation_loss")
    assert [outcome.history[-1][name][0] for name in names] == [0.0, 0.0, None, None]
    message = r"Every head of the probe diverged by epoch 1 \(learning rates 1e\+30, 3e\+29\)"
    both = with_heads(HeadSettings(1e30, 0.01), HeadSettings(3e29, 0.01))
    fails(LaryError, message, train, "attentive", preset=both)


def started(*heads: HeadSettings, at_once: int | None = None) -> ClassifierTraining:
    """A training before its first epoch."""
    torch.manual_seed(0)
    session = Session(protocol="corrected", seed=42)
    training = ClassifierTraining(classifier_inputs(), with_heads(*heads).classifier, session)
    training.build()
    training.at_once = at_once or training.at_once
    return training


def test_a_head_that_diverges_later_is_left_out_of_the_mean() -> None:
    """The only good head is spoilt after the second epoch; the best one before stays the best on validation."""
    training = started(HeadSettings(1e-6, 0.01), HeadSettings(1e-2, 0.01))
    training.history += [training.run_epoch(epoch) for epoch in (1, 2)]
    assert training.picks["best_on_validation"]["head"] == 1
    with torch.no_grad():
        training.networks[1].classifier.linear.bias.fill_(math.nan)
    training.history.append(training.run_epoch(10))
    assert (training.picks["held_out"]["heads"], training.picks["best_on_validation"]["head"]) == ([0], 1)
    (warning,) = training.outcome().warnings
    assert "Head 1 (learning rate 0.01) diverged in epoch 10" in warning


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_parts_of_a_batch_add_up_to_its_gradient(at_once: int) -> None:
    parts, whole = (started(at_once=size).run_epoch(1)["validation_loss"] for size in (at_once, 16))
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_bfloat16_is_trained_where_asked_for() -> None:
    plain, half = (train("attentive", epochs=3, precision=precision) for precision in ("fp32", "bf16"))
    assert (plain.settings["precision"], half.settings["precision"]) == ("fp32", "bf16")
    again, other = (numbers(train("attentive", epochs=3, seed=seed)) for seed in (42, 43))
    assert_same(numbers(plain), again)
    assert again["history"] != other["history"]
    first, second = (np.array(outcome.history[-1]["validation_loss"]) for outcome in (plain, half))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, second, rtol=0.2)


@pytest.mark.parametrize(("has", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)])
def test_the_published_precision_where_the_device_has_it(has: Any, expected: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)

    def chosen(preset: bool, device: str, asked: str | None = None) -> str:
        return chosen_precision(preset, Session(protocol="paper", seed=0, device=device, precision=asked))

    assert (chosen(True, "cpu"), chosen(False, "cpu", "bf16")) == ("bf16" if expected else "fp32", "bf16")
    assert (chosen(False, "cpu"), chosen(True, "cpu", "fp32"), chosen(True, "mps")) == ("fp32",) * 3
    for version, fast in (((9, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, version=version: version)
        assert chosen(True, "cuda:1") == ("bf16" if fast else "fp32")


def test_classes_that_cannot_be_learned_are_named_and_the_majority_is_a_control() -> None:
    inputs = classifier_inputs()
    labels = np.where(inputs.train_targets == 2, 0, inputs.train_targets)
    outcome = train("attentive", replace(inputs, train_targets=labels), epochs=1)
    (warning,) = outcome.warnings
    assert warning.startswith("1 of 4 classes ")
    assert "80 training samples (pull): extract more of the training split" in warning
    np.testing.assert_array_equal(outcome.train_counts, [40, 20, 0, 20])
    np.testing.assert_array_equal(outcome.controls["majority_class"], np.zeros(36))
    many = replace(inputs, classes=tuple("abcdefghijkl"), labels=np.arange(36) % 12)
    assert "training samples (e, f, g, h, i, ...)" in train("attentive", many, epochs=1).warnings[0]


def test_wrong_inputs_are_refused_before_training() -> None:
    inputs = classifier_inputs()
    narrow, empty = (InMemory(np.zeros(shape, np.float32)) for shape in ((36, 3, 4, 5), (0, 3, 4, 6)))
    wrong = [
        (replace(inputs, train_targets=inputs.train_targets[:-1]), r"latents and targets \[\(80, 79\), \(36, 36\)\]"),
        (replace(inputs, validation=narrow), r"shapes \[\(3, 4, 6\), \(3, 4, 5\)\]"),
        (replace(inputs, validation=empty, labels=inputs.labels[:0]), "a sample in every split"),
        (replace(inputs, train_targets=np.ones(80, np.int64)), "All 80 training samples are of the class 'open'"),
    ]
    for shape in ((3, 2, 2, 6), (), (0, 6)):
        given = changed(inputs, lambda tokens, shape=shape: np.zeros((len(tokens), *shape), np.float32))
        wrong.append((given, r"Latents of shape .* can't be probed: store tokens of shape \(P, N, D\)"))
    for given, message in wrong:
        fails(UsageError, message, train, "attentive", given)
