"""Action chunks: reading, relative motion, statistics, normalisation and its inverse."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lary.data.actions import motion, read_chunk, read_relative
from lary.data.normalisation import (
    Normaliser,
    Statistics,
    load_normaliser,
    load_targets,
    measure,
    read_statistics,
    relative_stats_file,
)
from lary.data.spec import DATASETS, ActionSpace, DatasetSpec, Normalisation, Split
from lary.data.statistics import write_statistics
from lary.data.tables import SampleTable, read_table
from lary.types import LaryError, MediaError, UsageError

SPACE = ActionSpace(
    dims=("x", "y", "gripper"), horizon=4, normalisation=Normalisation(stats_file="stats.json", command="make them")
)
ARM = DatasetSpec(
    name="arm", title="Arm", media="pair", target=SPACE, splits={"train": Split("regression/arm")}, licences=(),
    stride=4, media_depth=0, embodiment_column="robot_type",
)  # fmt: skip


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def advance(self, count: int = 1) -> None:
        self.count += count


def arm_table(folder: Path, chunks: list[Any], robots: list[str], spec: DatasetSpec = ARM) -> SampleTable:
    actions = folder / "regression/arm/actions"
    actions.mkdir(parents=True, exist_ok=True)
    lines = ["src_img,tgt_img,action,robot_type"]
    for row, (chunk, robot) in enumerate(zip(chunks, robots, strict=True)):
        if chunk is not None:
            np.save(actions / f"{row}.npy", chunk)
        lines.append(f"{row}.png,{row}.png,{row}.npy,{robot}")
    (folder / "table.csv").write_text("\n".join(lines))
    return read_table(spec, "train", path=folder / "table.csv", data_dir=folder)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 3), (12,)])
def test_chunk_is_step_major(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(12, dtype=np.float64)
    np.save(tmp_path / "a.npy", values.reshape(shape))
    chunk = read_chunk(tmp_path / "a.npy", SPACE)
    assert chunk.dtype == np.float32
    np.testing.assert_array_equal(chunk, values.reshape(4, 3))
    np.testing.assert_array_equal(read_relative(tmp_path / "a.npy", SPACE), [[9, 9, 9]])


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_relative_file_is_taken_as_it_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.arange(3.0).reshape(shape))
    np.testing.assert_array_equal(read_relative(tmp_path / "a.npy", SPACE), [[0, 1, 2]])
    with pytest.raises(MediaError, match=r"a\.npy has shape .*expected \(4, 3\) or \(12,\)"):
        read_chunk(tmp_path / "a.npy", SPACE)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (draw(3, 4), r"shape \(3, 4\)"),
        (draw(5, 3), r"shape \(5, 3\)"),
        (np.full((4, 3), np.nan), "NaN or infinity"),
        (np.full((4, 3), np.inf), "NaN or infinity"),
        (np.full((4, 3), 1e300), "NaN or infinity"),
        (np.full((4, 3), "x"), "no array of numbers"),
        (np.full((4, 3), 1j), "no array of numbers"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(MediaError, match=words):
        read_chunk(tmp_path / "a.npy", SPACE)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(MediaError, match="No such file"):
        read_chunk(path, SPACE)
    np.save(path, draw(4, 3))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:-8]):
        path.write_bytes(content)
        with pytest.raises(MediaError, match=r"a\.npy"):
            read_chunk(path, SPACE)
    np.save(path, np.array([{"pickled": True}], dtype=object), allow_pickle=True)
    with pytest.raises(MediaError, match="pickled objects"):
        read_chunk(path, SPACE)
    np.savez(tmp_path / "b.npz", a=draw(4, 3))
    with pytest.raises(MediaError, match="magic string"):
        read_chunk(tmp_path / "b.npz", SPACE)


def test_every_layout_of_an_array_is_read(tmp_path: Path) -> None:
    for values in (np.asfortranarray(draw(4, 3)), draw(4, 3).astype(">f8"), np.arange(12), np.ones((4, 3), bool)):
        np.save(tmp_path / "a.npy", values)
        np.testing.assert_array_equal(read_chunk(tmp_path / "a.npy", SPACE), values.reshape(4, 3))
    with (tmp_path / "c.npy").open("wb") as file:
        np.lib.format.write_array(file, draw(4, 3), version=(2, 0))
    np.testing.assert_array_equal(read_chunk(tmp_path / "c.npy", SPACE), draw(4, 3))


numbers = st.floats(-100, 100, width=32)


@given(
    chunk=arrays(np.float32, (4, 3), elements=numbers),
    mean=arrays(np.float64, 3, elements=st.floats(-10, 10)),
    std=arrays(np.float64, 3, elements=st.sampled_from([0.0, 1e-9, 1e-3, 0.5, 1.0, 7.0])),
)
def test_denormalise_is_the_inverse(chunk: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    normaliser = Normaliser("here", robots={"a": Statistics.of(mean, std, 3, "here")})
    normal = normaliser.normalise(chunk, "a")
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normaliser.denormalise(normal, "a"), chunk, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(normal[:, std < 1e-6], (chunk - mean)[:, std < 1e-6], rtol=1e-5, atol=1e-5)


@given(chunk=arrays(np.float32, (4, 3), elements=numbers))
def test_relative_is_last_minus_first(chunk: np.ndarray) -> None:
    np.testing.assert_array_equal(motion(chunk), chunk[3] - chunk[0])
    np.testing.assert_array_equal(motion(chunk[::-1]), -motion(chunk))


def test_targets_of_two_robots(tmp_path: Path) -> None:
    chunks = [draw(4, 3, seed=1), draw(4, 3, seed=2), None, draw(2, 3)]
    table = arm_table(tmp_path, chunks, ["a", "b", "a", "b"])
    stats = {"robot_stats": {"a": {"mean": [1, 2, 3], "std": [1, 2, 0]}, "b": {"mean": [0, 0, 0], "std": [2, 2, 2]}}}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    bar = Counter()
    targets = load_targets(table, load_normaliser(ARM, tmp_path), bar)
    assert targets.values.shape == (4, 4, 3)
    assert targets.values.dtype == targets.mean.dtype == np.float32
    np.testing.assert_allclose(targets.values[0], (chunks[0] - [1, 2, 3]) / [1, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(targets.values[1], chunks[1] / 2, rtol=1e-6)
    np.testing.assert_array_equal(targets.std, [[1, 2, 1], [2, 2, 2], [1, 2, 1], [2, 2, 2]])
    np.testing.assert_array_equal(targets.mean[:2], [[1, 2, 3], [0, 0, 0]])
    assert targets.readable.tolist() == [True, True, False, False]
    assert [failure.row for failure in targets.failures] == [2, 3]
    assert "No such file" in targets.failures[0].reason
    assert bar.count == 4


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
    ("text", "words"),
    [
        (None, "do not exist. Make them with: make them"),
        ("{", "can't be read"),
        ("[]", "no JSON object"),
        ("{}", "no robot type"),
        ('{"robot_stats": {"a": {"mean": [0], "std": [1]}}}', "robot type 'a' in .* are not 3 finite"),
        ('{"a": {"mean": [0, 0, 0], "std": [1, 1, NaN]}}', "are not 3 finite"),
        ('{"a": {"mean": [0, 0, 0], "std": [1, 1, -1]}}', "are not 3 finite"),
        ('{"a": {"mean": "abc", "std": [1, 1, 1]}}', "are not 3 finite"),
    ],
)
def test_wrong_statistics_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "stats.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LaryError, match=words):
        read_statistics(path, 3, "make them", per_robot=True)


def test_shared_statistics_are_not_taken_for_robots(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text('{"mean": [0, 0, 0], "std": [1, 2, 3]}')
    assert read_statistics(path, 3, "", per_robot=False).statistics("any").std.tolist() == [1, 2, 3]
    with pytest.raises(LaryError, match="no robot type"):
        read_statistics(path, 3, "", per_robot=True)
    path.write_text('{"a": {"mean": [0, 0, 0], "std": [1, 1, 1]}}')
    with pytest.raises(LaryError, match="no mean and std"):
        read_statistics(path, 3, "", per_robot=False)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("calvin", "regression_relative/calvin/relative_action_stats_calvin.json"),
        ("vlabench_15", "regression_relative/vlabench/relative_action_stats_vlabench_15.json"),
        ("robocoin", "regression_relative/robocoin_10/relative_action_stats_robocoin.json"),
        ("agibotbeta", "regression_relative/agibot_45/relative_action_stats_agibotbeta.json"),
    ],
)
def test_relative_statistics_lie_beside_the_relative_actions(name: str, file: str, tmp_path: Path) -> None:
    assert relative_stats_file(DATASETS.get(name)) == file
    made = rf"Make them with: python utils/prepare_relative_actions\.py --dataset {name} "
    with pytest.raises(LaryError, match=made):
        load_normaliser(DATASETS.get(name), tmp_path, "relative")


def test_missing_statistics_name_the_published_command(tmp_path: Path) -> None:
    with pytest.raises(
        LaryError, match=r"robocoin_stats\.json do not exist.*compute_robot_action_stats\.py --dataset robocoin"
    ):
        load_normaliser(DATASETS.get("robocoin"), tmp_path)


def test_statistics_measured_on_the_training_split(tmp_path: Path) -> None:
    spec = replace(ARM, target=replace(SPACE, normalisation=Normalisation()))
    chunks = [draw(4, 3, seed=seed) * 0.01 + 1000 for seed in range(6)]
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
    assert float((seen**2).mean()) == pytest.approx(1.0, rel=1e-2)  # the mean action's error on training
    with pytest.raises(LaryError, match="None of the action files"):
        measure(table.take([3]))


def test_many_small_files(tmp_path: Path) -> None:
    (tmp_path / "stats.json").write_text('{"a": {"mean": [0, 0, 0], "std": [1, 1, 1]}}')
    chunks = [draw(4, 3, seed=seed) for seed in range(500)]
    table = arm_table(tmp_path, chunks, ["a"] * 500)
    started = time.perf_counter()
    targets = load_targets(table, load_normaliser(ARM, tmp_path))
    print(f"{500 / (time.perf_counter() - started):.0f} action files per second")
    np.testing.assert_array_equal(targets.values, np.stack(chunks))


def test_rows_that_lost_their_robot_are_read_as_the_record_says(tmp_path: Path) -> None:
    """The published first rows: an empty robot type is G1edu-u3, whose statistics the published tool calls nan."""
    spec = DATASETS.get("robocoin")
    source = Path(__file__).parent / "fixtures" / "metadata" / "robocoin_metadata_unseen.csv"
    table = read_table(spec, "unseen", path=source, data_dir=tmp_path)
    for number, sample in enumerate(table):
        path = table.action_path(sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, draw(10, 12, seed=number))
    lost = [name == "" for name in table.frame["robot_type"]]
    assert [name == "G1edu-u3" for name in table.embodiments()] == lost
    assert True in lost
    assert [table[row].embodiment for row in range(len(table))] == list(table.embodiments())
    report = write_statistics(spec, source, tmp_path)
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
