"""Results: the record and its file, intervals, metrics, published files and figures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lary.cli import inspect as cli_inspect
from lary.probes import metrics
from lary.probes.outcome import ActionPredictions, ClassPredictions
from lary.results import figures, published, scores, statistics
from lary.results.measure import reading
from lary.results.record import (
    FILE_NAME,
    SCHEMA_VERSION,
    EvalResult,
    Metric,
    json_schema,
    read_result,
    schema_text,
    write_result,
)
from lary.results.report import find_results, write_report
from lary.results.summarise import classification_result, example_rows, headline, regression_result
from lary.types import LaryError
from tests import fake_results as fake


def ratio_interval(values: np.ndarray, clusters: np.ndarray, seed: int = 0) -> statistics.Interval:
    sums = statistics.cluster_sums(np.stack([values, np.ones_like(values)], axis=1), clusters)
    return statistics.bootstrap(sums, scores.ratio, seed=seed)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_interval_agrees_with_scipy_for_independent_samples() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    ours = ratio_interval(values, np.arange(400))
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=2000, rng=np.random.default_rng(1), method="percentile"
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low is not None
    assert ours.high is not None
    assert ours.low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_dependent_samples_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(40), 25)
    values = rng.normal(size=40)[episodes] + 0.1 * rng.normal(size=1000)
    clustered, frames = ratio_interval(values, episodes), ratio_interval(values, np.arange(1000))
    assert clustered.low is not None
    assert clustered.high is not None
    assert frames.low is not None
    assert frames.high is not None
    assert clustered.high[0] - clustered.low[0] > 4 * (frames.high[0] - frames.low[0])


@pytest.mark.parametrize("clusters", [8, 30])
def test_interval_covers_the_truth_about_95_times_of_100(clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    covered, runs = 0, 300
    for seed in range(runs):
        sizes = rng.integers(3, 12, clusters)
        hits = rng.binomial(sizes, rng.beta(3, 2, clusters))
        sums = np.stack([hits, sizes], axis=1).astype(np.float64)
        found = statistics.bootstrap(sums, scores.ratio, seed=seed, resamples=600)
        assert found.low is not None
        assert found.high is not None
        covered += int(found.low[0] <= 0.6 <= found.high[0])
    assert 0.91 <= covered / runs <= 0.985


def test_few_clusters_get_no_interval_and_the_same_seed_the_same_one() -> None:
    values = np.arange(20, dtype=np.float64)
    few = ratio_interval(values, np.arange(20) % (statistics.MIN_CLUSTERS - 1))
    assert few.low is None
    assert few.high is None
    assert few.value[0] == values.mean()
    first, second, other = (ratio_interval(values, np.arange(20), seed) for seed in (0, 0, 1))
    assert first.low is not None
    assert second.low is not None
    assert other.low is not None
    assert first.low[0] == second.low[0] != other.low[0]


def test_many_clusters_are_bundled_without_changing_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=4000)
    groups = [f"video {index:05d}" for index in range(4000)]
    wide = ratio_interval(values, statistics.cluster_index(groups))
    assert statistics.cluster_index(groups).max() < statistics.MAX_CLUSTERS
    monkeypatch.setattr(statistics, "MAX_CLUSTERS", 10_000)
    full = ratio_interval(values, statistics.cluster_index(groups))
    assert wide.low is not None
    assert wide.high is not None
    assert full.low is not None
    assert full.high is not None
    assert wide.high[0] - wide.low[0] == pytest.approx(full.high[0] - full.low[0], rel=0.1)


def test_fractions_without_spread_have_an_exact_bound() -> None:
    counts = np.ones((20, 3))
    counts[4:, 2] = 0  # four clusters hold the third class: too few
    hits = counts * np.array([1.0, 0.0, 1.0])
    found = statistics.fraction_interval(hits, counts)
    assert found.low is not None
    assert found.high is not None
    exact = scipy_stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert (found.low[0], found.high[0]) == (pytest.approx(exact.low), 1.0)
    assert (found.low[1], found.high[1]) == (0.0, pytest.approx(1 - exact.low))
    assert np.isnan(found.low[2])
    assert np.isnan(found.high[2])


def test_macro_scores_are_those_of_the_probes_metrics() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 60), rng.integers(0, 5, 60)  # class 4 is predicted only, class 5 never
    matrix = metrics.confusion_matrix(labels, predicted, 6)
    sums = scores.class_sums(labels, predicted, 6, np.arange(60) % 7)
    recall, f1 = scores.macro_scores(sums.sum(axis=0, keepdims=True))[0]
    assert recall == pytest.approx(metrics.mean_class_accuracy(matrix))
    assert f1 == pytest.approx(metrics.macro_f1(matrix))


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
    assert ours.low is not None
    assert plain.low is not None
    np.testing.assert_allclose(plain.low, ours.low, rtol=1e-6)


def test_standard_error_is_that_of_the_jackknife() -> None:
    sums = totals_of("error_scores")
    found = statistics.spread_of([(1.0, sums)], scores.error_scores)
    without = scores.error_scores(sums.sum(axis=0) - sums)
    jackknife = (len(sums) - 1) / len(sums) * ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(found.variance, jackknife, rtol=0.15)


def test_intervals_stay_in_the_range_of_the_metric() -> None:
    rng = np.random.default_rng(0)
    hits = np.ones(12)
    hits[:2] = 0.2
    accuracy = statistics.bootstrap(np.stack([hits, np.ones(12)], axis=1), scores.fraction)
    runs = np.stack([np.stack([rng.random(12) + add, np.ones(12)], axis=1) for add in (0.0, 0.9)])
    error = statistics.bootstrap(runs, scores.magnitude)
    assert accuracy.high is not None
    assert error.low is not None
    assert accuracy.high[0] <= 1
    assert error.low[0] == 0, "two seeds say little"


def test_recall_of_a_class_with_a_dozen_samples_is_that_of_independent_trials() -> None:
    hits, counts = np.array([[1.0]] * 3 + [[0.0]] * 9), np.ones((12, 1))
    found = statistics.fraction_interval(hits, counts)
    exact = scipy_stats.binomtest(3, 12).proportion_ci(0.95, method="exact")
    assert found.low is not None
    assert found.high is not None
    assert 0.5 * exact.low < found.low[0] < exact.low
    assert exact.high < found.high[0] < 1.2 * exact.high, "wider by what Student's quantile is above the normal one"


def test_reading_of_a_difference_goes_by_the_corrected_p() -> None:
    gain = Metric(value=-0.1, low=-0.2, high=-0.01, higher_is_better=False)
    assert [reading(gain), reading(gain, 0.01), reading(gain, 0.2)] == ["better", "better", "even"]
    assert reading(gain.model_copy(update={"higher_is_better": True})) == "worse"
    assert reading(gain.model_copy(update={"high": 0.01})) == "even"
    assert reading(Metric(value=1.0)) == ""


# --- records ----------------------------------------------------------------------------------------------------------


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
    assert top5 == pytest.approx(metrics.top_k_accuracy(outcome.labels, outcome.selections["held_out"].logits, 5))
    control = result.controls["majority_class"]
    assert control.gain.value == pytest.approx(result.score.value - control.metrics["top1"].value)
    assert control.gain.low is not None
    assert control.gain.low > 0
    assert np.array(result.confusion).sum() == len(outcome.labels)
    assert sum(row.true for row in result.classes) == len(outcome.labels)
    assert result.history[0]["val_acc"] == [0.1, None], "JSON has no NaN"


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


def test_paper_protocol_has_no_held_out_selection() -> None:
    outcome = fake.class_outcome(1.0)
    only = replace(outcome, selections={"best_on_validation": outcome.selections["best_on_validation"]})
    assert headline(only.selections) == "best_on_validation"
    result = classification_result(only, fake.facts("pixels", "verbs", protocol="paper"))
    assert list(result.selections) == ["best_on_validation"] == [result.headline]


def test_examples_stand_at_fixed_ranks_of_the_error() -> None:
    split = fake.split_outcome(0.5)
    errors = ((split.selections["held_out"].values - split.targets) ** 2).mean(axis=(1, 2))
    for row, quantile, error in example_rows(split, "held_out"):
        assert error == pytest.approx(errors[row])
        assert np.mean(errors < error) == pytest.approx(quantile, abs=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(value: float) -> None:
    classes, actions = fake.class_outcome(1.0), fake.action_outcome(0.3)
    broken = np.full_like(classes.selections["held_out"].logits, value)
    with pytest.raises(LaryError, match="diverged"):
        classification_result(
            replace(classes, selections={"held_out": ClassPredictions(1, 0, broken)}), fake.facts("pixels", "verbs")
        )
    seen = replace(
        actions.splits["seen"],
        selections={"held_out": ActionPredictions(1, np.full_like(actions.splits["seen"].targets, value))},
    )
    with pytest.raises(LaryError, match="diverged"):
        regression_result(replace(actions, splits={"seen": seen}), fake.facts("pixels", "arm"))


def test_files_that_are_no_results_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = fake.write_classification(tmp_path, "pixels", 1.0)
    data = json.loads(path.read_text())
    wrong = {
        "schema version": {**data, "schema_version": SCHEMA_VERSION + 1},
        "no schema_version": {"top1": 3},
        "surprise": {**data, "surprise": 1},
        "seed": {**data, "seed": "many"},
    }
    for message, content in wrong.items():
        path.write_text(json.dumps(content))
        with pytest.raises(LaryError, match=message):
            read_result(path)
    path.write_text("{")
    with pytest.raises(LaryError, match="can't be read"):
        read_result(path)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_results_that_the_first_schema_wrote_are_brought_to_this_one(tmp_path: Path, task: str) -> None:
    import jsonschema

    file = Path(__file__).parent / "fixtures" / "results" / f"version_1_{task}.json"
    before = json.loads(file.read_text())
    assert before["schema_version"] == 1
    result = read_result(file)
    after = result.model_dump(mode="json")
    assert (result.schema_version, result.seeds, result.task) == (SCHEMA_VERSION, (before["seed"],), task)
    assert after["files"] == dict.fromkeys(before.pop("files"), "")
    kept_in(before, {**after, "schema_version": 1})
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(after)
    write_result(tmp_path / FILE_NAME, result)
    assert read_result(tmp_path / FILE_NAME) == result
    assert find_results(tmp_path)[1] == []
    assert result.model.name in write_report(tmp_path).read_text()


def kept_in(before: Any, after: Any, place: str = "") -> None:
    """Whether all that stood in a result still stands there."""
    if isinstance(before, dict):
        for name, value in before.items():
            kept_in(value, after[name], f"{place}.{name}")
    elif isinstance(before, list):
        assert len(before) == len(after), place
        for index, value in enumerate(before):
            kept_in(value, after[index], f"{place}.{index}")
    else:
        assert before == after, place


def test_relative_motion_before_there_were_frames_was_that_of_the_world(tmp_path: Path) -> None:
    path = fake.write_regression(tmp_path, "pixels", 0.4, action_mode="relative")
    data = json.loads(path.read_text())
    assert data.pop("relative_frame") is None
    path.write_text(json.dumps(data))
    assert read_result(path).relative_frame == "world"


def test_every_field_of_the_schema_has_a_sentence() -> None:
    schema = json_schema()
    assert next(iter(EvalResult.model_fields)) == "schema_version"
    for name, part in {"EvalResult": schema, **schema["$defs"]}.items():
        assert part["additionalProperties"] is False
        assert part["description"].endswith("."), name
        for field, content in part["properties"].items():
            assert content["description"].endswith("."), f"{name}.{field}"


def test_the_schema_in_the_documentation_is_this_one() -> None:
    kept = Path(__file__).parent.parent / "docs" / "result.schema.json"
    assert kept.read_text(encoding="utf-8") == schema_text(), "run: lary schema --out docs/result.schema.json"


def test_written_results_fit_the_exported_schema(tmp_path: Path) -> None:
    import jsonschema

    fake.write_runs(tmp_path)
    checker = jsonschema.Draft202012Validator(json.loads(schema_text()))
    checker.check_schema(checker.schema)
    files = sorted(tmp_path.rglob(FILE_NAME))
    assert len(files) == 6
    for file in files:
        checker.validate(json.loads(file.read_text()))
    data = json.loads(files[0].read_text())
    wrong = ({**data, "seed": "0"}, {**data, "surprise": 1}, {**data, "task": "cooking"}, {**data, "selections": None})
    for broken in wrong:
        assert not checker.is_valid(broken)


def test_schema_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_inspect.schema() == 0
    assert capsys.readouterr().out == schema_text()
    assert cli_inspect.schema(out=tmp_path / "schema.json") == 0
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == schema_text()


# --- published files and figures --------------------------------------------------------------------------------------


def test_classification_files(tmp_path: Path) -> None:
    outcome = fake.class_outcome(2.0)
    written = published.write_classification_files(tmp_path, outcome)
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    predicted = outcome.selections["held_out"].logits.argmax(axis=1)
    matrix = np.array(json.loads((tmp_path / "confusion_matrix.json").read_text())["matrix"])
    assert matrix[predicted[0], outcome.labels[0]] > 0
    assert matrix.sum() == len(predicted)
    table = json.loads((tmp_path / "classification_stats.json").read_text())
    assert table["pour"]["recall"] == pytest.approx(np.mean(predicted[outcome.labels == 4] == 4))
    first = (tmp_path / "case.txt").read_text().splitlines()[0].split("\t")
    assert first == [outcome.samples.media[0][-1], fake.VERBS[predicted[0]], fake.VERBS[outcome.labels[0]]]
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_regression_files(tmp_path: Path) -> None:
    outcome = fake.action_outcome(0.4)
    written = published.write_regression_files(tmp_path, outcome, fake.frames, fake.UNITS)
    assert all((tmp_path / name).is_file() for name in written)
    with (tmp_path / "best_result.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    names = ["loss", "mse", *(f"mse_{name}" for name in fake.DIMS), "mse_position", "mse_orientation"]
    expected = [f"val_{role}_{name}" for role in ("seen", "unseen") for name in names]
    assert list(row) == ["best_epoch", "train_loss", *expected]
    assert int(row["best_epoch"]) == 14
    assert float(row["train_loss"]) == pytest.approx(1 / 14)
    folder = tmp_path / "eval_vis" / "epoch_14"
    parts = ("src.png", "tgt.png", "action.png", "action.pdf")
    expected_files = {f"sample_{i}_{part}" for i in range(3) for part in parts} | {"action.pdf"}
    assert {path.name for path in folder.iterdir()} == expected_files
    assert (folder / "action.pdf").read_bytes().count(b"/Type /Page ") == 3


def test_no_unseen_columns_without_an_unseen_split() -> None:
    assert not any("unseen" in name for name in published.best_result(fake.action_outcome(0.4, unseen=False)))


def test_figures_have_the_same_bytes_twice() -> None:
    outcome = fake.action_outcome(0.4)
    regression = regression_result(outcome, fake.facts("pixels", "arm"))
    classes = classification_result(fake.class_outcome(2.0), fake.facts("pixels", "verbs")).classes
    chunk = figures.Chunk("one", regression.examples[0].predicted, regression.examples[0].true)
    for make in (
        lambda: figures.class_figure(classes),
        lambda: figures.dimension_figure(regression.dimensions),
        lambda: figures.trajectory_figure(chunk, fake.DIMS, fake.UNITS, "svg"),
        lambda: figures.confusion_figure(np.eye(3, dtype=int), ("a", "b", "c"), format="svg"),
    ):
        first = make()
        assert first == make()
        assert b"<svg" in first
        assert b"dc:date" not in first
