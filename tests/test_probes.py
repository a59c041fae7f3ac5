"""The probes end to end on made-up latents, and their parts against scikit-learn and by invariants."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from lary.probes import fit, memory, metrics
from lary.probes.attentive import AttentiveProbe
from lary.probes.chunks import EvaluatedSplit, RegressorInputs
from lary.probes.classify import ClassifierInputs, train_classifier
from lary.probes.heads import Head
from lary.probes.mlp import ActionExpertMLP
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SampleColumns
from lary.probes.presets import PRESETS, ClassifierSettings, HeadSettings, ProbePreset, RegressorSettings
from lary.probes.regress import train_regressor
from lary.probes.sampler import balanced_indices, class_weights, hold_out, validation_indices
from lary.probes.schedule import warmup_factor
from lary.types import BenchmarkProtocol, LaryError, UsageError

CLASSES = ("close", "open", "pull", "push")
TINY = ProbePreset(
    name="tiny",
    description="for tests",
    classifier=ClassifierSettings(
        model_dim=16, num_heads=2, depth=1, epochs=10, batch_size=16, standardise=True,
        heads=(HeadSettings(1e-2, 0.01), HeadSettings(5e-3, 0.1)),
    ),
    regressor=RegressorSettings(hidden_dim=32, num_blocks=1, epochs=20, batch_size=16, lr=1e-2, weight_decay=1e-4),
)  # fmt: skip


@dataclass
class SpySource:
    """Latents in memory that remember which rows were read."""

    tokens: np.ndarray
    reads: list[np.ndarray] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens.shape[1:]

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        self.reads.append(np.asarray(rows))
        return self.tokens[np.asarray(rows)]


def columns(count: int) -> SampleColumns:
    names = tuple(f"v{index}" for index in range(count))
    return SampleColumns(names, tuple((f"{name}.mp4",) for name in names), names, ("arm",) * count)


def clips(count: int, signal: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n, 3, 4, 6): noise, and in one token of each step a pattern of the class and the step."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((len(CLASSES), 3, 6))
    labels = np.arange(count) % len(CLASSES)
    tokens = rng.standard_normal((count, 3, 4, 6))
    tokens[:, :, 0] += signal * patterns[labels]
    return tokens.astype(np.float32), labels


def classifier_inputs(signal: float = 4.0, train: int = 80, validation: int = 36) -> ClassifierInputs:
    tokens, labels = clips(train, signal, 0)
    shown, truth = clips(validation, signal, 1)
    groups = tuple(f"video{index // 2}" for index in range(train))
    return ClassifierInputs(SpySource(tokens), labels, groups, SpySource(shown), truth, columns(validation), CLASSES)


def classify(inputs: ClassifierInputs, preset: ProbePreset = TINY, **options: Any) -> ClassificationOutcome:
    given = {"protocol": "corrected", "device": "cpu", "seed": 0, "folder": None, "progress": None, **options}
    return train_classifier(inputs, preset, **given)


def regressor_inputs(noise: float = 0.05, train: int = 120, count: int = 40) -> RegressorInputs:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((24, 6)) / math.sqrt(24)
    tokens = rng.standard_normal((train + 2 * count, 2, 3, 4)).astype(np.float32)
    chunks = tokens.reshape(len(tokens), -1) @ mixing + noise * rng.standard_normal((len(tokens), 6))
    chunks = chunks.reshape(-1, 2, 3).astype(np.float32)
    splits = {}
    for number, role in enumerate(("seen", "unseen")):
        rows = slice(train + number * count, train + (number + 1) * count)
        scale = np.ones((count, 3), np.float32)
        splits[role] = EvaluatedSplit(SpySource(tokens[rows]), chunks[rows], columns(count), 0 * scale, scale)
    groups = tuple(f"episode{index // 3}" for index in range(train))
    parts = {"position": (0, 1), "gripper": (2,)}
    return RegressorInputs(SpySource(tokens[:train]), chunks[:train], groups, splits, ("x", "y", "gripper"), parts)


def regress(inputs: RegressorInputs, preset: ProbePreset = TINY, **options: Any) -> RegressionOutcome:
    given = {"protocol": "corrected", "device": "cpu", "seed": 42, "folder": None, "progress": None, **options}
    return train_regressor(inputs, preset, **given)


def shares(outcome: ClassificationOutcome) -> dict[str, float]:
    return {
        name: metrics.accuracy(outcome.labels, chosen.logits.argmax(axis=1))
        for name, chosen in outcome.selections.items()
    }


def test_separable_latents_are_read() -> None:
    outcome = classify(classifier_inputs())
    assert list(outcome.selections) == ["held_out", "best_on_validation"]
    assert min(shares(outcome).values()) > 0.9
    assert outcome.settings["preset"] == "tiny"
    assert outcome.warnings == ()
    assert len(outcome.history) == 10


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_latents_does_not_matter_where_a_preset_standardises(scale: float) -> None:
    inputs = classifier_inputs()
    scaled = replace(
        inputs,
        train=SpySource(inputs.train.tokens * np.float32(scale)),  # type: ignore[attr-defined]
        validation=SpySource(inputs.validation.tokens * np.float32(scale)),  # type: ignore[attr-defined]
    )
    assert shares(classify(scaled))["held_out"] > 0.9


def test_noise_stays_near_chance() -> None:
    outcome = classify(classifier_inputs(signal=0.0, validation=200))
    assert 0.13 < shares(outcome)["held_out"] < 0.37


def test_paper_protocol_trains_on_all_rows_and_reports_the_last_epoch(tmp_path: Path) -> None:
    outcome = classify(classifier_inputs(), protocol="paper", folder=tmp_path, epochs=2)
    assert list(outcome.selections) == ["best_on_validation"]
    assert outcome.settings["fit_samples"] == 80
    assert outcome.settings["held_out_samples"] == 0
    assert outcome.selections["best_on_validation"].epoch == 2
    rows = list(csv.DictReader((tmp_path / "log_r0.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "train_acc", "val_acc"]
    assert rows[1]["val_acc"] == f"{100 * shares(outcome)['best_on_validation']:.5f}"


def test_classifier_checkpoint_gives_the_reported_logits(tmp_path: Path) -> None:
    inputs = classifier_inputs()
    outcome = classify(inputs, folder=tmp_path)
    saved = torch.load(tmp_path / "latest.pt", weights_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "log_r0.csv"]
    assert len(saved["classifiers"]) == 2
    chosen = outcome.selections["held_out"]
    assert (saved["selected"]["head"], saved["selected"]["epoch"]) == (chosen.head, chosen.epoch)
    probe = AttentiveProbe(6, 4, 16, 2, 1).eval()
    probe.load_state_dict(saved["selected"]["weights"], strict=True)
    with torch.no_grad():
        tokens = torch.from_numpy(inputs.validation.read(np.arange(36)))
        logits = probe((tokens - saved["scaling"]["mean"]) / saved["scaling"]["std"]).numpy()
    np.testing.assert_allclose(logits, chosen.logits, atol=1e-5)


def test_same_seed_same_numbers() -> None:
    first, again, other = (classify(classifier_inputs(), epochs=2, seed=seed) for seed in (3, 3, 4))
    assert first.history == again.history
    assert first.history != other.history
    for name, chosen in first.selections.items():
        np.testing.assert_array_equal(chosen.logits, again.selections[name].logits)


def test_held_out_rows_have_no_part_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows read for training are never held-out ones, and other values in those change no weight."""
    monkeypatch.setattr(fit, "MEMORY_SHARE", 0.0)
    inputs = classifier_inputs()
    fit_rows, held_rows = hold_out(inputs.train_groups, inputs.train_labels, seed=0)
    assert len(held_rows) >= 4
    outcome = classify(inputs, folder=tmp_path / "a", epochs=2)
    assert outcome.settings["held_out_samples"] == len(held_rows)
    for rows in inputs.train.reads:  # type: ignore[attr-defined]
        assert set(rows.tolist()) <= set(fit_rows.tolist()) or set(rows.tolist()) <= set(held_rows.tolist())
    changed = classifier_inputs()
    changed.train.tokens[held_rows] = 7.0  # type: ignore[attr-defined]
    classify(changed, folder=tmp_path / "b", epochs=2)
    first, second = (torch.load(tmp_path / name / "latest.pt", weights_only=True)["classifiers"] for name in "ab")
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_every_sample_counts_with_a_partial_last_batch() -> None:
    class Count:
        total = 0

        def advance(self, count: int = 1) -> None:
            self.total += count

    count = Count()
    inputs = classifier_inputs(train=83, validation=35)
    outcome = classify(inputs, epochs=2, batch_size=16, progress=count)
    assert outcome.selections["held_out"].logits.shape == (35, 4)
    assert count.total == 2 * 83
    chosen = outcome.selections["best_on_validation"]
    right = int((chosen.logits.argmax(axis=1) == inputs.labels).sum())
    assert outcome.history[-1]["validation_accuracy"][chosen.head] == pytest.approx(right / 35)


def test_a_head_that_diverges_is_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    heads = (HeadSettings(1e30, 0.01), HeadSettings(1e-2, 0.01))
    outcome = classify(classifier_inputs(), replace(TINY, classifier=replace(TINY.classifier, heads=heads)))
    assert [chosen.head for chosen in outcome.selections.values()] == [1, 1]
    assert shares(outcome)["held_out"] > 0.9
    assert len(outcome.warnings) == 1
    assert outcome.warnings[0].startswith("Head 0 (learning rate 1e+30) was dropped in epoch 1, update 2: ")
    assert caplog.messages == [outcome.warnings[0]]
    last = outcome.history[-1]
    assert (last["train_accuracy"][0], last["validation_accuracy"][0]) == (0.0, 0.0)
    assert (last["train_loss"][0], last["validation_loss"][0]) == (None, None)


def test_all_heads_diverging_is_an_error() -> None:
    heads = (HeadSettings(1e30, 0.01), HeadSettings(3e29, 0.01))
    with pytest.raises(
        LaryError, match=r"Every head of the probe diverged by epoch 1 \(learning rates 1e\+30, 3e\+29\)"
    ):
        classify(classifier_inputs(), replace(TINY, classifier=replace(TINY.classifier, heads=heads)))


def test_a_head_that_diverges_later_keeps_its_earlier_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only good head is spoilt in the third epoch; its second one is still reported."""
    plain = Head.update

    def spoilt(head: Head, tokens: torch.Tensor, labels: torch.Tensor, count: int, plan: Any) -> int:
        if head.number == 1 and plan.epoch == 3:
            with torch.no_grad():
                head.network.classifier.linear.bias.fill_(math.nan)
        return plain(head, tokens, labels, count, plan)

    heads = (HeadSettings(1e-6, 0.01), HeadSettings(1e-2, 0.01))
    preset = replace(TINY, classifier=replace(TINY.classifier, heads=heads, epochs=3))
    monkeypatch.setattr(Head, "update", spoilt)
    outcome = classify(classifier_inputs(), preset)
    assert (outcome.selections["held_out"].head, outcome.selections["held_out"].epoch) == (1, 2)
    assert outcome.selections["best_on_validation"].head == 0
    assert "dropped in epoch 3, update 1" in outcome.warnings[0]


def test_latents_that_are_not_finite_are_refused_with_their_row() -> None:
    inputs = classifier_inputs()
    inputs.validation.tokens[5, 0, 0, 0] = np.nan  # type: ignore[attr-defined]
    with pytest.raises(LaryError, match="row 5 "):
        classify(inputs, epochs=1)


def test_classes_that_cannot_be_learned_are_named() -> None:
    inputs = classifier_inputs()
    few = replace(inputs, train_labels=np.where(inputs.train_labels == 2, 0, inputs.train_labels))
    assert classify(few, epochs=1).warnings == (
        "1 of 4 classes stand in the validation split and not among the 80 training samples (pull): extract more of "
        "the training split.",
    )


def test_majority_control_and_counts() -> None:
    inputs = classifier_inputs()
    labels = np.where(np.arange(80) < 50, 2, inputs.train_labels)
    outcome = classify(replace(inputs, train_labels=labels), epochs=1)
    np.testing.assert_array_equal(outcome.train_counts, np.bincount(labels, minlength=4))
    np.testing.assert_array_equal(outcome.controls["majority_class"], np.full(36, 2))


def test_wrong_inputs_are_told() -> None:
    inputs = classifier_inputs()
    with pytest.raises(UsageError, match="none can be held out"):
        classify(replace(inputs, train_groups=("one video",) * 80))
    with pytest.raises(UsageError, match="differ in number"):
        classify(replace(inputs, train_labels=inputs.train_labels[:-1]))
    with pytest.raises(UsageError, match=r"\(3, 4, 6\), validation latents \(3, 4, 5\)"):
        classify(replace(inputs, validation=SpySource(np.zeros((36, 3, 4, 5), np.float32))))
    with pytest.raises(UsageError, match="All 80 training samples are of the class 'open'"):
        classify(replace(inputs, train_labels=np.ones(80, np.int64)))
    for wrong in (-1, 4):
        labels = np.where(np.arange(36) == 7, wrong, inputs.labels)
        with pytest.raises(UsageError, match=f"Label {wrong} of the validation split lies outside the 4 classes"):
            classify(replace(inputs, labels=labels))
    actions = regressor_inputs()
    with pytest.raises(UsageError, match="none can be held out"):
        regress(replace(actions, train_groups=("one episode",) * 120))
    with pytest.raises(UsageError, match="'seen'"):
        regress(replace(actions, evaluated={"unseen": actions.evaluated["unseen"]}))


def test_regression_reads_a_linear_map(tmp_path: Path) -> None:
    inputs = regressor_inputs()
    outcome = regress(inputs, folder=tmp_path)
    for role in ("seen", "unseen"):
        split = outcome.splits[role]
        errors = {name: metrics.mse(chosen.values, split.targets) for name, chosen in split.selections.items()}
        control = metrics.mse(split.controls["mean_action"], split.targets)
        assert list(errors) == ["held_out", "best_on_validation"]
        assert max(errors.values()) < 0.5 * control
        assert split.selections["held_out"].values.shape == (40, 2, 3)
        for name, chosen in split.selections.items():
            row = outcome.history[chosen.epoch - 1]
            assert row[f"{role}_mse"] == errors[name]
            assert split.loss[name] == row[f"{role}_loss"] == metrics.huber_loss(chosen.values, split.targets, 16)
    best = min(outcome.history, key=lambda row: row["seen_mse"])["epoch"]
    assert outcome.splits["seen"].selections["best_on_validation"].epoch == best
    held = min(outcome.history, key=lambda row: row["held_out_mse"])["epoch"]
    assert outcome.splits["unseen"].selections["held_out"].epoch == held
    network = ActionExpertMLP(24, 3, 2, hidden_dim=32, num_blocks=1)
    network.load_state_dict(torch.load(tmp_path / "best_model.pth", weights_only=True), strict=True)
    with torch.no_grad():
        values = network(torch.from_numpy(inputs.evaluated["seen"].latents.read(np.arange(40)))).numpy()
    np.testing.assert_allclose(
        values.reshape(40, 2, 3), outcome.splits["seen"].selections["held_out"].values, atol=1e-5
    )


def test_regression_is_deterministic_and_holds_rows_out(tmp_path: Path) -> None:
    inputs = regressor_inputs()
    _, held_rows = hold_out(inputs.train_groups, seed=42)
    changed = regressor_inputs()
    changed.train_targets[held_rows] = 5.0
    first, again, other = (
        regress(given, epochs=3, folder=tmp_path / name)
        for name, given in (("a", inputs), ("b", inputs), ("c", changed))
    )
    assert first.history == again.history
    names = ("train_loss", "seen_mse")
    assert [[row[name] for name in names] for row in first.history] == [
        [row[name] for name in names] for row in other.history
    ]
    assert first.history[0]["held_out_mse"] != other.history[0]["held_out_mse"]


@pytest.mark.parametrize(
    ("protocol", "expected"), [("paper", ["best_on_validation"]), ("corrected", ["held_out", "best_on_validation"])]
)
def test_regression_controls_and_selections(protocol: BenchmarkProtocol, expected: list[str]) -> None:
    inputs = regressor_inputs()
    outcome = regress(inputs, protocol=protocol, epochs=1)
    assert list(outcome.splits["seen"].selections) == expected
    control = outcome.splits["unseen"].controls["mean_action"]
    np.testing.assert_allclose(control, np.broadcast_to(inputs.train_targets.mean(axis=0), (40, 2, 3)), atol=1e-6)
    assert outcome.settings["fit_samples"] + outcome.settings["held_out_samples"] == 120


def test_regression_that_diverges_is_an_error() -> None:
    with pytest.raises(LaryError, match=r"diverged in epoch 1, update \d+ \(learning rate .* of 1e\+30\)"):
        regress(regressor_inputs(), replace(TINY, regressor=replace(TINY.regressor, lr=1e30, epochs=4)))


def test_warmup_rises_over_the_first_tenth() -> None:
    factors = [warmup_factor(update, 50, 0.1) for update in range(50)]
    np.testing.assert_allclose(factors[:6], [0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(factors[5:]) == {1.0}


def test_temporal_embedding_only_where_there_are_steps_and_stretched_where_there_are_many() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(5, 3, 8, 2, 1, max_temporal_len=4)
    steps = probe.classifier._steps(9)
    assert steps.shape == (1, 9, 1, 8)
    torch.testing.assert_close(steps[:, 0], probe.classifier.temporal_embed[:, 0])
    tokens = torch.randn(2, 4, 6, 5)
    assert not torch.allclose(probe(tokens), probe(tokens.flip(1)), atol=1e-6)
    torch.testing.assert_close(probe(tokens.flatten(1, 2)), probe(tokens.flip(1).flatten(1, 2)))


def test_initialisation_scales_residual_branches() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(64, 3, 96, 4, 4).requires_grad_(False)
    pooler = probe.classifier.pooler
    assert float(pooler.cross_attention_block.xattn.kv.weight.std()) == pytest.approx(0.02, rel=0.05)
    for index in range(3):
        weight = pooler.get_parameter(f"blocks.{index}.mlp.fc2.weight")
        assert float(weight.std()) == pytest.approx(0.02 / math.sqrt(2 * (index + 1)), rel=0.05)
    last = pooler.cross_attention_block.mlp.fc2.weight
    assert float(last.std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert float(probe.classifier.linear.weight.abs().max()) <= 1 / math.sqrt(96)
    assert not pooler.cross_attention_block.xattn.kv.bias.any()


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_parts_of_a_batch_add_up_to_its_gradient(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHUNK_TOKENS", 12 * at_once)
    outcome = classify(classifier_inputs(), epochs=1)
    monkeypatch.undo()
    whole = classify(classifier_inputs(), epochs=1)
    np.testing.assert_allclose(outcome.history[0]["validation_loss"], whole.history[0]["validation_loss"], rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_are_whole(name: str) -> None:
    preset = PRESETS.get(name)
    assert preset.classifier.model_dim % preset.classifier.num_heads == 0
    assert len(preset.classifier.heads) == 5


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
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0
    )
    ours = metrics.class_statistics(table)
    np.testing.assert_allclose(ours.precision, precision, atol=1e-7)
    np.testing.assert_allclose(ours.recall, recall, atol=1e-7)
    np.testing.assert_allclose(ours.f1, f1, atol=1e-7)
    np.testing.assert_array_equal(ours.support, support)
    assert metrics.macro_f1(table) == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    recalls = recall[support > 0]
    assert metrics.mean_class_accuracy(table) == pytest.approx(recalls.mean())
    assert metrics.accuracy(labels, predicted) == pytest.approx(np.trace(table) / len(labels))


def test_mean_class_accuracy_is_balanced_accuracy() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 2])
    table = metrics.confusion_matrix(labels, predicted, 3)
    assert metrics.mean_class_accuracy(table) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_top_k_counts_ranks() -> None:
    logits = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [1, 1, 1, 1]], np.float32)
    labels = np.array([1, 0, 2])
    assert [metrics.top_k_accuracy(labels, logits, k) for k in (1, 2, 3, 4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert metrics.top_k_accuracy(logits.argmax(axis=1), logits, 1) == 1.0


def test_action_errors_agree_with_each_other() -> None:
    rng = np.random.default_rng(0)
    predicted, targets = rng.standard_normal((2, 7, 5, 3)).astype(np.float32)
    total = metrics.mse(predicted, targets)
    assert metrics.mse_per_dim(predicted, targets).mean() == pytest.approx(total)
    assert metrics.mse_per_step(predicted, targets).mean() == pytest.approx(total)
    assert metrics.mse_per_group(predicted, targets, {"all": (0, 1, 2)})["all"] == pytest.approx(total)
    uneven = [
        torch.nn.functional.huber_loss(*map(torch.from_numpy, (predicted[a:b], targets[a:b])))
        for a, b in ((0, 5), (5, 7))
    ]
    assert metrics.huber_loss(predicted, targets, 5) == pytest.approx(float(sum(uneven)) / 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.integers(1, 4), st.integers(0, 5))
def test_balanced_draws(labels: list[int], processes: int, epoch: int) -> None:
    weights = class_weights(np.array(labels))
    assert weights.sum() == pytest.approx(1.0)
    sums = [weights[np.array(labels) == label].sum() for label in set(labels)]
    assert sums == pytest.approx([1 / len(sums)] * len(sums))
    parts = [balanced_indices(weights, epoch, 0, processes, rank) for rank in range(processes)]
    assert {len(part) for part in parts} == {-(-len(labels) // processes)}
    shown = np.concatenate([validation_indices(len(labels), processes, rank) for rank in range(processes)])
    assert set(shown.tolist()) == set(range(len(labels)))


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
    assert len(set(hold_out(groups, labels, seed=1)[1].tolist()) ^ set(held.tolist())) > 0
