"""Comparisons of finished runs: paired by sample, with seeds, refused where scores mean different things."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lary
from lary.probes.outcome import ActionPredictions, SplitOutcome
from lary.results.compare import compare, load_results, load_samples
from lary.results.folder import publish, writing
from lary.results.published import PREDICTIONS, action_scores, class_scores, write_classification_files, write_scores
from lary.results.record import read_result, write_result
from lary.results.statistics import NO_SPREAD
from lary.results.summarise import classification_result, regression_result
from lary.runs.run import results_table
from lary.types import LaryError, UsageError
from tests import fake_results as fake
from tests.helpers import fails, printed


def write_actions(folder: Path, *gaps: float) -> None:
    """A regression whose prediction is wrong by `gap` everywhere, one gap per seed."""
    base = fake.action_outcome(0.3)

    def wrong(split: SplitOutcome, gap: float) -> SplitOutcome:
        return replace(split, selections={"held_out": ActionPredictions(1, split.targets + np.float32(gap))})

    outcomes = [replace(base, splits={role: wrong(split, gap) for role, split in base.splits.items()}) for gap in gaps]
    facts = fake.facts(f"model {folder.name}", "arm", action_mode="absolute", seeds=tuple(range(len(gaps))))
    write_result(folder / "result.json", regression_result(outcomes[0], facts, outcomes[1:]))
    write_scores(folder, action_scores(outcomes), range(len(gaps)))


def test_the_difference_of_runs_is_paired(tmp_path: Path) -> None:
    """Runs that are equally wrong everywhere differ by an exact number, whatever the samples."""
    for name, gap in (("a", 0.5), ("b", 1.0), ("c", 0.5)):
        write_actions(tmp_path / name, gap, gap)
    (only,) = compare(tmp_path / "b", tmp_path / "a" / "result.json").differences
    assert (only.gain.value, only.gain.low, only.gain.high) == (pytest.approx(0.75, abs=1e-5), None, None)
    assert (only.p, only.gain.reading(only.p)) == (pytest.approx(2.0 ** (1 - only.groups)), "worse"), "all say the same"
    words = ("compare", *(tmp_path / name for name in "abc"), "--role", "unseen", "--json", tmp_path / "out.json")
    printed(*words, has=["Holm, 2 comparisons", "model b [corrected, demo]", "no interval: the"])
    assert lary.compare(tmp_path / "a", tmp_path / "b", role="unseen").role == "unseen"
    rows = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert [round(row["gain"]["value"], 4) for row in rows] == [-0.75, 0.0]
    assert rows[0]["p"] < rows[1]["p"] == 1.0


def test_a_single_training_is_told_as_such(tmp_path: Path) -> None:
    """Its seed is no part of the error: no p value, no reading, and no part in Holm's correction."""
    for name, *gaps in (("a", 0.5, 0.6), ("b", 1.0, 1.1), ("c", 1.0)):
        write_actions(tmp_path / name, *gaps)
    found = compare(*(tmp_path / name for name in "abc"))
    assert [(each.p is None, each.single) for each in found.differences] == [(False, False), (True, True)]
    first, second = found.text().splitlines()[1:]
    assert ("p 0." in first, "Holm" in found.text(), "alone" in first) == (True, False, False)
    assert "for these trainings alone, no p value with a single seed, 96 samples" in second
    assert all(each.single for each in compare(*(tmp_path / name for name in "cab")).differences)


def test_samples_are_paired_by_id_not_by_place(tmp_path: Path) -> None:
    outcome = fake.class_outcome(2.0)
    scores = class_scores([outcome, outcome])["seen"]
    ids, groups = scores.ids[:4:-1], scores.groups[:4:-1]  # backwards, and without the first five
    turned = replace(scores, ids=ids, groups=groups, scores=scores.scores[:, :4:-1])
    for name, own in (("a", scores), ("b", turned)):
        write_result(tmp_path / name / "result.json", classification_result(outcome, fake.facts(name, "verbs")))
        write_scores(tmp_path / name, {"seen": own}, [0, 1])
    only = compare(tmp_path / "a", tmp_path / "b").differences[0]
    assert (only.samples, only.gain.value, only.p, only.gain.reading(only.p)) == (len(scores.ids) - 5, 0, 1, "even")
    assert (only.gain.low, only.gain.high, only.gain.no_interval) == (None, None, NO_SPREAD)
    write_scores(tmp_path / "b", {"seen": replace(turned, ids=tuple(f"x{name}" for name in ids))}, [0])
    fails(LaryError, "share no sample", compare, tmp_path / "a", tmp_path / "b")


def test_kinds_of_probe_are_not_ranked(tmp_path: Path) -> None:
    for name, gap in (("a", 0.5), ("b", 1.0)):
        write_actions(tmp_path / name, gap)
    result = read_result(tmp_path / "b" / "result.json")
    write_result(tmp_path / "b" / "result.json", result.model_copy(update={"probe": "ridge"}))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.differences[0].p, found.differences[0].gain.value < 0) == (None, True)
    words = "no p: the kinds differ (attentive probe, preset demo, protocol corrected; ridge probe, protocol corrected)"
    assert words in found.text()
    table = results_table([read_result(tmp_path / name / "result.json") for name in "ab"])
    heads = [line for line in table.splitlines() if "is better" in line]
    assert [head.split(" (")[1] for head in heads] == [
        "attentive probe, preset demo, protocol corrected)", "ridge probe, protocol corrected)"
    ]  # fmt: skip


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    """Golden tests have a single run and none."""
    for name in "ab":
        write_actions(tmp_path / name, 0.5)
    result = read_result(tmp_path / "b" / "result.json")
    for field, value, message in (
        ("dataset", result.dataset.model_copy(update={"name": "leg"}), "their data set is arm and leg"),
        ("primary", "seen_r2", "their metric is seen_mse and seen_r2"),
        ("action_mode", "relative", "their target is absolute and relative"),
        ("relative_frame", "local", "their frame of motion is None and local"),
        ("options", {"choice": "means"}, "their epoch is picked on a held-out tenth and averaged"),
    ):
        write_result(tmp_path / "b" / "result.json", result.model_copy(update={field: value}))
        fails(UsageError, message, compare, tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / PREDICTIONS).unlink()
    fails(LaryError, "run the probe again with --overwrite", compare, tmp_path / "a", tmp_path / "b")


def test_every_run_and_selection_has_a_row_with_intervals(tmp_path: Path) -> None:
    fake.write_runs(tmp_path)
    table = load_results(tmp_path)
    kept = {"split_set", "paradigm", "label", "probe", "protocol", "preset", "control", "status", "epoch", "head"}
    assert kept <= set(table.columns)
    assert (len(table), set(table["selection"])) == (6 * 2, {"held_out", "best_on_validation"})
    own = table[(table["model"] == "acme") & (table["task"] == "regression") & table["headline"]]
    assert (list(own["seeds"]), own["top1"].isna().all()) == ([(0, 1, 2)], True)
    assert set(table["seeds"]) == {(0,), (0, 1, 2)}
    assert ((own["seen_mse_low"] < own["seen_mse"]) & (own["seen_mse"] < own["seen_mse_high"])).all()
    fails(UsageError, "no folder", load_results, tmp_path / "missing")


@pytest.mark.usefixtures("no_figures")
def test_every_sample_of_a_classification_has_a_row(tmp_path: Path) -> None:
    """tests/test_public_api.py has those of a regression with seeds."""
    outcome = fake.class_outcome(2.0)
    with writing(tmp_path, "1f") as work:
        write_classification_files(work, outcome)
        write_scores(work, class_scores([outcome]), [0])
        result = publish(work, classification_result(outcome, fake.facts("pixels", "verbs", seeds=(0,))))
    table = load_samples(tmp_path / "result.json")
    assert (len(table), table["score"].mean()) == (len(outcome.labels), pytest.approx(result.score.value))
    assert ((table["predicted"] == table["true"]) == (table["score_0"] == 1)).all()
    assert list(table["true"]) == [outcome.classes[label] for label in outcome.labels]
    (tmp_path / "case.txt").write_text("another")
    fails(LaryError, "digest differs", load_samples, tmp_path)
