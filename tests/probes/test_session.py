"""Surroundings of a training: resuming after a kill, several processes, trackers."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lary.probes.session import (
    STATE_FILE,
    NothingLeft,
    Session,
    StateFile,
    Team,
    flat,
    join,
    launch,
    open_tracker,
)
from lary.types import LaryError, UsageError
from tests.probes.made import KINDS, Bar, Killed, assert_same, numbers, train

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
from tests.probes.made import numbers, train
torch.set_num_threads(1)
kind, folder, left = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
def step(name, arguments):
    global left
    if name == "os.rename":  # a file takes its name
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(step)
np.savez(folder / "numbers.npz", **numbers(train(kind, folder=folder, identity="me")))
"""


def run_process(kind: str, folder: Path, kill: int) -> int:
    """Train in a process of its own that is killed after it has written so many files; 0 for never."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", KILLED, kind, str(folder), str(kill or -1)]
    return subprocess.run(command, check=False, timeout=120).returncode


@pytest.mark.parametrize("kind", ["classify", "mlp"])
def test_a_training_that_was_killed_ends_bit_identical(kind: str, tmp_path: Path) -> None:
    assert run_process(kind, tmp_path / "whole", 0) == 0
    assert run_process(kind, tmp_path / "parts", 3) == -signal.SIGKILL
    assert run_process(kind, tmp_path / "parts", 0) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in parts.iterdir())
    assert_same(dict(np.load(whole / "numbers.npz")), dict(np.load(parts / "numbers.npz")))
    name = "latest.pt" if kind == "classify" else "best_model.pth"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_resumes(kind: str, tmp_path: Path) -> None:
    whole = numbers(train(kind, folder=tmp_path / "whole", identity="me"))
    for _ in range(2):  # in the middle of the second epoch, and of the one after it
        with pytest.raises(Killed):
            train(kind, folder=tmp_path / "parts", identity="me", progress=Bar(10))
    bar = Bar()
    assert_same(whole, numbers(train(kind, folder=tmp_path / "parts", identity="me", progress=bar)))
    rows = 80 if kind == "classify" else 120
    assert bar.skipped >= rows
    assert bar.skipped + bar.total == 3 * rows
    again = Bar(1)  # nothing is left to train
    assert_same(whole, numbers(train(kind, folder=tmp_path / "parts", identity="me", progress=again)))
    assert (again.left, again.skipped) == (1, 3 * rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_training_is_never_taken(kind: str, tmp_path: Path) -> None:
    state, checkpoint = tmp_path / STATE_FILE, tmp_path / "best_model.pth"

    def interrupted(steps: int, identity: str = "me", **options: Any) -> int:
        """Rows that a training found completed, before it was ended after so many steps."""
        bar = Bar(steps)
        with pytest.raises(Killed):
            train(kind, folder=tmp_path, progress=bar, identity=identity, **options)
        return bar.skipped

    others: list[dict[str, Any]] = [
        {"identity": "other"},
        {"seed": 7},
        {"epochs": 4},
        {"resume": False},
        {"protocol": "paper"},
    ]
    for options in others:
        interrupted(10)
        assert state.exists()
        assert interrupted(1, **options) == 0, options
        assert not state.exists()
    damages = [lambda: state.write_bytes(b"PK\x03\x04 torn"), lambda: torch.save({"identity": "x"}, state)]
    damages += [checkpoint.unlink] if kind != "classify" else []
    for damage in damages:
        interrupted(10)
        damage()
        assert interrupted(1) == 0
        assert not state.exists()


def test_a_state_is_written_where_it_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def write(value: Any, stream: Any) -> None:
        written.append(now[0])
        now[0] += 10.0  # the time that writing takes

    monkeypatch.setattr(torch, "save", write)
    file = StateFile(Session(protocol="paper", seed=0, folder=tmp_path, identity="me"))
    for _ in range(9):
        now[0] += 60.0
        file.keep(lambda: {"history": []}, beside="none")
    assert written == [60.0, 310.0, 560.0], "one at once, then when 200 s have passed since the last one"
    file.keep(lambda: {"history": []}, beside="none", last=True)
    assert len(written) == 4
    (tmp_path / STATE_FILE).unlink()
    torn = tmp_path / f".{STATE_FILE}.x1.tmp"
    torn.write_bytes(b"half")
    assert file.load() is None
    assert not torn.exists()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: Any, stream: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LaryError, match=r"Cannot write .*best_model.pth.*No space left on device"):
        train("mlp", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def in_team(folder: Path) -> None:
    """What each of two processes does: all kinds of trainings, the results in files."""
    torch.set_num_threads(1)
    team, device = join()
    assert (team.size, device) == (2, "cpu")
    for kind in KINDS:
        np.savez(folder / f"{kind}{team.rank}.npz", **numbers(train(kind, team=team, batch_size=15)))
    team.leave()
    (folder / "leader").write_text(str(team.rank))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    launch(in_team, (tmp_path,), ("cpu", "cpu"))
    assert (tmp_path / "leader").read_text() == "0"
    for kind in KINDS:
        first, second = (dict(np.load(tmp_path / f"{kind}{rank}.npz")) for rank in range(2))
        assert_same(first, second)
        alone = numbers(train(kind, batch_size=15))
        assert alone.keys() == first.keys()
        for name in alone.keys() - {"history"}:
            np.testing.assert_allclose(first[name], alone[name], rtol=0, atol=1e-5, err_msg=f"{kind} {name}")


def fail_in_one() -> None:
    team, _ = join()
    if team.rank:
        raise UsageError("this one is wrong")
    team.add(torch.zeros(1))  # waits for the other one


def test_the_error_of_one_process_ends_them_all() -> None:
    with pytest.raises(UsageError, match="this one is wrong"):
        launch(fail_in_one, (), ("cpu", "cpu"))


@pytest.mark.parametrize(("count", "batch", "size"), [(7, 2, 3), (1, 4, 2), (12, 3, 2), (5, 100, 4)])
def test_scored_rows_are_dealt_out_once(count: int, batch: int, size: int) -> None:
    dealt = [Team(rank, size).dealt(count, batch) for rank in range(size)]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(count))
    for own in dealt:
        for start in range(0, count, batch):
            whole = min(batch, count - start)
            assert np.isin(np.arange(start, start + whole), own).sum() in (0, whole)
    shares = [range(count)[Team(rank, size).share(count)] for rank in range(size)]
    assert sorted(row for share in shares for row in share) == list(range(count))
    Team(0, size).leave()
    with pytest.raises(NothingLeft):  # only the first process writes
        Team(1, size).leave()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_losses_rates_and_metrics(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Mock(__spec__=ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, name, library)
    tracker = open_tracker(name, tmp_path, "my run", {"seed": 0})
    silent = train("classify")
    outcome = train("classify", tracker=tracker)
    tracker.finish()
    assert_same(numbers(silent), numbers(outcome))
    begun, run = library.init.call_args.kwargs, library.init.return_value
    assert (begun["project"], begun["name"], begun["config"]) == ("lary", "my run", {"seed": 0})
    run.finish.assert_called_once()
    steps = [call.kwargs["step"] for call in run.log.call_args_list]
    assert steps == sorted(steps)
    logged = {key: value for call in run.log.call_args_list for key, value in call.args[0].items()}
    chosen = outcome.history[-1]
    assert logged["validation_accuracy/1"] == chosen["validation_accuracy"][1]
    assert logged["train_loss/0"] == chosen["train_loss"][0]
    assert {"batch_loss/0", "batch_learning_rate/1", "final/held_out_top1", "epoch"} <= logged.keys()
    updates = sum("batch_loss/0" in call.args[0] for call in run.log.call_args_list)
    assert updates == 3 * math.ceil(outcome.settings["fit_samples"] / 16)
    assert flat({"epoch": 2, "loss": [0.5, None, math.nan], "note": "x"}) == {"epoch": 2.0, "loss/0": 0.5}


def test_tensorboard_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, "my run", {"seed": 0})
    outcome = train("mlp", tracker=tracker)
    tracker.finish()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    errors = [event.value for event in found.Scalars("seen_mse")]
    np.testing.assert_allclose(errors, [row["seen_mse"] for row in outcome.history], rtol=1e-6)
    assert {"batch_loss", "train_loss", "learning_rate", "final/held_out_seen_mse"} <= set(found.Tags()["scalars"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"--tracker {name}: .*pip install 'lary\[{name}\]'"):
        open_tracker(name, tmp_path, "my run", {})
    assert open_tracker("none", tmp_path, "my run", {}) is None
