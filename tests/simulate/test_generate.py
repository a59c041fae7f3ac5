"""Simulated data: clips, sameness of bytes, folders that are not empty; tests/golden has the tables and arrays."""

from pathlib import Path

import numpy as np
import pytest

from lary.data.frames import decode_video, read_clip
from lary.simulate import VERBS
from tests.helpers import contents, lary, printed, rows_of
from tests.hostile.harness import snapshot
from tests.simulate.conftest import TINY


def test_clips_decode_and_do_not_name_their_verb(made: Path) -> None:
    rows = [row for split in ("train", "val") for row in rows_of(made / f"data/simarm_actions_metadata_{split}.csv")]
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
    out, first = tmp_path / "again", contents(made)
    assert lary("simulate", out, *TINY[:-1], "2").code == 0
    assert contents(out) == first
    for name in [*list(first)[::7], "simulation.json"]:
        (out / name).unlink(missing_ok=True)
    (out / "data" / "classification" / "SimArm" / ".clip.mp4.abc.tmp").write_bytes(b"half")
    (out / ".simulation-unfinished.json").write_bytes((made / "simulation.json").read_bytes())
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("SimArm/[!.]*.mp4")}
    assert lary("simulate", out, *TINY).code == 0
    assert contents(out) == first
    assert {} != kept == {path: path.stat().st_mtime_ns for path in kept}, "what is there is not made again"
    (out / "lary.yaml").write_text("of the user")
    (out / "data" / "simarm_metadata_val.csv").unlink()
    assert lary("simulate", out, *TINY).code == 0
    assert contents(out) == first | {"lary.yaml": b"of the user"}


def test_folders_that_are_not_empty(made: Path, tmp_path: Path) -> None:
    before = snapshot(made)
    printed("simulate", made, *TINY, has=["simarm_metadata_train: 7 rows", "nothing to do"])
    for option in range(0, 8, 2):  # seed, pairs, clips and size
        changed = [*TINY[: option + 1], str(int(TINY[option + 1]) + 2), *TINY[option + 2 :]]
        printed("simulate", made, *changed, code=2, has=["--overwrite"])
    assert snapshot(made) == before
    out = tmp_path / "other"
    stray = out / "data" / "regression" / "simarm" / "train_stride5" / "stray.png"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of another simulation")
    assert "without a record" in lary("simulate", out, *TINY).err
    (out / "data" / "mine.csv").write_text("stays")
    assert lary("simulate", out, *TINY, "--overwrite").code == 0
    (out / "data" / "mine.csv").unlink()
    assert contents(out) == contents(made)


def test_a_missing_simulator_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    printed("simulate", tmp_path / "none", *TINY, code=2, has=["pip install 'lary[demo]'"])
    assert not (tmp_path / "none").exists()
