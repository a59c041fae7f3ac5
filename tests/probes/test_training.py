"""What all trainings share: resuming after a kill, several processes, trackers."""

import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lary.probes.regress import RegressorTraining
from lary.probes.team import Team, launch
from lary.probes.training import STATE_FILE, Session, chosen_precision, save_checkpoint, tracking
from lary.runtime import log
from lary.types import LaryError, UsageError
from tests.helpers import fails
from tests.probes.made import TINY, Bar, Killed, assert_same, classifier_inputs, numbers, regressor_inputs, train

BATCHES = {"attentive": 71, "mlp": 107, "dit": 50}
"""Of two processes: one sample is left for the last batch of 72 and 108, in which one of them has no share."""


@pytest.mark.parametrize(("kind", "steps"), [("attentive", 10), ("mlp", 33), ("dit", 10), ("ridge", 2)])
def test_an_interrupted_training_resumes(kind: str, steps: int, tmp_path: Path) -> None:
    epochs = {"ridge": None, "mlp": 9}.get(kind, 3)  # of nine, the last two are averaged
    whole = numbers(train(kind, folder=tmp_path / "whole", identity="me", epochs=epochs))

    def part(bar: Bar) -> dict[str, np.ndarray]:
        return numbers(train(kind, folder=tmp_path / "parts", identity="me", progress=bar, epochs=epochs))

    for _ in range(2):  # in the middle of an epoch, and of a later one
        fails(Killed, "", part, Bar(steps))
    bar, again = Bar(), Bar(1)
    assert_same(whole, part(bar))
    rows = 80 if kind == "attentive" else 120
    assert bar.skipped >= rows
    assert bar.skipped + bar.total == (epochs or 8) * rows
    assert_same(whole, part(again))  # nothing is left to train
    assert (again.left, again.skipped) == (1, (epochs or 8) * rows)


def test_gradients_of_a_network_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[int] = []

    def double(tensor: torch.Tensor) -> None:  # as where both processes have the same
        messages.append(tensor.numel())
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", double)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), torch.nn.Linear(9, 9))
    torch.autograd.backward(network[:2](torch.ones(5, 3)).sum())
    before = [weight.grad.clone() for weight in network[:2].parameters() if weight.grad is not None]
    Team(0, 2).add_gradients(network)
    after = [weight.grad for weight in network[:2].parameters() if weight.grad is not None]
    assert (messages, len(after), network[2].weight.grad) == ([26], 4, None)
    assert all(torch.equal(new, 2 * old) for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("kind", ["attentive", "mlp", "dit"])
def test_a_state_of_another_training_is_never_taken(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "warning", told := Mock())
    state, checkpoint = tmp_path / STATE_FILE, tmp_path / "best_model.pth"

    def interrupted(steps: int, **options: Any) -> int:
        """Rows that a training found completed, before it was ended after so many steps."""
        bar = Bar(steps)
        fails(Killed, "", train, kind, folder=tmp_path, progress=bar, **{"identity": "me", "epochs": 3, **options})
        return bar.skipped

    others: list[dict[str, Any]] = [{"identity": "other"}, {"seed": 7}, {"epochs": 4}, {"protocol": "paper"}]
    turned = classifier_inputs() if kind == "attentive" else regressor_inputs()
    turned.train_targets[:] = turned.train_targets[::-1].copy()
    for options in (*others, {"inputs": turned}):
        interrupted(10)
        assert (state.exists(), interrupted(1, **options), state.exists()) == (True, 0, False), options
    damages: list[Callable[[], Any]] = [
        lambda: state.write_bytes(b"PK\x03\x04 torn"), lambda: torch.save({"identity": "x"}, state),
        lambda: monkeypatch.setattr("lary.probes.training.__version__", "0"),
    ]  # fmt: skip
    for damage in damages:
        interrupted(10)
        damage()
        assert (interrupted(1), state.exists()) == (0, False)
    if kind != "attentive":  # the best weights so far belong to a state, where an epoch is picked
        interrupted(10, protocol="paper")
        checkpoint.unlink()
        assert (interrupted(1, protocol="paper"), state.exists()) == (0, False)
        damages.append(checkpoint.unlink)
    assert told.call_count == len(others) + 1 + len(damages)


def test_a_state_is_written_where_it_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def write(value: Any, stream: Any) -> None:
        written.append(now[0])
        now[0] += 10.0  # the time that writing takes

    monkeypatch.setattr(torch, "save", write)
    session = Session(protocol="paper", seed=0, folder=tmp_path, identity="me")
    training = RegressorTraining(regressor_inputs(), TINY.regressor, session)
    for _ in range(9):
        now[0] += 60.0
        training.keep({}, last=False)
    assert written == [60.0, 310.0, 560.0], "one at once, then when 200 s have passed since the last one"
    training.keep({}, last=True)
    assert len(written) == 4


@pytest.mark.parametrize("identity", ["", "me"])
def test_best_weights_are_written_with_states_and_at_the_end(identity: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Every best epoch once wrote its weights while the training waited, 8.6 GB at the published size."""
    moved, replacing, picked = [], os.replace, []
    monkeypatch.setattr(os, "replace", lambda old, new: moved.append(Path(new).name) or replacing(old, new))
    offer = RegressorTraining.offer
    monkeypatch.setattr(RegressorTraining, "offer", lambda *a, **k: bool(picked.append(offer(*a, **k)) or picked[-1]))
    train("mlp", folder=tmp_path, identity=identity, protocol="paper", epochs=8)
    best, states = moved.count("best_model.pth"), moved.count(STATE_FILE)
    assert sum(picked) > 2, "epochs became better, so that the weights were picked again and again"
    assert (best, states) == (1, 0) if not identity else 1 <= best <= states


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f".{STATE_FILE}.x1.tmp").write_bytes(b"what a killed training was writing")
    monkeypatch.setattr(torch, "save", Mock(side_effect=OSError(28, "No space left on device")))
    message = r"Cannot write .*best_model.pth.*No space left on device"
    fails(LaryError, message, train, "mlp", folder=tmp_path, identity="me", protocol="paper")
    assert not list(tmp_path.iterdir())


def in_team(folder: Path, team: Team, device: str) -> None:
    """What each of two processes does: all kinds of trainings, the results in files."""
    torch.set_num_threads(1)
    assert (team.size, device) == (2, "cpu")
    for kind, size in BATCHES.items():
        np.savez(folder / f"{kind}{team.rank}.npz", **numbers(train(kind, team=team, epochs=3, batch_size=size)))


@pytest.mark.usefixtures("forked")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    assert [Team(rank, 2).dealt(7, 2).tolist() for rank in range(2)] == [[0, 1, 4, 5], [2, 3, 6]], "scored once"
    launch(in_team, (tmp_path,), ("cpu", "cpu"))
    for kind, size in BATCHES.items():
        first, second = (dict(np.load(tmp_path / f"{kind}{rank}.npz")) for rank in range(2))
        assert_same(first, second)
        outcome = train(kind, epochs=3, batch_size=size)
        assert outcome.settings["fit_samples"] == (80 if kind == "attentive" else 120)
        alone = numbers(outcome)
        assert alone.keys() == first.keys()
        for name in alone.keys() - {"history"}:
            np.testing.assert_allclose(first[name], alone[name], rtol=0, atol=1e-5, err_msg=f"{kind} {name}")


class Elsewhere(torch.Tensor):
    """A tensor in the place of one on a device: it can be saved, but not loaded on any machine."""

    def to(self, *_: Any, **__: Any) -> Any:
        return self.as_subclass(torch.Tensor)


def test_checkpoints_are_tensors_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    value = {"network": {"weight": torch.ones(2).as_subclass(Elsewhere)}, "picks": [{"epoch": 3, "head": None}]}
    save_checkpoint(tmp_path / "state.pt", value)
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (found["network"]["weight"].tolist(), found["picks"]) == ([1, 1], value["picks"])


def fail_in_one(team: Team, _: str) -> None:
    if team.rank:
        raise UsageError("this one is wrong")
    team.add(torch.zeros(1))  # waits for the other one


@pytest.mark.usefixtures("forked")
def test_the_error_of_one_process_ends_them_all() -> None:
    fails(UsageError, "this one is wrong", launch, fail_in_one, (), ("cpu", "cpu"))


def wait_in_c(folder: Path, team: Team, _: str) -> None:
    """The first waits where no signal handler of Python runs, as for a stream of CUDA."""
    (folder / f"{team.rank}-{os.getpid()}").touch()
    if team.rank == 0:
        pause = ctypes.CDLL(None).pause
        while True:
            pause()
    time.sleep(100)


@pytest.mark.parametrize("ends", ["Ctrl-C", "a killed rank"])
def test_a_command_ends_with_its_processes(ends: str, tmp_path: Path) -> None:
    def end() -> None:
        while len(found := sorted(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        begun.append(time.monotonic())
        os.kill(os.getpid() if ends == "Ctrl-C" else int(found[1].name[2:]), SIGINT if ends == "Ctrl-C" else SIGKILL)

    begun: list[float] = []
    threading.Thread(target=end, daemon=True).start()
    kind: type[BaseException] = KeyboardInterrupt if ends == "Ctrl-C" else LaryError
    words = "" if ends == "Ctrl-C" else "training processes failed: .*SIGKILL"
    fails(kind, words, launch, wait_in_c, (tmp_path,), ("cpu", "cpu"))
    assert time.monotonic() - begun[0] < 10
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.name[2:]), 0)


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
    assert begun.get("dir") == (str(tmp_path) if name == "wandb" else None)
    run.finish.assert_called_once()
    steps = [call.kwargs["step"] for call in run.log.call_args_list]
    assert steps == sorted(steps)
    logged = {key: value for call in run.log.call_args_list for key, value in call.args[0].items()}
    chosen = outcome.history[-1]
    assert logged["validation_accuracy/1"] == chosen["validation_accuracy"][1]
    assert logged["train_loss/0"] == chosen["train_loss"][0]
    assert {"batch_loss/0", "batch_learning_rate/1", "epoch"} <= logged.keys()
    updates = sum("batch_loss/0" in call.args[0] for call in run.log.call_args_list)
    assert updates == 3 * math.ceil(outcome.settings["fit_samples"] / 16)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    words = rf"--tracker {name}: .*pip install 'lary\[{name}\]'"
    with pytest.raises(UsageError, match=words), tracking(name, tmp_path, "my run", {}):
        pass
    with tracking("none", tmp_path, "my run", {}) as tracker:
        assert tracker is None


@pytest.mark.parametrize("kind", ["attentive", "mlp", "dit"])
def test_bfloat16_is_near_float32_and_named(kind: str) -> None:
    plain, half = (train(kind, epochs=3, precision=precision) for precision in (None, "bf16"))
    assert (plain.settings["precision"], half.settings["precision"]) == ("fp32", "bf16")
    first, second = (numbers(each) for each in (plain, half))
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    for name in first.keys() - {"history"}:
        np.testing.assert_allclose(first[name], second[name], atol=0.2, rtol=0.2)
    fails(UsageError, "--precision tf32: cpu has no TF32", train, kind, precision="tf32")


def test_accelerators_train_in_tf32_but_not_as_published() -> None:
    def chosen(device: str, protocol: Any, asked: str | None = None) -> str:
        return chosen_precision(False, Session(protocol=protocol, seed=0, device=device, precision=asked))

    found = [chosen("cuda:1", "corrected"), chosen("cuda:1", "paper"), chosen("cpu", "corrected")]
    assert found == ["tf32", "fp32", "fp32"]
    assert [chosen("cuda:0", "corrected", "fp32"), chosen("cuda:0", "paper", "bf16")] == ["fp32", "bf16"]
