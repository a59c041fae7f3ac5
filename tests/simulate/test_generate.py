"""Simulated data: layout, sameness of bytes, statistics, and what happens to folders that are not empty."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from lary.data.frames import decode_video, read_clip
from lary.data.spec import DATASETS
from lary.simulate import VERBS, contact_sheet, write_sheets
from lary.simulate.plan import PAIR_COLUMNS, PAIR_SPLITS
from lary.types import UsageError
from tests.helpers import lary, rows_of
from tests.simulate.conftest import TINY


def hashes(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(out: Path, name: str) -> list[dict[str, str]]:
    return rows_of(out / "data" / f"{name}.csv")


def array(out: Path, split: str, name: str) -> np.ndarray:
    return np.load(out / "data" / "regression" / "simarm" / f"{split}_stride5" / name, allow_pickle=False)


def test_layout(made: Path) -> None:
    rows = {split: table(made, f"simarm_metadata_{split}") for split in PAIR_SPLITS}
    assert {split: len(found) for split, found in rows.items()} == {"train": 7, "val": 2, "unseen": 3}
    for split, found in rows.items():
        root = made / "data" / "regression" / "simarm" / f"{split}_stride5"
        assert list(found[0]) == list(PAIR_COLUMNS)
        for row in found:
            begin, folder = int(row["src_img"][-10:-4]), row["src_img"].split("/")[1]
            assert row["tgt_img"] == f"images/{folder}/frame_{begin + 5:06d}.png"
            assert row["src_state"] == f"states/{folder}/state_{begin:06d}.npy"
            assert row["action"] == f"actions/{folder}/action_{begin:06d}to{begin + 4:06d}.npy"
            assert cv2.imread(str(root / row["src_img"])).shape == (48, 48, 3)
            chunk, target = array(made, split, row["action"]), array(made, split, row["tgt_state"])
            assert (chunk.shape, chunk.dtype, target.shape) == ((5, 7), np.float32, (15,))
            assert set(np.unique(chunk[:, 6])) <= {-1.0, 1.0}
            np.testing.assert_array_equal(chunk[-1], np.append(target[:6], target[14]))
        assert {row["scene"] for row in found} <= ({"D"} if split == "val" else {"A", "B", "C"})
    assert (made / "lary.yaml").read_text().splitlines()[1] == "DATA_DIR: data"
    config = json.loads((made / "simulation.json").read_text())["config"]
    assert config == {"seed": 3, "pairs": 12, "clips": 10, "size": 48}


def test_clips_decode_and_do_not_name_their_verb(made: Path) -> None:
    rows = [row for split in ("train", "val") for row in table(made, f"simarm_actions_metadata_{split}")]
    assert sorted(row["action"] for row in rows) == list(VERBS)
    for row in rows:
        assert not any(verb in row["video_path"] for verb in VERBS)
        path = made / "data" / "classification" / row["video_path"]
        count = sum(1 for _ in decode_video(path))
        indices = [int(index) for index in row["sample_indices"].split(",")]
        assert (len(indices), indices[0], indices[-1], sorted(set(indices))) == (9, 0, count - 1, indices)
        first, last = read_clip([path], [0, count - 1]).astype(int)
        assert first.shape == (48, 48, 3)
        assert np.abs(first - last).max() > 30, "something moved"


def test_same_bytes_with_two_processes_and_after_an_interruption(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert lary("simulate", out, *TINY[:-1], "2").code == 0
    first = hashes(made)
    assert hashes(out) == first
    for name in [name for number, name in enumerate(first) if number % 7 == 0] + ["simulation.json"]:
        (out / name).unlink(missing_ok=True)
    (out / "data" / "classification" / "SimArm" / ".clip.mp4.abc.tmp").write_bytes(b"half")
    (out / ".simulation-unfinished.json").write_bytes((made / "simulation.json").read_bytes())
    assert lary("simulate", out, *TINY).code == 0
    assert hashes(out) == first


def test_a_finished_simulation_is_left_alone(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    done = lary("simulate", made, *TINY)
    assert "simarm_metadata_train: 7 rows" in done.out
    assert "nothing to do" in done.err
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == before


def test_another_simulation_is_refused_unless_overwritten(made: Path, tmp_path: Path) -> None:
    done = lary("simulate", made, "--seed", "4", *TINY[2:])
    assert (done.code, "--overwrite" in done.err) == (2, True)
    out = tmp_path / "other"
    stray = out / "data" / "regression" / "simarm" / "train_stride5" / "stray.png"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of another simulation")
    assert "without a record" in lary("simulate", out, *TINY).err
    (out / "data" / "mine.csv").write_text("stays")
    assert lary("simulate", out, *TINY, "--overwrite").code == 0
    (out / "data" / "mine.csv").unlink()
    assert hashes(out) == hashes(made)


def test_mujoco_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    done = lary("simulate", tmp_path / "none", *TINY)
    assert (done.code, "pip install 'lary[demo]'" in done.err) == (2, True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("pairs", "9"), ("clips", "3"), ("size", "49"), ("size", "8"), ("processes", "0"), ("seed", "-1")],
)
def test_numbers_that_make_no_data_set(option: str, value: str, tmp_path: Path) -> None:
    assert lary("simulate", tmp_path / "none", f"--{option}={value}").code == 2
    assert not (tmp_path / "none").exists()


def test_statistics_are_those_of_the_training_steps_of_each_robot(made: Path) -> None:
    stats = json.loads((made / "data/regression/simarm/simarm_stats.json").read_text())["robot_stats"]
    rows = table(made, "simarm_metadata_train")
    for split in ("val", "unseen"):
        assert {row["robot_type"] for row in table(made, f"simarm_metadata_{split}")} <= set(stats)
    assert set(stats) == {"heron", "badger"}
    for robot, numbers in stats.items():
        steps = np.concatenate([array(made, "train", row["action"]) for row in rows if row["robot_type"] == robot])
        spread = steps.std(0, dtype=float)
        assert numbers["count"] == len(steps)
        np.testing.assert_allclose(numbers["mean"], steps.mean(0, dtype=float), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(numbers["std"], np.where(spread > 1e-6, spread, 1), rtol=1e-9)


def test_records_agree_with_what_is_made(made: Path) -> None:
    pairs = DATASETS.get("simarm")
    assert DATASETS.get("simarm_actions").labels.classes == VERBS
    assert (pairs.stride, pairs.actions.horizon, len(pairs.actions.dims)) == (5, 5, 7)
    for record in map(DATASETS.get, ("simarm", "simarm_unseen", "simarm_actions")):
        for split, place in record.splits.items():
            assert (made / "data" / record.table_name(split)).is_file()
            assert (made / "data" / place.root).is_dir()


def test_contact_sheets(made: Path, tmp_path: Path) -> None:
    rows = contact_sheet(made, "simarm_actions_metadata_train", tmp_path / "sheet.png", rows=1)
    image = cv2.imread(str(tmp_path / "sheet.png"))
    assert (rows, image.shape[0], image.shape[1] > 9 * 48) == (7, 7 * 48, True)
    assert contact_sheet(made, "simarm_metadata_val", tmp_path / "pairs.png", rows=1) == 2
    shutil.copytree(made, tmp_path / "copy")
    assert [path.name for path in write_sheets(tmp_path / "copy", rows=1)][-1] == "simarm_metadata_unseen.png"
    with pytest.raises(UsageError, match="no table"):
        contact_sheet(made, "nothing", tmp_path / "none.png")
