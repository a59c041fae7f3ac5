"""What all trainings share: resuming after a kill, several processes, trackers."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lary.probes.regress import RegressorTraining
from lary.probes.training import STATE_FILE, Session, Team, join, launch, tracking
from lary.types import LaryError, UsageError
from tests.probes.made import KINDS, TINY, Bar, Killed, assert_same, numbers, regressor_inputs, train

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
np.savez(folder / "numbers.npz", **numbers(train(kind, epochs=3, folder=folder, identity="me")))
"""


@pytest.mark.parametrize(("kind", "weights"), [("attentive", "latest.pt"), ("mlp", "best_model.pth")])
def test_a_training_that_was_killed_ends_bit_identical(kind: str, weights: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, kill, code in ((whole, -1, 0), (parts, 3, -signal.SIGKILL), (parts, -1, 0)):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", KILLED, kind, str(folder), str(kill)]
        assert subprocess.run(command, check=False, timeout=120).returncode == code
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in parts.iterdir())
    assert_same(dict(np.load(whole / "numbers.npz")), dict(np.load(parts / "numbers.npz")))
    assert (whole / weights).read_bytes() == (parts / weights).read_bytes()


@pytest.mark.parametrize(("kind", "steps"), [("attentive", 10), ("mlp", 10), ("dit", 10), ("ridge", 3)])
def test_an_interrupted_training_resumes(kind: str, steps: int, tmp_path: Path) -> None:
    epochs = None if kind == "ridge" else 3
    whole = numbers(train(kind, folder=tmp_path / "whole", identity="me", epochs=epochs))

    def part(bar: Bar) -> dict[str, np.ndarray]:
        return numbers(train(kind, folder=tmp_path / "parts", identity="me", progress=bar, epochs=epochs))

    for _ in range(2):  # in the middle of the second epoch, and of the one after it
        with pytest.raises(Killed):
            part(Bar(steps))
    bar, again = Bar(), Bar(1)
    assert_same(whole, part(bar))
    rows = 80 if kind == "attentive" else 120
    assert bar.skipped >= rows
    assert bar.skipped + bar.total == (epochs or 8) * rows
    assert_same(whole, part(again))  # nothing is left to train
    assert (again.left, again.skipped) == (1, (epochs or 8) * rows)


@pytest.mark.parametrize("kind", ["attentive", "mlp", "dit"])
def test_a_state_of_another_training_is_never_taken(kind: str, tmp_path: Path) -> None:
    state, checkpoint = tmp_path / STATE_FILE, tmp_path / "best_model.pth"

    def interrupted(steps: int, **options: Any) -> int:
        """Rows that a training found completed, before it was ended after so many steps."""
        bar = Bar(steps)
        with pytest.raises(Killed):
            train(kind, folder=tmp_path, progress=bar, **{"identity": "me", "epochs": 3, **options})
        return bar.skipped

    others: list[dict[str, Any]] = [{"identity": "other"}, {"seed": 7}, {"epochs": 4}, {"protocol": "paper"}]
    for options in others:
        interrupted(10)
        assert state.exists()
        assert interrupted(1, **options) == 0, options
        assert not state.exists()
    damages: list[Callable[[], Any]] = [
        lambda: state.write_bytes(b"PK\x03\x04 torn"), lambda: torch.save({"identity": "x"}, state)
    ]  # fmt: skip
    damages += [checkpoint.unlink] if kind != "attentive" else []
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
    session, rows = Session(protocol="paper", seed=0, folder=tmp_path, identity="me"), np.arange(120)
    training = RegressorTraining(regressor_inputs(), TINY.regressor, session, (rows, rows[:0]))
    for _ in range(9):
        now[0] += 60.0
        training.keep({}, last=False)
    assert written == [60.0, 310.0, 560.0], "one at once, then when 200 s have passed since the last one"
    training.keep({}, last=True)
    assert len(written) == 4


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: Any, stream: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / f".{STATE_FILE}.x1.tmp").write_bytes(b"what a killed training was writing")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LaryError, match=r"Cannot write .*best_model.pth.*No space left on device"):
        train("mlp", folder=tmp_path, identity="me")
    assert not list(tmp_path.iterdir())


def in_team(folder: Path) -> None:
    """What each of two processes does: all kinds of trainings, the results in files."""
    torch.set_num_threads(1)
    team, device = join()
    assert (team.size, device) == (2, "cpu")
    for kind in KINDS[:3]:
        np.savez(folder / f"{kind}{team.rank}.npz", **numbers(train(kind, team=team, epochs=3, batch_size=15)))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    launch(in_team, (tmp_path,), ("cpu", "cpu"))
    for kind in KINDS[:3]:
        first, second = (dict(np.load(tmp_path / f"{kind}{rank}.npz")) for rank in range(2))
        assert_same(first, second)
        alone = numbers(train(kind, epochs=3, batch_size=15))
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
def test_scored_rows_are_dealt_out_once_by_whole_batches(count: int, batch: int, size: int) -> None:
    teams = [Team(rank, size) for rank in range(size)]
    dealt = [team.dealt(count, batch).tolist() for team in teams]
    assert sorted(row for own in dealt for row in own) == list(range(count))
    for start in range(0, count, batch):
        whole = set(range(start, min(count, start + batch)))
        assert all(whole <= set(own) or not whole & set(own) for own in dealt)
    shares = [list(range(count))[team.share] for team in teams]
    assert sorted(row for share in shares for row in share) == list(range(count))
    assert [team.leads for team in teams] == [True] + [False] * (size - 1)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_losses_rates_and_metrics(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Mock(__spec__=ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, name, library)
    silent = train("attentive", epochs=3)
    with tracking(name, tmp_path, "my run", {"seed": 0, "pool": None}) as tracker:
        outcome = train("attentive", epochs=3, tracker=tracker)
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


def test_tensorboard_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracking("tensorboard", tmp_path, "my run", {"seed": 0}) as tracker:
        outcome = train("mlp", tracker=tracker, epochs=3)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    errors = [event.value for event in found.Scalars("seen_mse")]
    np.testing.assert_allclose(errors, [row["seen_mse"] for row in outcome.history], rtol=1e-6)
    assert {"batch_loss", "train_loss", "learning_rate", "final/held_out_seen_mse"} <= set(found.Tags()["scalars"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(UsageError, match=rf"--tracker {name}: .*pip install 'lary\[{name}\]'"),
        tracking(name, tmp_path, "my run", {}),
    ):
        pass
    with tracking("none", tmp_path, "my run", {}) as tracker:
        assert tracker is None
