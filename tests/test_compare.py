"""Comparisons of runs, several seeds, corrections, angles of orientations: by hand and by simulation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cyclopts import App
from scipy import stats as scipy_stats
from scipy.spatial.transform import Rotation

from lary.cli import inspect as cli_inspect
from lary.data.spec import DATASETS, ActionSpace, Orientation
from lary.probes.outcome import ActionPredictions, RegressionOutcome, SampleColumns, SplitOutcome
from lary.results import errors, scores, statistics
from lary.results.compare import compare
from lary.results.predictions import FILE_NAME, action_scores, class_scores, write_scores
from lary.results.record import SCHEMA_VERSION, EvalResult, read_result, write_result
from lary.results.summarise import classification_result, regression_result
from lary.types import LaryError, UsageError
from tests import fake_results as fake

# --- statistics of several seeds --------------------------------------------------------------------------------------


def seed_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums (S, G, 2) of values (S, n)."""
    tables = [np.stack([own, np.ones_like(own)], axis=1) for own in values]
    return np.stack([statistics.cluster_sums(table, clusters) for table in tables])


def width(found: statistics.Interval) -> float:
    assert found.low is not None
    assert found.high is not None
    return float(found.high[0] - found.low[0])


def test_equal_seeds_add_nothing_and_different_ones_widen() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(1, 1, 200), np.arange(200) % 40
    one = statistics.bootstrap(seed_sums(values[None], clusters)[0], scores.ratio)
    same = statistics.bootstrap(seed_sums(np.stack([values] * 3), clusters), scores.ratio)
    apart = statistics.bootstrap(
        seed_sums(values + np.array([[-0.3], [0.0], [0.3]]), clusters), scores.ratio
    )  # fmt: skip
    assert same.value == pytest.approx(one.value)
    assert width(same) == pytest.approx(width(one), rel=1e-6)
    assert apart.value == pytest.approx(one.value)
    assert width(apart) > 3 * width(one)


def test_an_interval_over_three_seeds_covers_the_truth() -> None:
    covered, runs = 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(30), 8)
        shared = rng.normal(1, 0.5, 30)[clusters]
        values = np.stack([shared + rng.normal(0, 0.2) + rng.normal(0, 0.5, 240) for _ in range(3)])
        found = statistics.bootstrap(seed_sums(values, clusters), scores.ratio, seed=seed, resamples=500)
        assert found.low is not None
        assert found.high is not None
        covered += int(found.low[0] <= 1 <= found.high[0])
    assert 0.91 <= covered / runs <= 0.99


def test_p_is_the_level_at_which_the_interval_reaches_zero() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 1, 50)
    sums = np.stack([values, np.ones(50)], axis=1)
    found = statistics.spread_of([(1.0, sums)], scores.ratio, resamples=20_000)
    p = statistics.p_value(found)
    edge = statistics.interval_of(found, level=1 - p)
    assert edge.low is not None
    assert edge.low[0] == pytest.approx(0, abs=1e-6)
    assert p == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue, rel=0.25)


def test_p_of_a_difference_without_spread_is_the_smallest_that_resamples_can_show() -> None:
    sums = np.ones((20, 2))
    assert statistics.p_value(statistics.spread_of([(1.0, sums)], scores.ratio, resamples=999)) == pytest.approx(0.002)
    zero = statistics.spread_of([(1.0, sums), (-1.0, sums)], scores.ratio)
    assert statistics.p_value(zero) == 1.0


def test_p_of_no_difference_is_rarely_small() -> None:
    small, runs = 0, 200
    for seed in range(runs):
        values = np.random.default_rng(seed).normal(0, 1, 40)
        sums = np.stack([values, np.ones(40)], axis=1)
        found = statistics.spread_of([(1.0, sums)], scores.ratio, seed=seed, resamples=500)
        small += statistics.p_value(found) < 0.05
    assert 0.02 <= small / runs <= 0.085


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


# --- comparisons ------------------------------------------------------------------------------------------------------


def write_actions(folder: Path, model: str, *gaps: float, **more: object) -> EvalResult:
    """A regression whose prediction is wrong by `gap` everywhere, one gap per seed."""
    base = fake.action_outcome(0.3)

    def wrong(split: SplitOutcome, gap: float) -> SplitOutcome:
        return replace(split, selections={"held_out": ActionPredictions(1, split.targets + np.float32(gap))})

    outcomes = [replace(base, splits={role: wrong(split, gap) for role, split in base.splits.items()}) for gap in gaps]
    facts = fake.facts(model, "arm", action_mode="absolute", seeds=tuple(range(len(gaps))), **more)
    result = regression_result(outcomes[0], facts, outcomes[1:])
    write_result(folder / "result.json", result)
    write_scores(folder, action_scores(outcomes), range(len(gaps)))
    return result


def test_the_difference_of_two_runs_is_paired(tmp_path: Path) -> None:
    """Two runs that are equally wrong everywhere differ by an exact number, whatever the samples."""
    write_actions(tmp_path / "a", "one", 0.5)
    write_actions(tmp_path / "b", "two", 1.0)
    found = compare([tmp_path / "a", tmp_path / "b" / "result.json"])
    (only,) = found.differences
    assert only.gain.value == pytest.approx(0.25 - 1.0, abs=1e-5)
    assert only.gain.low == pytest.approx(only.gain.high, abs=1e-5)
    assert only.p is not None
    assert only.p < 0.01
    assert "two" in found.text()
    back = compare([tmp_path / "b", tmp_path / "a"]).differences[0]
    assert back.gain.value == pytest.approx(0.75, abs=1e-5)


def test_a_run_against_itself_is_no_difference(tmp_path: Path) -> None:
    write_actions(tmp_path / "a", "one", 0.5)
    only = compare([tmp_path / "a", tmp_path / "a"]).differences[0]
    assert only.gain.value == 0
    assert only.p == pytest.approx(1.0)


def test_seeds_of_both_runs_count(tmp_path: Path) -> None:
    write_actions(tmp_path / "a", "one", 0.4, 0.5, 0.6)
    write_actions(tmp_path / "b", "two", 0.45, 0.55, 0.65)
    only = compare([tmp_path / "a", tmp_path / "b"]).differences[0]
    assert only.gain.value == pytest.approx(np.mean([0.16, 0.25, 0.36]) - np.mean([0.2025, 0.3025, 0.4225]), abs=1e-5)
    assert only.gain.low is not None
    assert only.gain.high is not None
    assert only.gain.low < 0 < only.gain.high, "the seeds differ more than the runs"
    assert only.p is not None
    assert only.p > 0.2


def test_samples_are_paired_by_id_not_by_place(tmp_path: Path) -> None:
    outcome = fake.class_outcome(2.0)
    write_result(tmp_path / "a" / "result.json", classification_result(outcome, fake.facts("one", "verbs")))
    scores = class_scores([outcome])["seen"]
    write_scores(tmp_path / "a", {"seen": scores}, [0])
    order = np.random.default_rng(0).permutation(len(scores.ids))[:-5]
    turned = replace(
        scores, ids=tuple(scores.ids[row] for row in order), groups=tuple(scores.groups[row] for row in order),
        scores=scores.scores[:, order],
    )  # fmt: skip
    write_result(tmp_path / "b" / "result.json", classification_result(outcome, fake.facts("two", "verbs")))
    write_scores(tmp_path / "b", {"seen": turned}, [0])
    only = compare([tmp_path / "a", tmp_path / "b"]).differences[0]
    assert only.samples == len(scores.ids) - 5
    assert only.gain.value == 0
    assert only.gain.low == only.gain.high == 0
    write_scores(tmp_path / "b", {"seen": replace(turned, ids=tuple(f"x{i}" for i in range(len(order))))}, [0])
    with pytest.raises(LaryError, match="share no sample"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    write_actions(tmp_path / "a", "one", 0.5)
    write_actions(tmp_path / "b", "two", 0.5)
    with pytest.raises(UsageError, match="at least two"):
        compare([tmp_path / "a"])
    with pytest.raises(UsageError, match=r"nowhere holds no result\.json: name the folder of a finished run"):
        compare([tmp_path / "a", tmp_path / "nowhere"])
    result = read_result(tmp_path / "b" / "result.json")
    write_result(tmp_path / "b" / "result.json", result.model_copy(update={"action_mode": "relative"}))
    with pytest.raises(UsageError, match="their target is absolute and relative"):
        compare([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / FILE_NAME).unlink()
    with pytest.raises(LaryError, match="run the probe again with --overwrite"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_compare_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, gap in (("a", 0.5), ("b", 1.0), ("c", 0.5)):
        write_actions(tmp_path / name, name, gap)
    app = App()
    app.command(cli_inspect.compare)
    places = [str(tmp_path / name) for name in "abc"]
    code = app(
        ["compare", *places, "--role", "unseen", "--json", str(tmp_path / "out.json")], result_action="return_value"
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert "Holm, 2 comparisons" in printed
    rows = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert [round(row["gain"]["value"], 4) for row in rows] == [-0.75, 0.0]
    assert rows[0]["p"] < rows[1]["p"] == 1.0


def test_a_result_of_the_first_schema_is_brought_to_this_one(tmp_path: Path) -> None:
    result = write_actions(tmp_path, "one", 0.5, seed=7)
    data = json.loads((tmp_path / "result.json").read_text())
    for name in ("seeds", "control", "project", "robots", "orientations", "per_seed", "margins"):
        del data[name]
    (tmp_path / "result.json").write_text(json.dumps({**data, "schema_version": 1}))
    old = read_result(tmp_path / "result.json")
    assert old.schema_version == SCHEMA_VERSION
    assert old.seeds == (7,)
    assert old.score == result.score


# --- robots, orientations, physical units -----------------------------------------------------------------------------


def turned(convention: str, degrees: np.ndarray) -> tuple[SplitOutcome, np.ndarray]:
    """Two robots whose predictions are turned by `degrees` (n,) against the truth, about random axes."""
    rng = np.random.default_rng(0)
    count = len(degrees)
    axes = rng.normal(size=(count, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    truth = Rotation.random(count, random_state=1)
    guess = truth * Rotation.from_rotvec(axes * np.radians(degrees)[:, None])

    def values(rotations: Rotation) -> np.ndarray:
        return rotations.as_quat() * 3 if convention == "quaternion_xyzw" else rotations.as_euler("xyz")

    size = 4 if convention == "quaternion_xyzw" else 3
    mean, std = np.full((count, size), 0.3, np.float32), np.full((count, size), 0.7, np.float32)
    targets, prediction = ((values(each) - mean) / std for each in (truth, guess))
    names = tuple(f"s{row}" for row in range(count))
    samples = SampleColumns(names, tuple((name,) for name in names), names, ("a", "b") * (count // 2))
    split = SplitOutcome(samples, targets[:, None].astype(np.float32), mean, std, {}, {}, {})
    return split, prediction[:, None].astype(np.float32)


@pytest.mark.parametrize(("convention", "size"), [("euler_xyz", 3), ("quaternion_xyzw", 4)])
def test_angular_error_is_the_angle_of_the_rotation_between(convention: str, size: int) -> None:
    degrees = np.tile([10.0, 170.0], 10)
    split, prediction = turned(convention, degrees)
    arm = Orientation("arm", tuple(range(size)), convention)  # type: ignore[arg-type]
    np.testing.assert_allclose(errors.angular_error(split, prediction, arm), degrees, atol=0.05)
    (row,) = errors.orientation_rows("seen", split, [prediction], [arm], 0)
    assert row.degrees.value == pytest.approx(90, abs=0.05)
    robots = errors.robot_rows("seen", split, [prediction], {}, (), [arm], 0)
    assert [(each.name, each.rows) for each in robots] == [("a", 10), ("b", 10)]
    assert [each.degrees.value for each in robots if each.degrees] == pytest.approx([10, 170], abs=0.05)


def test_quaternions_of_both_signs_are_one_orientation_and_zeros_none() -> None:
    split, prediction = turned("quaternion_xyzw", np.full(8, 20.0))
    arm = Orientation("arm", (0, 1, 2, 3), "quaternion_xyzw")
    physical = prediction * split.std[:, None] + split.mean[:, None]
    flipped = (-physical - split.mean[:, None]) / split.std[:, None]
    np.testing.assert_allclose(errors.angular_error(split, flipped.astype(np.float32), arm), 20, atol=0.05)
    zero = ((0 - split.mean) / split.std)[:, None]
    empty = replace(split, targets=zero.astype(np.float32), mean=np.zeros_like(split.mean))
    empty = replace(empty, targets=np.zeros_like(empty.targets))
    assert np.isnan(errors.angular_error(empty, prediction, arm)).all()
    assert errors.orientation_rows("seen", empty, [prediction], [arm], 0) == []


def test_physical_errors_use_each_robots_own_scale() -> None:
    outcome = fake.action_outcome(0.4)
    seen = outcome.splits["seen"]
    scaled = replace(seen, std=seen.std * np.where(np.arange(len(seen.std)) % 2, 2, 1)[:, None].astype(np.float32))
    doubled: RegressionOutcome = replace(outcome, splits={"seen": scaled})
    result = regression_result(doubled, fake.facts("one", "arm", action_mode="absolute"))
    values = seen.selections["held_out"].values
    errors_of = np.square((values - seen.targets) * scaled.std[:, None]).mean(axis=(0, 1))
    for row, expected in zip(result.dimensions, errors_of, strict=True):
        assert row.physical_mse is not None
        assert row.physical_mse.value == pytest.approx(expected, rel=1e-4)
        assert row.rmse == pytest.approx(np.sqrt(expected), rel=1e-4)
    for group in result.dimension_groups:
        assert group.physical_mse is not None
        chosen = list(fake.GROUPS[group.name])
        assert group.physical_mse.value == pytest.approx(errors_of[chosen].mean(), rel=1e-4)


@pytest.mark.parametrize("name", DATASETS.names())
def test_orientations_of_records_are_rotations(name: str) -> None:
    target = DATASETS.get(name).target
    if not isinstance(target, ActionSpace):
        return
    used = [dim for orientation in target.orientations for dim in orientation.dims]
    assert len(set(used)) == len(used)
    for orientation in target.orientations:
        ends = [target.dims[dim].split("_")[-1] for dim in orientation.dims]
        axes = {"euler_xyz": ["roll", "pitch", "yaw"], "quaternion_xyzw": ["qx", "qy", "qz", "qw"]}
        assert ends == axes[orientation.convention]
