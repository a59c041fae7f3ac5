"""Action statistics and relative actions: numbers, merging, files per frame, and failures by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lary.data.actions import FOLDERS
from lary.data.configs import RelativeConfig, StatsConfig
from lary.data.spec import DATASETS
from lary.data.statistics import split_of, write_relative, write_statistics
from lary.types import LaryError, MediaError, UsageError
from tests.helpers import settings_of
from tests.tree import make_calvin, write_table

TABLE = "robocoin_metadata_seen_train.csv"


def save_actions(root: Path, rows: list[tuple[str, str, np.ndarray]], table: str = TABLE) -> Path:
    """Files and table of robocoin's training split: robot type, path, chunk."""
    for _, path, values in rows:
        place = root / "data" / "regression" / "robocoin_10" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, values)
    cells = [{"robot_type": robot, "action": path, "src_img": "a.png", "tgt_img": "b.png"} for robot, path, _ in rows]
    write_table(root / "data" / table, cells)
    return root / "data" / table


def chunks(count: int, shape: tuple[int, int] = (10, 12)) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [(rng.normal(size=shape) * 1e-3 + 100 * rng.random()).astype(np.float32) for _ in range(count)]


def test_statistics_of_parts_merge_into_those_of_the_whole(tmp_path: Path) -> None:
    rows = [("ab"[number % 2], f"t/actions/ep_0/{number}.npy", values) for number, values in enumerate(chunks(80))]
    found, settings = {}, settings_of(tmp_path)
    for name, some in (("first", rows[:50]), ("second", rows[50:]), ("whole", rows)):
        csv_file, out = save_actions(tmp_path, some, f"{name}.csv"), tmp_path / f"{name}.json"
        write_statistics(StatsConfig(dataset="robocoin", csv=csv_file, output=out, workers=2), settings)
    parts = (tmp_path / "first.json", tmp_path / "second.json")
    write_statistics(StatsConfig(dataset="robocoin", merge=parts, output=tmp_path / "merged.json"), settings)
    for name in ("merged", "whole"):
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
        for robot in "ab":
            values = np.concatenate([chunk for each, _, chunk in rows if each == robot]).astype(np.float64)
            entry = found[name]["robot_stats"][robot]
            assert entry["count"] == len(values)
            np.testing.assert_allclose(entry["mean"], values.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(entry["std"], values.std(axis=0), rtol=1e-9)
    assert found["merged"]["global"]["count"] == 800
    with pytest.raises(LaryError, match="no statistics per robot type of agibotbeta"):
        write_statistics(StatsConfig(dataset="agibotbeta", merge=parts, output=tmp_path / "no.json"), settings)
    with pytest.raises(UsageError, match="--output"):
        write_statistics(StatsConfig(dataset="robocoin", merge=parts), settings)
    for spoilt, words in (({"count": 1}, "hold no count, mean and m2"), ({"count": 0, "mean": [], "m2": []}, "torn")):
        parts[0].write_text(json.dumps({"dataset": "robocoin", "robot_stats": {"a": spoilt}}))
        with pytest.raises(LaryError, match=words):
            write_statistics(StatsConfig(dataset="robocoin", merge=parts, output=tmp_path / "no.json"), settings)


def test_broken_and_missing_action_files(tmp_path: Path) -> None:
    save_actions(tmp_path, [("a", f"t/actions/{number}.npy", chunk) for number, chunk in enumerate(chunks(3))])
    folder = tmp_path / "data" / "regression" / "robocoin_10" / "t" / "actions"
    config, settings = StatsConfig(dataset="robocoin"), settings_of(tmp_path)
    broken = {
        "no multiple of 12": np.zeros((3, 5)),
        "NaN": np.full((10, 12), np.nan),
        "no array of numbers": np.array(["x"]),
    }
    for message, values in broken.items():
        np.save(folder / "1.npy", values)
        with pytest.raises(MediaError, match=message):
            write_statistics(config, settings)
        assert not list((tmp_path / "data").rglob("*.json"))
    (folder / "1.npy").unlink()
    report = write_statistics(config, settings)
    assert (report.robots, report.missing) == ({"a": 20}, 1)
    found = json.loads(report.out.read_text())
    assert found["missing_action_examples"] == ["regression/robocoin_10/t/actions/1.npy"]
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(LaryError, match=r"All 3 action files of .* are missing, such as .*0\.npy"):
        write_statistics(config, settings)
    with pytest.raises(UsageError, match="without a statistics file; name one with --output"):
        write_statistics(StatsConfig(dataset="calvin", csv=tmp_path / "data" / TABLE), settings)


def test_relative_actions_keep_frames_apart_and_name_failures(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 1})
    data, table = tmp_path / "data", tmp_path / "data" / "calvin_metadata_train.csv"
    broken = sorted((data / "regression").rglob("*.npy"))[1]
    broken.write_bytes(b"")
    for frame in ("world", "local"):
        config = RelativeConfig(dataset="calvin", csv=(Path("data/calvin_metadata_train.csv"),), frame=frame, workers=1)  # type: ignore[arg-type]
        report = write_relative(config, settings_of(tmp_path))
        assert [item.row for item in report.tables[0].failures] == [1]
        with report.tables[0].listed.open(newline="") as file:
            assert [row["row"] for row in csv.DictReader(file)] == ["2"]
        assert report.statistics is not None
        assert json.loads(report.statistics.read_text())["count"] == 2
    world, local = ((data / folder).rglob("*.npy") for folder in FOLDERS.values())
    assert len(list(world)) == len(list(local)) == 2
    config, made = (
        RelativeConfig(dataset="calvin", csv=(table,), workers=1),
        next((data / FOLDERS["world"]).rglob("*.npy")),
    )
    whole = made.read_bytes()
    for spoil in (lambda: made.write_bytes(whole[:90]), lambda: np.save(made, np.zeros((5, 7)))):
        spoil()
        report = write_relative(config, settings_of(tmp_path))
        assert [(each.written, each.skipped) for each in report.tables] == [(1, 1)]
        assert made.read_bytes() == whole
    with pytest.raises(UsageError, match="holds classes"):
        write_relative(RelativeConfig(dataset="libero", csv=(table,)), settings_of(tmp_path))


def test_split_of_a_table() -> None:
    for table, dataset, split in (
        ("train_la_calvin_5_dinov2.csv", "calvin", "train"), ("val_la_calvin_5_x.csv", "calvin", "val"),
        ("seen_val_la_robocoin_10_x.csv", "robocoin", "seen_val"), ("pairs.csv", "robocoin", "seen_train"),
        ("unseen_la_robocoin_10_x.csv", "robocoin", "unseen"), ("constrained_val.csv", "calvin", "val"),
    ):  # fmt: skip
        assert split_of(DATASETS.get(dataset), Path(table)) == split, table
