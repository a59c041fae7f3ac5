"""Angles of orientations, errors in physical units, and what a difference says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lary.data.spec import DATASETS, ActionSpace, Orientation
from lary.probes.outcome import RegressionOutcome, SampleColumns, SplitOutcome
from lary.results import measure
from lary.results.measure import reading
from lary.results.record import Metric
from lary.results.summarise import regression_result
from tests import fake_results as fake


def test_reading_of_a_difference_goes_by_the_corrected_p() -> None:
    gain = Metric(value=-0.1, low=-0.2, high=-0.01, higher_is_better=False)
    assert [reading(gain), reading(gain, 0.01), reading(gain, 0.2)] == ["better", "better", "even"]
    assert reading(gain.model_copy(update={"higher_is_better": True})) == "worse"
    assert reading(gain.model_copy(update={"high": 0.01})) == "even"
    assert reading(Metric(value=1.0)) == ""


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
    split = SplitOutcome(samples, targets[:, None].astype(np.float32), mean, std, {}, {}, {})
    return split, prediction[:, None].astype(np.float32)


@pytest.mark.parametrize(("convention", "size"), [("euler_xyz", 3), ("quaternion_xyzw", 4)])
def test_angular_error_is_the_angle_of_the_rotation_between(convention: str, size: int) -> None:
    degrees = np.tile([10.0, 170.0], 10)
    split, prediction = turned(convention, degrees)
    arm = Orientation("arm", tuple(range(size)), convention)  # type: ignore[arg-type]
    np.testing.assert_allclose(measure.angular_error(split, prediction, arm), degrees, atol=0.05)
    (row,) = measure.orientation_rows("seen", split, [prediction], [arm], 0)
    assert row.degrees.value == pytest.approx(90, abs=0.05)
    robots = measure.robot_rows("seen", split, [prediction], {}, (), [arm], 0)
    assert [(each.name, each.rows) for each in robots] == [("a", 10), ("b", 10)]
    assert [each.degrees.value for each in robots if each.degrees] == pytest.approx([10, 170], abs=0.05)
    if convention == "quaternion_xyzw":  # both signs are one orientation, and zeros are none
        mean, std = split.mean[:, None], split.std[:, None]
        flipped = ((-(prediction * std + mean) - mean) / std).astype(np.float32)
        np.testing.assert_allclose(measure.angular_error(split, flipped, arm), degrees, atol=0.05)
        empty = replace(split, targets=np.zeros_like(split.targets), mean=np.zeros_like(split.mean))
        assert np.isnan(measure.angular_error(empty, prediction, arm)).all()
        assert measure.orientation_rows("seen", empty, [prediction], [arm], 0) == []


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


def test_orientations_of_records_are_rotations() -> None:
    for target in (spec.target for spec in DATASETS if isinstance(spec.target, ActionSpace)):
        used = [dim for orientation in target.orientations for dim in orientation.dims]
        assert len(set(used)) == len(used)
        for orientation in target.orientations:
            ends = [target.dims[dim].split("_")[-1] for dim in orientation.dims]
            axes = {"euler_xyz": ["roll", "pitch", "yaw"], "quaternion_xyzw": ["qx", "qy", "qz", "qw"]}
            assert ends == axes[orientation.convention]
