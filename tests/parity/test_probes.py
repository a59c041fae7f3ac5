"""The probes against the published code: network outputs, schedules, draws, errors, and the sampling of the DiT."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lary.probes import dit
from lary.probes import outcome as metrics
from lary.probes.dit import ActionExpertDiT, add_noise, alphas_cumprod, sampling_timesteps
from lary.probes.nets import ActionExpertMLP, AttentiveProbe
from lary.probes.presets import PRESETS, HeadSettings, learning_rate, weight_decay
from lary.probes.sources import balanced_indices, class_weights
from tests.parity import fill
from tests.parity.conftest import OWN, Case, case_names, load_case
from tests.parity.fill import uniform

GROUPS = {
    "calvin": {"position": (0, 1, 2), "orientation": (3, 4, 5), "gripper": (6,)},
    "agibotbeta": {"position": tuple(range(6)), "orientation": tuple(range(6, 14)), "gripper": (14, 15)},
    "robocoin": {"position": (0, 1, 2, 6, 7, 8), "orientation": (3, 4, 5, 9, 10, 11)},
}


def load_weights(network: torch.nn.Module, case: Case) -> None:
    """Give the network the weights of the case; its keys and shapes have to be exactly those."""
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == case.about["keys"]
    network.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights().items()}, strict=True)
    network.eval()


@pytest.mark.parametrize("name", case_names("probe_*", but=("probe_schedule", "probe_sampler")))
def test_attentive_probe(name: str) -> None:
    case = load_case(name)
    config = case.config
    probe = AttentiveProbe(
        config["input_dim"], config["num_classes"], config["model_dim"], config["num_heads"], config["depth"],
        config["max_temporal_len"],
    )  # fmt: skip
    load_weights(probe, case)
    for kind in case.about["input"]:
        tokens = torch.from_numpy(case.draw(kind) * 4 - 2)
        with torch.no_grad():
            logits = probe(tokens)
        case.check(f"logits_{kind}", logits.numpy())
        labels = 3 * torch.arange(len(tokens)) % config["num_classes"]
        smoothing = PRESETS.get("paper").classifier.label_smoothing
        case.check(f"loss_smooth_{kind}", F.cross_entropy(logits, labels, label_smoothing=smoothing).numpy())


@pytest.mark.parametrize("name", case_names("regression_mlp_*"))
def test_regression_mlp(name: str) -> None:
    case = load_case(name)
    network = ActionExpertMLP(**case.config)
    load_weights(network, case)
    with torch.no_grad():
        predicted = network(torch.from_numpy(case.draw("latent") * 4 - 2)).numpy()
    target = case.draw("target") * 6 - 3
    case.check("prediction", predicted)
    case.check("huber", metrics.huber_loss(predicted, target, len(target)))
    case.check("mse", metrics.mse(predicted, target))


def trace(heads: list[HeadSettings], epochs: int, per_epoch: int) -> dict[str, np.ndarray]:
    total = epochs * per_epoch
    steps = range(1, total + 1)
    return {
        "lr": np.array([[learning_rate(head, step, total, per_epoch) for head in heads] for step in steps]),
        "wd": np.array([[weight_decay(head, step, total) for head in heads] for step in steps]),
    }


@pytest.mark.parametrize("name", case_names("probe_schedule*"))
def test_schedule(name: str) -> None:
    case = load_case(name)
    epochs, per_epoch = case.config["num_epochs"], case.config["iterations_per_epoch"]
    traces = trace([HeadSettings(**head) for head in case.config["heads"]], epochs, per_epoch)
    rising = HeadSettings(0.003, 0.4, final_lr=0.0001, final_weight_decay=0.04, start_lr=0.0005, warmup=0.7)
    traces |= {f"warmup_{key}": value for key, value in trace([rising], epochs, per_epoch).items()}
    for output in case.about["outputs"]:
        key, part = output.split("/")
        first, count = re.fullmatch(r"(first|last)(\d+)", part).groups()  # type: ignore[union-attr]
        rows = traces[key][: int(count)] if first == "first" else traces[key][-int(count) :]
        case.check(output, rows)


def test_paper_preset_has_the_published_heads() -> None:
    case = load_case("probe_schedule", OWN)  # cases of another folder may have heads of their own
    preset = PRESETS.get("paper").classifier
    published = [(head["lr"], head["weight_decay"], head["final_lr"], head["warmup"]) for head in case.config["heads"]]
    assert [(head.lr, head.weight_decay, head.final_lr, head.warmup) for head in preset.heads] == published


@pytest.mark.parametrize("name", case_names("probe_sampler*"))
def test_sampler(name: str) -> None:
    case = load_case(name)
    labels = np.unique(case.config["actions"], return_inverse=True)[1]
    weights = class_weights(labels)
    case.check("label_ids", labels)
    np.testing.assert_allclose(weights, case.arrays["weights"], rtol=1e-15)
    for output, expected in case.arrays.items():
        # Several published processes round the draws up to a multiple of their number, and deal them out in turn; ours
        # share the batches of one process. The order in which the published code validates (val_indices) is not ours.
        if match := re.fullmatch(r"indices/world(\d+)/rank(\d+)/epoch(\d+)", output):
            world, rank, epoch = map(int, match.groups())
            own = balanced_indices(weights, epoch, seed=0)[rank::world]
            np.testing.assert_array_equal(own, expected[: len(own)])
            assert len(expected) - len(own) == (rank >= len(labels) % world > 0)


def metric_inputs(about: dict[str, Any], dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of one metric case as chunks (n, K, A)."""
    steps = about["steps"]
    predicted = fill.uniform(about["pred"]["draw"], tuple(about["pred"]["shape"])) * 4 - 2
    target = fill.uniform(about["target"]["draw"], tuple(about["target"]["shape"])) * 4 - 2
    target = (target * np.linspace(0.5, 1.5, steps * dims)).astype(np.float32)
    return predicted.reshape(-1, steps, dims), target.reshape(-1, steps, dims)


@pytest.mark.parametrize("name", case_names("regression_metrics*"))
def test_regression_metrics(name: str) -> None:
    case = load_case(name)
    for key, about in case.about["input"].items():
        predicted, target = metric_inputs(about, len(case.arrays[f"{key}/per_dim"]))
        case.check(f"{key}/mse", metrics.mse(predicted, target))
        case.check(f"{key}/per_dim", metrics.mse_per_dim(predicted, target))
        groups = metrics.mse_per_group(predicted, target, GROUPS.get(about["dataset"], {}))
        case.check(f"{key}/groups", np.array(list(groups.values())))
        case.check(f"{key}/val_loss", metrics.huber_loss(predicted, target, 4))


KEPT = (1, 2, 10, 100, 400, 499)
"""Steps after which ``trajectory_named`` has the state."""


def build(case: Case) -> ActionExpertDiT:
    """The network with the weights of the case; its keys and shapes have to be exactly those."""
    network = ActionExpertDiT(**case.config).eval()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == case.about["keys"]
    network.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights().items()}, strict=True)
    return network


def close(case: Case, name: str, actual: torch.Tensor, tolerance: float) -> None:
    expected = case.arrays[name]
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=tolerance, err_msg=f"{case.name} {name}")


def standard(values: np.ndarray) -> torch.Tensor:
    """Uniform draws with mean 0 and variance 1, in the float32 arithmetic of numpy."""
    return torch.from_numpy((values - np.float32(0.5)) * np.float32(math.sqrt(12)))


@pytest.mark.parametrize("name", case_names("regression_dit_*"))
def test_noise_network_and_loss(name: str) -> None:
    case = load_case(name)
    network = build(case)
    latents = torch.from_numpy(case.draw("latent") * 4 - 2)
    action = torch.from_numpy(case.draw("action") * 4 - 2).unflatten(1, network.shape)
    noise, times = standard(case.draw("noise")), torch.tensor(case.about["input"]["timesteps"]["values"])
    close(case, "alphas_cumprod", alphas_cumprod(), 1e-6)
    np.testing.assert_array_equal(sampling_timesteps(500), case.arrays["timesteps"])
    noisy = add_noise(action, noise, times)
    close(case, "noisy", noisy, 1e-6)
    with torch.no_grad():
        predicted = network(noisy, times, latents)
    close(case, "noise_pred", predicted, case.about["tolerance"]["noise_pred"])
    np.testing.assert_allclose(float(F.huber_loss(predicted, noise)), case.arrays["huber"], atol=1e-5)


@pytest.mark.parametrize("name", case_names("regression_dit_*"))
def test_published_sampling(name: str) -> None:
    case = load_case(name)
    network = build(case)
    latents = torch.from_numpy(case.draw("latent") * 4 - 2)
    draws = {"start": case.about["input"]["<start>"], "noise": case.about["input"]["<noise>"]}

    def named(timestep: int | None) -> torch.Tensor:
        entry = draws["start"] if timestep is None else draws["noise"]
        return standard(uniform(entry["draw"].replace("<t>", str(timestep)), tuple(entry["shape"])))

    states = list(network.trajectory(latents, named))
    assert len(states) == 500
    tolerance = case.about["tolerance"]
    close(case, "trajectory_named", torch.stack([states[step - 1] for step in KEPT]), tolerance["sample_named"])
    close(case, "sample_named", states[-1].flatten(1), tolerance["sample_named"])
    network.seed = 123
    close(case, "sample_seeded", network.predict(latents), tolerance["sample_seeded"])


@pytest.mark.parametrize("steps", [1, 3, 50, 500, 1000])
def test_a_perfect_network_is_sampled_exactly(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the noise is known, every sampler ends in the one clean chunk, clipped to one standard deviation."""
    network = ActionExpertDiT(5, 2, 3, hidden_size=8, depth=1, num_heads=2, sampler_steps=steps).eval()
    clean = torch.tensor([[[0.5, -0.9], [0.0, 0.3], [0.8, 4.0]]])

    def known(noisy: torch.Tensor, times: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        left = alphas_cumprod()[times][:, None, None]
        return (noisy - left.sqrt() * clean) / (1 - left).sqrt()

    monkeypatch.setattr(network.dit, "denoise", known)
    found = network.predict(torch.zeros(1, 5)).unflatten(1, (3, 2))
    torch.testing.assert_close(found, clean.clamp(-1, 1), atol=2e-3, rtol=0)


def test_the_condition_is_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    embedder = dit.ConditionEmbedder(4, 3)
    torch.nn.init.ones_(embedder.uncondition)
    latents = torch.zeros(4000, 4)
    dropped = (embedder.train()(latents) != embedder.linear.bias).any(dim=1).float().mean()
    assert float(dropped) == pytest.approx(0.1, abs=0.02)
    torch.testing.assert_close(embedder.eval()(latents), embedder.linear(latents))
