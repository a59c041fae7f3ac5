"""Rows of a leaderboard: which are not told apart from the best, and which runs are one row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.models.overview import paper_rows
from lary.probes.outcome import ClassPredictions
from lary.results.compare import compare
from lary.results.folder import find_results, finished_run
from lary.results.published import PREDICTIONS, SampleScores, class_scores, read_arrays, write_scores
from lary.results.ranking import Row, ranked
from lary.results.record import FILE_NAME, Metric, write_result
from lary.results.report import contests_of
from lary.results.statistics import holm
from lary.results.summarise import classification_result
from tests import fake_results as fake


def write_run(
    folder: Path, name: str, rate: float, *, seeds: tuple[int, ...] = (0, 1, 2), draw: int = 0, count: int = 240,
    groups: int = 60, data: str = "verbs", **more: Any,
) -> Path:  # fmt: skip
    """A run whose answers are right with the probability `rate`, sample by sample, and its scores."""
    base = fake.class_outcome(0.0, count=count, episodes=groups)
    outcomes = []
    for seed in seeds:
        right = np.random.default_rng((draw, seed)).random(count) < rate
        logits = np.zeros_like(base.selections["held_out"].logits)
        logits[np.arange(count), np.where(right, base.labels, (base.labels + 1) % len(base.classes))] = 1
        chosen = {key: ClassPredictions(own.epoch, own.head, logits) for key, own in base.selections.items()}
        outcomes.append(replace(base, selections=chosen))
    more = {"options": {"choice": "averaged", "seed": seeds[0]}, **more}
    about = fake.facts(name, data, more.pop("paradigm", "general LAM"), seed=seeds[0], seeds=seeds, **more)
    write_result(folder / name / FILE_NAME, classification_result(outcomes[0], about, outcomes[1:]))
    write_scores(folder / name, class_scores(outcomes), seeds)
    return folder / name


def rows_below(folder: Path) -> dict[str, Row]:
    """The rows of the only contest below a folder, in its order."""
    (contest,) = contests_of(find_results(folder)[0])
    return {row.label: row for row in contest["rows"]}


def test_the_best_is_compared_with_all_others_on_shared_samples(tmp_path: Path) -> None:
    for draw, (name, rate) in enumerate((("first", 0.8), ("second", 0.79), ("third", 0.5), ("fourth", 0.3))):
        write_run(tmp_path, name, rate, draw=draw)
    write_run(tmp_path, "single", 0.6, seeds=(0,), draw=9)
    write_run(tmp_path, "torn", 0.65, draw=10).joinpath(PREDICTIONS).write_bytes(b"PK")
    odd = write_run(tmp_path, "odd", 0.1, draw=10)
    write_scores(odd, {"seen": replace(read_arrays(SampleScores, finished_run(odd)), groups=())}, (0, 1, 2))
    odd = write_run(tmp_path, "infinite", 0.05, draw=10)
    found = read_arrays(SampleScores, finished_run(odd))
    write_scores(odd, {"seen": replace(found, scores=np.full_like(found.scores, np.inf))}, (0, 1, 2))
    write_run(tmp_path, "older", 0.55, draw=11, options={})
    write_run(tmp_path, "other", 0.9, draw=12, control="static-pair")
    rows = rows_below(tmp_path)
    ranks = {name: (row.rank, row.reading) for name, row in rows.items() if row.rank}
    names = ["first", "second"] if rows["first"].rank == 1 else ["second", "first"]
    assert ranks == {
        names[0]: (1, "best"), names[1]: (2, "not told apart"), "torn": (3, "no test: no scores of samples"),
        "single": (4, "no test: a single seed"), "older": (5, "no test: another choice of the epoch"),
        "third": (6, "worse"), "fourth": (7, "worse"), "odd": (8, "no test: no scores of samples"),
        "infinite": (9, "no test: no scores of samples"),
    }  # fmt: skip
    assert (next(iter(rows)), rows["other (static pair)"].rank) == ("other (static pair)", None), "controls have none"
    others = [compare(tmp_path / names[0], tmp_path / name).differences[0].p for name in rows if rows[name].p]
    expected = holm([*filter(None, others), 1.0, 1.0, 1.0])[: len(others)]  # six pairs of four tested models
    assert [row.p for row in rows.values() if row.p] == pytest.approx(expected, rel=1e-9)


def test_a_best_of_a_single_seed_and_few_groups_have_no_test(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "single", 0.9, seeds=(0,))
    write_run(tmp_path / "a", "model", 0.3)
    assert rows_below(tmp_path / "a")["model"].reading == "no test: a single seed"
    for name, rate in (("good", 0.9), ("bad", 0.2)):
        write_run(tmp_path / "b", name, rate, groups=5)
    assert rows_below(tmp_path / "b")["bad"].reading == "no test: 5 groups, and 6 are needed"


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    """The row has the interval that one run of these seeds has; a copy and other options stay rows of their own."""
    for seed in (0, 1, 2):
        write_run(tmp_path / f"seed{seed}", "acme", 0.7, seeds=(seed,))
    write_run(tmp_path / "together", "acme", 0.7)
    rows = rows_below(tmp_path)
    together = rows.pop("acme [together/acme]")
    (pooled,) = (row for row in rows.values() if row.kind == "model")
    assert (len(pooled.runs), pooled.label[-6:]) == (3, "/acme]")
    assert pooled.metrics["top1"].text() == together.metrics["top1"].text()
    assert pooled.metrics["macro_f1"].no_interval == "pooled from several runs"
    assert {pooled.reading, together.reading} == {"best", "not told apart"}
    write_run(tmp_path / "copy", "acme", 0.7, seeds=(0,))
    write_run(tmp_path / "lr", "acme", 0.7, seeds=(1,), options={"choice": "averaged", "seed": 1, "lr": 0.1})
    counts = [len(row.runs) for row in contests_of(find_results(tmp_path)[0])[0]["rows"] if row.kind == "model"]
    assert sorted(counts) == [1, 1, 1, 3]
    (tmp_path / "seed1" / "acme" / PREDICTIONS).unlink()
    (row,) = (own for own in contests_of(find_results(tmp_path)[0])[0]["rows"] if len(own.runs) == 3)
    assert (row.metrics["top1"].low, row.metrics["top1"].value) == (None, pytest.approx(pooled.metrics["top1"].value))


@pytest.mark.parametrize(("changes", "told"), [
    ({}, ""), ({"protocol": "corrected"}, "protocol corrected"), ({"preset": "demo"}, "preset demo"),
    ({"probe": "ridge"}, "probe ridge"), ({"folds": 5}, "probe 5-folds"), ({"data": "verbs"}, "no such data set"),
])  # fmt: skip
def test_published_rows_are_beside_runs_that_they_fit(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    write_run(tmp_path, "acme", 0.75, **{"data": "robot_1st", "protocol": "paper", "preset": "paper", **changes})
    (contest,) = contests_of(find_results(tmp_path)[0])
    rows = [row for row in contest["rows"] if row.kind == "published"]
    assert (told in contest["unpublished"], bool(told)) == (True, bool(contest["unpublished"]))
    known = {f"{row['model']} (paper)": float(row["robot_1st"]) for row in paper_rows("leaderboard_classification")}
    found = {row.label: round(100 * row.metrics["top1"].value, 9) for row in rows}
    assert found == ({} if told else known)
    assert not any(row.rank for row in rows)


def test_equal_models_are_rarely_told_apart_from_the_best(tmp_path: Path) -> None:
    """The best of eight is chosen by chance; counting seven comparisons alone is wrong far too often."""
    write_run(tmp_path, "model", 0.5)
    (row, *_) = rows_below(tmp_path).values()
    assert row.scored
    draws, wrong = np.random.default_rng(5), 0
    for _ in range(60):
        rows = []
        for _ in range(8):
            right = np.repeat(draws.random((1, 240)) < 0.5, 3, axis=0) ^ (draws.random((3, 240)) < 0.02)
            scores = right.astype(np.float32)
            own = replace(row.scored, scores=replace(row.scored.scores, scores=scores))
            value = Metric(value=float(scores.mean()), unit="fraction")
            rows.append(Row("model", "model", {"top1": value}, row.runs, own))
        wrong += any(each.reading == "worse" for each in ranked(rows, "top1"))
    assert wrong <= 3
