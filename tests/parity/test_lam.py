"""Training of latent action models against what the published training computes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from lary.lam.codebook import PublishedRule, replace_published
from lary.lam.configs import TrainLamConfig
from lary.lam.network import (
    SILENT,
    Forward,
    FrozenBackbone,
    StraightQuantizer,
    TrainableModel,
    build_network,
    make_optimizer,
)
from lary.lam.training import LamTraining
from lary.models.lapa import load_features
from lary.models.tensors import split_off
from lary.probes.training import Session
from lary.types import WeightsIdentity
from tests.parity import fill
from tests.parity.conftest import Case, case_names, load_case, network_record, normalised
from tests.parity.test_models import DRAWN

STEPS = case_names("lam-training-steps")


def network_of(case: Case) -> TrainableModel:
    """The network with the weights of the case, which have to be all of them, and its frozen encoder of frames."""
    spec, tensors = network_record(case), case.weights()
    features = spec.options["features"]
    inside = split_off(tensors, features["prefix"]) if features else {}
    network = build_network(spec.options["network"], 0, spec.name)
    network.load_state_dict(tensors)
    if features:
        network.features = load_features(spec, features, DRAWN, inside, {}, network.grid)[0].requires_grad_(False)
    return network


def run(case: Case, network: TrainableModel, step: int) -> Forward:
    """A forward pass for the case's video (B, 3, 2, H, W) in [0, 1) with stored noise."""
    drawn = case.draw(f"video_{step}", "none: values in [0, 1)").swapaxes(1, 2)
    pairs = normalised(drawn, network_record(case).preprocess)
    noise = torch.from_numpy(case.arrays[f"noise_{step}"]).unflatten(0, (len(pairs), -1))
    pixels = torch.from_numpy(np.ascontiguousarray(drawn[:, 1])) if network.patch else None
    return network(network.embed_pairs(pairs), pixels, noise)


def uses_of(codes: Tensor, rule: PublishedRule) -> tuple[Tensor, Tensor]:
    """Uses of each code by this process, and by all, which is the same."""
    uses = torch.bincount(codes.flatten(), minlength=len(rule.used))
    return uses, uses


def own_parameters(network: TrainableModel) -> dict[str, torch.nn.Parameter]:
    return {key: value for key, value in network.named_parameters() if not key.startswith("features.")}


def norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())


def check_gradients(case: Case, network: TrainableModel, step: int) -> None:
    """Norms of all, of each group and, at the first step, of each parameter, and some gradients whole."""
    expected, own = case.about["expected"], own_parameters(network)
    found = {key: value.grad for key, value in own.items() if value.grad is not None and value.numel()}
    assert norm([*found.values()]) == pytest.approx(expected["gradient_norm_before_clipping"][step], rel=1e-4)
    for group, wanted in expected["gradient_norm_per_group"][step].items():
        members = [value for key, value in found.items() if key.startswith(group)]
        assert norm(members) == pytest.approx(wanted, rel=1e-4), group
    if step:
        return
    none = [key for key, value in own.items() if value.grad is None and value.numel()]
    assert sorted(none) == sorted(expected["parameters_without_gradient"])
    for key, wanted in expected["gradient_norm_per_parameter"].items():
        if wanted > 1e-6:
            assert norm([found[key]]) == pytest.approx(wanted, rel=1e-3), key
    for name in (name for name in case.arrays if name.startswith("gradient_")):
        whole = case.arrays[name]
        case.check(name, found[name.removeprefix("gradient_").removesuffix("_0")], 1e-3 * np.abs(whole).max())


def check_after(case: Case, network: TrainableModel, before: dict[str, Tensor]) -> None:
    """Parameters after all steps, but for the one whose gradient is rounding."""
    rate = case.about["optimiser"]["lr"]
    after = {key: value.detach() for key, value in own_parameters(network).items()}
    for name in (name for name in case.arrays if name.startswith("after/")):
        difference = np.abs(after[name.removeprefix("after/")].numpy() - case.arrays[name])
        assert (difference <= 2e-6).mean() >= 0.99, name
        assert difference.max() <= 2 * rate, name
    for key, wanted in case.about["expected"]["parameter_change_l2_after"].items():
        if key != SILENT:
            assert norm([after[key] - before[key]]) == pytest.approx(wanted, rel=1e-3, abs=1e-12), key


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_training_equal_the_published_ones(name: str) -> None:
    case = load_case(name)
    own, expected = case.about["optimiser"], case.about["expected"]
    network = network_of(case)
    before = {key: value.detach().clone() for key, value in own_parameters(network).items()}
    optimizer = make_optimizer(network, own["lr"], own["weight_decay"])
    rule = PublishedRule(case.config["codebook_size"], "cpu")
    for step, loss in enumerate(expected["loss"]):
        found = run(case, network, step)
        rule.count(*uses_of(found.codes, rule))
        if step == 0:
            case.check("codes_0", found.codes)
            case.check("tokens_0", found.tokens.detach())
            picture = found.reconstruction.detach()
            case.check("reconstruction_0", picture.unsqueeze(2 if network.patch else 1))
        assert float(found.loss.detach()) == pytest.approx(loss, rel=1e-4)
        assert len(found.codes.unique()) == expected["num_unique_indices"][step]
        assert rule.used.tolist() == expected["codebooks_used_after_forward"][step]
        found.loss.backward()
        check_gradients(case, network, step)
        torch.nn.utils.clip_grad_norm_(network.parameters(), own["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
    last = len(expected["loss"])
    check_after(case, network, before)
    with torch.inference_mode():
        found = run(case, network.eval(), last)
    rule.count(*uses_of(found.codes, rule))
    assert float(found.loss) == pytest.approx(expected["loss_after"], rel=1e-4)
    assert len(found.codes.unique()) == expected["num_unique_indices_after"]
    assert rule.used.tolist() == expected["codebooks_used_at_end"]


def stored(case: Case, name: str) -> Any:
    """A draw that returns the stored one, where there is one."""

    def draw(size: Any) -> Tensor:
        value = torch.from_numpy(case.arrays[name])
        assert tuple(value.shape) == (tuple(size) if isinstance(size, (list, tuple)) else (size,))
        return value

    return draw


@pytest.mark.parametrize("name", case_names("lam-training-replacement"))
def test_replacement_of_codes_equals_the_published_one(name: str) -> None:
    case = load_case(name)
    for about in case.about["scenarios"]:
        entry, label = about["codebook"], about["label"]
        case.about["input"] = {label: entry}
        before = case.draw(label, "minus 0.5") - np.float32(0.5)
        book, used = torch.from_numpy(before.copy()), torch.tensor(about["codebooks_used"])
        draws = [stored(case, f"{label}/{kind}") for kind in ("permutation", "noise")]
        replace_published(book, used, about["num_batches"], *draws)
        case.check(f"{label}/after", book, 1e-11)
        assert used.tolist() == about["codebooks_used_after"]
        sources = about["row_of_the_codebook_before_that_each_row_holds_after"]
        np.testing.assert_allclose(book.numpy(), before[sources], rtol=0, atol=1e-11)
    rule = PublishedRule(len(case.about["counting"][0]["codebooks_used_after"]), "cpu")
    for about in case.about["counting"]:
        rule.count(*uses_of(torch.tensor(about["indices"]), rule))
        assert rule.used.tolist() == about["codebooks_used_after"]


@pytest.mark.parametrize("name", case_names("lam-training-univla"))
def test_quantizer_of_univla_equals_the_published_one(name: str) -> None:
    case = load_case(name)
    rows = case.about["input"]["codebook"]["shape"][0]
    expected = case.about["expected"]
    quantizer = StraightQuantizer(*case.about["input"]["codebook"]["shape"], case.about["beta"])
    with torch.no_grad():
        book = (case.draw("codebook", f"(u * 2 - 1) / {rows}") * 2 - 1) / np.float32(rows)
        quantizer.codebook.weight.copy_(torch.from_numpy(book))
    scale = re.fullmatch(rf"\(u \* 2 - 1\) \* ([\d.]+) / {rows}", case.about["input"]["x"]["then"])
    assert scale, "no reading for the input"
    x = torch.from_numpy((case.draw("x") * 2 - 1) * np.float32(float(scale[1]) / rows)).requires_grad_()
    found, codes, codebook_loss, commitment = quantizer(x)
    error = torch.nn.functional.mse_loss(found, torch.from_numpy(case.draw("target", "none")))
    loss = error + codebook_loss + quantizer.beta * commitment
    loss.backward()
    values = {"mse": error, "q_loss": codebook_loss, "commit_loss": commitment, "loss": loss}
    for key, value in values.items():
        assert float(value.detach()) == pytest.approx(expected[key], rel=1e-5)
    assert quantizer.usage.tolist() == expected["usage"]
    assert quantizer.restart(torch.from_numpy(case.arrays["permutation"])).tolist() == expected["dead"]
    assert not quantizer.usage.any()
    weight = quantizer.codebook.weight
    arrays = {
        "indices": codes, "z_q": found.detach(), "gradient_x": x.grad, "permutation": case.arrays["permutation"],
        "gradient_codebook": weight.grad, "codebook_after_restart": weight.detach(),
    }  # fmt: skip
    case.about.update({"atol": 1e-6, "rtol_of_max": 1e-5})
    case.check_all(**arrays)


class Stored:
    """The pairs of a loop case as a source: those of its steps, and those of its validations held out."""

    def __init__(self, case: Case) -> None:
        self.case, self.size = case, case.about["trainer"]["batch_size"]

    def _drawn(self, kind: str, number: int) -> Tensor:
        entry = self.case.about["input"][kind]
        drawn = fill.uniform(re.sub("<.*>", str(number), entry["draw"]), tuple(entry["shape"]))
        return torch.from_numpy(np.ascontiguousarray(drawn.swapaxes(1, 2)))

    def batch(self, step: int, numbers: Sequence[int]) -> Tensor:
        assert list(numbers) == list(range(step * self.size, (step + 1) * self.size))
        return self._drawn("train", step)

    def heldout(self, count: int) -> Tensor:
        return torch.cat([self._drawn("valid", number) for number in range(count // self.size)])

    def ids(self, numbers: Sequence[int]) -> list[str]:
        return [str(number) for number in numbers]

    def manifest(self) -> dict[str, Any]:
        return {}


class LoopTraining(LamTraining):
    """The training of a loop case, whose draws are stored."""

    case: Case
    draws = 0

    def embed(self, network: TrainableModel, pairs: Tensor) -> tuple[Tensor, None]:
        return self.backbone.encode(pairs), None  # type: ignore[misc]

    def noise(self, count: int, *parts: int | str) -> Tensor:
        self.draws += 1
        return torch.from_numpy(self.case.arrays[f"noise_{self.draws - 1}"]).unflatten(0, (count, -1))

    def watch(self) -> None:
        """The published training has no monitor."""


@pytest.mark.parametrize("name", case_names("lam-training-loop"))
def test_training_equals_the_published_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, codes, counters, replacements, averages and codebooks of every step; validation counts codes, too."""
    case = load_case(name)
    own, spec, network = case.about["trainer"], network_record(case), network_of(case)
    module, logged = network.features, []
    network.features = None

    def encode(pairs: Tensor) -> Tensor:
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (spec.preprocess.mean, spec.preprocess.std))
        return module(((pairs - mean) / std).flatten(0, 1)).unflatten(0, pairs.shape[:2])  # type: ignore[misc, no-any-return]

    def permuted(rule: PublishedRule, step: int, rank: int) -> tuple[Any, Any]:
        return stored(case, f"permutation_step_{step}"), torch.randn

    batches = 2 * -(-own["num_train_steps"] // own["save_results_every"])
    config = TrainLamConfig(
        backbone=spec.name, dataset=(), out=Path(), recipe="paper", steps=own["num_train_steps"], lr=own["lr"],
        batch_size=own["batch_size"], weight_decay=own["weight_decay"], averaging=own["use_ema"],
        accumulate=own["grad_accum_every"], validate_every=own["save_results_every"],
        monitor_pairs=batches * own["batch_size"],
    )  # fmt: skip
    monkeypatch.setattr(PublishedRule, "draws", permuted)
    monkeypatch.setattr("lary.lam.training.build_network", lambda *_: network)
    tracker = Mock(log=lambda values, step: logged.extend([step, *pair] for pair in values.items()))
    backbone = FrozenBackbone(spec, case.config, spec.preprocess, WeightsIdentity(), encode)
    training = LoopTraining(config, backbone, Stored(case), Session(protocol="paper", seed=0, tracker=tracker))
    training.case = case
    for step, expected in enumerate(case.about["trace"]):
        training.update()
        assert training.rule.used.tolist() == expected["codebooks_used"], step
        for key, found in ((f"codebook_{step}", training.network), (f"ema_codebook_{step}", training.result)):
            if key in case.arrays:
                difference = np.abs(found.vq.codebooks.detach().numpy() - case.arrays[key])
                assert (difference <= 1e-5).mean() >= 0.99, key
                assert difference.max() <= 2 * own["lr"] * (step + 1), key
    assert training.draws == sum(each["forwards_with_noise"] for each in case.about["trace"])
    assert [row[:2] for row in logged] == [row[:2] for row in case.about["scalars"]]
    for found, expected in zip(logged, case.about["scalars"], strict=True):
        assert found[2] == pytest.approx(expected[2], rel=0 if "unique" in expected[1] else 1e-3), expected
