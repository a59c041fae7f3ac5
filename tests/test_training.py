"""What surrounds a training: going on after a kill, several processes, trackers, memory, precision."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lary.probes import memory, mlp, state
from lary.probes.attentive import SHORT, _attend
from lary.probes.dit import ActionExpertDiT
from lary.probes.fit import in_bfloat16
from lary.probes.memory import check_memory, count_weights, training_need
from lary.probes.mlp import ActionExpertMLP
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome
from lary.probes.parallel import Done, Team, join, launch, visible
from lary.probes.presets import PRESETS, DitSettings
from lary.probes.regress import make_network
from lary.probes.session import Session
from lary.probes.sources import NamedSource, ProjectedSource
from lary.probes.state import FILE, StateFile
from lary.probes.tracker import flat, open_tracker
from lary.types import LaryError, UsageError
from tests.test_probes import TINY, SpySource, classifier_inputs, classify, regress, regressor_inputs

SMALL_DIT = replace(
    TINY, dit=DitSettings(hidden_dim=16, depth=1, num_heads=2, epochs=3, batch_size=16, lr=1e-2, sampler_steps=4)
)
KINDS = ("classify", "mlp", "dit")
Outcome = ClassificationOutcome | RegressionOutcome


def train(kind: str, folder: Path | None = None, session: Session | None = None, **options: Any) -> Outcome:
    """A small training of one kind, three epochs."""
    given: dict[str, Any] = {"epochs": 3, "folder": folder, "session": session or Session(), **options}
    if kind == "classify":
        return classify(classifier_inputs(), **given)
    return regress(regressor_inputs(), SMALL_DIT, probe=kind, **given)


def numbers(outcome: Outcome) -> dict[str, np.ndarray]:
    """All that an outcome predicts, and its history as text."""
    found = {"history": np.array(repr(outcome.history))}
    if isinstance(outcome, ClassificationOutcome):
        return found | {name: chosen.logits for name, chosen in outcome.selections.items()}
    for role, split in outcome.splits.items():
        found |= {f"{role} {name}": chosen.values for name, chosen in split.selections.items()}
    return found


def assert_same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


class Killed(Exception):
    """Stands for the end of a process."""


class Bar:
    """Progress that ends the training after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.skipped = 0

    def advance(self, count: int = 1) -> None:
        self.left -= 1
        if not self.left:
            raise Killed

    def skip(self, count: int) -> None:
        self.skipped += count


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_ends_with_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SHARE", math.inf)
    whole = train(kind, tmp_path / "whole", Session("me"))
    for _ in range(2):  # in the middle of the second epoch, and of the one after it
        with pytest.raises(Killed):
            train(kind, tmp_path / "parts", Session("me"), progress=Bar(10))
    bar = Bar(1000)
    parts = train(kind, tmp_path / "parts", Session("me"), progress=bar)
    assert bar.skipped > 0
    assert_same(numbers(whole), numbers(parts))
    name = "latest.pt" if kind == "classify" else "best_model.pth"
    first, second = (torch.load(tmp_path / place / name, weights_only=True) for place in ("whole", "parts"))
    assert repr(first) == repr(second)
    again = Bar(1)  # nothing is left to train
    assert_same(numbers(whole), numbers(train(kind, tmp_path / "parts", Session("me"), progress=again)))
    assert again.left == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_training_is_never_taken(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SHARE", math.inf)
    folder = tmp_path / "run"

    def interrupted(**options: Any) -> int:
        """How much a training found done, before it was ended at once."""
        bar = Bar(1)
        with pytest.raises(Killed):
            train(kind, folder, progress=bar, **options)
        return bar.skipped

    def prepare() -> None:
        with pytest.raises(Killed):
            train(kind, folder, Session("me"), progress=Bar(10))
        assert (folder / FILE).exists()

    others: list[dict[str, Any]] = [
        {"session": Session("other")}, {"session": Session("me"), "seed": 7}, {"session": Session("me"), "epochs": 4},
        {"session": Session("me", resume=False)}, {"session": Session("me"), "protocol": "paper"},
    ]  # fmt: skip
    for options in others:
        prepare()
        interrupted(**options)
        assert not (folder / FILE).exists(), options
    prepare()
    (folder / FILE).write_bytes(b"PK\x03\x04 torn")
    interrupted(session=Session("me"))
    assert not (folder / FILE).exists()
    if kind != "classify":
        prepare()
        (folder / "best_model.pth").unlink()
        interrupted(session=Session("me"))
        assert not (folder / FILE).exists()


def test_a_state_is_written_where_it_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: now[0])
    written: list[float] = []

    def write(path: Path, value: dict[str, Any]) -> None:
        written.append(now[0])
        now[0] += 10.0  # what writing takes

    monkeypatch.setattr(state, "save_checkpoint", write)
    file = StateFile(tmp_path, "me")
    for _ in range(9):
        now[0] += 60.0
        file.keep(lambda: {"epoch": 1})
    assert written == [60.0, 310.0, 560.0], "one at once, then when 200 s have passed since the last one"
    file.keep(lambda: {"epoch": 2}, last=True)
    assert len(written) == 4
    torn = tmp_path / ".training_state.pt.x1.tmp"
    torn.write_bytes(b"half")
    assert file.load() is None
    assert not torn.exists()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: Any, stream: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LaryError, match=r"Cannot write .*best_model.pth.*No space left on device"):
        train("mlp", tmp_path)


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_parts_of_a_loss_add_up(kind: str) -> None:
    """What three processes compute for their shares of a batch is the loss of the whole."""
    settings = TINY.regressor if kind == "mlp" else SMALL_DIT.dit
    torch.manual_seed(0)
    network = make_network(settings, (2, 3, 4), (9, 2, 3), 0)
    tokens, targets = torch.randn(10, 2, 3, 4), torch.randn(10, 6)
    torch.manual_seed(1)
    whole = network.loss(tokens, targets)
    parts = []
    for rank in range(3):
        torch.manual_seed(1)
        share = Team(rank, 3).share(10)
        parts.append(network.loss(tokens[share], targets[share], 10, share))
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def in_team(folder: Path) -> None:
    """What each of two processes does: all kinds of trainings, the results in files."""
    torch.set_num_threads(1)
    team, device = join()
    assert (team.size, device) == (2, "cpu")
    for kind in KINDS:
        np.savez(folder / f"{kind}{team.rank}.npz", **numbers(train(kind, session=Session(team=team))))
    team.leave()
    (folder / "leader").write_text(str(team.rank))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    launch(in_team, (tmp_path,), ("cpu", "cpu"))
    assert (tmp_path / "leader").read_text() == "0"
    for kind in KINDS:
        first, second = (dict(np.load(tmp_path / f"{kind}{rank}.npz")) for rank in range(2))
        assert_same(first, second)
        alone = numbers(train(kind))
        assert alone.keys() == first.keys()
        for name in alone.keys() - {"history"}:
            assert first[name].shape == alone[name].shape
            np.testing.assert_allclose(first[name], alone[name], rtol=0, atol=1e-4, err_msg=f"{kind} {name}")


def fail_in_one() -> None:
    team, _ = join()
    if team.rank:
        raise UsageError("this one is wrong")
    team.add([torch.zeros(1)])  # waits for the other one


def test_the_error_of_one_process_ends_them_all() -> None:
    with pytest.raises(UsageError, match="this one is wrong"):
        launch(fail_in_one, (), ("cpu", "cpu"))


@pytest.mark.parametrize(("count", "batch", "size"), [(7, 2, 3), (1, 4, 2), (12, 3, 2), (5, 100, 4)])
def test_scored_rows_are_dealt_out_once(count: int, batch: int, size: int) -> None:
    places = [Team(rank, size).dealt(count, batch) for rank in range(size)]
    assert sorted(np.concatenate(places).tolist()) == list(range(count))
    for own in places:
        assert all(len(set(range(count)[start : start + batch]) & set(own.tolist())) in (0, min(batch, count - start))
                   for start in range(0, count, batch))  # fmt: skip
    shares = [range(count)[Team(rank, size).share(count)] for rank in range(size)]
    assert sorted(row for share in shares for row in share) == list(range(count))


def test_only_the_first_process_goes_on_to_write() -> None:
    Team(0, 2).leave()
    with pytest.raises(Done):
        Team(1, 2).leave()


def test_devices_of_a_team_count_among_those_that_were_visible() -> None:
    assert visible(("cuda:0", "cuda:2"), None) == "0,2"
    assert visible(("cuda:1", "cuda:0"), "4,6") == "6,4"


class Listener:
    """A tracking library as trackio and wandb offer it."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.begun: dict[str, Any] = {}
        self.ended = 0

    def init(self, **options: Any) -> None:
        self.begun = options

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_hear_losses_rates_and_metrics(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    monkeypatch.setitem(sys.modules, name, cast("Any", listener))
    tracker = open_tracker(name, tmp_path, "my run", {"seed": 0})
    silent = train("classify")
    outcome = train("classify", session=Session(tracker=tracker))
    tracker.close()
    assert_same(numbers(silent), numbers(outcome))
    assert (listener.begun["project"], listener.begun["name"], listener.ended) == ("lary", "my run", 1)
    assert listener.begun["config"] == {"seed": 0}
    steps = [step for step, _ in listener.told]
    assert steps == sorted(steps)
    told = {key: value for _, values in listener.told for key, value in values.items()}
    chosen = outcome.history[-1]
    assert told["validation_accuracy/1"] == chosen["validation_accuracy"][1]
    assert told["train_loss/0"] == chosen["train_loss"][0]
    assert {"batch_loss/0", "batch_learning_rate/1", "final/held_out_top1", "epoch"} <= told.keys()
    updates = sum("batch_loss/0" in values for _, values in listener.told)
    assert updates == 3 * math.ceil(outcome.settings["fit_samples"] / 16)


def test_tensorboard_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, "my run", {"seed": 0})
    outcome = train("mlp", session=Session(tracker=tracker))
    tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    errors = [event.value for event in found.Scalars("seen_mse")]
    np.testing.assert_allclose(errors, [row["seen_mse"] for row in outcome.history], rtol=1e-6)
    assert {"batch_loss", "train_loss", "learning_rate", "final/held_out_seen_mse"} <= set(found.Tags()["scalars"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_told(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"--tracker {name}: .*pip install 'lary\[{name}\]'"):
        open_tracker(name, tmp_path, "my run", {})


def test_a_history_is_told_in_numbers() -> None:
    row = {"epoch": 2, "loss": [0.5, None, math.nan], "note": "x"}
    assert flat(row) == {"epoch": 2.0, "loss/0": 0.5}


def test_memory_is_counted_without_being_taken() -> None:
    settings = PRESETS.get("paper").regressor
    weights = count_weights(lambda: make_network(settings, (2, 256, 1024), (10, 5, 7), 0))
    assert weights == 2 * 524288 + 524288 * 4096 + 4096 + 2 * (2 * 4096 + 4096 * 4096 + 4096) + 8192 + 4096 * 35 + 35
    assert training_need(weights, (2, 256, 1024), 256).total > 16 * weights
    small = make_network(TINY.regressor, (2, 3, 4), (9, 2, 3), 0)
    assert count_weights(lambda: make_network(TINY.regressor, (2, 3, 4), (9, 2, 3), 0)) == sum(
        parameter.numel() for parameter in small.parameters()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_does_not_fit_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(UsageError, match=r"needs .* GB for latents of .*0\.0 GB are free.*--pool.*--project"):
        train(kind)


def test_the_published_width_on_whole_feature_maps_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 24 << 30)
    need = training_need(2_181_000_000, (2, 256, 1024), 256)
    with pytest.raises(UsageError, match=r"needs 39\.2 GB for latents of 2 x 256 x 1024 values: 34\.9 GB for weights"):
        check_memory(need, (2, 256, 1024), "cpu", "probe mlp")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 80 << 30)
    check_memory(need, (2, 256, 1024), "cpu", "probe mlp")


def test_free_memory_is_less_than_all() -> None:
    assert 0 < memory.free_bytes("cpu") <= 2 * memory.memory_bytes()


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_first_layer_has_the_gradients_of_autograd(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "ROWS_AT_ONCE", rows)
    torch.manual_seed(0)
    network = ActionExpertMLP(24, 3, 2, hidden_dim=16, num_blocks=1).double()
    with torch.no_grad():
        network.model.layer_norm1.weight.normal_()
        network.model.layer_norm1.bias.normal_()
    tokens, targets = torch.randn(9, 2, 3, 4).double(), torch.randn(9, 6).double()
    found, wanted = [], []
    for grads, given in ((found, tokens), (wanted, tokens.clone().requires_grad_())):
        network.zero_grad()
        F.huber_loss(network(given), targets).backward()
        grads += [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    assert len(found) == len(list(network.parameters()))
    torch.testing.assert_close(found, wanted)


def test_dropped_conditions_have_the_gradients_of_replaced_latents() -> None:
    torch.manual_seed(0)
    network = ActionExpertDiT(12, 3, 2, hidden_size=8, depth=1, num_heads=2).double().train()
    embedder = network.dit.z_embedder
    torch.nn.init.normal_(embedder.uncondition)
    latents, dropped = torch.randn(6, 12).double(), torch.tensor([True, False] * 3)
    weights = (embedder.uncondition, embedder.linear.weight, embedder.linear.bias)
    found = torch.autograd.grad(embedder(latents, dropped).square().sum(), weights)
    replaced = embedder.linear(torch.where(dropped[:, None], embedder.uncondition, latents))
    torch.testing.assert_close(found, torch.autograd.grad(replaced.square().sum(), weights))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), ({}, False)],
)
def test_the_published_precision_where_the_device_has_it(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert in_bfloat16(True, None, "cpu") is expected
    assert not in_bfloat16(False, None, "cpu")
    assert not in_bfloat16(True, "fp32", "cpu")
    assert in_bfloat16(False, "bf16", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert in_bfloat16(True, None, "cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not in_bfloat16(True, None, "cuda:1")
    assert not in_bfloat16(True, None, "mps")


@pytest.mark.parametrize("length", [3, SHORT, SHORT + 1])
def test_attention_in_bfloat16_is_attention(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, length, 8) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v)
    found = _attend(*(part.bfloat16() for part in (q, k, v)))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)


def test_bfloat16_is_trained_where_asked_for() -> None:
    plain, half = (train("classify", precision=precision) for precision in ("fp32", "bf16"))
    assert (plain.settings["precision"], half.settings["precision"]) == ("fp32", "bf16")
    assert_same(numbers(plain), numbers(train("classify")))
    first, second = (np.array(outcome.history[-1]["validation_loss"]) for outcome in (plain, half))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, second, rtol=0.2)


def test_a_sample_that_is_not_finite_is_named() -> None:
    tokens = np.zeros((5, 2, 3, 4), np.float32)
    tokens[3, 1, 2, 0] = np.inf
    source = NamedSource(SpySource(tokens), lambda row: f"sample {row}f ({row}.mp4)")
    assert len(source) == 5
    assert source.read([0, 1]).shape == (2, *source.shape)
    with pytest.raises(LaryError, match=r"latents of sample 3f \(3.mp4\) hold NaN or infinity.*check-model"):
        ProjectedSource(source, 2, 0).read(np.array([4, 3]))


def test_samples_at_once_bound_the_tokens() -> None:
    assert memory.samples_at_once((8, 16, 1024), 768, 4, 256, "cpu") == 16
    assert memory.samples_at_once((9, 256, 1024), 768, 4, 256, "cpu") == 1
    assert memory.samples_at_once((2, 5), 768, 4, 32, "cpu") == 32
    device = SimpleNamespace(total_memory=80 << 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda _: device)
        assert memory.samples_at_once((8, 16, 1024), 768, 4, 256, "cuda:0") == 256
        assert 1 <= memory.samples_at_once((9, 256, 1024), 768, 4, 256, "cuda:0") < 256
