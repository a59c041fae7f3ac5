"""Normalisation: statistics and their file, targets and the inverse, relative actions, and failures by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lary.data import normalisation
from lary.data.actions import FOLDERS
from lary.data.configs import RelativeConfig, StatsConfig
from lary.data.normalisation import load_normaliser, load_targets, write_relative, write_statistics
from lary.data.spec import DATASETS, Normalisation
from lary.data.tables import read_table
from lary.types import LaryError, MediaError, UsageError
from tests.data.arm import ARM, SPACE, arm_table, draw
from tests.golden.test_tools import robots
from tests.helpers import FIXTURES, fails, printed, rows_of, settings_of
from tests.tree import make_calvin, write_array, write_table

ALIKE = replace(ARM, target=replace(SPACE, normalisation=Normalisation()))
"""One normalisation for all robots, measured on the training split."""


def test_targets_of_two_robots(tmp_path: Path) -> None:
    chunks: list[Any] = [draw(4, 3, seed=seed) for seed in range(504)]
    chunks[2:4] = [None, draw(2, 3)]
    table = arm_table(tmp_path, chunks, ["a", "b", "a", "b", *"b" * 500])
    stats = {"robot_stats": {"a": {"mean": [1, 2, 3], "std": [1, 2, 0]}, "b": {"mean": [0, 0, 0], "std": [2, 2, 2]}}}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    targets = load_targets(table, load_normaliser(ARM, tmp_path))
    assert targets.values.dtype == targets.mean.dtype == np.float32
    np.testing.assert_allclose(targets.values[0], (chunks[0] - [1, 2, 3]) / [1, 2, 1], rtol=1e-6)
    np.testing.assert_array_equal(targets.values[4:], np.stack(chunks[4:]) / 2, "many small files stay in order")
    np.testing.assert_array_equal(targets.std[:3], [[1, 2, 1], [2, 2, 2], [1, 2, 1]])
    np.testing.assert_array_equal(targets.mean[:2], [[1, 2, 3], [0, 0, 0]])
    assert targets.readable.tolist() == [True, True, False, False, *[True] * 500]
    assert [failure.row for failure in targets.failures] == [2, 3]
    assert "No such file" in targets.failures[0].reason


def test_robot_without_statistics_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "stats.json").write_text('{"a": {"mean": [0, 0, 0], "std": [1, 1, 1]}, "b": {"mean": [0]}, "n": 3}')
    lost = r"row 3 and 0 others: .*without a robot type.*Fill the column .*make them"
    other = r"row 2 and 1 others: .*robot type 'c' in .*stats\.json, which has: 'a'\. make them"
    for types, words in ((["a", "a", ""], lost), ("acc", other)):
        table = arm_table(tmp_path, [draw(4, 3)] * 3, types)
        fails(LaryError, words, load_targets, table, load_normaliser(ARM, tmp_path))


def test_wrong_statistics_are_refused(tmp_path: Path) -> None:
    path, one = tmp_path / "stats.json", '{"a": {"mean": [0, 0, 0], "std": [1, 1, 1]}}'
    fails(LaryError, r"do not exist\. Make them with: make them", normalisation.read_statistics, path, ARM, "make them")
    for spec, text, words in (
        (ARM, "{", "can't be read"), (ARM, "[]", "no robot type"), (ARM, "{}", "no robot type"),
        (ARM, '{"mean": [0, 0, 0], "std": [1, 2, 3]}', "no robot type"), (ALIKE, one, "no mean and std"),
        (ARM, '{"robot_stats": {"a": {"mean": [0], "std": [1]}}}', "'a', are not 3 finite .*but 1. Make them"),
        *((ARM, one.replace("1]", wrong), "are not 3 finite") for wrong in ("NaN]", "-1]")),
        (ARM, one.replace("[0, 0, 0]", '"abc"'), "are not 3 finite"),
    ):  # fmt: skip
        path.write_text(text)
        fails(LaryError, words, normalisation.read_statistics, path, spec, "make them")
    path.write_text('{"mean": [0, 0, 0], "std": [1, 2, 3]}')
    assert normalisation.read_statistics(path, ALIKE, "").statistics("any").std.tolist() == [1, 2, 3]


def test_missing_statistics_name_the_published_command(tmp_path: Path) -> None:
    spec, made = DATASETS.get("robocoin"), r"do not exist\. Make them with: python utils/"
    for words, options in (
        (rf"robocoin_10/relative_action_stats_robocoin\.json {made}prepare_relative", {"mode": "relative"}),
        (rf"{made}prepare_relative_actions\.py .*--frame local", {"mode": "relative", "frame": "local"}),
        (rf"{made}compute_robot_action_stats\.py --dataset robocoin", {}),
    ):
        fails(LaryError, words, load_normaliser, spec, tmp_path, **options)


def test_statistics_measured_on_the_training_split(tmp_path: Path) -> None:
    chunks: list[Any] = [draw(4, 3, seed=seed) * 0.01 + 1000 for seed in range(6)]
    chunks[3] = None
    table = arm_table(tmp_path, chunks, [*"abaaba"], ALIKE)
    fails(UsageError, "no normalisation", load_normaliser, ALIKE, tmp_path)
    normaliser = load_normaliser(ALIKE, tmp_path, train=table)
    assert list(normaliser.robots) == ["a", "b"]
    steps = np.concatenate([chunks[0], chunks[2], chunks[5]]).astype(np.float64)
    found = normaliser.statistics("a")
    np.testing.assert_allclose([found.mean, found.std], [steps.mean(axis=0), steps.std(axis=0)], rtol=1e-9)
    fails(LaryError, "None of the action files", load_normaliser, ALIKE, tmp_path, train=table.take([3]))


def test_rows_that_lost_their_robot_are_read_as_the_record_says(tmp_path: Path) -> None:
    """The published first rows: an empty robot type is G1edu-u3, whose statistics the published tool calls nan."""
    spec = DATASETS.get("robocoin")
    source = FIXTURES / "metadata" / "robocoin_metadata_unseen.csv"
    table = read_table(spec, "unseen", path=source, data_dir=tmp_path)
    for number in range(len(table)):
        write_array(table.action_path(number), draw(10, 12, seed=number))
    lost = [name == "" for name in table.frame["robot_type"]]
    assert [name == "G1edu-u3" for name in table.embodiments] == lost
    out, written = normalisation.measure_table(spec, source, tmp_path)
    assert sorted(written["robot_stats"]) == sorted({name or "nan" for name in table.frame["robot_type"]})
    normaliser = load_normaliser(spec, tmp_path)
    np.testing.assert_array_equal(normaliser.statistics("G1edu-u3").mean, normaliser.statistics("nan").mean)
    assert written == json.loads(out.read_text())
    del written["robot_stats"]["nan"]
    out.write_text(json.dumps(written))
    words = r"no action statistics of robot type 'G1edu-u3'.*galaxea_r1_lite"
    fails(LaryError, words, load_targets, table, load_normaliser(spec, tmp_path))


def test_statistics_of_a_table_with_broken_and_missing_action_files(tmp_path: Path) -> None:
    """The numbers of a whole table are those of the published tool, see tests/parity."""
    robots(tmp_path, 4)
    folder = tmp_path / "data/regression/robocoin_10/t/actions/ep_0"
    (tmp_path / "one.csv").rename(tmp_path / "data" / "robocoin_metadata_seen_train.csv")
    config, settings = StatsConfig(dataset="robocoin", workers=2), settings_of(tmp_path)
    np.save(folder / "1.npy", np.full((10, 12), np.nan))
    fails(MediaError, "NaN", write_statistics, config, settings)
    assert not list((tmp_path / "data").rglob("*.json"))
    (folder / "1.npy").unlink()
    _, found = write_statistics(config, settings)
    assert {name: entry["count"] for name, entry in found["robot_stats"].items()} == {"a": 20, "b": 10}
    assert found["missing_actions"] == 1
    printed("data", "stats", "--dataset", "robocoin", root=tmp_path, code=1, has=["1 action files missing"])
    for file in folder.iterdir():
        file.unlink()
    fails(LaryError, r"All 4 action files of .* are missing, such as .*0\.npy", write_statistics, config, settings)


def test_relative_actions_keep_frames_apart_and_name_failures(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 1, "val": 1})
    data, settings = tmp_path / "data", settings_of(tmp_path)
    sorted((data / "regression").rglob("*.npy"))[1].write_bytes(b"")
    config = RelativeConfig(dataset="calvin", csv=(Path("data/calvin_metadata_train.csv"),), workers=1)
    write_table(data / "few_train.csv", rows_of(data / "calvin_metadata_train.csv")[:1])
    both = replace(config, csv=(*config.csv, Path("data/few_train.csv")))  # the first table's statistics count
    for one in (config, replace(config, frame="local"), both):
        report = write_relative(one, settings)
        assert [item.row for item in report.tables[0].failures] == [1]
        assert [row["row"] for row in rows_of(report.tables[0].listed)] == ["2"]
        assert report.statistics is not None
        assert json.loads(report.statistics.read_text())["count"] == 2
    made = [sorted((data / folder).rglob("*.npy")) for folder in FOLDERS.values()]
    assert [len(files) for files in made] == [2, 2]
    path = made[0][0]
    whole = path.read_bytes()
    for spoil in (lambda: path.write_bytes(whole[:90]), lambda: np.save(path, np.zeros((5, 7)))):
        spoil()
        report = write_relative(config, settings)
        assert [(each.written, each.skipped) for each in report.tables] == [(1, 1)]
        assert path.read_bytes() == whole
    relative, some = ("data", "relative", "--dataset", "calvin", "--csv"), "(train): 0 written, 2 there before, 1 "
    printed(*relative, *config.csv, "--csv", "data/few_train.csv", root=tmp_path, code=1, has=[some, "Statistics: /"])
    printed(*relative, data / "calvin_metadata_val.csv", root=tmp_path, has=["(val): 3 written, 0 ", "none, since no "])
    names = {"calvin": ("trainer_val.csv", "my-train.csv", "mine.csv"), "robocoin": ("la_val.csv", "unseen.csv")}
    splits = [normalisation.split_of(DATASETS.get(key), Path(name)) for key in names for name in names[key]]
    assert splits == ["val", "train", "train", "seen_val", "unseen"]
    shutil.rmtree(data / "regression")
    shutil.rmtree(data / "regression_relative")
    fails(LaryError, "None of the actions of .* can be read, such as: .*No such file", write_relative, config, settings)
