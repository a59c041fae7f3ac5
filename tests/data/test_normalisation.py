"""Normalisation: statistics and their file, targets, and the inverse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lary.data.normalisation import (
    Normaliser,
    Statistics,
    load_normaliser,
    load_targets,
    measure,
    read_statistics,
    relative_stats_file,
)
from lary.data.spec import DATASETS, Normalisation
from lary.data.statistics import measure_table
from lary.data.tables import read_table
from lary.types import LaryError, UsageError
from tests.data.arm import ARM, SPACE, arm_table, draw
from tests.helpers import FIXTURES


@given(
    chunk=arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32)),
    mean=arrays(np.float64, 3, elements=st.floats(-10, 10)),
    std=arrays(np.float64, 3, elements=st.sampled_from([0.0, 1e-9, 1e-3, 0.5, 1.0, 7.0])),
)
def test_normalised_chunks_can_be_taken_back(chunk: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    normaliser = Normaliser("here", robots={"a": Statistics.of(mean, std, 3, "here")})
    normal = normaliser.normalise(chunk, "a")
    assert normal.dtype == np.float32
    numbers = normaliser.statistics("a")
    np.testing.assert_allclose(normal * numbers.std + numbers.mean, chunk, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(normal[:, std < 1e-6], (chunk - mean)[:, std < 1e-6], rtol=1e-5, atol=1e-5)


def test_targets_of_two_robots(tmp_path: Path) -> None:
    chunks = [draw(4, 3, seed=1), draw(4, 3, seed=2), None, draw(2, 3), *(draw(4, 3, seed=seed) for seed in range(500))]
    table = arm_table(tmp_path, chunks, ["a", "b", "a", "b", *"b" * 500])
    stats = {"robot_stats": {"a": {"mean": [1, 2, 3], "std": [1, 2, 0]}, "b": {"mean": [0, 0, 0], "std": [2, 2, 2]}}}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    bar = Mock()
    targets = load_targets(table, load_normaliser(ARM, tmp_path), bar)
    assert targets.values.dtype == targets.mean.dtype == np.float32
    np.testing.assert_allclose(targets.values[0], (chunks[0] - [1, 2, 3]) / [1, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(targets.values[1], chunks[1] / 2, rtol=1e-6)
    np.testing.assert_array_equal(targets.values[4:], np.stack(chunks[4:]) / 2, "many small files stay in order")
    np.testing.assert_array_equal(targets.std[:4], [[1, 2, 1], [2, 2, 2], [1, 2, 1], [2, 2, 2]])
    np.testing.assert_array_equal(targets.mean[:2], [[1, 2, 3], [0, 0, 0]])
    assert targets.readable.tolist() == [True, True, False, False, *[True] * 500]
    assert [failure.row for failure in targets.failures] == [2, 3]
    assert "No such file" in targets.failures[0].reason
    assert sum(call.args[0] if call.args else 1 for call in bar.advance.call_args_list) == 504


@pytest.mark.parametrize(
    ("robots", "words"),
    [
        (["a", "c", "c"], r"row 2 and 1 others: .*robot type 'c' in .*stats\.json, which has: 'a'\. make them"),
        (["a", "a", ""], r"row 3 and 0 others: .*without a robot type.*Fill the column .*make them"),
    ],
)
def test_robot_without_statistics_is_an_error(tmp_path: Path, robots: list[str], words: str) -> None:
    (tmp_path / "stats.json").write_text('{"a": {"mean": [0, 0, 0], "std": [1, 1, 1]}, "b": {"mean": [0]}, "n": 3}')
    table = arm_table(tmp_path, [draw(4, 3)] * 3, robots)
    with pytest.raises(LaryError, match=words):
        load_targets(table, load_normaliser(ARM, tmp_path))


@pytest.mark.parametrize(
    ("text", "per_robot", "words"),
    [
        (None, True, "do not exist. Make them with: make them"), ("{", True, "can't be read"),
        ("[]", True, "no JSON object"), ("{}", True, "no robot type"),
        ('{"robot_stats": {"a": {"mean": [0], "std": [1]}}}', True, "'a' in .* are not 3 finite .*but 1, as"),
        ('{"a": {"mean": [0, 0, 0], "std": [1, 1, NaN]}}', True, "are not 3 finite"),
        ('{"a": {"mean": [0, 0, 0], "std": [1, 1, -1]}}', True, "are not 3 finite"),
        ('{"a": {"mean": "abc", "std": [1, 1, 1]}}', True, "are not 3 finite"),
        ('{"mean": [0, 0, 0], "std": [1, 2, 3]}', True, "no robot type"),
        ('{"a": {"mean": [0, 0, 0], "std": [1, 1, 1]}}', False, "no mean and std"),
    ],
)  # fmt: skip
def test_wrong_statistics_are_refused_and_shared_ones_serve_every_robot(
    tmp_path: Path, text: str | None, per_robot: bool, words: str
) -> None:
    path = tmp_path / "stats.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LaryError, match=words):
        read_statistics(path, 3, "make them", per_robot=per_robot)
    path.write_text('{"mean": [0, 0, 0], "std": [1, 2, 3]}')
    assert read_statistics(path, 3, "", per_robot=False).statistics("any").std.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("calvin", "calvin/relative_action_stats_calvin.json"),
        ("vlabench_15", "vlabench/relative_action_stats_vlabench_15.json"),
        ("robocoin", "robocoin_10/relative_action_stats_robocoin.json"),
        ("agibotbeta", "agibot_45/relative_action_stats_agibotbeta.json"),
    ],
)
def test_missing_statistics_name_the_published_command(name: str, file: str, tmp_path: Path) -> None:
    spec = DATASETS.get(name)
    assert relative_stats_file(spec) == f"regression_relative/{file}"
    made = rf"Make them with: python utils/prepare_relative_actions\.py --dataset {name} "
    with pytest.raises(LaryError, match=made):
        load_normaliser(spec, tmp_path, "relative")
    with pytest.raises(LaryError, match=made + r".*--frame local"):
        load_normaliser(spec, tmp_path, "relative", frame="local")
    if spec.actions.normalisation.stats_file:
        with pytest.raises(LaryError, match=rf"compute_robot_action_stats\.py --dataset {name}"):
            load_normaliser(spec, tmp_path)


def test_statistics_measured_on_the_training_split(tmp_path: Path) -> None:
    spec = replace(ARM, target=replace(SPACE, normalisation=Normalisation()))
    chunks: list[Any] = [draw(4, 3, seed=seed) * 0.01 + 1000 for seed in range(6)]
    chunks[3] = None
    table = arm_table(tmp_path, chunks, ["a", "b", "a", "a", "b", "a"], spec)
    with pytest.raises(UsageError, match="no normalisation"):
        load_normaliser(spec, tmp_path)
    normaliser = load_normaliser(spec, tmp_path, train=table)
    assert list(normaliser.robots) == ["a", "b"]
    steps = np.concatenate([chunks[0], chunks[2], chunks[5]]).astype(np.float64)
    np.testing.assert_allclose(normaliser.statistics("a").mean, steps.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(normaliser.statistics("a").std, steps.std(axis=0), rtol=1e-9)
    targets = load_targets(table, normaliser)
    seen = targets.values[targets.readable]
    assert float((seen**2).mean()) == pytest.approx(1.0, rel=1e-2), "the mean action's error on training"
    with pytest.raises(LaryError, match="None of the action files"):
        measure(table.take([3]))


def test_rows_that_lost_their_robot_are_read_as_the_record_says(tmp_path: Path) -> None:
    """The published first rows: an empty robot type is G1edu-u3, whose statistics the published tool calls nan."""
    spec = DATASETS.get("robocoin")
    source = FIXTURES / "metadata" / "robocoin_metadata_unseen.csv"
    table = read_table(spec, "unseen", path=source, data_dir=tmp_path)
    for number, sample in enumerate(table):
        path = table.action_path(sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, draw(10, 12, seed=number))
    lost = [name == "" for name in table.frame["robot_type"]]
    assert [name == "G1edu-u3" for name in table.embodiments()] == lost
    assert True in lost
    assert [table[row].embodiment for row in range(len(table))] == list(table.embodiments())
    report = measure_table(spec, source, tmp_path)
    assert "nan" in report.robots, "the file has the published key"
    assert "G1edu-u3" not in report.robots
    normaliser = load_normaliser(spec, tmp_path)
    targets = load_targets(table, normaliser)
    np.testing.assert_allclose(targets.values[lost].mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_array_equal(normaliser.statistics("G1edu-u3").mean, normaliser.statistics("nan").mean)

    written = json.loads(report.out.read_text())
    written["robot_stats"]["G1edu-u3"] = {"mean": [7.0] * 12, "std": [1.0] * 12}
    report.out.write_text(json.dumps(written))
    assert load_normaliser(spec, tmp_path).statistics("G1edu-u3").mean[0] == 7, "a key of its own comes first"
    del written["robot_stats"]["G1edu-u3"], written["robot_stats"]["nan"]
    report.out.write_text(json.dumps(written))
    with pytest.raises(LaryError, match=r"no action statistics of robot type 'G1edu-u3'.*galaxea_r1_lite"):
        load_targets(table, load_normaliser(spec, tmp_path))
