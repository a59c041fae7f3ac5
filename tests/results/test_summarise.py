"""Results from what probes hand on: metrics compared with their definitions, controls, angles, refusals."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lary.data.spec import DATASETS, ActionSpace, Orientation
from lary.probes.outcome import ActionPredictions, ClassPredictions, RegressionOutcome, SampleColumns, SplitOutcome
from lary.results.summarise import angular_error, classification_result, regression_result
from lary.types import LaryError
from tests import fake_results as fake
from tests.helpers import fails


def test_ties_and_the_paper_protocol() -> None:
    outcome, facts = fake.class_outcome(1.0), fake.facts("pixels", "verbs")
    even = {"held_out": ClassPredictions(1, 0, np.ones_like(outcome.selections["held_out"].logits))}
    found = classification_result(replace(outcome, selections=even), facts).selections["held_out"]
    assert found.metrics["top5"].value == pytest.approx(np.mean(outcome.labels < 5)), "equal scores: in class order"
    assert classification_result(outcome, facts).history[0]["val_acc"] == [0.1, None], "JSON has no NaN"
    five = classification_result(fake.class_outcome(1.0, classes=fake.VERBS[:5], episodes=5), facts)
    assert "top5" not in five.selections["held_out"].metrics
    assert five.interval == "No intervals: the 120 samples come from 5 episodes or videos, and 6 are needed."
    warned = [replace(outcome, warnings=own) for own in (("a",), ("a", "b"))]
    both = classification_result(warned[0], facts, warned[1:])
    assert (both.warnings, "with the spread of 2 seeds" in both.interval) == (("a", "b"), True)
    only = replace(outcome, selections={"best_on_validation": outcome.selections["best_on_validation"]})
    result = classification_result(only, fake.facts("pixels", "verbs", protocol="paper"))
    assert list(result.selections) == ["best_on_validation"] == [result.headline]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(value: float) -> None:
    outcome, seen = fake.class_outcome(1.0), fake.split_outcome(0.3)
    logits = {"held_out": ClassPredictions(1, 0, np.full_like(outcome.selections["held_out"].logits, value))}
    with pytest.raises(LaryError, match="diverged"):
        classification_result(replace(outcome, selections=logits), fake.facts("pixels", "verbs"))
    actions = {"held_out": ActionPredictions(1, np.full_like(seen.targets, value))}
    broken = replace(fake.action_outcome(0.3), splits={"seen": replace(seen, selections=actions)})
    fails(LaryError, "diverged", regression_result, broken, fake.facts("pixels", "arm"))


def test_physical_errors_have_the_scale_of_each_robot() -> None:
    """Other errors are golden values."""
    outcome = fake.action_outcome(0.3, unseen=False)
    seen = outcome.splits["seen"]
    robots = np.where(np.arange(len(seen.std)) % 2, 2, 1)[:, None].astype(np.float32)
    seen = replace(seen, std=seen.std * robots)
    groups = {**fake.GROUPS, "mixed": (2, 3)}
    result = regression_result(replace(outcome, splits={"seen": seen}, groups=groups), fake.facts("pixels", "arm"))
    errors = (seen.selections["held_out"].values - seen.targets) * seen.std[:, None]
    physical = np.square(errors).mean(axis=(0, 1))
    assert [row.rmse for row in result.dimensions] == pytest.approx(np.sqrt(physical), rel=1e-4)
    assert (result.dimension_groups[3].physical_mse, result.dimension_groups[3].unit) == (None, "")
    for row in result.dimension_groups[:3]:
        assert row.physical_mse is not None
        assert row.physical_mse.value == pytest.approx(physical[list(fake.GROUPS[row.name])].mean(), rel=1e-4)


def test_a_constant_prediction_explains_nothing() -> None:
    found = regression_result(fake.action_outcome(0.3), fake.facts("pixels", "arm", seeds=(0,))).controls["mean_action"]
    for role in ("seen", "unseen"):
        explained = found.metrics[f"{role}_r2"]
        assert (explained.low is not None and explained.low < explained.value <= 0, explained.high) == (True, 0)


def turned(convention: str, degrees: np.ndarray) -> tuple[SplitOutcome, np.ndarray]:
    """Two robots whose predictions are turned by `degrees` (n,) against the truth, about random axes."""
    rng = np.random.default_rng(0)
    count, quaternion = len(degrees), convention == "quaternion_xyzw"
    axes = rng.normal(size=(count, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    truth = Rotation.random(count, random_state=1)
    guess = truth * Rotation.from_rotvec(axes * np.radians(degrees)[:, None])
    mean, std = (np.full((count, 4 if quaternion else 3), value, np.float32) for value in (0.3, 0.7))
    targets, prediction = (
        ((each.as_quat() * 3 if quaternion else each.as_euler("xyz")) - mean) / std for each in (truth, guess)
    )
    names = tuple(f"s{row}" for row in range(count))
    samples = SampleColumns(names, tuple((name,) for name in names), names, ("a", "b") * (count // 2))
    values = prediction[:, None].astype(np.float32)
    chosen = {"held_out": ActionPredictions(1, values)}
    split = SplitOutcome(samples, targets[:, None].astype(np.float32), mean, std, chosen, {}, {"held_out": 0.0})
    return split, values


@pytest.mark.parametrize(("convention", "size"), [("euler_xyz", 3), ("quaternion_xyzw", 4)])
def test_angular_error_is_the_angle_of_the_rotation_between(convention: str, size: int) -> None:
    degrees = np.tile([10.0, 170.0], 10)
    split, prediction = turned(convention, degrees)
    arm = Orientation("arm", tuple(range(size)), convention)  # type: ignore[arg-type]
    np.testing.assert_allclose(angular_error(split, prediction, arm), degrees, atol=0.05)
    outcome = RegressionOutcome(tuple("abcd"[:size]), {}, {"seen": split})
    result = regression_result(outcome, fake.facts("pixels", "arm"), (), [arm])
    assert [row.degrees.value for row in result.orientations] == pytest.approx([90], abs=0.05)
    assert [(row.name, row.rows) for row in result.robots] == [("a", 10), ("b", 10)]
    assert [row.degrees.value for row in result.robots if row.degrees] == pytest.approx([10, 170], abs=0.05)
    if convention == "quaternion_xyzw":  # both signs are one orientation, and zeros are none
        mean, std = split.mean[:, None], split.std[:, None]
        flipped = ((-(prediction * std + mean) - mean) / std).astype(np.float32)
        np.testing.assert_allclose(angular_error(split, flipped, arm), degrees, atol=0.05)
        empty = replace(split, targets=np.zeros_like(split.targets), mean=np.zeros_like(split.mean))
        result = regression_result(replace(outcome, splits={"seen": empty}), fake.facts("pixels", "arm"), (), [arm])
        assert (result.orientations, result.robots[0].degrees) == ((), None)


def test_orientations_of_records_are_rotations() -> None:
    axes = {"euler_xyz": ["roll", "pitch", "yaw"], "quaternion_xyzw": ["qx", "qy", "qz", "qw"]}
    for target in (spec.target for spec in DATASETS if isinstance(spec.target, ActionSpace)):
        used = [dim for orientation in target.orientations for dim in orientation.dims]
        assert len(set(used)) == len(used)
        for orientation in target.orientations:
            ends = [target.dims[dim].split("_")[-1] for dim in orientation.dims]
            assert ends == axes[orientation.convention]
